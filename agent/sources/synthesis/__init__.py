"""Synthetic ground motion, seeded, numpy only: for drills, and for the training (``quantize.generator``).

    events.py   the kinds of event: what radiates, a way, three components
    medium.py   what is on the way: travel times, absorption, coda, surface waves, site
    scatter.py  late energy in closed form; P and S with their coda

A drill has the events of the training, near the site, so that it sounds like what the network learned.
docs/generator.md says what is modelled, what is not, and after whom.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from agent.dsp.window import interpolate
from agent.sources.synthesis.events import Motion, blast, convolve, earthquake, granular_flow, rockfall, slopequake
from agent.sources.synthesis.medium import ONSET, SAMPLES, log_uniform
from agent.sources.synthesis.scatter import echo
from agent.types import WINDOW_RATE_HZ

Array: TypeAlias = NDArray[np.float64]
Kind: TypeAlias = Literal["slopequake", "rockfall", "slide", "blast", "earthquake"]

_HOP = 4096
"""Samples between two overlapping pieces of noise."""
MOTIONS: Mapping[Kind, Callable[[np.random.Generator], Motion]] = {
    "slopequake": slopequake,
    "rockfall": partial(rockfall, distance_km=(0.3, 1.5), duration_s=(15, 50), impacts_hz=(20, 60), at_once=0.0),
    # A large mass that fails as one: it swells once, and radiates low frequencies.
    "slide": partial(granular_flow, distance_km=(0.3, 3), duration_s=(50, 90), force_hz=(0.3, 1), most_surges=0),
    "blast": partial(blast, distance_km=(1, 8)),
    "earthquake": partial(earthquake, distance_km=(10, 120)),
}
_OVER = 0.003
"""A signal is over where nothing above this share of its peak follows."""
_FADE_S = 1.0


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
    data = MOTIONS[kind](rng).data
    data = convolve(data, echo(rng, log_uniform(rng, 0.05, 0.8), rng.uniform(0.1, 0.8)))[:, ONSET:]
    data /= np.abs(data).max()
    last = int(np.flatnonzero(np.abs(data).max(axis=0) > _OVER)[-1])
    fade = round(_FADE_S * WINDOW_RATE_HZ)
    end = min(SAMPLES - ONSET, last + fade)
    data = data[:, :end]
    data[:, -fade:] *= np.linspace(1, 0, fade)
    if rate_hz != WINDOW_RATE_HZ:
        count = int(end * rate_hz / WINDOW_RATE_HZ)
        data = np.stack([interpolate(row, float(WINDOW_RATE_HZ), 0.0, count, rate_hz) for row in data])
    return np.asarray(data / np.abs(data).max())
