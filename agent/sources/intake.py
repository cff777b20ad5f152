"""Recorded files as sample blocks: miniSEED through the one reader, other formats through ObsPy."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from agent.errors import SourceError
from agent.sources import ProblemSink, SourceProblem
from agent.sources.channels import Channel, Skipped
from agent.sources.framing import is_miniseed, is_volume
from agent.sources.miniseed import RecordReader
from agent.sources.unpack import plain_files
from agent.sources.waveforms import brief, format_of, read_traces
from agent.types import NS, SampleBlock, format_ns

_HEAD_BYTES = 64 << 10
_DAY_NS = 86400 * NS
_YEAR_1971_NS = 365 * _DAY_NS
_FETCH_AGAIN = "fetch it again from the recorder; it may be damaged"


class Intake:
    """Reads files and decides what of them can be used; says once per channel, or file, why the rest cannot."""

    def __init__(self, on_problem: ProblemSink) -> None:
        self._on_problem = on_problem
        self._said: set[tuple[str, ...]] = set()
        self._path = Path()
        self._reader = RecordReader(self._say_renamed)
        self._left_out: Counter[str] = Counter()

    def counters(self) -> dict[str, int]:
        """What was left out, by reason, and its bytes. Any thread may ask."""
        return dict(self._left_out)

    def read(self, path: Path, span: tuple[int, int] | None = None) -> list[SampleBlock]:
        """What of one file can be used, in the file's order: a block for each miniSEED record, as it was recorded;
        other formats in packets of a second.

        Args:
            path: the file, of any format that is read, compressed or not.
            span: offset and size of the piece to read of a miniSEED file; None for the whole of any file.

        Returns:
            Empty when nothing in the file can be used; the ``ProblemSink`` then knows why.
        """
        self._path = path
        blocks: list[SampleBlock] = []
        try:
            for file, data in _contents(path, span):
                blocks += self._traces(file) if data is None else self._records(data)
        except SourceError as error:
            self.say(path, error.message, error.hint)
        except Exception as error:  # noqa: BLE001 - on a damaged file readers raise anything, struct.error to IndexError
            if isinstance(error, OSError) and error.errno is not None:
                self.say_unreadable(path, error)
            else:
                self.say(path, f"cannot be read ({brief(error)})", _FETCH_AGAIN)
        self._say_odd_times(blocks)
        return blocks

    def first_ns(self, path: Path, span: tuple[int, int] | None = None) -> int | None:
        """Time of the earliest sample that ``read`` would find, None where there seems to be none.

        Only headers are read where the format allows it. What is wrong is left for ``read`` to say.
        """
        quiet = Intake(lambda problem: None)
        found: list[int] = []
        try:
            for file, data in _contents(path, span):
                if data is None:
                    found += [block.start_ns for block in quiet._traces(file, headers=True)]
                    continue
                for _, record in quiet._reader.read_all(data, samples=False):
                    if record is not None and record.skipped is None and record.start_ns is not None:
                        found.append(record.start_ns)
        except Exception:  # noqa: BLE001 - ``read`` meets it again and says it
            return None
        return min(found, default=None)

    def say(self, path: Path | str, message: str, hint: str, *key: str) -> None:
        """Report a problem once per ``key`` (once per path and message where none is given)."""
        key = key or (str(path), message)
        if key not in self._said:
            self._said.add(key)
            self._on_problem(SourceProblem(str(path), message, hint))

    def say_unreadable(self, path: Path | str, error: OSError) -> None:
        """Report what the operating system refused."""
        self.say(path, f"cannot be read ({error.strerror or error})", "check that it exists, and its permissions")

    def _records(self, data: bytes) -> list[SampleBlock]:
        """The records of a miniSEED file, or of a piece of one."""
        blocks: list[SampleBlock] = []
        damaged: list[Skipped] = []
        foreign, other, is_cut = 0, 0, False
        for piece, record in self._reader.read_all(data):
            size = piece.end - piece.begin
            if record is None:
                if piece.is_cut:
                    is_cut = True
                    self._count("cut_off", size)
                elif not is_volume(data, piece.begin):
                    foreign += size
                    self._count("foreign", size)
            elif record.skipped is None:
                blocks += record.blocks
            elif record.skipped.kind == "damaged":
                damaged.append(record.skipped)
                self._count("damaged", size)
            elif record.skipped.kind != "empty":
                other += 1
                self._leave_out(record.skipped, size)
        parts = []
        if damaged:
            parts.append(f"{_count(len(damaged), 'damaged record')} left out as a gap ({damaged[0].reason})")
        if foreign:
            parts.append(f"{foreign} bytes left out that are not miniSEED")
        if is_cut:
            parts.append("cut off in its last record")
        if parts:
            hint = _FETCH_AGAIN if damaged or is_cut else "check what else writes to this file"
            self.say(self._path, "; ".join(parts), hint)
        elif not blocks and not other:
            self.say(self._path, "holds no samples", "delete it, or fetch it again from the recorder")
        return blocks

    def _traces(self, file: Path, *, headers: bool = False) -> list[SampleBlock]:
        """What a file of another format holds."""
        blocks: list[SampleBlock] = []
        notes: list[tuple[str, str]] = []
        for item in read_traces(file, notes, headers=headers):
            if isinstance(item, Channel):
                self._say_renamed(item)
            elif isinstance(item, Skipped):
                self._leave_out(item, 0)
            else:
                blocks.append(item)
        for message, hint in notes:
            self.say(self._path, message, hint)
        return blocks

    def _leave_out(self, skipped: Skipped, size: int) -> None:
        self._count(skipped.kind, size)
        if not skipped.expected:
            self.say(self._path, skipped.reason, skipped.hint, skipped.kind, skipped.channel, skipped.reason)

    def _count(self, reason: str, size: int) -> None:
        self._left_out[reason] += 1
        self._left_out[f"{reason}_bytes"] += size

    def _say_renamed(self, channel: Channel) -> None:
        self.say(self._path, *channel.renaming, "name", channel.name, channel.original or "")

    def _say_odd_times(self, blocks: list[SampleBlock]) -> None:
        latest_ns = time.time_ns() + _DAY_NS
        for block in blocks:
            if not _YEAR_1971_NS <= block.start_ns <= latest_ns:
                message = f"{block.stream.seed} begins at {format_ns(block.start_ns)}, used as it is"
                hint = "the recorder's clock may have been wrong: check its GPS or NTP"
                self.say(self._path, message, hint, "time", block.stream.seed)


def _contents(path: Path, span: tuple[int, int] | None) -> Iterator[tuple[Path, bytes | None]]:
    """Each plain file that a path holds, with its bytes where it is miniSEED, None where it is of another format.

    Raises:
        SourceError: it is empty, or of no format that is read.
        Exception: see ``plain_files``.
    """
    with plain_files(path) as files:
        for file in files:
            with file.open("rb") as handle:
                head = handle.read(_HEAD_BYTES)
                if not head:
                    raise SourceError("is empty", "delete it, or fetch it again from the recorder")
                if not is_miniseed(head) and format_of(file, head) != "MSEED":
                    yield file, None
                else:
                    # Into memory: a mapped file that shrinks meanwhile kills the process.
                    handle.seek(span[0] if span else 0)
                    yield file, handle.read(span[1] if span else -1)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
