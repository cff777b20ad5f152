"""From events to alerts: a pure function of the revisions it is shown, in data time; no clock, no I/O.

The states of one event:

    no alert --(its label's rule is met)--> raised --(a step of the rule is met)--> escalated
       |             ^                         |
       |             +-(stronger evidence)-- retracted <--(contradicted)
       +--(met, but a larger event has just alerted)--> held back --(it has become the larger one)--> raised

A revision may rest on old data (``Event.late``). What it raises is late and wakes nobody; so it holds back nothing that
is not late, and is raised once more if its event goes on into data that are not.

An alert holds back later events of its label and station for ``refractory_s``, but none that is larger: more severe, or
with a larger product of peak amplitude and duration (``agent.types.Detection.size``).

Alerts on the rate of events live beside these (``agent.alert.rate_alerts``). Several stations are put together before
(``agent.alert.coincidence``): an event of the site is judged like any other.

Every answer names its reason, as a code and in words, whether there is an alert or not. It is sent with the event.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from agent.alert.rate_alerts import RateWatch
from agent.config.policy import MAX_EVENTS, MAX_VERDICTS, PolicyConfig, RuleConfig, SlowRuleConfig, rank
from agent.messages.text import digits
from agent.types import (
    LABELS,
    NS,
    SLOW,
    Alert,
    Classification,
    DecisionCode,
    DecisionReason,
    Event,
    StationId,
    Swell,
    counted,
    is_alone,
)  # fmt: skip

UNCLASSIFIED = "unclassified"
"""Label of an alert about a trigger on which the network failed."""

SAME_LOOK_S = 0.05
"""Windows that differ by less are one: an event that comes again after a restart has its onset a little off."""

MAX_SWELLING = 256
"""Stations whose newest slow event is known."""

MAX_OPEN_EVENTS = 4096
"""Events followed at once; beyond it the one heard of least recently counts as ended."""

MAX_ENDED_EVENTS = 4096
"""Ended events whose late revisions are still known to be late."""

MAX_PLACES = 2048
"""Stations and labels whose past is kept."""

MAX_RECENT_ALERTS = 64
"""Alerts of one place that may hold back others. Each one within a refractory time is larger than those before it: of
many events in random order few are."""

EventKey: TypeAlias = "tuple[StationId, str, bool]"
"""Station, event id, exercise."""

Place: TypeAlias = "tuple[StationId, str, bool]"
"""Station, label, exercise: a drill must not silence the site."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer to one revision: its alerts, in the order in which they go out, and why these or none."""

    event_id: str
    revision: int
    alerts: tuple[Alert, ...]
    why: DecisionReason

    @property
    def code(self) -> DecisionCode:
        """The reason for programs."""
        return self.why.code

    @property
    def reason(self) -> str:
        """The reason in words."""
        return self.why.words


_Answer: TypeAlias = "tuple[tuple[Alert, ...], DecisionReason]"


@dataclass(frozen=True, slots=True)
class _Raised:
    """An alert that may hold back others: data time of its raise, severity, size (count-seconds) so far, and whether it
    was late."""

    at_ns: int
    severity: str
    size: float
    late: bool

    def is_exceeded(self, severity: str, size: float) -> bool:
        """Whether an event of this severity and size is larger."""
        return rank(severity) > rank(self.severity) or size > self.size


@dataclass(slots=True)
class _Past:
    """What one place has had: onsets of events that met the rule, and alerts that were not taken back."""

    onsets: OrderedDict[EventKey, int] = field(default_factory=OrderedDict)
    alerts: OrderedDict[EventKey, _Raised] = field(default_factory=OrderedDict)

    def events(self, onset_ns: int, within_s: float) -> int:
        """Events that began in the ``within_s`` seconds up to ``onset_ns``."""
        return sum(0 <= onset_ns - other <= within_s * NS for other in self.onsets.values())

    def holds_back(self, event: Event, severity: str, refractory_s: float) -> _Raised | None:
        """The alert of a no smaller event that is too recent (on either side: data clocks step back); None without."""
        recent = (
            alert
            for alert in self.alerts.values()
            if abs(event.data_ns - alert.at_ns) < refractory_s * NS and alert.late <= event.late
        )
        return next((alert for alert in recent if not alert.is_exceeded(severity, event.detection.size)), None)

    def grow(self, key: EventKey, event: Event, severity: str) -> None:
        """An event that has alerted goes on: it holds back with its present size and severity."""
        if (alert := self.alerts.get(key)) is not None:
            size = max(alert.size, event.detection.size)
            self.alerts[key] = replace(alert, severity=severity, size=size, late=alert.late and event.late)


