"""Packets of two minutes where all is well, and of a second where something is missing.

A detector that is fed minutes at a time is several times as fast. But where a component is missing, or comes back, the
others are decided on as far as their packets reach, and what of it comes only then is late: with packets of minutes by
minutes, with a live station's by a second or so. So the spans in which a component begins, ends or has a hole are
handed on in seconds, and a catalogue is what the station would have made of the same ground.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from dataclasses import replace

import numpy as np

from agent.sources.channels import SAME_NS
from agent.types import NS, SampleBlock

PACKET_S = 120.0
_SPAN_NS = 120 * NS
_OFF_NS = NS // 2


def arranged(blocks: Iterable[SampleBlock]) -> Iterator[SampleBlock]:
    """One sensor's blocks, in the order of time, cut on spans of ``PACKET_S`` of UTC, or on seconds."""
    spans: dict[int, list[SampleBlock]] = {}
    before: tuple[int, frozenset[str]] = 0, frozenset()
    for block in blocks:
        newest = _span(block)
        while spans and min(spans) < newest:
            number = min(spans)
            before = yield from _hand_on(number, spans.pop(number), before)
        for piece in _in_spans(block):
            _put(spans.setdefault(_span(piece), []), piece)
    for number in sorted(spans):
        before = yield from _hand_on(number, spans[number], before)


def _hand_on(
    number: int, span: list[SampleBlock], before: tuple[int, frozenset[str]]
) -> Generator[SampleBlock, None, tuple[int, frozenset[str]]]:
    """The blocks of a span; returns its number and the components that were in it."""
    here = frozenset(block.stream.component for block in span)
    whole = len(span) == len(here) and all(_is_whole(block, number) for block in span)
    if not whole or (before[0] == number - 1 and not before[1] <= here):
        span = [piece for block in span for piece in _cut(block, round(block.rate_hz), round(block.rate_hz))]
    yield from sorted(span, key=lambda block: (block.start_ns, block.stream.component))
    return number, here


def _put(span: list[SampleBlock], piece: SampleBlock) -> None:
    """Add a block to a span, or to the block there that it continues: files are read in pieces."""
    for at, before in enumerate(span):
        if _continues(before, piece):
            following = tuple((len(before.samples) + index, time_ns) for index, time_ns in piece.stamps or ())
            samples = np.concatenate([before.samples, piece.samples])
            span[at] = replace(before, samples=samples, stamps=(before.stamps or ()) + following)
            return
    span.append(piece)


def _continues(before: SampleBlock, piece: SampleBlock) -> bool:
    kinds = [(block.stream, block.rate_hz, block.samples.dtype, block.quality) for block in (before, piece)]
    joined = before.stamps is not None and piece.stamps is not None
    return joined and kinds[0] == kinds[1] and abs(piece.start_ns - before.end_ns) <= SAME_NS


def _span(block: SampleBlock) -> int:
    """A clock that runs a little off the grid is on it all the same."""
    return (block.start_ns + _OFF_NS) // _SPAN_NS


def _in_spans(block: SampleBlock) -> Iterator[SampleBlock]:
    """Blocks that are shorter than a span may lie across two."""
    left = round(((_span(block) + 1) * _SPAN_NS - block.start_ns) * block.rate_hz / NS)
    if len(block.samples) <= left + round(block.rate_hz * _OFF_NS / NS):
        yield block
    else:
        yield from _cut(block, left, round(PACKET_S * block.rate_hz))


def _is_whole(block: SampleBlock, number: int) -> bool:
    begins = abs(block.start_ns - number * _SPAN_NS) <= _OFF_NS
    return begins and len(block.samples) >= round((PACKET_S - 2 * _OFF_NS / NS) * block.rate_hz)


def _cut(block: SampleBlock, first: int, size: int) -> Iterator[SampleBlock]:
    """A block in pieces of ``size`` samples, the first of ``first``."""
    stamps, begin, end = block.stamps, 0, first
    while begin < len(block.samples):
        inside: tuple[tuple[int, int], ...] | None = None if stamps is None and begin == 0 else ()
        if stamps is not None:
            inside = tuple((at - begin, time_ns) for at, time_ns in stamps if begin <= at < end)
        start_ns = block.start_ns + round(begin * NS / block.rate_hz)
        yield replace(block, start_ns=start_ns, samples=block.samples[begin:end], stamps=inside)
        begin, end = end, end + size
