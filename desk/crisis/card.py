"""The scorecard of a crisis: what was planted against what arrived at the subscriber.

All of the score is counted, or in the time of the data. What depends on the machine stands apart, in ``Card.machine``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from agent.dsp.hearing import STEP_NS
from agent.sources.simulator import KINDS, Sent
from agent.types import NS, SLOW, parse_ns
from desk.crisis.run import Facts

RIGHT: Mapping[str, str] = {
    "slopequake": "landslide",
    "rockfall": "landslide",
    "slide": "landslide",
    "blast": "blast",
    "earthquake": "earthquake",
}
"""What the network should call each kind."""
OWN = ("slopequake", "rockfall", "slide")
"""The slope's own events, which may alert."""
SLACK_NS = 2 * NS
SAME_ONSET_NS = NS
"""After a restart an onset may lie a little elsewhere."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Of one kind of planted event: how many, how many of these while the sensor was deaf; of the others, detected and
    missed; of those detected with an event of their own: right, wrong (by what they were called), abstained."""

    planted: int
    while_deaf: int
    detected: int
    missed: int
    right: int
    wrong: dict[str, int]
    abstained: int


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds: how many, and the 50th, 95th and 99th percentile."""

    count: int
    p50: float | None
    p95: float | None
    p99: float | None


@dataclass(frozen=True, slots=True)
class Deaf:
    """Minutes in which nothing could be heard; those of them of which the station says that it could have triggered,
    while the broker has it as there; and of each span the minutes until its health report had a reason that it did not
    have before, or the broker said that it is away; None: neither did."""

    minutes: int
    unreported: int
    named_after: list[int | None]


@dataclass(frozen=True, slots=True)
class Score:
    """The part that is the same for the same seed."""

    seed: int
    hours: float
    troubles: dict[str, int]
    spikes: int
    kinds: dict[str, Kind]
    false_alerts: dict[str, int]
    """Alerts that no event of the slope explains, by what there was instead."""
    false_a_day: float
    to_verdict: Times
    to_alert: Times
    to_acknowledged: Times
    slide_alert_s: float | None
    alerts: dict[str, int]
    armed: float
    deaf: Deaf
    lost: int
    """Events and alerts that were put on disk and did not arrive, and events that the same data give without strikes
    and of which nothing arrived."""
    unended: int

    @property
    def is_met(self) -> bool:
        """Nothing lost, and never deaf without saying so."""
        return not (self.lost or self.unended or self.deaf.unreported)


@dataclass(frozen=True, slots=True)
class Card:
    """The score, and what this machine had to do with it."""

    score: Score
    machine: dict[str, float | int]


@dataclass(slots=True)
class _Event:
    """All that arrived of one event, in the order of its revisions; times in the time of the data."""

    onset_ns: int
    until_ns: int = 0
    label: str = "unclassified"
    phase: str = ""
    verdict_ns: int | None = None
    alerts: list[tuple[int, int]] = field(default_factory=list)
    """Of each raised or escalated alert: when it was decided, and when it arrived."""


def make_card(facts: Facts) -> Card:
    """Compare what was planted with what arrived."""
    plan = facts.plan
    events = _events(facts)
    deaf_ns = [(plan.start_ns + 60 * NS * a, plan.start_ns + 60 * NS * b) for a, b in plan.deaf]
    heard = [one for one in facts.sent if not any(a <= one.onset_ns < b for a, b in deaf_ns)]
    matches = {id(one): _matches(events, one, plan.clock_step_s(one.onset_ns)) for one in heard}
    kinds: dict[str, Kind] = {}
    for kind in KINDS:
        here = [one for one in heard if one.planned.kind == kind]
        planted = sum(one.planned.kind == kind for one in facts.sent)
        kinds[kind] = _kind(kind, planted, here, [matches[id(one)] for one in here])
    firsts = [(one, own[0]) for one in heard if (own := matches[id(one)][0])]
    alerted = [(one, min(event.alerts)) for one, event in firsts if event.alerts and one.planned.kind in OWN]
    to_verdict = [(e.verdict_ns - e.onset_ns) / NS for _, e in firsts if e.verdict_ns is not None]
    onset = {id(one): one.onset_ns + round(NS * plan.clock_step_s(one.onset_ns)) for one, _ in alerted}
    causes = _causes(events, facts)
    bodies = [arrival.body for arrival in facts.arrived.values() if arrival.name == "alert"]
    slides = [at - onset[id(one)] for one, (at, _) in alerted if one.planned.kind == "slide"]
    minutes = range(plan.minutes)
    score = Score(
        plan.seed,
        plan.minutes / 60,
        dict(Counter(span.kind for span in plan.troubles)),
        facts.spikes,
        kinds,
        dict(causes),
        round(sum(causes.values()) / (plan.minutes / 1440), 2),
        _times(to_verdict),
        _times((at - onset[id(one)]) / NS for one, (at, _) in alerted),
        _times((there - onset[id(one)]) / NS for one, (_, there) in alerted),
        round(min(slides) / NS, 1) if slides else None,
        dict(Counter(body["action"] for body in bodies)),
        round(float(np.mean([_armed(facts, minute) for minute in minutes])), 4),
        _deaf(facts),
        _lost(facts, events),
        sum(event.phase != "end" for event in events.values()),
    )
    waits = [(facts.arrived[key].wall_ns - at) / 1e6 for key, at in facts.told.items() if key in facts.arrived]
    quick = sorted(waits)[: max(1, len(waits) * 9 // 10)] if waits else [0.0]
    machine = {
        "took_s": round(facts.took_s, 1),
        "times_real_time": round(60 * plan.minutes / facts.took_s),
        "starts": facts.starts,
        "messages": len(facts.arrived),
        "copies": facts.copies,
        "disk_to_subscriber_ms_p50": round(float(np.percentile(quick, 50)), 1),
    }
    return Card(score, machine)


def _events(facts: Facts) -> dict[str, _Event]:
    """By identifier."""
    found: dict[str, _Event] = {}
    order: Sequence[dict[str, Any]] = sorted(
        (a.body for a in facts.arrived.values() if a.name == "event"), key=lambda body: int(body["revision"])
    )
    for body in order:
        event = found.setdefault(body["id"], _Event(parse_ns(body["onset"])))
        verdict, at_ns = body["classification"], parse_ns(body["timing"]["data"])
        event.until_ns = event.onset_ns + round(body["detection"]["duration_s"] * NS)
        event.phase = body["phase"]
        if verdict is not None:
            event.label = "abstained" if verdict["abstained"] else verdict["label"]
            event.verdict_ns = at_ns if event.verdict_ns is None else event.verdict_ns
        elif body["kind"] == SLOW:
            event.label = SLOW
    for arrival in facts.arrived.values():
        body = arrival.body
        if arrival.name == "alert" and body["action"] != "retract" and body["rate"] is None:
            event = found.setdefault(body["id"], _Event(parse_ns(body["onset"])))
            event.alerts.append((parse_ns(body["timing"]["data"]), arrival.at_ns))
    return found


def _matches(events: Mapping[str, _Event], sent: Sent, step_s: float) -> tuple[list[_Event], list[_Event]]:
    """Events that began with the signal, the nearest first; and those during which it was there."""
    begin_ns = sent.onset_ns + round(step_s * NS)
    end_ns = begin_ns + round(sent.seconds * NS)
    found = [
        event
        for event in events.values()
        if event.onset_ns <= end_ns and event.until_ns + SLACK_NS >= begin_ns and event.label != SLOW
    ]
    own = [event for event in found if begin_ns - SLACK_NS <= event.onset_ns]
    return sorted(own, key=lambda event: event.onset_ns), found


def _kind(kind: str, planted: int, sent: Sequence[Sent], matches: Sequence[tuple[list[_Event], list[_Event]]]) -> Kind:
    called = Counter(own[0].label for own, _ in matches if own)
    right = called.pop(RIGHT[kind], 0)
    abstained = called.pop("abstained", 0)
    detected = sum(bool(found) for _, found in matches)
    wrong = dict(sorted(called.items()))
    return Kind(planted, planted - len(sent), detected, len(sent) - detected, right, wrong, abstained)


def _causes(events: Mapping[str, _Event], facts: Facts) -> Counter[str]:
    """What there was when an alert was raised that no event of the slope explains."""
    causes: Counter[str] = Counter()
    for event in events.values():
        if not event.alerts:
            continue
        there = {
            sent.planned.kind for sent in facts.sent if _overlap(event, sent, facts.plan.clock_step_s(sent.onset_ns))
        }
        if not there & set(OWN):
            causes[min(there) if there else "nothing"] += 1
    return causes


def _overlap(event: _Event, sent: Sent, step_s: float) -> bool:
    begin_ns = sent.onset_ns + round(step_s * NS)
    return event.onset_ns <= begin_ns + round(sent.seconds * NS) and event.until_ns + SLACK_NS >= begin_ns


def _times(seconds: Iterable[float]) -> Times:
    values = [*seconds]
    if not values:
        return Times(0, None, None, None)
    p50, p95, p99 = (round(float(p), 1) for p in np.percentile(values, (50, 95, 99), method="higher"))
    return Times(len(values), p50, p95, p99)


def _armed(facts: Facts, minute: int) -> float:
    """Share of a minute in which the station says that it could have triggered."""
    first = (facts.plan.start_ns + minute * 60 * NS) // STEP_NS
    steps = range(first, first + 60 * NS // STEP_NS)
    return sum(facts.armed.get(number, 0.0) for number in steps) / len(steps)


def _deaf(facts: Facts) -> Deaf:
    total = unreported = 0
    named_after: list[int | None] = []
    for begin, end in facts.plan.deaf:
        total += end - begin
        unreported += sum(_armed(facts, m) >= 0.5 and m not in facts.away for m in range(begin, end))
        before = facts.reasons.get(begin - 1, frozenset())
        said = (m for m in range(begin, end) if m in facts.away or facts.reasons.get(m, frozenset()) - before)
        named_after.append(next((minute + 1 - begin for minute in said), None))
    return Deaf(total, unreported, named_after)


def _lost(facts: Facts, events: Mapping[str, _Event]) -> int:
    onsets = sorted(event.onset_ns for event in events.values())
    gone = facts.told.keys() - facts.arrived.keys()
    silent = 0
    for name, onset_ns in facts.whole.items():
        if name not in events:
            at = int(np.searchsorted(onsets, onset_ns - SAME_ONSET_NS))
            silent += not (at < len(onsets) and onsets[at] <= onset_ns + SAME_ONSET_NS)
    return len(gone) + silent


def lines(card: Card) -> list[str]:
    """The card in words, a line each."""
    s = card.score
    troubles = ", ".join(f"{kind} {n}" for kind, n in sorted(s.troubles.items()))
    out = [
        f"crisis of {s.hours:g} h, seed {s.seed}; {troubles}, spike {s.spikes}",
        "",
        f"{'planted':<12}{'':>6}{'deaf':>6}{'detected':>10}{'missed':>8}{'right':>7}{'abstained':>11}  called wrong",
    ]
    for kind, one in s.kinds.items():
        wrong = ", ".join(f"{label} {n}" for label, n in one.wrong.items())
        out.append(
            f"{kind:<12}{one.planted:>6}{one.while_deaf:>6}{one.detected:>10}{one.missed:>8}{one.right:>7}"
            f"{one.abstained:>11}  {wrong}".rstrip()
        )
    false = ", ".join(f"{cause} {n}" for cause, n in sorted(s.false_alerts.items()))
    slide = "none" if s.slide_alert_s is None else f"{s.slide_alert_s:g} s after its onset"
    named = ", ".join("not" if m is None else f"{m} min" for m in s.deaf.named_after)
    rows = [
        ("alerts", ", ".join(f"{action} {n}" for action, n in sorted(s.alerts.items())) or "none"),
        ("false alerts a day", f"{s.false_a_day:g}" + (f" ({false})" if false else "")),
        ("onset to first verdict", _words(s.to_verdict)),
        ("onset to alert", _words(s.to_alert)),
        ("onset to its acknowledgement", _words(s.to_acknowledged)),
        ("alert of the final slide", slide),
        ("armed", f"{s.armed:.1%} of the time"),
        ("deaf minutes", f"{s.deaf.minutes}; said after: {named or '-'}"),
        ("deaf minutes not reported", f"{s.deaf.unreported}   (must be 0)"),
        ("events without an end", f"{s.unended}   (must be 0)"),
        ("lost", f"{s.lost}   (must be 0)"),
    ]
    out += ["", *(f"{name:<30}{value}" for name, value in rows)]
    m = card.machine
    out += [
        "",
        f"not part of the score: {m['took_s']:g} s ({m['times_real_time']:,} x real time), {m['messages']} messages "
        f"and {m['copies']} copies, disk to subscriber {m['disk_to_subscriber_ms_p50']:g} ms in the middle",
    ]
    return out


def _words(times: Times) -> str:
    if times.p50 is None:
        return "none"
    return f"p50 {times.p50:g} s, p95 {times.p95:g} s, p99 {times.p99:g} s  ({times.count})"