@dataclass(slots=True)
class _Followed:
    """One open event."""

    revision: int = -1
    verdicts: deque[Classification] = field(default_factory=lambda: deque(maxlen=MAX_VERDICTS))
    standing: tuple[str, str] | None = None
    """Label and severity of the alert that has not been taken back."""
    late: bool = False
    """Whether that alert was late."""
    held: str | None = None
    """Label whose rule was met while a larger event held the alert back."""
    evidence: dict[str, float] = field(default_factory=dict)
    """Probability behind the last alert of each label: one that was withdrawn returns only above it."""


@dataclass(frozen=True, slots=True)
class _Case:
    """The revision at hand and what is known of its event."""

    key: EventKey
    event: Event
    followed: _Followed


class Policy:
    """Shown every revision of every event. Owned by one thread; its memory is bounded."""

    def __init__(self, settings: PolicyConfig) -> None:
        self._settings = settings
        self._rates = RateWatch(settings.rules)
        self._open: OrderedDict[EventKey, _Followed] = OrderedDict()
        self._ended: OrderedDict[EventKey, None] = OrderedDict()
        self._pasts: OrderedDict[Place, _Past] = OrderedDict()
        self._swelling: OrderedDict[tuple[StationId, bool], tuple[int, int]] = OrderedDict()
        """Onset and newest sample (ns) of each sensor's newest slow event, exercises apart."""

    @property
    def max_age_s(self) -> float:
        """Age of data above which what they raise is late."""
        return self._settings.max_age_s

    @property
    def withholds_late(self) -> bool:
        """Whether late alerts are not sent."""
        return self._settings.late == "withhold"

    def retune(self, settings: PolicyConfig) -> None:
        """Judge by other rules from the next revision on; what stands, stands, until a later verdict contradicts it."""
        self._settings = settings
        self._rates.retune(settings.rules)

    def consider(self, event: Event) -> tuple[Alert, ...]:
        """The alerts that follow from this revision; none from one that comes twice or late."""
        return self.decide(event).alerts

    def consider_rates(self, event: Event) -> tuple[Alert, ...]:
        """The alerts on rates alone, of an event that does not alert by itself. ``consider`` leaves them out for events
        of a station that is believed without the others of its site: they come this way."""
        return self._rates.consider(event)

    def decide(self, event: Event) -> Decision:
        """Do as ``consider``, with the reason.

        An event whose first revisions were not seen is judged all the same: silence would be the greater error.
        """
        key = (event.station, event.id, event.exercise)
        if key in self._ended:
            why = DecisionReason("stale", "the event has ended already")
            return Decision(event.id, event.revision, (), why)
        followed = self._open.setdefault(key, _Followed())
        if event.revision <= followed.revision:
            words = f"revision {event.revision} comes after revision {followed.revision}"
            return Decision(event.id, event.revision, (), DecisionReason("stale", words))
        followed.revision = event.revision
        self._open.move_to_end(key)
        case = _Case(key, event, followed)
        alerts, why = self._judge(case) if event.swell is None else self._judge_slow(case, event.swell)
        if followed.late and not event.late and followed.standing is not None:
            alerts, why = self._repeat(case, alerts, why)
        if event.coincidence is not None and event.coincidence.degraded is not None:
            alerts = tuple(replace(alert, reason=f"{alert.reason}; {event.coincidence.degraded}") for alert in alerts)
        if event.phase == "end":
            self._end(key)
            rates = () if is_alone(event) or event.kind == "slow" else self._rates.consider(event)
            alerts += rates
            if rates:
                words = "; ".join([why.words, *(alert.reason for alert in rates)])
                why = DecisionReason(why.code if len(alerts) > len(rates) else "rate", words)
        while len(self._open) > MAX_OPEN_EVENTS:
            self._end(next(iter(self._open)))
        _trim(self._ended, MAX_ENDED_EVENTS)
        _trim(self._pasts, MAX_PLACES)
        return Decision(event.id, event.revision, alerts, why)

    def _repeat(self, case: _Case, alerts: tuple[Alert, ...], why: DecisionReason) -> _Answer:
        """The alert once more that was late, now that its event has reached data that are not; unless this revision
        raises one anyway."""
        case.followed.late = False
        if case.followed.standing is None or any(alert.action == "raise" for alert in alerts):
            return alerts, why
        label, severity = case.followed.standing
        words = f"its alert was late, and the event goes on in new data: {why.words}"
        others = tuple(alert for alert in alerts if alert.action != "escalate")
        return (*others, Alert(case.event, "raise", severity, label, words)), DecisionReason("raised", words)

    def _end(self, key: EventKey) -> None:
        del self._open[key]
        self._ended[key] = None

    def _judge(self, case: _Case) -> _Answer:
        verdict, followed = case.event.classification, case.followed
        if verdict is None:
            return self._unclassified(case)
        if followed.verdicts and abs(followed.verdicts[-1].window_s - verdict.window_s) < SAME_LOOK_S:
            # The end of an event may repeat its last verdict, and one look at the data has one vote.
            followed.verdicts.pop()
        followed.verdicts.append(verdict)
        if followed.standing is None:
            alert, why = self._raise(case, verdict)
            if alert is None and followed.held is not None and why.code != "refractory":
                alert, why = self._release(case, why)
            return ((alert,) if alert else ()), why
        label, severity = followed.standing
        self._past(case.event, label).grow(case.key, case.event, severity)
        if verdict.abstained:
            return (), DecisionReason("stands", f"the network abstains; the {label} alert stands")
        if verdict.label == label:
            return self._escalate(case, verdict, severity)
        return self._contradict(case, verdict, label, severity)

    def _raise(self, case: _Case, verdict: Classification) -> tuple[Alert | None, DecisionReason]:
        """The alert if the rule of the verdict's label is met, else what it lacks."""
        event, label = case.event, verdict.label
        rule = self._settings.rules.of(label)
        lacking = _lacking(rule, case, verdict)
        if lacking is not None:
            return None, lacking
        past = self._past(event, label)
        past.onsets[case.key] = event.onset_ns
        _trim(past.onsets, MAX_EVENTS)
        together = rule.confirm_events
        if together is not None:
            count = past.events(event.onset_ns, together.within_s)
            if count < together.k:
                words = f"{count} of {together.k} {label} events within {together.within_s:g} s"
                return None, DecisionReason("confirm_events", words)
        severity = _severity(rule, event, verdict.probability, past)
        holder = past.holds_back(event, severity, rule.refractory_s)
        if holder is not None:
            case.followed.held = label
            return None, _held_back(event, label, severity, holder)
        reason = _evidence(rule, case, verdict)
        return self._put_up(case, (label, severity), verdict.probability, reason), DecisionReason("raised", reason)

    def _release(self, case: _Case, why: DecisionReason) -> tuple[Alert | None, DecisionReason]:
        """The alert of an event whose rule was met before, if it has become larger than what held it back and no
        verdict contradicts it; else ``why`` there is none, as the present verdict has it."""
        event, followed, label = case.event, case.followed, case.followed.held
        verdict = event.classification
        if label is None:
            return None, why
        if verdict is not None and self._contradicts(verdict, label):
            followed.held = None
            self._past(event, label).onsets.pop(case.key, None)
            return None, why
        rule, past = self._settings.rules.of(label), self._past(event, label)
        probability = max((v.probability for v in followed.verdicts if v.label == label), default=0.0)
        severity = _severity(rule, event, probability, past)
        holder = past.holds_back(event, severity, rule.refractory_s)
        if rule.severity == "none" or holder is not None:
            return None, why
        reason = f"{label} {probability:.2f} was held back, and is now the larger event ({_extent(event)})"
        return self._put_up(case, (label, severity), probability, reason), DecisionReason("raised", reason)

    def _escalate(self, case: _Case, verdict: Classification, severity: str) -> _Answer:
        event, label = case.event, verdict.label
        rule, past = self._settings.rules.of(label), self._past(event, label)
        higher = _severity(rule, event, verdict.probability, past)
        if rank(higher) <= rank(severity) or not _supports(rule, verdict, label):
            return (), DecisionReason("stands", f"the {label} alert stands ({severity})")
        case.followed.standing = (label, higher)
        case.followed.evidence[label] = max(verdict.probability, case.followed.evidence[label])
        past.grow(case.key, event, higher)
        reason = f"{severity} to {higher}: {_evidence(rule, case, verdict)}"
        return (Alert(event, "escalate", higher, label, reason, late=event.late),), DecisionReason("escalated", reason)

    def _contradict(self, case: _Case, verdict: Classification, label: str, severity: str) -> _Answer:
        """Take the standing alert back if a verdict of another label says so; that label may then alert itself."""
        followed, event = case.followed, case.event
        why_not = self._outlives(verdict, label)
        if why_not:
            return (), DecisionReason("stands", why_not)
        was_late = followed.late
        raised, why = self._raise(case, verdict)
        if label == UNCLASSIFIED and raised is None and self._settings.rules.of(verdict.label).severity != "none":
            return (), DecisionReason("stands", f"{why.words}; the {label} alert stands meanwhile")
        if raised is None:
            followed.standing = None
        past = self._past(event, label)
        past.alerts.pop(case.key, None)
        past.onsets.pop(case.key, None)
        for vote in [v for v in followed.verdicts if v.label == label]:
            followed.verdicts.remove(vote)
        taken_back = f"{verdict.label} {verdict.probability:.2f} after {verdict.window_s:g} s contradicts {label}"
        withdrawn = Alert(event, "retract", severity, label, taken_back, late=was_late)
        words = f"{taken_back}; {why.words}"
        return (
            ((withdrawn, raised), DecisionReason("raised", words))
            if raised
            else ((withdrawn,), DecisionReason("retracted", words))
        )

    def _contradicts(self, verdict: Classification, label: str) -> bool:
        """Whether this verdict would take back an alert of ``label``."""
        return not verdict.abstained and verdict.label != label and not self._outlives(verdict, label)

    def _outlives(self, verdict: Classification, label: str) -> str:
        """Why the alert of ``label`` stands after this verdict of another label; empty if it does not."""
        if label == UNCLASSIFIED:
            sure = verdict.probability >= self._settings.rules.of(verdict.label).min_probability
            return "" if sure else f"{verdict.label} {verdict.probability:.2f} is not sure; the {label} alert stands"
        rule = self._settings.rules.of(label)
        if not rule.retract:
            return f"{label} alerts are not retracted (retract: false)"
        probability = verdict.probabilities[LABELS.index(label)]
        if probability >= rule.contradicted_below:
            return f"{label} still has {probability:.2f} (retract_below: {rule.contradicted_below:g}); its alert stands"
        return ""

    def _unclassified(self, case: _Case) -> _Answer:
        event, followed = case.event, case.followed
        failure = f"not classified ({event.reason or 'no reason given'})"
        rule, duration = self._settings.unclassified, event.detection.duration_s
        past = self._past(event, UNCLASSIFIED)
        if followed.standing is not None:
            label, severity = followed.standing
            self._past(event, label).grow(case.key, event, severity)
            return (), DecisionReason("stands", f"{failure}; the {label} alert stands")
        if followed.held is not None:
            alert, why = self._release(case, DecisionReason("not_classified", failure))
            if alert is not None:
                return (alert,), why
        holder = past.holds_back(event, rule.severity, rule.refractory_s)
        checks: tuple[tuple[bool, DecisionCode, str], ...] = (
            (
                self._settings.on_classifier_failure == "event",
                "not_classified",
                "only the event is sent (on_classifier_failure: event)",
            ),
            (UNCLASSIFIED in followed.evidence, "withdrawn", "its alert was taken back once"),
            (
                duration < rule.min_duration_s,
                "duration",
                f"trigger of {duration:.1f} s, {rule.min_duration_s:g} s are needed",
            ),
        )
        lacking = next((DecisionReason(code, words) for fails, code, words in checks if fails), None)
        if lacking is None and holder is not None:
            lacking = _held_back(event, UNCLASSIFIED, rule.severity, holder)
        if lacking is not None:
            return (), DecisionReason(lacking.code, f"{failure}; {lacking.words}")
        reason = f"{failure}; trigger of {duration:.1f} s, ratio {event.detection.ratio:.1f}"
        return (self._put_up(case, (UNCLASSIFIED, rule.severity), 0.0, reason),), DecisionReason("raised", reason)

    def _judge_slow(self, case: _Case, swell: Swell) -> _Answer:
        event, followed, rule = case.event, case.followed, self._settings.slow
        self._swelling[event.station, event.exercise] = event.onset_ns, event.data_ns
        self._swelling.move_to_end((event.station, event.exercise))
        _trim(self._swelling, MAX_SWELLING)
        stations, past = self._swelling_with(event, rule.within_s), self._past(event, SLOW)
        severity = _severity(rule, event, 1.0, past, stations)
        seen = (
            f"power of the last minute {digits(swell.ratio)} times the background's, risen over {swell.rise_s:.0f} s, "
            f"{event.detection.duration_s:.0f} s long"
        )
        if followed.standing is not None:
            before = followed.standing[1]
            if rank(severity) <= rank(before):
                past.grow(case.key, event, before)
                return (), DecisionReason("stands", f"the {SLOW} alert stands ({before})")
            followed.standing = (SLOW, severity)
            past.grow(case.key, event, severity)
            reason = f"{before} to {severity}: {seen}"
            alert = Alert(event, "escalate", severity, SLOW, reason, late=event.late)
            return (alert,), DecisionReason("escalated", reason)
        duration = event.detection.duration_s
        checks: tuple[tuple[bool, DecisionCode, str], ...] = (
            (rule.severity == "none", "no_rule", "slow events raise no alert (policy.slow.severity: none)"),
            (duration < rule.min_duration_s, "duration", f"{seen}; {rule.min_duration_s:g} s are needed"),
            (swell.ratio < rule.min_ratio, "level", f"{seen}; {rule.min_ratio:g} times are needed"),
            (stations < rule.stations, "stations", f"{seen}; at {stations} of {rule.stations} stations needed"),
        )
        lacking = next((DecisionReason(code, words) for fails, code, words in checks if fails), None)
        holder = past.holds_back(event, severity, rule.refractory_s)
        if lacking is None and holder is not None:
            lacking = _held_back(event, SLOW, severity, holder)
        if lacking is not None:
            return (), lacking
        reason = f"slow event, {seen}" + (f", at {stations} stations" if stations > 1 else "")
        return (self._put_up(case, (SLOW, severity), 0.0, reason),), DecisionReason("raised", reason)

    def _swelling_with(self, event: Event, within_s: float) -> int:
        """Stations, this one included, that have a slow event at the same time, or as near as that."""
        margin_ns = round(within_s * NS)
        return len(
            {
                sensor.short
                for (sensor, exercise), (onset_ns, newest_ns) in self._swelling.items()
                if exercise == event.exercise
                and onset_ns <= event.data_ns + margin_ns
                and newest_ns >= event.onset_ns - margin_ns
            }
        )

    def _put_up(self, case: _Case, standing: tuple[str, str], probability: float, reason: str) -> Alert:
        label, severity = case.followed.standing = standing
        case.followed.evidence[label] = probability
        case.followed.held, case.followed.late = None, case.event.late
        past = self._past(case.event, label)
        past.alerts.pop(case.key, None)
        past.alerts[case.key] = _Raised(case.event.data_ns, severity, case.event.detection.size, case.event.late)
        _trim(past.alerts, MAX_RECENT_ALERTS)
        return Alert(case.event, "raise", severity, label, reason, late=case.event.late)

    def _past(self, event: Event, label: str) -> _Past:
        place = (event.station, label, event.exercise)
        past = self._pasts.setdefault(place, _Past())
        self._pasts.move_to_end(place)
        return past


