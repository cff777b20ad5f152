"""Messages as one line of plain text, for logs and terminals."""

from __future__ import annotations

from collections.abc import Callable

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
        text = f"last {body.kind}  {done}{_place(body)}  {body.label or 'unclassified'}"
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


def _swell(swell: SwellPart) -> str:
    return f"slow: {swell.peak_ratio:.3g} times the background's power, risen over {swell.rise_s:.0f} s"


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


def printable(text: str) -> str:
    """Without the control characters by which a text could take over a terminal."""
    return replaced(text, lambda _: "?")


def replaced(text: str, by: Callable[[str], str]) -> str:
    return "".join(character if character.isprintable() else by(character) for character in text)
