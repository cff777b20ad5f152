"""The generator keeps to its physics: what is said of sources and paths can be measured in what comes out."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from agent.errors import ConfigError
from agent.sources.synthesis.events import (
    KINDS,
    collapse,
    corner_hz,
    earthquake,
    impulses,
    ripple,
    rockfall,
    slopequake,
)
from agent.sources.synthesis.medium import FREQUENCIES, arrivals, crust, loss, slope, surface_wave
from agent.types import LABELS
from quantize.data.generator import ONSET, SAMPLES, as_record, generate
from quantize.data.generator.transients import TRANSIENTS


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("label", LABELS)
def test_records_are_finite_begin_at_the_onset_and_follow_from_the_seed(label: str) -> None:
    for seed in range(6):
        made, again = generate(rng(seed), label), generate(rng(seed), label)
        assert made.label == label and made.onset == ONSET
        assert made.data.shape == (3, SAMPLES) and made.data.dtype == np.float32
        assert np.isfinite(made.data).all() and (made.data.std(axis=1) > 0).all()
        np.testing.assert_array_equal(made.data, again.data)
        assert made.p is None or made.p == ONSET
        assert made.s is None or made.s > ONSET


@pytest.mark.parametrize(("label", "name"), [(label, kind[0]) for label in KINDS for kind in KINDS[label]])
def test_nothing_moves_before_the_onset(label: str, name: str) -> None:
    make = {kind: maker for kind, maker, _ in KINDS[label]}[name]
    for seed in range(3):
        power = (make(rng(seed)).data ** 2).sum(axis=0)
        # Spectra without phase ring a little to both sides.
        assert power[: ONSET - 300].sum() < 1e-2 * power.sum()
        assert power[ONSET:].sum() > 0.9 * power.sum()


@pytest.mark.parametrize("name", [name for name, _, _ in TRANSIENTS])
def test_transients_stand_where_a_trigger_would_find_them(name: str) -> None:
    make = {kind: maker for kind, maker, _ in TRANSIENTS}[name]
    power = (make(rng(1)) ** 2).sum(axis=0)
    assert power[ONSET - 300 :].sum() > 0.95 * power.sum()


def test_s_comes_later_the_farther_and_the_mantle_overtakes_the_crust() -> None:
    medium = crust(rng())
    gaps = [np.diff(arrivals(medium, distance, 8.0))[0] for distance in (5, 20, 80, 200)]
    assert all(later > earlier > 0 for earlier, later in itertools.pairwise(gaps))
    p_far, _ = arrivals(medium, 220.0, 8.0)
    assert p_far < np.hypot(220, 8) / medium.vp_km_s, "Pn"
    p_near, _ = arrivals(medium, 30.0, 8.0)
    assert p_near == pytest.approx(np.hypot(30, 8) / medium.vp_km_s)


def test_corner_frequency_falls_with_size() -> None:
    """Two magnitude units are a factor 1000 in moment and so 10 in corner frequency (Brune 1970)."""
    assert corner_hz(1.0, 3.0, 3.4) / corner_hz(3.0, 3.0, 3.4) == pytest.approx(10)


def test_high_frequencies_are_lost_first_and_more_with_distance() -> None:
    medium = slope(rng())
    near, far = loss(medium, 0.05), loss(medium, 0.5)
    assert (np.diff(near) <= 0).all() and (far <= near).all()
    assert far[FREQUENCIES.searchsorted(30)] / far[FREQUENCIES.searchsorted(5)] < 0.5


def test_ripple_fire_scallops_the_spectrum_at_multiples_of_one_over_the_delay() -> None:
    spectrum = np.abs(ripple(rng(), 20, 0.05, 0.0))
    peak, null = FREQUENCIES.searchsorted(20.0), FREQUENCIES.searchsorted(20.0 + 10.0)
    assert spectrum[peak] == pytest.approx(1.0, abs=0.02)
    assert spectrum[null] < 0.3


def test_collapse_moves_down_first_and_earthquakes_either_way() -> None:
    def first(motion: np.ndarray) -> float:
        onset = motion[2, ONSET : ONSET + 3]
        return float(np.sign(onset[np.abs(onset).argmax()]))

    downs = [first(collapse(rng(seed)).data) for seed in range(30)]
    ways = [first(earthquake(rng(seed)).data) for seed in range(30)]
    assert np.mean(np.array(downs) < 0) > 0.8
    assert 0.2 < np.mean(np.array(ways) < 0) < 0.8


def test_a_slope_quake_is_short_and_high_a_rockfall_longer_and_without_phases() -> None:
    def duration(data: np.ndarray) -> float:
        total = np.cumsum((data**2).sum(axis=0))
        return float(np.searchsorted(total, 0.95 * total[-1]) - np.searchsorted(total, 0.05 * total[-1])) / 100

    quakes = [slopequake(rng(seed)) for seed in range(20)]
    falls = [rockfall(rng(seed)) for seed in range(20)]
    assert np.median([duration(m.data) for m in quakes]) < 2 < np.median([duration(m.data) for m in falls])
    assert all(m.s is not None and m.p is not None and (m.s - m.p) / 100 < 1.5 for m in quakes)
    assert all(m.p is None and m.s is None for m in falls)


def test_surface_waves_begin_with_their_long_periods() -> None:
    wave = surface_wave(rng(3), 60.0, ONSET, 2.0)[2]
    strong = np.flatnonzero(np.abs(wave) > 0.05)
    middle = (strong[0] + strong[-1]) // 2
    first, second = wave[strong[0] : middle], wave[middle : strong[-1]]

    def crossings(x: np.ndarray) -> float:
        return float(np.mean(np.diff(np.signbit(x).astype(int)) != 0))

    assert crossings(second) > 1.2 * crossings(first)


def test_impacts_come_at_their_rate_and_follow_a_power_law() -> None:
    hits = np.abs(np.concatenate([impulses(rng(seed), np.full(SAMPLES, 5.0), 1.5) for seed in range(20)]))
    sizes = hits[hits > 0]
    assert len(sizes) == pytest.approx(20 * 5.0 * SAMPLES / 100, rel=0.05)
    assert (sizes > 4).mean() == pytest.approx(4**-1.5, rel=0.2)


def test_background_gives_the_noise_its_spectrum() -> None:
    t = np.arange(2000) / 100
    hum = (np.sin(2 * np.pi * 7 * t) + 0.01 * rng().standard_normal(2000)).astype(np.float32)
    quiet = generate(rng(5), "earthquake", hum).data[2, : ONSET - 500]
    power = np.abs(np.fft.rfft(quiet * np.hanning(len(quiet)))) ** 2
    peak = np.fft.rfftfreq(len(quiet), 0.01)[power.argmax()]
    assert peak == pytest.approx(7, abs=0.3)


def test_a_record_carries_label_onset_and_a_name_of_its_own() -> None:
    first, second = (as_record(generate(rng(i), "landslide"), i) for i in (1, 2))
    assert first.row.label == "landslide" and first.onset == ONSET
    assert first.row.event != second.row.event and first.row.dataset == "synthetic"
    assert as_record(generate(rng(3), "noise"), 3).row.transient


def test_an_unknown_label_is_refused() -> None:
    with pytest.raises(ConfigError, match="avalanche"):
        generate(rng(), "avalanche")
