"""Channels that the agent can use, what they are called (the same rule for every source and format), and what a file
holds of one: many records without an object for each (``Recording``)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias, cast

import numpy as np

from agent.types import MAX_BLOCK_S, NS, BlockQuality, SampleBlock, Samples, StationId, StreamId

MIN_RATE_HZ = 20.0
MAX_RATE_HZ = 1000.0
_RATE_SLACK = 1e-3
"""Formats that store the sample spacing in few digits give 19.9999997 Hz for 20 Hz."""
_LOWEST_HZ, _HIGHEST_HZ = MIN_RATE_HZ * (1 - _RATE_SLACK), MAX_RATE_HZ * (1 + _RATE_SLACK)

_YEAR_1900_NS = -25567 * 86400 * NS
_YEAR_2100_NS = 47482 * 86400 * NS

_KNOWN = frozenset("ABCDEFIKMOQRSTUVW")
"""SEED instrument codes of what is not ground motion: logs, pressure, calibration, state of health, weather ..."""

_OTHER_FIELDS = {
    "C": "calibration",
    "D": "pressure",
    "F": "a magnetic field",
    "K": "temperature",
    "M": "mass position",
    "W": "wind",
}
"""Those of them that may come with a component letter without meaning ground motion."""

_CHANNEL = 3
_CODE_HINT = "give it a SEED channel code such as HHZ if it records ground motion, or leave it out with a selector"

MAX_CODE = 8
"""Longest network, station or location code of an FDSN source identifier."""

_UPPER = bytes(range(256)).upper()
_CLEAN = bytes(byte if chr(byte).isalnum() and byte < 128 else ord("-") for byte in _UPPER)
_PADDING = b" \0"
_SOURCE_ID = re.compile(rb"(?i)X?FDSN:([^_]*)_([^_]*)_([^_]*)_([^_]*)_([^_]*)_([^_]*)")

Kind: TypeAlias = Literal["damaged", "text", "not_motion", "empty", "rate", "time", "format", "not_asked_for"]


@dataclass(frozen=True, slots=True)
class Skipped:
    """Data that are left out. ``kind`` is one of a few words to count by; ``expected`` where nobody needs to be told of
    it in a file of many channels, such as a log."""

    kind: Kind
    reason: str
    channel: str = ""
    hint: str = ""
    expected: bool = False


@dataclass(frozen=True, slots=True)
class Channel:
    """A channel as a record or file names it.

    ``stream`` is what it is called here, None where it is refused: ``refusal`` says why. ``original`` is the name as
    it was found, where cleaning its codes has changed more than letters' case and padding.
    """

    name: str
    stream: StreamId | None
    refusal: Skipped | None = None
    original: str | None = None
    has_band: bool = True
    """Whether the band code was found; else it follows from the rate, and other records may get another."""

    @property
    def station(self) -> str:
        """``NET_STA``, empty where the codes are refused."""
        return f"{self.stream.station.network}_{self.stream.station.station}" if self.stream else ""

    @property
    def renaming(self) -> tuple[str, str]:
        """What is said of a channel that is called otherwise here than in its records, and the hint."""
        hint = "set network, station and channel codes in the recorder if the name matters"
        return f"channel {self.original!r} lacks FDSN codes; it is called {self.name}", hint


def clean(code: bytes) -> str:
    """A code in upper case without blanks and NULs; whatever is no letter or digit of ASCII becomes a dash."""
    return code.translate(_CLEAN, _PADDING).decode("ascii")


def identify(codes: tuple[bytes, bytes, bytes, bytes], rate_hz: float) -> Channel:
    """What a channel is called here.

    A missing network is ``XX`` and a missing station ``UNKN``; a location of dashes is empty; a channel of one letter
    gets the band code that belongs to its rate, and the instrument ``H``.

    Args:
        codes: network, station, location and channel as they were found, with padding.
        rate_hz: samples a second.
    """
    found = tuple(code.strip(_PADDING) for code in codes)
    original = ".".join(code.decode("latin-1") for code in found)
    network, station, location, channel = (clean(code) for code in codes)
    location = location.strip("-")
    if len(channel) > _CHANNEL:
        reason = f"channel {original!r} is none of the components E, N, Z, 1, 2, 3"
        return Channel(original, None, Skipped("not_motion", reason, original, _CODE_HINT))
    return _channel(original, (network, station, location, channel[:-1]), channel[-1:], rate_hz)


def identify_source(identifier: bytes, rate_hz: float) -> Channel:
    """What a channel is called here whose FDSN source identifier is ``identifier``. See ``identify``."""
    match = _SOURCE_ID.fullmatch(identifier.strip(_PADDING))
    original = identifier.decode("latin-1")
    if match is None:
        hint = "set network, station and channel in the recorder; none of them may have a '_' in it"
        refusal = Skipped("format", f"its name {original!r} is no FDSN source identifier", original, hint)
        return Channel(original, None, refusal)
    network, station, location, band, source, component = (clean(code) for code in match.groups())
    return _channel(original, (network, station, location.strip("-"), band + source), component, rate_hz)


def _channel(original: str, codes: tuple[str, str, str, str], component: str, rate_hz: float) -> Channel:
    """The channel of cleaned codes: network, station, location, and band with source."""
    network, station, location, band_source = codes
    network, station = network or "XX", station or "UNKN"
    for what, code in (("network", network), ("station", station), ("location", location), ("channel", band_source)):
        if len(code) > MAX_CODE:
            reason = f"the {what} code {code!r} of {original!r} has more than {MAX_CODE} characters"
            return Channel(original, None, Skipped("format", reason, original, "give it a shorter code"))
    has_band = bool(band_source or not component)
    if not has_band:
        band_source = band(rate_hz) + "H"
    stream = StreamId(StationId(network, station, location, band_source), component)
    same = original.upper() in (stream.seed, str(stream), stream.seed.replace("..", ".--."))
    return Channel(stream.seed, stream, None, None if same else original, has_band)


def band(rate_hz: float) -> str:
    """The FDSN band code of a broad-band channel at this rate."""
    return "F" if rate_hz >= 1000 else "C" if rate_hz >= 250 else "H" if rate_hz >= 80 else "B"


def is_text(channel: Channel) -> Skipped:
    """Why text is left out."""
    return Skipped("text", f"{channel.name} holds text, not samples", channel.name, "leave it out")


def not_motion(stream: StreamId) -> Skipped | None:
    """Why a channel is left out by its codes, None where it may be ground motion."""
    instrument = stream.station.band_source[1:]
    if stream.row is None:
        reason = f"channel {stream.seed!r} is none of the components E, N, Z, 1, 2, 3"
    elif instrument in _OTHER_FIELDS:
        reason = f"channel {stream.seed!r} records {_OTHER_FIELDS[instrument]} by its code"
    else:
        return None
    return Skipped("not_motion", reason, stream.seed, _CODE_HINT, stream.row is None and instrument in _KNOWN)


def unusable(stream: StreamId, rate_hz: float, start_ns: int, count: int) -> Skipped | None:
    """Why samples of a channel cannot be used, None where they can.

    Args:
        stream: of ground motion, see ``not_motion``.
        rate_hz: samples a second.
        start_ns: time of the first sample.
        count: how many samples there are.
    """
    if count and _LOWEST_HZ <= rate_hz <= _HIGHEST_HZ and _YEAR_1900_NS <= start_ns < _YEAR_2100_NS:
        return None
    name = stream.seed
    if not count or not rate_hz > 0:
        return Skipped("empty", f"{name} holds no samples", name, "nothing needs to be done")
    if not _LOWEST_HZ <= rate_hz <= _HIGHEST_HZ:
        hint = f"Talus works with {MIN_RATE_HZ:g} to {MAX_RATE_HZ:g} Hz: use another channel of this sensor"
        return Skipped("rate", f"{name} is sampled at {rate_hz:g} Hz", name, hint)
    hint = "the recorder's clock may have been wrong: check its GPS or NTP"
    return Skipped("time", f"{name} has a time outside the years 1900 to 2099", name, hint)


SAME_NS = 100_000
"""What miniSEED 2 resolves without blockette 1001: records this close to where they are due are joined."""


class _Run(NamedTuple):
    """Records ``first`` to ``last`` - 1, which are samples ``begin`` to ``end`` - 1."""

    first: int
    last: int
    begin: int
    end: int


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """Records of one channel in the order of their start times, at least one.

    ``samples`` is read-only and holds all records one after the other; the other fields have an entry for each record:
    time of its first sample, samples a second, number of samples (at least one), what it says of its clock.
    """

    stream: StreamId
    samples: Samples
    starts_ns: Sequence[int]
    rates_hz: Sequence[float]
    counts: Sequence[int]
    qualities: Sequence[BlockQuality]
    longest_s: float = MAX_BLOCK_S
    """Records longer than this are handed on in pieces."""

    @classmethod
    def of(cls, blocks: Sequence[SampleBlock]) -> Recording:
        """Blocks of one channel and type of samples, in any order; the pieces of a long record follow each other."""
        starts_ns: list[int] = []
        rates_hz: list[float] = []
        counts: list[int] = []
        qualities: list[BlockQuality] = []
        for block in blocks:
            if block.stamps == ():
                counts[-1] += len(block.samples)
                continue
            starts_ns.append(block.start_ns)
            rates_hz.append(block.rate_hz)
            counts.append(len(block.samples))
            qualities.append(block.quality)
        columns = Columns(starts_ns, rates_hz, counts, qualities)
        return in_order(blocks[0].stream, [block.samples for block in blocks], columns, range(len(counts)))

    def blocks(self) -> Iterator[SampleBlock]:
        """Each record as a block, cut where it is longer than ``longest_s``."""
        stream, samples, longest_s, end = self.stream, self.samples, self.longest_s, 0
        columns = zip(self.starts_ns, self.rates_hz, self.counts, self.qualities, strict=True)
        for start_ns, rate_hz, count, quality in columns:
            begin, end = end, end + count
            block = SampleBlock(stream, start_ns, rate_hz, samples[begin:end], quality)
            if count <= longest_s * rate_hz:
                yield block
            else:
                yield from cut(block, longest_s)

    def packets(self, packet_s: float, grid_ns: int) -> Iterator[SampleBlock]:
        """Blocks of ``packet_s`` seconds, rounded to whole samples, at least one: records are cut, and joined where one
        begins when the one before it ends to within ``SAME_NS``.

        Blocks end where those end that began at ``grid_ns``, whatever part of a file they come from: a detector waits
        for all components, and if their packets ended at different times, it would decide once for each.
        """
        for run in self._runs():
            yield from self._cut(run, packet_s, grid_ns)

    def _runs(self) -> Iterator[_Run]:
        """The runs of records that continue each other."""
        first = begin = index = 0
        rate_hz, origin_ns = self.rates_hz[0], self.starts_ns[0]
        for number, (start_ns, rate, count) in enumerate(zip(self.starts_ns, self.rates_hz, self.counts, strict=True)):
            off_ns = start_ns - origin_ns - (index - begin) * NS / rate_hz
            if rate != rate_hz or not -SAME_NS <= off_ns <= SAME_NS:
                yield _Run(first, number, begin, index)
                first, begin, rate_hz, origin_ns = number, index, rate, start_ns
            index += count
        yield _Run(first, len(self.counts), begin, index)

    def _cut(self, run: _Run, packet_s: float, grid_ns: int) -> Iterator[SampleBlock]:
        """A run in packets; times are exact: start + index / rate, rounded to a nanosecond, nothing summed up."""
        first, _, begin, end = run
        stream, samples, start_ns, rate_hz = self.stream, self.samples, self.starts_ns[first], self.rates_hz[first]
        size = max(1, round(min(packet_s * rate_hz, end - begin)))
        numerator, denominator = rate_hz.as_integer_ratio()
        tick, half = NS * denominator, numerator // 2
        index, until = begin, begin + size
        if size < end - begin:
            ahead = (grid_ns - start_ns) * numerator + tick // 2
            until = begin + (ahead // tick % size or size)
        number, following, quality = first, begin, self.qualities[first]
        while index < end:
            until = min(until, end)
            stamps: tuple[tuple[int, int], ...] = ()
            own = quality
            while following < until:
                quality = self.qualities[number]
                if following == index:
                    own = quality
                stamps += ((following - index, self.starts_ns[number]),)
                following += self.counts[number]
                number += 1
            block_ns = start_ns + ((index - begin) * tick + half) // numerator
            yield SampleBlock(stream, block_ns, rate_hz, samples[index:until], own, stamps=stamps)
            index, until = until, until + size


class Columns(NamedTuple):
    """For each record: time of its first sample, samples a second, number of samples, what it says of its clock."""

    starts_ns: Sequence[int]
    rates_hz: Sequence[float]
    counts: Sequence[int]
    qualities: Sequence[BlockQuality]


def in_order(stream: StreamId, chunks: Sequence[Samples], records: Columns, places: Sequence[int]) -> Recording:
    """A recording of records in any order; of those that begin at the same time, that with the smaller place is first.

    Args:
        stream: the channel.
        chunks: the samples of all records, one after the other, in pieces of any length and one type.
        records: what they say.
        places: a number for each record.
    """
    starts_ns, counts = records.starts_ns, records.counts
    samples = chunks[0] if len(chunks) == 1 else cast(Samples, np.concatenate(chunks))
    if any(map(int.__le__, starts_ns[1:], starts_ns)):
        numbers = sorted(range(len(starts_ns)), key=lambda number: (starts_ns[number], places[number]))
        ends = np.cumsum(counts).tolist()
        samples = cast(Samples, np.concatenate([samples[ends[i] - counts[i] : ends[i]] for i in numbers]))
        records = Columns(
            [starts_ns[i] for i in numbers],
            [records.rates_hz[i] for i in numbers],
            [counts[i] for i in numbers],
            [records.qualities[i] for i in numbers],
        )
    samples.flags.writeable = False
    return Recording(stream, samples, *records)


def cut(block: SampleBlock, longest_s: float) -> tuple[SampleBlock, ...]:
    """A block in pieces of at most ``longest_s`` seconds, at least a sample; times are exact, nothing is summed up."""
    start_ns, rate_hz, samples = block.start_ns, block.rate_hz, block.samples
    size = max(1, int(longest_s * rate_hz))
    if len(samples) <= size:
        return (block,)
    return tuple(
        SampleBlock(
            block.stream,
            start_ns + round(at * NS / rate_hz),
            rate_hz,
            samples[at : at + size],
            block.quality,
            stamps=() if at else None,
        )
        for at in range(0, len(samples), size)
    )
