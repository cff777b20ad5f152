"""What earlier runs of the agent said of events, so that a restart in the middle of one does not break its story.

Every revision is written beside its messages, in the same transaction (``Message.journal``). The next run shows them to
its policy, which then knows what alerts stand, what is still refractory and what was counted, and matches what the
source gives again with them:

- an event that had ended is not told twice;
- one that was open goes on under its identifier with the next revision; so does one that was ended by a stop of the
  agent only (``cut``);
- one that was open and does not come again is ended, with the reason.

A restarted pipeline starts from nothing: its averages must settle before it can trigger, and an event that was open
needs its data from before its onset. So the last minutes of each station's packets are not acknowledged to a source
that can resume (``PendingPackets``), and come again after a restart.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from agent.detect.pipeline import Pipeline
from agent.errors import DataError
from agent.types import (
    NS,
    SLOW,
    BlockQuality,
    Classification,
    Coincidence,
    Detection,
    Event,
    Evidence,
    Quality,
    SampleBlock,
    StationId,
    StreamId,
    Swell,
    Vote,
)

SAME_ONSET_NS = NS
"""Filters that begin elsewhere move an onset by some samples."""
WAIT_NS = 120 * NS
"""Data time after the onset within which an event must have come again: its trigger, its first verdict, late
components."""
SLOW_GAP_NS = 60 * NS
"""A slow event that was running goes on as itself if it is found again so soon after what was told of it last."""

HELD_S = 900.0
"""Longest that packets are held back for a restart (``PendingPackets``), and so come again."""
LOST = "the agent was restarted, and what followed of this event is not to be had"
MAX_HELD = 24_576
"""Packets; seven minutes of 64 channels at a packet a second. Beyond it the oldest are acknowledged all the same."""
MAX_HELD_S = 900.0
"""Longest that a packet is held, such as the last ones of a station that has fallen silent."""
MAX_KEPT = 28_672
"""Packets kept while the disk refuses messages, when none is acknowledged. Beyond it the oldest are forgotten: newer
ones of their channel stand for them later."""
SWEEP_S = 1.0
"""How often stations without new packets are looked at."""
_NO_SAMPLES, _ANY_HZ = np.empty(0, np.int32), 1.0


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """A revision that was told; ``cut``: its end was that of the run, not of the signal."""

    event: Event
    cut: bool = False


def encode(event: Event, *, cut: bool) -> bytes:
    """For the journal; ``decode`` gives the same values."""
    return json.dumps({"event": asdict(event), "cut": cut}, separators=(",", ":")).encode()


def decode(record: bytes) -> JournalEntry:
    """Read what ``encode`` wrote.

    Raises:
        DataError: it is not that.
    """
    try:
        whole = json.loads(record)
        event, together = whole["event"], whole["event"].get("coincidence")
        event["station"] = StationId(**event["station"])
        event["detection"] = Detection(**event["detection"])
        event["quality"] = Quality(**event["quality"] | {"clock": BlockQuality(**event["quality"]["clock"])})
        event["classification"] = _verdict(event["classification"])
        if event.get("swell") is not None:
            event["swell"] = Swell(**event["swell"] | {"envelope_db": tuple(event["swell"]["envelope_db"])})
        if event.get("evidence") is not None:
            event["evidence"] = Evidence(**event["evidence"])
        if together is not None:
            votes = tuple(
                Vote(**{**v, "station": StationId(**v["station"]), "classification": _verdict(v["classification"])})
                for v in together["votes"]
            )
            event["coincidence"] = Coincidence(**together | {"votes": votes})
        return JournalEntry(Event(**event), bool(whole["cut"]))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"not a remembered event: {error}", "another version of the agent wrote it") from None


def _verdict(fields: dict[str, Any] | None) -> Classification | None:
    return None if fields is None else Classification(**fields | {"probabilities": tuple(fields["probabilities"])})


@dataclass(slots=True)
class _Known:
    """What was told last of an event of an earlier run, and whether this run has met it again."""

    last: JournalEntry
    found: bool = False

    @property
    def has_ended(self) -> bool:
        return self.last.event.phase == "end" and not self.last.cut

    @property
    def awaited_ns(self) -> int:
        """Data time from which on it must come again before long."""
        return self.last.event.data_ns if self.last.event.kind == SLOW else self.last.event.onset_ns

    def is_met_by(self, event: Event) -> bool:
        """Whether this is it, come again. A slow event may have begun before what comes again does."""
        last = self.last.event
        until_ns = last.data_ns if self.has_ended else last.data_ns + SLOW_GAP_NS
        if event.kind == SLOW and last.onset_ns <= event.onset_ns <= until_ns:
            return True
        return abs(last.onset_ns - event.onset_ns) <= SAME_ONSET_NS


class EventResume:
    """Owned by the pipeline's thread."""

    def __init__(self, past: Iterable[JournalEntry] = ()) -> None:
        """``past``: oldest first."""
        self._known: dict[tuple[StationId, str], _Known] = {}
        self._found: dict[tuple[StationId, str], _Known] = {}
        self._recorded_s: dict[StationId, float] = {}
        self._told_ns: dict[StationId, int] = {}
        """Data time up to which earlier runs have told what there was."""
        self._ghosts: set[tuple[StationId, str]] = set()
        for one in past:
            event = one.event
            self._told_ns[event.station] = max(self._told_ns.get(event.station, 0), event.data_ns)
            self._known[event.station, event.id] = _Known(one)
            before = self._recorded_s.get(event.station, 0.0)
            self._recorded_s[event.station] = max(before, event.recorded_s or 0.0)

    def go_on(self, event: Event) -> Event | None:
        """The revision as it continues what was told before; None if that has been told already, or if an earlier run
        saw the same data with averages that had settled, and found no event there."""
        if self._is_ghost(event):
            return None
        if event.recorded_s is not None:
            event = replace(event, recorded_s=event.recorded_s + self._recorded_s.get(event.station, 0.0))
        key = (event.station, event.id)
        known = self._found.get(key)
        if known is None:
            known = self._match(event)
            if known is None:
                return event
            known.found = True
            self._found[key] = known
        if event.phase == "end":
            del self._found[key]
        last = known.last.event
        is_news = event.data_ns > last.data_ns + SAME_ONSET_NS // 2
        if known.has_ended or not (is_news or (event.phase == "end" and last.phase != "end")):
            return None
        event = replace(
            event,
            id=last.id,
            onset_ns=last.onset_ns,
            revision=last.revision + 1,
            phase="end" if event.phase == "end" else "update",
        )
        known.last = JournalEntry(event)
        return event

    def _is_ghost(self, event: Event) -> bool:
        """Whether this comes of averages that have not settled: an event of data that come again, of which the earlier
        run, which decided them in the order of time, told nothing."""
        if event.kind == SLOW:
            return False  # its background is that of the earlier run
        key = (event.station, event.id)
        if event.revision == 0 and key not in self._found and self._match(event) is None:
            again_s = (self._told_ns.get(event.station, 0) - event.data_ns) / NS
            recorded_s = HELD_S if event.recorded_s is None else event.recorded_s
            # A clock that was set back also brings times that are past, and those data are new.
            if 0 <= again_s < HELD_S and recorded_s < HELD_S:
                self._ghosts.add(key)
        if key not in self._ghosts:
            return False
        if event.phase == "end":
            self._ghosts.remove(key)
        return True

    def overdue(self, station: StationId, data_ns: int) -> list[Event]:
        """Ends of the station's open events that have not come again although its data have reached ``data_ns``."""
        if data_ns > self._told_ns.get(station, data_ns):
            del self._told_ns[station]  # from here on nothing comes again
        if not self._known:
            return []
        past = [key for key, known in self._known.items() if key[0] == station and data_ns > known.awaited_ns + WAIT_NS]
        ends = []
        for key in past:
            known = self._known.pop(key)
            last = known.last.event
            if not known.found and last.phase != "end":
                ends.append(replace(last, revision=last.revision + 1, phase="end", reason=LOST))
        return ends

    def _match(self, event: Event) -> _Known | None:
        """The event of an earlier run that this is, if any."""
        near = [
            known
            for (station, _), known in self._known.items()
            if station == event.station
            and not known.found
            and known.last.event.kind == event.kind
            and known.is_met_by(event)
        ]
        return min(near, key=lambda known: abs(known.last.event.onset_ns - event.onset_ns), default=None)


