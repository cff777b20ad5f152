"""The baselines read what they say they read, answer anything, and know no onset."""

from __future__ import annotations

import learning_support
import numpy as np
import pytest
import torch

from agent.types import LABELS, WINDOW_SAMPLES
from quantize.train.baselines import NAMES, StftNetwork, features, spectrogram, train_boosting

pytestmark = learning_support.TRAIN


def tone(hz: float, onset: int = 3000, decay_s: float = 5.0) -> np.ndarray:
    t = np.arange(WINDOW_SAMPLES) / 100
    after = t - onset / 100
    rng = np.random.default_rng(0)
    x = 0.01 * rng.standard_normal(WINDOW_SAMPLES)
    x += np.where(after >= 0, np.exp(-np.maximum(after, 0) / decay_s) * np.sin(2 * np.pi * hz * after), 0)
    return np.stack([x, x, x]).astype(np.float32)[None]


def named(x: np.ndarray) -> dict[str, float]:
    return dict(zip(NAMES, features(x)[0], strict=True))


def test_stft_network_has_the_published_size_and_reads_the_vertical_alone() -> None:
    torch.manual_seed(0)
    network = StftNetwork().eval()
    published, one_label = 622_084, 1024 + 1
    assert sum(p.numel() for p in network.parameters()) == published + one_label
    x = torch.from_numpy(tone(5.0))[:, :, None]
    other = x.clone()
    other[:, :2] = torch.randn_like(other[:, :2])
    with torch.no_grad():
        assert torch.equal(network(x), network(other))
        alone, beside = network(x), network(torch.cat([x, 100 * other]))[:1]
    assert torch.allclose(alone, beside, atol=1e-5), "an answer must not depend on the other windows of a batch"


def test_spectrogram_puts_a_tone_into_its_row() -> None:
    image = spectrogram(torch.from_numpy(tone(20.0)[:, 2]))[0, 0]
    assert image.shape == (32, 32)
    assert int(image.sum(1).argmax()) == pytest.approx(20 / 50 * 32, abs=1)
    assert float(spectrogram(torch.zeros(1, WINDOW_SAMPLES)).abs().max()) == 0


def test_features_measure_what_their_names_say() -> None:
    low, high, short = named(tone(3.0)), named(tone(20.0)), named(tone(3.0, decay_s=0.7))
    assert low["dominant_hz"] == pytest.approx(3, abs=0.5)
    assert high["dominant_hz"] == pytest.approx(20, abs=0.5)
    assert high["zero_crossings"] == pytest.approx(0.4, abs=0.05)
    assert low["energy_2_4_hz"] > low["energy_11_16_hz"] + 2
    assert short["duration_s"] < low["duration_s"]
    assert low["rise_share"] < 0.3


def test_features_do_not_know_where_the_onset_stands() -> None:
    early, late = features(tone(5.0, 1500))[0], features(tone(5.0, 4500))[0]
    loose = {"noise_ratio", "spectrogram_flatness", "spectrum_kurtosis", "autocorrelation_third"}
    for name, a, b in zip(NAMES, early, late, strict=True):
        if name not in loose:
            assert a == pytest.approx(b, rel=0.25, abs=0.6), name


@pytest.mark.parametrize("kind", ["zero", "spike", "constant", "one component"])
def test_features_are_finite_whatever_the_window(kind: str) -> None:
    x = np.zeros((1, 3, WINDOW_SAMPLES), dtype=np.float32)
    if kind == "spike":
        x[0, 2, -1] = 1
    elif kind == "constant":
        x[:] = 1
    elif kind == "one component":
        x[0, 0] = np.random.default_rng(0).standard_normal(WINDOW_SAMPLES)
    assert np.isfinite(features(x)).all()


def test_boosting_learns_and_gives_absent_labels_nothing() -> None:
    rng = np.random.default_rng(0)
    windows = np.concatenate(
        [tone(rng.uniform(2, 4)) for _ in range(40)] + [tone(rng.uniform(15, 30)) for _ in range(40)]
    )
    labels = np.repeat([0, 3], 40)
    answer = train_boosting(features(windows), labels, seed=0)
    logits = answer(np.concatenate([tone(3.3), tone(22.0)]))
    assert logits.shape == (2, len(LABELS))
    assert logits.argmax(axis=1).tolist() == [0, 3]
    assert np.exp(logits[:, [1, 2, 4]]).max() < 1e-3
