"""Recorded files as sample blocks: miniSEED through the one reader, other formats through ObsPy."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from agent.backoff import Throttle
from agent.errors import SourceError
from agent.sources import ProblemSink, SourceProblem
from agent.sources.bulk import recordings
from agent.sources.channels import Channel, Skipped
from agent.sources.framing import Piece, earliest_ns, is_miniseed, is_volume
from agent.sources.miniseed import Record, RecordReader
from agent.sources.recording import Recording
from agent.sources.unpack import plain_files
from agent.sources.waveforms import brief, format_of, read_traces
from agent.types import NS, format_ns

_HEAD_BYTES = 64 << 10
_DAY_NS = 86400 * NS
_YEAR_1971_NS = 365 * _DAY_NS
_FETCH_AGAIN = "fetch it again from the recorder; it may be damaged"


class Intake:
    """Reads files and decides what of them can be used; says once per channel, or file, why the rest cannot."""

    def __init__(self, on_problem: ProblemSink) -> None:
        self._on_problem = on_problem
        self._once = Throttle(math.inf, most=100_000)
        self._path = Path()
        self._reader = RecordReader(self._report_renamed)
        self._left_out: Counter[str] = Counter()

    def counters(self) -> dict[str, int]:
        """What was left out, by reason, and its bytes. Any thread may ask."""
        return dict(self._left_out)

    def read(self, path: Path, span: tuple[int, int] | None = None) -> list[Recording]:
        """What of one file can be used: a recording for each channel of miniSEED, and for each trace of other formats.

        Args:
            path: the file, of any format that is read, compressed or not.
            span: offset and size of the piece to read of a miniSEED file; None for the whole of any file.

        Returns:
            Empty when nothing in the file can be used; the ``ProblemSink`` then knows why.
        """
        self._path = path
        found: list[Recording] = []
        try:
            for file, data in _contents(path, span):
                found += self._traces(file) if data is None else self._records(data)
        except SourceError as error:
            self.report(path, error.message, error.hint)
        except Exception as error:  # noqa: BLE001 - on a damaged file readers raise anything, struct.error to IndexError
            if isinstance(error, OSError) and error.errno is not None:
                self.report_unreadable(path, error)
            else:
                self.report(path, f"cannot be read ({brief(error)})", _FETCH_AGAIN)
        self._report_odd_times(found)
        return found

    def first_ns(self, path: Path, span: tuple[int, int] | None = None) -> int | None:
        """A time that is not later than the earliest sample that ``read`` will find; None where there seems to be none.

        Only headers are read where the format allows it. What is wrong is left for ``read`` to say.
        """
        found: list[int] = []
        try:
            for file, data in _contents(path, span):
                if data is not None:
                    found += earliest_ns(data)
                else:
                    quiet = Intake(lambda problem: None)
                    found += [recording.starts_ns[0] for recording in quiet._traces(file, headers=True)]
        except Exception:  # noqa: BLE001 - ``read`` meets it again and says it
            return None
        return min(found, default=None)

    def report(self, path: Path | str, message: str, hint: str, *key: str) -> None:
        """Report a problem once per ``key`` (once per path and message where none is given)."""
        key = key or (str(path), message)
        if self._once.passes(key) is not None:
            self._on_problem(SourceProblem(str(path), message, hint))

    def report_unreadable(self, path: Path | str, error: OSError) -> None:
        """Report what the operating system refused."""
        self.report(path, f"cannot be read ({error.strerror or error})", "check that it exists, and its permissions")

    def _records(self, data: bytes) -> list[Recording]:
        """The records of a miniSEED file, or of a piece of one."""
        damaged: list[Skipped] = []
        foreign, other, is_cut = 0, 0, False

        def left_out(piece: Piece, record: Record | None) -> None:
            nonlocal foreign, other, is_cut
            size = piece.end - piece.begin
            if piece.is_cut:
                is_cut = True
                self._count("cut_off", size)
            elif record is None:
                if not is_volume(data, piece.begin):
                    foreign += size
                    self._count("foreign", size)
            elif record.skipped is not None and record.skipped.kind == "damaged":
                damaged.append(record.skipped)
                self._count("damaged", size)
            elif record.skipped is not None and record.skipped.kind != "empty":
                other += 1
                self._leave_out(record.skipped, size)

        found = recordings(self._reader, data, left_out)
        parts = []
        if damaged:
            parts.append(f"{_count(len(damaged), 'damaged record')} left out as a gap ({damaged[0].reason})")
        if foreign:
            parts.append(f"{foreign} bytes left out that are not miniSEED")
        if is_cut:
            parts.append("cut off in its last record")
        if parts:
            hint = _FETCH_AGAIN if damaged or is_cut else "check what else writes to this file"
            self.report(self._path, "; ".join(parts), hint)
        elif not found and not other:
            self.report(self._path, "holds no samples", "delete it, or fetch it again from the recorder")
        return found

    def _traces(self, file: Path, *, headers: bool = False) -> list[Recording]:
        """What a file of another format holds, a recording for each trace."""
        found: list[Recording] = []
        notes: list[tuple[str, str]] = []
        for item in read_traces(file, notes, headers=headers):
            if isinstance(item, Channel):
                self._report_renamed(item)
            elif isinstance(item, Skipped):
                self._leave_out(item, 0)
            else:
                found.append(item)
        for message, hint in notes:
            self.report(self._path, message, hint)
        return found

    def _leave_out(self, skipped: Skipped, size: int) -> None:
        self._count(skipped.kind, size)
        if not skipped.expected:
            self.report(self._path, skipped.reason, skipped.hint, skipped.kind, skipped.channel, skipped.reason)

    def _count(self, reason: str, size: int) -> None:
        self._left_out[reason] += 1
        self._left_out[f"{reason}_bytes"] += size

    def _report_renamed(self, channel: Channel) -> None:
        self.report(self._path, *channel.renaming, "name", channel.name, channel.original or "")

    def _report_odd_times(self, recordings: list[Recording]) -> None:
        latest_ns = time.time_ns() + _DAY_NS
        for recording in recordings:
            for start_ns in (recording.starts_ns[0], recording.starts_ns[-1]):
                if not _YEAR_1971_NS <= start_ns <= latest_ns:
                    message = f"{recording.stream.seed} begins at {format_ns(start_ns)}, used as it is"
                    hint = "the recorder's clock may have been wrong: check its GPS or NTP"
                    self.report(self._path, message, hint, "time", recording.stream.seed)


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
