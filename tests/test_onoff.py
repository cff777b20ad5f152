"""On and off are ObsPy's, whatever the pieces; merging and missing data follow from that."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from obspy.signal.trigger import trigger_onset

from agent.dsp.stalta import Change, Fall, OnOff, Rise

LEVELS = st.sampled_from([0.0, 1.0, 1.5, 2.0, 3.9999, 4.0, 6.0, 9.0])
FOREVER = 10**9


def run(onoff: OnOff, ratio: NDArray[np.float64], sizes: list[int]) -> list[Change]:
    """Feed a series in pieces and flush."""
    changes: list[Change] = []
    at = turn = 0
    while at < len(ratio):
        size = sizes[turn % len(sizes)]
        changes += onoff.feed(at, ratio[at : at + size])
        at, turn = at + size, turn + 1
    return [*changes, *onoff.flush()]


def spans(changes: list[Change]) -> list[list[int]]:
    """First and last sample of each trigger; checks that rises and falls alternate."""
    assert all(isinstance(c, Rise) for c in changes[::2])
    assert all(isinstance(c, Fall) for c in changes[1::2])
    assert [c.onset for c in changes[::2]] == [c.onset for c in changes[1::2]]
    return [[c.onset, c.last] for c in changes if isinstance(c, Fall)]


@settings(max_examples=300)
@given(
    st.lists(LEVELS, min_size=2, max_size=80),
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.sampled_from([1.5, 2.0, 4.0]),
    st.sampled_from([1, 3, 10, FOREVER]),
)
def test_triggers_are_obspys(levels: list[float], sizes: list[int], off: float, longest: int) -> None:
    """Protects both thresholds (>=, not >), the forced end and the rise after it, in pieces of any size."""
    ratio = np.array(levels)
    expected = [[int(a), int(b)] for a, b in trigger_onset(ratio, 4.0, off, max_len=longest)]
    assert spans(run(OnOff(4.0, off, 0, longest), ratio, sizes)) == expected


@given(
    st.lists(LEVELS, min_size=2, max_size=80),
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.sampled_from([1, 2, 5, 20]),
    st.sampled_from([3, 10, FOREVER]),
)
def test_merging_in_pieces_is_merging_at_once(levels: list[float], sizes: list[int], merge: int, longest: int) -> None:
    """Protects merge_s from the packets: same triggers, same peaks."""
    ratio = np.array(levels)
    assert run(OnOff(4.0, 1.5, merge, longest), ratio, sizes) == run(OnOff(4.0, 1.5, merge, longest), ratio, [1000])


@given(st.lists(LEVELS, min_size=2, max_size=80), st.integers(1, 20))
def test_merging_joins_what_is_near(levels: list[float], merge: int) -> None:
    """Protects the meaning of merge: ObsPy's triggers, those at most ``merge`` samples apart joined."""
    ratio = np.array(levels)
    expected: list[list[int]] = []
    for onset, last in trigger_onset(ratio, 4.0, 1.5):
        if expected and onset - expected[-1][1] <= merge:
            expected[-1][1] = int(last)
        else:
            expected.append([int(onset), int(last)])
    changes = run(OnOff(4.0, 1.5, merge, FOREVER), ratio, [7])
    assert spans(changes) == expected
    peaks = [c.peak for c in changes if isinstance(c, Fall)]
    assert peaks == [ratio[a : b + 1].max() for a, b in expected]


@given(st.lists(st.tuples(LEVELS, st.booleans()), min_size=2, max_size=60), st.integers(0, 6), st.integers(1, 12))
def test_no_data_is_a_ratio_of_zero(points: list[tuple[float, bool]], merge: int, longest: int) -> None:
    """Protects gaps in a trigger: it ends at the last sample that was there, and may go on within merge_s."""
    gaps, zeros = OnOff(4.0, 1.5, merge, longest), OnOff(4.0, 1.5, merge, longest)
    found: list[Change] = []
    expected: list[Change] = []
    for i, (level, present) in enumerate(points):
        found += gaps.feed(i, np.array([level])) if present else gaps.absent(i, 1)
        expected += zeros.feed(i, np.array([level if present else 0.0]))
    assert [*found, *gaps.flush()] == [*expected, *zeros.flush()]


@pytest.mark.parametrize("length", [1, 2, 50])
def test_a_long_absence_is_many_short_ones(length: int) -> None:
    """Protects gaps of days, which come as one call."""
    once, often = (OnOff(4.0, 1.5, 2, FOREVER) for _ in range(2))
    for onoff in (once, often):
        onoff.feed(0, np.array([5.0]))
    together = once.absent(1, length)
    singly = [change for i in range(length) for change in often.absent(1 + i, 1)]
    assert list(together) == singly
    assert bool(together) == (length > 2)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("state", [0.0, 9.0, 2.0])
def test_a_ratio_that_is_not_finite_is_quiet_and_ends_no_loop(value: float, state: float) -> None:
    """Protects the pipeline's thread: NaN is neither above nor below a threshold, and no loop may wait for it to be."""
    for merge in (0, 3):
        broken, quiet = OnOff(4.0, 1.5, merge, 100), OnOff(4.0, 1.5, merge, 100)
        before = np.array([0.0, 9.0 if state else 0.0, state])
        assert broken.feed(0, before) == quiet.feed(0, before)
        series = np.array([0.0, value, value, 5.0, value, 0.0])
        assert broken.feed(3, series) == quiet.feed(3, np.where(np.isfinite(series), series, 0.0))
        assert broken.flush() == quiet.flush()
