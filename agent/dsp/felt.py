"""At which levels a component has recorded ground motion: what tells a quiet site from a missing sensor."""

from __future__ import annotations

import math
from collections import deque

STEPS_A_DAY = 8640
"""Ten seconds each."""


class Felt:
    """The levels of the last day, by component: those that are less than all after them."""

    def __init__(self) -> None:
        self._known: dict[str, deque[tuple[int, float]]] = {}
        """Number of the step, and level."""

    def note(self, letter: str, number: int, level: float) -> None:
        """A component was moved in the minute up to a step, at this level."""
        known = self._known.setdefault(letter, deque())
        while known and (known[-1][1] >= level or known[-1][0] > number):
            known.pop()
        while known and known[0][0] <= number - STEPS_A_DAY:
            known.popleft()
        if level:
            known.append((number, level))

    def least(self, letter: str, since: int) -> float:
        """The least level after a step; infinite where none is known."""
        return next((level for at, level in self._known.get(letter, ()) if at > since), math.inf)

    def clear(self) -> None:
        """Forget everything."""
        self._known.clear()
