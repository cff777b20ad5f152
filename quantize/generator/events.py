"""The kinds of event, each from its source through the medium to three components; nothing is added to them here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from agent.types import WINDOW_RATE_HZ
from quantize.generator.medium import (
    FREQUENCIES,
    ONSET,
    SAMPLES,
    TIMES,
    Medium,
    arrivals,
    coda,
    crust,
    log_uniform,
    loss,
    site,
    slope,
    surface_wave,
    train,
)
from quantize.generator.source import brune, convolve, corner_hz, impact, impulses, ripple

Array = NDArray[np.float64]
_START = ONSET / WINDOW_RATE_HZ


@dataclass(frozen=True, slots=True, eq=False)
class Motion:
    """Ground velocity ``[3, SAMPLES]`` (E, N, Z; arbitrary units) and the samples of P and S where they exist."""

    data: Array
    p: int | None = None
    s: int | None = None


def earthquake(rng: np.random.Generator) -> Motion:
    """Double couple in the crust, local to regional, magnitudes -0.5 to 4.5."""
    medium = crust(rng)
    distance, depth = log_uniform(rng, 2, 220), rng.uniform(2, 18)
    # A small event is not seen from afar.
    magnitude = rng.uniform(max(-0.5, 1.6 * np.log10(distance) - 1.7), 4.5)
    corner = corner_hz(magnitude, log_uniform(rng, 0.3, 20), medium.vs_km_s)
    ratio = log_uniform(rng, 1.8, 9)
    return _body_waves(rng, medium, distance, depth, spectrum=brune(corner), s_over_p=ratio)


def blast(rng: np.random.Generator) -> Motion:
    """Single shot or ripple-fired quarry blast at the surface: strong P, weak S, surface waves, air wave."""
    medium = crust(rng)
    distance = log_uniform(rng, 1, 150)
    magnitude = rng.uniform(0.3, 2.4)
    # Rubblised rock and a fired volume lower the corner against an earthquake of that size.
    corner = corner_hz(magnitude, log_uniform(rng, 0.05, 2), medium.vs_km_s)
    spectrum = brune(corner).astype(np.complex128)
    if rng.random() < 0.65:
        spectrum = spectrum * ripple(rng, int(rng.integers(4, 60)), log_uniform(rng, 0.008, 0.1), 0.05)
    made = _body_waves(rng, medium, distance, 0.1, spectrum=np.abs(spectrum), s_over_p=log_uniform(rng, 0.35, 1.6))
    data = made.data
    peak = float(np.abs(data).max())
    if rng.random() < 0.8:
        slow = rng.uniform(1.8, 2.7)
        at = ONSET + round(WINDOW_RATE_HZ * (distance / (1.3 * slow) - distance / medium.vp_km_s))
        strength = peak * log_uniform(rng, 0.3, 3) * float(np.exp(-distance / 70))
        data = data + strength * surface_wave(rng, distance, at, slow)
    if distance < 25 and rng.random() < 0.5:
        after = TIMES - _START - distance / rng.uniform(0.330, 0.345) + distance / medium.vp_km_s
        envelope = np.where(after >= 0, np.exp(-after / rng.uniform(0.2, 1.2)), 0)
        data = data + peak * log_uniform(rng, 0.1, 1.5) * train(rng, envelope, impact(rng.uniform(5, 20)))
    return Motion(data, made.p, made.s)


def slopequake(rng: np.random.Generator) -> Motion:
    """Micro-earthquake of the sliding mass: P and S a few tenths of a second apart, 5 to 50 Hz, seconds long."""
    medium = slope(rng)
    distance = log_uniform(rng, 0.05, 1.5)
    corner = log_uniform(rng, 8, 45)
    return _body_waves(
        rng, medium, distance, 0.05, spectrum=brune(corner), s_over_p=log_uniform(rng, 1, 4), surface=True
    )


def rockfall(rng: np.random.Generator) -> Motion:
    """Blocks that fall, bounce and roll: impacts of all sizes under a spindle-shaped rate, no clear phases."""
    medium, distance = slope(rng), log_uniform(rng, 0.1, 3)
    duration = log_uniform(rng, 3, 45)
    rate = log_uniform(rng, 2, 25) * _spindle(duration, rng.uniform(0.15, 0.6), rng.uniform(0.7, 2))
    hits = impulses(rng, rate, rng.uniform(0.9, 2.0))
    if rng.random() < 0.5:
        # The detachment, or the first free fall's landing, opens the sequence.
        hits[ONSET] += rng.uniform(3, 12)
    return Motion(_from_impacts(rng, medium, distance, hits, log_uniform(rng, 6, 35)))


def granular_flow(rng: np.random.Generator) -> Motion:
    """Rock avalanche, from near or tens of kilometres: emergent, one spindle, low frequencies with a long-period
    push of the accelerating mass (Kawakatsu 1989; Ekstroem & Stark 2013)."""
    medium, distance = crust(rng), log_uniform(rng, 0.5, 120)
    duration = log_uniform(rng, 15, 120)
    envelope = _spindle(duration, rng.uniform(0.25, 0.6), rng.uniform(1, 3))
    pulses = np.repeat(rng.uniform(0.4, 1.0, 1 + SAMPLES // 150), 150)[:SAMPLES]
    spectrum = impact(log_uniform(rng, 2, 12)) * loss(medium, distance / medium.vs_km_s) * site(medium)
    data = train(rng, envelope * (1 + rng.uniform(0, 0.6) * (pulses - 0.7)), spectrum)
    if rng.random() < 0.4:
        period = rng.uniform(8, 25)
        force = np.sin(2 * np.pi * (TIMES - _START) / period) * _spindle(min(duration, 2 * period), 0.5, 2)
        data = data + rng.uniform(0.2, 3) * np.array([[rng.normal()], [rng.normal()], [rng.normal()]]) * force
    return Motion(data)


def debris_flow(rng: np.random.Generator) -> Motion:
    """A hum of minutes that rises as the front comes nearer and falls off slowly behind it (Lai et al. 2018)."""
    medium = slope(rng)
    duration = rng.uniform(70, 115)
    envelope = _spindle(duration, rng.uniform(0.2, 0.5), rng.uniform(0.8, 2))
    low = rng.uniform(1, 6) < FREQUENCIES
    spectrum = impact(log_uniform(rng, 8, 35)) * loss(medium, log_uniform(rng, 0.02, 0.6)) * site(medium) * low
    surge = 1 + rng.uniform(0, 0.5) * np.sin(2 * np.pi * TIMES / rng.uniform(5, 20) + rng.uniform(0, 6))
    return Motion(train(rng, envelope * surge, spectrum))


def collapse(rng: np.random.Generator) -> Motion:
    """A cavity's roof gives way: implosive, the first motion down everywhere, long periods, rock falling after it."""
    medium = crust(rng)
    distance = log_uniform(rng, 0.3, 80)
    corner = corner_hz(rng.uniform(0.8, 3.2), log_uniform(rng, 0.02, 0.5), medium.vs_km_s)
    made = _body_waves(
        rng, medium, distance, 0.3, spectrum=brune(corner), s_over_p=log_uniform(rng, 0.6, 2.5), first_motion=-1.0
    )
    slow = rng.uniform(1.6, 2.6)
    at = ONSET + round(WINDOW_RATE_HZ * (distance / (1.3 * slow) - distance / medium.vp_km_s))
    peak = float(np.abs(made.data).max())
    data = made.data + peak * log_uniform(rng, 0.5, 4) * surface_wave(rng, distance, at, slow)
    rate = rng.uniform(1, 8) * _spindle(log_uniform(rng, 4, 25), 0.3, 1.0)
    falls = _from_impacts(rng, medium, distance, impulses(rng, rate, 1.5), log_uniform(rng, 3, 12))
    return Motion(data + peak * rng.uniform(0.05, 0.4) * falls / max(float(np.abs(falls).max()), 1e-30), made.p, made.s)


