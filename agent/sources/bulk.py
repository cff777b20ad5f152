"""Files of sound miniSEED records, decoded by libmseed all at once: a third of the cost of one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from pymseed.clib import clibmseed, ffi

from agent.sources.channels import Skipped, is_text, unusable
from agent.sources.framing import Piece, headers, length
from agent.sources.miniseed import DECODE, MESSAGE_BYTES, TYPES, Clock, Record, RecordReader, begin_messages, codes_of
from agent.sources.recording import Columns, Recording, in_order
from agent.types import SampleBlock, Samples, StreamId

LeftOut: TypeAlias = Callable[[Piece, Record | None], None]
_FLAGS = DECODE | clibmseed.MSF_RECORDLIST


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
