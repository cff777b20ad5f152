"""Several stations of one site as one: their events are put together by onset, their verdicts fused. No clock, no I/O.

A station's event waits until it is known which of the other stations have one within ``window_s``:

    waiting --(required stations have one)--------------------> member of an event of the site, which may alert
       |-----(enough others could have seen it, and did not)--> local: no alert
       +-----(too few others could have seen it)--------------> believed alone: may alert, marked degraded

Two stations whose single events keep the same distance, longer than ``window_s``, again and again, have clocks that
differ (``_Pairing``): to each other they count as dead.

``required`` never changes. A station could have seen an event if it recorded without a gap of more than a second, and
could have heard it (``agent.dsp.hearing``: averages warm, samples plausible, threshold not far above its usual), from
``window_s`` before the onset until its own first verdict would have been due. One that is dead, also if its recorder
goes on sending, has just started or has a gap there could not, and must not cost anyone an alert.

Time is that of the data. Verdicts are taken in the order of their own times, whichever came in first: each waits until
all stations are decided up to it, except for those that are ``max_lag_s`` behind the begin of the newest packet, which
count as dead. So a replay puts together what the station put together.

The fused probability of a label is the weighted geometric mean of the members', scaled to a sum of one:

    log p(label) = sum over members of  w log p_member(label)  /  sum of w   (+ a constant; p_member at least 0.001)

Members without a verdict count for the coincidence and have no vote; the fused verdict abstains if all of them do.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from statistics import median
from typing import TYPE_CHECKING

from agent.config.policy import CoincidenceConfig
from agent.dsp.window import AFTER_NS
from agent.types import (
    LABELS,
    NS,
    Classification,
    Coincidence,
    DecisionReason,
    Detection,
    Event,
    EventPhase,
    Quality,
    SampleBlock,
    StationId,
    Vote,
    event_id,
    is_alone,
)

if TYPE_CHECKING:
    from agent.config.station import TunablesConfig
    from agent.dsp.hearing import Hearing

GAP_NS = NS
"""A shorter gap hides no onset."""
FLOOR = 1e-3
"""Least probability in the mean: no station can rule a label out alone."""
KEPT_NS = 600 * NS
"""Single events, and events of the site, are known for so long, for stations that come late."""
ABSENT_NS = 60 * NS
"""A station of the site that has sent nothing for so long is named."""
MAX_KEPT = 1024
FARTHEST_NS = 120 * NS
"""How far apart the clocks of two stations may be for that to be seen in their events."""
SPREAD_NS = 3 * NS
"""How much the distance of their events may differ, as the waves come from elsewhere."""
LEAST_PAIRS, MOST_PAIRS = 4, 32
MOST_CHANCE = 1e-5
"""That events which have nothing to do with each other keep a distance by chance."""
REMEMBERED_NS = 24 * 3600 * NS
MAX_RUNS = 32
"""Runs without a gap that are known of each sensor."""


class _Fate(Enum):
    WAITING = auto()
    LOCAL = auto()
    ALONE = auto()


@dataclass(slots=True)
class _Single:
    """A station's event that is no member of an event of the site."""

    revisions: list[Event]
    fate: _Fate = _Fate.WAITING
    degraded: str = ""

    @property
    def newest(self) -> Event:
        return self.revisions[-1]


@dataclass(slots=True)
class _Together:
    """An event of the site."""

    id: str
    members: dict[str, Event]
    """Newest revision by station."""
    revision: int = 0
    ended: bool = False

    def span_with(self, onset_ns: int) -> int:
        onsets = [onset_ns, *(event.onset_ns for event in self.members.values())]
        return max(onsets) - min(onsets)

    @property
    def onset_ns(self) -> int:
        return min(event.onset_ns for event in self.members.values())


@dataclass(slots=True)
class _Heard:
    """What one sensor has recorded."""

    decided_ns: int = 0
    begun_ns: int = 0
    """Begin of the newest packet: nobody can have been expected to be further by then."""
    hearing: Hearing | None = None
    runs: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=MAX_RUNS))
    """When the sensor could see: begin and end, in the order of time."""


