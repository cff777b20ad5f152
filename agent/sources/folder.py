"""Files that a recorder writes now: new or growing miniSEED in folders and SDS archives, each record read once."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from itertools import count
from pathlib import Path
from typing import BinaryIO, TypeAlias

from agent.errors import in_words
from agent.host.clock import MachineClock
from agent.sources import Losses, ProblemSink, SourceProblem
from agent.sources.backlog import Backlog
from agent.sources.channels import Channel
from agent.sources.in_flight import InFlight
from agent.sources.miniseed import MAX_RECORD_BYTES, Record, RecordReader, packed
from agent.sources.positions import HEAD_BYTES, TAIL_BYTES, Position, Positions, digest
from agent.sources.watching import Watcher
from agent.types import SampleBlock, counted

_CHUNK_BYTES = 64 << 10
_WAIT_S = 0.25
_SAVE_S = 1.0
"""Longest time, while data come, between two writes of the positions: what is read twice after a kill."""

_RETRY_S, _RETRY_MOST_S = 1.0, 60.0
"""A file that cannot be read is tried again after so long, and then at twice the interval, up to the longest."""
_PEEK_BYTES = (8 << 10, 64 << 10)
"""End of a file in which its newest record is looked for: mostly the first is enough."""
_LATER = 100
"""Files not written lately that are looked at between two looks for new data."""

_Key: TypeAlias = tuple[bytes, Path]
_Entry: TypeAlias = tuple[int, int, SampleBlock, "_Tail"]


@dataclass(frozen=True, slots=True)
class _Retry:
    """When to try a file again (monotonic), after how long a wait, and why it could not be read."""

    at_s: float
    wait_s: float
    reason: str


class FolderSource:
    """Blocks of what is appended to files below ``paths``, or appears there; miniSEED 2 and 3, records of any length.

    Records that arrive together are ordered by time over all files; a block is a record (at most ``MAX_BLOCK_S`` of
    it). A record that is not whole yet is left until it is. How far each file was acknowledged is kept in ``state``:
    after a restart reading goes on there; after a kill what was acknowledged in the last second comes again, and
    nothing is left out. Rotated and copied files go on where their content left off; a rewritten one is read anew.

    Data older than ``backlog_s`` when they are met are taken as read, wherever and whenever they appear
    (``agent.sources.backlog``). A file that cannot be read is tried again, at growing intervals.

    Args:
        paths: folders (searched with all below them) or files.
        state: the database of positions; one source each.
        backlog_s: age of data above which they are not processed, by the times in their records.
        rescan_s: how often all is listed, in case the system told nothing.
        timeout_s: silence after which that is told.
        on_problem: told what is dropped or doubtful.
        clock: tells the time that ages are taken by.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        state: Path,
        *,
        backlog_s: float = 7200.0,
        rescan_s: float = 30.0,
        timeout_s: float = 60.0,
        on_problem: ProblemSink,
        clock: MachineClock | None = None,
    ) -> None:
        self._paths, self._state = list(paths), state
        self._rescan_s, self._timeout_s = rescan_s, timeout_s
        self._on_problem = on_problem
        self._where = ", ".join(map(str, paths))
        self.backlog = Backlog(self._where, backlog_s, clock or MachineClock(), on_problem)
        self._waiting: set[Path] = set()
        """Files that were never seen, while the clock is not set."""
        self._later: deque[Path] = deque()
        """Files that were not written lately: those that were come first."""
        self._watcher: Watcher | None = None
        self._retry: dict[Path, _Retry] = {}
        """Files that could not be read."""
        self._packed = ""
        """The last file that was left out because it is compressed."""
        self._losses = Losses(self._where, on_problem)
        self._stop = threading.Event()
        self._serial = count()
        self._lock = threading.Lock()
        self._flight: InFlight[_Key, Position] = InFlight(self, self._reach)
        self._reached: dict[_Key, Position] = {}
        """How far this run has come in files whose positions are not all saved."""
        self._unsaved: dict[_Key, Position] = {}
        self._ended = False
        self._saved_s = 0.0
        self._disk_failed = False
        self._refused: str | None = None
        """Why positions are held in memory."""
        self._heard_s = 0.0
        self._silent = False
        self._blocks = self._samples = 0

    def close(self) -> None:
        """Make ``blocks()`` end within a quarter of a second, also from another thread or while it waits."""
        self._stop.set()

    def acknowledge(self, block: SampleBlock) -> None:
        """See ``Resumable``: positions up to this block may be saved."""
        with self._lock:
            self._flight.acknowledge(block)
            late = self._ended and self._unsaved
        if late:
            positions = Positions(self._state)
            self._save(positions)
            positions.close()

    @property
    def in_flight(self) -> int:
        """See ``Resumable``."""
        return len(self._flight)

    def _reach(self, key: _Key, position: Position) -> None:
        self._unsaved[key] = position

    def problems(self) -> list[str]:
        """See ``Telling``."""
        why = self.backlog.problem(self._heard_s) or self._packed
        found = []
        if self._silent:
            found.append(f"no new data in {self._where} for {self._timeout_s:g} s" + (f": {why}" if why else ""))
        if self._disk_failed:
            found.append(f"positions cannot be kept in {self._state}")
        if self._refused:
            found.append(f"positions are held in memory, a restart reads data twice: {self._state} ({self._refused})")
        if self._waiting:
            found.append(
                f"{counted(len(self._waiting), 'file')} in {self._where} wait until this machine's clock is set"
            )
        failed = sorted(self._retry.copy().items())
        if failed:
            path, retry = failed[0]
            more = f", and {len(failed) - 1} more" if len(failed) > 1 else ""
            found.append(f"{path} cannot be read ({retry.reason}){more}; tried again")
        watcher = self._watcher
        return found + (watcher.problems() if watcher is not None else [])

    def counters(self) -> dict[str, int]:
        """Since the start: ``blocks`` and ``samples`` handed on, ``old`` that were taken as read, and what was dropped
        by reason, with its bytes."""
        return {
            "blocks": self._blocks,
            "samples": self._samples,
            **self.backlog.counters(),
            **self._losses.counters(),
        }

    def blocks(self) -> Iterator[SampleBlock]:
        """Packets as they come, until ``close``.

        Raises:
            SourceError: positions cannot be kept.
        """
        reader = RecordReader(self._report_renamed)
        positions = Positions(self._state)
        self._refused = positions.refused
        self._watcher = watcher = Watcher(self._paths, self._rescan_s, self._on_problem)
        self._heard_s = time.monotonic()
        try:
            positions.forget_gone()
            while not self._stop.is_set():
                changed = watcher.wait(0.0 if self._later else _WAIT_S)
                yield from self._merge(self._due(changed), positions, reader)
                self._listen()
                if not self._later:
                    self.backlog.report()
                self._save_now_and_then(positions)
        finally:
            with self._lock:
                self._ended = True
            self._save(positions)
            positions.close()
            watcher.close()

    def _due(self, changed: Sequence[Path]) -> list[Path]:
        """Files to look at: those that have changed, those to try again, and those whose age can be told now."""
        now_s = time.monotonic()
        due = {path for path, retry in self._retry.items() if retry.at_s <= now_s}
        if self._waiting and not self.backlog.waits():
            due |= self._waiting
            self._waiting.clear()
        due.update(changed)
        late = {path for path in due if not self.backlog.is_recent(path)}
        self._later.extend(sorted(late))
        some = [self._later.popleft() for _ in range(min(_LATER, len(self._later)))]
        return sorted(due.difference(late).union(some))

    def _merge(self, paths: Sequence[Path], positions: Positions, reader: RecordReader) -> Iterator[SampleBlock]:
        """What is new in these files, in the order of time."""
        heap: list[_Entry] = []
        self.backlog.begin_pass()
        for path in paths:
            try:
                tail = self._open(path, positions, reader)
            except OSError as error:
                self._unreadable(path, error)
                continue
            if tail is None or self._push(heap, tail, reader):
                self._retry.pop(path, None)
        while heap and not self._stop.is_set():
            _, _, block, tail = heappop(heap)
            self._blocks += 1
            self._samples += len(block.samples)
            self._heard_s = time.monotonic()
            if tail.behind is not None:
                block = self.hand_on(tail.key, tail.behind, block)
            yield block
            self._push(heap, tail, reader)
            self._save_now_and_then(positions)

    def _open(self, path: Path, positions: Positions, reader: RecordReader) -> _Tail | None:
        """The unread end of a file, if any of it may be processed.

        Raises:
            OSError: it cannot be read.
        """
        tail = _Tail.open(path, positions, self)
        if tail is None:
            return None
        if tail.packed is not None:
            self._leave_packed(tail, tail.packed)
            return None
        if tail.is_new and self.backlog.waits():
            self._waiting.add(path)
            return None
        if tail.is_new and (newest := tail.newest(reader)) is not None:
            start_ns, end = newest
            if self.backlog.is_unknown(start_ns) or self.backlog.is_past(start_ns, tail.written_ns):
                # All of it is old: years of archive need not be decoded to know that.
                self.backlog.passed(path, end, start_ns, start_ns)
                tail.skip(end)
        return tail

    def _leave_packed(self, tail: _Tail, packed: str) -> None:
        """A compressed file has no records to follow: it can only be read when it is whole, which nobody tells."""
        path = tail.key[1]
        if (size := tail.pass_rest()) > 0:
            self._packed = f"{path} is compressed ({packed})"
            hint = "have the recorder write plain miniSEED, or unpack what it writes into this folder"
            self._losses.count("compressed", size, f"{self._packed} and left out", hint)

    def _push(self, heap: list[_Entry], tail: _Tail, reader: RecordReader) -> bool:
        """Queue the file's next block, if there is one; False where it cannot be read."""
        try:
            block = tail.next(reader)
        except OSError as error:
            self._unreadable(tail.key[1], error)
            return False
        if block is not None:
            heappush(heap, (block.start_ns, next(self._serial), block, tail))
        return True

    def _save_now_and_then(self, positions: Positions) -> None:
        if time.monotonic() - self._saved_s >= _SAVE_S:
            self._save(positions)

    def _save(self, positions: Positions) -> None:
        self._saved_s = time.monotonic()
        with self._lock:
            due = self._unsaved.copy()
        if not due:
            return
        try:
            positions.put((head, path, position) for (head, path), position in due.items())
        except OSError as error:
            if not self._disk_failed:
                hint = "make room for state_dir; until then a restart would read data twice"
                self._on_problem(SourceProblem(str(self._state), f"positions cannot be kept ({error})", hint))
            self._disk_failed = True
            return
        self._disk_failed = False
        with self._lock:
            for key, position in due.items():
                if self._unsaved.get(key) is position:
                    del self._unsaved[key]
                if self._reached.get(key) is position:
                    del self._reached[key]

    def _listen(self) -> None:
        silent_s = time.monotonic() - self._heard_s
        if self._silent and silent_s < self._timeout_s:
            self._silent = False
            self._on_problem(SourceProblem(self._where, "new data again"))
        elif not self._silent and silent_s >= self._timeout_s:
            self._silent = True
            hint = "check the recorder, and that it writes here"
            self._on_problem(SourceProblem(self._where, f"no new data for {self._timeout_s:g} s", hint))

    def _unreadable(self, path: Path, error: OSError) -> None:
        if isinstance(error, FileNotFoundError):
            self._retry.pop(path, None)
            return  # rotated away between the listing and the reading: it is found under its new name
        reason, before = in_words(error), self._retry.get(path)
        wait_s = _RETRY_S if before is None else min(_RETRY_MOST_S, 2 * before.wait_s)
        self._retry[path] = _Retry(time.monotonic() + wait_s, wait_s, reason)
        if before is None:
            hint = "check its permissions, and the disk; it is tried again"
            self._losses.count("unreadable", 0, f"{path} cannot be read ({reason})", hint)

    # What a file's tail needs.

    def known(self, key: _Key, positions: Positions) -> list[Position]:
        """Where content that begins like this was left off: under this path first, then the furthest."""
        head, path = key
        newest = positions.get(head) | {other: p for (begin, other), p in self._reached.items() if begin == head}
        own = newest.pop(path, None)
        return [*([own] if own else []), *sorted(newest.values(), key=lambda p: p.offset, reverse=True)]

    def skip(self, key: _Key, position: Position) -> None:
        """Note that all before ``position`` was read, the last of it being nothing of use."""
        self._reached[key] = position
        with self._lock:
            self._flight.send(key, position, None)

    def hand_on(self, key: _Key, position: Position, block: SampleBlock) -> SampleBlock:
        """Note that all before ``position`` was read, the last of it being ``block``; returns that with its origin."""
        self._reached[key] = position
        with self._lock:
            return replace(block, origin=self._flight.send(key, position, block.stream))

    def report_rewritten(self, path: Path) -> None:
        """The file begins as before and goes on differently."""
        hint = "what was read before is passed on again, and dropped where it overlaps"
        self._on_problem(SourceProblem(str(path), "was rewritten; it is read from the beginning", hint))

    def _report_renamed(self, channel: Channel) -> None:
        self._on_problem(SourceProblem(self._where, *channel.renaming))

    def drop(self, reason: str, size: int, words: str, hint: str) -> None:
        """Bytes were left out."""
        self._losses.count(reason, size, words, hint)


