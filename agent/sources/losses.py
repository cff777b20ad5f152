"""What a live source drops: counted by reason, and told without flooding anyone."""

from __future__ import annotations

from agent.sources import ProblemSink, SourceProblem


class Losses:
    """Counters that any thread may read while the source's own thread counts.

    A reason is told at its first loss and whenever its count has grown tenfold.
    """

    def __init__(self, where: str, on_problem: ProblemSink) -> None:
        self._where, self._on_problem = where, on_problem
        self._counts: dict[str, int] = {}
        self._bytes: dict[str, int] = {}

    def count(self, reason: str, size: int, what: str, hint: str, number: int = 1) -> None:
        """``number`` things of together ``size`` bytes were dropped.

        ``reason`` names the counter; ``what`` and ``hint`` are the words for it.
        """
        before = self._counts.get(reason, 0)
        self._counts[reason] = before + number
        self._bytes[reason] = self._bytes.get(reason, 0) + size
        if len(str(before + number)) > len(str(before)) or before == 0:
            times = "" if before + number == 1 else f" ({before + number} times so far)"
            self._on_problem(SourceProblem(self._where, f"{what}{times}", hint))

    @property
    def total(self) -> int:
        """How many things were dropped, for whatever reason."""
        return sum(self._counts.values())

    def counters(self) -> dict[str, int]:
        """``REASON`` and ``REASON_bytes`` for each reason that has occurred."""
        return {**self._counts, **{f"{reason}_bytes": size for reason, size in self._bytes.copy().items()}}
