"""What a live source drops: counted by reason, and reported at most every few minutes."""

from __future__ import annotations

from collections import Counter

from agent.backoff import Throttle
from agent.sources import ProblemSink, SourceProblem


class Losses:
    """Counters that any thread may read while the source's own thread counts."""

    def __init__(self, where: str, on_problem: ProblemSink) -> None:
        self._where, self._on_problem = where, on_problem
        self._counts: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()
        self._throttle = Throttle()

    def count(self, reason: str, size: int, what: str, hint: str, number: int = 1) -> None:
        """``number`` things of together ``size`` bytes were dropped.

        ``reason`` names the counter; ``what`` and ``hint`` are the words for it.
        """
        self._counts[reason] += number
        self._bytes[reason] += size
        if self._throttle.passes(reason) is not None:
            times = "" if self._counts[reason] == 1 else f" ({self._counts[reason]} times so far)"
            self._on_problem(SourceProblem(self._where, f"{what}{times}", hint))

    def counters(self) -> dict[str, int]:
        """``REASON`` and ``REASON_bytes`` for each reason that has occurred."""
        return {**self._counts, **{f"{reason}_bytes": size for reason, size in self._bytes.copy().items()}}
