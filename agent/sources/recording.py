"""What a file, or a part of one, holds of a channel: many records without an object for each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np

from agent.types import MAX_BLOCK_S, NS, BlockQuality, SampleBlock, Samples, StreamId

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
