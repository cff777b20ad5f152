"""Noise that sets off a trigger and is no event: feet, engines, wind, thunder, spikes, faults of the
instrument."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from agent.sources.synthesis.events import convolve, impact
from agent.sources.synthesis.medium import FREQUENCIES, ONSET, SAMPLES, TIMES, log_uniform, train
from agent.types import WINDOW_RATE_HZ

Array = NDArray[np.float64]
_START = ONSET / WINDOW_RATE_HZ


def footsteps(rng: np.random.Generator) -> Array:
    """A walker passes: impulses at 1.5 to 2.5 a second that swell and fade."""
    hits = np.zeros(SAMPLES)
    at, duration = ONSET, log_uniform(rng, 3, 40)
    pace = rng.uniform(0.4, 0.67)
    nearest = rng.uniform(0.1, 0.9) * duration
    while at < min(SAMPLES, ONSET + duration * WINDOW_RATE_HZ):
        away = ((at - ONSET) / WINDOW_RATE_HZ - nearest) / (0.25 * duration)
        hits[at] = rng.uniform(0.6, 1.4) / (1 + away**2)
        at += max(1, round(pace * rng.uniform(0.93, 1.07) * WINDOW_RATE_HZ))
    ring = np.exp(-TIMES / rng.uniform(0.03, 0.12)) * np.sin(2 * np.pi * rng.uniform(8, 40) * TIMES)
    return _scaled(rng, convolve(hits, np.fft.rfft(ring)))


def vehicle(rng: np.random.Generator) -> Array:
    """An engine passes: lines and a band, a bell-shaped envelope of 5 to 40 s."""
    width = log_uniform(rng, 2, 12)
    envelope = np.exp(-0.5 * ((TIMES - _START - 1.5 * width) / width) ** 2)
    centre = log_uniform(rng, 4, 30)
    band = np.exp(-0.5 * (np.log(np.maximum(FREQUENCIES, 0.1) / centre) / 0.35) ** 2)
    data = train(rng, envelope, band)
    line = rng.uniform(5, 30)
    drift = line * (1 + 0.03 * np.tanh(-(TIMES - _START - 1.5 * width) / width))
    hum = np.sin(2 * np.pi * np.cumsum(drift) / WINDOW_RATE_HZ) * envelope
    made: Array = data + rng.uniform(0, 1.5) * rng.uniform(0.3, 1, (3, 1)) * hum
    return made


def gust(rng: np.random.Generator) -> Array:
    """Wind on a mast or tree: irregular swells over seconds to a minute, broad."""
    slow = np.abs(train(rng, np.ones(SAMPLES), (rng.uniform(0.1, 0.6) > FREQUENCIES).astype(np.float64), 1)[0])
    envelope = slow * np.clip((TIMES - _START) / 2 + 0.5, 0, 1) * (_START + log_uniform(rng, 5, 80) > TIMES)
    spectrum = 1 / (1 + (FREQUENCIES / log_uniform(rng, 1.5, 15)) ** 2) * (FREQUENCIES > 0.3)
    return train(rng, envelope, spectrum)


def thunder(rng: np.random.Generator) -> Array:
    """Air waves that shake the ground: claps with a rolling tail, mostly vertical."""
    envelope = np.zeros(SAMPLES)
    for _ in range(int(rng.integers(1, 6))):
        after = TIMES - _START - rng.uniform(0, 8)
        envelope += rng.uniform(0.2, 1) * np.where(after >= 0, np.exp(-np.maximum(after, 0) / rng.uniform(0.3, 4)), 0)
    made: Array = train(rng, envelope, impact(log_uniform(rng, 5, 25))) * np.array([[0.5], [0.5], [1.0]])
    return made


def knock(rng: np.random.Generator) -> Array:
    """A single blow near the sensor, an animal, a falling branch: a short ringing pulse."""
    after = np.maximum(TIMES - _START, 0)
    ring = np.exp(-after / log_uniform(rng, 0.03, 0.6)) * np.sin(2 * np.pi * log_uniform(rng, 4, 45) * after)
    return _scaled(rng, np.where(_START <= TIMES, ring, 0.0))


def spikes(rng: np.random.Generator) -> Array:
    """Faults of digitizer or line: single samples, or short runs stuck at a value."""
    data = np.zeros((3, SAMPLES))
    for _ in range(int(rng.integers(1, 8))):
        at = ONSET + int(rng.uniform(0, 1500) if rng.random() < 0.6 else 0)
        rows = slice(None) if rng.random() < 0.4 else slice(int(rng.integers(3)), None)
        data[rows, at : at + int(rng.integers(1, 30 if rng.random() < 0.3 else 3))] = rng.choice(
            (-1.0, 1.0)
        ) * rng.uniform(0.3, 1)
    return data


def calibration(rng: np.random.Generator) -> Array:
    """A step into the calibration coil, or a mass that is re-centred: the sensor's own response, seconds long."""
    period, damping = rng.uniform(0.2, 8), rng.uniform(0.4, 0.9)
    after = np.maximum(TIMES - _START, 0)
    omega = 2 * np.pi / period
    swing = np.exp(-damping * omega * after) * np.cos(omega * np.sqrt(1 - damping**2) * after)
    return _scaled(rng, np.where(_START <= TIMES, swing, 0.0))


def _scaled(rng: np.random.Generator, signal: Array) -> Array:
    """One signal on three components with random shares and signs."""
    made: Array = rng.uniform(0.2, 1.0, (3, 1)) * rng.choice((-1.0, 1.0), (3, 1)) * signal
    return made


TRANSIENTS: tuple[tuple[str, Callable[[np.random.Generator], Array], float], ...] = (
    ("footsteps", footsteps, 0.15),
    ("vehicle", vehicle, 0.15),
    ("gust", gust, 0.1),
    ("thunder", thunder, 0.1),
    ("knock", knock, 0.25),
    ("spikes", spikes, 0.15),
    ("calibration", calibration, 0.1),
)
