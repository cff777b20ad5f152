"""From a ratio to triggers: on at one threshold, off at a lower one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Rise:
    """A trigger began at sample ``onset`` with this ratio."""

    onset: int
    ratio: float


@dataclass(frozen=True, slots=True)
class Fall:
    """The trigger that began at ``onset`` ended; ``last`` is its last sample at or above the off threshold."""

    onset: int
    last: int
    peak: float


Change: TypeAlias = Rise | Fall


class _State(Enum):
    IDLE = auto()
    ON = auto()
    FALLING = auto()
    """Below off, but a new rise would still be part of the same trigger."""
    SPENT = auto()
    """Ended by its length: the ratio has to fall below the on threshold before it can rise again."""


class OnOff:
    """Thresholds with hysteresis over a numbered series that comes in pieces.

    On at the first ratio ``>= on``, over at the last one ``>= off``, as ``obspy.signal.trigger.trigger_onset``; with
    ``merge`` = 0 and ``longest`` as its ``max_len``, the results are the same (tested).
    """

    def __init__(self, on: float, off: float, merge: int, longest: int) -> None:
        """``merge``: samples after the end within which a rise continues the trigger; ``longest``: samples after the
        onset at which it ends in any case."""
        self._on, self._off = on, off
        self._merge, self._longest = merge, longest
        self._state = _State.IDLE
        self._onset = self._last = 0
        self._peak = self._newest = 0.0

    def feed(self, first: int, ratio: Array) -> Sequence[Change]:
        """Take the next ratios ``[n]``, the first with number ``first``. Numbers must rise; those left out are no
        data, see ``absent``. A ratio that is not finite is taken for 0."""
        largest = ratio[ratio.argmax()]
        if self._state is _State.IDLE and largest < self._on:
            return ()
        if not largest < np.inf:
            ratio = np.nan_to_num(ratio, nan=0.0, posinf=0.0, neginf=0.0)
        found: list[Change] = []
        at = 0
        while at < len(ratio):
            if self._state is _State.IDLE:
                at += self._idle(first + at, ratio[at:], found)
            elif self._state is _State.ON:
                at += self._triggered(first + at, ratio[at:], found)
            elif self._state is _State.FALLING:
                at += self._falling(first + at, ratio[at:], found)
            else:
                at += _leading(ratio[at:] >= self._on)
                if at < len(ratio):
                    self._state = _State.IDLE
        return found

    def absent(self, first: int, count: int) -> Sequence[Change]:
        """There are no ratios for these samples; the same as ratios of zero."""
        found: list[Change] = []
        if self._state is _State.ON:
            self._state = _State.FALLING
        elif self._state is _State.SPENT:
            self._state = _State.IDLE
        if self._state is _State.FALLING and first + count > self._last_rise() + 1:
            self._end(found)
        return found

    def flush(self) -> Sequence[Change]:
        """The series ends: so does a trigger."""
        found: list[Change] = []
        if self._state in {_State.ON, _State.FALLING}:
            self._end(found)
        self._state = _State.IDLE
        return found

    def _idle(self, first: int, ratio: Array, found: list[Change]) -> int:
        quiet = _leading(ratio < self._on)
        if quiet < len(ratio):
            self._state = _State.ON
            self._onset = first + quiet
            self._peak = float(ratio[quiet])
            found.append(Rise(self._onset, self._peak))
        return quiet

    def _triggered(self, first: int, ratio: Array, found: list[Change]) -> int:
        high = _leading(ratio >= self._off)
        allowed = self._onset + self._longest + 1 - first
        inside = min(high, allowed)
        if inside:
            self._peak = max(self._peak, float(ratio[:inside].max()))
            self._newest = float(ratio[inside - 1])
            self._last = first + inside - 1
        if high > allowed:
            self._end(found)
            if self._newest >= self._on:
                self._state = _State.SPENT
        elif high < len(ratio):
            self._state = _State.FALLING
        return inside

    def _falling(self, first: int, ratio: Array, found: list[Change]) -> int:
        open_for = max(0, self._last_rise() + 1 - first)
        quiet = _leading(ratio[:open_for] < self._on)
        if quiet < min(open_for, len(ratio)):
            self._state = _State.ON
        elif open_for < len(ratio):
            self._end(found)
        return quiet

    def _last_rise(self) -> int:
        """Number of the last sample at which a rise continues the trigger."""
        return min(self._last + self._merge, self._onset + self._longest)

    def _end(self, found: list[Change]) -> None:
        found.append(Fall(self._onset, self._last, self._peak))
        self._state = _State.IDLE


def _leading(condition: NDArray[np.bool_]) -> int:
    """How many values at the beginning are true."""
    if len(condition) == 0:
        return 0
    first_false = int(condition.argmin())
    return first_false if not condition[first_false] else len(condition)