@dataclass(frozen=True, slots=True)
class _Piece:
    """A record, or None for ``size`` bytes that are none; ``after`` is the position behind it."""

    record: Record | None
    size: int
    after: Position


class _Tail:
    """The unread end of one file. It is opened anew for each chunk, and checked to be what was read before."""

    def __init__(
        self, key: _Key, position: Position, source: FolderSource, status: os.stat_result, is_new: bool
    ) -> None:
        self.key = key
        self.is_new = is_new
        """Whether nothing of this content was read before."""
        self.written_ns = status.st_mtime_ns
        self.packed: str | None = None
        """What the file is compressed with."""
        self.behind: Position | None = None
        """The position behind the newest block, None while its record gives more of them."""
        self._position = position
        self._source = source
        self._blocks: deque[SampleBlock] = deque()
        self._pieces: deque[_Piece] = deque()

    @classmethod
    def open(cls, path: Path, positions: Positions, source: FolderSource) -> _Tail | None:
        """None while the file is too short to be known, or shorter than what was read of it.

        Raises:
            OSError: it cannot be read.
        """
        with path.open("rb") as file:
            start = file.read(HEAD_BYTES)
            if len(start) < HEAD_BYTES:
                return None
            status = os.fstat(file.fileno())
            head, size = digest(start), status.st_size
            known = source.known((head, path), positions)
            if known and known[0].offset > size:
                return None
            position = next((p for p in known if p.offset <= size and p.tail == _digest_before(file, p.offset)), None)
        if position is None and known:
            source.report_rewritten(path)
        tail = cls((head, path), position or Position(0, digest(b"")), source, status, position is None)
        tail.packed = packed(start)
        return tail

    def newest(self, reader: RecordReader) -> tuple[int, int] | None:
        """Begin of the last whole record in the file, and the offset behind it; None where its end holds none.

        Raises:
            OSError: the file cannot be read.
        """
        with self.key[1].open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            for length in _PEEK_BYTES:
                offset = file.seek(max(0, size - length))
                found = [
                    (record.sound_ns, offset + piece.end)
                    for piece, record in reader.read_all(file.read(length), final=False, samples=False)
                    if record is not None
                ]
                times = [start_ns for start_ns, _ in found if start_ns is not None]
                if times:
                    return max(times), found[-1][1]
        return None

    def pass_rest(self) -> int:
        """Count all of the file as read; returns how many bytes were not.

        Raises:
            OSError: the file cannot be read.
        """
        size, begin = self.key[1].stat().st_size, self._position.offset
        if size > begin:
            self.skip(size)
        return size - begin

    def skip(self, offset: int) -> None:
        """Count all before this offset as read.

        Raises:
            OSError: the file cannot be read.
        """
        with self.key[1].open("rb") as file:
            self._position = Position(offset, _digest_before(file, offset))
        self._source.skip(self.key, self._position)

    def next(self, reader: RecordReader) -> SampleBlock | None:
        """The next block; None when no whole record is left.

        Raises:
            OSError: the file cannot be read.
        """
        while not self._blocks:
            if not self._pieces:
                self._pieces.extend(self._read(reader))
                if not self._pieces:
                    return None
            piece = self._pieces.popleft()
            self._position = piece.after
            self._blocks.extend(self._judge(piece))
            if not self._blocks:
                self._source.skip(self.key, self._position)
        block = self._blocks.popleft()
        self.behind = None if self._blocks else self._position
        return block

    def _judge(self, piece: _Piece) -> Sequence[SampleBlock]:
        if piece.record is None:
            words = f"{self.key[1]}: {piece.size} bytes are not miniSEED"
            self._source.drop("foreign", piece.size, words, "check what else writes to this file or folder")
            return ()
        if piece.record.skipped is not None:
            what = piece.record.skipped
            words = f"{self.key[1]}: a record of {what.channel or 'an unknown channel'} is left out: {what.reason}"
            self._source.drop(what.kind, piece.size, words, what.hint)
        blocks = piece.record.blocks
        if blocks:
            start_ns, end_ns = blocks[0].start_ns, blocks[-1].end_ns
            if not self._source.backlog.accepts(self.key, start_ns, end_ns, self.written_ns):
                self._source.backlog.passed(self.key[1], piece.size, start_ns, end_ns)
                return ()
        return blocks

    def _read(self, reader: RecordReader) -> list[_Piece]:
        """The next whole records and what lies between them; empty when there are none yet."""
        offset = self._position.offset
        lead = min(offset, TAIL_BYTES)
        with self.key[1].open("rb") as file:
            if digest(file.read(HEAD_BYTES)) != self.key[0]:
                return []  # it has just been replaced; the watcher tells of the new one
            size = _CHUNK_BYTES
            while True:
                file.seek(offset - lead)
                data = file.read(lead + size)
                if digest(data[:lead]) != self._position.tail:
                    return []
                found = list(reader.read_all(data[lead:], final=False))
                if found or len(data) < lead + size:
                    break
                if size > MAX_RECORD_BYTES:
                    return _hole(file, offset)
                size *= 4

        def at(end: int) -> Position:
            return Position(offset + end, digest(data[max(0, lead + end - TAIL_BYTES) : lead + end]))

        return [_Piece(record, piece.end - piece.begin, at(piece.end)) for piece, record in found]


def _digest_before(file: BinaryIO, offset: int) -> bytes:
    lead = min(offset, TAIL_BYTES)
    file.seek(offset - lead)
    return digest(file.read(lead))


def _hole(file: BinaryIO, offset: int) -> list[_Piece]:
    """The zeros from ``offset`` on, if something follows them; those at the end of a file may still be filled in."""
    file.seek(offset)
    end = offset
    while data := file.read(MAX_RECORD_BYTES):
        rest = data.lstrip(b"\0")
        end += len(data) - len(rest)
        if rest:
            return [_Piece(None, end - offset, Position(end, _digest_before(file, end)))]
    return []
