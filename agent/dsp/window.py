"""The one preparation of the network's input, for training and for the station alike.

Follows PRIME-DP's convention (per component: demean, divide by the maximum, zeros where there is nothing), at 100 Hz
with the onset at sample 2048. ``Preparation`` adds one thing that a quantised network needs, see its text.

Other sampling rates are interpolated, band-limited: no aliasing going down, no images going up. Each output is a
windowed-sinc sum over the input samples around it (Smith & Gossett 1984, "A flexible sampling-rate conversion method"),
evaluated at that output's own time, so any ratio and any sub-sample offset is served.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.dsp.sos import LONG_AT_ONCE, SosFilter, butterworth
from agent.types import NS, WINDOW_ONSET, WINDOW_RATE_HZ, WINDOW_SAMPLES, Samples, Segment, Window

Array = NDArray[np.float64]
_LOBES = 12
"""Zero crossings on each side of the kernel."""
_BETA = 8.0
"""Kaiser window: about 80 dB of stop-band rejection."""
_ROLL_OFF = 0.9
"""Pass-band edge as a share of the lower Nyquist frequency; with 12 lobes the stop band begins near that frequency."""
_PHASES = 256
"""Sub-sample positions that kernels are tabulated for; half a step is 1/512 of a sample."""
BEFORE_NS = WINDOW_ONSET * NS // WINDOW_RATE_HZ
AFTER_NS = (WINDOW_SAMPLES - WINDOW_ONSET) * NS // WINDOW_RATE_HZ
WARM_UP_NS = 5 * NS
"""Signal before the window that settles the high-pass, where it was recorded."""
_DEAD = 1e-9
_INTEGERS = 2.0**31
"""Largest sample of a recorder that gives integers."""
_NO_SAMPLES: Array = np.empty(0)
FAINT = 1 / 200
"""A component whose peak is a smaller share of the strongest one's is masked: no ground moves so. Of 1185 real records
of two or three components the most uneven has 1 / 90; of a dying sensor only the digitiser's last bits are left."""


def interpolate(x: Array, rate_hz: float, first_s: float, count: int, out_rate_hz: float) -> Array:
    """Values of ``x`` (``[n]``, its first sample at time 0) at times ``first_s + k / out_rate_hz``, ``k < count``."""
    kernels = _kernels(min(1.0, out_rate_hz / rate_hz) * _ROLL_OFF)
    taps = kernels.shape[1]
    half = taps // 2
    position = (first_s + np.arange(count) / out_rate_hz) * rate_hz
    step = np.rint(position * _PHASES).astype(np.int64)
    whole, phase = np.divmod(step, _PHASES)
    # Kernel tap j of output k falls on input sample whole[k] - half + 1 + j.
    low = int(whole[0]) - half + 1
    high = int(whole[-1]) + half + 1
    padded = _extended(x, low, high)
    spans = np.lib.stride_tricks.sliding_window_view(padded, taps)
    out = np.empty(count)
    rows = whole - whole[0]
    for p in np.unique(phase):
        chosen = phase == p
        out[chosen] = spans[rows[chosen]] @ kernels[p]
    return out


def _extended(x: Array, low: int, high: int) -> Array:
    """``x[low:high]`` where the ends stick out: point reflections of the signal about its end samples.

    A kernel that overhangs the record would otherwise see a step there, and its ringing could be the window's maximum.
    """
    n = len(x)
    index = np.arange(low, high)
    before, after = index < 0, index >= n
    mirrored = np.clip(np.where(before, -index, np.where(after, 2 * (n - 1) - index, index)), 0, n - 1)
    out: Array = x[mirrored]
    out[before] = 2 * x[0] - out[before]
    out[after] = 2 * x[-1] - out[after]
    return out


@lru_cache(maxsize=16)
def _kernels(cutoff: float) -> Array:
    """Table ``[phases, taps]``; ``cutoff`` is the pass-band edge as a share of the input's Nyquist frequency."""
    half = int(np.ceil(_LOBES / cutoff))
    offset = np.arange(-half + 1, half + 1)[None, :] - np.arange(_PHASES)[:, None] / _PHASES
    inside = np.clip(1 - (offset / half) ** 2, 0, None)
    kernel = np.sinc(offset * cutoff) * np.i0(_BETA * np.sqrt(inside)) * (np.abs(offset) <= half)
    # Unit gain at 0 Hz for every phase: a constant stays a constant, without ripple.
    return np.ascontiguousarray(kernel / kernel.sum(axis=1, keepdims=True))


@dataclass(frozen=True, slots=True)
class Preparation:
    """What a model wants done to its input beyond the fixed convention; stands in its manifest.

    ``highpass_hz``: corner of a causal Butterworth high-pass of ``highpass_order``, None for none. Ocean microseism and
    drift often exceed a micro-earthquake; scaled to its own maximum such a window leaves the event less than one INT8
    step.
    """

    highpass_hz: float | None = None
    highpass_order: int = 2


class HighPassed:
    """The high-passed samples of one event's windows, which grow from verdict to verdict: what was filtered for one is
    not filtered again for the next."""

    def __init__(self, onset_ns: int) -> None:
        self.onset_ns = onset_ns
        self._runs: dict[tuple[int, Preparation, int, float], tuple[SosFilter, Array]] = {}
        """By row, preparation, time of the first sample, and rate."""

    def of(self, row: int, preparation: Preparation, run: Segment, first: int, last: int) -> NDArray[Any]:
        """Samples ``first`` to ``last - 1`` of a run; those of an earlier call with the same ``first`` are a part of
        these."""
        corner, rate = preparation.highpass_hz, run.rate_hz
        x: NDArray[Any] = run.samples[first:last]
        if corner is None or corner >= rate / 2:
            return x
        key = row, preparation, run.start_ns + round(first * NS / rate), rate
        stream, done = self._runs.get(key, (None, np.empty(0)))
        if stream is None:
            stream = SosFilter(butterworth(corner, None, rate, preparation.highpass_order), long=LONG_AT_ONCE)
        if len(done) < len(x):
            more = stream.process(x[len(done) :])
            done = np.concatenate([done, more]) if len(done) else more
            self._runs[key] = stream, done
        return done[: len(x)]