class _Pairing:
    """Single events of the stations, to see whether those of two keep a distance."""

    def __init__(self, window_ns: int) -> None:
        self._window_ns = window_ns
        self._onsets: dict[str, deque[int]] = {}
        self.apart_s: dict[frozenset[str], float] = {}
        """By how much the clocks of two stations differ. Replaced as a whole: any thread may look."""

    def add(self, name: str, onset_ns: int) -> None:
        """A station had an event that no other had within the window."""
        mine = self._onsets.setdefault(name, deque(maxlen=MOST_PAIRS))
        if any(abs(onset_ns - other) <= self._window_ns for other in mine):
            return  # another sensor of the station
        mine.append(onset_ns)
        found = {pair: apart for pair, apart in self.apart_s.items() if name not in pair}
        for other, theirs in self._onsets.items():
            apart_s = None if other == name else self._distance_s(mine, theirs, onset_ns - REMEMBERED_NS)
            if apart_s is not None:
                found[frozenset((name, other))] = apart_s
        self.apart_s = found

    def agree(self, names: Iterable[str]) -> None:
        """These had an event together."""
        agreed = frozenset(names)
        for name in agreed:
            self._onsets.pop(name, None)
        self.apart_s = {pair: apart for pair, apart in self.apart_s.items() if not pair <= agreed}

    def _distance_s(self, first: Iterable[int], second: Iterable[int], since_ns: int) -> float | None:
        """The distance that at least half of the events keep that have one of the other station near them, and only
        one; None where they do not, or where that may be chance."""
        one, other = (sorted(at for at in onsets if at >= since_ns) for onsets in (first, second))
        near = [(a, b) for a in one for b in other if abs(a - b) <= FARTHEST_NS]
        times = Counter(at for pair in near for at in set(pair))
        spread_ns = min(self._window_ns, SPREAD_NS)
        distances = sorted(b - a for a, b in near if times[a] == times[b] == 1)
        kept = max(
            ([d for d in distances if least <= d <= least + spread_ns] for least in distances),
            key=len,
            default=[],
        )
        total, count, share = len(distances), len(kept), spread_ns / (2 * FARTHEST_NS)
        if count < max(LEAST_PAIRS, total / 2) or abs(median(kept)) <= self._window_ns:
            return None
        by_chance = sum(math.comb(total, k) * share**k * (1 - share) ** (total - k) for k in range(count, total + 1))
        return None if by_chance / share > MOST_CHANCE else median(kept) / NS


@dataclass(frozen=True, slots=True)
class Blindness:
    """What a sensor cannot tell yet: an event is first spoken of ``first_verdict_s`` after its onset, at the latest;
    nothing is seen for ``warm_up_s`` after the start, or after a gap of at least as long."""

    first_verdict_s: float
    warm_up_s: float


def blindness(tunables: TunablesConfig) -> Blindness:
    """The time for which these settings make a station blind."""
    at_s, least_s = tunables.verdict.at_s, tunables.trigger.min_duration_s
    return Blindness(next((s for s in at_s if s >= least_s), AFTER_NS / NS), tunables.trigger.lta_s)


