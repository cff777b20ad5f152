"""The operator's side of remote configuration: publish an order, and hear what became of it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from agent.config.broker import MqttSettings
from agent.errors import ControlError, DataError
from agent.messages.schema import ConfigReport, Outcome, parse
from agent.remote.envelope import unverified_body
from agent.types import StationId
from desk.push.listening import listening

_TOPICS = ("config/reported", "config/set", "availability")


@dataclass(slots=True)
class Seen:
    """What the broker keeps of a station: its word on the configuration, the order that waits there, availability."""

    report: ConfigReport | None = None
    order: bytes | None = None
    availability: str | None = None
    faults: list[str] = field(default_factory=list)

    def outcome(self, envelope: str) -> Outcome | None:
        """The newest word on an envelope. What once became of it does not count when another came after it: then it
        is refused, and the station has yet to say so."""
        if self.report is None:
            return None
        accepted = next((line for line in reversed(self.report.history) if line.result == "trial"), None)
        told = self.report.history if accepted is not None and accepted.envelope == envelope else []
        said = [line for line in [*told, *self.report.refused] if line.envelope == envelope]
        return max(said, key=lambda line: line.time, default=None)


def look(settings: MqttSettings, station: StationId) -> Seen:
    """What is known of the station at the broker.

    Raises:
        DeliveryError: the broker does not answer.
    """
    seen = Seen()
    with listening(settings, station, _TOPICS, _into(seen)) as desk:
        desk.drain()
    return seen


def push(
    settings: MqttSettings, station: StationId, payload: bytes, until: Collection[str], timeout_s: float
) -> Outcome:
    """Publish an envelope, retained, and wait until the station says that it is one of ``until``, refused or rolled
    back.

    Raises:
        DeliveryError: the broker does not take it.
        ControlError: ``timeout``: the station has not answered in time.
    """
    envelope = hashlib.sha256(payload).hexdigest()
    seen = Seen()
    with listening(settings, station, _TOPICS, _into(seen)) as desk:
        token = desk.publish("config/set", payload, retain=True)
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            desk.pump(token)
            said = seen.outcome(envelope)
            if said is not None and said.result in {*until, "refused", "rolled_back"}:
                return said
    how = f"; it is {seen.availability}" if seen.availability else ""
    raise ControlError(
        "timeout", f"{station.short} has not answered within {timeout_s:g} s{how}",
        "the broker keeps the order for it; `talus config show` says later what became of it",
    )  # fmt: skip


def stations_of(payload: bytes) -> list[str]:
    """For whom an envelope says that it is; its signature is the station's to check.

    Raises:
        ControlError: not an envelope.
    """
    return list(unverified_body(payload).stations)


def _into(seen: Seen) -> Callable[[str, bytes], None]:
    def receive(name: str, payload: bytes) -> None:
        if name == "config/set":
            seen.order = payload or None
        elif name == "availability":
            seen.availability = payload.decode("ascii", "replace")[:20]
        else:
            try:
                seen.report = parse(ConfigReport, payload)
            except DataError as error:
                seen.faults.append(error.message)

    return receive
