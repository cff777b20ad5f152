"""Which topics the broker lets an agent write: each is tried with a message that does no harm.

A probe is not retained and empty, so that no stored value changes; ``talus watch`` and the desk ignore it. The
availability is probed with its present value, and Home Assistant's topics with what is announced there anyway, as an
empty message would change something for whoever listens.

A subscription to orders may be granted and bring nothing: Mosquitto's access lists forbid the delivery, not the
subscription. So the doctor sends an empty message, which is no order, to each of these topics, where it may.

With MQTT 5 the acknowledgement says whether the access list forbids the topic. With 3.1.1 it does not: there a topic is
known to be allowed only if its probe comes back to this client itself.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from agent.config.broker import MqttSettings
from agent.config.file import Config
from agent.config.station import stations_of
from agent.deliver.connection import REFUSED, Ack, Connection, Received, Subscription
from agent.deliver.sockets import Waker
from agent.errors import DeliveryError
from agent.health.home_assistant import announcements
from agent.messages.payloads import topic
from agent.types import StationId

OWN = ("state", "health", "event", "alert", "last_event", "last_alert")
OTHERS = ("event", "alert", "last_event", "last_alert")
ANSWERS = ("config/reported", "model/reported", "response", "evidence/none/0")
ORDERS = ("config/set", "model/set", "model/chunk", "command")
ANSWER_S = 10.0
"""How long an acknowledgement is waited for."""
RETURN_S = 1.5
"""How long a probe may take to come back."""


@dataclass(frozen=True, slots=True)
class Probe:
    """A topic and what is published there."""

    topic: str
    payload: bytes = b""


@dataclass(slots=True)
class Report:
    """What the broker said. ``forbidden`` are topics with its reason, ``unknown`` those of which nothing can be said
    (MQTT 3.1.1); ``packet_limit`` is the size of the largest packet that it takes, None for no limit; ``lacks`` is what
    it does not offer, without which it refuses an agent."""

    protocol: str = ""
    packet_limit: int | None = None
    lacks: tuple[str, ...] = ()
    allowed: list[str] = field(default_factory=list)
    forbidden: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    orders_refused: bool = False
    orders_silent: list[str] = field(default_factory=list)
    """Topics of orders that are subscribed to, and from which nothing comes (MQTT 5)."""


def probes(config: Config, availability: str | None) -> list[Probe]:
    """One for each topic that the agent of this configuration will write, as far as its stations are known.
    ``availability`` is the present one; None: it is not known, and its topic is left alone."""
    if config.mqtt is None:
        return []
    prefix = config.mqtt.prefix
    own, *others = (_station(name) for name in stations_of(config).known)
    answers = ANSWERS if config.control.keys else ANSWERS[-1:] if config.evidence.send == "alerts" else ()
    names = [*OWN, *answers]
    found = [Probe(topic(prefix, own, name)) for name in names]
    if availability is not None:
        found.insert(0, Probe(topic(prefix, own, "availability"), availability.encode()))
    found += [Probe(topic(prefix, other, name)) for other in others for name in OTHERS]
    if config.envelope.component is not None:
        found += [Probe(topic(prefix, one, "envelope")) for one in (own, *others)]
    if config.mqtt.home_assistant is not None:
        told = announcements(
            own, config.station.name, prefix, config.mqtt.home_assistant.prefix, [other.short for other in others]
        )
        found += [Probe(message.topic, message.payload) for message in told]
    return found


def orders(config: Config) -> list[str]:
    """The topics from which the agent takes orders; none where it trusts no key."""
    if config.mqtt is None or not config.control.keys:
        return []
    own = StationId(config.station.network, config.station.station, "", "")
    return [topic(config.mqtt.prefix, own, name) for name in ORDERS]


def try_topics(settings: MqttSettings, client_id: str, tried: Sequence[Probe], subscribed: Sequence[str]) -> Report:
    """Publish the probes one after the other, and subscribe to the topics ``subscribed``.

    Raises:
        DeliveryError: the broker does not accept the connection, or does not acknowledge.
    """
    with contextlib.closing(Waker()) as waker:
        trial = _Trial(settings, client_id, waker, subscribed)
        try:
            trial.connect()
            if trial.report.protocol != "5":
                trial.connect([probe.topic for probe in tried])
            for probe in tried:
                trial.publish(probe)
            if trial.report.protocol == "5" and not trial.report.orders_refused:
                trial.try_orders()
            trial.await_returns()
            return trial.report
        finally:
            trial.close()


class _Trial:
    """The connections of one `try_topics`: a broker may end one because of a probe."""

    def __init__(self, settings: MqttSettings, client_id: str, waker: Waker, subscribed: Sequence[str]) -> None:
        self.report = Report()
        self._settings, self._client_id, self._waker = settings, client_id, waker
        self._orders = list(subscribed)
        self._echoes: list[str] = []
        self._acknowledged: list[str] = []
        self._returned: set[str] = set()
        self._connection: Connection | None = None

    def connect(self, echoes: Sequence[str] = ()) -> None:
        """Connect, and listen to the orders, or to ``echoes`` for probes that come back."""
        self.close()
        self._echoes = list(echoes) or self._echoes
        filters = self._echoes or self._orders
        subscription = Subscription(filters, self._receive, required=False) if filters else None
        connection = Connection.open(self._settings, self._client_id, self._waker, subscription=subscription)
        self._connection = connection
        self.report.protocol, self.report.packet_limit = connection.protocol, connection.maximum_packet
        self.report.lacks = connection.lacks
        deadline = time.monotonic() + ANSWER_S
        while subscription is not None and not connection.subscribed and time.monotonic() < deadline:
            connection.pump(0.1)
        if not self._echoes:
            self.report.orders_refused |= connection.refused_subscription

    def publish(self, probe: Probe) -> None:
        """Try one topic."""
        if self._connection is None:
            self.connect()
        if self._connection is None:
            raise AssertionError("connect sets it or raises")
        try:
            token = self._connection.publish(probe.topic, probe.payload)
            deadline = time.monotonic() + ANSWER_S
            while time.monotonic() < deadline:
                for ack in self._connection.pump(0.1):
                    if ack.token == token:
                        self._note(probe.topic, ack)
                        return
        except DeliveryError:
            self.report.forbidden[probe.topic] = "the broker ends the connection"
            self._connection.abandon()
            self._connection = None
            return
        raise DeliveryError(
            f"{self._settings.address} does not acknowledge a message to {probe.topic}", "see the broker's log"
        )

    def try_orders(self) -> None:
        """Find those from which nothing comes although this client may write there."""
        report = self.report
        for name in self._orders:
            known = (report.allowed.copy(), report.forbidden.copy())
            self.publish(Probe(name))
            written = name in report.allowed
            report.allowed, report.forbidden = known
            if written and self._connection is not None:
                report.orders_silent.append(name)
        self._pump_until(lambda: self._returned >= {*report.orders_silent})
        report.orders_silent = [name for name in report.orders_silent if name not in self._returned]

    def _note(self, name: str, ack: Ack) -> None:
        if ack.code >= REFUSED:
            self.report.forbidden[name] = ack.reason
        elif self.report.protocol == "5":
            self.report.allowed.append(name)
        else:
            self._acknowledged.append(name)

    def await_returns(self) -> None:
        """With MQTT 3.1.1: what comes back is allowed, of the rest nothing is known."""
        self._pump_until(lambda: self._returned >= {*self._acknowledged})
        for name in self._acknowledged:
            (self.report.allowed if name in self._returned else self.report.unknown).append(name)

    def _pump_until(self, is_done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + RETURN_S
        while not is_done() and time.monotonic() < deadline and self._connection is not None:
            with contextlib.suppress(DeliveryError):
                self._connection.pump(0.1)

    def close(self) -> None:
        """End the connection, if there is one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _receive(self, message: Received) -> bool:
        if not message.retain:
            self._returned.add(message.topic)
        return True


def _station(name: str) -> StationId:
    network, code = name.split(".")
    return StationId(network, code, "", "")


def access_lines(config: Config, topics: Iterable[str]) -> list[str]:
    """Lines of a Mosquitto access list that allow these topics: one for each station, whole."""
    if config.mqtt is None:
        return []
    prefix, discovery = config.mqtt.prefix, config.mqtt.home_assistant
    lines = []
    for name in topics:
        rest = name.removeprefix(f"{prefix}/").split("/")
        if name.startswith(f"{prefix}/"):
            lines.append(f"topic write {prefix}/{rest[0]}/{rest[1]}/#")
        elif discovery is not None:
            device = name.removeprefix(f"{discovery.prefix}/").split("/")[1]
            lines.append(f"topic write {discovery.prefix}/+/{device}/#")
    return list(dict.fromkeys(lines))
