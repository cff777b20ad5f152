"""Recorded files as sample blocks: miniSEED through the one reader, other formats through ObsPy.

Of compressed files and archives (gzip, bzip2, zip, tar), members are unpacked to a temporary folder, never by name.
"""

from __future__ import annotations

import bz2
import gzip
import math
import stat
import tarfile
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from agent.backoff import Throttle
from agent.errors import SourceError, in_words
from agent.sources import ProblemSink, SourceProblem
from agent.sources.channels import Channel, Recording, Skipped
from agent.sources.miniseed import Piece, Record, RecordReader, earliest_ns, is_miniseed, is_volume, recordings
from agent.sources.waveforms import brief, format_of, read_traces
from agent.types import NS, counted, format_ns

MAX_UNPACKED_BYTES = 1 << 30
"""All members of one archive together: a small file must not be able to fill the disk."""
_BLOCK = 1 << 20
_HEAD_BYTES = 64 << 10
_DAY_NS = 86400 * NS
_YEAR_1971_NS = 365 * _DAY_NS
_FETCH_AGAIN = "fetch it again from the recorder; it may be damaged"


@contextmanager
def plain_files(path: Path, limit_bytes: int = MAX_UNPACKED_BYTES) -> Iterator[list[Path]]:
    """The file itself, or what a compressed one contains; the unpacked files go away at the end.

    Raises:
        SourceError: the archive holds more than ``limit_bytes``.
        OSError, EOFError, zipfile.BadZipFile, tarfile.TarError, zlib.error: it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(262)
    if not (head.startswith((b"\x1f\x8b", b"BZh", b"PK\x03\x04")) or head[257:262] == b"ustar"):
        yield [path]
        return
    with tempfile.TemporaryDirectory(prefix="talus-") as folder:
        files = []
        left = limit_bytes
        for number, member in enumerate(_members(path, head)):
            target = Path(folder) / str(number)
            with target.open("wb") as out:
                while block := member.read(_BLOCK):
                    left -= len(block)
                    if left < 0:
                        raise SourceError(f"unpacks to more than {limit_bytes >> 20} MiB", "unpack it by hand")
                    out.write(block)
            files.append(target)
        yield files


def _members(path: Path, head: bytes) -> Iterator[IO[bytes]]:
    if head.startswith(b"PK"):
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if not info.is_dir():
                    with archive.open(info) as member:
                        yield member
        return
    if head[257:262] == b"ustar" or tarfile.is_tarfile(path):
        with tarfile.open(path) as tar:
            for entry in tar:
                stream = tar.extractfile(entry) if entry.isfile() else None
                if stream is not None:
                    yield stream
        return
    with gzip.open(path) if head.startswith(b"\x1f\x8b") else bz2.open(path) as file:
        yield cast(IO[bytes], file)


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
            if stat.S_ISFIFO(mode := path.stat().st_mode) or stat.S_ISCHR(mode) or stat.S_ISSOCK(mode):
                # To open a pipe waits for a writer, and a device has no end.
                raise SourceError("is not a regular file", "name a file with seismic waveforms")
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
        self.report(path, f"cannot be read ({in_words(error)})", "check that it exists, and its permissions")

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
            parts.append(f"{counted(len(damaged), 'damaged record')} left out as a gap ({damaged[0].reason})")
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
