"""Scattered waves: closed forms of the energy that arrives late, and noise painted under such envelopes.

In three dimensions: radiative transfer with isotropic scattering, the closed approximation of Paasschens (1997, Phys.
Rev. E 56, 1135), which goes from single scattering (Aki & Chouet 1975; Sato 1977) to diffusion. In two, for surface
waves: the exact solution (Shang & Gao 1988; Paasschens 1997). Broadening of a pulse on its way through a random medium:
the parabolic approximation for a Gaussian medium (Sato 1989, J. Geophys. Res. 94, 17735).

Energies are densities in time, 1/s, relative to the energy that the direct wave would have without scattering.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy import fft
from numpy.typing import NDArray

from agent.sources.synthesis.medium import FREQUENCIES, ONSET, SAMPLES, TIMES, Medium, loss, phases, site
from agent.types import WINDOW_RATE_HZ

Array = NDArray[np.float64]
CENTRES_HZ = np.array((1.0, 2.5, 6.0, 14.0, 30.0))
"""Bands in which envelopes may differ, because absorption grows with frequency."""
_POSITIVE = np.maximum(FREQUENCIES, 1e-3)


def _masks() -> NDArray[np.float32]:
    """Weights ``[bands, frequencies]`` whose squares add up to 1: neighbours cross-fade in the logarithm."""
    place = np.interp(np.log(np.maximum(FREQUENCIES, 1e-3)), np.log(CENTRES_HZ), np.arange(len(CENTRES_HZ)))
    away = np.abs(place[None] - np.arange(len(CENTRES_HZ))[:, None])
    masks: NDArray[np.float32] = np.where(away < 1, np.cos(np.pi / 2 * away), 0).astype(np.float32)
    return masks


_MASKS = _masks()


def diffuse_3d(lapse_s: Array, distance: float, speed: float, scattering: float) -> Array:
    """Energy of body waves at ``lapse_s`` after their start; ``scattering`` is per unit of ``distance``."""
    vt = np.maximum(speed * lapse_s, 1e-6)
    front = 1 - np.minimum(distance / vt, 0.999) ** 2
    x = vt * scattering * front**0.75
    # exp(x - vt g) in one step: each alone overflows late in the coda.
    transfer = np.exp(x - vt * scattering) * np.sqrt(1 + 2.026 / np.maximum(x, 1e-6))
    density = front**0.125 / (4 * np.pi * vt / (3 * scattering)) ** 1.5 * transfer
    result: Array = np.where(vt > distance, 4 * np.pi * distance**2 * speed * density, 0)
    return result


def diffuse_2d(lapse_s: Array, distance: float, speed: float, scattering: float) -> Array:
    """Energy of surface waves at ``lapse_s`` after their start."""
    vt = speed * lapse_s
    root = np.sqrt(np.maximum(vt**2 - distance**2, (0.05 * distance) ** 2))
    density = scattering * np.exp(scattering * np.minimum(root - vt, 0)) / root
    result: Array = np.where(vt > distance, distance * speed * density, 0)
    return result


def broadened(since_s: Array, width_s: float) -> Array:
    """Energy of a pulse that wandered through a random medium, ``since_s`` after its first arrival; integral 1."""
    x = since_s / width_s
    late = np.maximum(x, 0.15)
    series = sum((-1) ** (n + 1) * n**2 * np.exp(-(n**2) * np.pi**2 / 4 * late) for n in range(1, 5))
    result: Array = np.where(x > 0.15, np.pi**2 / (2 * width_s) * np.maximum(series, 0), 0)
    return result


def absorbed(energy: Array, lapse_s: Array, q0: float, q_power: float) -> Array:
    """``energy [n]`` after absorption with Q = ``q0 f^q_power``, in every band: ``[bands, n]``."""
    rate = 2 * np.pi * CENTRES_HZ ** (1 - q_power) / q0
    result: Array = energy * np.exp((-rate[:, None] * np.maximum(lapse_s, 0)).astype(np.float32))
    return result


def painted(rng: np.random.Generator, energies: Sequence[Array]) -> list[NDArray[np.float32]]:
    """White Gaussian noise ``[3, SAMPLES]`` under each of the ``energies`` ``[bands, SAMPLES]``.

    A pulse of height 1 in one sample and noise whose energy has the integral 1 are equally strong. All members of the
    list share one noise, as they are not loud at the same time.
    """
    noise = rng.standard_normal((3, 2 * len(FREQUENCIES)), dtype=np.float32).view(np.complex64)
    noise *= np.float32((SAMPLES / 2) ** 0.5)
    envelopes = [np.sqrt(energy / WINDOW_RATE_HZ).astype(np.float32) for energy in energies]
    out = [np.zeros((3, SAMPLES), dtype=np.float32) for _ in energies]
    for band, mask in enumerate(_MASKS):
        part = fft.irfft(noise * mask, SAMPLES, axis=1)
        for target, envelope in zip(out, envelopes, strict=True):
            np.add(target, part * envelope[band], out=target)
    return out


def echo(rng: np.random.Generator, decay_s: float, share: float) -> NDArray[np.complex64]:
    """Response ``[3, frequencies]`` of rough ground near the sensor: a pulse stays a pulse, and ``share`` of its energy
    comes after it, dying away with ``decay_s``, on each component another."""
    count = min(SAMPLES, max(2, round(7 * decay_s * WINDOW_RATE_HZ)))
    energy = np.exp(-2 * np.arange(count) / (decay_s * WINDOW_RATE_HZ))
    response = rng.standard_normal((3, count)) * np.sqrt(energy * share / energy.sum())
    response[:, 0] += (1 - share) ** 0.5
    result: NDArray[np.complex64] = fft.rfft(response.astype(np.float32), SAMPLES, axis=1).astype(
        np.complex64, copy=False
    )
    return result


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
