"""miniSEED records of version 2 and 3, from bytes to sample blocks: the one reader for every source, and for training.

Decoding is libmseed's, called as pymseed binds it (``pymseed.clibmseed``): its Python classes cost three times what a
record's samples cost.

Files of sound records are decoded all at once (``together``): a third of the cost of one after the other.

The bytes may be damaged or not all there yet. A record's length is what libmseed makes of its header. Where a record is
lost, the next one is searched by what its header must hold: a sequence number or blanks, a quality, and a time that
exists. The codes are not looked at.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from pymseed import clear_error_messages, configure_logging, get_error_messages
from pymseed.clib import clibmseed, ffi

from agent.sources.channels import (
    Channel,
    Columns,
    Recording,
    Skipped,
    band,
    cut,
    identify,
    identify_source,
    in_order,
    is_text,
    not_motion,
    unusable,
)
from agent.types import MAX_BLOCK_S, NS, BlockQuality, SampleBlock, Samples, StreamId

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
_MARK = b"D\0"
_MARKS = bytes(_MARK[1] if byte in b" \0" else _MARK[0] if byte in b"DRQM" else 1 for byte in range(256))
"""Makes a mark of any quality and the blank after it, which is found faster than by a pattern."""
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
_this_thread = threading.local()
"""What libmseed writes beside a length, and nobody reads."""


_PACKED = ((b"\x1f\x8b", "gzip"), (b"BZh", "bzip2"), (b"\xfd7zXZ\0", "xz"), (b"(\xb5/\xfd", "zstd"),
           (b"PK\x03\x04", "zip"), (b"7z\xbc\xaf\x27\x1c", "7z"), (b"Rar!", "rar"))  # fmt: skip


def packed(head: bytes) -> str | None:
    """What a file is compressed with that begins like this; None where it is not."""
    return next((name for mark, name in _PACKED if head.startswith(mark)), None)


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
        found, marks = [], data.translate(_MARKS)
        at = marks.find(_MARK, 6)
        while at >= 0:
            if _HEADER_2.match(data, at - 6):
                found.append(at - 6)
            at = marks.find(_MARK, at + 1)
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


MAX_CHANNELS = 4096
"""Most channels that are remembered; damaged headers could name any number of them."""
_QUESTIONABLE, _LOCKED = 0x02, 0x04
"""miniSEED 3 flags; the decoder maps those of miniSEED 2 to them."""
TYPES: dict[bytes, np.dtype[Any]] = {b"i": np.dtype(np.int32), b"f": np.dtype(np.float32), b"d": np.dtype(np.float64)}
_HEADER = clibmseed.MSF_VALIDATECRC | clibmseed.MSF_ATENDOFFILE
"""A record is given to libmseed alone, also one that does not state its own length."""
DECODE = _HEADER | clibmseed.MSF_UNPACKDATA
_M = 77
MESSAGE_BYTES = 200
_MANY = 256
"""Different timing qualities of a channel that are remembered."""
_PREFIX = re.compile(r"^(?:Error: )?(?:X?FDSN:[^ ]* |[^ ]*: )?(?:Warning: )?")
_INTEGRITY = "integrity check"
"""Part of what libmseed says of samples that do not end in the record's own last value."""
_NOT_ITS_LAST = "its samples do not decode to its own last value"
_DAMAGED_HINT = "check the recorder and its disk"
_STATUS = {clibmseed.MS_INVALIDCRC: "its checksum does not fit"}
_FLAGS = DECODE | clibmseed.MSF_RECORDLIST


class Record(NamedTuple):
    """What a record says: ``station`` is ``NET_STA`` (empty if even that is unreadable), ``start_ns`` the time of its
    first sample. Either ``blocks`` or ``skipped`` is filled; of a header read alone, neither may be."""

    station: str
    start_ns: int | None
    blocks: tuple[SampleBlock, ...] = ()
    skipped: Skipped | None = None

    @property
    def sound_ns(self) -> int | None:
        """``start_ns`` where nothing speaks against it."""
        return None if self.skipped is not None and self.skipped.kind in ("damaged", "time") else self.start_ns


