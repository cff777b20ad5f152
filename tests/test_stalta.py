"""The recursion equals ObsPy's, whatever the packets, and survives what kills averages: zeros, gaps, hours."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from obspy.signal.trigger import recursive_sta_lta

from agent.dsp.stalta import Bounds, RecursiveStaLta
from agent.errors import DataError

Array = NDArray[np.float64]


def noise(n: int, seed: int = 0) -> Array:
    """Noise with bursts, in counts."""
    rng = np.random.default_rng(seed)
    signal = rng.standard_normal(n) * 100
    for at in range(n // 5, n, n // 5):
        signal[at : at + 200] *= 20
    return signal


def in_packets(n: int, sizes: list[int]) -> list[slice]:
    """Slices over ``n`` samples, the sizes taken in turn."""
    cuts: list[slice] = []
    at = 0
    while at < n:
        size = sizes[len(cuts) % len(sizes)]
        cuts.append(slice(at, at + size))
        at += size
    return cuts


@pytest.mark.parametrize(
    ("nsta", "nlta"), [(2, 3), (2, 400), (3, 50), (20, 600), (100, 3000), (1000, 30_000), (500, 501)]
)
def test_ratio_is_obspys(nsta: int, nlta: int) -> None:
    """Protects the definition, from the shortest averages to 30 s at 1000 Hz, warm-up zeros included."""
    signal = noise(100_000)
    ours = RecursiveStaLta(nsta, nlta).process(signal**2)
    np.testing.assert_allclose(ours, recursive_sta_lta(signal, nsta, nlta), rtol=1e-11, atol=0)


@given(st.lists(st.integers(1, 6000), min_size=1, max_size=6), st.sampled_from([(2, 30), (10, 300), (100, 3000)]))
def test_packets_do_not_matter_to_the_bit(sizes: list[int], lengths: tuple[int, int]) -> None:
    """Protects replays: the same data give the same ratios however they were cut."""
    energy = noise(12_000) ** 2
    whole = RecursiveStaLta(*lengths).process(energy)
    stream = RecursiveStaLta(*lengths)
    pieces = [stream.process(energy[part]) for part in in_packets(len(energy), sizes)]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=6))
def test_following_leads_to_the_same_averages(sizes: list[int]) -> None:
    """Protects the components of a vector sum, which only follow: a join must find the averages that process gives."""
    energy = noise(12_000) ** 2
    processed, followed, whole = (RecursiveStaLta(100, 3000) for _ in range(3))
    processed.process(energy)
    whole.follow(energy)
    for part in in_packets(len(energy), sizes):
        followed.follow(energy[part])
    assert followed.averages == whole.averages
    assert followed.averages == pytest.approx(processed.averages, rel=1e-11)
    assert followed.warming == 0


def test_following_and_processing_can_alternate() -> None:
    """Protects the change from warming to live: the ratio after it is the one of an unbroken run."""
    signal = noise(9_000)
    stalta = RecursiveStaLta(50, 2000)
    stalta.follow(signal[:2000] ** 2)
    ratio = stalta.process(signal[2000:] ** 2)
    np.testing.assert_allclose(ratio, recursive_sta_lta(signal, 50, 2000)[2000:], rtol=1e-11)


@given(st.lists(st.integers(1, 700), min_size=1, max_size=6), st.sampled_from([(2, 30), (10, 300), (100, 3000)]))
def test_no_ratio_is_beyond_its_bounds(sizes: list[int], lengths: tuple[int, int]) -> None:
    """Protects the detector, which works no ratio out where the bounds say that it cannot reach its threshold; and its
    speed: in steady noise they say so of four times the ratio."""
    for energy in (noise(9_000) ** 2, np.zeros(4000)):
        averages = RecursiveStaLta(*lengths)
        averages.follow(energy[: lengths[1]])
        begin = averages.averages
        ratio = averages.process(energy)
        for share in (1.0, 0.3, 0.1):
            on = max(1e-6, share * float(ratio.max()))
            bounds = Bounds(*lengths, lengths[0], begin)
            for part in in_packets(len(energy), sizes):
                blocks = np.arange(0, len(energy[part]), lengths[0])
                reached = bounds.reach(on, np.add.reduceat(energy[part], blocks).tolist(), len(energy[part]))
                most = np.maximum.reduceat(ratio[part], blocks)
                assert all(one or peak < on for one, peak in zip(reached, most, strict=True))
    steady = Bounds(100, 3000, 100, (1.0, 1.0))
    assert not any(steady.reach(4.0, [100.0] * 1000, 100_000))


def test_bridge_keeps_the_long_average_and_starts_at_ratio_one() -> None:
    """Protects the gap rule: no blindness of a whole long average after a lost packet, and no trigger from the gap."""
    rng = np.random.default_rng(5)
    stalta = RecursiveStaLta(50, 2000)
    stalta.process((rng.standard_normal(5000) * 100) ** 2)
    _, level = stalta.averages
    stalta.process(np.full(50, 1e9))
    _, raised = stalta.averages
    assert raised > level
    stalta.bridge()
    assert stalta.averages == (raised, raised)
    ratio = stalta.process(np.full(10, raised))
    np.testing.assert_allclose(ratio, 1.0)


def test_bridge_during_warm_up_does_not_end_it() -> None:
    """Protects the first half minute after a start: a gap in it must not let a half-filled average count."""
    stalta = RecursiveStaLta(50, 2000)
    stalta.process(np.ones(1500))
    stalta.bridge()
    assert stalta.warming == 500
    assert not stalta.process(np.ones(500)).any()
    assert stalta.process(np.ones(1)).all()


def test_reset_is_a_new_beginning() -> None:
    """Protects long gaps: what was before must not shine through."""
    signal = noise(8000)
    stalta = RecursiveStaLta(50, 2000)
    fresh = stalta.process(signal**2)
    stalta.follow(signal[:77] ** 2)
    stalta.reset()
    np.testing.assert_array_equal(stalta.process(signal**2), fresh)


def test_a_dead_channel_has_ratio_zero() -> None:
    """Protects against NaN (ObsPy's answer), from the first sample and after an hour of signal."""
    dead = RecursiveStaLta(100, 3000).process(np.zeros(10_000))
    assert not dead.any()
    dying = RecursiveStaLta(100, 3000)
    dying.process(noise(6000) ** 2)
    ratio = dying.process(np.zeros(4_000_000))
    assert np.isfinite(ratio).all()
    assert ratio.max() < 4
    assert ratio[-1] == 0


@pytest.mark.parametrize("level", [1e-12, 1.0, 1e36])
def test_any_level_of_energy_is_the_same_to_the_ratio(level: float) -> None:
    """Protects channels in metres per second as well as clipped 32-bit ones."""
    signal = noise(6000)
    ratio = RecursiveStaLta(2, 1000).process(signal**2 * level)
    np.testing.assert_allclose(ratio, recursive_sta_lta(signal, 2, 1000), rtol=1e-9)


@pytest.mark.parametrize(("nsta", "nlta"), [(1, 10), (0, 10), (10, 10), (20, 10)])
def test_impossible_lengths_are_refused(nsta: int, nlta: int) -> None:
    """Protects against a ratio that means nothing."""
    with pytest.raises(DataError, match="STA/LTA"):
        RecursiveStaLta(nsta, nlta)
