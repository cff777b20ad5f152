"""Scattered waves: closed forms of the energy that arrives late, and noise painted under such envelopes.

In three dimensions: radiative transfer with isotropic scattering, the closed approximation of Paasschens (1997, Phys.
Rev. E 56, 1135), which goes from single scattering (Aki & Chouet 1975; Sato 1977) to diffusion. In two, for surface
waves: the exact solution (Shang & Gao 1988; Paasschens 1997). Broadening of a pulse on its way through a random medium:
the parabolic approximation for a Gaussian medium (Sato 1989, J. Geophys. Res. 94, 17735).

Energies are densities in time, 1/s, relative to the energy that the direct wave would have without scattering.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy import fft
from numpy.typing import NDArray

from agent.sources.synthesis.medium import FREQUENCIES, SAMPLES
from agent.types import WINDOW_RATE_HZ

Array = NDArray[np.float64]

CENTRES_HZ = np.array((1.0, 2.5, 6.0, 14.0, 30.0))
"""Bands in which envelopes may differ, because absorption grows with frequency."""


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