def _body_waves(
    rng: np.random.Generator,
    medium: Medium,
    distance_km: float,
    depth_km: float,
    *,
    spectrum: Array,
    s_over_p: float,
    first_motion: float | None = None,
    surface: bool = False,
) -> Motion:
    """P, S and their coda. The first swing of P is coherent, so that it has a polarity; all else scatters."""
    p_s, s_s = arrivals(medium, distance_km, depth_km)
    gap = s_s - p_s
    p, s = ONSET, ONSET + max(1, round(gap * WINDOW_RATE_HZ))
    place = site(medium)
    p_spectrum, s_spectrum = (spectrum * loss(medium, t) * place for t in (p_s, s_s))
    sign = rng.choice((-1.0, 1.0)) if first_motion is None else first_motion
    steep = rng.uniform(0.5, 0.95)
    azimuth = rng.uniform(0, 2 * np.pi)
    flat = np.sqrt(1 - steep**2)
    longitudinal = np.array([flat * np.cos(azimuth), flat * np.sin(azimuth), steep])
    data = sign * longitudinal[:, None] * _pulse(p, p_spectrum) * rng.uniform(0.5, 1.2)
    body = 0.08 * gap + 0.04
    after = np.maximum(TIMES - _START, 0)
    decay = np.exp(-after / max(0.05, 1.5 * body)) + 0.35 * np.exp(-after / max(gap, 0.1))
    # What scatters takes longer than what does not: the first swing keeps its sign.
    late = 1 - np.exp(-after / (0.3 * body + 0.08))
    p_envelope = np.where(_START <= TIMES, decay * late, 0)
    weights = 0.25 + 0.75 * np.abs(longitudinal)
    data = data + weights[:, None] * train(rng, 0.7 * p_envelope, p_spectrum)
    later = TIMES - s / WINDOW_RATE_HZ
    s_weights = np.array([1.0, 1.0, rng.uniform(0.35, 0.8)]) * rng.uniform(0.6, 1.2, 3)
    spread = 0.12 * gap + 0.05
    s_envelope = np.where(
        later >= 0, np.minimum(later / (0.2 * spread) + 0.2, 1) * np.exp(-np.maximum(later, 0) / (2 * spread)), 0
    )
    data = data + s_over_p * s_weights[:, None] * train(rng, s_envelope, s_spectrum)
    data = data + 0.55 * s_over_p * s_weights[:, None] * coda(rng, medium, s / WINDOW_RATE_HZ, s_s, s_spectrum)
    if surface:
        tail = np.where(later >= 0, np.exp(-np.maximum(later, 0) / log_uniform(rng, 0.15, 1.0)), 0)
        low = np.exp(-FREQUENCIES / log_uniform(rng, 4, 15))
        data = data + s_over_p * rng.uniform(0.2, 1.5) * train(rng, tail, s_spectrum * low)
    # Spectra without phase ring to both sides; nothing arrives before P.
    data[:, :p] = 0
    return Motion(data, p, s if s < SAMPLES else None)


