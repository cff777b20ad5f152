"""The operator's side of remote configuration: publish an order, and hear what became of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.config.broker import MqttSettings
from agent.config.explain import dotted, escaped
from agent.config.yaml import YamlFault
from agent.config.yaml import parse as parse_yaml
from agent.errors import ConfigError, DataError
from agent.messages.schema import ConfigReport, Outcome, parse
from agent.remote.gate import MAX_BODY_BYTES, unverified_body
from agent.types import StationId
from desk.push.listening import listening
from desk.push.presence import Waiting

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


def push(wait: Waiting, payload: bytes, until: Collection[str]) -> Outcome:
    """Publish an envelope, retained, and wait until the station says that it is one of ``until``, refused or rolled
    back.

    Raises:
        DeliveryError: the broker does not take it.
        ControlError: ``timeout``: the station has not answered in time.
    """
    envelope = hashlib.sha256(payload).hexdigest()
    seen = Seen()
    said = None
    with listening(wait.settings, wait.station, _TOPICS, _into(seen)) as desk:
        token = desk.publish("config/set", payload, retain=True)
        wait.begin("the order")
        while wait.goes_on(answered=said is not None):
            desk.pump(token)
            said = seen.outcome(envelope)
            if said is not None and said.result in {*until, "refused", "rolled_back"}:
                return said
    raise wait.over(
        answered=said is not None,
        hint="the broker keeps the order for it; `talus config show` says later what became of it",
    )


def read_change(path: Path) -> dict[str, Any]:
    """What a YAML file wants to be changed: the sections of ``tunables``, with or without that word around them.

    Raises:
        ConfigError: the file cannot be read.
    """
    hint = "write the sections of tunables that are to change, such as `trigger: {on: 5.0}`"
    try:
        with path.open("rb") as file:
            document = parse_yaml(file.read(MAX_BODY_BYTES).decode("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", hint) from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text", hint) from None
    except YamlFault as error:
        raise ConfigError(f"{path}:{error.fault.spot.line}: {error.fault.reason}", hint) from None
    if document.faults:
        fault = document.faults[0]
        raise ConfigError(f"{path}:{fault.spot.line}: {escaped(dotted(fault.loc))} {fault.reason}", hint)
    value = document.value
    return value["tunables"] if value.keys() == {"tunables"} and isinstance(value["tunables"], dict) else value


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
