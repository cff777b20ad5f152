"""Whatever arrives, what goes on is finite, in order, without overlap, and nothing new is lost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.dsp.continuity import Continuity
from agent.errors import DataError
from agent.types import NS, BlockQuality, SampleBlock, StreamId

Z = StreamId.parse("XX.SLP.00.HHZ")
T0 = 1_700_000_000 * NS


def block(first: int, count: int, rate: float = 100.0, shift_ns: int = 0) -> SampleBlock:
    """Samples number ``first`` ... of a channel whose sample number ``i`` has the value ``i``."""
    start = T0 + round(first * NS / rate) + shift_ns
    return SampleBlock(Z, start, rate, np.arange(first, first + count, dtype=np.int32))


def values(blocks: list[SampleBlock]) -> list[int]:
    return [int(v) for b in blocks for v in b.samples]


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 12)), min_size=1, max_size=30),
    st.sampled_from([20.0, 100.0, 250.0, 1000.0]),
)
def test_any_order_gives_rising_samples_at_their_own_times(packets: list[tuple[int, int]], rate: float) -> None:
    """Protects everything behind it: no packet order or overlap of a quarter of a second or more brings a sample twice,
    late, or at a wrong time, and a sample newer than all before is never lost."""
    continuity = Continuity()
    newest = -1
    unit = round(rate / 4)
    for first, count in ((first * unit, count * unit) for first, count in packets):
        restarts = continuity.counts["Z"].restarts if continuity.counts else 0
        out = continuity.accept(block(first, count, rate))
        if count and continuity.counts["Z"].restarts > restarts:
            newest = -1
        got = values(out)
        assert got == list(range(max(first, newest + 1), first + count))
        for piece in out:
            assert piece.start_ns == T0 + round(int(piece.samples[0]) * NS / rate)
        newest = max([newest, *got])


def test_the_rule_is_no_copy() -> None:
    """Protects throughput: a sound packet goes on as it came."""
    continuity = Continuity()
    for first in (0, 100, 200):
        packet = block(first, 100)
        assert continuity.accept(packet) == [packet]
    counts = continuity.counts["Z"]
    assert (counts.blocks, counts.samples, counts.gaps, counts.duplicates, counts.overlaps) == (3, 300, 0, 0, 0)


def test_each_kind_is_counted() -> None:
    """Protects the health report, from which an operator tells a bad link from a bad recorder."""
    continuity = Continuity()
    for first, count in ((0, 100), (100, 100), (300, 100), (350, 100), (100, 100), (200, 100), (450, 0)):
        continuity.accept(block(first, count))
    counts = continuity.counts["Z"]
    assert counts.gaps == 1
    assert counts.gap_s == pytest.approx(1.0)
    assert counts.overlaps == 1
    assert counts.duplicates == 1
    assert counts.late == 1
    assert counts.samples == 350


def test_jitter_is_no_gap() -> None:
    """Protects recorders with coarse time stamps (Raspberry Shake: milliseconds): a quarter of a sample to either side,
    about a grid that nobody knows, is up to half a sample between two packets."""
    continuity = Continuity()
    rng = np.random.default_rng(3)
    shifts = rng.integers(-2_400_000, 2_400_000, 500).tolist()
    out = [continuity.accept(block(100 * i, 100, shift_ns=shift))[0] for i, shift in enumerate(shifts)]
    assert continuity.counts["Z"].gaps == continuity.counts["Z"].overlaps == 0
    assert values(out) == list(range(50_000))
    offsets = np.array([b.start_ns - T0 for b in out]) - np.arange(500) * NS
    assert np.abs(offsets[10:]).max() < 1_500_000, "the times follow the jitter"


@pytest.mark.parametrize("error", [1e-5, -1e-5, 2e-4, -2e-4])
def test_a_drifting_clock_is_followed_without_gaps(error: float) -> None:
    """Protects recorders that are not locked to GPS: 10 ppm is a sample every 17 minutes at 100 Hz."""
    continuity = Continuity()
    for second in range(4000):
        shift = round(second * NS * error)
        (out,) = continuity.accept(block(100 * second, 100, shift_ns=shift))
        assert abs(out.start_ns - (T0 + second * NS + shift)) < 5_000_000
    counts = continuity.counts["Z"]
    assert (counts.gaps, counts.overlaps, counts.samples) == (0, 0, 400_000)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_invalid_floats_become_gaps(dtype: Any) -> None:
    """Protects the filters, whose state one NaN would poison for good."""
    continuity = Continuity()
    samples = np.arange(100, dtype=dtype)
    samples[[0, 10, 11, 50, 99]] = [np.nan, np.inf, -np.inf, 2e18, np.nan]
    out = continuity.accept(SampleBlock(Z, T0, 100.0, samples))
    assert [(b.start_ns - T0) * 100 // NS for b in out] == [1, 12, 51]
    assert [len(b.samples) for b in out] == [9, 38, 48]
    assert all(np.isfinite(b.samples).all() for b in out)
    assert continuity.counts["Z"].invalid_samples == 5
    (after,) = continuity.accept(SampleBlock(Z, T0 + NS, 100.0, samples[1:9]))
    assert after.start_ns == T0 + NS
    assert continuity.accept(SampleBlock(Z, T0 + 2 * NS, 100.0, np.full(5, np.nan, dtype=dtype))) == []


def test_large_but_sound_floats_pass() -> None:
    """Protects float channels with large offsets: the quick check is not the verdict."""
    samples = np.full(1000, 9e17, dtype=np.float64)
    (out,) = Continuity().accept(SampleBlock(Z, T0, 100.0, samples))
    np.testing.assert_array_equal(out.samples, samples)


def test_a_change_of_rate_restarts_the_channel() -> None:
    """Protects a recorder whose rate is switched: no gap and no overlap is made of it."""
    continuity = Continuity()
    continuity.accept(block(0, 100))
    faster = SampleBlock(Z, T0 + NS // 2, 200.0, np.arange(200, dtype=np.int32))
    assert continuity.accept(faster) == [faster]
    assert continuity.counts["Z"].restarts == 1
    assert continuity.counts["Z"].gaps == 0


def test_a_rate_that_wobbles_in_the_header_is_one_rate() -> None:
    """Protects miniSEED 2, which states rates as a float of a fraction."""
    continuity = Continuity()
    continuity.accept(block(0, 100))
    (out,) = continuity.accept(SampleBlock(Z, T0 + NS, 100.0001, np.zeros(100, dtype=np.int32)))
    assert out.rate_hz == 100.0
    assert continuity.counts["Z"].restarts == 0


def test_one_wrong_time_in_the_future_does_not_blind_the_channel() -> None:
    """Protects against a corrupt time stamp: after three packets the old time is believed again."""
    continuity = Continuity()
    continuity.accept(block(0, 100))
    continuity.accept(block(10**9, 100))
    got = [len(continuity.accept(block(first, 100))) for first in (100, 200, 300, 400)]
    assert got == [0, 0, 1, 1]
    assert continuity.counts["Z"].restarts == 1


def test_a_clock_set_back_before_the_start_is_believed() -> None:
    """Protects a station that boots in the year 2038 and then gets its GPS fix."""
    continuity = Continuity()
    continuity.accept(block(10**9, 100))
    got = [len(continuity.accept(block(first, 100))) for first in (0, 100, 200, 300)]
    assert got == [0, 0, 1, 1]


def test_a_repeat_of_hours_stays_a_repeat() -> None:
    """Protects against events reported twice when a server sends its buffer again."""
    continuity = Continuity()
    for first in range(0, 100_000, 100):
        continuity.accept(block(first, 100))
    assert not any(continuity.accept(block(first, 100)) for first in range(0, 100_000, 100))
    assert continuity.counts["Z"].duplicates == 1000


def test_components_are_judged_apart() -> None:
    """Protects three-component stations: one channel's gap is not the other's."""
    continuity = Continuity()
    north = StreamId.parse("XX.SLP.00.HHN")
    continuity.accept(block(0, 100))
    continuity.accept(SampleBlock(north, T0 + 5 * NS, 100.0, np.zeros(100, dtype=np.int32)))
    assert {name: c.gaps for name, c in continuity.counts.items()} == {"Z": 0, "N": 0}


def test_quality_travels_along() -> None:
    """Protects the event's clock quality where a packet had to be cut."""
    quality = BlockQuality(timing_percent=40)
    continuity = Continuity()
    continuity.accept(block(0, 100))
    cut = SampleBlock(Z, T0 + NS // 2, 100.0, np.arange(50, 150, dtype=np.int32), quality)
    (out,) = continuity.accept(cut)
    assert out.quality == quality
    assert values([out]) == list(range(100, 150))


@pytest.mark.parametrize("rate", [0.0, -100.0, float("nan"), float("inf")])
def test_an_impossible_rate_is_an_error(rate: float) -> None:
    """Protects the operator: such a packet names its channel."""
    with pytest.raises(DataError, match="SLP_00_H_H_Z"):
        Continuity().accept(SampleBlock(Z, T0, rate, np.zeros(10, dtype=np.int32)))
