"""The neutral view hides how a record was made, and training prepares its windows as the station does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from quantize_support import row, write_folder, write_record, write_table

from agent.dsp.window import Preparation, prepare
from agent.types import LABELS, NS, WINDOW_ONSET, Segment
from quantize.data.augment import SHARES, Augmentation, Augmenter, Sampler
from quantize.data.records import FULL_S, LENGTHS_S, Record, load_record, load_records, read_table
from quantize.data.signals import background, butterworth_response, fill, random_phase_noise, window
from quantize.data.views import neutral_windows, recorded_windows

PREPARATION = Preparation(highpass_hz=1.0)
OFF = Augmentation(**dict.fromkeys(Augmentation.__dataclass_fields__, 0.0))


def record(folder: Path, channels: str = "HHE,HHN,HHZ", rate: float = 100.0, seconds: float = 120.0) -> Record:
    write_record(folder / "a.mseed", "blast", channels, rate, seconds)
    write_table(folder, [row("a.mseed", "e1", "blast")])
    return load_record(read_table(folder)[0])


def test_neutral_view_is_one_vertical_in_one_band(tmp_path: Path) -> None:
    made = neutral_windows(record(tmp_path), [FULL_S], PREPARATION, seed=0)[0]
    assert np.array_equal(made[0], made[2])
    assert np.array_equal(made[1], made[2])
    power = np.abs(np.fft.rfft(made[2])) ** 2
    frequency = np.fft.rfftfreq(made.shape[1], 0.01)
    assert power[frequency > 25].sum() < 1e-3 * power.sum()
    assert power[frequency < 0.5].sum() < 1e-2 * power.sum()


def test_neutral_view_shows_neither_components_nor_length(tmp_path: Path) -> None:
    """Recorded with three components for long or with one for short: no empty stretch gives it away."""
    long = neutral_windows(record(tmp_path / "long"), [FULL_S], PREPARATION, seed=0)[0]
    short = neutral_windows(record(tmp_path / "short", "HHZ", 100.0, 55.0), [FULL_S], PREPARATION, seed=0)[0]
    for made in (long, short):
        blocks = made[2, :10200].reshape(-1, 100).std(axis=1)
        assert blocks.min() > 0.1 * np.median(blocks)


def test_neutral_onset_lies_10_to_35_s_into_the_window_and_follows_the_seed(tmp_path: Path) -> None:
    shot = record(tmp_path)
    places = []
    for seed in range(12):
        made = neutral_windows(shot, [FULL_S], PREPARATION, seed)[0, 2]
        assert np.array_equal(made, neutral_windows(shot, [FULL_S], PREPARATION, seed)[0, 2])
        places.append(int(np.argmax(np.abs(made) > 0.5)))
    assert min(places) > 980
    assert max(places) < 3550
    assert max(places) - min(places) > 500


def test_partial_windows_hold_nothing_later(tmp_path: Path) -> None:
    shot = record(tmp_path)
    for made in (neutral_windows(shot, LENGTHS_S, PREPARATION, 0), recorded_windows(shot, LENGTHS_S, PREPARATION)):
        ends = [int(np.flatnonzero(part[2])[-1]) for part in made[:6]]
        assert np.abs(np.diff(ends) - 100 * np.diff(LENGTHS_S[:6])).max() <= 1
    ends = [int(np.flatnonzero(part[2])[-1]) for part in recorded_windows(shot, [3.0, 10.0], PREPARATION)]
    assert ends == [WINDOW_ONSET + 299, WINDOW_ONSET + 999]


@pytest.mark.parametrize("shift", [-1000, 0, 700])
def test_training_windows_are_the_agents_own_preparation(shift: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal(14000).astype(np.float32)
    ours = window({2: (300, x)}, 6000, 12.0, PREPARATION, shift)
    start = 1_600_000_000 * NS
    segments = {2: [Segment(start + 3 * NS, 100.0, x)]}
    theirs = prepare(segments, start + 60 * NS - shift * NS // 100, 12.0 + shift / 100, PREPARATION).data
    assert np.array_equal(ours, theirs)
    assert np.flatnonzero(ours[2])[-1] == WINDOW_ONSET + shift + 1199


def test_without_augmentation_training_sees_what_the_station_sees(tmp_path: Path) -> None:
    shot = record(tmp_path)
    seen = Augmenter([shot], PREPARATION, OFF).window(0, np.random.default_rng(0))
    expected = recorded_windows(shot, [FULL_S], PREPARATION)[0]
    # The place still jitters by up to 3 s, and the sign is random.
    lag = int(np.argmax(np.abs(seen[2]) > 0.5)) - int(np.argmax(np.abs(expected[2]) > 0.5))
    assert abs(lag) <= 300
    a, b = np.roll(seen, -lag, axis=1)[:, 1000:8000], expected[:, 1000:8000]
    for ours, theirs in zip(a, b, strict=True):
        assert abs(np.corrcoef(ours, theirs)[0, 1]) > 0.999


def test_windows_tell_no_component_count(tmp_path: Path) -> None:
    """Vertical-only and three-component records give one, two and three filled inputs alike often."""
    shares = []
    for name, channels in (("one", "HHZ"), ("three", "HHE,HHN,HHZ")):
        augmenter = Augmenter([record(tmp_path / name, channels)], PREPARATION)
        rng = np.random.default_rng(1)
        filled = [int((np.abs(augmenter.window(0, rng)).max(axis=1) > 0).sum()) for _ in range(150)]
        shares.append(np.bincount(filled, minlength=4) / len(filled))
    assert np.abs(shares[0] - shares[1]).max() < 0.12
    assert shares[0][3] > 0.5
    assert shares[0][0] == 0


def test_windows_are_finite_scaled_and_reproducible(tmp_path: Path) -> None:
    records = load_records(read_table(write_folder(tmp_path)))
    augmenter = Augmenter(records, PREPARATION)
    for index in range(len(records)):
        made = augmenter.window(index, np.random.default_rng(index))
        assert made.shape == (3, 10240)
        assert np.isfinite(made).all()
        assert np.abs(made).max() <= 1
        assert np.array_equal(made, augmenter.window(index, np.random.default_rng(index)))


def test_sampler_keeps_the_shares_whatever_the_numbers(tmp_path: Path) -> None:
    records = load_records(read_table(write_folder(tmp_path)))
    records += [r for r in records if r.row.label == "earthquake"] * 5
    sampler, rng = Sampler(records), np.random.default_rng(0)
    drawn = [records[sampler.draw(rng)].row.label for _ in range(4000)]
    for label in LABELS:
        assert drawn.count(label) / len(drawn) == pytest.approx(SHARES[label], abs=0.025)


def test_filling_has_the_level_and_spectrum_of_the_background() -> None:
    rng = np.random.default_rng(0)
    t = np.arange(9000) / 100
    x = (np.sin(2 * np.pi * 3 * t) + 0.1 * rng.standard_normal(9000)).astype(np.float32)
    x[4000:] *= 50
    quiet = background(x, 4000)
    assert len(quiet) == 2000
    noise = random_phase_noise(quiet, 8000, rng)
    assert noise.std() == pytest.approx(quiet.std(), rel=1e-3)
    assert np.fft.rfftfreq(8000, 0.01)[np.argmax(np.abs(np.fft.rfft(noise)))] == pytest.approx(3.0, abs=0.1)
    filled = fill(x, -1000, 4000, quiet, rng)
    assert np.array_equal(filled[1000:], x[:3000])
    assert filled[:1000].std() == pytest.approx(quiet.std(), rel=0.3)


def test_filter_responses_are_butterworth() -> None:
    frequency = np.fft.rfftfreq(16384, 0.01)
    response = np.abs(butterworth_response(2.0, 20.0, 4, zero_phase=False))
    for corner in (2.0, 20.0):
        assert response[np.argmin(np.abs(frequency - corner))] == pytest.approx(0.5**0.5, abs=0.01)
    assert response[np.argmin(np.abs(frequency - 6.0))] == pytest.approx(1.0, abs=0.01)
    assert response[0] < 1e-6
