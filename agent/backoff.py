"""Waiting times that double, a log that does not repeat itself, and a rate limit."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

_K = TypeVar("_K", bound=Hashable)


def delays(minimum_s: float, maximum_s: float) -> Iterator[float]:
    """Waiting times that double up to a maximum, each with jitter so that a fleet does not return at once."""
    ceiling = minimum_s
    while True:
        yield ceiling * random.uniform(0.5, 1.0)  # noqa: S311
        ceiling = min(maximum_s, ceiling * 2)


class Backoff(Generic[_K]):
    """The things that are not to be tried again yet; each further failure of one doubles its wait. For one thread."""

    def __init__(self, minimum_s: float, maximum_s: float) -> None:
        self._minimum_s, self._maximum_s = minimum_s, maximum_s
        self._until: dict[_K, tuple[float, float]] = {}

    def add(self, thing: _K) -> float:
        """Make it wait, unless it waits already; returns for how many seconds."""
        now = time.monotonic()
        until, last = self._until.get(thing, (0.0, 0.0))
        if until > now:
            return until - now
        seconds = min(self._maximum_s, max(self._minimum_s, 2 * last))
        self._until[thing] = (now + seconds, seconds)
        return seconds

    def lift(self, thing: _K) -> None:
        """Forget its failures after a success: the next wait is short again."""
        self._until.pop(thing, None)

    def clear(self) -> None:
        """Forget all failures."""
        self._until.clear()

    def active(self) -> list[_K]:
        """The things that wait now. One that did not fail again for ten times its last wait is forgotten."""
        now = time.monotonic()
        for thing in [thing for thing, (until, seconds) in self._until.items() if now > until + 10 * seconds]:
            del self._until[thing]
        return [thing for thing, (until, _) in self._until.items() if until > now]


class Throttle:
    """Lets each kind of thing through at once, and then not again for ``every_s``. For one thread."""

    def __init__(self, every_s: float = 300.0, most: int = 1000) -> None:
        """``most``: kinds that are remembered; beyond it all are forgotten."""
        self._every_s, self._most = every_s, most
        self._seen: dict[Hashable, tuple[float, int]] = {}

    def passes(self, kind: Hashable) -> int | None:
        """How many of a kind were held back since the last one that passed; None where this one is held back too."""
        now = time.monotonic()
        at, held_back = self._seen.get(kind, (-math.inf, 0))
        if now - at < self._every_s:
            self._seen[kind] = (at, held_back + 1)
            return None
        if len(self._seen) >= self._most:
            self._seen.clear()
        self._seen[kind] = (now, 0)
        return held_back

    def reset(self) -> None:
        """Forget what passed: the next of any kind passes at once."""
        self._seen.clear()


class ThrottledLog:
    """Writes the same warning at once and then at most every five minutes, with the number of those left out."""

    def __init__(self, say: Callable[[str], object]) -> None:
        self._say, self._throttle = say, Throttle()

    def warn(self, text: str, key: str | None = None) -> None:
        """Write ``text``, unless one with the same ``key`` (else the same text) was written a short while ago."""
        unsaid = self._throttle.passes(text if key is None else key)
        if unsaid is not None:
            self._say(f"{text} (and {unsaid} times before)" if unsaid else text)

    def reset(self) -> None:
        """Forget what was written: the next warning of any kind is written at once."""
        self._throttle.reset()


class RateLimit:
    """Allows ``per_min`` actions a minute, all at once after a minute without any. For one thread."""

    def __init__(self, per_min: int) -> None:
        self.per_min = per_min
        self._left, self._at = float(per_min), 0.0

    def allow(self, now: float) -> bool:
        """Use one action up at ``now`` (the monotonic clock, s); whether there was one left."""
        self._left = min(self.per_min, self._left + (now - self._at) * self.per_min / 60.0)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
