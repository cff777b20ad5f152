"""Recorded data as a source: files, folders and SDS archives, replayed in time order across channels and files."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from heapq import heapify, heappop, heappush, heapreplace
from itertools import count
from pathlib import Path
from typing import TypeAlias

from agent.errors import SourceError, UsageError
from agent.sources import ProblemSink
from agent.sources.intake import Intake, Run
from agent.sources.miniseed import PART_BYTES, is_miniseed, parts
from agent.sources.pacing import Pacer
from agent.sources.paths import files
from agent.types import NS, SampleBlock

_SDS_NAME = re.compile(r"\.[A-Z]\.(\d{4})\.(\d{3})$")
_SDS_SLACK = timedelta(hours=1)
"""A day file of an SDS archive may begin with a record from before midnight."""

_WHOLE_BYTES = 2 * PART_BYTES
"""miniSEED files up to this size are read whole."""

_PROGRESS_STEPS = 200


@dataclass(frozen=True, slots=True, order=True)
class _Part:
    """A piece of a file that is read when its time comes; ``span`` (offset, size) is None for a whole file.

    ``bound_ns`` is not later than its first sample; ``planned`` False means that only the file's name said so.
    """

    bound_ns: int
    path: Path
    span: tuple[int, int] | None
    size: int
    stamp: tuple[int, int]
    planned: bool


_Entry: TypeAlias = tuple[int, str, int, SampleBlock, Iterator[SampleBlock], float]
"""A run in the merge: start of its next block, channel, tie-break, that block, those after it, bytes per sample."""


class ArchiveSource:
    """Blocks from recorded files, ordered by start time; of equal times by channel name.

    Overlapping and duplicate data are passed on. A block never spans a gap, nor two files, nor two of the parts
    (about ``PART_BYTES`` each) in which large miniSEED files are read; it is shorter there. Samples are views of
    read-only arrays in the recorded type (smaller integers become int32). Clock quality is that of the miniSEED
    record in which a block begins, unknown for other formats.

    At any time only those files, or parts, are in memory whose time has come.

    Args:
        paths: files, folders (searched with all below them) and patterns.
        packet_s: length of a block in seconds, rounded to whole samples, at least one; ``inf`` for whole runs.
        speed: seconds of data per second, 0 for as fast as it goes. Silences beyond ``pacing.LONGEST_SILENCE_S`` are
            skipped.
        on_problem: told what was skipped or is doubtful.
        progress: told the share done, 0..1, about two hundred times.

    Raises:
        UsageError: ``packet_s`` or ``speed`` makes no sense.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        packet_s: float = 1.0,
        speed: float = 0.0,
        *,
        on_problem: ProblemSink,
        progress: Callable[[float], None] | None = None,
    ) -> None:
        if not packet_s > 0:
            raise UsageError(f"a packet of {packet_s} s makes no sense", "give a length above 0, such as 1")
        if not 0 <= speed < float("inf"):
            raise UsageError(f"a speed of {speed} makes no sense", "give 0 (as fast as it goes), 1 (real time) or N")
        self._paths = [str(path) for path in paths]
        self._packet_s = packet_s
        self._grid_ns: int | None = None
        """Where the first packet of all began."""
        self._intake = Intake(on_problem)
        self._progress = progress
        self._serial = count()
        self._stop = threading.Event()
        self._pacer = Pacer(speed, self._stop) if speed else None

    def close(self) -> None:
        """Make ``blocks()`` end after the current block, also from another thread or while it waits."""
        self._stop.set()

    def blocks(self) -> Iterator[SampleBlock]:
        """All packets in time order.

        Raises:
            SourceError: no usable sample in any of the paths.
        """
        todo = self._plan()
        progress = _Progress(self._progress, sum(part.size for part in todo)) if self._progress else None
        merge: list[_Entry] = []
        newest_ns = None
        stopped = self._stop.is_set
        while (merge or todo) and not stopped():
            if todo and (not merge or todo[0].bound_ns <= merge[0][0]):
                self._load(todo, merge, newest_ns)
                continue
            newest_ns, name, tie, block, packets, weight = merge[0]
            following = next(packets, None)
            if following is None:
                heappop(merge)
            else:
                heapreplace(merge, (following.start_ns, name, tie, following, packets, weight))
            if progress:
                progress.add(len(block.samples) * weight)
            if self._pacer:
                self._pacer.wait(block.end_ns)
                if stopped():
                    return
            yield block
        if newest_ns is None and not stopped():
            raise self._nothing()
        if progress and not stopped():
            progress.finish()

    def _load(self, todo: list[_Part], merge: list[_Entry], newest_ns: int | None) -> None:
        """Read the part that is due and enter its runs into the merge."""
        part = heappop(todo)
        smaller, runs = self._open(part)
        for piece in smaller:
            heappush(todo, piece)
        samples = sum(len(run.samples) for run in runs)
        for run in runs:
            if newest_ns is not None and run.start_ns < newest_ns:
                hint = "they are passed on late: correct the file's name if it is wrong"
                self._intake.say(part.path, "holds data older than its name or headers say", hint)
            if self._grid_ns is None:
                self._grid_ns = run.start_ns
            packets = _packets(run, self._packet_s, self._grid_ns)
            block = next(packets)
            heappush(merge, (block.start_ns, run.stream.seed, next(self._serial), block, packets, part.size / samples))

    def _nothing(self) -> SourceError:
        looked_at = ", ".join(self._paths[:5]) + (" ..." if len(self._paths) > 5 else "")
        return SourceError(
            f"no usable samples in {looked_at or 'an empty list of paths'}",
            "name files, folders or patterns with waveforms that ObsPy reads, 20 to 1000 Hz, components E, N, Z",
        )

    def _plan(self) -> list[_Part]:
        """A heap of everything to read, by when it begins."""
        todo: list[_Part] = []
        for path in files(self._paths, self._intake):
            if self._stop.is_set():
                break
            bound_ns = _sds_bound_ns(path)
            if bound_ns is None:
                todo += self._parts_of(path)
                continue
            try:
                stamp = _stamp(path)
            except OSError as error:
                self._intake.say_unreadable(path, error)
            else:
                todo.append(_Part(bound_ns, path, None, stamp[0], stamp, planned=False))
        if not todo and not self._stop.is_set():
            raise self._nothing()
        heapify(todo)
        return todo

    def _parts_of(self, path: Path) -> Iterator[_Part]:
        """The pieces of a file that hold something usable, by their headers."""
        try:
            stamp = _stamp(path)
            for span in _spans(path, stamp[0]):
                runs = self._intake.read(path, span, headers=True)
                if runs:
                    bound_ns = min(run.start_ns for run in runs)
                    yield _Part(bound_ns, path, span, span[1] if span else stamp[0], stamp, planned=True)
        except OSError as error:
            self._intake.say_unreadable(path, error)

    def _open(self, part: _Part) -> tuple[list[_Part], list[Run]]:
        """What is in a part whose time has come: smaller parts to come back for, or runs of samples."""
        try:
            stamp = _stamp(part.path)
        except OSError as error:
            self._intake.say_unreadable(part.path, error)
            return [], []
        if stamp != part.stamp:
            self._intake.say(
                part.path, "has changed since it was listed; read as it is now", "replay it again once it is complete"
            )
        if not part.planned and stamp[0] > _WHOLE_BYTES:
            return list(self._parts_of(part.path)), []
        return [], [run for run in self._intake.read(part.path, part.span) if len(run.samples)]


