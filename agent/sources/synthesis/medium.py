"""The path from source to sensor: travel times, attenuation, coda, surface waves, site, in closed form.

Spectra are those of ground velocity. Wave trains are noise with the envelope and the spectrum that theory gives them:
at the frequencies of interest a real crust scatters so much that no phase but the first is coherent anyway.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy import fft
from numpy.typing import NDArray

from agent.types import WINDOW_RATE_HZ

Array = NDArray[np.float64]

SAMPLES = 16_384
"""Length of every synthetic record, samples at 100 Hz (163.84 s)."""
ONSET = 4_500
"""Sample of the first arrival."""

FREQUENCIES = fft.rfftfreq(SAMPLES, 1 / WINDOW_RATE_HZ)
TIMES = np.arange(SAMPLES) / WINDOW_RATE_HZ
_POSITIVE = np.maximum(FREQUENCIES, 0.05)


@dataclass(frozen=True, slots=True)
class Medium:
    """Rock between source and sensor. ``q0``, ``q_power``: quality factor ``q0 f^q_power``. ``kappa_s``: loss right
    under the sensor (Anderson & Hough 1984). ``coda_q0``: the same for the coda's decay (Aki & Chouet 1975).
    ``scattering_km``: inverse mean free path of S, 1/km. ``broadening_s``: how long forward scattering makes a pulse
    on 100 km of way."""

    vp_km_s: float
    vs_km_s: float
    q0: float
    q_power: float
    kappa_s: float
    coda_q0: float
    resonance_hz: float
    resonance_gain: float
    scattering_km: float
    broadening_s: float


def crust(rng: np.random.Generator) -> Medium:
    """A medium for local and regional events."""
    vp = rng.uniform(5.2, 6.4)
    return Medium(
        vp_km_s=vp,
        vs_km_s=vp / rng.uniform(1.65, 1.85),
        q0=log_uniform(rng, 50, 350),
        q_power=rng.uniform(0.3, 0.9),
        kappa_s=log_uniform(rng, 0.008, 0.06),
        coda_q0=log_uniform(rng, 50, 250),
        resonance_hz=log_uniform(rng, 1.0, 15.0),
        resonance_gain=rng.uniform(0.0, 2.5),
        scattering_km=log_uniform(rng, 0.003, 0.08),
        broadening_s=log_uniform(rng, 0.8, 9.0),
    )


def slope(rng: np.random.Generator) -> Medium:
    """The medium of the loosened upper hundreds of metres of a slope."""
    vp = rng.uniform(1.2, 3.5)
    return Medium(
        vp_km_s=vp,
        vs_km_s=vp / rng.uniform(1.7, 2.2),
        q0=log_uniform(rng, 12, 60),
        q_power=rng.uniform(0.0, 0.4),
        kappa_s=log_uniform(rng, 0.003, 0.02),
        coda_q0=log_uniform(rng, 15, 60),
        resonance_hz=log_uniform(rng, 2.0, 20.0),
        resonance_gain=rng.uniform(0.0, 4.0),
        scattering_km=log_uniform(rng, 0.8, 8.0),
        broadening_s=log_uniform(rng, 20.0, 200.0),
    )


def arrivals(medium: Medium, distance_km: float, depth_km: float) -> tuple[float, float]:
    """Travel times of P and S in seconds: direct, or along the Moho (8.1 km/s, at 32 km) where that is sooner."""
    direct, head = phases(medium, distance_km, depth_km)
    return (direct[0], direct[1]) if head is None else (min(direct[0], head[0]), min(direct[1], head[1]))


def phases(
    medium: Medium, distance_km: float, depth_km: float
) -> tuple[tuple[float, float], tuple[float, float] | None]:
    """Travel times of Pg and Sg, and of Pn and Sn, which do not exist before the critical distance."""
    slant = float(np.hypot(distance_km, depth_km))
    heads = []
    for velocity, mantle in ((medium.vp_km_s, 8.1), (medium.vs_km_s, 4.6)):
        leg = float(np.sqrt(1 / velocity**2 - 1 / mantle**2))
        if distance_km > (2 * 32.0 - depth_km) * velocity / np.sqrt(mantle**2 - velocity**2):
            heads.append(distance_km / mantle + (2 * 32.0 - depth_km) * leg)
    direct = slant / medium.vp_km_s, slant / medium.vs_km_s
    return direct, (heads[0], heads[1]) if len(heads) == 2 else None


def loss(medium: Medium, seconds: float) -> Array:
    """Amplitude left after ``seconds`` of travel, by frequency: anelastic loss and kappa."""
    q = medium.q0 * np.maximum(_POSITIVE, 1.0) ** medium.q_power
    result: Array = np.exp(-np.pi * FREQUENCIES * (seconds / q + medium.kappa_s))
    return result


def site(medium: Medium) -> Array:
    """Amplification of a soft layer: its fundamental and first overtone."""
    gain: Array = np.ones(len(FREQUENCIES))
    for order, height in ((1.0, 1.0), (3.0, 0.4)):
        ratio = np.log(_POSITIVE / (order * medium.resonance_hz)) / 0.25
        gain += medium.resonance_gain * height * np.exp(-0.5 * ratio**2)
    return gain


def train(rng: np.random.Generator, envelope: Array, spectrum: Array, components: int = 3) -> Array:
    """Noise ``[components, SAMPLES]`` with an amplitude envelope in time and an amplitude spectrum; its largest
    envelope value is about that of ``envelope``."""
    noise = rng.standard_normal((components, SAMPLES)) * envelope
    shaped: Array = fft.irfft(fft.rfft(noise, axis=1) * spectrum, SAMPLES, axis=1)
    norm = float(np.sqrt((spectrum**2).mean()))
    scaled: Array = shaped / max(norm, 1e-30)
    return scaled


def surface_wave(rng: np.random.Generator, distance_km: float, arrival: int, slow_km_s: float) -> Array:
    """Short-period Rayleigh waves ``[3, SAMPLES]`` of amplitude 1: the group velocity rises with the period, so that
    the low frequencies come first; elliptical between the vertical and a random horizontal."""
    low, high = 0.4, log_uniform(rng, 1.5, 4.0)
    fast = slow_km_s * rng.uniform(1.15, 1.5)
    share = np.clip((_POSITIVE - low) / (high - low), 0, 1)
    group = fast + (slow_km_s - fast) * share
    step = float(FREQUENCIES[1] - FREQUENCIES[0])
    # The wavelet is symmetric about its group delay: half of it would come too soon.
    delay = 0.7 / low + arrival / WINDOW_RATE_HZ + distance_km * (1 / group - 1 / fast)
    phase = 2 * np.pi * np.cumsum(delay) * step + rng.uniform(0, 2 * np.pi)
    amplitude = np.exp(-0.5 * (np.log(_POSITIVE / np.sqrt(low * high)) / 0.5) ** 2)
    spectrum = amplitude * np.exp(-1j * phase)
    vertical, radial = fft.irfft(spectrum, SAMPLES), fft.irfft(1j * spectrum * rng.uniform(0.6, 1.2), SAMPLES)
    angle = rng.uniform(0, 2 * np.pi)
    wave = np.stack([np.cos(angle) * radial, np.sin(angle) * radial, vertical])
    result: Array = wave / max(float(np.abs(wave).max()), 1e-30)
    return result


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))
