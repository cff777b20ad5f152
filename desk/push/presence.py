"""Who is online at a broker, for an operator who has asked a station for something and gets no answer."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from agent.config.broker import MqttSettings
from agent.errors import ControlError, DataError, DeliveryError
from agent.messages.payloads import ONLINE
from agent.messages.schema import ConfigReport, StateMessage, parse
from agent.types import StationId
from desk.push.listening import read_retained

EXPLAIN_S = 30.0
"""After so long without any answer it is said why none may come."""
_NAMED = 8
"""Stations that are named."""


@dataclass(slots=True)
class Present:
    """Agents by NET.STA with their availability, and which of them works on the data of a station that is not its
    own."""

    availability: dict[str, str] = field(default_factory=dict)
    served_by: dict[str, str] = field(default_factory=dict)
    started: dict[str, str] = field(default_factory=dict)
    """``boot_id`` of an agent's last start."""
    obeying: dict[str, str] = field(default_factory=dict)
    """``boot_id`` of the last start at which it said what its orders came to; without keys it says nothing of them."""


def absence(settings: MqttSettings, station: StationId) -> str | None:
    """Why no answer may come from the station, in words; None if it is online.

    Raises:
        DeliveryError: the broker does not answer, or does not let us listen.
    """
    return _absence(_look(settings, station), station.short)


def _absence(found: Present, name: str) -> str | None:
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


def silence(settings: MqttSettings, station: StationId) -> tuple[str, str]:
    """Why a station may not have answered, and what to do about it.

    Raises:
        DeliveryError: the broker does not answer, or does not let us listen.
    """
    found, name = _look(settings, station, orders=True), station.short
    away = _absence(found, name)
    if away is not None:
        return away, "it can answer when it is online: `talus status` and `talus doctor` at the station say how it is"
    started = found.started.get(name)
    if found.obeying.get(name) is None or (started is not None and found.obeying[name] != started):
        return (
            f"{name} is online, but takes no orders: no control.keys of its file is in use",
            "add the public half of the key to control.keys in the station's file, and restart it: `talus docs remote`",
        )
    return (
        f"{name} is online and takes orders, but has not answered this one: it does not answer a key that is not in "
        "its control.keys",
        "is this key in its control.keys, and may it write to its topics? `talus doctor` at the station tries them",
    )


@dataclass(slots=True)
class Waiting:
    """The time that a station has to answer an order, ``wait_s`` from ``begin``. After ``EXPLAIN_S`` without any answer
    ``tell`` is told once why that may be; without ``tell`` nobody is told anything."""

    settings: MqttSettings
    station: StationId
    wait_s: float
    tell: Callable[[str], None] | None = None
    explain_s: float = EXPLAIN_S
    _begun: float = 0.0
    _explained: bool = False

    def begin(self, what: str) -> None:
        """The order is being sent."""
        self._begun = time.monotonic()
        if self.tell is not None:
            self.tell(f"{what} is sent to {self.station.short}; waiting up to {self.wait_s:g} s for its answer")

    def goes_on(self, *, answered: bool) -> bool:
        """Whether there is time left; ``answered``: whether the station has said anything of the order yet."""
        waited = time.monotonic() - self._begun
        if self.tell is not None and not (answered or self._explained) and self.explain_s <= waited < self.wait_s:
            self._explained = True
            with contextlib.suppress(DeliveryError):  # the connection that waits for the answer tells of the broker
                why, hint = silence(self.settings, self.station)
                self.tell(f"no answer for {waited:.0f} s: {why}\n  hint: {hint}")
        return waited < self.wait_s

    def over(self, *, answered: bool, hint: str) -> ControlError:
        """The error for a station that was not done in time; ``hint`` is for one that is at work."""
        name = self.station.short
        if answered:
            return ControlError("timeout", f"{name} is not done within {self.wait_s:g} s", hint)
        text = f"{name} has not answered within {self.wait_s:g} s"
        if self.tell is not None:
            with contextlib.suppress(DeliveryError):
                why, what = silence(self.settings, self.station)
                return ControlError("timeout", f"{text}: {why}", f"{what}; {hint}")
        return ControlError("timeout", text, hint)


def _look(settings: MqttSettings, station: StationId, *, orders: bool = False) -> Present:
    """What the broker has retained; where the station is online only as much of it as is needed. ``orders``: also what
    it said of its orders."""
    found = Present()

    def receive(name: str, kind: str, payload: bytes) -> None:
        if kind == "availability":
            found.availability[name] = payload[:20].decode("ascii", "replace")
        elif kind == "state":
            with contextlib.suppress(DataError):
                state = parse(StateMessage, payload)
                found.started[name] = state.boot_id
                for part in state.stations:
                    found.served_by[part.station] = name
        else:
            with contextlib.suppress(DataError):
                found.obeying[name] = parse(ConfigReport, payload).boot_id

    names = ("availability", "state", *(("config/reported",) if orders else ()))
    read_retained(settings, names, receive, lambda: not orders and found.availability.get(station.short) == ONLINE)
    return found


def tell_absence(command: str, settings: MqttSettings, station: StationId, wait_s: float) -> None:
    """Say on standard error, before an answer is waited for, that the station is not online, and who is."""
    why = absence(settings, station)
    if why is not None:
        print(f"talus {command}: {why}; waiting up to {wait_s:g} s for an answer", file=sys.stderr, flush=True)


def waiting(command: str, settings: MqttSettings, station: StationId, wait_s: float) -> Waiting:
    """The wait of an operator's command: what there is to say of it goes to standard error."""
    return Waiting(
        settings, station, wait_s, lambda text: print(f"talus {command}: {text}", file=sys.stderr, flush=True)
    )
