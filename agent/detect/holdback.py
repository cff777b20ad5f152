"""Which packets a source that can resume may take as done with: not so many that a restart would break an event.

A restarted pipeline starts from nothing: its averages must settle before it can trigger, and an event that was open
needs its data from before its onset. So the last minutes of each station's packets are not acknowledged, and come again
after a restart; what was told of them already is not told again (``agent.detect.resume``).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from agent.detect.pipeline import Pipeline
from agent.types import SampleBlock, StationId

MAX_HELD = 24_576
"""Packets; seven minutes of 64 channels at a packet a second. Beyond it the oldest are acknowledged all the same."""
MAX_HELD_S = 900.0
"""So long a packet is held at most, such as the last ones of a station that has fallen silent."""
MAX_KEPT = 28_672
"""Packets kept while the disk refuses messages, when none is acknowledged. Beyond it the oldest are forgotten: newer
ones of their channel stand for them later."""
SWEEP_S = 1.0
"""How often stations without new packets are looked at."""


class HoldBack:
    """Holds packets per station and acknowledges them one by one. Owned by the pipeline's thread."""

    def __init__(self, pipeline: Pipeline, acknowledge: Callable[[SampleBlock], None]) -> None:
        self._pipeline, self._acknowledge = pipeline, acknowledge
        self._held: dict[StationId, deque[tuple[SampleBlock, float]]] = {}
        self._size = 0
        self._changed: set[StationId] = set()
        self._swept_at = time.monotonic()

    def __len__(self) -> int:
        return self._size

    def add(self, block: SampleBlock) -> None:
        """Hold a packet; what it gave rise to is on its way to the disk."""
        station = block.stream.station
        self._held.setdefault(station, deque()).append((block, time.monotonic()))
        self._changed.add(station)
        self._size += 1
        while self._size > MAX_KEPT:
            self._drop(self._longest())

    def release(self) -> None:
        """Acknowledge what no restart will need. To be called when all that was given rise to so far is on disk."""
        now = time.monotonic()
        due = list(self._changed)
        if now - self._swept_at >= SWEEP_S:
            self._swept_at = now
            due = list(self._held)
        self._changed.clear()
        for station in due:
            held = self._held.get(station)
            while held and (held[0][1] <= now - MAX_HELD_S or not self._needed(held[0][0])):
                self._acknowledge(self._drop(station))
        while self._size > MAX_HELD:
            self._acknowledge(self._drop(self._longest()))

    def _needed(self, block: SampleBlock) -> bool:
        station = self._pipeline.stations.get(block.stream.station)
        return station is not None and station.time_ns > 0 and block.end_ns > station.needed_ns

    def _longest(self) -> StationId:
        return max(self._held, key=lambda station: len(self._held[station]))

    def _drop(self, station: StationId) -> SampleBlock:
        held = self._held[station]
        block, _ = held.popleft()
        if not held:
            del self._held[station]
        self._size -= 1
        return block
