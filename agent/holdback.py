"""How far a source that can resume may take its packets as done with: not so far that a restart would break an event.

A restarted pipeline starts from nothing: its averages must settle before it can trigger, and an event that was open
needs its data from before its onset. So the last minutes of packets stay untaken, and come again after a restart; what
was told of them already is not told again (``agent.recall``).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from agent.pipeline import Pipeline
from agent.types import SampleBlock

MAX_HELD = 24_576
"""Packets; seven minutes of 64 channels at a packet a second."""
MAX_HELD_S = 900.0
"""A station that has fallen silent holds up the others no longer."""


class HoldBack:
    """Owned by the pipeline's thread."""

    def __init__(self, pipeline: Pipeline, taken: Callable[[SampleBlock], None]) -> None:
        self._pipeline, self._taken = pipeline, taken
        self._held: deque[tuple[SampleBlock, float]] = deque()

    def add(self, block: SampleBlock) -> None:
        """What the packet gave rise to is on its way to the disk."""
        self._held.append((block, time.monotonic()))

    def release(self) -> None:
        """All that was given rise to so far is on disk: pass on what no restart will need."""
        newest: SampleBlock | None = None
        too_old = time.monotonic() - MAX_HELD_S
        while self._held:
            block, added_at = self._held[0]
            if self._needed(block) and added_at > too_old and len(self._held) <= MAX_HELD:
                break
            newest = block
            self._held.popleft()
        if newest is not None:
            self._taken(newest)

    def _needed(self, block: SampleBlock) -> bool:
        station = self._pipeline.stations.get(block.stream.station)
        return station is not None and station.time_ns > 0 and block.end_ns > station.needed_ns
