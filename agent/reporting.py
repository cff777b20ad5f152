"""From the pipeline's outputs to the messages that go out, with the numbering that makes duplicates recognisable."""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace

from agent.config_policy import PolicyConfig
from agent.messages import Message, Stamp, alert_message, event_message, summary_message
from agent.policy import Policy
from agent.recall import Recall, Remembered, as_seen, encode
from agent.schema import AlertMessage, parse
from agent.types import Alert, Event, StationId


def new_boot_id() -> str:
    """Names one run of the agent: ``(boot_id, seq)`` never repeats, whatever the clock does."""
    return secrets.token_hex(8)


class Reporter:
    """Applies the policy to every revision and words the messages. ``report`` is for the pipeline's thread alone."""

    def __init__(self, policy: Policy, prefix: str, alert_expiry_s: int, boot_id: str | None = None) -> None:
        self.boot_id = boot_id or new_boot_id()
        self._policy = policy
        self._prefix = prefix
        self._alert_expiry_s = alert_expiry_s
        self._seq = itertools.count(1)
        self._recall: Recall | None = None
        self.last_alert: AlertMessage | None = None
        """The newest alert since the start. Any thread may look."""

    def resume(self, past: Sequence[Remembered]) -> None:
        """Go on where earlier runs stopped, and keep a journal for the next one; ``past``: oldest first."""
        for event in as_seen(past):
            self._policy.consider(event)
        self._recall = Recall(past)

    def report(self, event: Event, received_ns: int, *, cut: bool = False) -> list[Message]:
        """Messages of one revision, alerts first; none if an earlier run has told it already.

        Args:
            event: the revision.
            received_ns: when its newest packet came in (host clock).
            cut: it ends because the agent is told to stop.
        """
        if self._recall is None:
            return self._word(event, received_ns)
        known = self._recall.go_on(event)
        return [] if known is None else self._word(known, received_ns, encode(known, cut=cut))

    def overdue(self, station: StationId, data_ns: int, received_ns: int) -> list[Message]:
        """Ends of events that an earlier run left open and that do not come again, now that the station's data have
        reached ``data_ns``."""
        if self._recall is None:
            return []
        messages: list[Message] = []
        for event in self._recall.overdue(station, data_ns):
            messages += self._word(event, received_ns, encode(event, cut=False))
        return messages

    def _word(self, event: Event, received_ns: int, journal: bytes | None = None) -> list[Message]:
        alerts = self._policy.consider(event)
        decided_ns = time.time_ns()
        messages: list[Message] = []
        for alert in alerts:
            messages.append(
                alert_message(alert, self._stamp(received_ns, decided_ns), self._prefix, self._alert_expiry_s)
            )
            self.last_alert = parse(AlertMessage, messages[-1].payload)
        # The journal's record goes with the event, behind its alerts: what is remembered as told must be on its way.
        told = event_message(event, self._stamp(received_ns, decided_ns), self._prefix)
        messages.append(replace(told, journal=journal))
        latest: Iterable[Event | Alert] = [*alerts[-1:], event]
        messages += [summary_message(what, self._stamp(received_ns, decided_ns), self._prefix) for what in latest]
        return messages

    def retune(self, policy: PolicyConfig, alert_expiry_s: int) -> None:
        """Go on with other rules."""
        self._policy.retune(policy)
        self._alert_expiry_s = alert_expiry_s

    def next_seq(self) -> int:
        """A number for a message made elsewhere; safe from any thread."""
        return next(self._seq)

    def _stamp(self, received_ns: int, decided_ns: int) -> Stamp:
        return Stamp(self.boot_id, self.next_seq(), received_ns, decided_ns)
