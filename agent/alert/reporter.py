"""From the pipeline's outputs to the messages that go out, with the numbering that makes duplicates recognisable."""

from __future__ import annotations

import itertools
import secrets
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from agent.alert.coincidence import CoincidenceJudge, blindness
from agent.alert.evidence import AlertRecords
from agent.alert.policy import Policy
from agent.detect.resume import EventResume, JournalEntry, as_seen, encode
from agent.host.data_age import Age, DataAges, span
from agent.messages.payloads import Message, Stamp, alert_message, event_message, summary_message
from agent.messages.schema import AlertMessage, EventMessage, parse
from agent.types import Alert, AlertAction, DecisionReason, Event, Evidence, SampleBlock, StationId, is_alone

if TYPE_CHECKING:
    from agent.config.file import TunablesConfig
    from agent.dsp.hearing import Hearing


MAX_ALONE = 256
"""Events judged without the other stations of their site whose decision is kept."""


def new_boot_id() -> str:
    """Names one run of the agent: ``(boot_id, seq)`` never repeats, whatever the clock does."""
    return secrets.token_hex(8)


class Reporter:
    """Applies the policy to every revision and words the messages. All but ``next_seq`` and ``problem`` is for the
    pipeline's thread alone.

    For each packet: ``report`` every event it led to, then ``after``; at the end ``finish``.
    """

    def __init__(
        self,
        policy: Policy,
        prefix: str,
        alert_expiry_s: int,
        *,
        site: CoincidenceJudge | None = None,
        ages: DataAges | None = None,
    ) -> None:
        """``site``: what several stations have to do with each other, if anything. ``ages`` tells how old data are;
        without it, as in a replay, nothing is late."""
        self.keep: Callable[[Event], Evidence | None] = lambda _: None
        """Keeps the record of an event that has ended."""
        self.records: AlertRecords | None = None
        """Sends the records of events that alerted, where the station is to do so."""
        self.boot_id = new_boot_id()
        self._policy = policy
        self._prefix = prefix
        self._alert_expiry_s = alert_expiry_s
        self._site = site
        self.ages = ages
        self._seq = itertools.count(1)
        self._resume: EventResume | None = None
        self.alerts: Counter[tuple[AlertAction, str]] = Counter()
        """Alerts since the start, by action and label. Any thread may copy it."""
        self._last_alert: bytes | None = None
        self._last_event: bytes | None = None
        """What was sent last of each."""
        self._alone: OrderedDict[str, DecisionReason] = OrderedDict()
        """The newest decisions on events that are judged without the other stations of their site."""

    def resume(self, past: Sequence[JournalEntry]) -> None:
        """Go on where earlier runs stopped, and keep a journal for the next one; ``past``: oldest first."""
        seen = as_seen(past)
        if self._site is not None:
            seen = self._site.resume(seen)
        for event in seen:
            waits = self._waits(event)
            alerts = self._policy.consider(event) if not waits or is_alone(event) else ()
            if waits:
                alerts += self._policy.consider_rates(event)
            if alerts and self.records is not None:
                self.records.alerted(event)
        self._resume = EventResume([one for one in past if not is_alone(one.event)])

    def report(self, event: Event, received_ns: int, *, cut: bool = False) -> list[Message]:
        """Messages of one revision, alerts first; none if an earlier run has told it already.

        Args:
            event: the revision.
            received_ns: when its newest packet came in (host clock).
            cut: it ends because the agent is told to stop.
        """
        if self._resume is None:
            return self._tell(event, received_ns)
        known = self._resume.go_on(event)
        return [] if known is None else self._tell(known, received_ns, cut=cut)

    @property
    def last_alert(self) -> AlertMessage | None:
        """The newest alert since the start. Any thread may look."""
        payload = self._last_alert
        return None if payload is None else parse(AlertMessage, payload)

    @property
    def last_event(self) -> EventMessage | None:
        """The newest revision of an event since the start, with the reason for its alert or for none. Any thread may
        look."""
        payload = self._last_event
        return None if payload is None else parse(EventMessage, payload)

    def overdue(self, station: StationId, data_ns: int, received_ns: int) -> list[Message]:
        """Ends of events that an earlier run left open and that do not come again, now that the station's data have
        reached ``data_ns``."""
        if self._resume is None:
            return []
        messages: list[Message] = []
        for event in self._resume.overdue(station, data_ns):
            messages += self._tell(event, received_ns)
        return messages

    def after(
        self, block: SampleBlock, decided_ns: int, received_ns: int, hearing: Hearing | None = None
    ) -> list[Message]:
        """What follows for the site from a packet whose sensor is decided up to ``decided_ns``."""
        if self._site is None:
            return []
        if not self._site.has(block.stream.station):
            self._site.passed(block)
            return []
        self._site.heard(block, decided_ns, hearing)
        return self._decide_site(self._site.decide(), received_ns)

    def finish(self, received_ns: int, *, cut: bool = False) -> list[Message]:
        """Nothing more comes in, or nothing has for too long: nobody is waited for any more. With ``cut`` the agent is
        told to stop; if it keeps a journal, what waits goes on waiting in the next run."""
        if self._site is None or (cut and self._resume is not None):
            return []
        return self._decide_site(self._site.finish(), received_ns)

    def is_waiting(self) -> bool:
        """Whether there are revisions of which it is not yet known whether they alert."""
        return self._site is not None and self._site.is_waiting()

    @property
    def patience_s(self) -> float:
        """How long no packet may come, from anyone, before nobody is waited for any more."""
        return 0.0 if self._site is None else self._site.max_lag_s

    @property
    def max_age_s(self) -> float:
        """Age of data above which alerts on them are late."""
        return self._policy.max_age_s

    def problem(self) -> str:
        """What is wrong with the site as a whole, in words; empty if nothing is. Any thread may ask."""
        return "" if self._site is None else self._site.problem()

    def retune(self, tunables: TunablesConfig) -> None:
        """Go on with other rules."""
        self._policy.retune(tunables.policy)
        self._alert_expiry_s = tunables.reporting.alert_expiry_s
        if self._site is not None:
            self._site.retune(blindness(tunables))

    def stamp(self) -> Stamp:
        """For a message made elsewhere, now; safe from any thread."""
        now_ns = time.time_ns()
        return self._stamp(now_ns, now_ns)

    def next_seq(self) -> int:
        """A number for a message made elsewhere; safe from any thread."""
        return next(self._seq)

    def _waits(self, event: Event) -> bool:
        """Whether it is judged together with those of other stations of its site. A slow one has a rule of its own."""
        return self._site is not None and event.kind != "slow" and self._site.has(event.station)

    def _tell(self, event: Event, received_ns: int, *, cut: bool = False) -> list[Message]:
        """A station's own event."""
        event = self._dated(event)
        if self._site is None or not self._waits(event):
            decision = self._policy.decide(event)
            return self._messages(event, decision.alerts, decision.why, received_ns, cut=cut)
        why = self._alone.get(event.id) or self._site.standing(event)
        self._site.add(event)
        rates = self._policy.consider_rates(event)
        if rates:
            why = DecisionReason("rate", "; ".join([why.words, *(alert.reason for alert in rates)]))
        return self._messages(event, rates, why, received_ns, cut=cut)

    def _decide_site(self, events: Iterable[Event], received_ns: int) -> list[Message]:
        messages: list[Message] = []
        for event in map(self._dated, events):
            decision = self._policy.decide(event)
            if is_alone(event):
                self._alone[event.id] = decision.why
                if len(self._alone) > MAX_ALONE:
                    self._alone.popitem(last=False)
            messages += self._messages(event, decision.alerts, decision.why, received_ns)
        return messages

    def _messages(
        self, event: Event, alerts: tuple[Alert, ...], why: DecisionReason, received_ns: int, *, cut: bool = False
    ) -> list[Message]:
        decided_ns = time.time_ns()
        if event.phase == "end" and not is_alone(event):
            event = replace(event, evidence=self.keep(event))
        messages: list[Message] = []
        age = self._age(event)
        if self._policy.withholds_late and any(alert.late for alert in alerts):
            alerts = tuple(alert for alert in alerts if not alert.late)
            if not alerts:
                why = DecisionReason("late", f"withheld, {_late(age)} (policy.late: withhold): {why.words}")
        for alert in alerts:
            said = replace(alert, reason="; ".join(filter(None, (alert.reason, _told(alert, age)))))
            stamp = self._stamp(received_ns, decided_ns)
            messages.append(
                alert_message(said, stamp, self._prefix, self._alert_expiry_s, age.seconds if age else None)
            )
            self._last_alert = messages[-1].payload
            self.alerts[alert.action, alert.label] += 1
        latest: list[Event | Alert] = [*alerts[-1:]]
        if not is_alone(event):  # or this revision has been published already, and only its alerts are new
            messages.append(event_message(event, self._stamp(received_ns, decided_ns), self._prefix, why))
            self._last_event = messages[-1].payload
            latest.append(event)
        if messages and self._resume is not None:
            # The journal's record goes behind the alerts: what is remembered as told must be on its way.
            messages[-1] = replace(messages[-1], journal=encode(event, cut=cut))
        messages += [summary_message(what, self._stamp(received_ns, decided_ns), self._prefix) for what in latest]
        if self.records is not None:
            messages += self.records.alerted(event) if alerts else []
            messages += self.records.kept(event) if event.evidence is not None and not cut else []
        return messages

    def _age(self, event: Event) -> Age | None:
        """How old the data are; None where that does not count: in exercises and replays."""
        return None if self.ages is None or event.exercise else self.ages.age(event.data_ns)

    def _dated(self, event: Event) -> Event:
        """The event, marked late if its data are too old to wake anyone."""
        age = self._age(event)
        return event if age is None else replace(event, late=age.exceeds(self._policy.max_age_s))

    def _stamp(self, received_ns: int, decided_ns: int) -> Stamp:
        return Stamp(self.boot_id, self.next_seq(), received_ns, decided_ns)


def _told(alert: Alert, age: Age | None) -> str:
    """What an alert says of the age of its data; empty where they are new."""
    if age is None or alert.action == "retract":
        return ""
    if age.unknown:
        return age.unknown
    return f"late: {_late(age)}" if alert.late else ""


def _late(age: Age | None) -> str:
    if age is None or age.seconds is None:
        return "the data are old"
    return f"the data are {'at least ' if age.at_least else ''}{span(age.seconds)} old"
