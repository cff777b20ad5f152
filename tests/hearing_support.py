"""A sensor driven by data time: noise, impairments of it, reference events, and what the agent says of its hearing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from agent.config.file import ClassifierConfig, TunablesConfig
from agent.config.station import TriggerConfig
from agent.dsp.hearing import Figures
from agent.health.hearing import problems
from agent.service.assemble import Line, build_line
from agent.types import NS, Event, SampleBlock, StationId, StreamId

SENSOR = StationId("XX", "SLP", "00", "HH")
T0 = 1_700_000_003 * NS
RATE_HZ = 100.0
RMS = 200.0
Make: TypeAlias = Callable[[str, int], "NDArray[np.int32] | None"]
"""One second of a component, the second counted from the beginning; None: nothing comes."""


def noise(seed: int = 1, rms: float = RMS) -> Make:
    """White noise, of each component its own."""
    rng = np.random.default_rng(seed)
    return lambda component, second: np.rint(rng.normal(0, rms, round(RATE_HZ))).astype(np.int32)


class Sensor:
    """One sensor's line. ``play`` goes on where the last one stopped."""

    def __init__(self, trigger: Mapping[str, object] | None = None, sensor: StationId = SENSOR) -> None:
        tunables = TunablesConfig(trigger=TriggerConfig(**(trigger or {})))
        self.line: Line = build_line(tunables, ClassifierConfig(backends=("constant:noise",)), "talus/v1")
        self.sensor, self.second = sensor, 0
        self.events: list[Event] = []
        self.last: dict[str, Event] = {}
        """Newest revision of each event."""

    def play(self, seconds: int, make: Make | None = None) -> Sensor:
        made = make or noise()
        for _ in range(seconds):
            for component in "ENZ":
                samples = made(component, self.second)
                if samples is not None:
                    self.feed(component, samples, T0 + self.second * NS)
            self.second += 1
        return self

    def feed(self, component: str, samples: NDArray[np.int32], start_ns: int, rate_hz: float = RATE_HZ) -> None:
        packet = SampleBlock(StreamId(self.sensor, component), start_ns, rate_hz, samples)
        found = [output for output in self.line.pipeline.feed(packet) if isinstance(output, Event)]
        self.events += found
        self.last |= {event.id: event for event in found}

    def figures(self, silent_s: float = 0.0) -> Figures:
        return self.line.pipeline.stations[self.sensor].hearing.figures(silent_s)

    def codes(self, silent_s: float = 0.0, limit_counts: float | None = None) -> set[str]:
        """Of the reasons for which the sensor is degraded."""
        found = problems(self.sensor, self.figures(silent_s), limit_counts)
        return {reason.code for reason in [*found, *self.line.pipeline.stations[self.sensor].doubts()]}
