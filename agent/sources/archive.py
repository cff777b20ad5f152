"""Recorded data as a source: files, folders and SDS archives, replayed in time order across channels and files."""

from __future__ import annotations

import glob
import os
import re
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from heapq import heapify, heappop, heappush, heapreplace
from itertools import count
from pathlib import Path
from typing import TypeAlias

from agent.errors import SourceError, UsageError, in_words
from agent.sources import Pacer, ProblemSink
from agent.sources.channels import Recording
from agent.sources.intake import Intake
from agent.sources.miniseed import PART_BYTES, is_miniseed, parts
from agent.sources.watching import files_below
from agent.types import NS, SampleBlock

_SDS_NAME = re.compile(r"\.[A-Z]\.(\d{4})\.(\d{3})$")
_SDS_SLACK = timedelta(hours=1)
"""A day file of an SDS archive may begin with a record from before midnight."""
_WHOLE_BYTES = 2 * PART_BYTES
"""miniSEED files up to this size are read whole."""
_PROGRESS_STEPS = 200
UNREAD = (-1, -1)
"""The stamp of a file that could not be opened when it was listed."""
_Entry: TypeAlias = tuple[int, str, int, SampleBlock, Iterator[SampleBlock], float]
"""A channel of a part in the merge: start of its next block, channel, tie-break, that block, those after it, bytes per
sample."""


