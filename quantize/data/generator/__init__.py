"""Synthetic three-component records from the physics of the sources: for what real data lack, the site itself.

``generate`` makes one record; everything in it follows from the generator of random numbers that is handed in.
docs/generator.md says what is modelled, what is not, and after whom.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from agent.errors import ConfigError
from agent.sources.synthesis.events import KINDS, Motion
from agent.sources.synthesis.medium import FREQUENCIES, ONSET, SAMPLES, log_uniform
from agent.sources.synthesis.scatter import echo
from agent.types import LABELS, NS, WINDOW_RATE_HZ
from quantize.data.generator.transients import TRANSIENTS
from quantize.data.records import TRANSIENT, Record, Row
from quantize.data.signals import random_phase_noise

__all__ = ["ONSET", "SAMPLES", "Synthetic", "as_record", "generate"]

DATASET = "synthetic"
_FULL_SCALE = 2.0**23
_ABOVE = (FREQUENCIES >= 1.0).astype(np.float64)
RATIOS = {
    "earthquake": (2.0, 200.0),
    "blast": (2.0, 80.0),
    "collapse": (2.0, 150.0),
    "landslide": (1.5, 40.0),
    "noise": (1.3, 25.0),
}
"""Loudest second over the noise, as it is among the training records of each class."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Synthetic:
    """``data`` float32 ``[3, SAMPLES]`` (E, N, Z) at 100 Hz in counts; the onset's sample; P and S where they exist."""

    data: NDArray[np.float32]
    onset: int
    label: str
    subtype: str
    p: int | None
    s: int | None


def generate(
    rng: np.random.Generator, label: str | None = None, background: NDArray[np.float32] | None = None
) -> Synthetic:
    """One record of ``label`` (any without it) on ``background`` ``[n]`` or ``[3, n]``, samples of real noise at
    100 Hz of which the spectrum is taken; on smooth noise without it.

    Raises:
        ConfigError: no such label.
    """
    label = label or LABELS[int(rng.integers(len(LABELS)))]
    if label not in LABELS:
        raise ConfigError(f"there is no label {label!r}", f"choose one of {', '.join(LABELS)}")
    if label == "noise":
        subtype, make = _pick(rng, TRANSIENTS)
        motion = Motion(make(rng))
        subtype = f"{TRANSIENT}, {subtype}"
    else:
        subtype, make_event = _pick(rng, KINDS[label])
        motion = make_event(rng)
    response = _instrument(rng) * echo(rng, log_uniform(rng, 0.05, 0.8), rng.uniform(0.1, 0.8))
    signal = fft.irfft(fft.rfft(motion.data, axis=1) * response, SAMPLES, axis=1)
    noise = _noise(rng, background)
    # The ratio is that of the loudest second to the noise, above the microseism, as a trigger sees it.
    loud = _loudest(signal)
    level = np.sqrt((_high(noise) ** 2).mean(axis=1)).mean()
    data = noise / max(float(level), 1e-30) + signal / max(loud, 1e-30) * log_uniform(rng, *RATIOS[label])
    data *= log_uniform(rng, 30, 3000)
    if rng.random() < 0.02:
        data = np.clip(data, -0.4 * np.abs(data).max(), 0.4 * np.abs(data).max())
    data = np.clip(data, -_FULL_SCALE, _FULL_SCALE)
    return Synthetic(data.astype(np.float32), ONSET, label, subtype, motion.p, motion.s)


def as_record(synthetic: Synthetic, number: int) -> Record:
    """The record in the form that the augmenter takes; ``number`` makes its name and event."""
    name = f"{DATASET}/{number}"
    onset_ns = synthetic.onset * NS // WINDOW_RATE_HZ
    row = Row(
        path=Path(name),
        name=name,
        dataset=DATASET,
        event=name,
        label=synthetic.label,
        subtype=synthetic.subtype,
        split="train",
        channels=("HHE", "HHN", "HHZ"),
        rate_hz=float(WINDOW_RATE_HZ),
        onset_ns=onset_ns,
    )
    data = synthetic.data - synthetic.data.mean(axis=1, keepdims=True)
    return Record(row, 0, data, (True, True, True))


def _pick(
    rng: np.random.Generator, kinds: Sequence[tuple[str, Callable[..., T], float]]
) -> tuple[str, Callable[..., T]]:
    shares = np.array([share for _, _, share in kinds])
    name, make, _ = kinds[int(rng.choice(len(kinds), p=shares / shares.sum()))]
    return name, make


def _instrument(rng: np.random.Generator) -> NDArray[np.float64]:
    """Response of a geophone or seismometer (second-order high-pass), flat to the anti-alias filter."""
    natural = float(rng.choice((0.03, 1.0, 4.5)))
    ratio = (FREQUENCIES / natural) ** 2
    response: NDArray[np.float64] = ratio / np.sqrt((1 - ratio) ** 2 + 2 * ratio) / (1 + (FREQUENCIES / 45) ** 12)
    return response


def _noise(rng: np.random.Generator, background: NDArray[np.float32] | None) -> NDArray[np.float64]:
    """Noise ``[3, SAMPLES]`` with the spectrum of the background's, or with one that falls off with frequency and has
    the microseism's hump."""
    if background is None:
        shape = 1 / np.maximum(FREQUENCIES, 0.1) ** rng.uniform(0, 1)
        shape += rng.uniform(0, 6) * np.exp(-0.5 * (np.log(np.maximum(FREQUENCIES, 0.05) / 0.2) / 0.4) ** 2)
        white = rng.standard_normal((3, len(shape))) + 1j * rng.standard_normal((3, len(shape)))
        made: NDArray[np.float64] = fft.irfft(white * shape, SAMPLES, axis=1)
        return made
    rows = np.atleast_2d(background)
    rows = rows[[i % len(rows) for i in range(3)]]
    return np.stack([random_phase_noise(row - row.mean(), SAMPLES, rng) for row in rows]).astype(np.float64)


def _high(x: NDArray[np.float64]) -> NDArray[np.float64]:
    passed: NDArray[np.float64] = fft.irfft(fft.rfft(x, axis=1) * _ABOVE, SAMPLES, axis=1)
    return passed


def _loudest(x: NDArray[np.float64]) -> float:
    power = (_high(x) ** 2).mean(axis=0)
    total = np.concatenate([[0.0], np.cumsum(power)])
    return float(np.sqrt(max(0.0, float((total[100:] - total[:-100]).max())) / 100))
