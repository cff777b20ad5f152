"""Packets of a minute where all is well, and of a second where something is missing.

A detector that is fed a minute at a time is several times as fast. But where a component is missing, or comes back, the
others are decided on as far as their packets reach, and what of it comes only then is late: with a minute's packets by
up to a minute, with a live station's by a second or so. So the minutes in which a component begins, ends or has a hole
are handed on in seconds, and a catalogue is what the station would have made of the same ground.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from dataclasses import replace

from agent.types import NS, SampleBlock

MINUTE_S = 60.0
MINUTE_NS = 60 * NS
_OFF_NS = NS // 2


def arranged(blocks: Iterable[SampleBlock]) -> Iterator[SampleBlock]:
    """One sensor's blocks, in the order of time, cut on whole minutes of UTC, or on seconds."""
    minutes: dict[int, list[SampleBlock]] = {}
    before: tuple[int, frozenset[str]] = 0, frozenset()
    for block in blocks:
        newest = _minute(block)
        while minutes and min(minutes) < newest:
            number = min(minutes)
            before = yield from _hand_on(number, minutes.pop(number), before)
        for piece in _in_minutes(block):
            minutes.setdefault(_minute(piece), []).append(piece)
    for number in sorted(minutes):
        before = yield from _hand_on(number, minutes[number], before)


def _hand_on(
    number: int, minute: list[SampleBlock], before: tuple[int, frozenset[str]]
) -> Generator[SampleBlock, None, tuple[int, frozenset[str]]]:
    """The blocks of a minute; returns its number and the components that were in it."""
    here = frozenset(block.stream.component for block in minute)
    whole = len(minute) == len(here) and all(_is_whole(block, number) for block in minute)
    if not whole or (before[0] == number - 1 and not before[1] <= here):
        minute = [piece for block in minute for piece in _cut(block, round(block.rate_hz), round(block.rate_hz))]
    yield from sorted(minute, key=lambda block: (block.start_ns, block.stream.component))
    return number, here


def _minute(block: SampleBlock) -> int:
    """A clock that runs a little off the minute is on it all the same."""
    return (block.start_ns + _OFF_NS) // MINUTE_NS


def _in_minutes(block: SampleBlock) -> Iterator[SampleBlock]:
    """Blocks that are shorter than a minute may lie across two."""
    left = round(((_minute(block) + 1) * MINUTE_NS - block.start_ns) * block.rate_hz / NS)
    if len(block.samples) <= left + round(block.rate_hz * _OFF_NS / NS):
        yield block
    else:
        yield from _cut(block, left, round(MINUTE_S * block.rate_hz))


def _is_whole(block: SampleBlock, number: int) -> bool:
    begins = abs(block.start_ns - number * MINUTE_NS) <= _OFF_NS
    return begins and len(block.samples) >= round((MINUTE_S - 2 * _OFF_NS / NS) * block.rate_hz)


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