def _pulse(at: int, spectrum: Array) -> Array:
    """The causal wavelet of an amplitude spectrum (minimum phase), from sample ``at`` on, its peak about 1."""
    log_amplitude = np.log(np.maximum(spectrum, 1e-4 * float(spectrum.max())))
    cepstrum = np.fft.irfft(log_amplitude, SAMPLES)
    cepstrum[1 : SAMPLES // 2] *= 2
    cepstrum[SAMPLES // 2 + 1 :] = 0
    wavelet = np.fft.irfft(np.exp(np.fft.rfft(cepstrum)), SAMPLES)
    out = np.zeros(SAMPLES)
    out[at:] = wavelet[: SAMPLES - at]
    first = float(wavelet[int(np.argmax(np.abs(wavelet[:200]) > 0.2 * np.abs(wavelet).max()))])
    result: Array = out * np.sign(first) / max(float(np.abs(wavelet).max()), 1e-30)
    return result


def _from_impacts(rng: np.random.Generator, medium: Medium, distance_km: float, hits: Array, corner: float) -> Array:
    """Impacts through the slope: each becomes a short scattered wave train, alike for all of one event."""
    spectrum = impact(corner) * loss(medium, distance_km / medium.vs_km_s) * site(medium)
    decay = 0.05 + 0.25 * distance_km / medium.vs_km_s
    responses = rng.standard_normal((3, SAMPLES)) * np.exp(-TIMES / decay) * (8 * decay > TIMES)
    data = convolve(hits, np.fft.rfft(responses, axis=1) * spectrum)
    return data / max(float(np.abs(data).max()), 1e-30)


def _spindle(duration_s: float, rise: float, power: float) -> Array:
    """Envelope 0..1 that begins at the onset, rises over the share ``rise`` of its duration and falls; ``power``
    bends it."""
    share = (TIMES - _START) / duration_s
    shape = np.where(share < rise, share / rise, (1 - share) / (1 - rise))
    result: Array = np.clip(shape, 0, 1) ** power
    return result


KINDS: Mapping[str, tuple[tuple[str, Callable[[np.random.Generator], Motion], float], ...]] = MappingProxyType(
    {
        "earthquake": (("earthquake", earthquake, 1.0),),
        "blast": (("blast", blast, 1.0),),
        "collapse": (("collapse", collapse, 1.0),),
        "landslide": (
            ("slopequake", slopequake, 0.25),
            ("rockfall", rockfall, 0.40),
            ("granular flow", granular_flow, 0.25),
            ("debris flow", debris_flow, 0.10),
        ),
    }
)
"""By label: subtype, what makes it, and its share of the label."""