def _supports(rule: RuleConfig, verdict: Classification, label: str) -> bool:
    return not verdict.abstained and verdict.label == label and verdict.probability >= rule.min_probability


def _votes(rule: RuleConfig, label: str, followed: _Followed) -> int:
    newest = list(followed.verdicts)[-rule.confirm.n :]
    return sum(_supports(rule, verdict, label) for verdict in newest)


def _lacking(rule: RuleConfig, case: _Case, verdict: Classification) -> DecisionReason | None:
    """The first of the rule's conditions on the event itself that is not met; None if all are."""
    label, duration = verdict.label, case.event.detection.duration_s
    named = f"{label} {verdict.probability:.2f}"
    votes = _votes(rule, label, case.followed)
    before = case.followed.evidence.get(label)
    checks: tuple[tuple[bool, DecisionCode, str], ...] = (
        (verdict.abstained, "abstained", f"the network abstains (best: {named})"),
        (rule.severity == "none", "no_rule", f"{label} raises no alert (severity: none)"),
        (not _supports(rule, verdict, label), "probability", f"{named}, {rule.min_probability:g} is needed"),
        (
            verdict.window_s < rule.min_window_s,
            "window",
            f"{verdict.window_s:g} s seen, {rule.min_window_s:g} s are needed",
        ),
        (
            duration < rule.min_duration_s,
            "duration",
            f"trigger of {duration:.1f} s, {rule.min_duration_s:g} s are needed",
        ),
        (
            votes < rule.confirm.k and verdict.probability < rule.sure,
            "confirm",
            f"{named}; {votes} of the {rule.confirm.k} verdicts that must name it",
        ),
        (
            before is not None and verdict.probability <= before,
            "withdrawn",
            f"{named} is no stronger than what was withdrawn",
        ),
    )
    return next((DecisionReason(code, words) for fails, code, words in checks if fails), None)


