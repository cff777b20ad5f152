"""Envelope messages of all sensors of an agent: what a drum plot needs, for a link that carries no samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from agent.dsp.envelope import Envelope, Extremes
from agent.messages.payloads import Message, Stamp, envelope_message
from agent.types import COMPONENTS, SampleBlock, StationId


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
