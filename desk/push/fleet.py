"""All stations of a broker at once: what its retained topics say of each, and an order to many of them, in waves.

A wave is begun only when every station of the one before has kept the order, so that a change that does harm does it to
one wave. What a station is given, and what it answers, is what ``configuration.push`` and ``models.push`` do with one.
"""

from __future__ import annotations

import contextlib
import hashlib
import queue
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from agent.config.broker import MqttSettings
from agent.errors import DataError, TalusError
from agent.inference.bundle import open_bundle
from agent.messages.payloads import ONLINE
from agent.messages.schema import ConfigReport, HealthMessage, ModelReport, Payload, StateMessage, parse
from agent.remote.gate import STATION_NAME
from agent.types import NS, StationId, parse_ns
from desk.push import configuration, models
from desk.push.listening import read_retained
from desk.push.presence import waiting
from desk.push.signing import SigningKey

LATE_S = 900.0
"""A station whose last health is older is not well; it reports every minute by default."""
WAITING_S = 60.0
"""What has waited for the broker for longer is held up."""
MOST_STATIONS = 20_000
_TOPICS = ("availability", "state", "health", "config/reported", "model/reported")

_P = TypeVar("_P", bound=Payload)
Give = Callable[[StationId], str | None]
"""Has a station take the order, and waits until it has kept it; else why it has not."""


@dataclass(slots=True)
class Member:
    """What the broker has retained of a station; None where that is nothing, or no message of Talus."""

    name: str
    availability: str | None = None
    state: StateMessage | None = None
    health: HealthMessage | None = None
    config: ConfigReport | None = None
    model: ModelReport | None = None

    @property
    def is_online(self) -> bool:
        return self.availability == ONLINE

    def age_s(self, now_ns: int) -> float | None:
        """Of its last health."""
        return None if self.health is None else max(0.0, (now_ns - parse_ns(self.health.time)) / NS)

    @property
    def has_gone(self) -> bool:
        """Whether it was never a station: no state, no health, and stopped."""
        return self.state is None and self.health is None and self.availability == "stopped"

    @property
    def serving(self) -> str | None:
        """Name of the model, with the begin of its hash."""
        part = self.model.serving if self.model else self.state.model if self.state else None
        return None if part is None else f"{part.name} {part.sha256[:8]}"

    @property
    def revision(self) -> str | None:
        """Of the remote configuration that rules, or ``file``."""
        if self.config is None:
            return None
        return "file" if self.config.status == "file" else f"{self.config.revision} {self.config.status}"

    @property
    def hearing(self) -> float | None:
        """Share of the last ten minutes in which the sensor that hears least could trigger."""
        known = [one.armed_10min for one in self.health.hearing if one.armed_10min is not None] if self.health else []
        return min(known, default=None)

    @property
    def voice(self) -> str | None:
        """``ok``, or what of it the broker does not get."""
        if self.health is None:
            return None
        link, outbox = self.health.link, self.health.outbox
        if link is not None and link.refused:
            return f"{len(link.refused)} topics refused"
        if outbox is not None and outbox.depth and outbox.oldest_s > WAITING_S:
            return f"{outbox.depth} wait"
        return "ok" if link is None or link.connected else "not connected"

    def fault(self, now_ns: int) -> str | None:
        """Why it is not well; None if it is."""
        if not self.is_online:
            return self.availability or "never online"
        if self.health is None:
            return "no health yet"
        if self.health.status != "ok":
            return ", ".join(dict.fromkeys(reason.code for reason in self.health.reasons)) or self.health.status
        age_s = self.age_s(now_ns)
        return f"last health {age_s:.0f} s ago" if age_s is not None and age_s > LATE_S else None


def look(settings: MqttSettings) -> dict[str, Member]:
    """What the broker has retained of its stations, by NET.STA; without those that came, told nothing of themselves and
    stopped, as a drill does.

    Raises:
        DeliveryError: the broker does not answer, or does not let us listen.
    """
    found: dict[str, Member] = {}

    def receive(name: str, kind: str, payload: bytes) -> None:
        if not STATION_NAME.fullmatch(name) or (name not in found and len(found) >= MOST_STATIONS):
            return
        member = found.setdefault(name, Member(name))
        match kind:
            case "availability":
                member.availability = payload[:20].decode("ascii", "replace")
            case "state":
                member.state = _parsed(StateMessage, payload)
            case "health":
                member.health = _parsed(HealthMessage, payload)
            case "config/reported":
                member.config = _parsed(ConfigReport, payload)
            case "model/reported":
                member.model = _parsed(ModelReport, payload)

    read_retained(settings, _TOPICS, receive)
    return {name: found[name] for name in sorted(found) if not found[name].has_gone}


