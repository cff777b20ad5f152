"""Where one miniSEED record ends and the next begins, in bytes that may be damaged or not all there yet.

Record lengths stand in blockette 1000 (SEED 2.4 manual, chapter 8) or follow from the three lengths in the fixed header
of miniSEED 3 (FDSN, 2023).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from agent.sources.miniseed import HEADER_2

MAX_RECORD_BYTES = 1 << 20
_HEADER_3 = re.compile(rb"(?s)MS\x03.{9}[\x00-\x17][\x00-\x3b][\x00-\x3c]")
_ANY = re.compile(rb"(?s)%b|%b" % (HEADER_2.pattern.removeprefix(b"(?s)"), _HEADER_3.pattern.removeprefix(b"(?s)")))
_FIXED_2, _FIXED_3 = 48, 40
_BLOCKETTES = 16


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes ``begin`` to ``end`` of the input; either a whole record or nothing that can be one."""

    begin: int
    end: int
    is_record: bool


def holds_record(data: bytes) -> bool:
    """Whether a record of either version seems to begin anywhere in the bytes."""
    return _ANY.search(data) is not None


def pieces(data: bytes) -> Iterator[Piece]:
    """The whole records of ``data`` and the junk between them, in order and without gaps.

    What may become a record once more bytes follow is left out, and so are zeros at the end: some recorders fill in a
    file of fixed size. A record that announces more than there is, with the beginning of another one inside, is junk.
    """
    at = 0
    while at < len(data):
        size = _size(data, at)
        # A recorder that lost power in the middle of a record goes on with a new one: its header is inside the old one.
        if size is not None and 0 < size <= len(data) - at and not HEADER_2.search(data, at + _FIXED_2, at + size):
            yield Piece(at, at + size, True)
            at += size
            continue
        following = _ANY.search(data, at + (_FIXED_3 if size is not None else 1))
        if following is not None:
            end = following.start()
        elif size is not None:
            return
        else:
            # The last bytes may be the first ones of a header.
            end = min(max(at, len(data) - _FIXED_2 + 1), max(at, len(data.rstrip(b"\0"))))
        if end > at:
            yield Piece(at, end, False)
        if following is None:
            return
        at = end


def _size(data: bytes, at: int) -> int | None:
    """Length of the record that begins here; 0 if its header is not all there, None if none begins here."""
    if HEADER_2.match(data, at):
        return _size_2(data, at)
    if _HEADER_3.match(data, at):
        if at + _FIXED_3 > len(data):
            return 0
        name, extra, samples = struct.unpack_from("<BHI", data, at + 33)
        size = _FIXED_3 + name + extra + samples
        return size if size <= MAX_RECORD_BYTES else None
    return None


def _size_2(data: bytes, at: int) -> int | None:
    if at + _FIXED_2 > len(data):
        return 0
    year, day = struct.unpack_from(">HH", data, at + 20)
    order = ">" if 1900 <= year <= 2100 and 1 <= day <= 366 else "<"
    (offset,) = struct.unpack_from(f"{order}H", data, at + 46)
    for _ in range(_BLOCKETTES):
        if offset < _FIXED_2:
            return None
        if at + offset + 8 > len(data):
            return 0 if offset < MAX_RECORD_BYTES else None
        kind, following = struct.unpack_from(f"{order}HH", data, at + offset)
        if kind == 1000:
            exponent = data[at + offset + 6]
            return 1 << exponent if 7 <= exponent <= 20 else None
        offset = following if following > offset else 0
    return None
