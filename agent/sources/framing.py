"""The boundaries of miniSEED records, of version 2 and 3, in bytes that may be damaged or not all there yet.

A record's length is what libmseed makes of its header. Where a record is lost, the next one is searched by what its
header must hold: a sequence number or blanks, a quality, and a time that exists. The codes are not looked at.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from pymseed.clib import clibmseed, ffi

from agent.types import NS

MAX_RECORD_BYTES = 1 << 20
PART_BYTES = 4 << 20
"""Large files are read in parts of this size: a few hours of one channel at 100 Hz, some 10 MB decoded."""

_SEARCH_BYTES = 64 << 10
_FIXED_2, _FIXED_3 = 48, 40
_CLOCK = rb"[\x00-\x17][\x00-\x3b][\x00-\x3c]"
_BIG_DAY = rb"(?:\x07[\x6c-\xff]|\x08[\x00-\x34])[\x00\x01]."
_LITTLE_DAY = rb"(?:[\x6c-\xff]\x07|[\x00-\x34]\x08).[\x00\x01]"
"""A year from 1900 to 2100 and a day below 512, in either byte order."""
_HEADER_2 = re.compile(rb"(?s)[0-9 \0]{6}[DRQM][ \0].{12}(?:%b|%b)%b" % (_BIG_DAY, _LITTLE_DAY, _CLOCK))
_HEADER_3 = re.compile(rb"(?s)MS\x03.{5}%b%b" % (_LITTLE_DAY, _CLOCK))
_MARK = re.compile(rb"[DRQM][ \0]")
_SEARCHED = 27
"""Bytes of a header of version 2 that are looked at."""
_FIRST_YEAR, _LAST_YEAR = 1900, 2100
_QUALITY = np.isin(np.arange(256), list(b"DRQM"))
_SEQUENCE = np.isin(np.arange(256), list(b"0123456789 \0"))
_LARGE_BYTES = 32 << 10
"""From here on numpy is faster than a pattern."""
_VERSION_3 = b"MS\x03"
_VOLUME = re.compile(rb"[0-9]{6}[VAST][ *]")
"""A control header of a SEED volume; data records follow those."""
_version = ffi.new("uint8_t *")
"""What libmseed writes beside a length, and nobody reads."""


class Piece(NamedTuple):
    """Bytes ``begin`` to ``end`` of the input: a whole record, or bytes that are none.

    ``is_cut`` marks the beginning of a record whose end is missing, at the end of the input.
    """

    begin: int
    end: int
    is_record: bool
    is_cut: bool = False


def headers(data: bytes) -> list[int]:
    """Offsets at which a record seems to begin, in order. Where the data are records of one length from beginning to
    end, as a recorder writes them, what looks like a header inside of one is none."""
    size = length(ffi.from_buffer(data), 0, len(data)) if len(data) >= _LARGE_BYTES else None
    if size and len(data) % size == 0:
        every = np.arange(0, len(data), size)
        if len(_sound_2(np.frombuffer(data, np.uint8), every)) == len(every):
            return cast(list[int], every.tolist())
    if len(data) < _LARGE_BYTES:
        found = [match.start() - 6 for match in _MARK.finditer(data, 6) if _HEADER_2.match(data, match.start() - 6)]
    else:
        found = _headers_2(data)
    if _VERSION_3 in data:
        found += [match.start() for match in _HEADER_3.finditer(data)]
        found.sort()
    return found


def _headers_2(data: bytes) -> list[int]:
    """Where ``_HEADER_2`` matches, by numpy, which in large files takes a third of the time."""
    raw, last = np.frombuffer(data, np.uint8), len(data) - _SEARCHED
    found = []
    for odd in (0, 1):
        # Quality and the blank after it as one number: a few bits of them leave one place in two hundred.
        pairs = np.frombuffer(data, "<u2", (last - odd) // 2 + 1, 6 + odd)
        found.append(np.flatnonzero((pairs & 0xDFE0) == 0x0040) * 2 + odd)
    return cast(list[int], np.sort(_sound_2(raw, np.concatenate(found))).tolist())


def _sound_2(raw: NDArray[np.uint8], at: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those of the offsets at which ``_HEADER_2`` matches."""
    at = at[_QUALITY[raw[at + 6]] & ((raw[at + 7] & 0xDF) == 0)]
    at = at[(raw[at + 24] < 24) & (raw[at + 25] < 60) & (raw[at + 26] <= 60)]
    for place in range(6):
        at = at[_SEQUENCE[raw[at + place]]]
    big, little = _numbers(raw, at + 20)
    is_big = (big >= _FIRST_YEAR) & (big <= _LAST_YEAR) & (raw[at + 22] < 2)
    is_little = (little >= _FIRST_YEAR) & (little <= _LAST_YEAR) & (raw[at + 23] < 2)
    return at[is_big | is_little]


