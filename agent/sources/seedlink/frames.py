"""SeedLink's stream of bytes cut into packets and lines; nothing here knows of sockets.

Version 4 gives every packet's length. Version 3 does not: there it is that of the record, 512 bytes as a rule.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

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
    """Of an answer in several packets: whether this is the last of them."""


class Frames:
    """Takes bytes as they come, gives packets and lines as they are complete."""

    def __init__(self) -> None:
        self.version = 3
        """Of the protocol, once it is settled."""
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
