"""What happens at the source: spectra of ground velocity and trains of impulses."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from agent.types import WINDOW_RATE_HZ
from quantize.generator.medium import FREQUENCIES, SAMPLES

Array = NDArray[np.float64]


def corner_hz(magnitude: float, stress_drop_mpa: float, vs_km_s: float) -> float:
    """Corner frequency of a circular crack (Brune 1970): 0.37 vs (16/7 stress drop / moment)^(1/3)."""
    moment = float(10 ** (1.5 * magnitude + 9.1))
    corner: float = 0.37 * vs_km_s * 1e3 * (16 / 7 * stress_drop_mpa * 1e6 / moment) ** (1.0 / 3.0)
    return corner


def brune(corner: float) -> Array:
    """Velocity spectrum of an omega-squared source, its largest value 1."""
    spectrum = FREQUENCIES / (1 + (FREQUENCIES / corner) ** 2)
    result: Array = spectrum / spectrum.max()
    return result


def impact(corner: float) -> Array:
    """Velocity spectrum of a vertical force pulse (Hertz contact): flat impulse up to the corner, radiated as a
    surface wave whose amplitude grows with frequency."""
    spectrum = FREQUENCIES**0.5 / (1 + (FREQUENCIES / corner) ** 2)
    result: Array = spectrum / spectrum.max()
    return result


def ripple(rng: np.random.Generator, holes: int, delay_s: float, jitter: float) -> NDArray[np.complex128]:
    """Spectrum of ``holes`` charges fired ``delay_s`` apart with a relative scatter: scalloped, with maxima at
    multiples of 1 / delay (Smith 1989). Complex, its largest modulus 1."""
    times = np.arange(holes) * delay_s * (1 + jitter * rng.standard_normal(holes))
    sizes = rng.uniform(0.6, 1.4, holes)
    spectrum = (sizes[:, None] * np.exp(-2j * np.pi * FREQUENCIES * times[:, None])).sum(axis=0)
    result: NDArray[np.complex128] = spectrum / np.abs(spectrum).max()
    return result


def impulses(rng: np.random.Generator, rate: Array, exponent: float) -> Array:
    """Impacts as a Poisson process with ``rate`` (a second, by sample); sizes follow a power law, as
    fragments do, up to fifteen times the smallest that counts."""
    hits = rng.random(SAMPLES) < rate / WINDOW_RATE_HZ
    sizes = (1 - rng.random(SAMPLES)) ** (-1 / exponent)
    result: Array = np.where(hits, np.minimum(sizes, 15), 0.0) * rng.choice((-1.0, 1.0), SAMPLES)
    return result


def convolve(signal: Array, spectrum: NDArray[np.complex128] | Array) -> Array:
    """Signals ``[..., SAMPLES]`` through a response given by its spectrum."""
    result: Array = fft.irfft(fft.rfft(signal, axis=-1) * spectrum, SAMPLES, axis=-1)
    return result
