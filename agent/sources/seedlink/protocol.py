"""SeedLink 3 and 4 as data: packets out of bytes, commands and what servers answer; nothing here knows of sockets.

Version 4 gives every packet's length. Version 3 does not: there it is that of the record, 512 bytes as a rule.
"""

from __future__ import annotations

import json
import re
import struct
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Literal

_RECORD_HEAD_BYTES = 48
_V3_HEADER = re.compile(rb"SL(?:INFO[ *]|[0-9A-Fa-f]{6})")
_V3_HEADER_BYTES = 8
_V3_RECORD_BYTES = 512
_V3_SEARCHED_BYTES = 256 << 10
_V4_HEADER = struct.Struct("<2s1s1sIQB")
_V2_FIXED_BYTES, _V3_FIXED_BYTES = 48, 40
_LEAST_RECORD_BYTES = 56
"""Enough of a record to read its length; none is shorter."""
_MAX_RECORD_BYTES = 128 << 10
_MAX_PAYLOAD = 4 << 20
"""Longer than any record; the list of all stations of a large server fits."""
MAX_LINE = 4096
_SHIFT_BYTES = 64 << 10
_HALF_3, _WHOLE_3, _WHOLE_4 = 1 << 23, 1 << 24, 1 << 64
_MARKUP = re.compile(rb"<!(?:DOCTYPE|ENTITY)", re.IGNORECASE)


