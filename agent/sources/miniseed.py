"""What miniSEED 2 record headers say before anything is decoded: where records are, and how good their clocks were.

The layout is that of the fixed section of data header in the SEED 2.4 manual, chapter 8, with blockettes 1000 (record
length) and 1001 (timing quality). ObsPy decodes the samples; it does not say cheaply where a damaged file is still
whole, nor which record carried which flags.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from agent.types import NS, UNKNOWN_QUALITY, BlockQuality

PART_BYTES = 4 << 20
"""Large files are read in parts of this size: a few hours of one channel at 100 Hz, some 10 MB decoded."""

HEADER_2 = re.compile(
    rb"(?s)(?:[0-9]{6}| {6}|\0{6})[DRQM][ \0][A-Za-z0-9 ]{5}.{11}[\x00-\x17][\x00-\x3b][\x00-\x3c]",
)
"""Sequence number (some recorders leave it blank), quality, station, and an hour, minute and second that exist."""

_STEP = 128
"""The shortest record; ObsPy looks for lost records in steps of it."""

_LEAP_SECOND = 60
_LOCKED = 0x20
_QUESTIONABLE = 0x80
_NO_PERCENT = 255

T = TypeVar("T")


def _layout(order: str) -> np.dtype[np.void]:
    fields = {
        "code": (f"{order}S12", 8),
        "year": (f"{order}u2", 20),
        "day": (f"{order}u2", 22),
        "hour": ("u1", 24),
        "minute": ("u1", 25),
        "second": ("u1", 26),
        "fraction": (f"{order}u2", 28),
        "clock": ("u1", 37),
        "data": ("u1", 38),
        "first": (f"{order}u2", 46),
        "type_1": (f"{order}u2", 48),
        "exponent": ("u1", 54),
        "type_2": (f"{order}u2", 56),
        "percent": ("u1", 60),
    }
    formats, offsets = zip(*fields.values(), strict=True)
    return np.dtype({"names": list(fields), "formats": formats, "offsets": offsets, "itemsize": 64})


def is_miniseed(head: bytes) -> bool:
    """Whether the bytes begin with a data record."""
    return HEADER_2.match(head) is not None


def holds_records(head: bytes) -> bool:
    """Whether a data record begins anywhere in the bytes."""
    return HEADER_2.search(head) is not None


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
                match = HEADER_2.search(file.read(PART_BYTES))
                if match:
                    end += match.start()
                    break
                end += PART_BYTES - _STEP
            end = min(end, total)
            yield begin, end - begin
            begin = end


@dataclass(frozen=True, slots=True)
class ClockRecord:
    """Clock quality of one channel over time: ``quality[i]`` holds from ``times_ns[i]`` on."""

    times_ns: tuple[int, ...]
    quality: tuple[BlockQuality, ...]


UNKNOWN_CLOCK = ClockRecord((0,), (UNKNOWN_QUALITY,))


class RecordTable:
    """The record headers of a piece of a file; those at multiples of 128 bytes, which in a sound file are all."""

    def __init__(self, data: bytes) -> None:
        raw = np.frombuffer(data, np.uint8)
        grid = raw[: len(raw) // _STEP * _STEP].reshape(-1, _STEP)[:, :64]
        marked = np.isin(grid[:, 6], list(b"DRQM")) & np.isin(grid[:, 7], list(b" \0"))
        rows = np.array([row for row in np.flatnonzero(marked) if HEADER_2.match(grid[row].tobytes())], np.int64)
        cells = np.ascontiguousarray(grid[rows])
        records = cells.view(_layout(">"))[:, 0]
        if len(records) and not 1900 <= np.median(records["year"]) <= 2100:
            records = cells.view(_layout("<"))[:, 0]
        self._records = records
        self._positions = rows * _STEP
        self._size = len(data)

    @property
    def cut_short(self) -> bool:
        """Whether the last record announces more bytes than there are."""
        if not len(self._records):
            return False
        last = self._records[-1]
        if last["first"] != 48 or last["type_1"] != 1000 or not 7 <= last["exponent"] <= 20:
            return False
        return bool(self._positions[-1] + (1 << int(last["exponent"])) > self._size)

    def clocks(self) -> dict[str, ClockRecord]:
        """The clock record of each channel, by ``NET.STA.LOC.CHA``.

        Many recorders never set the "clock locked" bit, so a channel on which it is never set is unknown rather
        than unlocked.
        """
        return {_seed(code): self._clock(self._records[self._records["code"] == code]) for code in self._codes()}

    def _codes(self) -> NDArray[np.bytes_]:
        codes: NDArray[np.bytes_] = np.unique(self._records["code"])
        return codes

    def _clock(self, records: NDArray[np.void]) -> ClockRecord:
        has_percent = (records["first"] == 48) & (records["type_1"] == 1000) & (records["type_2"] == 1001)
        percent = np.where(has_percent & (records["percent"] <= 100), records["percent"], _NO_PERCENT)
        locked = (records["clock"] & _LOCKED) > 0
        questionable = (records["data"] & _QUESTIONABLE) > 0
        times = _times_ns(records)
        order = np.argsort(times, kind="stable")
        state = (percent.astype(np.int64) << 2 | locked.astype(np.int64) << 1 | questionable)[order]
        changes = np.flatnonzero(np.diff(state, prepend=-1))
        bit_in_use = bool(locked.any())
        return ClockRecord(
            tuple(times[order][changes].tolist()),
            tuple(_quality(value, bit_in_use) for value in state[changes].tolist()),
        )


def _quality(state: int, bit_in_use: bool) -> BlockQuality:
    percent = state >> 2
    return BlockQuality(
        timing_percent=None if percent == _NO_PERCENT else percent,
        clock_locked=bool(state & 2) if bit_in_use else None,
        time_questionable=bool(state & 1),
    )


def _times_ns(records: NDArray[np.void]) -> NDArray[np.int64]:
    year = (records["year"].astype(np.int64) - 1970).astype("datetime64[Y]").astype("datetime64[D]")
    days = year.astype(np.int64) + records["day"].astype(np.int64) - 1
    clock = records["hour"].astype(np.int64) * 3600 + records["minute"].astype(np.int64) * 60 + records["second"]
    times: NDArray[np.int64] = (days * 86400 + clock) * NS + records["fraction"].astype(np.int64) * 100_000
    return times


def _seed(code: bytes) -> str:
    """``NET.STA.LOC.CHA`` of the header's twelve characters (station 5, location 2, channel 3, network 2)."""
    text = code.ljust(12).decode("ascii", "replace")
    station, location, channel, network = text[:5], text[5:7], text[7:10], text[10:]
    return ".".join(part.strip(" \0") for part in (network, station, location, channel))


