"""Whether the triggers stay sane under new settings: a pure function of the data, fed by the pipeline's thread.

Hearing is lost (``deaf``) when, since the trial began, a station could trigger for less than half of the time, when the
smallest event that would trigger has grown fourfold, or when none would. It is a ``flood`` when, since then,

- events (and discarded triggers) come faster than ``max_events_per_min`` and five times as fast as in the hour before,
  ten of them at least; or
- a station is triggered for more than ``max_trigger_share`` of the time, after a minute of data.

Whether events that a station has recorded are still found under new settings is asked of its records.

The newest records of the evidence store go through a detector with the old and one with the new settings. A record
begins 20 s before its event, less than the long average usually takes to fill. So these 20 s are played back and forth
before it, and a long average that is longer than that counts when three quarters are there, scaled for the part that is
missing; on both sides alike.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, cast

import numpy as np

from agent.config.remote import ControlConfig
from agent.config.station import TriggerConfig
from agent.detect.station import Output, Station
from agent.dsp.detector import Detector
from agent.dsp.hearing import STEP_NS, Hearing, Step, band_of
from agent.dsp.reference import LARGEST, Settings, frequency, least_energy
from agent.errors import TalusError
from agent.types import (
    COMPONENTS,
    NS,
    Discard,
    SampleBlock,
    Samples,
    Segment,
    StationId,
    StreamId,
    TriggerOff,
    TriggerOn,
    parse_ns,
)

if TYPE_CHECKING:
    from agent.sources.records import StationRecord

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
RECORDS = 20
"""Records that are tried, the newest."""
EARLY_NS = 3 * NS
LATE_NS = 10 * NS
"""An event is found again when a trigger begins this close to its onset: with another threshold it begins a little
earlier or later; one that began long before is another event, which hides it."""
_WARM_SHARE = 0.6
_LEAD_S = 60.0
"""Background before the onset, made of what there is."""
_PACKET_S = 10.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sanity:
    """The trial so far: ``harm`` in words, if any was done, and in one; ``data_s``: seconds of data of the station
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
    """The end of what was checked for hearing."""
    armed_before: float = 1.0
    before: Settings | None = None
    """The settings before the trial ..."""
    quietest_before: float | None = None
    """... and the least energy that the background had in their band."""

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
                site.listened_ns, site.before = block.end_ns, station.hearing.settings
                site.quietest_before = _quietest(station.hearing.steps, block.end_ns - TEN_MINUTES_NS)
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
        armed, settings = hearing.armed_since(site.begun_ns), hearing.settings
        if settings is None:
            return
        least = least_energy(*settings)
        grown = math.sqrt(least / least_energy(*site.before)) if site.before else 1.0
        missed = _grown_in_another_band(site, settings, hearing.steps)
        if math.isinf(least):
            harm = f"no event below {LARGEST:g} times the noise would trigger at {name.short}"
        elif site.before and missed > MOST_THRESHOLD:
            times = "no longer trigger" if math.isinf(missed) else f"have to be {missed:.1f} times as large"
            hz = frequency(site.before[0], site.before[2])
            harm = f"events of {hz:.2g} Hz, which triggered at {name.short} before, would {times}"
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


def _quietest(steps: Iterable[Step], begin_ns: int) -> float | None:
    """The least band-passed energy of all components together in a step since then, counts^2; None without a step."""
    since = (step.levels.values() for step in steps if step.number * STEP_NS >= begin_ns and step.levels)
    return min((sum(level * level for level in levels) for levels in since), default=None)


def _grown_in_another_band(site: _Site, settings: Settings, steps: Iterable[Step]) -> float:
    """How many times as large as before an event of the former reference frequency must be to trigger in the band on
    trial, against its background; 1 in the same band, and before that background is known."""
    if site.before is None or band_of(site.before[0]) == band_of(settings[0]):
        return 1.0
    quietest = _quietest(steps, site.begun_ns)
    if not (quietest and site.quietest_before):
        return 1.0
    least = least_energy(*settings, frequency(site.before[0], site.before[2]))
    return math.sqrt(least / least_energy(*site.before) * quietest / site.quietest_before)


