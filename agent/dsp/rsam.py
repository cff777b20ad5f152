"""RSAM: the mean absolute amplitude of a component, minute by minute (Endo & Murray 1991, Bull. Volcanol. 53).

Unlike a count of events it needs no trigger: it rises with tremor and with events that have grown together.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agent.types import NS

MINUTE_NS = 60 * NS
HOUR_MINUTES = 60
_DIGITS = 6
"""Significant ones that are reported: what follows is rounding, which differs between packets and files."""


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

    def take(self, filtered: NDArray[np.float64], first: int, time_ns: Callable[[int], int], rate_hz: float) -> None:
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
            mean = float(f"{self._sum / self._count:.{_DIGITS}g}")
            coverage = min(1.0, round(self._count / (60 * self._rate_hz), 3))
            self._kept.append(Minute(self._minute * MINUTE_NS, mean, coverage))
            self.minutes = tuple(self._kept)
        self._sum, self._count = 0.0, 0
