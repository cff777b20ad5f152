"""The operator's side of remote configuration: publish an order, and hear what became of it."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import secrets
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from agent.control import strict_json
from agent.errors import ControlError, DataError, DeliveryError
from agent.messages import topic
from agent.mqtt import REFUSED, Connection, Received, Subscription
from agent.mqtt_settings import MqttSettings
from agent.schema import ConfigReport, EnvelopeMessage, Outcome, parse
from agent.types import StationId
from agent.waker import Waker

_QUIET_S = 1.0
"""Retained messages come at once; after this long without one there are no more."""


@dataclass(slots=True)
class Seen:
    """What the broker keeps of a station: its word on the configuration, the order that waits there, availability."""

    report: ConfigReport | None = None
    order: bytes | None = None
    availability: str | None = None
    faults: list[str] = field(default_factory=list)
    heard: float = 0.0

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
    with _listening(settings, station) as (connection, seen):
        begun = time.monotonic()
        while time.monotonic() < max(begun, seen.heard) + _QUIET_S:
            connection.pump(0.1)
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
    with _listening(settings, station) as (connection, seen):
        token = connection.publish(topic(settings.prefix, station, "config/set"), payload, retain=True)
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            for ack in connection.pump(0.1):
                if ack.token == token and ack.code >= REFUSED:
                    raise DeliveryError(
                        f"{settings.address} refuses the order: {ack.reason}",
                        "may this user write to the topic config/set?",
                    )
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
    try:
        outer = EnvelopeMessage.model_validate_json(payload)
        return list(strict_json.loads(base64.b64decode(outer.body))["stations"])
    except (ValueError, KeyError, TypeError):
        raise ControlError("malformed", "this is no envelope", "`talus config sign` makes one") from None


@contextlib.contextmanager
def _listening(settings: MqttSettings, station: StationId) -> Iterator[tuple[Connection, Seen]]:
    seen = Seen()
    names = {topic(settings.prefix, station, name): name for name in ("config/reported", "config/set", "availability")}

    def receive(message: Received) -> bool:
        seen.heard = time.monotonic()
        name = names.get(message.topic)
        if name == "config/set":
            seen.order = message.payload or None
        elif name == "availability":
            seen.availability = message.payload.decode("ascii", "replace")[:20]
        else:
            try:
                seen.report = parse(ConfigReport, message.payload)
            except DataError as error:
                seen.faults.append(error.message)
        return True

    with contextlib.closing(Waker()) as waker:
        connection = Connection.open(
            settings, f"talus-config-{secrets.token_hex(4)}", waker, subscription=Subscription(tuple(names), receive)
        )
        try:
            yield connection, seen
        finally:
            connection.close()