class ForeignError(Exception):
    """What came is not SeedLink; ``found`` is how it begins."""

    def __init__(self, found: bytes) -> None:
        super().__init__(found)
        self.found = found


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet. ``station`` (``NET_STA``) is empty in version 3, whose header does not name it; so is ``sequence``
    None in an answer to INFO. ``form`` is ``2`` or ``3`` for miniSEED, ``J`` or ``X`` for an answer to INFO."""

    sequence: int | None
    station: str
    form: str
    payload: bytes
    last: bool = True
    """Whether this is the last packet of an answer."""


class Frames:
    """Takes bytes as they come, gives packets and lines as they are complete."""

    def __init__(self) -> None:
        self.version = 3
        """Version of the protocol, once it is agreed."""
        self.skipped_bytes = 0
        """Bytes between packets that belonged to none."""
        self._data = bytearray()
        self._start = 0

    def __len__(self) -> int:
        return len(self._data) - self._start

    def add(self, piece: bytes) -> None:
        """Bytes that came."""
        if self._start > _SHIFT_BYTES:
            del self._data[: self._start]
            self._start = 0
        self._data += piece

    def pop(self, size: int) -> bytes:
        """The next ``size`` bytes, or what there is, as they are."""
        piece = bytes(self._data[self._start : self._start + size])
        self._start += len(piece)
        if self._start == len(self._data):
            self._data.clear()
            self._start = 0
        return piece

    def packet(self) -> Packet | None:
        """The next packet, None until it is complete. An ERROR line is a packet of form ``E``.

        Raises:
            ForeignError: this is not SeedLink of the version that was settled.
        """
        while len(self) >= _V3_HEADER_BYTES or self._data.endswith(b"\r\n", self._start):
            head = bytes(self._data[self._start : self._start + _V4_HEADER.size])
            if self.version >= 4 and head.startswith(b"SE"):
                return self._packet_4(head)
            if self.version < 4 and _V3_HEADER.match(head):
                return self._packet_3(head)
            before = len(self)
            line = self.line()
            if line is None and head.startswith((b"ERROR", b"OK")) and len(self) < MAX_LINE:
                return None
            if line is not None and line.startswith("ERROR"):
                return Packet(None, "", "E", line.encode())
            if line is not None and line.startswith("OK"):
                continue
            if line is not None or self.version >= 4:
                self.skipped_bytes += before - len(self)
                raise ForeignError(line.encode() if line else head)
            if not self._skip():
                return None
        return None

    def line(self) -> str | None:
        """The next line of printable ASCII, without its end; None if there is none, or not yet."""
        end = self._data.find(b"\n", self._start, self._start + MAX_LINE)
        if end < 0:
            return None
        line = bytes(self._data[self._start : end]).strip()
        if not re.fullmatch(rb"[\x20-\x7e\r]*", line):
            return None
        self.pop(end + 1 - self._start)
        return line.decode("ascii")

    def _packet_4(self, head: bytes) -> Packet | None:
        if len(head) < _V4_HEADER.size:
            return None
        _, form, sub, size, sequence, name_size = _V4_HEADER.unpack(head)
        if size > _MAX_PAYLOAD:
            raise ForeignError(head)
        if len(self) < _V4_HEADER.size + name_size + size:
            return None
        self.pop(_V4_HEADER.size)
        station = self.pop(name_size).decode("ascii", "replace")
        payload = self.pop(size)
        if form == b"J":
            return Packet(None, station, "E" if sub == b"E" else "J", payload)
        return Packet(sequence, station, form.decode("latin-1"), payload)

    def _packet_3(self, head: bytes) -> Packet | None:
        have = len(self) - _V3_HEADER_BYTES
        if have < _LEAST_RECORD_BYTES:
            return None
        begin = self._start + _V3_HEADER_BYTES
        size = _record_length(self._data, begin) or _V3_RECORD_BYTES
        # A damaged header must not swallow the packets behind it.
        if size > _V3_RECORD_BYTES and _V3_HEADER.match(self._data, begin + _V3_RECORD_BYTES):
            size = _V3_RECORD_BYTES
        if have < size:
            return None
        self.pop(_V3_HEADER_BYTES)
        payload = self.pop(size)
        if head[2:6] == b"INFO":
            return Packet(None, "", "X", payload, last=head[7:8] != b"*")
        return Packet(int(head[2:8], 16), "", "3" if payload.startswith(b"MS\x03") else "2", payload)

    def _skip(self) -> bool:
        """Drop what belongs to no packet, up to the next header; False when none is in sight yet."""
        match = _V3_HEADER.search(self._data, self._start + 1)
        lost = match.start() - self._start if match else max(0, len(self) - (_V3_HEADER_BYTES - 1))
        self.skipped_bytes += lost
        found = self.pop(lost)
        if self.skipped_bytes > _V3_SEARCHED_BYTES:
            raise ForeignError(found[:20])
        return match is not None


def _record_length(data: bytearray, begin: int) -> int | None:
    """Length of the miniSEED record that begins there, by its header; None if that does not tell."""
    if data[begin : begin + 3] == b"MS\x03":
        name, extra, samples = struct.unpack_from("<BHI", data, begin + 33)
        size = _V3_FIXED_BYTES + int(name) + int(extra) + int(samples)
        return size if size <= _MAX_RECORD_BYTES else None
    for order in ">", "<":
        first, kind, _, _, _, exponent = struct.unpack_from(f"{order}HHHBBB", data, begin + 46)
        if first == _V2_FIXED_BYTES and kind == 1000 and 7 <= exponent <= 17:
            return 1 << int(exponent)
    return None


def ahead(version: int, sequence: int, of: int) -> bool:
    """Whether ``sequence`` comes after ``of``; those of version 3 begin anew after 24 bits."""
    if version >= 4:
        return sequence > of
    return 0 < (sequence - of) % _WHOLE_3 < _HALF_3


@dataclass(frozen=True, slots=True)
class Holding:
    """First and last sequence number that a server holds of a station. Some servers give the number that comes next
    instead of the last."""

    first: int
    last: int

    def has(self, version: int, sequence: int) -> bool:
        """Whether the server may have a packet of this number."""
        return not ahead(version, sequence, self.last) and not ahead(version, self.first, sequence)


@dataclass(frozen=True, slots=True)
class Beginning:
    """From where one station is asked for: the packet after number ``sequence``, or data from ``time_s`` (UTC, seconds
    since 1970) on, or ``all`` that the server holds, or what comes ``next``."""

    kind: Literal["number", "time", "all", "next"]
    sequence: int = 0
    time_s: int = 0

    def command(self, version: int, holding: Holding | None) -> str:
        """The DATA or TIME command.

        Args:
            version: of the protocol, 3 or 4.
            holding: what the server holds of the station, if it told.
        """
        if version >= 4:
            return {
                "number": f"DATA {self.sequence + 1}",
                "time": f"DATA ALL {iso(self.time_s)}",
                "all": "DATA ALL",
                "next": "DATA",
            }[self.kind]
        if self.kind == "number":
            return f"DATA {(self.sequence + 1) % _WHOLE_3:06X}"
        if self.kind == "time" and holding is None:
            return f"TIME {_commas(self.time_s)}"
        if holding is None or self.kind == "next":
            return "DATA"
        # Servers need not bear TIME for some stations and DATA for others.
        return f"DATA {holding.first:06X}" + (f" {_commas(self.time_s)}" if self.kind == "time" else "")


def iso(seconds: int) -> str:
    """The time as SeedLink 4 writes it, UTC to the second."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _commas(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y,%m,%d,%H,%M,%S")


