"""The network must see at the station exactly what it was trained on, whatever the recorder."""

from __future__ import annotations

import numpy as np
import pytest
from detector_support import filter_rounding
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import signal

from agent.dsp.sos import SosFilter, butterworth
from agent.dsp.window import HighPassed, Preparation, interpolate, prepare
from agent.errors import DataError
from agent.types import NS, WINDOW_ONSET, Segment

PLAIN = Preparation()
ONSET = 1_700_000_000 * NS


def _tone(rate: float, hz: float, before_s: float = 30.0, after_s: float = 90.0, shift_ns: int = 0) -> Segment:
    """A tone whose phase is fixed to the onset, so that every sampling of it describes the same ground motion."""
    start = ONSET - round(before_s * NS) + shift_ns
    t = (start - ONSET) / NS + np.arange(int((before_s + after_s) * rate)) / rate
    return Segment(start, rate, (1000 * np.sin(2 * np.pi * hz * t) + 500).astype(np.float32))


@pytest.mark.parametrize(
    ("low", "high", "rate", "order"),
    [
        (1, 20, 100, 4),
        (1, 8, 20, 4),
        (0.5, None, 100, 2),
        (None, 30, 250, 3),
        (1, 20, 1000, 4),
        (2, 45, 100, 1),
        (5, None, 100, 3),
    ],
)
def test_butterworth_equals_scipy(low: float | None, high: float | None, rate: float, order: int) -> None:
    """The corner frequencies in a configuration mean what the literature means by them."""
    kind = "bandpass" if low and high else "highpass" if low else "lowpass"
    reference = signal.butter(order, [low, high] if kind == "bandpass" else (low or high), kind, fs=rate, output="sos")
    x = np.random.default_rng(1).standard_normal(4000)
    expected = signal.sosfilt(reference, x)
    got = SosFilter(butterworth(low, high, rate, order), prime=False).process(x)
    tolerance = filter_rounding(min(corner for corner in (low, high) if corner), rate, order)
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def test_butterworth_refuses_corners_that_make_no_filter() -> None:
    for low, high in [(None, None), (20, 1), (1, 50), (0, 10), (5, 5)]:
        with pytest.raises(DataError, match="Butterworth"):
            butterworth(low, high, 100, 4)


@settings(max_examples=60)
@given(cuts=st.lists(st.integers(1, 3999), min_size=1, max_size=20), seed=st.integers(0, 5))
def test_filter_does_not_depend_on_packets(cuts: list[int], seed: int) -> None:
    """To the bit: else a trigger near the threshold would depend on how a digitizer cuts its packets."""
    x = np.random.default_rng(seed).integers(-(2**23), 2**23, sum(cuts)).astype(np.int32)
    sos = butterworth(1, 20, 100, 4)
    seconds, parts = SosFilter(sos), SosFilter(sos)
    whole = np.concatenate([seconds.process(x[at : at + 100]) for at in range(0, len(x), 100)])
    pieces = [parts.process(piece) for piece in np.split(x, np.cumsum(cuts)[:-1])]
    assert np.array_equal(whole, np.concatenate(pieces))


@settings(max_examples=30)
@given(cuts=st.lists(st.integers(1, 30_000), min_size=1, max_size=6), seed=st.integers(0, 5))
def test_filter_of_long_packets_differs_by_rounding_only(cuts: list[int], seed: int) -> None:
    """Files come in packets of minutes to days, which take another way through the same arithmetic."""
    x = np.random.default_rng(seed).integers(-(2**23), 2**23, sum(cuts)).astype(np.int32)
    sos = butterworth(1, 20, 100, 4)
    seconds, parts = SosFilter(sos), SosFilter(sos)
    expected = np.concatenate([seconds.process(x[at : at + 100]) for at in range(0, len(x), 100)])
    pieces = [parts.process(piece) for piece in np.split(x, np.cumsum(cuts)[:-1])]
    tolerance = filter_rounding(1, 100, order=4)
    np.testing.assert_allclose(np.concatenate(pieces), expected, rtol=0, atol=tolerance * np.abs(expected).max())


def test_an_offset_makes_no_transient() -> None:
    """Switching on a recorder with a DC offset must not look like an earthquake."""
    out = SosFilter(butterworth(1, 20, 100, 4)).process(np.full(2000, 1_000_000, dtype=np.int32))
    assert np.abs(out).max() < 1e-3


@pytest.mark.parametrize("rate", [20.0, 31.25, 40.0, 50.0, 62.5, 125.0, 200.0, 250.0, 500.0, 1000.0])
def test_every_rate_gives_the_same_window(rate: float) -> None:
    """A 3 Hz tone is the same tone at any sampling rate, at the right time."""
    expected = prepare({2: [_tone(100.0, 3.0)]}, ONSET, 81.92, PLAIN).data[2]
    got = prepare({2: [_tone(rate, 3.0)]}, ONSET, 81.92, PLAIN).data[2]
    inner = slice(300, -300)
    assert np.abs(got[inner] - expected[inner]).max() < 0.01


def test_sub_sample_offsets_are_interpolated() -> None:
    expected = prepare({2: [_tone(100.0, 3.0)]}, ONSET, 81.92, PLAIN).data[2]
    got = prepare({2: [_tone(250.0, 3.0, shift_ns=1_700_000)]}, ONSET, 81.92, PLAIN).data[2]
    assert np.abs(got[300:-300] - expected[300:-300]).max() < 0.01


def test_no_aliasing_from_fast_recorders() -> None:
    """90 Hz at 500 samples a second would appear as 10 Hz in a decimated record."""
    x = np.sin(2 * np.pi * 90 * np.arange(60_000) / 500)
    out = interpolate(x, 500.0, 10.0, 8000, 100.0)
    assert np.abs(out).max() < 1e-3


