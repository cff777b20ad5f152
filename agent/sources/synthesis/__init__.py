"""Synthetic ground motion for drills: noise that never ends, and the signals of a slope. Seeded, numpy only.

In the spirit of what is recorded on slopes (typology of Provost et al. 2018, doi 10.5194/esurf-6-1059-2018), not a
model of wave propagation: quakes with P and S a few tenths of a second apart, trains of impacts under a spindle-shaped
envelope, blasts with a surface and an air wave, earthquakes whose coda falls off with time and frequency.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]
Kind: TypeAlias = Literal["slopequake", "rockfall", "slide", "blast", "earthquake"]

_HOP = 4096
"""Samples between two overlapping pieces of noise."""
_VP, _VS, _AIR = 2200.0, 1270.0, 340.0
"""Speeds in weathered rock, and of sound, m/s."""


class Noise:
    """Coloured ground noise of one channel with RMS ``counts``, the same for any way of asking for it.

    Pieces of shaped Gaussian noise under sine windows that overlap by half, so that the power is the same everywhere.
    """

    def __init__(self, seed: int, channel: int, rate_hz: float, counts: float) -> None:
        self._seed, self._channel = seed, channel
        # Channels begin at different places of their pieces, so that they are not all computed in the same moment.
        self._shift = channel * 1597 % _HOP
        frequency = np.fft.rfftfreq(2 * _HOP, 1 / rate_hz)
        microseism = 2.0 * np.exp(-(((frequency - 0.2) / 0.08) ** 2))
        traffic = 0.4 * np.exp(-(((frequency - 9.0) / 4.0) ** 2))
        self._shape = 1 / np.sqrt(1 + (frequency / 2.0) ** 2) + microseism + traffic
        self._shape[frequency < 0.05] = 0
        power = 2 * float(np.sum(self._shape**2)) / (2 * _HOP)
        self._shape *= counts / math.sqrt(power)
        self._window = np.sin(np.pi * (np.arange(2 * _HOP) + 0.5) / (2 * _HOP))
        self._pieces: dict[int, Array] = {}

    def samples(self, first: int, n: int) -> Array:
        """Samples ``first`` to ``first + n``."""
        first += self._shift
        out = np.zeros(n)
        lowest = first // _HOP - 1
        for index in range(lowest, (first + n - 1) // _HOP + 1):
            piece, begin = self._piece(index), index * _HOP - first
            a, b = max(0, begin), min(n, begin + 2 * _HOP)
            out[a:b] += piece[a - begin : b - begin]
        self._pieces = {index: piece for index, piece in self._pieces.items() if index >= lowest}
        return out

    def _piece(self, index: int) -> Array:
        piece = self._pieces.get(index)
        if piece is None:
            rng = np.random.default_rng([self._seed, 1, self._channel, index + 1])
            spectrum = np.fft.rfft(rng.standard_normal(2 * _HOP)) * self._shape
            piece = self._pieces[index] = np.fft.irfft(spectrum, 2 * _HOP) * self._window
        return piece


def motion(kind: Kind, rng: np.random.Generator, rate_hz: float) -> Array:
    """One event at one station, ``[3, n]`` (E, N, Z) from its onset on; its largest sample is 1."""
    data = _MOTIONS[kind](rng, rate_hz)
    return np.asarray(data / np.abs(data).max())


def _slopequake(rng: np.random.Generator, rate_hz: float) -> Array:
    distance = rng.uniform(300, 1500)
    delay = distance / _VS - distance / _VP
    high = rng.uniform(20, 50)
    t = _times(4.0, rate_hz)
    p = _decay(t, 0.02, rng.uniform(0.08, 0.2))
    s = _decay(t - delay, 0.03, rng.uniform(0.2, 0.6))
    return _components(rng, rate_hz, [(p, (0.4, 0.4, 1.0), 5, high), (s, (1.8, 2.2, 1.0), 5, 0.7 * high)])


def _rockfall(rng: np.random.Generator, rate_hz: float) -> Array:
    length = rng.uniform(6, 35)
    t = _times(length + 2, rate_hz)
    spindle = _spindle(t, length)
    impacts = np.zeros(len(t))
    n = max(3, rng.poisson(length * rng.uniform(1.0, 3.0)))
    at = np.sort(np.append(rng.uniform(0, 0.95 * length, n - 1), 0.0))
    impacts[np.round(at * rate_hz).astype(int)] = rng.lognormal(0.0, 0.8, n)
    impacts *= 0.15 + spindle
    ringing = _decay(t, 0.02, rng.uniform(0.1, 0.25))
    hits = _convolve(impacts, ringing)
    low, high = rng.uniform(4, 8), rng.uniform(20, 40)
    return _components(
        rng, rate_hz, [(hits, (0.8, 0.8, 1.0), low, high), (0.25 * spindle, (1.0, 1.0, 1.0), low, 0.7 * high)]
    )


def _slide(rng: np.random.Generator, rate_hz: float) -> Array:
    length = rng.uniform(30, 80)
    t = _times(length, rate_hz)
    surges = 1 + 0.5 * np.sin(2 * np.pi * t / rng.uniform(4, 9) + rng.uniform(0, 6))
    envelope = _spindle(t, length) * surges
    return _components(rng, rate_hz, [(envelope, (1.0, 1.0, 1.0), 1, rng.uniform(7, 14))])


def _blast(rng: np.random.Generator, rate_hz: float) -> Array:
    distance = rng.uniform(800, 4000)
    t = _times(distance / _AIR + 4, rate_hz)
    holes = np.zeros(len(t))
    holes[np.round(np.arange(6) * 0.025 * rate_hz).astype(int)] = rng.uniform(0.7, 1.0, 6)
    p = _convolve(holes, _decay(t, 0.01, 0.3))
    surface = _decay(t - distance / 900 + distance / 4500, 0.3, rng.uniform(0.6, 1.2))
    air = _decay(t - distance / _AIR + distance / 4500, 0.02, 0.15)
    phases = [(p, (0.5, 0.5, 1.0), 3, 25), (2.0 * surface, (1.0, 1.0, 1.2), 1, 4), (1.0 * air, (0.3, 0.3, 1.0), 8, 30)]
    return _components(rng, rate_hz, phases)


def _earthquake(rng: np.random.Generator, rate_hz: float) -> Array:
    sp = rng.uniform(2, 15)
    corner = 12 / (1 + sp / 8)
    length = min(110.0, 6 * sp + 20)
    t = _times(length, rate_hz)
    p = _decay(t, 0.05, 0.4 * sp)
    since = np.maximum(t - sp, 0.0)
    coda = np.where(t >= sp, (1 + since) ** -1.2 * np.exp(-since / (1.2 * sp + 6)), 0.0) * np.minimum(since / 0.1, 1)
    return _components(rng, rate_hz, [(p, (0.3, 0.3, 1.0), 1.5, corner), (3 * coda, (1.0, 1.0, 0.6), 1, 0.7 * corner)])


_MOTIONS: dict[Kind, Callable[[np.random.Generator, float], Array]] = {
    "slopequake": _slopequake,
    "rockfall": _rockfall,
    "slide": _slide,
    "blast": _blast,
    "earthquake": _earthquake,
}


def _times(seconds: float, rate_hz: float) -> Array:
    return np.asarray(np.arange(round(seconds * rate_hz)) / rate_hz)


def _decay(t: Array, rise_s: float, decay_s: float) -> Array:
    """Zero before 0, up to 1 in ``rise_s``, then an exponential fall."""
    return np.where(t >= 0, np.minimum(t / rise_s, 1) * np.exp(-np.maximum(t - rise_s, 0) / decay_s), 0.0)


def _spindle(t: Array, length: float) -> Array:
    """Rises faster than it falls; its peak is 1 at two fifths."""
    share = np.clip(t / length, 0, 1)
    return np.asarray(share * (1 - share) ** 1.5 / (0.4 * 0.6**1.5))


def _convolve(a: Array, b: Array) -> Array:
    n = len(a) + len(b) - 1
    return np.asarray(np.fft.irfft(np.fft.rfft(a, n) * np.fft.rfft(b, n), n)[: len(a)])


def _components(
    rng: np.random.Generator, rate_hz: float, phases: Sequence[tuple[Array, tuple[float, float, float], float, float]]
) -> Array:
    """Sum of phases, each an envelope with its weights (E, N, Z) and its band (Hz), on noise of that band."""
    out = np.zeros((3, len(phases[0][0])))
    for envelope, weights, low, high in phases:
        for row, weight in enumerate(weights):
            out[row] += weight * envelope * _band(rng, len(envelope), rate_hz, low, high)
    return out


def _band(rng: np.random.Generator, n: int, rate_hz: float, low: float, high: float) -> Array:
    """Noise of unit RMS within a band, its flanks falling off smoothly."""
    high = min(high, 0.45 * rate_hz)
    frequency = np.fft.rfftfreq(n, 1 / rate_hz)
    below, above = (low / np.maximum(frequency, 1e-9)) ** 8, (frequency / high) ** 8
    data = np.fft.irfft(np.fft.rfft(rng.standard_normal(n)) / (1 + below) / (1 + above), n)
    return np.asarray(data / data.std())