def _held_back(event: Event, label: str, severity: str, holder: _Raised) -> DecisionReason:
    """The refractory of another event's alert that is no smaller."""
    ago_s = abs(event.data_ns - holder.at_ns) / NS
    words = (
        f"held back: another {label} alert ({holder.severity}) was raised {ago_s:.0f} s before, and this event "
        f"({severity}) is no larger: {digits(event.detection.size)} count-seconds against {digits(holder.size)}"
    )
    return DecisionReason("refractory", words)


def _severity(
    rule: RuleConfig | SlowRuleConfig, event: Event, probability: float, past: _Past, stations: int = 1
) -> str:
    """The highest severity whose conditions all hold; ``stations`` that have the event, if it is not one of a site."""
    seen = event.detection
    stations = stations if event.coincidence is None else len(event.coincidence.votes)
    reached = [
        step.severity
        for step in rule.escalate
        if probability >= (step.min_probability or 0.0)
        and seen.duration_s >= (step.min_duration_s or 0.0)
        and (step.min_amplitude is None or (seen.amplitude or 0.0) >= step.min_amplitude)
        and (step.min_stations is None or stations >= step.min_stations)
        and (step.min_events is None or past.events(event.onset_ns, step.within_s) >= step.min_events)
    ]
    return max([rule.severity, *reached], key=rank)


def _evidence(rule: RuleConfig, case: _Case, verdict: Classification) -> str:
    asked = counted(min(rule.confirm.n, len(case.followed.verdicts)), "verdict")
    votes = f"{_votes(rule, verdict.label, case.followed)} of {asked}"
    seen = f"{verdict.label} {verdict.probability:.2f} after {verdict.window_s:g} s"
    return f"{seen}, {votes}, {_extent(case.event)}"


def _extent(event: Event) -> str:
    seen = event.detection
    above = "" if seen.amplitude is None else f", {digits(seen.amplitude)} times the noise"
    return f"trigger of {seen.duration_s:.1f} s{above}"


def _trim(kept: OrderedDict[Any, Any], size: int) -> None:
    while len(kept) > size:
        kept.popitem(last=False)
