"""Golden windows: synthetic ground motion on which every backend must answer as its file says.

They need not be realistic, only various: impulsive, emergent, noisy, early (mostly empty), with silent components and
with clipped tops, so that a wrong kernel, scale or rounding shows in at least one of them. Where the network is sure a
fault hardly moves its answer, so mixtures of two of them that it is not sure of come on top: with these the shipped CPU
file is refused with 93 of 100 of its channels dead alone, without them with 79. They are stored as int8 and the network
reads exactly those values, so the answers are of the stored windows and not of rounded ones.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from agent.inference.bundle import CPU_MODEL, FP16_MODEL, TRT_MODEL, Calibration, GoldenFile, GoldenSpec
from agent.inference.selftest import SCALE
from agent.types import WINDOW_ONSET, WINDOW_RATE_HZ, WINDOW_SAMPLES
from quantize.data.records import FULL_S
from quantize.quantise import infer
from quantize.quantise.infer import ExportError

if TYPE_CHECKING:
    from quantize.quantise.infer import Network

Answer: TypeAlias = Callable[[NDArray[np.int8], NDArray[np.float32]], NDArray[np.float64]]
"""Calibrated probabilities ``[n, 5]`` of stored windows and their seconds."""

TOLERANCE = {CPU_MODEL: 0.01, TRT_MODEL: 0.05, FP16_MODEL: 0.02}
"""Least tolerance, in probability. TensorRT rounds and fuses in ways of its own, which cannot be measured here."""
MOST_LOST = 0.2
"""Golden windows that differ by more between FP32 and INT8 mean that the network does not survive quantisation."""

MIXTURES = 18
LEAD = 0.2
"""Of a mixture's first label before its second, in probability: near the boundary, and far enough from it that the
files of a bundle call it the same."""
_MOST_LEAD = 0.3
_HALVINGS = 12
_CUT_S = (5.0, 10.0, 20.0)
"""Lengths of the mixtures in turn: what is empty takes no room, and a bundle travels over thin links."""


@dataclass(frozen=True, slots=True)
class Motion:
    """A synthetic signal after the onset: rise and decay (s), band (Hz), noise before it (share of the peak)."""

    name: str
    rise_s: float
    decay_s: float
    low_hz: float
    high_hz: float
    noise: float
    seconds: float = FULL_S
    """How much of it is in the window."""
    second_s: float = 0.0
    """Delay of a stronger second phase; 0 for none."""
    silent: tuple[int, ...] = ()
    """Rows without data."""
    clip: float = 1.0
    """Tops cut at this share of the peak."""


MOTIONS = (
    Motion("landslide", 12.0, 25.0, 0.5, 8.0, 0.03),
    Motion("landslide after 10 s", 12.0, 25.0, 0.5, 8.0, 0.03, seconds=10.0),
    Motion("rockfall", 0.3, 3.0, 5.0, 30.0, 0.02),
    Motion("rockfall after 3 s, vertical only", 0.3, 3.0, 5.0, 30.0, 0.05, seconds=3.0, silent=(0, 1)),
    Motion("collapse", 1.5, 8.0, 1.0, 12.0, 0.01, second_s=4.0),
    Motion("collapse after 5 s", 1.5, 8.0, 1.0, 12.0, 0.01, seconds=5.0, second_s=4.0),
    Motion("blast", 0.05, 1.5, 2.0, 20.0, 0.02, second_s=0.8),
    Motion("blast, clipped", 0.05, 1.5, 2.0, 20.0, 0.02, clip=0.5),
    Motion("earthquake", 0.1, 6.0, 2.0, 15.0, 0.005, second_s=5.0),
    Motion("earthquake after 20 s", 0.1, 6.0, 2.0, 15.0, 0.005, seconds=20.0, second_s=5.0),
    Motion("distant earthquake", 4.0, 40.0, 0.2, 2.0, 0.1, second_s=20.0),
    Motion("noise", 0.1, 0.5, 1.0, 40.0, 1.0),
    Motion("noise, one component dead", 0.1, 0.5, 0.1, 5.0, 1.0, seconds=40.0, silent=(2,)),
    Motion("nothing", 0.1, 0.5, 1.0, 40.0, 1.0, silent=(0, 1, 2)),
)


VARIOUS = len(MOTIONS)
"""So many golden windows come first; what follows are mixtures, near the boundaries of the network that they are of."""


def golden_windows() -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Windows ``[n, 3, 10240]`` as int8 (value times 127) and their seconds after the onset, float32 ``[n]``."""
    rng = np.random.default_rng(2024)
    windows = np.stack([_window(motion, rng) for motion in MOTIONS])
    return windows, np.array([motion.seconds for motion in MOTIONS], np.float32)


