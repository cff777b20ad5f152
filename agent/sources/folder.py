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

from agent.sources import ProblemSink, SourceProblem
from agent.sources.channels import Channel
from agent.sources.framing import MAX_RECORD_BYTES
from agent.sources.in_flight import InFlight
from agent.sources.losses import Losses
from agent.sources.miniseed import Record, RecordReader
from agent.sources.positions import HEAD_BYTES, TAIL_BYTES, Position, Positions, digest
from agent.sources.watching import Watcher
from agent.types import SampleBlock

_CHUNK_BYTES = 64 << 10
_WAIT_S = 0.25
_SAVE_S = 1.0
"""Longest time, while data come, between two writes of the positions: what is read twice after a kill."""

_Key: TypeAlias = tuple[bytes, Path]
_Entry: TypeAlias = tuple[int, int, SampleBlock, "_Tail"]


class FolderSource:
    """Blocks of what is appended to files below ``paths``, or appears there; miniSEED 2 and 3, records of any length.

    Records that arrive together are ordered by time over all files; a block is a record (at most ``MAX_BLOCK_S`` of
    it). A record that is not whole yet is left until it is. How far each file was acknowledged is kept in ``state``:
    after a restart reading goes on there; after a kill what was acknowledged in the last second comes again, and
    nothing is left out. Rotated and copied files go on where their content left off; a rewritten one is read anew.

    Args:
        paths: folders (searched with all below them) or files.
        state: the database of positions; one source each.
        backlog_s: at the very first start, files last written longer ago than this are taken as read.
        rescan_s: how often all is listed, in case the system told nothing.
        timeout_s: silence after which that is told.
        on_problem: told what is dropped or doubtful.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        state: Path,
        *,
        backlog_s: float = 3600.0,
        rescan_s: float = 30.0,
        timeout_s: float = 60.0,
        on_problem: ProblemSink,
    ) -> None:
        self._paths, self._state = list(paths), state
        self._backlog_s, self._rescan_s, self._timeout_s = backlog_s, rescan_s, timeout_s
        self._on_problem = on_problem
        self._where = ", ".join(map(str, paths))
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

    def troubles(self) -> list[str]:
        """See ``Telling``."""
        silent = [f"no new data in {self._where} for {self._timeout_s:g} s"] if self._silent else []
        return silent + ([f"positions cannot be kept in {self._state}"] if self._disk_failed else [])

    def counters(self) -> dict[str, int]:
        """Since the start: ``blocks`` and ``samples`` handed on, and what was dropped by reason, with its bytes."""
        return {"blocks": self._blocks, "samples": self._samples, **self._losses.counters()}

    def blocks(self) -> Iterator[SampleBlock]:
        """Packets as they come, until ``close``.

        Raises:
            SourceError: positions cannot be kept.
        """
        reader = RecordReader(self._tell_renamed)
        positions = Positions(self._state)
        watcher = Watcher(self._paths, self._rescan_s, self._on_problem)
        self._heard_s = time.monotonic()
        try:
            positions.forget_gone()
            if positions.is_new:
                due = self._first(watcher.wait(0), positions)
                positions.begin()
                yield from self._merge(due, positions, reader)
            while not self._stop.is_set():
                yield from self._merge(watcher.wait(_WAIT_S), positions, reader)
                self._listen()
                self._save_now_and_then(positions)
        finally:
            with self._lock:
                self._ended = True
            self._save(positions)
            positions.close()
            watcher.close()

    def _first(self, found: list[Path], positions: Positions) -> list[Path]:
        """Of all that is there at the very first start what is read; the rest counts as read."""
        due = []
        for path in found:
            try:
                status = path.stat()
                if time.time() - status.st_mtime <= self._backlog_s:
                    due.append(path)
                elif (tail := _Tail.open(path, positions, self)) is not None:
                    tail.skip()
            except OSError as error:
                self._unreadable(path, error)
        self._save(positions)
        return due

    def _merge(self, paths: list[Path], positions: Positions, reader: RecordReader) -> Iterator[SampleBlock]:
        """What is new in these files, in the order of time."""
        heap: list[_Entry] = []
        for path in paths:
            try:
                tail = _Tail.open(path, positions, self)
            except OSError as error:
                self._unreadable(path, error)
                continue
            if tail is not None:
                self._push(heap, tail, reader)
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

    def _push(self, heap: list[_Entry], tail: _Tail, reader: RecordReader) -> None:
        try:
            block = tail.next(reader)
        except OSError as error:
            self._unreadable(tail.key[1], error)
            return
        if block is not None:
            heappush(heap, (block.start_ns, next(self._serial), block, tail))

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
            return  # rotated away between the listing and the reading: it is found under its new name
        reason = f"{path} cannot be read ({error.strerror or error})"
        self._losses.count("unreadable", 0, reason, "check its permissions, and the disk")

    # What a file's tail needs.

    def known(self, key: _Key, positions: Positions) -> list[Position]:
        """Where content that begins like this was left off, the likeliest first."""
        reached = self._reached.get(key)
        others = [p for other, p in self._reached.items() if other[0] == key[0] and other != key]
        return [*([reached] if reached else []), *positions.get(*key), *others]

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

    def tell_rewritten(self, path: Path) -> None:
        """The file begins as before and goes on differently."""
        hint = "what was read before is passed on again, and dropped where it overlaps"
        self._on_problem(SourceProblem(str(path), "was rewritten; it is read from the beginning", hint))

    def _tell_renamed(self, channel: Channel) -> None:
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

    def __init__(self, key: _Key, position: Position, source: FolderSource) -> None:
        self.key = key
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
            head, size = digest(start), os.fstat(file.fileno()).st_size
            known = source.known((head, path), positions)
            if known and known[0].offset > size:
                return None
            position = next((p for p in known if p.offset <= size and p.tail == _digest_before(file, p.offset)), None)
        if position is None and known:
            source.tell_rewritten(path)
        return cls((head, path), position or Position(0, digest(b"")), source)

    def skip(self) -> None:
        """Count all that is there as read.

        Raises:
            OSError: the file cannot be read.
        """
        with self.key[1].open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            self._source.skip(self.key, Position(size, _digest_before(file, size)))

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
        return piece.record.blocks

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
