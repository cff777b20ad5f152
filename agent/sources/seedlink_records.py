"""From one miniSEED record, of version 2 or 3, to sample blocks: what is used, what is not and why."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from agent.errors import DataError
from agent.sources.intake import MAX_RATE_HZ, MIN_RATE_HZ, OTHER_FIELDS
from agent.types import MAX_BLOCK_S, NS, BlockQuality, SampleBlock, Samples, StreamId, format_ns

_QUESTIONABLE, _LOCKED = 0x02, 0x04
"""miniSEED 3 flags; the decoder maps those of miniSEED 2 to them."""
_RATE_SLACK = 1e-3
_YEAR_2100_NS = 47482 * 86400 * NS
MAX_CHANNELS = 4096
"""So many channels are remembered; damaged headers could name any number of them."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A record, or what should have been one, that gives no samples. ``kind`` is one of a few words to count by."""

    kind: Literal["damaged", "text", "not_motion", "empty", "rate", "time", "format", "not_asked_for"]
    reason: str
    channel: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Record:
    """What a record says: ``station`` is ``NET_STA`` (empty if even that is unreadable), ``start_ns`` the time of its
    first sample. Either ``blocks`` or ``skipped`` is filled."""

    station: str
    start_ns: int | None
    blocks: tuple[SampleBlock, ...] = ()
    skipped: Skipped | None = None

    @property
    def sound_ns(self) -> int | None:
        """``start_ns`` where nothing speaks against it."""
        return None if self.skipped is not None and self.skipped.kind in ("damaged", "time") else self.start_ns


class RecordReader:
    """Decodes records one by one. Remembers per channel whether its recorder ever reported a locked clock: many never
    set that flag, which then means nothing. Not thread-safe."""

    def __init__(self) -> None:
        # Only SeedLink needs the decoder.
        from pymseed import MiniSEEDError, MS3Record, get_error_messages

        self._parse, self._error, self._messages = MS3Record.parse, MiniSEEDError, get_error_messages
        self._locks: set[str] = set()

    def read(self, payload: bytes) -> Record:
        """Decode one record. Never raises for what is in it: whatever cannot be used comes back as ``skipped``."""
        try:
            record = self._parse(payload, unpack_data=True)
            doubts = self._messages()
            name = record.sourceid.replace("FDSN:_", "FDSN:XX_", 1)  # recorders without a network code
            extra = record.extra
        except (self._error, ValueError, UnicodeDecodeError) as error:
            return Record("", None, skipped=_damaged(error))
        try:
            stream = StreamId.parse(name)
        except DataError as error:
            return Record("", None, skipped=_damaged(error.message, name))
        station, start_ns = f"{stream.station.network}_{stream.station.station}", int(record.starttime)
        if doubts:
            # The samples may decode to anything; a gap is honest, a step that was never recorded is not.
            return Record(station, start_ns, skipped=_damaged(doubts[0], name))
        skipped = _unusable(stream, record.sampletype, float(record.samprate), start_ns, int(record.numsamples))
        if skipped is not None:
            return Record(station, start_ns, skipped=skipped)
        samples: Samples = np.array(record.np_datasamples)
        samples.flags.writeable = False
        quality = self._quality(name, int(record.flags), extra)
        rate_hz = float(record.samprate)
        return Record(station, start_ns, tuple(_blocks(stream, start_ns, rate_hz, samples, quality)))

    def _quality(self, name: str, flags: int, extra: str) -> BlockQuality:
        locked = bool(flags & _LOCKED)
        if locked and len(self._locks) < MAX_CHANNELS:
            self._locks.add(name)
        return BlockQuality(
            timing_percent=_percent(extra),
            clock_locked=locked if name in self._locks else None,
            time_questionable=bool(flags & _QUESTIONABLE),
        )


def _percent(extra: str) -> int | None:
    """Timing quality out of a record's extra headers (JSON); blockette 1001 of miniSEED 2 is mapped there."""
    if '"Quality"' not in extra:
        return None
    import json

    try:
        value = json.loads(extra)["FDSN"]["Time"]["Quality"]
    except (ValueError, KeyError, TypeError):
        return None
    return int(value) if isinstance(value, int | float) and 0 <= value <= 100 else None


def _damaged(error: object, channel: str = "") -> Skipped:
    text = " ".join(str(error).split()).removeprefix("Error: ").partition(" :: ")[0]
    return Skipped("damaged", text if len(text) <= 120 else text[:117] + "...", channel)


def _unusable(stream: StreamId, kind: str | None, rate_hz: float, start_ns: int, count: int) -> Skipped | None:
    name = stream.seed
    if kind == "t":
        return Skipped("text", "text, not samples", name)
    if stream.row is None or stream.station.band_source[1:] in OTHER_FIELDS:
        return Skipped("not_motion", "not ground motion", name, "leave the channel out with a selector")
    if not count or not rate_hz > 0 or not math.isfinite(rate_hz):
        return Skipped("empty", "no samples", name)
    if not MIN_RATE_HZ * (1 - _RATE_SLACK) <= rate_hz <= MAX_RATE_HZ * (1 + _RATE_SLACK):
        hint = f"Talus works with {MIN_RATE_HZ:g} to {MAX_RATE_HZ:g} Hz: select another channel of this sensor"
        return Skipped("rate", f"sampled at {rate_hz:g} Hz", name, hint)
    if not 0 <= start_ns < _YEAR_2100_NS:
        return Skipped("time", "a time outside the years 1970 to 2099", name, "check the recorder's clock")
    return None


def _blocks(
    stream: StreamId, start_ns: int, rate_hz: float, samples: Samples, quality: BlockQuality
) -> list[SampleBlock]:
    """The record in pieces of at most ``MAX_BLOCK_S``; times are exact, nothing is summed up."""
    size = max(1, int(MAX_BLOCK_S * rate_hz))
    return [
        SampleBlock(
            stream,
            start_ns + round(at * NS / rate_hz),
            rate_hz,
            samples[at : at + size],
            quality,
            stamps=() if at else None,
        )
        for at in range(0, len(samples), size)
    ]


def describe(block: SampleBlock) -> str:
    """A block in a line, for the operator."""
    return f"{block.stream.seed} at {block.rate_hz:g} Hz, newest sample {format_ns(block.end_ns)}"
