"""Whether the triggers stay sane under new settings: a pure function of the data, fed by the pipeline's thread.

Hearing is lost (``deaf``) when, since the trial began, a station could trigger for less than half of the time, when the
smallest event that would trigger has grown fourfold, or when none would. It is a ``flood`` when, since then,

- events (and discarded triggers) come faster than ``max_events_per_min`` and five times as fast as in the hour before,
  ten of them at least; or
- a station is triggered for more than ``max_trigger_share`` of the time, after a minute of data.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from agent.config.remote import ControlConfig
from agent.detect.station import Output, Station
from agent.dsp.hearing import Hearing
from agent.types import NS, Discard, SampleBlock, StationId

HOUR_NS = 3600 * NS
LEAST_EVENTS = 10
LEAST_DATA_S = 60.0
TIMES_BASELINE = 5.0
LEAST_ARMED = 0.5
MOST_THRESHOLD = 4.0
TEN_MINUTES_NS = 600 * NS
_LISTEN_NS = 10 * NS
_STEP_NS = 60 * NS
"""A longer step of the newest sample is a gap, and no data."""


@dataclass(frozen=True, slots=True)
class Sanity:
    """Of the trial so far: ``harm`` in words, if any was done, and in one; ``data_s``: seconds of data of the station
    with most."""

    harm: str | None = None
    data_s: float = 0.0
    kind: Literal["flood", "deaf"] = "flood"


@dataclass(slots=True)
class _Site:
    newest_ns: int = 0
    observed_ns: int = 0
    onsets: deque[int] = field(default_factory=lambda: deque(maxlen=10_000))
    """Of the last hour."""
    baseline_per_min: float = 0.0
    trial_ns: int = 0
    triggered_ns: int = 0
    events: int = 0
    begun_ns: int = 0
    listened_ns: int = 0
    """Up to when it was looked at what could be heard."""
    armed_before: float = 1.0
    least_before: float | None = None
    """What the settings before the trial ask of an event."""

    def begin(self) -> None:
        minutes = min(self.observed_ns, HOUR_NS) / NS / 60
        self.baseline_per_min = len(self.onsets) / max(1.0, minutes)
        self.trial_ns = self.triggered_ns = self.events = 0
        self.begun_ns = self.listened_ns = 0


class TriggerWatch:
    """``sanity`` may be read from any thread: it is replaced, never changed."""

    def __init__(self) -> None:
        self.sanity = Sanity()
        self._limits: ControlConfig | None = None
        self._sites: dict[StationId, _Site] = {}

    def begin(self, settings: ControlConfig | None) -> None:
        """A trial under these settings begins with the next packet; None: there is none any more."""
        self._limits, self.sanity = settings, Sanity()
        for site in self._sites.values():
            site.begin()

    def fed(self, block: SampleBlock, stations: Mapping[StationId, Station], outputs: list[Output]) -> None:
        """A packet went through the pipeline."""
        station = stations.get(block.stream.station)
        if station is None:
            return
        site = self._sites.setdefault(block.stream.station, _Site())
        for output in outputs:
            if isinstance(output, Discard) or output.revision == 0:
                site.onsets.append(output.onset_ns)
                site.events += 1
        step_ns = block.end_ns - site.newest_ns
        if step_ns <= 0:
            return
        site.newest_ns = block.end_ns
        while site.onsets and site.newest_ns - site.onsets[0] > HOUR_NS:
            site.onsets.popleft()
        if step_ns > _STEP_NS:
            return
        site.observed_ns += step_ns
        if self._limits is None:
            if block.end_ns - site.listened_ns >= _LISTEN_NS:
                site.listened_ns, site.least_before = block.end_ns, station.hearing.least_energy
            return
        if not site.begun_ns:
            site.begun_ns = block.end_ns
            site.armed_before = station.hearing.armed_since(block.end_ns - TEN_MINUTES_NS)
        site.trial_ns += step_ns
        site.triggered_ns += step_ns if station.is_triggered else 0
        self._check_rate(block.stream.station, site, self._limits)
        if block.end_ns - site.listened_ns >= _LISTEN_NS:
            site.listened_ns = block.end_ns
            self._check_hearing(block.stream.station, site, station.hearing)

    def _check_hearing(self, name: StationId, site: _Site, hearing: Hearing) -> None:
        """Judge what could be heard since the trial began."""
        if self.sanity.harm is not None:
            return
        harm = None
        armed, least = hearing.armed_since(site.begun_ns), hearing.least_energy or 0.0
        grown = math.sqrt(least / site.least_before) if site.least_before else 1.0
        if math.isinf(least):
            harm = f"no event would trigger at {name.short}, however large"
        elif grown > MOST_THRESHOLD:
            harm = f"the smallest event that would trigger at {name.short} is {grown:.1f} times as large as before"
        elif site.trial_ns >= LEAST_DATA_S * NS and armed < LEAST_ARMED < site.armed_before:
            harm = f"{name.short} could trigger for only {armed:.0%} of {site.trial_ns / NS:.0f} s"
        if harm is not None:
            self.sanity = Sanity(harm, self.sanity.data_s, "deaf")

    def _check_rate(self, name: StationId, site: _Site, limits: ControlConfig) -> None:
        if self.sanity.harm is not None:
            return
        seconds = site.trial_ns / NS
        rate = site.events / max(1.0, seconds / 60)
        most = max(limits.max_events_per_min, TIMES_BASELINE * site.baseline_per_min)
        share = site.triggered_ns / site.trial_ns
        harm = None
        if site.events >= LEAST_EVENTS and rate > most:
            harm = f"{site.events} events in {seconds:.0f} s at {name.short}, {most:.3g} a minute are allowed"
        elif seconds >= LEAST_DATA_S and share > limits.max_trigger_share:
            harm = (
                f"triggered for {share:.0%} of {seconds:.0f} s at {name.short},"
                f" {limits.max_trigger_share:.0%} are allowed"
            )
        self.sanity = Sanity(harm, max(self.sanity.data_s, seconds))