def mixtures(
    answer: Answer, stored: NDArray[np.int8], seconds: NDArray[np.float32]
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Up to ``MIXTURES`` weighted sums of two of the windows that the network calls differently, each with as much of
    the second as leaves the first's label ``LEAD`` ahead; as int8, and their seconds."""
    labels = answer(stored, seconds).argmax(axis=1)
    pairs = [(i, j) for i in range(len(stored)) for j in range(len(stored)) if labels[i] != labels[j]]
    found: list[NDArray[np.int8]] = []
    lengths: list[np.float32] = []
    for k in np.random.default_rng(2024).permutation(len(pairs)):
        if len(found) == MIXTURES:
            break
        i, j = pairs[k]
        shorter = min(seconds[i], seconds[j], np.float32(_CUT_S[len(found) % len(_CUT_S)]))
        label = int(answer(_mixed(stored[i], stored[j], 0.0, shorter)[None], np.array([shorter])).argmax())
        low, high = 0.0, 1.0
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            mixed = _mixed(stored[i], stored[j], middle, shorter)
            low, high = (middle, high) if _lead(answer, mixed, shorter, label) > LEAD else (low, middle)
        mixed = _mixed(stored[i], stored[j], low, shorter)
        if LEAD < _lead(answer, mixed, shorter, label) < _MOST_LEAD:
            found.append(mixed)
            lengths.append(shorter)
    shape = (0, *stored.shape[1:])
    return np.stack(found) if found else np.zeros(shape, np.int8), np.array(lengths, np.float32)


def _lead(answer: Answer, window: NDArray[np.int8], seconds: np.float32, label: int) -> float:
    [row] = answer(window[None], np.array([seconds], np.float32))
    return float(row[label] - np.delete(row, label).max())


def _mixed(a: NDArray[np.int8], b: NDArray[np.int8], share: float, seconds: np.float32) -> NDArray[np.int8]:
    data = (1 - share) * a.astype(np.float64) + share * b.astype(np.float64)
    data[:, WINDOW_ONSET + round(float(seconds) * WINDOW_RATE_HZ) :] = 0
    return _stored(data)


def golden_file(exact: Network, networks: Mapping[str, Network], calibration: Calibration) -> tuple[bytes, GoldenSpec]:
    """``golden.npz`` of the files ``networks`` of a network whose answers in float are those of ``exact``, and what the
    manifest says of it.

    The tolerance is twice what ONNX Runtime's own optimisations change, and at least ``TOLERANCE``.

    Raises:
        ExportError: a file strays too far from the float network.
    """

    def answers(model: Network, optimise: bool) -> Answer:
        run = infer.runner(model, optimise)

        def answer(windows: NDArray[np.int8], seconds: NDArray[np.float32]) -> NDArray[np.float64]:
            rows = zip(run(windows.astype(np.float32) / np.float32(SCALE)), seconds, strict=True)
            return np.stack([calibration.probabilities(row, float(s)) for row, s in rows])

        return answer

    stored, seconds = golden_windows()
    in_float = answers(exact, optimise=False)
    mixed, lengths = mixtures(in_float, stored, seconds)
    stored, seconds = np.concatenate([stored, mixed]), np.concatenate([seconds, lengths])
    right = in_float(stored, seconds)
    written, judged = {}, {}
    for name, model in networks.items():
        written[name] = answers(model, optimise=False)(stored, seconds)
        drift = float(np.abs(answers(model, optimise=True)(stored, seconds) - written[name]).max())
        lost = float(np.abs(written[name] - right).max())
        if lost > MOST_LOST:
            raise ExportError(
                f"{name} differs from FP32 by {lost:.2f} in probability on a golden window",
                "calibrate with more windows, or train with less extreme weights",
            )
        tolerance = max(TOLERANCE[name], float(np.ceil(2 * drift * 1000) / 1000))
        judged[name] = GoldenFile(tolerance=tolerance, from_fp32=round(lost, 4))
    return write_golden(stored, seconds, written), GoldenSpec(windows=len(stored), files=judged)


def write_golden(
    windows: NDArray[np.int8], seconds: NDArray[np.float32], answers: Mapping[str, NDArray[np.floating]]
) -> bytes:
    """The content of ``golden.npz``; ``answers`` are calibrated probabilities ``[n, 5]`` by network file."""
    buffer = io.BytesIO()
    rows: dict[str, Any] = {name: values.astype(np.float32) for name, values in answers.items()}
    np.savez_compressed(buffer, windows=windows, seconds=seconds, **rows)
    return buffer.getvalue()


def _window(motion: Motion, rng: np.random.Generator) -> NDArray[np.int8]:
    data = np.stack([_component(motion, rng) for _ in range(3)])
    data[:, WINDOW_ONSET + round(motion.seconds * WINDOW_RATE_HZ) :] = 0
    data = np.clip(data, -motion.clip, motion.clip)
    data[list(motion.silent)] = 0
    return _stored(data)


def _stored(data: NDArray[np.float64]) -> NDArray[np.int8]:
    """Each component divided by its own largest value, as the preparation does, and rounded."""
    peak = np.abs(data).max(axis=1, keepdims=True)
    return np.rint(data / np.where(peak > 0, peak, 1) * SCALE).astype(np.int8)


def _component(motion: Motion, rng: np.random.Generator) -> NDArray[np.float64]:
    t = (np.arange(WINDOW_SAMPLES) - WINDOW_ONSET) / WINDOW_RATE_HZ
    envelope = _envelope(t, motion)
    if motion.second_s:
        envelope += 2 * _envelope(t - motion.second_s * rng.uniform(0.95, 1.05), motion)
    signal = envelope * _band_noise(motion.low_hz, motion.high_hz, rng)
    signal /= np.abs(signal).max()
    background = _band_noise(0.1, 45.0, rng)
    mixed = signal + motion.noise * background / np.abs(background).max()
    return np.asarray(mixed / np.abs(mixed).max())


def _envelope(t: NDArray[np.float64], motion: Motion) -> NDArray[np.float64]:
    rising = np.clip(t / motion.rise_s, 0, 1)
    return np.asarray(rising * np.exp(-np.clip(t - motion.rise_s, 0, None) / motion.decay_s))


def _band_noise(low_hz: float, high_hz: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """White noise with everything outside the band removed."""
    spectrum = np.fft.rfft(rng.standard_normal(WINDOW_SAMPLES))
    frequency = np.fft.rfftfreq(WINDOW_SAMPLES, 1 / WINDOW_RATE_HZ)
    spectrum[(frequency < low_hz) | (frequency > high_hz)] = 0
    return np.asarray(np.fft.irfft(spectrum, WINDOW_SAMPLES))
