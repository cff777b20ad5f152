"""From the pipeline's outputs to the messages that go out, with the numbering that makes duplicates recognisable."""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Iterable

from agent.messages import Message, Stamp, alert_message, event_message, summary_message
from agent.policy import Policy
from agent.schema import AlertMessage, parse
from agent.types import Alert, Event


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
        self.last_alert: AlertMessage | None = None
        """The newest alert since the start. Any thread may look."""

    def report(self, event: Event, received_ns: int) -> list[Message]:
        """Messages of one revision, alerts first; ``received_ns`` is when its newest packet came in (host clock)."""
        alerts = self._policy.consider(event)
        decided_ns = time.time_ns()
        messages: list[Message] = []
        for alert in alerts:
            messages.append(
                alert_message(alert, self._stamp(received_ns, decided_ns), self._prefix, self._alert_expiry_s)
            )
            self.last_alert = parse(AlertMessage, messages[-1].payload)
        messages.append(event_message(event, self._stamp(received_ns, decided_ns), self._prefix))
        latest: Iterable[Event | Alert] = [*alerts[-1:], event]
        messages += [summary_message(what, self._stamp(received_ns, decided_ns), self._prefix) for what in latest]
        return messages

    def next_seq(self) -> int:
        """A number for a message made elsewhere; safe from any thread."""
        return next(self._seq)

    def _stamp(self, received_ns: int, decided_ns: int) -> Stamp:
        return Stamp(self.boot_id, self.next_seq(), received_ns, decided_ns)