def files(paths: Iterable[str], intake: Intake) -> Iterator[Path]:
    """Every regular file that the paths mean, each once however often and under whatever links it is named."""
    seen: set[str] = set()
    for given in paths:
        found = [given] if os.path.lexists(given) else sorted(glob.iglob(given, recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern
        if not found:
            intake.report(given, "does not exist", "check the path; a pattern needs at least one match")
        for name in found:
            for path in _below(Path(name), intake):
                real = os.path.realpath(path)
                if real in seen:
                    continue
                seen.add(real)
                try:
                    regular = stat.S_ISREG(path.stat().st_mode)
                except OSError as error:
                    intake.report_unreadable(path, error)
                    continue
                if regular:
                    yield path
                else:
                    intake.report(path, "is not a regular file", "name a file or a folder")


def _below(top: Path, intake: Intake) -> Iterator[Path]:
    """The path itself, or all files below a folder."""
    if not top.is_dir():
        yield top
        return

    def denied(error: OSError) -> None:
        intake.report(error.filename, f"cannot be listed ({in_words(error)})", "check its permissions")

    yield from files_below(top, denied)


@dataclass(frozen=True, slots=True, order=True)
class Part:
    """A piece of a file that is read when its time comes; ``span`` (offset, size) is None for a whole file.

    ``bound_ns`` is not later than its first sample; ``planned`` False means that only the file's name said so.
    ``size`` is the piece's, in bytes, and ``stamp`` the file's size and time of change when the piece was found.
    """

    bound_ns: int
    path: Path
    span: tuple[int, int] | None
    size: int
    stamp: tuple[int, int]
    planned: bool


class ArchiveSource:
    """Blocks from recorded files, ordered by start time; of equal times by channel name.

    A block is a miniSEED record, with its own start time, rate and clock quality, as the recorder wrote it and as the
    live sources hand it on (at most ``MAX_BLOCK_S`` of it); of other formats, a second. Samples are read-only, in the
    recorded type (smaller integers become int32). Overlapping and duplicate data are passed on.

    At any time only those files, or parts of large ones, are in memory whose time has come.

    Args:
        paths: files, folders (searched with all below them) and patterns.
        packet_s: None for records as they are. Else the length of a block in seconds, rounded to whole samples, at
            least one, ``inf`` for as long as data continue: records are cut, or joined where each begins when the one
            before it ends to within ``recording.SAME_NS``.
        speed: seconds of data per second, 0 for as fast as it goes. Silences beyond ``pacing.LONGEST_SILENCE_S`` are
            skipped.
        on_problem: told what was skipped or is doubtful.
        progress: told the share done, 0..1, about two hundred times.
        parts: exactly these pieces of files are read, instead of all that ``paths`` name.
        grid_ns: blocks of ``packet_s`` end where those end that began then; None: with the first sample.

    Raises:
        UsageError: ``packet_s`` or ``speed`` is out of range.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        packet_s: float | None = None,
        speed: float = 0.0,
        *,
        on_problem: ProblemSink,
        progress: Callable[[float], None] | None = None,
        parts: Sequence[Part] | None = None,
        grid_ns: int | None = None,
    ) -> None:
        if packet_s is not None and not packet_s > 0:
            raise UsageError(f"the length of packets must be positive, not {packet_s} s", "give seconds, such as 1")
        if not 0 <= speed < float("inf"):
            raise UsageError(
                f"the speed must be 0 or positive, not {speed}", "give 0 (as fast as it goes), 1 (real time) or N"
            )
        self._paths = [str(path) for path in paths]
        self._packet_s = packet_s
        self._parts = parts
        self._grid_ns = grid_ns
        """Where the first packet of all began."""
        self._intake = Intake(on_problem)
        self._progress = progress
        self._serial = count()
        self._blocks = self._samples = 0
        self._stop = threading.Event()
        self._pacer = Pacer(speed, self._stop) if speed else None

    def close(self) -> None:
        """Make ``blocks()`` end after the current block, also from another thread or while it waits."""
        self._stop.set()

    def counters(self) -> dict[str, int]:
        """Since the start: ``blocks`` and ``samples`` handed on, and what was left out by reason, with its bytes."""
        return {"blocks": self._blocks, "samples": self._samples, **self._intake.counters()}

    def blocks(self) -> Iterator[SampleBlock]:
        """All packets in time order.

        Raises:
            SourceError: no usable sample in any of the paths.
        """
        todo = self._plan() if self._parts is None else sorted(self._parts)
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
            self._blocks += 1
            self._samples += len(block.samples)
            yield block
        if newest_ns is None and not stopped():
            raise self._nothing()
        if progress and not stopped():
            progress.finish()

    def _load(self, todo: list[Part], merge: list[_Entry], newest_ns: int | None) -> None:
        """Read the part that is due and enter its channels into the merge."""
        part = heappop(todo)
        smaller, recordings = self._open(part)
        for piece in smaller:
            heappush(todo, piece)
        weight = part.size / max(1, sum(len(recording.samples) for recording in recordings))
        for recording in recordings:
            start_ns = recording.starts_ns[0]
            if newest_ns is not None and start_ns < newest_ns:
                hint = "they are passed on late: correct the file's name if it is wrong"
                self._intake.report(part.path, "holds data older than its name or headers say", hint)
            if self._grid_ns is None:
                self._grid_ns = start_ns
            packets = recording.blocks()
            if self._packet_s is not None:
                packets = recording.packets(self._packet_s, self._grid_ns)
            first = next(packets)
            heappush(merge, (start_ns, recording.stream.seed, next(self._serial), first, packets, weight))

    def _nothing(self) -> SourceError:
        looked_at = ", ".join(self._paths[:5]) + (" ..." if len(self._paths) > 5 else "")
        return SourceError(
            f"no usable samples in {looked_at or 'an empty list of paths'}",
            "name files, folders or patterns with miniSEED of 20 to 1000 Hz, components E, N, Z",
        )

    def _plan(self) -> list[Part]:
        """A heap of everything to read, by when it begins."""
        todo: list[Part] = []
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
                self._intake.report_unreadable(path, error)
            else:
                todo.append(Part(bound_ns, path, None, stamp[0], stamp, planned=False))
        if not todo and not self._stop.is_set():
            raise self._nothing()
        heapify(todo)
        return todo

    def _parts_of(self, path: Path) -> Iterator[Part]:
        """The pieces of a file that hold something usable, by their headers."""
        try:
            stamp = _stamp(path)
            for span in _spans(path, stamp[0]):
                bound_ns = self._intake.first_ns(path, span)
                if bound_ns is not None:
                    yield Part(bound_ns, path, span, span[1] if span else stamp[0], stamp, planned=True)
                else:
                    self._intake.read(path, span)  # says why
        except OSError as error:
            self._intake.report_unreadable(path, error)

    def _open(self, part: Part) -> tuple[list[Part], list[Recording]]:
        """What is in a part whose time has come: smaller parts to come back for, or its samples."""
        try:
            stamp = _stamp(part.path)
        except OSError as error:
            self._intake.report_unreadable(part.path, error)
            return [], []
        if part.stamp not in (stamp, UNREAD):
            self._intake.report(
                part.path, "has changed since it was listed; read as it is now", "replay it again once it is complete"
            )
        if not part.planned and stamp[0] > _WHOLE_BYTES:
            return list(self._parts_of(part.path)), []
        return [], self._intake.read(part.path, part.span)


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
