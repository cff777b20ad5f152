"""A station driven by the time of its data: its line and its health as the agent has them, without waiting."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import numpy as np

from agent.config.file import ClassifierConfig, TunablesConfig
from agent.config.station import TriggerConfig, VerdictConfig
from agent.dsp.hearing import Figures
from agent.errors import DataError
from agent.health.report import Health, HealthInputs, Identity
from agent.messages.schema import HealthMessage
from agent.service.assemble import build_line
from agent.types import NS, Event, SampleBlock, StationId, StreamId

SENSOR = StationId("XX", "SLP", "00", "HH")
T0 = 1_700_000_003 * NS


class Station:
    """One station with a network that says ``noise``. The agent's clock stands at the end of the newest packet, until
    ``wait`` moves it on."""

    def __init__(self, trigger: Mapping[str, object] | None = None) -> None:
        tunables = TunablesConfig(trigger=TriggerConfig(**(trigger or {})), verdict=VerdictConfig(at_s=(3.0,)))
        self.line = build_line(tunables, ClassifierConfig(backends=("constant:noise",)), "talus/v1")
        self.now_ns = T0
        self.onsets: list[int] = []
        """Of the events, nanoseconds."""
        self.refused = 0
        self._health = Health(
            Identity(StationId("XX", "SLP", "", ""), "0" * 16), Path(gettempdir()), clock=lambda: self.now_ns / NS
        )

    def feed(
        self, component: str, samples: np.ndarray[Any, Any], start_ns: int, rate_hz: float = 100.0,
        sensor: StationId = SENSOR,
    ) -> None:  # fmt: skip
        """One packet, as it comes in."""
        block = SampleBlock(StreamId(sensor, component), start_ns, rate_hz, samples)
        self.now_ns = max(self.now_ns, block.end_ns)
        pipeline = self.line.pipeline
        before = pipeline.used(block.stream)
        try:
            fed = self.line.feed(block, self.now_ns)
        except DataError:
            self.refused += 1
        else:
            self.onsets += [one.onset_ns for one in fed.outputs if isinstance(one, Event) and one.revision == 0]
        self._health.saw(block, self.now_ns, used=pipeline.used(block.stream) > before)

    def wait(self, until_ns: int) -> None:
        """Nothing comes until then."""
        self.now_ns = max(self.now_ns, until_ns)

    def figures(self, sensor: StationId = SENSOR) -> Figures:
        """What the sensor can hear, as measured."""
        return self.line.pipeline.stations[sensor].hearing.figures()

    def report(self) -> HealthMessage:
        """The health report."""
        return self._health.message(1, HealthInputs(stations=tuple(self.line.pipeline.stations.values())))