def test_onset_sits_at_its_sample() -> None:
    x = np.zeros(12000, dtype=np.int32)
    x[4000] = 1000
    segment = Segment(ONSET - 40 * NS, 100.0, x)
    window = prepare({2: [segment]}, ONSET, 81.92, PLAIN)
    assert int(np.argmax(window.data[2])) == WINDOW_ONSET


def test_nothing_after_the_allowed_seconds_enters() -> None:
    """An early verdict may not see the future: changing later samples changes nothing."""
    calm = np.random.default_rng(0).standard_normal(12000).astype(np.float32)
    loud = calm.copy()
    loud[4500:] *= 1e6
    a = prepare({2: [Segment(ONSET - 40 * NS, 100.0, calm)]}, ONSET, 5.0, Preparation(0.5))
    b = prepare({2: [Segment(ONSET - 40 * NS, 100.0, loud)]}, ONSET, 5.0, Preparation(0.5))
    assert np.array_equal(a.data, b.data)
    assert not a.data[:, WINDOW_ONSET + 500 :].any()
    assert a.coverage == (0.0, 0.0, 1.0)


def test_a_gap_stays_zero_and_is_told() -> None:
    x = np.random.default_rng(0).standard_normal(12000).astype(np.float32) + 7
    first = Segment(ONSET - 40 * NS, 100.0, x[:4500])
    second = Segment(ONSET + 8 * NS, 100.0, x[4800:])
    window = prepare({0: [first, second]}, ONSET, 81.92, PLAIN)
    assert window.gap_s == pytest.approx(3.0)
    assert not window.data[0, WINDOW_ONSET + 500 : WINDOW_ONSET + 800].any()
    assert window.data[0, WINDOW_ONSET + 800 :].any()
    assert window.coverage[0] < 1 and window.coverage[1] == 0


def known_of(run: Segment, until: int) -> Segment:
    """A run's samples before number ``until`` of a record that begins at 0."""
    return Segment(run.start_ns, run.rate_hz, run.samples[: max(0, until - round(run.start_ns * run.rate_hz / NS))])


@pytest.mark.parametrize("rate", [100.0, 80.0])
def test_the_windows_of_an_event_are_those_that_each_would_be_alone(rate: float) -> None:
    """Protects the verdicts of an event, whose windows share what they have filtered: with a gap, a new component."""
    count = round(110 * rate)
    x = np.random.default_rng(3).standard_normal((3, count)) * 1000
    cut = round(30 * rate)
    runs = {
        0: [Segment(0, rate, x[0])],
        1: [Segment(0, rate, x[1, :cut]), Segment(round((cut + 50) * NS / rate), rate, x[1, cut + 50 :])],
    }
    onset_ns, preparation, passed = 26 * NS, Preparation(1.0), HighPassed(26 * NS)
    for seconds in (3.0, 5.0, 5.0, 40.0, 81.92, 10.0):
        if seconds == 40.0:
            runs[2] = [Segment(0, rate, x[2])]
        until = round((26 + seconds) * rate)
        known = {row: [known_of(run, until) for run in of] for row, of in runs.items()}
        shared = prepare(known, onset_ns, seconds, preparation, passed)
        alone = prepare(known, onset_ns, seconds, preparation)
        np.testing.assert_allclose(shared.data, alone.data, rtol=0, atol=1e-6)
        assert (shared.coverage, shared.gap_s) == (alone.coverage, alone.gap_s)


@pytest.mark.parametrize("counts", [5, -(2**31), 2**31 - 1])
@pytest.mark.parametrize("highpass_hz", [None, 0.5])
def test_dead_and_empty_components_are_zero(counts: int, highpass_hz: float | None) -> None:
    """A dead channel divided by its own maximum would be NaN."""
    flat = Segment(ONSET - 40 * NS, 100.0, np.full(12000, counts, dtype=np.int32))
    window = prepare({0: [flat], 1: []}, ONSET, 40.0, Preparation(highpass_hz))
    assert not window.data.any()


@settings(max_examples=50)
@given(
    rate=st.sampled_from([20.0, 50.0, 100.0, 250.0]),
    start_s=st.floats(-200, 100),
    length=st.integers(1, 20_000),
    seconds=st.floats(0.5, 100),
)
def test_any_piece_of_record_gives_a_finite_window(rate: float, start_s: float, length: int, seconds: float) -> None:
    x = np.random.default_rng(length).standard_normal(length).astype(np.float32)
    segment = Segment(ONSET + round(start_s * NS), rate, x)
    window = prepare({1: [segment]}, ONSET, seconds, Preparation(1.0))
    assert window.data.shape == (3, 10240) and window.data.dtype == np.float32
    assert np.isfinite(window.data).all() and np.abs(window.data).max() <= 1.0
    assert 0 <= window.coverage[1] <= 1 and window.gap_s == 0


@pytest.mark.parametrize(("share", "masked"), [(1 / 1000, True), (1 / 50, False)])
def test_a_dying_component_is_not_blown_up_to_full_scale(share: float, masked: bool) -> None:
    """Its last bits would look like motion; a component that is merely weak stays."""
    strong = _tone(100.0, 5.0)
    rng = np.random.default_rng(0)
    faint = Segment(strong.start_ns, 100.0, (1000 * share * rng.uniform(-1, 1, len(strong.samples))).astype(np.float32))
    data = prepare({0: [faint], 1: [strong], 2: [strong]}, ONSET, 80.0, Preparation(highpass_hz=1.0)).data
    assert (not data[0].any()) is masked
    assert data[1].any() and data[2].any()
    alone = prepare({0: [faint]}, ONSET, 80.0, Preparation(highpass_hz=1.0)).data
    assert np.abs(alone[0]).max() == 1, "with nothing to compare it with it stands"
