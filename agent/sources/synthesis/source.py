"""What happens at the source: spectra of ground velocity and trains of impulses."""

from __future__ import annotations

import numpy as np
from numpy import fft
from numpy.typing import NDArray

from agent.sources.synthesis.medium import FREQUENCIES, SAMPLES
from agent.types import WINDOW_RATE_HZ

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
    """Velocity spectrum of a vertical force pulse (Hertz contact; Farin et al. 2015): its impulse is flat up to the
    corner, a surface wave's displacement grows as the root of frequency, and velocity is a derivative more."""
    spectrum = FREQUENCIES**1.5 / (1 + (FREQUENCIES / corner) ** 2)
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


def double_couple(rng: np.random.Generator, takeoff: float) -> tuple[float, float, float]:
    """Radiation of P, SV and SH of a fault of random strike, dip and rake (Aki & Richards 2002, eq. 4.89-4.91);
    ``takeoff`` in radians from straight down."""
    phi, rake = rng.uniform(0, 2 * np.pi), rng.uniform(-np.pi, np.pi)
    dip = np.arccos(rng.uniform(0, 1))
    si, ci, s2i, c2i = np.sin(takeoff), np.cos(takeoff), np.sin(2 * takeoff), np.cos(2 * takeoff)
    strike_slip, dip_slip = np.cos(rake) * np.sin(dip), np.cos(rake) * np.cos(dip)
    thrust, tilted = np.sin(rake) * np.sin(2 * dip), np.sin(rake) * np.cos(2 * dip)
    s, c, s2, c2 = np.sin(phi), np.cos(phi), np.sin(2 * phi), np.cos(2 * phi)
    p = strike_slip * si**2 * s2 - dip_slip * s2i * c + thrust * (ci**2 - si**2 * s**2) + tilted * s2i * s
    sv = tilted * c2i * s - dip_slip * c2i * c + 0.5 * strike_slip * s2i * s2 - 0.5 * thrust * s2i * (1 + s**2)
    sh = dip_slip * ci * s + strike_slip * si * c2 + tilted * ci * c - 0.5 * thrust * si * s2
    return float(p), float(sv), float(sh)


def impulses(rng: np.random.Generator, rate: Array, exponent: float) -> Array:
    """Impacts as a Poisson process with ``rate`` (a second, by sample); sizes follow a power law, as
    fragments do, up to fifteen times the smallest that counts."""
    hits = rng.random(SAMPLES) < rate / WINDOW_RATE_HZ
    sizes = (1 - rng.random(SAMPLES)) ** (-1 / exponent)
    result: Array = np.where(hits, np.minimum(sizes, 15), 0.0) * rng.choice((-1.0, 1.0), SAMPLES)
    return result


def convolve(signal: Array, spectrum: NDArray[np.complex128] | NDArray[np.complex64] | Array) -> Array:
    """Signals ``[..., SAMPLES]`` through a response given by its spectrum."""
    result: Array = fft.irfft(fft.rfft(signal, axis=-1) * spectrum, SAMPLES, axis=-1)
    return result