@dataclass(frozen=True, slots=True)
class Known:
    """How many events the old settings find in the records, and the names of those that the new ones lose."""

    events: int = 0
    lost: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """Share of the events that are lost."""
        return len(self.lost) / self.events if self.events else 0.0


Compare: TypeAlias = Callable[[TriggerConfig, TriggerConfig], Iterator[Known]]
"""Tries one record after the other: what is known after each of them."""


def matches(onset_ns: int, found_ns: int) -> bool:
    """Whether an event with another onset is the same."""
    return -EARLY_NS <= found_ns - onset_ns <= LATE_NS


def compare(records: Iterable[Path], before: TriggerConfig, after: TriggerConfig) -> Iterator[Known]:
    """Try the records, files named ``EVENT.mseed``, one by one. One that cannot be read is logged and left out."""
    from agent.sources.records import read_records

    events, lost = 0, []
    for path in records:
        onset_ns = onset_of(path.stem)
        try:
            stations = read_records(path) if onset_ns is not None else []
        except TalusError as error:
            _log.warning("%s", error.message)
            stations = []
        for record in stations:
            if onset_ns is not None and _finds(before, record, onset_ns):
                events += 1
                if not _finds(after, record, onset_ns):
                    lost.append(path.stem)
        yield Known(events, tuple(lost))


def onset_of(event: str) -> int | None:
    """The onset in an event's id; None where it is none."""
    moment = event.rpartition("-")[2]
    if len(moment) != len("20260301T120000.123Z") or moment[8] != "T":
        return None
    day, clock = moment[:8], moment[9:]
    try:
        return parse_ns(f"{day[:4]}-{day[4:6]}-{day[6:]}T{clock[:2]}:{clock[2:4]}:{clock[4:]}")
    except TalusError:
        return None


def _finds(trigger: TriggerConfig, record: StationRecord, onset_ns: int) -> bool:
    """Whether the settings make an event of what begins at ``onset_ns``."""
    detector = Detector(record.station, trigger)
    packets = sorted(_packets(record, onset_ns), key=lambda packet: packet.start_ns)
    if not packets:
        return False
    lead_s = (onset_ns - packets[0].start_ns) / NS
    detector.warm_up_s = max(1.0, min(trigger.lta_s, _WARM_SHARE * lead_s))
    try:
        changes = [change for packet in packets for change in detector.feed(packet)]
    except TalusError:
        return False
    ends = {change.onset_ns: change for change in [*changes, *detector.flush()] if isinstance(change, TriggerOff)}
    return any(
        matches(onset_ns, change.onset_ns)
        and (ends[change.onset_ns].off_ns - change.onset_ns) / NS >= trigger.min_duration_s
        for change in changes
        if isinstance(change, TriggerOn) and change.onset_ns in ends
    )


def _led_in(run: Segment, onset_ns: int) -> Segment:
    """The run with what comes before the onset played back and forth in front of it."""
    lead = run.samples[: max(0, int((onset_ns - run.start_ns) / NS * run.rate_hz))]
    if len(lead) < run.rate_hz:
        return run
    pieces = [run.samples]
    count = 0
    for turn in range(math.ceil(_LEAD_S * run.rate_hz / len(lead)) - 1):
        pieces.insert(0, lead[::-1] if turn % 2 == 0 else lead)
        count += len(lead)
    samples = cast("Samples", np.concatenate(pieces))
    return Segment(run.start_ns - round(count * NS / run.rate_hz), run.rate_hz, samples)


def _packets(record: StationRecord, onset_ns: int) -> Iterator[SampleBlock]:
    for row, runs in record.rows.items():
        for run in [_led_in(runs[0], onset_ns), *runs[1:]] if runs else []:
            yield from run.packets(StreamId(record.station, COMPONENTS[row]), _PACKET_S)