def prepare(
    segments: Mapping[int, Sequence[Segment]],
    onset_ns: int,
    seconds: float,
    preparation: Preparation,
    passed: HighPassed | None = None,
) -> Window:
    """Build the input from gap-free runs of samples per row (0 E, 1 N, 2 Z; missing rows stay zero).

    Only samples in ``[onset - 20.48 s, onset + min(seconds, 81.92 s))`` enter, whatever else is given; before that, up
    to five seconds settle the high-pass. Samples at 100 Hz go to the nearest grid point (at most 5 ms off), any other
    rate is interpolated without aliasing. A constant or absent component is all zero, and so is one that is faint
    beside the others (``FAINT``): scaled to its own maximum a dead sensor's noise would look like any motion. Samples
    must be finite. ``passed`` is what the event's earlier windows were made with.
    """
    passed = passed or HighPassed(onset_ns)
    begin = onset_ns - BEFORE_NS
    until = onset_ns + min(round(seconds * NS), AFTER_NS)
    wanted = min(WINDOW_SAMPLES, max(1, -(-(until - begin) * WINDOW_RATE_HZ // NS)))
    data = np.zeros((3, WINDOW_SAMPLES), dtype=np.float32)
    coverage = [0.0, 0.0, 0.0]
    peaks = [0.0, 0.0, 0.0]
    gap_s = 0.0
    for row, runs in segments.items():
        found = (_on_grid(run, (begin, until), wanted, partial(passed.of, row, preparation)) for run in runs)
        placed = [(first, samples) for first, samples in found if len(samples)]
        if not placed:
            continue
        where: slice | NDArray[np.bool_] = slice(placed[0][0], placed[0][0] + len(placed[0][1]))
        kept, count = placed[0][1], len(placed[0][1])
        if len(placed) > 1:
            values, where = np.zeros(wanted), np.zeros(wanted, dtype=bool)
            for first, samples in placed:
                values[first : first + len(samples)] = samples
                where[first : first + len(samples)] = True
            kept, count = values[where], int(np.count_nonzero(where))
            recorded = np.flatnonzero(where)
            gap_s = max(gap_s, (int(recorded[-1] - recorded[0]) + 1 - count) / WINDOW_RATE_HZ)
        coverage[row] = count / wanted
        kept = kept - np.add.reduce(kept, dtype=np.float64) / count
        peak = max(float(kept.max()), -float(kept.min()))
        if _is_moving(peak, runs):
            data[row, :wanted][where] = kept / peak
            peaks[row] = peak
    if min(peaks) < FAINT * max(peaks):
        data[[peak < FAINT * max(peaks) for peak in peaks]] = 0.0
    return Window(data, onset_ns, seconds, (coverage[0], coverage[1], coverage[2]), gap_s)


def _is_moving(peak: float, runs: Sequence[Segment]) -> bool:
    """A dead channel is constant up to rounding; divided by that rounding it would look alive."""
    if peak > _DEAD * _INTEGERS and all(run.samples.dtype.kind in "iu" for run in runs):
        return True  # without a look at the samples
    return peak > _DEAD * max(_largest(run.samples) for run in runs if len(run.samples))


def _largest(samples: Samples) -> float:
    """Absolute value; of the least int32, which a recorder at its stop gives, there is none in its own type."""
    return max(-float(samples.min()), float(samples.max()))


def _on_grid(
    run: Segment, span_ns: tuple[int, int], wanted: int, high_passed: Callable[[Segment, int, int], NDArray[Any]]
) -> tuple[int, NDArray[Any]]:
    """What a run brings to a grid of ``wanted`` samples, filtered, and the number of the first."""
    begin, until = span_ns
    rate = run.rate_hz
    # First sample at or after the warm-up's start, and one past the last before the end: integer arithmetic on the
    # sample index, with half a sample's tolerance for time stamps that are rounded.
    first = max(0, round((begin - WARM_UP_NS - run.start_ns) * rate / NS))
    last = min(len(run.samples), round((until - run.start_ns) * rate / NS))
    if last <= first:
        return 0, _NO_SAMPLES
    x = high_passed(run, first, last)
    start_s = (run.start_ns - begin) / NS + first / rate
    at_grid_rate = abs(rate - WINDOW_RATE_HZ) * len(x) / rate < 0.5
    if at_grid_rate:
        index = round(start_s * WINDOW_RATE_HZ)
        skip = max(0, -index)
        return index + skip, x[skip : wanted - index]
    k0 = max(0, int(np.ceil(start_s * WINDOW_RATE_HZ - 1e-6)))
    k1 = min(wanted, int(np.floor((start_s + (len(x) - 1) / rate) * WINDOW_RATE_HZ + 1e-6)) + 1)
    if k1 <= k0:
        return 0, _NO_SAMPLES
    x = np.asarray(x, dtype=np.float64)
    return k0, interpolate(x, rate, k0 / WINDOW_RATE_HZ - start_s, k1 - k0, WINDOW_RATE_HZ)
