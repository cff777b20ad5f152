"""Whether events that a station has recorded are still found under other settings of the trigger.

The newest records of the evidence store go through a detector with the old and one with the new settings. A record
begins 20 s before its event, less than the long average usually takes to fill. So these 20 s are played back and forth
before it, and a long average that is longer than that counts when three quarters are there, scaled for the part that is
missing; on both sides alike.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, cast

import numpy as np

from agent.config.station import TriggerConfig
from agent.dsp.detector import Detector
from agent.errors import TalusError
from agent.types import COMPONENTS, NS, SampleBlock, Samples, Segment, StreamId, TriggerOff, TriggerOn, parse_ns

if TYPE_CHECKING:
    from agent.sources.records import StationRecord

RECORDS = 20
"""So many are tried, the newest."""
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
class Known:
    """How many events the old settings find in the records, and the names of those that the new ones lose."""

    events: int = 0
    lost: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """Of the events that are lost."""
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
