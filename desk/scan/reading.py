"""What a unit reads: pieces of files that hold its span, and the hash of their bytes.

The hash is of content, not of names and times: an archive that was copied, moved or restored is not judged anew, and a
file that was changed within its size and time is. It is of those bytes alone that the unit reads, so that a file which
grows by the hour, as today's does, does not undo yesterday. Hashing costs a unit some hundredths of its time; when
nothing has changed since the last run by size and time of change, nothing is read at all (``folder.py``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agent.sources.archive import UNREAD, Part
from agent.sources.miniseed import is_miniseed, parts, starts
from agent.types import NS

PIECE_BYTES = 2 << 20
"""About so much of a file is decoded at once: what bounds a worker's memory, with the number of channels."""
_MARGIN_S = 600
"""Records that begin so long before the span may reach into it."""
_HEAD_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Inputs:
    """Pieces in the order of the files, and the hash (hex) of all their bytes. ``unreadable`` files are in the hash."""

    parts: tuple[Part, ...]
    digest: str


class ChangedError(Exception):
    """A file changed while it was read."""


def inputs(files: Iterable[str], from_ns: int, to_ns: int) -> Inputs:
    """Look through the files for what they hold from ``from_ns`` to before ``to_ns``."""
    found: list[Part] = []
    digest = hashlib.blake2b(digest_size=20)
    for name in files:
        path = Path(name)
        try:
            found += _pieces(path, from_ns, to_ns, digest)
        except OSError as error:
            digest.update(f"\0unreadable {error.strerror}\0".encode())
            # Judging meets it again and says so.
            found.append(Part(from_ns, path, None, 0, UNREAD, planned=True))
    return Inputs(tuple(found), digest.hexdigest())


def check_unchanged(parts_read: Iterable[Part]) -> None:
    """
    Raises:
        ChangedError: a file is not what it was when it was hashed.
    """
    for path, stamp in {part.path: part.stamp for part in parts_read if part.stamp != UNREAD}.items():
        if stamp_of(path) != stamp:
            raise ChangedError(f"{path} changed while it was read")


def stamp(files: Iterable[str]) -> str:
    """What files look like from outside: a hash (hex) of their names, sizes and times of change."""
    seen = hashlib.blake2b(digest_size=10)
    for name in files:
        seen.update(f"{name}\0{stamp_of(Path(name))}\0".encode())
    return seen.hexdigest()


def stamp_of(path: Path) -> tuple[int, int]:
    """Size and time of change; zeros for a file that is not there."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def _pieces(path: Path, from_ns: int, to_ns: int, digest: hashlib.blake2b) -> list[Part]:
    stamp = stamp_of(path)
    found: list[Part] = []
    with path.open("rb") as file:
        if not is_miniseed(file.read(_HEAD_BYTES)):
            file.seek(0)
            while block := file.read(PIECE_BYTES):
                digest.update(block)
            return [Part(from_ns, path, None, stamp[0], stamp, planned=True)]
        for begin, size in parts(path):
            file.seek(begin)
            data = file.read(size)
            for offset, length, first_ns in _ranges(data, from_ns // NS, -(-to_ns // NS)):
                digest.update(memoryview(data)[offset : offset + length])
                found.append(Part(first_ns, path, (begin + offset, length), length, stamp, planned=True))
    return found


def _ranges(data: bytes, from_s: int, to_s: int) -> list[tuple[int, int, int]]:
    """Offset, length and a time before the first record (ns) of each piece of ``data`` with records of the span."""
    at, seconds = starts(data)
    if not len(at):
        return [(0, len(data), from_s * NS)] if data else []
    wanted = np.flatnonzero((seconds >= from_s - _MARGIN_S) & (seconds < to_s))
    if not len(wanted):
        # A record may be longer than the margin.
        before = np.flatnonzero(seconds < from_s)
        if not len(before) or (before[-1] == len(at) - 1 and len(at) > 1):
            return []
        wanted = before[-1:]
    first, last = int(wanted[0]), int(wanted[-1]) + 1
    if first == 0:
        edges = [0]  # what stands before the first record
    else:
        first -= 1
        edges = [int(at[first])]
    found, begin = [], first
    for number in range(first + 1, last):
        if int(at[number]) - edges[-1] >= PIECE_BYTES:
            found.append((edges[-1], int(at[number]) - edges[-1], _before(seconds[begin:number])))
            edges.append(int(at[number]))
            begin = number
    end = int(at[last]) if last < len(at) else len(data)
    found.append((edges[-1], end - edges[-1], _before(seconds[begin:last])))
    return found


def _before(seconds: np.ndarray[tuple[int], np.dtype[np.int64]]) -> int:
    return (int(seconds.min()) - 1) * NS