class CoincidenceJudge:
    """For each packet: ``heard``, ``take`` for every event it led to, then ``decide``. Owned by one thread."""

    def __init__(self, settings: CoincidenceConfig, station: StationId, blind: Blindness) -> None:
        """``station``: under which the site's own events go out."""
        self.station = station
        self._settings = settings
        self._window_ns = round(settings.window_s * NS)
        self._lag_ns = round(settings.max_lag_s * NS)
        self._first_verdict_ns = round(blind.first_verdict_s * NS)
        self._warm_up_ns = round(blind.warm_up_s * NS)
        self._names = frozenset(settings.stations)
        self._stations: dict[str, dict[StationId, _Heard]] = {}
        """Sensors by station."""
        self._begun_ns = 0
        """Time of the first packet of any station."""
        self._others_ns = 0
        """End of the newest packet of a station that is none of the site's."""
        self._decided_ns: int = 0
        """The horizon of the last decisions."""
        self._queue: list[Event] = []
        self._singles: dict[str, _Single] = {}
        self._events: list[_Together] = []
        self._pairing = _Pairing(self._window_ns)
        self._of: dict[str, _Together] = {}
        """Event of the site by the ids of its members."""

    @property
    def max_lag_s(self) -> float:
        """How far behind the foremost a station may be."""
        return self._settings.max_lag_s

    def has(self, station: StationId) -> bool:
        """Whether events of this sensor are put together with others'."""
        return station.short in self._names

    def passed(self, block: SampleBlock) -> None:
        """A packet of a station that is none of the site's came in."""
        self._begun_ns, self._others_ns = self._begun_ns or block.start_ns, max(self._others_ns, block.end_ns)

    def heard(self, block: SampleBlock, decided_ns: int, hearing: Hearing | None = None) -> None:
        """A packet of one of the stations came in, and all of that sensor is decided up to ``decided_ns``; ``hearing``
        is the sensor's."""
        station = block.stream.station
        self._begun_ns = self._begun_ns or block.start_ns
        sensor = self._stations.setdefault(station.short, {}).setdefault(station, _Heard())
        if decided_ns < sensor.decided_ns:
            sensor.runs.clear()  # its clock was set back
        sensor.decided_ns, sensor.hearing = decided_ns, hearing
        sensor.begun_ns = min(decided_ns, block.start_ns)
        runs, start_ns, end_ns = sensor.runs, block.start_ns, block.end_ns
        if not runs:
            runs.append((start_ns + self._warm_up_ns, end_ns))
        elif start_ns - runs[-1][1] <= GAP_NS:
            runs[-1] = (runs[-1][0], max(runs[-1][1], end_ns))
        else:
            gap_ns = start_ns - runs[-1][1]
            runs.append((start_ns + (self._warm_up_ns if gap_ns >= self._warm_up_ns else 0), end_ns))

    def add(self, event: Event) -> None:
        """A revision of an event of one of the stations; ``decide`` says what follows."""
        self._queue.append(event)

    def is_waiting(self) -> bool:
        """Whether there are revisions of which nobody knows yet whether they alert."""
        return bool(self._queue) or any(single.fate is _Fate.WAITING for single in self._singles.values())

    def retune(self, blind: Blindness) -> None:
        """Go on with other settings of the trigger and the verdicts."""
        self._first_verdict_ns = round(blind.first_verdict_s * NS)
        self._warm_up_ns = round(blind.warm_up_s * NS)

    def decide(self) -> list[Event]:
        """What the policy is to judge now: new revisions of the site's events, and revisions of stations that are
        believed alone (``coincidence.degraded``)."""
        if not self._queue and not self._singles and not self._events:
            return []
        horizon = self._horizon_ns()
        if horizon == self._decided_ns and not any(event.data_ns <= horizon for event in self._queue):
            return []
        self._decided_ns = horizon
        return list(self._decide(horizon))

    def finish(self) -> list[Event]:
        """Nothing more comes in, or nothing has for too long: as ``decide``, without waiting for anyone."""
        return list(self._decide(None))

    def resume(self, past: Sequence[Event]) -> list[Event]:
        """Go on where an earlier run stopped; ``past``: what was told, oldest first, with the revisions of stations
        that alerted alone once more. Returns it as a policy is to see it.

        What had not been decided is decided again, from data that the source gives again; where it does not, nobody can
        say who else saw it, and the station is believed alone.
        """
        sites: dict[str, Event] = {}
        own: dict[str, list[Event]] = {}
        alone: dict[str, Event] = {}
        for event in past:
            if event.station == self.station:
                sites[event.id] = event
            elif is_alone(event):
                alone[event.id] = event
            elif event.kind != "slow" and self.has(event.station):
                own.setdefault(event.id, []).append(event)
        decided: dict[str, int] = {key: event.revision for key, event in alone.items()}
        for event in sites.values():
            votes = event.coincidence.votes if event.coincidence is not None else ()
            known = {vote.event_id: vote.revision for vote in votes if vote.event_id in own}
            members = {own[key][-1].station.short: own[key][-1] for key in known}
            if members:
                together = _Together(event.id, members, event.revision + 1, ended=event.phase == "end")
                self._events.append(together)
                self._of |= dict.fromkeys(known, together)
                decided |= known
        for key, event in alone.items():
            self._singles[key] = _Single([event], _Fate.ALONE, event.coincidence.degraded or "")  # type: ignore[union-attr]
        wait_ns = self._window_ns + self._first_verdict_ns + self._lag_ns
        for key, revisions in own.items():
            newest = revisions[-1]
            if key in decided or newest.phase != "end" or newest.data_ns < newest.onset_ns + wait_ns:
                self._queue += [event for event in revisions if event.revision > decided.get(key, -1)]
        return [
            replace(event, coincidence=alone[event.id].coincidence)
            if event.id in alone and event.revision <= alone[event.id].revision
            else event
            for event in past
            if not is_alone(event)
        ]

    def problem(self) -> str:
        """Why no coincidence is possible at present, or who of the site has never sent anything; empty if all is well.
        Any thread may ask."""
        foremost = self._foremost_ns()
        silent = [name for name in self._settings.stations if not (self._lives(name, foremost) and self._listens(name))]
        left = len(self._names) - len(silent)
        if left >= self._settings.required or not foremost:
            if apart := self._pairing.apart_s:
                return "; ".join(_apart(sorted(pair), apart_s) for pair, apart_s in apart.items())
            absent = [name for name in self._settings.stations if name not in self._stations]
            if not absent or max(foremost, self._others_ns) - self._begun_ns < ABSENT_NS:
                return ""
            return f"nothing has come from {_named(absent)} of the site since the start"
        return f"no coincidence is possible, stations alert alone: {self._few(left, silent)}"

    def _few(self, possible: int, unable: list[str]) -> str:
        return f"{possible} of {self._settings.required} stations could see it; not {_named(unable)}"

    def standing(self, event: Event) -> DecisionReason:
        """How far a station's event is judged with those of the other stations."""
        together, single = self._of.get(event.id), self._singles.get(event.id)
        if together is not None:
            return DecisionReason("site_member", f"judged with the other stations of the site, as {together.id}")
        if single is not None and single.fate is _Fate.ALONE:
            return DecisionReason("site_member", f"judged without the other stations of the site: {single.degraded}")
        if single is not None and single.fate is _Fate.LOCAL:
            return DecisionReason("site_local", "the other stations of the site had data and have no such event")
        return DecisionReason("site_waits", "not known yet whether other stations of the site have this event")

    # Time

    def _sensors(self) -> list[_Heard]:
        return [heard for sensors in self._stations.copy().values() for heard in sensors.copy().values()]

    def _foremost_ns(self) -> int:
        """Begin of the newest packet of all: records of a minute make nobody a minute late."""
        return max((heard.begun_ns for heard in self._sensors()), default=0)

    def _horizon_ns(self) -> int:
        """The data time up to which every living station is decided."""
        oldest = self._foremost_ns() - self._lag_ns
        return min((heard.decided_ns for heard in self._sensors() if heard.decided_ns >= oldest), default=0)

    def _lives(self, name: str, foremost_ns: int) -> bool:
        sensors = self._stations.get(name, {}).copy()
        return any(foremost_ns - heard.decided_ns <= self._lag_ns for heard in sensors.values())

    def _listens(self, name: str) -> bool:
        """Whether any sensor of the station hears, as far as is known."""
        sensors = self._stations.get(name, {}).copy()
        return any(heard.hearing is None or not heard.hearing.is_deaf() for heard in sensors.values())

    # Verdicts, in the order of their times

    def _decide(self, until_ns: int | None) -> Iterator[Event]:
        due = sorted(
            (event for event in self._queue if until_ns is None or event.data_ns <= until_ns),
            key=lambda event: (event.data_ns, event.onset_ns, event.station, event.revision),
        )
        if due:
            self._queue = [event for event in self._queue if until_ns is not None and event.data_ns > until_ns]
        for event in due:
            yield from self._judge_waiting(event.data_ns)
            yield from self._place(event)
        yield from self._judge_waiting(until_ns)
        yield from self._end(until_ns)
        self._forget()

    def _place(self, event: Event) -> Iterator[Event]:
        single = self._singles.get(event.id)
        if single is not None and single.fate is _Fate.ALONE:
            yield self._alone(event, single.degraded)
        together = self._of.get(event.id)
        if together is None and single is None:
            together = self._joined(event) or self._formed(event)
        if together is not None:
            if not together.ended:
                together.members[event.station.short] = event
                yield self._event(together, event.data_ns)
        elif single is None:
            self._singles[event.id] = _Single([event])
        else:
            single.revisions = [*single.revisions, event] if single.fate is _Fate.WAITING else [event]

    def _joined(self, event: Event) -> _Together | None:
        """The event of the site that this one belongs to: the nearest that lacks its station."""
        near = [
            together
            for together in self._events
            if event.station.short not in together.members and together.span_with(event.onset_ns) <= self._window_ns
        ]
        found = min(near, key=lambda together: abs(together.onset_ns - event.onset_ns), default=None)
        if found is not None:
            self._of[event.id] = found
        return found

    def _formed(self, event: Event) -> _Together | None:
        """A new event of the site, if with this one there are enough: of all spans of ``window_s`` that hold it, the
        one with most stations, of several the earliest; of each station its first event there."""
        near = [
            single.newest
            for single in self._singles.values()
            if single.newest.id not in self._of
            and abs(single.newest.onset_ns - event.onset_ns) <= self._window_ns
            and single.newest.station.short != event.station.short
        ]
        best: dict[str, Event] = {}
        for begin in sorted({other.onset_ns for other in (*near, event) if other.onset_ns <= event.onset_ns}):
            inside = [other for other in near if begin <= other.onset_ns <= begin + self._window_ns]
            members = {event.station.short: event}
            for other in sorted(inside, key=lambda other: (other.onset_ns, other.id)):
                members.setdefault(other.station.short, other)
            if len(members) > len(best):
                best = members
        if len(best) < self._settings.required:
            return None
        together = _Together("", best)
        together.id = event_id(self.station, together.onset_ns)
        self._events.append(together)
        self._pairing.agree(best)
        for member in best.values():
            self._of[member.id] = together
            single = self._singles.get(member.id)
            if single is not None and single.fate is not _Fate.ALONE:
                del self._singles[member.id]
        return together

    # Events that no other station has

    def _judge_waiting(self, now_ns: int | None) -> Iterator[Event]:
        foremost = self._foremost_ns()
        for single in self._singles.values():
            if single.fate is not _Fate.WAITING:
                continue
            onset, own = single.newest.onset_ns, single.newest.station.short
            unable, pending, apart = [], False, self._pairing.apart_s
            for name in self._settings.stations:
                if name == own:
                    continue
                sight = False if frozenset((own, name)) in apart else self._sight(name, onset, now_ns, foremost)
                pending |= sight is None
                if sight is False:
                    unable.append(name)
            possible = len(self._names) - len(unable)
            if possible < self._settings.required:
                single.fate, single.degraded = _Fate.ALONE, f"coincidence not possible: {self._few(possible, unable)}"
                yield from (self._alone(event, single.degraded) for event in single.revisions)
                single.revisions = [single.newest]
            elif not pending:
                single.fate, single.revisions = _Fate.LOCAL, [single.newest]
            if single.fate is not _Fate.WAITING:
                self._pairing.add(own, onset)

    def _sight(self, name: str, onset_ns: int, now_ns: int | None, foremost_ns: int) -> bool | None:
        """Whether a station could have seen an onset about this time, as of ``now_ns``; None if that is still open."""
        begin, end = onset_ns - self._window_ns, onset_ns + self._window_ns + self._first_verdict_ns
        may_yet = False
        for heard in self._stations.get(name, {}).values():
            known = min(end, heard.decided_ns, end if now_ns is None else now_ns)
            if not any(first <= begin and known <= last + GAP_NS for first, last in heard.runs):
                continue
            if heard.hearing is None:
                able: bool | None = True
            else:
                able = heard.hearing.could_hear(begin, end, now_ns)
            if able is False:
                continue
            if known == end and (able or now_ns is None):
                return True
            may_yet |= now_ns is not None and foremost_ns - heard.decided_ns <= self._lag_ns
        return None if may_yet else False

    def _alone(self, event: Event, why: str) -> Event:
        wanted = self._settings
        return replace(
            event, coincidence=Coincidence(wanted.required, len(wanted.stations), wanted.window_s, degraded=why)
        )

    # Events of the site

    def _event(self, together: _Together, now_ns: int) -> Event:
        """The next revision; the last one if all members have ended and nobody can join any more."""
        together.ended = together.ended or self._is_over(together, now_ns)
        phase: EventPhase = "end" if together.ended and together.revision else "update" if together.revision else "new"
        members = sorted(together.members.values(), key=lambda event: (event.onset_ns, event.station))
        wanted = self._settings
        votes = tuple(
            Vote(
                event.station,
                event.id,
                event.revision,
                event.phase,
                event.onset_ns,
                wanted.weights.get(event.station.short, 1.0),
                event.classification,
            )
            for event in members
        )
        strongest = max(members, key=lambda event: (event.detection.ratio, event.id))
        loudest = max(members, key=_loudness).detection
        recorded = [event.recorded_s for event in members if event.recorded_s is not None]
        verdict = fuse(votes)
        revision, together.revision = together.revision, together.revision + 1
        return Event(
            id=together.id,
            revision=revision,
            phase=phase,
            station=self.station,
            onset_ns=together.onset_ns,
            detection=Detection(
                strongest.detection.ratio,
                max(event.detection.duration_s for event in members),
                loudest.peak_counts,
                strongest.detection.dominant_hz,
                loudest.noise_counts,
            ),
            classification=verdict,
            quality=_worst(members),
            data_ns=now_ns,
            reason=next((event.reason for event in members if event.reason), None) if verdict is None else None,
            exercise=any(event.exercise for event in members),
            recorded_s=max(recorded, default=None),
            coincidence=Coincidence(wanted.required, len(wanted.stations), wanted.window_s, votes),
        )

    def _is_over(self, together: _Together, now_ns: int) -> bool:
        """Whether nobody can join any more and all members have ended, or their stations are dead."""
        foremost = self._foremost_ns()
        return together.onset_ns + self._window_ns + self._first_verdict_ns < now_ns and all(
            event.phase == "end" or not self._lives(name, foremost) for name, event in together.members.items()
        )

    def _end(self, now_ns: int | None) -> Iterator[Event]:
        for together in self._events:
            newest = max(event.data_ns for event in together.members.values())
            if not together.ended and (now_ns is None or self._is_over(together, now_ns)):
                together.ended = True
                yield self._event(together, newest if now_ns is None else max(now_ns, newest))

    def _forget(self) -> None:
        """What is over, and too old for stations that come late."""
        old = self._foremost_ns() - KEPT_NS
        done = [
            key
            for key, single in self._singles.items()
            if single.fate is not _Fate.WAITING and single.newest.data_ns < old
        ]
        for key in [*done, *list(self._singles)[: max(0, len(self._singles) - MAX_KEPT)]]:
            self._singles.pop(key, None)
        gone = [t for t in self._events if t.ended and max(e.data_ns for e in t.members.values()) < old]
        for together in [*gone, *self._events[: max(0, len(self._events) - MAX_KEPT)]]:
            if together in self._events:
                self._events.remove(together)
                for member in together.members.values():
                    self._of.pop(member.id, None)