def carry_leap_seconds(data: bytes) -> bytes | None:
    """The data with 23:59:60 written as the next day's 00:00:00, as UTC without leap seconds has it, which is all that
    ObsPy reads; None where no record begins in such a second."""
    out = bytearray(data)
    for match in HEADER_2.finditer(data):
        at = match.start() + 20
        if data[at + 6] != _LEAP_SECOND:
            continue
        order = ">" if 1900 <= struct.unpack_from(">H", data, at)[0] <= 2100 else "<"
        year, day, hour, minute = struct.unpack_from(f"{order}HHBB", data, at)
        if not (1900 <= year <= 2100 and 1 <= day <= 366):
            continue
        begin = datetime(year, 1, 1, hour, minute, tzinfo=timezone.utc) + timedelta(days=day - 1, minutes=1)
        struct.pack_into(
            f"{order}HHBBB", out, at, begin.year, begin.timetuple().tm_yday, begin.hour, begin.minute, begin.second
        )
    return None if out == data else bytes(out)


def salvage(data: bytes, decode: Callable[[bytes], list[T]]) -> tuple[list[T], int]:
    """Everything that can still be decoded from a damaged piece of a file, and how many records were lost.

    Records are searched at any offset (bytes that were lost or inserted shift all that follow). ``decode`` gets runs
    of records that are aligned to each other; one that it refuses is halved until only the bad records are left out.
    ``decode`` may raise anything.
    """
    starts = [match.start() for match in HEADER_2.finditer(data)]
    ends = [*starts[1:], len(data)]
    found: list[T] = []
    lost = 0
    todo = []
    first = 0
    for i in range(1, len(starts) + 1):
        if i == len(starts) or (starts[i] - starts[i - 1]) % _STEP:
            todo.append((first, i))
            first = i
    todo.reverse()
    while todo:
        first, last = todo.pop()
        try:
            found += decode(data[starts[first] : ends[last - 1]])
        except Exception:  # noqa: BLE001 - whatever it was, the halves will show which record it was
            if last - first == 1:
                lost += 1
            else:
                middle = (first + last) // 2
                todo += [(middle, last), (first, middle)]
    return found, lost