@dataclass(slots=True)
class Clock:
    """A channel's clock: whether its recorder ever reported a lock, and what was made of each state so far."""

    locked: bool = False
    qualities: dict[tuple[int, bytes], BlockQuality] = field(default_factory=dict)

    def quality(self, flags: int, extra: bytes) -> BlockQuality:
        """What a record says of its time, by its flags and extra headers (JSON) as miniSEED 3 has them."""
        found = self.qualities.get((flags, extra))
        if found is not None:
            return found
        locked = bool(flags & _LOCKED)
        if locked and not self.locked:
            self.locked = True
            self.qualities.clear()
        found = BlockQuality(
            timing_percent=_percent(extra) if extra else None,
            clock_locked=locked if self.locked else None,
            time_questionable=bool(flags & _QUESTIONABLE),
        )
        if len(self.qualities) < _MANY:
            self.qualities[flags, extra] = found
        return found


class Known(NamedTuple):
    """A channel that was met before. ``stream`` is None where nothing of it is used; ``refusal`` says why."""

    channel: Channel
    station: str
    stream: StreamId | None
    refusal: Skipped | None
    clock: Clock


class RecordReader:
    """Decodes records. Not thread-safe.

    Remembers per channel whether its recorder ever reported a locked clock: many never set that flag, which then means
    nothing.

    Args:
        on_renamed: told once of each channel whose codes had to be cleaned.
    """

    def __init__(self, on_renamed: Callable[[Channel], None] = lambda channel: None) -> None:
        self._on_renamed = on_renamed
        self._handle = ffi.gc(ffi.new("MS3Record **"), clibmseed.msr3_free)
        self._message = ffi.new("char[]", MESSAGE_BYTES)
        self._channels: dict[bytes, Known] = {}
        self._clocks: dict[StreamId | None, Clock] = {}

    def read(self, payload: bytes) -> Record:
        """Decode one record. Never raises for what is in it: whatever cannot be used comes back as ``skipped``."""
        first = next(self.read_all(payload), None)
        if first is None or first[1] is None:
            return Record("", None, skipped=Skipped("damaged", "no whole miniSEED record", "", _DAMAGED_HINT))
        return first[1]

    def read_all(
        self, data: bytes, *, final: bool = True, samples: bool = True
    ) -> Iterator[tuple[Piece, Record | None]]:
        """Decode all records of ``data``, in order; each with the piece of ``data`` that it is. None stands for a piece
        that is no record.

        Args:
            data: bytes of a file, or of a part of one.
            final: nothing follows; see ``pieces``.
            samples: False to read headers alone.
        """
        begin_messages()
        buffer = ffi.from_buffer(data)
        for piece in pieces(data, final=final):
            if piece.is_record:
                yield piece, self._read(data, buffer, piece.begin, piece.end, samples)
            else:
                yield piece, None

    def _read(self, data: bytes, buffer: Any, begin: int, end: int, samples: bool) -> Record:
        wanted = DECODE if samples else _HEADER
        status = clibmseed.msr3_parse(buffer + begin, end - begin, self._handle, wanted, 0)
        if status or clibmseed.ms_rlog_pop(ffi.NULL, self._message, MESSAGE_BYTES, 0) > 0:
            doubt = self._doubt(status)
            if doubt is not None:
                return self._damaged(data, begin, doubt, None if status else self._handle[0].starttime)
        head = self._handle[0]
        rate_hz, start_ns = head.samprate, head.starttime
        if rate_hz < 0:
            rate_hz = -1.0 / rate_hz
        known = self.channel_of(codes_of(data, begin), rate_hz)
        stream = known.stream
        if stream is None or head.encoding == clibmseed.DE_TEXT:
            return Record(known.station, start_ns, skipped=known.refusal or is_text(known.channel))
        refusal = unusable(stream, rate_hz, start_ns, head.samplecnt)
        if refusal is not None or not samples:
            return Record(known.station, start_ns, skipped=refusal)
        dtype = TYPES[head.sampletype]
        values: Samples = np.frombuffer(ffi.buffer(head.datasamples, head.numsamples * dtype.itemsize)[:], dtype)
        flags, extra = head.flags, ffi.unpack(head.extra, head.extralength) if head.extralength else b""
        quality = known.clock.quality(flags, extra)
        block = SampleBlock(stream, start_ns, rate_hz, values, quality)
        return Record(known.station, start_ns, cut(block, MAX_BLOCK_S))

    def _doubt(self, status: int) -> str | None:
        """What speaks against the record just parsed; None where nothing does."""
        said = [_plain(message) for message in get_error_messages()]
        if status:
            return said[0] if said else _STATUS.get(status, "no whole miniSEED record")
        said.append(ffi.string(self._message).decode("latin-1"))
        # Other warnings, as of a number of blockettes that does not fit, say nothing against the samples.
        return _NOT_ITS_LAST if any(_INTEGRITY in message for message in said) else None

    def _damaged(self, data: bytes, begin: int, doubt: str, start_ns: int | None) -> Record:
        """A gap is honest; samples that may have decoded to anything are a step that was never recorded."""
        key = codes_of(data, begin)
        known = self._channels.get(key)
        channel = known.channel if known is not None else _named(key, 0.0)
        return Record(channel.station, start_ns, skipped=Skipped("damaged", doubt, channel.name, _DAMAGED_HINT))

    def channel_of(self, codes: bytes, rate_hz: float) -> Known:
        """The channel that a record's ``codes`` name; ``rate_hz`` is the record's rate."""
        known, key = self._channels.get(codes), codes
        if known is not None and not known.channel.has_band:
            key = codes + band(rate_hz).encode()
            known = self._channels.get(key)
        if known is not None:
            return known
        channel = _named(codes, rate_hz)
        refusal = channel.refusal if channel.stream is None else not_motion(channel.stream)
        clock = self._clocks.get(channel.stream, Clock())
        known = Known(channel, channel.station, None if refusal else channel.stream, refusal, clock)
        if len(self._channels) < MAX_CHANNELS:
            self._channels[key] = known
            if not channel.has_band:
                self._channels[codes + band(rate_hz).encode()] = known
            self._clocks[channel.stream] = clock
            if channel.original is not None and refusal is None:
                self._on_renamed(channel)
        return known


