"""Alerts on the acceleration of a slope: a pure function of the events it is shown, in recorded time; no clock.

Before many slope failures the rate of events rises, in the end as the inverse of the time that is left (Fukuzono 1985,
Voight 1988). Whether a rate has risen is a comparison of two counts: ``n`` events in the last ``window_s`` seconds
(``w``), ``m`` in the ``background_s`` before them (``b``). If both came from one rate, each of the ``n + m`` events
would fall into the window with probability ``w / (w + b)``, and the probability of ``n`` or more there is the tail of a
binomial distribution (the conditional test of two Poisson rates, Przyborowski & Wilenski 1940, Biometrika 31):

    chance = sum over k = n .. n+m of  C(n+m, k) p^k (1-p)^(n+m-k),   p = w / (w + b)
    ratio  = (n / w) / (max(m, 1) / b)

The alert is raised when ``n >= min_events``, ``ratio >= min_ratio`` and ``chance <= max_chance``. The background is
then kept as the reference for as long as the alert stands, or the rise itself would wear it away: escalations compare
with it, and the alert is taken back when the ratio falls below half of ``min_ratio``. After ``background_s`` the new
rate is the usual one: from then on the reference is taken anew.

Time is what the station has recorded (``Event.recorded_s``), so that an outage is not mistaken for quiet. Decisions are
taken at the end of each event, as of its onset: by then earlier ones have been counted.
"""

from __future__ import annotations

import math
from bisect import bisect_right, insort
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TypeAlias

from agent.config.policy import AccelerationConfig, RulesConfig, rank
from agent.types import LABELS, NS, Acceleration, Alert, AlertAction, Event, RateAlert, StationId, counted

MAX_ONSETS = 2048
"""Events of one station and label that are kept; where more have come, the background begins with the oldest."""
MAX_SITES = 128
"""Stations whose rates are followed; the one heard of least recently is forgotten."""
_EVEN = 1e-12

SiteKey: TypeAlias = "tuple[StationId, bool]"
"""Station, exercise: a drill must not raise the alarm of the site."""


@dataclass(slots=True)
class _Raised:
    """An alert that has not been taken back."""

    id: str
    severity: str
    since_s: float
    background_s: float
    background_events: int
    late: bool
    """Whether it rests on old data only."""
    revision: int = 0


@dataclass(slots=True)
class _Place:
    """One label at one site."""

    onsets: list[float] = field(default_factory=list)
    """Recorded seconds, ascending."""
    begins_s: float = 0.0
    """The onsets are complete from here on."""
    standing: _Raised | None = None

    def add(self, at_s: float, horizon_s: float) -> None:
        insort(self.onsets, at_s)
        surplus = max(len(self.onsets) - MAX_ONSETS, bisect_right(self.onsets, self.onsets[-1] - horizon_s))
        if surplus > 0:
            self.begins_s = max(self.begins_s, self.onsets[surplus - 1])
            del self.onsets[:surplus]

    def count(self, after_s: float, until_s: float) -> int:
        return bisect_right(self.onsets, until_s) - bisect_right(self.onsets, after_s)


@dataclass(slots=True)
class _Site:
    origin_s: float
    """Begin of the axis, for events that do not say what was recorded before them."""
    now_s: float = 0.0
    places: dict[str, _Place] = field(default_factory=dict)


