"""Whether what a sensor's channels record can be ground motion at all, from a few seconds of raw samples.

Only what no working sensor does counts: a number that never changes, two components with the same samples (or with
opposite signs), samples that were there before, as of a buffer that is sent again and again, motion that stands still
for a second, as where a recorder fills gaps, and a waveform that is cut off at the recorder's largest value.

``unevenness`` says no fault by itself: a quiet site is below the noise of many a recorder.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from itertools import combinations
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from agent.types import Samples

Fault: TypeAlias = Literal[
    "constant",
    "copies",
    "repeats",
    "filled",
    "clipped",
    "last_bit",
    "disconnected",
    "quieter_than_neighbours",
    "louder_than_neighbours",
    "quieter_than_usual",
    "louder_than_usual",
]
Flaw: TypeAlias = tuple[Fault, str]
"""What is wrong, and the code of the component with which it is."""

_LEAST_CHANGES = 20
"""Changes of the samples of two components from which on their equality is no chance."""
_REPEATED = 200
"""Samples that are the same as some before them: noise of less than a count may be so by chance for fewer."""
_MOVES = 4.0
"""Median change from sample to sample over the smallest one. In noise of a count or two equal samples are no wonder."""
_MOVING = 0.05
"""Share of the steps from sample to sample that are not zero: of an event's band nothing is left below it."""
_LEAST_SPAN = 64
"""Peak to peak, in counts, below which rounding itself makes flat tops."""
_LEAST_TOP = 8
"""Samples at the largest value, below which nothing is looked at."""
_LEAST_RUNS = 3
_JUMP = 0.02
"""Share of the peak-to-peak amplitude by which a clipped waveform meets its limit from one sample to the next."""

_OCTAVES_HZ = (1.0, 2.0, 4.0, 8.0, 16.0)
_UNDISTORTED = 0.4
"""Share of the sampling rate up to which an anti-alias filter lets pass what there is."""
_LEAST_S = 30.0


def inspect(recorded: Mapping[str, Samples]) -> frozenset[Flaw]:
    """The flaws in the same seconds of all components, raw samples ``[n]`` by component code."""
    flaws: set[Flaw] = set()
    varying: dict[str, Samples] = {}
    for letter, samples in recorded.items():
        bottom, top = int(samples.argmin()), int(samples.argmax())
        if samples[bottom] == samples[top]:
            flaws.add(("constant", letter))
            continue
        varying[letter] = samples
        span = float(samples[top]) - float(samples[bottom])
        if span >= _LEAST_SPAN and (_is_cut_off(samples, top, span) or _is_cut_off(samples, bottom, span)):
            flaws.add(("clipped", letter))
    for (one, first), (other, second) in combinations(varying.items(), 2):
        if _are_copies(first, second):
            flaws |= {("copies", one), ("copies", other)}
    return frozenset(flaws)


def repeats(samples: Samples) -> bool:
    """Whether the last samples were recorded before: a recorder that sends its last packets over and over."""
    last = samples[-_REPEATED:]
    if len(samples) <= _REPEATED or _changes(last) < _LEAST_CHANGES:
        return False
    alike = np.flatnonzero(samples[:-_REPEATED] == last[0])
    for place in range(1, _REPEATED):
        if not len(alike):
            return False
        alike = alike[samples[alike + place] == last[place]]
    return len(alike) > 0


@lru_cache(maxsize=8)
def _taper(count: int) -> NDArray[np.float64]:
    return np.hanning(count)


def unevenness(samples: NDArray[Any], rate_hz: float) -> NDArray[np.float64]:
    """The largest mean power density of the octaves from 1 to 16 Hz over the smallest, of each component's samples
    ``[components, n]``. The noise of electronics is white above 1 Hz: a minute of it has less than 2. What moves the
    ground has more. NaN: too little to tell."""
    components, count = samples.shape
    edges = [edge for edge in _OCTAVES_HZ if edge <= _UNDISTORTED * rate_hz]
    if count < _LEAST_S * rate_hz or len(edges) < len(_OCTAVES_HZ) - 1:
        return np.full(components, np.nan)
    spectrum = np.fft.rfft((samples - samples.mean(axis=1, dtype=np.float64, keepdims=True)) * _taper(count))
    at = [round(edge * count / rate_hz) for edge in edges]
    within = spectrum[:, at[0] : at[-1]]
    power = within.real**2 + within.imag**2
    octaves = np.add.reduceat(power, [low - at[0] for low in at[:-1]], axis=1) / np.diff(at)
    least = octaves.min(axis=1)
    found: NDArray[np.float64] = np.full(components, np.nan)
    np.divide(octaves.max(axis=1), least, out=found, where=least > 0)
    return found


def is_filled(samples: Samples, least: int) -> bool:
    """Whether the motion stands still for ``least`` samples and more, at a value that is not its extreme (that would be
    clipping), or nearly always: what comes has fewer samples than it claims, each repeated."""
    if _changes(samples) >= _MOVING * (len(samples) - 1) and not _stands_still(samples, least):
        return False
    steps = np.abs(np.diff(samples.astype(np.float64)))
    moving = steps[steps > 0]
    return len(moving) > 0 and bool(np.median(moving) >= _MOVES * moving.min())


def _stands_still(samples: Samples, least: int) -> bool:
    """Whether there are ``least`` steps of zero in a row, not at an extreme. They hold two neighbours of every half as
    many: to look at these first costs a hundredth."""
    apart = least // 2
    if apart:
        alike = samples[apart - 1 : -1 : apart] == samples[apart::apart]
        if not np.any(alike[1:] & alike[:-1]):
            return False
    edges = np.flatnonzero(np.diff((samples[1:] == samples[:-1]).astype(np.int8), prepend=0, append=0))
    begins, ends = edges[::2], edges[1::2]
    still = samples[begins[ends - begins >= least]]
    return bool(np.any((still > samples.min()) & (still < samples.max())))


def _are_copies(first: Samples, second: Samples) -> bool:
    if len(first) != len(second) or abs(float(first[0])) != abs(float(second[0])):
        return False
    return (np.array_equal(first, second) or np.array_equal(first, -second)) and _changes(first) >= _LEAST_CHANGES


def _changes(samples: Samples) -> int:
    return int(np.count_nonzero(samples[1:] != samples[:-1]))


def _is_cut_off(samples: Samples, at: int, span: float) -> bool:
    """Whether the waveform runs against its extreme, which it first has at sample ``at``, again and again and stays
    there for two samples and more. A smooth wave is flat at its top as well, once it is rounded to counts, but it comes
    there slowly."""
    at_top = samples == samples[at]
    if int(np.count_nonzero(at_top)) < _LEAST_TOP:
        return False
    edges = np.flatnonzero(np.diff(at_top.astype(np.int8), prepend=0, append=0))
    begins, ends = edges[::2], edges[1::2]
    long = ends - begins >= 2
    values = samples.astype(np.float64)
    before = np.abs(values[np.maximum(begins - 1, 0)] - values[begins])
    after = np.abs(values[np.minimum(ends, len(values) - 1)] - values[begins])
    return int(np.count_nonzero(long & (np.maximum(before, after) > _JUMP * span))) >= _LEAST_RUNS
