"""A table of events for people: a line an event, with its first verdict, its last, and its alerts."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from agent.messages.payloads import Message
from agent.messages.schema import MODELS, AlertMessage, EventMessage, parse

HEADER = (
    f"{'station':<16}{'onset (UTC)':<24}{'ratio':>6}  {'first verdict':<18}{'last verdict':<18}{'window':>7}  alert"
)

MOST_OPEN = 10_000
"""Events that are followed at once; the oldest is printed when there are more."""


@dataclass(slots=True)
class _Open:
    revisions: list[EventMessage] = field(default_factory=list)
    alerts: list[AlertMessage] = field(default_factory=list)


class EventTable:
    """Prints the header and then each event when its last revision is there; alerts on rates get a line of their own.

    ``out`` is called with one line at a time.
    """

    def __init__(self, out: Callable[[str], None]) -> None:
        self._out = out
        self._open: OrderedDict[str, _Open] = OrderedDict()
        self._begun = False
        self.events = 0
        """Printed so far."""
        self.alerts = 0
        """Alert messages of any action."""

    def add(self, messages: Sequence[Message]) -> None:
        """Follow messages as they would be sent; what is retained, and other kinds, are passed over."""
        bodies = [
            parse(MODELS[message.topic.rsplit("/", 1)[-1]], message.payload)
            for message in messages
            if not message.retain
        ]
        self.follow([body for body in bodies if isinstance(body, EventMessage | AlertMessage)])

    def follow(self, bodies: Sequence[EventMessage | AlertMessage]) -> None:
        """Follow these messages; an alert must not come later than the end of its event, but may come with it."""
        for body in bodies:
            if isinstance(body, AlertMessage):
                self.alerts += 1
                if body.rate is not None:
                    self._print(
                        f"{body.station:<16}{body.onset[:22]:<24}  {body.action} {body.severity}: {body.reason}"
                    )
                else:
                    self._of(body.id).alerts.append(body)
        for body in bodies:
            if isinstance(body, EventMessage):
                self._of(body.id).revisions.append(body)
                if body.phase == "end":
                    self._close(body.id)

    def finish(self) -> None:
        """Print the events that have not ended."""
        for key in list(self._open):
            self._close(key)

    def _of(self, key: str) -> _Open:
        if key not in self._open and len(self._open) >= MOST_OPEN:
            self._close(next(iter(self._open)))
        return self._open.setdefault(key, _Open())

    def _close(self, key: str) -> None:
        one = self._open.pop(key)
        if one.revisions:
            self.events += 1
            self._print(_row(sorted(one.revisions, key=lambda body: body.revision), one.alerts))

    def _print(self, line: str) -> None:
        if not self._begun:
            self._begun = True
            self._out(HEADER)
        self._out(line.rstrip())


def _row(revisions: Sequence[EventMessage], alerts: Sequence[AlertMessage]) -> str:
    first, last = revisions[0], revisions[-1]
    ratio = "" if last.detection.ratio is None else f"{last.detection.ratio:.1f}"
    window = "" if last.classification is None else f"{last.classification.window_s:.0f} s"
    raised = ", ".join(f"{alert.action} {alert.severity}" for alert in sorted(alerts, key=lambda body: body.revision))
    return (
        f"{last.station:<16}{last.onset[:22]:<24}{ratio:>6}  "
        f"{_verdict(first):<18}{_verdict(last):<18}{window:>7}  {raised}"
    )


def _verdict(body: EventMessage) -> str:
    verdict = body.classification
    if verdict is None:
        return "no verdict" if body.swell is None else "slow"
    return f"{verdict.label} {verdict.probability:.2f}{'?' if verdict.abstained else ''}"
