"""What went in comes out, at its time, as long as it fits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.dsp.ring import RingBuffer
from agent.errors import DataError
from agent.types import NS

T0 = 1_700_000_000 * NS


@given(
    st.sampled_from([20.0, 30.0, 62.5, 100.0, 1000.0]),
    st.lists(st.tuples(st.integers(1, 150), st.sampled_from([0, 0, 0, 1, 7, 500])), min_size=1, max_size=25),
    st.integers(-50, 900),
    st.integers(0, 900),
)
def test_every_sample_comes_back_at_its_time(
    rate: float, packets: list[tuple[int, int]], from_sample: int, length: int
) -> None:
    """Protects windows: against a plain list of (time, value) as the model, with gaps, wraps and any span."""
    ring = RingBuffer(rate, 200 / rate)
    model: list[tuple[int, int]] = []
    number = 0
    for size, gap in packets:
        number += gap
        values = np.arange(number, number + size, dtype=np.int32)
        ring.write(T0 + round(number * NS / rate), values)
        model += [(T0 + round(int(n) * NS / rate), int(n)) for n in values]
        number += size
    model = model[-200:]
    begin = T0 + round((from_sample - 0.5) * NS / rate)
    end = begin + round(length * NS / rate)
    found = ring.segments(begin, end)
    got = [
        (segment.start_ns + round(i * NS / rate), int(value))
        for segment in found
        for i, value in enumerate(segment.samples)
    ]
    wanted = [(time, value) for time, value in model if begin <= time < end]
    assert [value for _, value in got] == [value for _, value in wanted]
    assert all(abs(a - b) <= 1 for (a, _), (b, _) in zip(got, wanted, strict=True))
    assert all(np.all(np.diff(segment.samples) == 1) for segment in found), "a segment hides a gap"
    newest = ring.newest_ns
    assert newest is not None
    assert abs(newest - model[-1][0]) <= 1


def test_the_span_includes_its_start_and_not_its_end() -> None:
    """Protects the window's zero: no sample of the time at which it ends, and none twice in two adjoining spans."""
    ring = RingBuffer(100.0, 60.0)
    ring.write(T0, np.arange(100, dtype=np.int32))
    (segment,) = ring.segments(T0 + 10 * NS // 100, T0 + 20 * NS // 100)
    assert segment.start_ns == T0 + 10 * NS // 100
    assert segment.samples.tolist() == list(range(10, 20))


def test_what_is_handed_out_stays() -> None:
    """Protects a window that is being classified while the ring goes on."""
    ring = RingBuffer(100.0, 1.0)
    ring.write(T0, np.arange(100, dtype=np.int32))
    (segment,) = ring.segments(T0, T0 + NS)
    ring.write(T0 + NS, np.full(100, -1, dtype=np.int32))
    np.testing.assert_array_equal(segment.samples, np.arange(100))


def test_jitter_is_no_gap_and_half_a_sample_is() -> None:
    """Protects the grid: packets a little off their time continue the run, half a sample off begin another."""
    ring = RingBuffer(100.0, 60.0)
    for second, jitter_ms in enumerate((0, 4, -4, 3)):
        ring.write(T0 + second * NS + jitter_ms * 1_000_000, np.full(100, second, dtype=np.int32))
    (segment,) = ring.segments(0, 2 * T0)
    assert (segment.start_ns, len(segment.samples)) == (T0, 400)
    ring.write(T0 + 4 * NS + 5_000_000, np.zeros(100, dtype=np.int32))
    assert [s.start_ns for s in ring.segments(0, 2 * T0)] == [T0, T0 + 4 * NS + 5_000_000]


def test_a_block_that_continues_changes_the_times_and_tears_nothing() -> None:
    """Protects windows over a clock that is followed: one run, each sample at the time that its packet gave it."""
    ring = RingBuffer(100.0, 60.0)
    ring.write(T0, np.zeros(100, dtype=np.int32))
    for second, shift_ns in enumerate((30_000_000, -20_000_000, -20_000_000), 1):
        start_ns = T0 + second * NS + shift_ns
        ring.write(start_ns, np.full(100, second, dtype=np.int32), rate_hz=100.01, continues=True)
        (segment,) = ring.segments(start_ns - 1_000_000, 2 * T0)
        assert abs(segment.start_ns - start_ns) < NS / 100
        assert segment.samples.tolist()[-100:] == [second] * 100
        assert segment.rate_hz == 100.0
    (segment,) = ring.segments(0, 2 * T0)
    assert (segment.start_ns, len(segment.samples)) == (T0, 400)
    assert segment.rate_hz == pytest.approx(100.5, abs=0.05), "the last sample is 20 ms early"
    assert segment.end_ns == pytest.approx(T0 + 4 * NS - 20_000_000, abs=1_000_000)


def test_a_block_longer_than_the_buffer_leaves_its_end() -> None:
    """Protects replays with packets of an hour."""
    ring = RingBuffer(100.0, 10.0)
    ring.write(T0, np.arange(5050, dtype=np.int32))
    (segment,) = ring.segments(0, 2 * T0)
    np.testing.assert_array_equal(segment.samples, np.arange(4050, 5050))
    assert segment.start_ns == T0 + 4050 * NS // 100


def test_a_clock_set_back_empties_the_buffer() -> None:
    """Protects a window from samples of two times."""
    ring = RingBuffer(100.0, 60.0)
    ring.write(T0, np.zeros(100, dtype=np.int32))
    ring.write(T0 - 3600 * NS, np.ones(100, dtype=np.int32))
    (segment,) = ring.segments(0, 2 * T0)
    assert segment.start_ns == T0 - 3600 * NS
    assert segment.samples.all()


@pytest.mark.parametrize("dtype", [np.int32, np.float32, np.float64])
def test_samples_keep_their_type(dtype: type) -> None:
    """Protects evidence: counts leave as they were recorded."""
    ring = RingBuffer(50.0, 10.0)
    ring.write(T0, np.arange(10).astype(dtype))
    assert ring.segments(T0, T0 + NS)[0].samples.dtype == dtype


def test_a_change_of_type_loses_nothing() -> None:
    """Protects a recorder that is switched from counts to floats: the common type holds both."""
    ring = RingBuffer(50.0, 10.0)
    ring.write(T0, np.array([2**31 - 1], dtype=np.int32))
    ring.write(T0 + NS // 50, np.array([0.5], dtype=np.float32))
    (segment,) = ring.segments(T0, T0 + NS)
    assert segment.samples.tolist() == [2**31 - 1, 0.5]


def test_an_empty_buffer_has_nothing() -> None:
    """Protects the first question after a start."""
    ring = RingBuffer(100.0, 1.0)
    assert ring.newest_ns is None
    assert ring.segments(0, 2 * T0) == []
    ring.write(T0, np.zeros(0, dtype=np.int32))
    assert ring.newest_ns is None


@pytest.mark.parametrize(("rate", "seconds"), [(0.0, 1.0), (-1.0, 1.0), (float("nan"), 1.0), (100.0, 0.0)])
def test_impossible_sizes_are_refused(rate: float, seconds: float) -> None:
    """Protects against a buffer that divides by zero later."""
    with pytest.raises(DataError, match="buffer"):
        RingBuffer(rate, seconds)