class RateWatch:
    """Shown every event at its end, once. Owned by one thread; its memory is bounded."""

    def __init__(self, rules: RulesConfig) -> None:
        self._rules = _watched(rules)
        self._sites: OrderedDict[SiteKey, _Site] = OrderedDict()

    def retune(self, rules: RulesConfig) -> None:
        """Judge by other rules. A label that was not watched until now is counted from now on; an alert of one that is
        watched no longer stands until it expires."""
        before, self._rules = self._rules, _watched(rules)
        for site in self._sites.values():
            for label in self._rules.keys() - before.keys():
                place = site.places.setdefault(label, _Place())
                place.begins_s = site.now_s

    def consider(self, event: Event) -> tuple[Alert, ...]:
        """The alerts on rates that follow from this event's end, whatever its label: time has passed for all."""
        if not self._rules or event.phase != "end":
            return ()
        site = self._site(event)
        at_s = self._position(site, event)
        verdict = event.classification
        if verdict is not None and not verdict.abstained and verdict.label in self._rules:
            rule = self._rules[verdict.label]
            if verdict.probability >= rule.min_probability:
                site.places[verdict.label].add(at_s, rule.window_s + rule.background_s)
        site.now_s = max(site.now_s, at_s)
        found = (self._judge(label, rule, site, event) for label, rule in self._rules.items())
        return tuple(alert for alert in found if alert is not None)

    def _site(self, event: Event) -> _Site:
        key = (event.station, event.exercise)
        site = self._sites.get(key)
        if site is None:
            site = self._sites[key] = _Site(event.onset_ns / NS, places={label: _Place() for label in self._rules})
            if len(self._sites) > MAX_SITES:
                self._sites.popitem(last=False)
        self._sites.move_to_end(key)
        return site

    def _position(self, site: _Site, event: Event) -> float:
        return event.onset_ns / NS - site.origin_s if event.recorded_s is None else event.recorded_s

    def _judge(self, label: str, rule: AccelerationConfig, site: _Site, event: Event) -> Alert | None:
        place, now_s = site.places[label], site.now_s
        begin_s = now_s - rule.window_s
        events = place.count(begin_s, now_s)
        standing = place.standing
        if standing is None or now_s - standing.since_s > rule.background_s:
            from_s = max(place.begins_s, begin_s - rule.background_s)
            background_s, background_events = begin_s - from_s, place.count(from_s, begin_s)
        else:
            background_s, background_events = standing.background_s, standing.background_events
        if background_s < rule.window_s:
            return None
        rate = compare(events, rule.window_s, background_events, background_s)
        severity = max([rule.severity, *(s.severity for s in rule.escalate if rate.ratio >= s.min_ratio)], key=rank)
        if standing is None:
            if events < rule.min_events or rate.ratio < rule.min_ratio or rate.chance > rule.max_chance:
                return None
            standing = place.standing = _Raised(
                f"{event.id}-rate-{label}", severity, now_s, background_s, background_events, event.late
            )
            return _alert(event, "raise", label, standing, rate)
        if rate.ratio < rule.min_ratio / 2:
            place.standing = None
            standing.revision += 1
            return _alert(event, "retract", label, standing, rate)
        repeats = standing.late and not event.late
        rises = rank(severity) > rank(standing.severity)
        if not (repeats or rises):
            return None
        standing.revision += 1
        standing.late = standing.late and event.late
        standing.severity = severity if rises else standing.severity
        return _alert(event, "raise" if repeats else "escalate", label, standing, rate)


def _watched(rules: RulesConfig) -> dict[str, AccelerationConfig]:
    return {label: found for label in LABELS if (found := rules.of(label).acceleration) is not None}


def compare(events: int, window_s: float, background_events: int, background_s: float) -> Acceleration:
    """The two counts as a ratio of rates, and how likely so many in the window are by chance; see above."""
    ratio = (events / window_s) / (max(background_events, 1) / background_s)
    chance = binomial_tail(events, events + background_events, window_s / (window_s + background_s))
    return Acceleration(window_s, events, background_s, background_events, ratio, chance)


def binomial_tail(least: int, trials: int, p: float) -> float:
    """Probability of ``least`` or more successes in ``trials`` of probability ``p`` (strictly between 0 and 1)."""
    if least <= 0:
        return 1.0
    if least <= trials * p:
        # The first terms of this side may be too small for a number; the other side begins with its largest.
        return 1.0 - binomial_tail(trials - least + 1, trials, 1 - p)
    choose = math.lgamma(trials + 1) - math.lgamma(least + 1) - math.lgamma(trials - least + 1)
    term = math.exp(choose + least * math.log(p) + (trials - least) * math.log1p(-p))
    total, odds = 0.0, p / (1 - p)
    for k in range(least, trials + 1):
        total += term
        if term < _EVEN * total:
            break
        term *= odds * (trials - k) / (k + 1)
    return min(1.0, total)


def _alert(event: Event, action: AlertAction, label: str, standing: _Raised, rate: Acceleration) -> Alert:
    counts = (
        f"{counted(rate.events, f'{label} event')} in {_span(rate.window_s)} of data, against "
        f"{rate.background_events} in the {_span(rate.background_s)} before: {rate.ratio:.1f} times the rate"
    )
    reason = f"{counts}, by chance {rate.chance:.1g}" if action != "retract" else f"the rate has fallen back: {counts}"
    about = RateAlert(standing.id, standing.revision, rate)
    return Alert(event, action, standing.severity, label, reason, about, late=standing.late)


def _span(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min"
