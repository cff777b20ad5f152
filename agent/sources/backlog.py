"""Which data of a folder are too old to be processed as if they were live.

Whenever a file appears, at the start of the agent, with a disk that is mounted late, out of a backup, what counts is
the age of the data: the times in the records against this machine's clock. What is older than ``backlog_s`` is taken as
read. Two cases need more than that:

- The clock is not set (``agent.host.clock``). Files that were never seen wait for it, ``WAIT_S`` at most; then what is
  there is taken as read, and later data are compared with the newest that were there.
- The recorder's clock is wrong. Data that grow at the pace at which they are recorded are live whatever their times
  say, and so are those of a file just written whose times are off by a multiple of 1024 weeks (a GPS week rollover).
"""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from agent.host.clock import MachineClock
from agent.host.data_age import ROLLOVER_S, rollovers, span
from agent.sources import ProblemSink, SourceProblem
from agent.types import NS, counted, format_ns

WAIT_S = 120.0
AHEAD_S = 3600.0
"""Data further in the future say of a clock that nothing synchronises that it is behind."""
MAX_FILES = 4096
"""Files with old data whose growth is followed."""
TOLD_S = 30.0
"""Old data are told of at once, and then at growing intervals, from this to ``TOLD_MOST_S``."""
TOLD_MOST_S = 3600.0

File: TypeAlias = "tuple[bytes, Path]"


@dataclass(slots=True)
class _Growth:
    """When a file's newest record that was taken as read was met (monotonic), and the time at which it ends."""

    met_s: float
    end_ns: int


@dataclass(slots=True)
class _Passed:
    """What was taken as read and not told of yet."""

    files: set[Path] = field(default_factory=set)
    size: int = 0
    first_ns: int = 1 << 63
    last_ns: int = 0


