"""Where samples come from; one file a source, imported only when chosen."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

from agent.backoff import Throttle
from agent.types import NS, SampleBlock


@dataclass(frozen=True, slots=True)
class SourceProblem:
    """Something that a source had to skip or doubts: ``path`` is the file or address, ``hint`` what to do about it."""

    path: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" + (f"\n  hint: {self.hint}" if self.hint else "")


ProblemSink: TypeAlias = Callable[[SourceProblem], None]
"""Where a source reports problems that do not end it; called from the thread that consumes ``blocks()``."""


class Source(Protocol):
    """Anything that yields packets. One thread consumes ``blocks()``, once; any thread may call ``close()``."""

    def blocks(self) -> Iterator[SampleBlock]:
        """Packets as they come; ends when the source has no more or was closed.

        Raises:
            SourceError: the source cannot be used at all. Anything less goes to the source's ``ProblemSink``.
        """
        ...

    def close(self) -> None:
        """Make ``blocks()`` end promptly, also while it waits. May be called more than once."""
        ...


@runtime_checkable
class Resumable(Protocol):
    """A source that goes on after a restart with what was not done with. ``tests/contract/test_sources.py`` has what
    each of them must hold."""

    def acknowledge(self, block: SampleBlock) -> None:
        """Note that a block is done with: what it gave rise to is on disk, and no restart will need it again.

        Its channel and its origin count; its samples may have been let go. It stands for all earlier blocks of its
        channel from the same place, so that some may be left out. Channels, places and connections do not wait for each
        other. Called from another thread than ``blocks()``, also after ``blocks()`` has ended; must not block.
        """
        ...

    @property
    def in_flight(self) -> int:
        """Packets handed on and not done with, as far as they are remembered; never more than a fixed bound."""
        ...


@runtime_checkable
class Counting(Protocol):
    """A source that counts what it received and what it dropped."""

    def counters(self) -> dict[str, int]:
        """Since the start, by name, for the health report. Any thread may ask."""
        ...


@runtime_checkable
class Telling(Protocol):
    """A source that knows what is wrong with it at present."""

    def problems(self) -> list[str]:
        """What is wrong now, a line each, for the health report; empty if all is well. Any thread may ask."""
        ...


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


LONGEST_SILENCE_S = 600
"""A longer stretch without any data (seconds of data time) is skipped: nobody waits a year between two files."""


class Pacer:
    """Holds packets back until they are due: ``speed`` seconds of data pass in one second of the monotonic clock.

    All due times are counted from one anchor, so delays do not add up; a consumer that fell behind catches up.
    With ``speed`` 0 nothing is ever held back.
    """

    def __init__(self, speed: float, stop: threading.Event) -> None:
        self._speed = speed
        self._stop = stop
        self._data_ns = 0
        self._clock_ns: int | None = None
        self._last_ns = 0

    def wait(self, data_ns: int) -> None:
        """Return once ``data_ns`` has come, or at once when ``stop`` is set."""
        if not self._speed:
            return
        now = time.monotonic_ns()
        if self._clock_ns is None or data_ns - self._last_ns > LONGEST_SILENCE_S * NS:
            self._data_ns, self._clock_ns = data_ns, now
        self._last_ns = max(self._last_ns, data_ns)
        delay_ns = self._clock_ns + (data_ns - self._data_ns) / self._speed - now
        if delay_ns > 0:
            self._stop.wait(delay_ns / NS)
