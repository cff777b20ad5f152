"""Two baselines, which are teachers too: gradient boosting on hand features, the habit of the landslide field, and the
STFT network of the landslide paper.

The hand features are those of Hibert et al. 2014 and Provost et al. 2017. All are computed from a prepared window, and
none knows where the onset stands: the signal's stretch is found by its own envelope, so that they serve the neutral
view and the station alike.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import signal
from sklearn.ensemble import HistGradientBoostingClassifier
from torch import nn

from agent.atomic import replacing
from agent.errors import DataError
from agent.types import LABELS, WINDOW_RATE_HZ
from quantize.data.bank import Bank
from quantize.study.evaluate import Array, Logits

BANDS_HZ = ((1, 2), (2, 4), (4, 7), (7, 11), (11, 16), (16, 25), (25, 45))
_FRAME, _HOP = 256, 128
_TINY = 1e-12

NAMES = (
    "duration_s",
    "rise_share",
    "peak_to_mean",
    "peak_to_median",
    "envelope_skewness",
    "envelope_kurtosis",
    "signal_skewness",
    "signal_kurtosis",
    "envelope_peaks",
    "decay_residual",
    "early_energy",
    "noise_ratio",
    *(f"energy_{low}_{high}_hz" for low, high in BANDS_HZ),
    *(f"kurtosis_{low}_{high}_hz" for low, high in BANDS_HZ[:5]),
    "centroid_hz",
    "bandwidth_hz",
    "dominant_hz",
    "spectrum_kurtosis",
    "spectrum_peaks",
    "centroid_early_hz",
    "centroid_late_hz",
    "centroid_std_hz",
    "dominant_std_hz",
    "spectrogram_flatness",
    "autocorrelation_width_s",
    "autocorrelation_third",
    "zero_crossings",
    "cepstral_peak",
    "cepstral_place",
    "rectilinearity",
    "planarity",
    "horizontal_ratio",
)
"""What the columns of ``features`` are, in order."""


def features(windows: NDArray[np.float32]) -> Array:
    """``[n, len(NAMES)]`` of windows ``[n, 3, 10240]``; always finite. Ratios and energies are logarithms."""
    return np.stack([_of(window.astype(np.float64)) for window in windows])


def _of(window: Array) -> Array:
    z = window[2] if window[2].any() else window[np.abs(window).sum(axis=1).argmax()]
    envelope = _smooth(z**2, 50) ** 0.5
    start, stop = _stretch(envelope)
    x, e = z[start:stop], envelope[start:stop]
    quiet = np.median(envelope[envelope > 0]) if envelope.any() else _TINY
    peak = int(e.argmax())
    decay = np.log(e[peak:] + _TINY)
    line = np.linspace(decay[0], decay[-1], len(decay)) if len(decay) > 1 else decay
    thirds = np.cumsum(x**2) / (np.sum(x**2) + _TINY)
    values: list[float] = [
        len(x) / WINDOW_RATE_HZ,
        peak / len(e),
        _log(e.max() / (e.mean() + _TINY)),
        _log(e.max() / (np.median(e) + _TINY)),
        *_moments(e),
        *_moments(x),
        float(len(signal.find_peaks(e, height=0.3 * e.max(), distance=50)[0])) / max(1.0, len(x) / WINDOW_RATE_HZ),
        float(np.mean((decay - line) ** 2) ** 0.5),
        float(thirds[len(thirds) // 3]),
        _log(e.max() / (quiet + _TINY)),
    ]
    power, frequencies, frames = _spectrogram(z, start, stop)
    total = power.sum(axis=1)
    share = total / (total.sum() + _TINY)
    for low, high in BANDS_HZ:
        values.append(_log(share[(frequencies >= low) & (frequencies < high)].sum()))
    for low, high in BANDS_HZ[:5]:
        band = power[(frequencies >= low) & (frequencies < high)].sum(axis=0)
        values.append(_moments(band)[1])
    centroid = float((share * frequencies).sum())
    by_frame = (power * frequencies[:, None]).sum(axis=0) / (power.sum(axis=0) + _TINY)
    loud = power.sum(axis=0) >= 0.05 * power.sum(axis=0).max()
    dominant = frequencies[power.argmax(axis=0)]
    half = max(1, frames // 2)
    values += [
        centroid,
        float(((share * (frequencies - centroid) ** 2).sum()) ** 0.5),
        float(frequencies[share.argmax()]),
        _moments(share)[1],
        float(len(signal.find_peaks(share, height=0.3 * share.max())[0])),
        float(by_frame[:half].mean()),
        float(by_frame[half:].mean()) if frames > 1 else centroid,
        float(by_frame[loud].std()),
        float(dominant[loud].std()),
        _log(np.exp(np.log(share + _TINY).mean()) / (share.mean() + _TINY)),
        *_autocorrelation(x),
        float(np.mean(np.abs(np.diff(np.signbit(x).astype(np.int8))))) if len(x) > 1 else 0.0,
        *_cepstrum(share),
        *_polarisation(window[:, start:stop]),
    ]
    made: Array = np.clip(np.nan_to_num(np.array(values), nan=0.0, posinf=1e6, neginf=-1e6), -1e6, 1e6)
    return made


def _stretch(envelope: Array) -> tuple[int, int]:
    """From where the envelope first to where it last exceeds a fifth of its rise above the background; a second at
    least."""
    quiet = np.percentile(envelope, 20)
    above = np.flatnonzero(envelope > quiet + 0.2 * (envelope.max() - quiet))
    if not len(above):
        return 0, len(envelope)
    start, stop = int(above[0]), int(above[-1]) + 1
    return max(0, min(start, len(envelope) - 100)), max(stop, min(start + 100, len(envelope)))


def _smooth(x: Array, width: int) -> Array:
    total = np.concatenate([[0.0], np.cumsum(x)])
    padded = np.maximum((total[width:] - total[:-width]) / width, 0)
    left = (len(x) - len(padded)) // 2
    return np.pad(padded, (left, len(x) - len(padded) - left), mode="edge")


def _spectrogram(z: Array, start: int, stop: int) -> tuple[Array, Array, int]:
    first = max(0, min(start - _FRAME // 2, len(z) - _FRAME))
    count = max(1, (min(len(z), stop + _FRAME // 2) - first - _FRAME) // _HOP + 1)
    frames = np.stack([z[first + i * _HOP : first + i * _HOP + _FRAME] for i in range(count)])
    power: Array = np.abs(np.fft.rfft(frames * np.hanning(_FRAME), axis=1)).T ** 2
    frequencies: Array = np.fft.rfftfreq(_FRAME, 1 / WINDOW_RATE_HZ).astype(np.float64)
    return power, frequencies, count


def _moments(x: Array) -> tuple[float, float]:
    """Skewness and the logarithm of kurtosis."""
    d = x - x.mean()
    spread = float((d**2).mean()) ** 0.5 + _TINY
    return float((d**3).mean() / spread**3), _log(float((d**4).mean() / spread**4))


def _autocorrelation(x: Array) -> tuple[float, float]:
    """Lag at which the envelope's autocorrelation falls to a half, and what it is at a third of the length."""
    d = np.abs(x) - np.abs(x).mean()
    size = 1 << int(np.ceil(np.log2(2 * len(d))))
    raw = np.fft.irfft(np.abs(np.fft.rfft(d, size)) ** 2)[: len(d)]
    values = raw / (raw[0] + _TINY)
    below = np.flatnonzero(values < 0.5)
    return (float(below[0]) if len(below) else float(len(d))) / WINDOW_RATE_HZ, float(values[len(d) // 3])


def _cepstrum(share: Array) -> tuple[float, float]:
    """Strongest periodicity of the log spectrum (ripple-fired blasts scallop it) and its quefrency in seconds."""
    values = np.abs(np.fft.irfft(np.log(share + 1e-8)))[3 : len(share) // 2]
    place = int(values.argmax())
    return float(values[place]), (place + 3) / WINDOW_RATE_HZ


def _polarisation(window: Array) -> tuple[float, float, float]:
    """Rectilinearity and planarity of the motion (Jurkevics 1988), and horizontal over vertical amplitude; 0 where the
    components are copies or missing."""
    e, n, z = window
    if not (e.any() and n.any()) or np.array_equal(e, z):
        return 0.0, 0.0, 0.0
    low, mid, high = np.linalg.eigvalsh(np.cov(window))
    horizontal = float((e**2).mean() + (n**2).mean()) ** 0.5
    return (
        float(1 - (low + mid) / (2 * high + _TINY)),
        float(1 - 2 * low / (high + mid + _TINY)),
        _log(horizontal / (float((z**2).mean()) ** 0.5 + _TINY)),
    )


def _log(value: float) -> float:
    return float(np.log(max(float(value), _TINY)))


Table = NDArray[np.float64]


def feature_table(bank: Bank, path: Path, limit: int) -> Table:
    """Features of the first ``limit`` windows of a bank, ``[limit, len(NAMES)]``; computed once and kept."""
    count = min(limit, len(bank))
    if not path.is_file():
        made = np.empty((count, len(NAMES)))
        for start in range(0, count, 64):
            stop = min(start + 64, count)
            made[start:stop] = features(np.asarray(bank.windows[start:stop], dtype=np.float32))
        with replacing(path) as file:
            np.save(file, made)
    table: Table = np.load(path)
    return table


def train_boosting(table: Table, labels: NDArray[np.int64], seed: int) -> Logits:
    """Trees on features ``[n, k]``; the returned function answers windows ``[n, 3, 10240]`` with log-probabilities.

    Labels that do not occur get next to no probability.

    Raises:
        DataError: one label alone occurs.
    """
    if len(np.unique(labels)) < 2:
        raise DataError("one label alone can be learned from", "give records of two at least, each of several events")
    model = HistGradientBoostingClassifier(
        max_iter=200, learning_rate=0.06, max_leaf_nodes=15, l2_regularization=5.0, max_features=0.5, random_state=seed
    )
    model.fit(table, labels)
    columns = [int(label) for label in model.classes_]

    def answer(windows: NDArray[np.float32]) -> Array:
        probabilities = np.full((len(windows), len(LABELS)), 1e-4)
        probabilities[:, columns] = model.predict_proba(features(windows))
        logs: Array = np.log(np.maximum(probabilities, 1e-6))
        return logs

    return answer


_STFT_SIZE, _STFT_HOP, _GRID = 256, 128, 32


class StftNetwork(nn.Module):
    """The network that the landslide paper compares PRIME-DP with: logits ``[N, 5]`` from windows ``[N, 3, 1, 10240]``,
    of which it reads the vertical.

    As far as its published script tells: magnitudes of a short-time Fourier transform (256 samples, hop 128,
    rectangular, centred with reflection, 129 x 81); scaled to their maximum; brought to 32 x 32 by nearest neighbours;
    three convolutions 3 x 3 (32, 64, 128 channels) with ReLU and halving; a hidden layer of 1024. The script scales by
    the maximum of the whole batch, so that an answer depends on its neighbours; here each window has its own. The last
    layer has our five labels.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((1, 32), (32, 64), (64, 128)):
            layers += [nn.Conv2d(inputs, outputs, 3), nn.ReLU(), nn.MaxPool2d(2)]
        self.classifier = nn.Sequential(*layers)
        self.out = nn.Sequential(nn.Flatten(), nn.Linear(512, 1024), nn.ReLU(), nn.Linear(1024, len(LABELS)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.out(self.classifier(spectrogram(x[:, 2, 0])))
        return logits


def spectrogram(vertical: torch.Tensor) -> torch.Tensor:
    """Signals ``[N, T]`` to magnitudes ``[N, 1, 32, 32]`` in 0..1, frequency rising along the third axis."""
    spectrum = torch.stft(
        vertical.float(),
        _STFT_SIZE,
        _STFT_HOP,
        window=torch.ones(_STFT_SIZE, device=vertical.device),
        center=True,
        pad_mode="reflect",
        return_complex=True,
    )
    magnitude = spectrum.abs()
    magnitude = magnitude / (magnitude.amax(dim=(1, 2), keepdim=True) + 1e-6)
    return nn.functional.interpolate(magnitude[:, None], size=(_GRID, _GRID), mode="nearest")