def _parsed(kind: type[_P], payload: bytes) -> _P | None:
    with contextlib.suppress(DataError):
        return parse(kind, payload)
    return None


# -- orders


@dataclass(frozen=True, slots=True)
class Order:
    """What is rolled out: whether a station has kept it already, and how it is given to one."""

    holds: Callable[[Member], bool]
    give: Give


def configuration_order(settings: MqttSettings, payload: bytes, wait_s: float) -> Order:
    """A signed configuration as ``talus config sign`` makes it, for all stations or those that it names."""
    envelope = hashlib.sha256(payload).hexdigest()

    def holds(member: Member) -> bool:
        said = configuration.Seen(member.config).outcome(envelope)
        return said is not None and said.result == "kept"

    def give(station: StationId) -> str | None:
        said = configuration.push(waiting("fleet", settings, station, wait_s), payload, ("kept",))
        return None if said.result == "kept" else _words(said.result, said.reason)

    return Order(holds, give)


def model_order(settings: MqttSettings, bundle: Path, key: SigningKey, wait_s: float, valid_days: float) -> Order:
    """A bundle; each station gets an order of its own.

    Raises:
        BundleError: not a bundle.
    """
    sha256 = open_bundle(bundle).sha256

    def holds(member: Member) -> bool:
        report = member.model
        return report is not None and report.serving.sha256 == sha256 and report.phase in ("installed", "kept")

    def give(station: StationId) -> str | None:
        offered = models.offer(bundle, key, station, promote="auto", url=None, valid_days=valid_days)
        wait = waiting("fleet", settings, station, wait_s)
        report = models.push(wait, offered, until=("kept",), tell=lambda report: None)
        return None if report.phase == "kept" else _words(report.phase, report.reason)

    return Order(holds, give)


def _words(result: str, reason: str | None) -> str:
    return result.replace("_", " ") + (f": {reason}" if reason else "")


# -- waves


@dataclass(frozen=True, slots=True)
class Stopped:
    """Why a rollout goes no further, by station, and the stations that were not begun."""

    reasons: Mapping[str, str]
    left: Sequence[str]


Tell = Callable[[str, str | None], None]
"""Is told of a station that has kept the order (None), or why it has not."""


def roll_out(
    names: Sequence[str],
    size: int,
    order: Order,
    members: Mapping[str, Member],
    *,
    again: Callable[[], Mapping[str, Member]],
    begin: Callable[[int, Sequence[str]], None],
    tell: Tell,
) -> Stopped | None:
    """Give the order to the stations, ``size`` at a time, in this sequence; those that have kept it are passed over.

    A wave with a station that is not online is not begun.

    Args:
        names: NET.STA.
        size: of a wave.
        order: what each is given.
        members: what the broker has retained.
        again: looks once more, before each further wave.
        begin: told the number of each wave and its stations.
        tell: told what became of each station, in the order in which it is known.
    """
    todo = [name for name in names if name not in members or not order.holds(members[name])]
    number = 0
    while todo:
        wave, todo, number = todo[:size], todo[size:], number + 1
        if number > 1:
            members = again()
        away = {name: "is not online" for name in wave if name not in members or not members[name].is_online}
        if away:
            return Stopped(away, [*(name for name in wave if name not in away), *todo])
        begin(number, wave)
        reasons = dict(_wave(wave, order.give, tell))
        if reasons:
            return Stopped(reasons, todo)
    return None


def _wave(names: Sequence[str], give: Give, tell: Tell) -> Iterable[tuple[str, str]]:
    """All at once, each in a thread that ends with the process; those that have not kept the order."""
    answers: queue.SimpleQueue[tuple[str, str | None]] = queue.SimpleQueue()

    def ask(name: str) -> None:
        network, _, code = name.partition(".")
        try:
            reason = give(StationId(network, code, "", ""))
        except TalusError as error:
            reason = error.message
        except BaseException as error:  # noqa: BLE001 - a thread that says nothing would be waited for forever
            reason = f"{type(error).__name__}: {error}"
        answers.put((name, reason))

    for name in names:
        threading.Thread(target=ask, args=(name,), name=f"push {name}", daemon=True).start()
    for _ in names:
        name, reason = answers.get()
        tell(name, reason)
        if reason is not None:
            yield name, reason
