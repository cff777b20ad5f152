"""Who is online at a broker, for an operator who has asked a station for something and gets no answer."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass, field

from agent.config.broker import MqttSettings
from agent.errors import DataError
from agent.messages.payloads import ONLINE
from agent.messages.schema import StateMessage, parse
from agent.types import StationId
from desk.push.listening import read_retained

_NAMED = 8
"""Stations that are named."""


@dataclass(slots=True)
class Present:
    """Agents by NET.STA with their availability, and which of them works on the data of a station that is not its
    own."""

    availability: dict[str, str] = field(default_factory=dict)
    served_by: dict[str, str] = field(default_factory=dict)


def absence(settings: MqttSettings, station: StationId) -> str | None:
    """Why no answer may come from the station, in words; None if it is online.

    Raises:
        DeliveryError: the broker does not answer, or does not let us listen.
    """
    found, name = _look(settings, station), station.short
    said = found.availability.get(name)
    if said == ONLINE:
        return None
    agent = found.served_by.get(name)
    if said is not None:
        text = f"{name} is {said}"
    elif agent is not None:
        text = f"{name} is not an agent of its own: {agent} works on its data, give --station {agent}"
    else:
        text = f"no agent {name} has ever been seen at this broker"
    online = sorted(one for one, word in found.availability.items() if word == ONLINE)
    more = f" and {len(online) - _NAMED} more" if len(online) > _NAMED else ""
    return f"{text}; online: {', '.join(online[:_NAMED]) or 'none'}{more}"


def _look(settings: MqttSettings, station: StationId) -> Present:
    """What the broker has retained; only as much of it as is needed where the station is online."""
    found = Present()

    def receive(name: str, kind: str, payload: bytes) -> None:
        if kind == "availability":
            found.availability[name] = payload[:20].decode("ascii", "replace")
        else:
            with contextlib.suppress(DataError):
                for part in parse(StateMessage, payload).stations:
                    found.served_by[part.station] = name

    read_retained(settings, ("availability", "state"), receive, lambda: found.availability.get(station.short) == ONLINE)
    return found


def tell_absence(command: str, settings: MqttSettings, station: StationId, wait_s: float) -> None:
    """Say on standard error, before an answer is waited for, that the station is not online, and who is."""
    why = absence(settings, station)
    if why is not None:
        print(f"talus {command}: {why}; waiting up to {wait_s:g} s for an answer", file=sys.stderr, flush=True)
