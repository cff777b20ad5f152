"""Envelopes: the smallest and largest sample of each second of one component, in blocks of ten minutes of data time.

What a drum plot needs, for a link that carries no samples. A packet that comes twice changes nothing, and one that
comes late is taken until ``GRACE_NS`` after its block's end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agent.dsp.continuity import LARGEST
from agent.messages.payloads import Message, Stamp, envelope_message
from agent.types import COMPONENTS, NS, SampleBlock, StationId

BLOCK_S = 600
GRACE_NS = 30 * NS
SET_BACK_NS = 3600 * NS
"""Data so much older than the newest mean that the clock was set back, or was wrong before."""
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Extremes:
    """``low[s]`` and ``high[s]``: counts in second ``s`` after ``start_ns``; NaN where no sample came."""

    start_ns: int
    low: Floats
    high: Floats


class Envelope:
    """One component of one sensor. Owned by one thread."""

    def __init__(self) -> None:
        self._open: dict[int, tuple[Floats, Floats]] = {}
        """Blocks in the making, by their number since 1970."""
        self._newest_ns = 0
        self._closed = -1
        """Number of the newest block that was given away."""

    def feed(self, block: SampleBlock) -> list[Extremes]:
        """Take one packet; the blocks that are complete by now."""
        samples = np.asarray(block.samples, np.float64)
        if not len(samples):
            return []
        if block.start_ns < self._newest_ns - SET_BACK_NS:
            found = self.flush()
            self._newest_ns, self._closed = 0, -1
        else:
            found = []
        times = block.start_ns + np.round(np.arange(len(samples)) * (NS / block.rate_hz)).astype(np.int64)
        seconds = times // NS
        firsts = np.concatenate([[0], np.flatnonzero(np.diff(seconds)) + 1])
        usable = np.where(np.abs(samples) <= LARGEST, samples, np.nan)
        low, high = np.fmin.reduceat(usable, firsts), np.fmax.reduceat(usable, firsts)
        for second, least, most in zip(seconds[firsts].tolist(), low, high, strict=True):
            number, place = divmod(second, BLOCK_S)
            if number <= self._closed:
                continue
            if number not in self._open:
                self._open[number] = np.full(BLOCK_S, np.nan), np.full(BLOCK_S, np.nan)
            lows, highs = self._open[number]
            lows[place], highs[place] = np.fmin(lows[place], least), np.fmax(highs[place], most)
        self._newest_ns = max(self._newest_ns, int(times[-1]))
        done = (self._newest_ns - GRACE_NS) // NS // BLOCK_S - 1
        return found + [self._close(number) for number in sorted(self._open) if number <= done]

    def flush(self) -> list[Extremes]:
        """The data end here: what is there of the blocks in the making."""
        return [self._close(number) for number in sorted(self._open)]

    def _close(self, number: int) -> Extremes:
        low, high = self._open.pop(number)
        self._closed = max(self._closed, number)
        return Extremes(number * BLOCK_S * NS, low, high)


class Envelopes:
    """``feed`` every packet in the order of arrival, ``flush`` at the end. Owned by one thread."""

    def __init__(self, component: str, prefix: str, stamp: Callable[[], Stamp], *, exercise: bool) -> None:
        """``component``: E, N or Z; ``stamp`` numbers a message."""
        self._row = COMPONENTS.index(component)
        self._prefix, self._stamp, self._exercise = prefix, stamp, exercise
        self._meters: dict[StationId, Envelope] = {}
        self._names: dict[StationId, str] = {}
        """The component of each sensor as its channel has it: Z or 3."""

    def feed(self, block: SampleBlock) -> list[Message]:
        """Take one packet; the messages of the blocks that are complete by now."""
        if block.stream.row != self._row:
            return []
        sensor = block.stream.station
        meter = self._meters.setdefault(sensor, Envelope())
        self._names[sensor] = block.stream.component
        return self._word(sensor, meter.feed(block))

    def flush(self) -> list[Message]:
        """The data end here."""
        return [message for sensor, meter in self._meters.items() for message in self._word(sensor, meter.flush())]

    def _word(self, sensor: StationId, blocks: Sequence[Extremes]) -> list[Message]:
        return [
            envelope_message(
                sensor, self._names[sensor], block.start_ns, (block.low, block.high), self._stamp(),
                prefix=self._prefix, exercise=self._exercise,
            )
            for block in blocks
            if np.isfinite(block.low).any()
        ]  # fmt: skip