def begin_messages() -> None:
    """Have libmseed keep what it says, in this thread, and forget what it said before."""
    if not hasattr(_this_thread, "keeps"):
        configure_logging()
        _this_thread.keeps = True
    clear_error_messages()


def codes_of(data: bytes, begin: int) -> bytes:
    """The part of a record's header that names its channel."""
    if data[begin] == _M:
        return _VERSION_3 + data[begin + 40 : begin + 40 + data[begin + 33]]
    return data[begin + 8 : begin + 20]


def _named(codes: bytes, rate_hz: float) -> Channel:
    if codes.startswith(_VERSION_3):
        return identify_source(codes.removeprefix(_VERSION_3), rate_hz)
    return identify((codes[10:], codes[:5], codes[5:7], codes[7:10]), rate_hz)


def _percent(extra: bytes) -> int | None:
    try:
        value = json.loads(extra)["FDSN"]["Time"]["Quality"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return int(value) if isinstance(value, int | float) and 0 <= value <= 100 else None


def _plain(message: str) -> str:
    """A message of libmseed's without its prefixes, at most 120 characters."""
    text = _PREFIX.sub("", " ".join(message.split()))
    return text if len(text) <= 120 else text[:117] + "..."


LeftOut: TypeAlias = Callable[[Piece, Record | None], None]


@dataclass(slots=True)
class _Columns:
    """Records of one channel and type of samples: their places in the data, and what they say."""

    clock: Clock
    places: list[int] = field(default_factory=list)
    starts_ns: list[int] = field(default_factory=list)
    rates_hz: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    states: list[tuple[int, bytes]] = field(default_factory=list)
    chunks: list[Samples] = field(default_factory=list)

    def recording(self, stream: StreamId) -> Recording:
        # In the order of the data, as they would be read one after the other; most recorders always say the same.
        states = self.states if len(set(self.states)) > 1 else self.states[:1]
        order = sorted(range(len(states)), key=self.places.__getitem__)
        said = {number: self.clock.quality(*states[number]) for number in order}
        qualities = [said[number] for number in range(len(states))] * (len(self.states) // len(states))
        records = Columns(self.starts_ns, self.rates_hz, self.counts, qualities)
        return in_order(stream, self.chunks, records, self.places)


def recordings(reader: RecordReader, data: bytes, left_out: LeftOut) -> list[Recording]:
    """What ``reader.read_all`` finds in the bytes of a file, or of a part of one, by channel.

    Args:
        reader: knows the channels.
        data: the bytes; nothing follows them.
        left_out: told each piece that gives no samples, and what is said of it.
    """
    sound = together(reader, data)
    if sound is not None:
        for piece, skipped in sound.left_out:
            left_out(piece, skipped)
        return [columns.recording(stream) for (stream, _), columns in sound.channels.items()]
    found: dict[tuple[StreamId, str], list[SampleBlock]] = {}
    for piece, record in reader.read_all(data):
        if record is None or record.skipped is not None:
            left_out(piece, record)
        else:
            for block in record.blocks:
                found.setdefault((block.stream, block.samples.dtype.str), []).append(block)
    return [Recording.of(blocks) for blocks in found.values()]


def together(reader: RecordReader, data: bytes) -> _Together | None:
    """All records of ``data``; None where it is not certain that each byte belongs to a sound one."""
    found = _Together(reader, data)
    return found if found.decode() else None


class _Together:
    def __init__(self, reader: RecordReader, data: bytes) -> None:
        self._reader, self._data = reader, data
        self.channels: dict[tuple[StreamId, str], _Columns] = {}
        self.left_out: list[tuple[Piece, Record]] = []

    def _codes(self, places: list[int]) -> bytes | None:
        """What names the channel of these records; None if it is not the same in all."""
        data = self._data
        # In version 2 the codes are there; in version 3 the time is, which is another in each record.
        if len({data[place + 8 : place + 20] for place in places}) > 1:
            names = {codes_of(data, place) for place in places}
            return names.pop() if len(names) == 1 else None
        return codes_of(data, places[0])

    def _leave_out(self, base: Any, places: list[int], refusals: list[Skipped], station: str) -> None:
        for place, refusal in zip(places, refusals, strict=False):
            size = length(base, place, len(self._data)) or 0
            self.left_out.append((Piece(place, place + size, True), Record(station, None, skipped=refusal)))

    def decode(self) -> bool:
        """Gather them; False where that cannot be done."""
        data = self._data
        begin_messages()
        buffer, traces = ffi.from_buffer(data), ffi.gc(ffi.new("MS3TraceList **"), _free)
        count = clibmseed.mstl3_readbuffer(traces, buffer, len(data), 0, _FLAGS, ffi.NULL, 0)
        if clibmseed.ms_rlog_pop(ffi.NULL, ffi.new("char[]", MESSAGE_BYTES), MESSAGE_BYTES, 0) > 0 or count <= 0:
            return False
        starts = headers(data)
        # Each header begins a record, and the last one ends with the data: then all others end where the next begins.
        if count != len(starts) or length(buffer, starts[-1], len(data)) != len(data) - starts[-1]:
            return False
        base = buffer + 0
        if not all(self._add_segment(base, segment) for segment in _segments(traces[0])):
            return False
        places = [place for columns in self.channels.values() for place in columns.places]
        return sorted(places + [piece.begin for piece, _ in self.left_out]) == starts

    def _add_segment(self, base: Any, segment: Any) -> bool:
        """Records that libmseed has put one after the other; False where they are not to be dealt with together."""
        entry = segment.recordlist.first
        places, starts_ns, rates_hz, counts, states = [], [], [], [], []
        while entry:
            head = entry.msr
            places.append(entry.bufferptr - base)
            starts_ns.append(head.starttime)
            rates_hz.append(head.samprate)
            counts.append(head.samplecnt)
            states.append((head.flags, ffi.unpack(head.extra, head.extralength) if head.extralength else b""))
            entry = entry.next
        if min(rates_hz) < 0:
            rates_hz = [rate if rate >= 0 else -1.0 / rate for rate in rates_hz]
        codes = self._codes(places)
        if codes is None:
            return False
        known = self._reader.channel_of(codes, rates_hz[0])
        if known.stream is None or segment.sampletype == b"t":
            self._leave_out(base, places, [known.refusal or is_text(known.channel)] * len(places), known.station)
            return True
        worst = (min(rates_hz), min(starts_ns), min(counts)), (max(rates_hz), max(starts_ns), 1)
        if any(unusable(known.stream, *extreme) for extreme in worst):
            refusals = [unusable(known.stream, *each) for each in zip(rates_hz, starts_ns, counts, strict=True)]
            left_out = [refusal for refusal in refusals if refusal is not None]
            self._leave_out(base, places, left_out, known.station)
            return len(left_out) == len(places)
        dtype = TYPES[segment.sampletype]
        if segment.numsamples != sum(counts):
            return False
        columns = self.channels.setdefault((known.stream, dtype.str), _Columns(known.clock))
        columns.chunks.append(
            np.frombuffer(ffi.buffer(segment.datasamples, segment.numsamples * dtype.itemsize)[:], dtype)
        )
        columns.places += places
        columns.starts_ns += starts_ns
        columns.rates_hz += rates_hz
        columns.counts += counts
        columns.states += states
        return True


def _segments(traces: Any) -> Iterator[Any]:
    trace = traces.traces.next[0]
    while trace:
        segment = trace.first
        while segment:
            yield segment
            segment = segment.next
        trace = trace.next[0]


def _free(traces: Any) -> None:
    clibmseed.mstl3_free(traces, 1)
