"""The kinds of event, each from its source through the medium to three components; nothing is added to them here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
from numpy import fft
from numpy.typing import NDArray

from agent.sources.synthesis.medium import (
    FREQUENCIES,
    ONSET,
    SAMPLES,
    TIMES,
    Medium,
    crust,
    log_uniform,
    loss,
    site,
    slope,
    surface_wave,
    train,
)
from agent.sources.synthesis.scatter import Radiation, body_waves, diffuse_2d
from agent.types import WINDOW_RATE_HZ

Array = NDArray[np.float64]
Range: TypeAlias = tuple[float, float]
"""Least and most of what is drawn evenly by its logarithm."""
_START = ONSET / WINDOW_RATE_HZ
P_RMS, S_RMS = (4 / 15) ** 0.5, (2 / 5) ** 0.5
"""Radiation of a double couple over all directions (Boore & Boatwright 1984)."""


def corner_hz(magnitude: float, stress_drop_mpa: float, vs_km_s: float) -> float:
    """Corner frequency of a circular crack (Brune 1970): 0.37 vs (16/7 stress drop / moment)^(1/3)."""
    moment = float(10 ** (1.5 * magnitude + 9.1))
    corner: float = 0.37 * vs_km_s * 1e3 * (16 / 7 * stress_drop_mpa * 1e6 / moment) ** (1.0 / 3.0)
    return corner


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


@dataclass(frozen=True, slots=True, eq=False)
class Motion:
    """Ground velocity ``[3, SAMPLES]`` (E, N, Z; arbitrary units) and the samples of P and S where they exist."""

    data: Array
    p: int | None = None
    s: int | None = None


def earthquake(rng: np.random.Generator, distance_km: Range = (1, 220)) -> Motion:
    """Double couple in the crust, local to regional, magnitudes -0.5 to 4.5."""
    medium = crust(rng)
    distance, depth = log_uniform(rng, *distance_km), log_uniform(rng, 1.5, 20)
    # A small event is not seen from afar.
    magnitude = rng.uniform(max(-0.5, 1.6 * np.log10(distance) - 1.7), 4.5)
    corner = corner_hz(magnitude, log_uniform(rng, 0.1, 20), medium.vs_km_s)
    data, p, s = body_waves(rng, medium, distance, depth, _sheared(rng, medium, corner, distance, depth))
    if depth < 6 and rng.random() < 0.5:
        slow = rng.uniform(1.8, 2.9)
        at = ONSET + round(WINDOW_RATE_HZ * (distance / (1.3 * slow) - distance / medium.vp_km_s))
        data = data + float(np.abs(data).max()) * log_uniform(rng, 0.03, 0.7) * surface_wave(rng, distance, at, slow)
    return Motion(data, p, s)


def _sheared(rng: np.random.Generator, medium: Medium, corner: float, distance: float, depth: float) -> Radiation:
    """The radiation of a double couple: S stronger by the third power of the ratio of speeds; near the surface P gains
    from S by conversion. P has the higher corner (Madariaga 1976)."""
    p, sv, sh = double_couple(rng, np.pi - np.arctan2(distance, depth))
    s = (medium.vp_km_s / medium.vs_km_s) ** 3 * log_uniform(rng, 0.3, 1.0)
    return Radiation(p, s * sv, s * sh, P_RMS, s * S_RMS, rng.uniform(1.2, 1.8) * corner, corner)


def blast(rng: np.random.Generator, distance_km: Range = (1, 150)) -> Motion:
    """Single shot or ripple-fired quarry blast at the surface: strong P, weak S, surface waves, air wave."""
    medium = crust(rng)
    # Near the surface, and so on all of a short way, rock is slower.
    medium = _slowed(medium, 0.6 + 0.4 * min(1.0, (distance := log_uniform(rng, *distance_km)) / 50))
    # Rubblised rock and a fired volume lower the corner against an earthquake of that size.
    corner = corner_hz(rng.uniform(0.3, 2.4), log_uniform(rng, 0.05, 5), medium.vs_km_s)
    shear = log_uniform(rng, 0.15, 1.5)
    radiation = Radiation(1.0, 0.5 * shear, 0.0, 1.0, shear, corner, corner)
    data, p, s = body_waves(rng, medium, distance, 0.1, radiation)
    peak = float(np.abs(data).max())
    if rng.random() < 0.8:
        slow = rng.uniform(1.0, 2.7)
        at = ONSET + round(WINDOW_RATE_HZ * (distance / (1.3 * slow) - distance / medium.vp_km_s))
        strength = peak * log_uniform(rng, 0.1, 3) * float(np.exp(-distance / 50))
        data = data + strength * surface_wave(rng, distance, at, slow)
    if distance < 25 and rng.random() < 0.5:
        after = TIMES - _START - distance / rng.uniform(0.330, 0.345) + distance / medium.vp_km_s
        envelope = np.where(after >= 0, np.exp(-np.maximum(after, 0) / rng.uniform(0.2, 1.2)), 0)
        data = data + peak * log_uniform(rng, 0.1, 1.5) * train(rng, envelope, impact(rng.uniform(5, 20)))
    if rng.random() < 0.65:
        firing = ripple(rng, int(rng.integers(4, 60)), log_uniform(rng, 0.008, 0.1), rng.uniform(0.0, 0.15))
        data = convolve(data, firing)
    return Motion(data, p, s)


def _slowed(medium: Medium, factor: float) -> Medium:
    return replace(medium, vp_km_s=factor * medium.vp_km_s, vs_km_s=factor * medium.vs_km_s)


def slopequake(rng: np.random.Generator) -> Motion:
    """Micro-earthquake of the sliding mass: P and S a few tenths of a second apart, 5 to 50 Hz, seconds long."""
    medium = slope(rng)
    distance, depth, corner = log_uniform(rng, 0.05, 1.5), log_uniform(rng, 0.01, 0.2), log_uniform(rng, 6, 45)
    data, p, s = body_waves(rng, medium, distance, depth, _sheared(rng, medium, corner, distance, depth))
    if rng.random() < 0.4:
        # They like to come in a row.
        repeats = np.zeros(SAMPLES)
        at = np.cumsum([0.0, *(log_uniform(rng, 0.4, 15) for _ in range(int(rng.integers(1, 6))))])
        for place in np.round(at * WINDOW_RATE_HZ).astype(int):
            repeats[min(place, SAMPLES - 1)] += 1.0 if place == 0 else rng.lognormal(-0.5, 0.7)
        data = convolve(data, fft.rfft(repeats))
    return Motion(data, p, s)


def rockfall(
    rng: np.random.Generator,
    distance_km: Range = (0.05, 1.5),
    duration_s: Range = (3, 60),
    impacts_hz: Range = (4, 60),
    at_once: float = 0.5,
) -> Motion:
    """Blocks that come off, fall, bounce and roll: impacts of all sizes, no clear phases. Either the rate swells and
    fades as a spindle, or, with the probability ``at_once``, most comes off at once and the rest trickles after it."""
    medium, distance = slope(rng), log_uniform(rng, *distance_km)
    duration = log_uniform(rng, *duration_s)
    if rng.random() < 1 - at_once:
        shape = _spindle(duration, rng.uniform(0.15, 0.6), rng.uniform(0.7, 2))
    else:
        after = np.maximum(TIMES - _START, 0)
        begin = np.clip(after / log_uniform(rng, 0.2, 3), 0, 1)
        shape = begin * ((1 + after / (0.1 * duration)) ** -rng.uniform(0.8, 2) + 0.3 * np.exp(-2 * after / duration))
    rate = log_uniform(rng, *impacts_hz) * shape
    # Where more comes down, larger pieces do.
    hits = np.abs(impulses(rng, rate, rng.uniform(0.9, 2.0))) * shape ** rng.uniform(0.2, 1.0)
    if rng.random() < 0.5:
        # The detachment, or the first free fall's landing, opens the sequence.
        hits[ONSET] += rng.uniform(3, 12)
    return Motion(_from_impacts(rng, medium, distance, hits, log_uniform(rng, 12, 80)))


def granular_flow(
    rng: np.random.Generator,
    distance_km: Range = (1, 200),
    duration_s: Range = (8, 140),
    force_hz: Range = (0.3, 5),
    most_surges: int = 6,
) -> Motion:
    """Rock or snow avalanche, large slide or fall, from near or tens of kilometres: emergent, surging, low frequencies,
    with a long-period push of the accelerating mass (Kawakatsu 1989; Ekstroem & Stark 2013).

    The power of the impacts follows the power that the mass loses (Hibert et al. 2011); on its way it is blurred by
    scattering.
    """
    medium, distance = crust(rng), log_uniform(rng, *distance_km)
    medium = _slowed(medium, rng.uniform(0.4, 0.9))
    duration = log_uniform(rng, *duration_s)
    power = _spindle(duration, rng.uniform(0.1, 0.6), rng.uniform(1, 5))
    for _ in range(int(rng.integers(0, most_surges + 1))):
        place, width = rng.uniform(0.0, 0.9) * duration, log_uniform(rng, 1, 12)
        power = power + rng.lognormal(0.3, 1.2) * np.exp(-(((TIMES - _START - place) / width) ** 2))
    power *= _START <= TIMES
    travel = distance / medium.vs_km_s
    lapse = TIMES + travel
    blur = diffuse_2d(lapse, distance, medium.vs_km_s, medium.scattering_km)
    blur *= np.exp(-2 * np.pi * 2.0 * TIMES / (medium.coda_q0 * 2.0**medium.q_power))
    blur[0] += np.exp(-medium.scattering_km * distance) * WINDOW_RATE_HZ
    envelope = np.sqrt(np.maximum(convolve(power, fft.rfft(blur)), 0)) * (_START <= TIMES)
    # Absorption is strong in the shallow rock in which surface waves run.
    weak = replace(medium, q0=medium.q0 * rng.uniform(0.3, 1.0))
    spectrum = impact(log_uniform(rng, *force_hz)) * loss(weak, travel) * site(medium)
    data = train(rng, envelope / envelope.max(), spectrum)
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
    medium = _slowed(medium, 0.5 + 0.5 * min(1.0, distance / 50))
    corner = corner_hz(rng.uniform(0.8, 3.2), log_uniform(rng, 0.02, 0.5), medium.vs_km_s)
    shear = log_uniform(rng, 0.3, 2.5)
    # A closing horizontal crack sends SV besides, and P inward in every direction.
    data, p, s = body_waves(
        rng, medium, distance, 0.3, Radiation(-1.0, 0.5 * shear, 0.0, 1.0, shear, corner, 0.8 * corner)
    )
    slow = rng.uniform(1.2, 2.6)
    at = ONSET + round(WINDOW_RATE_HZ * (distance / (1.3 * slow) - distance / medium.vp_km_s))
    peak = float(np.abs(data).max())
    data = data + peak * log_uniform(rng, 0.5, 4) * surface_wave(rng, distance, at, slow)
    rate = rng.uniform(1, 8) * _spindle(log_uniform(rng, 4, 25), 0.3, 1.0)
    falls = _from_impacts(rng, medium, distance, impulses(rng, rate, 1.5), log_uniform(rng, 3, 12))
    return Motion(data + peak * rng.uniform(0.05, 0.4) * falls / max(float(np.abs(falls).max()), 1e-30), p, s)


def _from_impacts(rng: np.random.Generator, medium: Medium, distance_km: float, hits: Array, corner: float) -> Array:
    """Impacts through the slope: each becomes a short scattered wave train, alike for all of one event."""
    spectrum = impact(corner) * loss(medium, distance_km / medium.vs_km_s) * site(medium)
    decay = 0.05 + 0.25 * distance_km / medium.vs_km_s
    responses = rng.standard_normal((3, SAMPLES)) * np.exp(-TIMES / decay) * (8 * decay > TIMES)
    # Every blow pushes downward, so that the part that does not scatter has the same sign each time.
    responses[2, 0] += rng.uniform(0, 3) * np.sqrt(decay * WINDOW_RATE_HZ)
    data = convolve(hits, fft.rfft(responses, axis=1) * spectrum)
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
            ("slopequake", slopequake, 0.20),
            ("rockfall", rockfall, 0.35),
            ("granular flow", granular_flow, 0.35),
            ("debris flow", debris_flow, 0.10),
        ),
    }
)
"""The subtypes of each label: name, what makes it, and its share of the label."""