class _Progress:
    """Calls back with the share of the bytes whose samples have been passed on, each half percent."""

    def __init__(self, report: Callable[[float], None], total: int) -> None:
        self._report = report
        self._total = total or 1
        self._done = self._due = 0.0

    def add(self, size: float) -> None:
        self._done += size
        if self._done >= self._due:
            self._due = self._done + self._total / _PROGRESS_STEPS
            self._report(min(self._done / self._total, 1.0))

    def finish(self) -> None:
        self._report(1.0)


def _packets(run: Run, packet_s: float, grid_ns: int) -> Iterator[SampleBlock]:
    """The run cut into blocks; times are exact: start + index / rate, rounded to a nanosecond, nothing summed up.

    Blocks end where those end that began at ``grid_ns``, whatever part of a file the run comes from: a detector waits
    for all components, and if their packets ended at different times, it would decide once for each.
    """
    stream, start_ns, rate_hz, samples = run.stream, run.start_ns, run.rate_hz, run.samples
    size = max(1, round(min(packet_s * rate_hz, len(samples))))
    numerator, denominator = rate_hz.as_integer_ratio()
    tick, half = NS * denominator, numerator // 2
    times, qualities = run.clock.times_ns, run.clock.quality
    quality, change, last = qualities[0], 0, len(times) - 1
    index, end = 0, size
    if size < len(samples):
        ahead = (grid_ns - start_ns) * numerator + tick // 2
        end = ahead // tick % size or size
    while index < len(samples):
        block_ns = start_ns + (index * tick + half) // numerator
        while change < last and times[change + 1] <= block_ns:
            change += 1
            quality = qualities[change]
        yield SampleBlock(stream, block_ns, rate_hz, samples[index:end], quality)
        index, end = end, end + size


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _spans(path: Path, size: int) -> Iterable[tuple[int, int] | None]:
    if size > _WHOLE_BYTES:
        with path.open("rb") as file:
            if is_miniseed(file.read(512)):
                return parts(path)
    return [None]


def _sds_bound_ns(path: Path) -> int | None:
    """Earliest time that an SDS file's name (``NET.STA.LOC.CHA.D.YEAR.DOY``) admits."""
    match = _SDS_NAME.search(path.name)
    if match is None or path.name.count(".") != 6:
        return None
    year, day = int(match[1]), int(match[2])
    if not (1900 <= year <= 2099 and 1 <= day <= 366):
        return None
    begin = datetime(year, 1, 1, tzinfo=timezone.utc) + timedelta(days=day - 1) - _SDS_SLACK
    return int(begin.timestamp()) * NS