class Backlog:
    """For one source's thread; ``problem`` and ``counters`` for any."""

    def __init__(self, where: str, backlog_s: float, clock: MachineClock, on_problem: ProblemSink) -> None:
        self._where, self._backlog_s, self._clock, self._on_problem = where, backlog_s, clock, on_problem
        self._begun_s = time.monotonic()
        self._newest_ns: int | None = None
        """End of the newest record met so far ..."""
        self._reference_ns: int | None = None
        """... and as of the begin of this pass."""
        self._growth: OrderedDict[File, _Growth] = OrderedDict()
        self._passed = _Passed()
        self._told_s, self._pause_s = -TOLD_MOST_S, TOLD_S
        self._met: tuple[float, int] | None = None
        """When old data were met last (monotonic), and the end of the newest of them."""
        self._pieces = self._bytes = 0

    def begin_pass(self) -> None:
        """Files are going to be looked at: what is in them is compared with what was there before."""
        self._reference_ns = self._newest_ns

    def is_recent(self, path: Path) -> bool:
        """Whether a file was written within the backlog, or may have been; without a clock that is set all were."""
        moment = self._clock.now()
        try:
            return not moment.is_set or (moment.ns - path.stat().st_mtime_ns) / NS <= self._backlog_s
        except OSError:
            return True  # the attempt to read it says more

    def waits(self) -> bool:
        """Whether files that were never seen are left alone for now, as their age cannot be told yet."""
        return not self._clock.now().is_set and time.monotonic() - self._begun_s < WAIT_S

    def is_unknown(self, newest_ns: int) -> bool:
        """Whether the age of a file that was never seen cannot be told: nothing says what time it is now."""
        return self._now_ns(newest_ns) is None

    def _now_ns(self, newest_ns: int) -> int | None:
        """What time it is, for data up to ``newest_ns``: by the clock, or where it cannot be right the newest data of
        before this pass; None where there were none."""
        moment = self._clock.now()
        is_behind = moment.trust == "unsynchronised" and newest_ns - moment.ns > AHEAD_S * NS
        return self._reference_ns if is_behind or not moment.is_set else moment.ns

    def is_past(self, newest_ns: int, written_ns: int) -> bool:
        """Whether data up to this time, in a file last written at ``written_ns``, are older than the backlog."""
        moment, now_ns = self._clock.now(), self._now_ns(newest_ns)
        if now_ns is None:
            return False
        age_s = (now_ns - newest_ns) / NS
        if age_s > self._backlog_s and moment.is_set and (moment.ns - written_ns) / NS <= self._backlog_s:
            age_s -= rollovers(age_s) * ROLLOVER_S
        return age_s > self._backlog_s

    def accepts(self, file: File, start_ns: int, end_ns: int, written_ns: int) -> bool:
        """Whether a record is to be processed; if not, it is taken as read.

        Args:
            file: where it is.
            start_ns: time of its first sample.
            end_ns: time after its last sample.
            written_ns: when the file was last written.
        """
        self._newest_ns = max(self._newest_ns or 0, end_ns)
        if not self.is_past(end_ns, written_ns):
            return True
        now_s, growth = time.monotonic(), self._growth.get(file)
        if growth is not None:
            advance_s = max(end_ns - growth.end_ns, end_ns - start_ns) / NS
            if advance_s <= 2 * (now_s - growth.met_s):
                return True
            growth.met_s, growth.end_ns = now_s, max(growth.end_ns, end_ns)
        else:
            self._growth[file] = _Growth(now_s, end_ns)
            while len(self._growth) > MAX_FILES:
                self._growth.popitem(last=False)
        return False

    def passed(self, path: Path, size: int, first_ns: int, last_ns: int) -> None:
        """Note that so many bytes of a file, with data of this time, were taken as read."""
        passed = self._passed
        self._pieces += 1
        self._bytes += size
        passed.files.add(path)
        passed.size += size
        passed.first_ns, passed.last_ns = min(passed.first_ns, first_ns), max(passed.last_ns, last_ns)
        self._newest_ns = max(self._newest_ns or 0, last_ns)
        self._met = time.monotonic(), last_ns

    def report(self) -> None:
        """Tell of what was taken as read since the last time, unless that was a short while ago."""
        now_s, passed = time.monotonic(), self._passed
        if not passed.files or now_s - self._told_s < self._pause_s:
            return
        self._pause_s = min(TOLD_MOST_S, 2 * self._pause_s) if now_s - self._told_s < TOLD_MOST_S else TOLD_S
        self._told_s, self._passed = now_s, _Passed()
        paths = sorted(passed.files)
        named = str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
        moment, why = self._clock.now(), f"older than backlog_s ({self._backlog_s:g} s)"
        if not moment.is_set:
            why = "of unknown age, as the clock is not set"
        elif passed.first_ns > moment.ns:
            why = "ahead of this machine's clock, which nothing synchronises"
        words = (
            f"{counted(len(paths), 'file')} with {passed.size / 1e6:.3g} MB of data {why}, "
            f"from {format_ns(passed.first_ns)[:19]} to {format_ns(passed.last_ns)[:19]}, taken as read: {named}"
        )
        hint = (
            f"`talus replay {paths[0].parent}` shows what they hold; a larger source.backlog_s has such data processed"
        )
        self._on_problem(SourceProblem(self._where, words, hint))

    def counters(self) -> dict[str, int]:
        """``old`` records, or whole files, that were taken as read, and their bytes; empty without any."""
        return {"old": self._pieces, "old_bytes": self._bytes} if self._pieces else {}

    def problem(self, heard_s: float) -> str:
        """Words where what comes is old, as of the newest data that were not (monotonic); else empty."""
        if self._met is None or self._met[0] < heard_s:
            return ""
        moment = self._clock.now()
        late_s = (moment.ns - self._met[1]) / NS
        age = f"{span(late_s)} {'old' if late_s > 0 else 'ahead of the clock'}" if moment.is_set else "of unknown age"
        return f"what comes is {age} and is taken as read (backlog_s: {self._backlog_s:g})"
