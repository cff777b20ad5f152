"""What the bytes of a miniSEED file hold by their headers: channels and spans of time, without a sample decoded."""

from __future__ import annotations

from typing import Any

from pymseed.clib import clibmseed, ffi

from agent.sources.channels import unusable
from agent.sources.miniseed import MESSAGE_BYTES, RecordReader, begin_messages, codes_of, headers
from agent.types import NS, StreamId

_FLAGS = clibmseed.MSF_VALIDATECRC | clibmseed.MSF_ATENDOFFILE | clibmseed.MSF_RECORDLIST


def extents(reader: RecordReader, data: bytes) -> list[tuple[StreamId, int, int]] | None:
    """Each unbroken run of samples: channel, time of its first sample, and when the next one would be due (ns).

    None where it is not certain that each byte belongs to a sound record, or where something of it cannot be used:
    then only decoding says what is there.
    """
    begin_messages()
    buffer, traces = ffi.from_buffer(data), ffi.gc(ffi.new("MS3TraceList **"), _free)
    count = clibmseed.mstl3_readbuffer(traces, buffer, len(data), 0, _FLAGS, ffi.NULL, 0)
    if clibmseed.ms_rlog_pop(ffi.NULL, ffi.new("char[]", MESSAGE_BYTES), MESSAGE_BYTES, 0) > 0 or count <= 0:
        return None
    if count != len(headers(data)):
        return None
    base, found = buffer + 0, []
    trace = traces[0].traces.next[0]
    while trace:
        segment = trace.first
        while segment:
            one = _extent(reader, data, base, segment)
            if one is None:
                return None
            found.append(one)
            segment = segment.next
        trace = trace.next[0]
    return found


def _extent(reader: RecordReader, data: bytes, base: Any, segment: Any) -> tuple[StreamId, int, int] | None:
    place, rate_hz = segment.recordlist.first.bufferptr - base, segment.samprate
    known = reader.channel_of(codes_of(data, place), rate_hz)
    if known.stream is None or not rate_hz > 0:
        return None
    if unusable(known.stream, rate_hz, segment.starttime, segment.samplecnt) is not None:
        return None
    return known.stream, segment.starttime, segment.endtime + round(NS / rate_hz)


def _free(traces: Any) -> None:
    clibmseed.mstl3_free(traces, 1)
