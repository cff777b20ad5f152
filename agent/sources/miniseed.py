"""miniSEED records of version 2 and 3, from bytes to sample blocks: the one reader for every source, and for training.

Decoding is libmseed's, called as pymseed binds it (``pymseed.clibmseed``): its Python classes cost three times what a
record's samples cost.

Files of sound records are decoded all at once (``together``): a third of the cost of one after the other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from pymseed import clear_error_messages, configure_logging, get_error_messages
from pymseed.clib import clibmseed, ffi

from agent.sources.channels import Channel, Skipped, band, identify, identify_source, is_text, not_motion, unusable
from agent.sources.framing import Piece, headers, length, pieces
from agent.sources.recording import Columns, Recording, cut, in_order
from agent.types import MAX_BLOCK_S, BlockQuality, SampleBlock, Samples, StreamId

MAX_CHANNELS = 4096
"""Most channels that are remembered; damaged headers could name any number of them."""
_QUESTIONABLE, _LOCKED = 0x02, 0x04
"""miniSEED 3 flags; the decoder maps those of miniSEED 2 to them."""
TYPES: dict[bytes, np.dtype[Any]] = {b"i": np.dtype(np.int32), b"f": np.dtype(np.float32), b"d": np.dtype(np.float64)}
_HEADER = clibmseed.MSF_VALIDATECRC | clibmseed.MSF_ATENDOFFILE
"""A record is given to libmseed alone, also one that does not state its own length."""
DECODE = _HEADER | clibmseed.MSF_UNPACKDATA
_VERSION_3, _M = b"MS\x03", 77
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
    configure_logging()
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
