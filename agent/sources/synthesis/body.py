"""P and S with the coda that each scatters, from any source in the crust or the slope."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy import fft
from numpy.typing import NDArray

from agent.sources.synthesis.medium import FREQUENCIES, ONSET, SAMPLES, TIMES, Medium, loss, phases, site
from agent.sources.synthesis.scatter import absorbed, broadened, diffuse_3d, painted
from agent.types import WINDOW_RATE_HZ

Array = NDArray[np.float64]
_POSITIVE = np.maximum(FREQUENCIES, 1e-3)


@dataclass(frozen=True, slots=True, eq=False)
class Radiation:
    """Amplitudes of P, SV and SH towards the station, the root mean square of P and S over all directions, which is
    what scattered waves have, and the corner frequencies (Hz) of both."""

    p: float
    sv: float
    sh: float
    p_rms: float
    s_rms: float
    p_corner: float
    s_corner: float


def body_waves(
    rng: np.random.Generator, medium: Medium, distance_km: float, depth_km: float, radiation: Radiation
) -> tuple[Array, int, int]:
    """Velocity ``[3, SAMPLES]`` (E, N, Z) from the first arrival at ``ONSET`` on; the samples of P and S.

    Every phase is in part a coherent pulse with its polarity, in part a pulse that a random medium has broadened
    (Sato 1989), and has a coda (Paasschens 1997). The coherent part and its first swing fade out with distance.
    """
    direct, head = phases(medium, distance_km, depth_km)
    first = min(direct[0], head[0]) if head else direct[0]
    s_first = min(direct[1], head[1]) if head else direct[1]
    slant = float(np.hypot(distance_km, depth_km))
    lapse = TIMES - ONSET / WINDOW_RATE_HZ + first
    width = medium.broadening_s * (slant / 100) ** 1.5 + 0.01
    coherent = float(np.exp(-width / 0.3 - 0.1))
    energies, pulses = [], []
    strength = rng.uniform(0.05, 0.5)
    for wave in (0, 1):
        scattering = medium.scattering_km * (rng.uniform(0.5, 2.0) if wave == 0 else 1.0)
        left = np.exp(-scattering * slant)
        energy = diffuse_3d(lapse, slant, slant / direct[wave], scattering)
        energy += (1 - coherent) * left * broadened(lapse - direct[wave], width * (0.6, 1.0)[wave])
        if head:
            energy += strength**2 * broadened(lapse - head[wave], 0.3 * width)
        start = first if wave == 0 else s_first
        energies.append(absorbed(energy, lapse - start, medium.coda_q0, medium.q_power))
        pulses.append(np.sqrt(coherent * left) * np.exp(-2j * np.pi * FREQUENCIES * _after(direct[wave] - first)))
    azimuth, steep = rng.uniform(0, 2 * np.pi), rng.uniform(0.4, 0.97)
    flat = float(np.sqrt(1 - steep**2))
    along = np.array([np.sin(azimuth), np.cos(azimuth), 0.0])
    across, up = np.array([np.cos(azimuth), -np.sin(azimuth), 0.0]), np.array([0.0, 0.0, 1.0])
    ways = (
        radiation.p * (flat * along + steep * up),
        radiation.sv * (steep * along - flat * up) + radiation.sh * across,
    )
    uneven = (np.array([0.6, 0.6, 1.0]), np.array([1.0, 1.0, rng.uniform(0.5, 0.95)]))
    total = np.zeros((3, len(FREQUENCIES)), dtype=np.complex128)
    for wave, noise in enumerate(painted(rng, energies)):
        rms = (radiation.p_rms, radiation.s_rms)[wave]
        motion = fft.rfft(noise, axis=1) * (rms * uneven[wave])[:, None] + ways[wave][:, None] * pulses[wave]
        total += motion * _spectrum(medium, direct[wave], (radiation.p_corner, radiation.s_corner)[wave])
    data = fft.irfft(total * site(medium), SAMPLES, axis=1)
    return data, ONSET, ONSET + max(1, round((s_first - first) * WINDOW_RATE_HZ))


def _after(seconds: float) -> float:
    return ONSET / WINDOW_RATE_HZ + seconds


def _spectrum(medium: Medium, travel_s: float, corner: float) -> NDArray[np.complex128]:
    """Velocity of an omega-squared source after the way, causal: with the dispersion that goes with absorption
    (Futterman 1962)."""
    source = 1j * FREQUENCIES / (1 + 1j * FREQUENCIES / corner) ** 2
    star = travel_s / (medium.q0 * np.maximum(FREQUENCIES, 1.0) ** medium.q_power) + medium.kappa_s
    result: NDArray[np.complex128] = (
        source * loss(medium, travel_s) * np.exp(2j * FREQUENCIES * star * np.log(_POSITIVE / 100))
    )
    return result
