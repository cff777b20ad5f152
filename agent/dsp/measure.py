"""Numbers about a signal that an operator reads: how strong, at which frequency, above which noise; and RSAM.

RSAM is the mean absolute amplitude of a component, minute by minute (Endo & Murray 1991, Bull. Volcanol. 53). Unlike a
count of events it needs no trigger: it rises with tremor and with events that have grown together.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.types import NS, Samples, Segment

SETTLE_NS = 5 * NS
"""Signal at the beginning of a run in which the band-pass settles."""
NOISE_S = 120.0
"""Signal before an onset in which the sensor's noise is looked for, seconds."""
LEAST_S = 10
QUIET_SHARE = 0.2
MINUTE_NS = 60 * NS
HOUR_MINUTES = 60
_DIGITS = 6
"""Significant ones that are reported, see ``_rounded``."""


def measure(runs: Iterable[Segment], span_ns: tuple[int, int]) -> tuple[float, float | None]:
    """Return peak amplitude (counts) and frequency of the spectral maximum (Hz) in ``span_ns``.

    ``runs`` are gap-free pieces of any components, band-passed. The frequency is that of the strongest piece, None
    where it has fewer than eight samples.
    """
    peak, strongest = 0.0, None
    for run in runs:
        first = max(0, round((span_ns[0] - run.start_ns) * run.rate_hz / NS))
        signal = run.samples[first : max(0, round((span_ns[1] - run.start_ns) * run.rate_hz / NS))]
        if len(signal) == 0:
            continue
        largest = max(float(signal.max()), -float(signal.min()))
        if largest > peak:
            peak, strongest = largest, (signal, run.rate_hz)
    if strongest is None or len(strongest[0]) < 8:
        return _rounded(peak), None
    return _rounded(peak), _dominant_hz(*strongest)


def quiet_level(components: Iterable[Iterable[Segment]], onset_ns: int) -> float | None:
    """Return the sensor's own noise before an onset, counts: of the largest component, of band-passed samples.

    The mean absolute amplitude of each second of the ``NOISE_S`` before the onset is taken; a fifth of the seconds are
    quieter than the result, so that earlier events in that span do not count as noise. None where fewer than
    ``LEAST_S`` seconds were recorded.
    """
    levels = []
    for runs in components:
        seconds = np.concatenate([np.empty(0), *(_seconds(run, onset_ns) for run in runs)])
        if len(seconds) >= LEAST_S:
            levels.append(_quantile(seconds, QUIET_SHARE))
    return _rounded(max(levels)) if levels else None


def _seconds(run: Segment, onset_ns: int) -> NDArray[Any]:
    """Mean absolute amplitudes of the run's whole seconds, counted back from a second before the onset. The first
    seconds of a run are those of a filter that settles."""
    rate = run.rate_hz
    first = max(0, round((onset_ns - NOISE_S * NS - SETTLE_NS - run.start_ns) * rate / NS))
    last = min(len(run.samples), round((onset_ns - NS - run.start_ns) * rate / NS))
    size, settle = max(1, round(rate)), round(SETTLE_NS * rate / NS)
    count = (last - first - settle) // size
    if count <= 0:
        return np.empty(0)
    amplitude = np.abs(run.samples[last - count * size : last]).reshape(count, size)
    sums: NDArray[Any] = np.add.reduce(amplitude, axis=1)
    levels: NDArray[Any] = sums / np.float64(size)
    return levels


def _rounded(counts: float) -> float:
    """What follows is rounding, which differs between packets and files."""
    return float(f"{counts:.{_DIGITS}g}")


def _quantile(values: NDArray[np.float64], share: float) -> float:
    """As ``numpy.quantile`` has it, which takes longer for this than the filter for the samples."""
    place = share * (len(values) - 1)
    below = int(place)
    low, high = np.sort(values)[below : below + 2].tolist()
    return float(low + (high - low) * (place - below))


def _dominant_hz(signal: Samples, rate_hz: float) -> float:
    spectrum = np.abs(np.fft.rfft(signal * np.hanning(len(signal))))
    return float(np.argmax(spectrum[1:]) + 1) * rate_hz / len(signal)


@dataclass(frozen=True, slots=True)
class Minute:
    """``mean_counts`` of the band-passed samples in the minute of data time that begins at ``start_ns``, and what share
    of that minute they are."""

    start_ns: int
    mean_counts: float
    coverage: float


class Rsam:
    """Fed by the pipeline; ``minutes`` may be read from any thread: it is replaced, never changed."""

    def __init__(self) -> None:
        self.minutes: tuple[Minute, ...] = ()
        """The last hour's complete minutes that had samples, in the order in which they came."""
        self._kept: deque[Minute] = deque(maxlen=HOUR_MINUTES)
        self._minute = -1
        self._sum = 0.0
        self._count = 0
        self._rate_hz = 1.0
        self._due = self._until = -1
        """Numbers of the next sample, and of the first one of the next minute."""

    def feed(self, filtered: NDArray[np.float64], first: int, time_ns: Callable[[int], int], rate_hz: float) -> None:
        """Consecutive samples, counts; ``time_ns`` gives the time of a sample's number, ``first`` is that of the first.

        A minute is complete when a sample of another one comes.
        """
        amplitude, begin, count = np.abs(filtered), 0, len(filtered)
        if first == self._due and first + count <= self._until:
            # Most packets lie within the minute that has begun.
            self._sum += float(np.add.reduce(amplitude))
            self._count += count
            self._due += count
            return
        self._rate_hz = rate_hz
        while begin < count:
            now_ns = time_ns(first + begin)
            minute = now_ns // MINUTE_NS
            left = math.ceil(((minute + 1) * MINUTE_NS - now_ns) * rate_hz / NS)
            end = min(count, begin + max(1, left))
            if minute != self._minute:
                self._close()
                self._minute = minute
            self._sum += float(np.add.reduce(amplitude[begin:end]))
            self._count += end - begin
            self._until = first + begin + max(1, left)
            begin = end
        self._due = first + count

    def follow(self, earlier: Rsam) -> None:
        """Take over the minutes of another meter; of a minute that both have, the one that is better covered."""
        best = {minute.start_ns: minute for minute in earlier.minutes}
        for minute in self._kept:
            if minute.start_ns not in best or minute.coverage >= best[minute.start_ns].coverage:
                best[minute.start_ns] = minute
        self._kept = deque((best[start_ns] for start_ns in sorted(best)), maxlen=HOUR_MINUTES)
        self.minutes = tuple(self._kept)

    def _close(self) -> None:
        if self._count:
            mean = _rounded(self._sum / self._count)
            coverage = min(1.0, round(self._count / (60 * self._rate_hz), 3))
            self._kept.append(Minute(self._minute * MINUTE_NS, mean, coverage))
            self.minutes = tuple(self._kept)
        self._sum, self._count = 0.0, 0