def as_seen(past: Sequence[JournalEntry]) -> list[Event]:
    """The revisions as a policy is to see them: what was cut may go on."""
    return [replace(one.event, phase="update") if one.cut else one.event for one in past]


class _Held(NamedTuple):
    """What is kept of a packet: when the sample after its last is due, and when it came (monotonic clock, s)."""

    stream: StreamId
    origin: object
    end_ns: int
    came_s: float


class PendingPackets:
    """Remembers packets per station and acknowledges them one by one. Owned by the pipeline's thread.

    Their samples are let go: minutes of them, of many stations, are more memory than the ring buffers have. An empty
    block at its end stands for a packet when it is acknowledged."""

    def __init__(self, pipeline: Pipeline, acknowledge: Callable[[SampleBlock], None]) -> None:
        self._pipeline, self._acknowledge = pipeline, acknowledge
        self._held: dict[StationId, deque[_Held]] = {}
        self._size = 0
        self._changed: set[StationId] = set()
        self._swept_at = time.monotonic()

    def __len__(self) -> int:
        return self._size

    def add(self, block: SampleBlock) -> None:
        """Remember a packet; what it gave rise to is on its way to the disk."""
        station = block.stream.station
        held = _Held(block.stream, block.origin, block.end_ns, time.monotonic())
        self._held.setdefault(station, deque()).append(held)
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
            while held and (held[0].came_s <= now - MAX_HELD_S or not self._needed(held[0])):
                self._acknowledge(self._drop(station))
        while self._size > MAX_HELD:
            self._acknowledge(self._drop(self._longest()))

    def _needed(self, held: _Held) -> bool:
        station = self._pipeline.stations.get(held.stream.station)
        return station is not None and station.time_ns > 0 and held.end_ns > station.needed_ns

    def _longest(self) -> StationId:
        return max(self._held, key=lambda station: len(self._held[station]))

    def _drop(self, station: StationId) -> SampleBlock:
        held = self._held[station]
        first = held.popleft()
        if not held:
            del self._held[station]
        self._size -= 1
        return SampleBlock(first.stream, first.end_ns, _ANY_HZ, _NO_SAMPLES, origin=first.origin)