def _apart(names: Sequence[str], by_s: float) -> str:
    text = f"events of {' and '.join(names)} keep a distance of {abs(by_s):.1f} s: the clock of one of them is wrong"
    return f"{text}, and each alerts without the other"


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def fuse(votes: Iterable[Vote]) -> Classification | None:
    """One verdict of several, as described above; None if there is none at all. It has seen as much as the member that
    has seen most."""
    said = [(vote.weight, vote.classification) for vote in votes if vote.classification is not None]
    if not said:
        return None
    total = sum(weight for weight, _ in said)
    logs = [
        sum(weight * math.log(max(verdict.probabilities[row], FLOOR)) for weight, verdict in said) / total
        for row in range(len(LABELS))
    ]
    raised = [math.exp(log - max(logs)) for log in logs]
    probabilities = tuple(value / sum(raised) for value in raised)
    best = max(range(len(LABELS)), key=probabilities.__getitem__)
    first = said[0][1]
    return replace(
        first,
        label=LABELS[best],
        probability=probabilities[best],
        probabilities=probabilities,
        abstained=all(verdict.abstained for _, verdict in said),
        window_s=max(verdict.window_s for _, verdict in said),
    )


def _loudness(event: Event) -> tuple[float, float, str]:
    """Orders members by the amplitude at their sensor, relative to its own noise where that is known."""
    return event.detection.amplitude or 0.0, event.detection.peak_counts, event.id


def _worst(members: list[Event]) -> Quality:
    """The longest gap, the components that all have, the clock that is trusted least."""
    clock = min((event.quality.clock for event in members), key=lambda clock: clock.trust)
    shared = set.intersection(*(set(event.quality.components) for event in members))
    return Quality(
        max(event.quality.gap_s for event in members),
        "".join(component for component in members[0].quality.components if component in shared),
        clock,
    )