def in_notation(selector: str, version: int) -> str | None:
    """The selector in a version's notation: ``00HH?`` in 3, ``00_H_H_?`` in 4; None if that version cannot say it."""
    sign, body = ("!", selector[1:]) if selector.startswith("!") else ("", selector)
    name, dot, kind = body.partition(".")
    parts = name.split("_")
    if version >= 4:
        if len(parts) == 4:
            return selector
        location, channel = name[:-3], name[-3:]
        location = {"": "*", "--": ""}.get(location, location)
        # Records of samples are all that is used of what comes, so the older notation's type may be left out.
        return f"{sign}{location}_{channel[0]}_{channel[1]}_{channel[2]}"
    if len(parts) != 4:
        # Version 3 knows '?' alone, and one of it is what '*' means for a code of one character.
        return f"{sign}{name.replace('*', '?')}{dot}{kind}"
    location, band, source, component = parts
    if any(len(part) != 1 for part in (band, source, component)) or len(location) not in (0, 1, 2):
        return None
    if len(location) == 1 and location != "*":
        return None
    prefix = {"": "--", "*": "", "**": "", "??": ""}.get(location, location)
    channel = (band + source + component).replace("*", "?")
    return f"{sign}{prefix}{channel}{dot}{kind}" if len(kind) <= 1 else f"{sign}{prefix}{channel}"


def match(pattern: str) -> Callable[[str], bool]:
    """Whether a name fits a pattern with ``*`` and ``?``."""
    whole = re.compile("".join({"*": ".*", "?": "."}.get(c, re.escape(c)) for c in pattern))
    return lambda name: whole.fullmatch(name) is not None


def holdings(answer: bytes, version: int, software: str) -> dict[str, Holding] | None:
    """What a server holds of each station, by its answer to INFO; None if that does not tell."""
    return _holdings_4(answer) if version >= 4 else _holdings_3(answer, software)


def _holdings_4(answer: bytes) -> dict[str, Holding] | None:
    try:
        return {
            str(station["id"]): _holding(int(station["start_seq"]), int(station["end_seq"]), _WHOLE_4)
            for station in json.loads(answer).get("station", ())
            if station.get("end_seq") is not None and station.get("start_seq") is not None
        }
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def _holding(first: int, last: int, whole: int) -> Holding:
    if not (0 <= first < whole and 0 <= last < whole):
        raise ValueError(f"{first} to {last} are no sequence numbers")
    return Holding(first, last)


def _holdings_3(answer: bytes, software: str) -> dict[str, Holding] | None:
    """Out of XML, which is not parsed if it defines anything: only an attack would."""
    if _MARKUP.search(answer):
        return None
    try:
        root = ET.fromstring(answer.rstrip(b"\0 "))  # noqa: S314
        ranges = {
            f"{station.attrib['network']}_{station.attrib['name']}": (
                station.attrib["begin_seq"], station.attrib["end_seq"],
            )
            for station in root.iter("station")
        }  # fmt: skip
        base = _base([number for pair in ranges.values() for number in pair], software)
        return {
            name: _holding(int(first, base) % _WHOLE_3, int(last, base) % _WHOLE_3, _WHOLE_3)
            for name, (first, last) in ranges.items()
            if int(last, base)
        }
    except (ET.ParseError, ValueError, LookupError):  # no such attribute, or an encoding that does not exist
        return None


def _base(numbers: Sequence[str], software: str) -> int:
    """Sequence numbers of version 3 are hexadecimal; ringserver lists them in decimal since its version 4."""
    if (ringserver(software) or 0) < 4:
        return 16
    return 16 if any(re.search("^0.|[A-Fa-f]", number) for number in numbers) else 10


def ringserver(software: str) -> int | None:
    """The major version of a ringserver; None if it is another server."""
    found = re.search(r"RingServer/(\d{1,4})", software, re.IGNORECASE)
    return None if found is None else int(found[1])


def log_text(record: bytes) -> bytes:
    """The text of a miniSEED 2 log record, in which version 3 wraps its answers."""
    for order in ">", "<":
        (count,), (begin,) = struct.unpack_from(f"{order}H", record, 30), struct.unpack_from(f"{order}H", record, 44)
        if _RECORD_HEAD_BYTES <= begin <= len(record) and count <= len(record) - begin:
            return record[begin : begin + count]
    return b""
