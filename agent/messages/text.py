"""Messages for people: as one line of plain text, and events as a table, a line an event."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from agent.messages.payloads import Message
from agent.messages.schema import (
    MODELS,
    AlertMessage,
    ClassificationPart,
    CoincidencePart,
    EventMessage,
    HealthMessage,
    Payload,
    StateMessage,
    SummaryMessage,
    SwellPart,
    parse,
)

HEADER = (
    f"{'station':<16}{'onset (UTC)':<24}{'ratio':>6}  {'first verdict':<18}{'last verdict':<18}{'window':>7}  alert"
)
MOST_OPEN = 10_000
"""Events that are followed at once; the oldest is printed when there are more."""


def readable(message: Message) -> str:
    """One line of plain text for a message that would be sent.

    Raises:
        DataError: its payload is not what its topic promises.
    """
    return describe(parse(MODELS[message.topic.rsplit("/", 1)[-1]], message.payload))


def describe(body: Payload) -> str:
    """One line of plain text."""
    if isinstance(body, AlertMessage):
        said = f"rate of {body.label} events" if body.rate else body.label
        late = "LATE " if body.late else ""
        text = f"{late}ALERT {body.action} {body.severity}  {_place(body)}  {said}: {body.reason}"
        if body.coincidence is not None and not body.coincidence.degraded:
            text += f"; {_together(body.coincidence)}"
    elif isinstance(body, EventMessage):
        seen = body.detection
        frequency = "" if seen.dominant_hz is None else f", {seen.dominant_hz:.1f} Hz"
        ratio = "" if seen.ratio is None else f"ratio {seen.ratio:.1f}, "
        said = _verdict(body.classification) if body.swell is None else _swell(body.swell)
        text = f"event {body.phase:<6} {_place(body)}  {said}"
        text += f"  [{ratio}{seen.duration_s:.1f} s{frequency}]"
        if body.coincidence is not None:
            text += f"  {_together(body.coincidence)}"
        if body.reason is not None:
            text += f"  {body.reason}"
        if body.evidence is not None:
            text += f"  (record: {body.id})"
    elif isinstance(body, SummaryMessage):
        late = "late " if body.late else ""
        done = "" if body.action is None else f"{late}{body.action} {body.severity}  "
        text = f"last {body.kind}  {done}{_place(body)}  {_label(body)}"
    elif isinstance(body, StateMessage):
        model = "no model" if body.model is None else f"{body.model.name} on {body.backend}, {body.precision}"
        text = f"state  {body.station}  {model}"
    elif isinstance(body, HealthMessage):
        text = f"health {body.station}  {body.status}{''.join(f'; {reason.text}' for reason in body.reasons)}"
    else:
        text = type(body).__name__
    if getattr(body, "exercise", False):
        text += "  (exercise)"
    return printable(text)


def _place(body: AlertMessage | EventMessage | SummaryMessage) -> str:
    network, station = body.station.split(".")[:2]
    return f"{network}.{station}  {body.onset[:10]} {body.onset[11:23]}"


def _label(body: SummaryMessage) -> str:
    if body.label is None:
        return "unclassified"
    text = body.label if body.probability is None else f"{body.label} {100 * body.probability:.0f} %"
    return f"undecided ({text})" if body.kind == "event" and body.abstained else text


def _swell(swell: SwellPart) -> str:
    return f"slow: {digits(swell.peak_ratio)} times the background's power, risen over {swell.rise_s:.0f} s"


def _verdict(verdict: ClassificationPart | None) -> str:
    if verdict is None:
        return "unclassified"
    text = f"{verdict.label} {100 * verdict.probability:.0f} % after {verdict.window_s:g} s"
    return f"undecided ({text})" if verdict.abstained else text


def _together(coincidence: CoincidencePart) -> str:
    votes = (
        f"{'.'.join(vote.station.split('.')[:2])} "
        + ("unclassified" if vote.label is None or vote.probability is None else f"{vote.label} {vote.probability:.2f}")
        for vote in coincidence.members
    )
    return f"{len(coincidence.members)} of {coincidence.stations} stations: {', '.join(votes)}"


def digits(value: float) -> str:
    """A number with three digits that count, and no exponent below 10^12."""
    return f"{float(f'{value:.3g}'):.12g}"


def printable(text: str) -> str:
    """Without the control characters by which a text could take over a terminal."""
    return replaced(text, lambda _: "?")


def replaced(text: str, by: Callable[[str], str]) -> str:
    return "".join(character if character.isprintable() else by(character) for character in text)


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
        f"{_in_short(first):<18}{_in_short(last):<18}{window:>7}  {raised}"
    )


def _in_short(body: EventMessage) -> str:
    verdict = body.classification
    if verdict is None:
        return "no verdict" if body.swell is None else "slow"
    return f"{verdict.label} {verdict.probability:.2f}{'?' if verdict.abstained else ''}"