def _numbers(raw: NDArray[np.uint8], at: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Numbers of 16 bits, read in big- and in little-endian order."""
    first, second = raw[at].astype(np.int64), raw[at + 1].astype(np.int64)
    return first << 8 | second, second << 8 | first


def starts(data: bytes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where records seem to begin in ``data``, in order, and when by their headers (seconds since 1970)."""
    raw, found = np.frombuffer(data, np.uint8), np.array(headers(data), np.int64)
    # Year and day of 16 bits each, hour, minute, second: the same in both versions, but for the place.
    is_3 = raw[found] == _VERSION_3[0]
    at = found + np.where(is_3, 8, 20)
    (big, little), (big_day, little_day) = _numbers(raw, at), _numbers(raw, at + 2)
    is_big = ~is_3 & (big >= _FIRST_YEAR) & (big <= _LAST_YEAR)
    year, day = np.where(is_big, big, little), np.where(is_big, big_day, little_day)
    days = (year - 1970).astype("datetime64[Y]").astype("datetime64[D]").astype(np.int64) + day - 1
    seconds = days * 86400 + raw[at + 4].astype(np.int64) * 3600 + raw[at + 5].astype(np.int64) * 60 + raw[at + 6]
    return found, seconds


def earliest_ns(data: bytes) -> list[int]:
    """A time shortly before that of the earliest record in ``data`` by the headers, to the second; none if there is no
    record."""
    _, seconds = starts(data)
    return [(int(seconds.min()) - 1) * NS] if len(seconds) else []


def is_miniseed(head: bytes) -> bool:
    """Whether a file that begins with these bytes is miniSEED, or a SEED volume."""
    return length(ffi.from_buffer(head), 0, len(head)) is not None or is_volume(head, 0)


def is_volume(data: bytes, at: int) -> bool:
    """Whether a control header of a SEED volume begins there."""
    return _VOLUME.match(data, at) is not None


def parts(path: Path) -> Iterator[tuple[int, int]]:
    """Offset and size of consecutive pieces of a file, each about ``PART_BYTES`` and cut where a record begins.

    Raises:
        OSError: the file cannot be read.
    """
    total = path.stat().st_size
    with path.open("rb") as file:
        begin = 0
        while begin < total:
            end = begin + PART_BYTES
            while end < total:
                file.seek(end)
                found = headers(file.read(_SEARCH_BYTES))
                if found:
                    end += found[0]
                    break
                end += _SEARCH_BYTES - _FIXED_2
            end = min(end, total)
            yield begin, end - begin
            begin = end


def pieces(data: bytes, *, final: bool = False) -> Iterator[Piece]:
    """The whole records of ``data`` and the bytes between them that are none, in order and without gaps.

    A record that announces more than there is, or with the beginning of another one inside, is no record: its recorder
    lost power in the middle of it. What may become a record once more bytes follow is left out, and so are zeros at the
    end: some recorders fill in a file of fixed size.

    Args:
        data: consecutive bytes, from the beginning of a record or anywhere.
        final: nothing follows; the record at the end that is not whole comes with ``is_cut``.
    """
    buffer, total = ffi.from_buffer(data), len(data)
    starts = headers(data)
    starts.append(total)
    index = at = 0
    while at < total:
        while starts[index] <= at:
            index += 1
        size, following = length(buffer, at, total), starts[index]
        if size == 0 and final and following == total:
            size = _length_at_end(buffer, at, total)
        if size and at + size <= following:
            yield Piece(at, at + size, True)
            at += size
            continue
        end = following
        if following == total:
            end = max(at, len(data.rstrip(b"\0")))
            if size is not None:
                if final:
                    yield Piece(at, total, False, is_cut=True)
                return
            if not final:
                # The last bytes may be the first ones of a header.
                end = min(max(at, total - _FIXED_2 + 1), end)
        if end > at:
            yield Piece(at, end, False)
        if following == total:
            return
        at = end


def length(buffer: Any, at: int, total: int) -> int | None:
    """Length of the record that begins at ``at``; 0 if that cannot be told from what is there, None if none begins."""
    size = int(clibmseed.ms3_detect(buffer + at, total - at, _version))
    return size if size == 0 or _FIXED_3 <= size <= MAX_RECORD_BYTES else None


def _length_at_end(buffer: Any, at: int, total: int) -> int:
    """Length of a record that does not state its own (no blockette 1000) and ends where the data do, 0 if it cannot."""
    record = ffi.new("MS3Record **")
    try:
        if clibmseed.msr3_parse(buffer + at, total - at, record, clibmseed.MSF_ATENDOFFILE, 0):
            return 0
        return int(record[0].reclen)
    finally:
        clibmseed.msr3_free(record)
