"""The stations of an agent: each packet goes to its sensor's, which is made with the first one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agent.config.station import TriggerConfig
from agent.detect.station import Classify, Output, Station
from agent.dsp.hearing import Slot
from agent.errors import DataError
from agent.types import MAX_BLOCK_S, SampleBlock, StationId, StreamId

MAX_STATIONS = 256
"""Sensors: four times as many as are meant. Damaged headers could name any number of them, and each takes memory."""


class Pipeline:
    """``feed`` every block in the order of arrival, ``flush`` at the end. Owned by one thread."""

    def __init__(
        self,
        trigger: TriggerConfig,
        verdict_at_s: Sequence[float],
        classifier: Classify,
        *,
        exercise: bool = False,
        last_of: tuple[int, int] | None = None,
        longest_s: float = MAX_BLOCK_S,
    ) -> None:
        """
        Args:
            trigger: settings.
            verdict_at_s: seconds after the onset at which verdicts are due before the last one.
            classifier: answers for windows.
            exercise: marks every event as not real: drills, and recorded data sent to a broker.
            last_of: of triggers with an onset in this span (ns) the last revision alone is told, of others nothing;
                what is due before is decided on all the same, as it tells a short trigger from an event.
            longest_s: of a packet.
        """
        self._trigger = trigger
        self._verdict_at_s = tuple(verdict_at_s)
        self._classifier = classifier
        self._exercise = exercise
        self._last_of = last_of
        self._longest_s = longest_s
        self.stations: dict[StationId, Station] = {}
        self.remembered: Mapping[StationId, Sequence[Slot]] = {}
        """What an earlier run knew of how each sensor hears; to be set before the first packet."""

    def feed(self, block: SampleBlock) -> list[Output]:
        """Take one packet; returns what it decided, in the order of data time.

        Raises:
            DataError: the packet cannot be used (too long, an impossible rate, one sensor too many); the next one may
                be.
        """
        if len(block.samples) > self._longest_s * block.rate_hz * 1.001:
            raise DataError(
                f"{block.stream}: a packet of {len(block.samples) / block.rate_hz:.0f} s is too long",
                f"sources cut packets to {self._longest_s:g} s at most",
            )
        station = self.stations.get(block.stream.station)
        if station is None:
            if len(self.stations) >= MAX_STATIONS:
                raise DataError(
                    f"{block.stream} is left out: there are {MAX_STATIONS} sensors already",
                    "ask the source for fewer stations, or run several agents",
                )
            station = Station(
                block.stream.station,
                self._trigger,
                self._verdict_at_s,
                self._classifier,
                exercise=self._exercise,
                last_of=self._last_of,
                longest_s=self._longest_s,
            )
            station.hearing.remember(self.remembered.get(station.id, ()))
            self.stations[block.stream.station] = station
        return station.feed(block)

    def used(self, stream: StreamId) -> int:
        """How many samples of a channel were new and valid so far."""
        station = self.stations.get(stream.station)
        counts = None if station is None else station.counts.get(stream.component)
        return 0 if counts is None else counts.samples

    def forget(self, stream: StreamId) -> None:
        """The channel's clock was set back: what follows is earlier than what is known, and is no repetition of it."""
        if (station := self.stations.get(stream.station)) is not None:
            station.forget(stream.component)

    def retune(self, trigger: TriggerConfig, verdict_at_s: Sequence[float]) -> list[Output]:
        """Go on with other settings, at all stations or, if they do not go with the data of one, at none.

        Raises:
            DataError: a station's sampling rate is too low for these settings.
        """
        retunes = {name: station.prepare_retune(trigger) for name, station in self.stations.items()}
        self._trigger, self._verdict_at_s = trigger, tuple(verdict_at_s)
        return [
            output
            for name, station in self.stations.items()
            for output in station.retune(retunes[name], self._verdict_at_s)
        ]

    def flush(self) -> list[Output]:
        """The data ends here: close every open event with what is there."""
        return [output for station in self.stations.values() for output in station.flush()]
