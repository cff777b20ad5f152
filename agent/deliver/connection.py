"""One connection to an MQTT broker: the only file that knows paho.

`Connection.open` returns once the broker has accepted the CONNACK, or raises with the reason; a connection is never
re-used, so nothing but the outbox remembers what was sent. It belongs to the thread that opened it.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import select
import socket
import ssl
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from paho.mqtt import MQTTException
from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from agent.config.broker import MqttSettings, TlsConfig
from agent.deliver.sockets import Framing, PlainSocket, TlsSocket, UnwantedPacketError, Waker, followed
from agent.errors import DeliveryError, in_words
from agent.host.tls import client_context, refusal
from agent.messages.payloads import OFFLINE

Protocol: TypeAlias = Literal["5", "3.1.1"]

REFUSED = 0x80
"""Reason codes from here on are refusals."""

MAX_UNSENT = 10_000
"""Publications that came in while answers wait for the socket; far more than a broker sends before it reads."""

PACKETS = 100
"""Packets at most that one ``pump`` reads."""

LARGEST = 256 * 1024
"""Bytes of the largest packet that is read where no subscription says another size."""

ASK_AGAIN_S = 60.0
"""A topic that may not be listened to is asked for again after so long."""

_log = logging.getLogger(__name__)

_QOS = 1
_UNSUPPORTED_PROTOCOL = 0x84
_MALFORMED = (MQTTException, ValueError, LookupError, TypeError, struct.error)
"""What paho raises on packets that are not MQTT."""


class UnwantedError(DeliveryError):
    """What a subscription brings is more than can be held."""


@dataclass(frozen=True, slots=True)
class Ack:
    """The broker's word on the publication ``token``; a ``code`` of 0x80 or more is a refusal (MQTT 5 only)."""

    token: int
    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class Received:
    """A message that came in; ``correlation`` is what an MQTT 5 requester wants to find on the answer. ``token`` is
    for ``Connection.acknowledge``."""

    topic: str
    payload: bytes
    retain: bool
    correlation: bytes | None = None
    token: int = 0


@dataclass(frozen=True, slots=True)
class Subscription:
    """What a subscriber asks for. A message is acknowledged if ``handler`` returns True, or later by
    ``Connection.acknowledge``; an exception that it raises ends the connection. With ``session_expiry_s`` the broker
    keeps what comes while the subscriber is away.

    Where a subscription is not ``required``, one that the broker refuses is only logged. ``largest``: bytes of the
    largest packet that is read at all; a broker that sends more, or otherwise more than can be held, is hung up on.
    ``at_once``: messages that an MQTT 5 broker may send before the first of them is acknowledged; None leaves it to the
    broker (20 with Mosquitto)."""

    filters: Sequence[str]
    handler: Callable[[Received], bool]
    session_expiry_s: int = 0
    required: bool = True
    largest: int | None = None
    at_once: int | None = None


class Connection:
    """An accepted connection. ``receive_maximum`` is how many publications the broker takes before it must acknowledge,
    ``maximum_packet`` the largest packet it takes (None: no limit told). ``lacks`` names what it does not offer and an
    agent needs, as far as it tells (MQTT 5)."""

    def __init__(self, settings: MqttSettings, client_id: str, protocol: Protocol, waker: Waker) -> None:
        self.protocol = protocol
        self.may_know_5 = False
        """Whether MQTT 3.1.1 is spoken only because the broker, asked for 5, said nothing or hung up: it may have been
        overloaded, or starting."""
        self.receive_maximum = 65_535
        self.maximum_packet: int | None = None
        self.lacks: tuple[Literal["retained messages", "QoS 1"], ...] = ()
        self.refused_subscription = False
        """Whether the broker has refused a subscription that is not required."""
        self._settings = settings
        self._waker = waker
        self._acks: list[Ack] = []
        self._answer: ReasonCode | None = None
        self._goodbye: ReasonCode | None = None
        self._properties: dict[tuple[bool, int | None], Properties] = {}
        self._granted: list[ReasonCode] = []
        self._unsubscribed = False
        self._handler_error: Exception | None = None
        self._subscription: Subscription | None = None
        self.listens: set[str] = set()
        """Topics of ``listen`` that the broker has granted."""
        self.not_granted: dict[str, float] = {}
        """Topics of ``listen`` that it has refused, and when they were asked for (monotonic clock, s)."""
        self._listeners: dict[str, Callable[[Received], None]] = {}
        self._asked: dict[int, tuple[str, float]] = {}
        """Subscriptions of ``listen`` that are not answered, by their number."""
        self._framing = Framing(LARGEST)
        self._answered = 0
        self._client_id = client_id

    @classmethod
    def open(
        cls,
        settings: MqttSettings,
        client_id: str,
        waker: Waker,
        *,
        will_topic: str | None = None,
        subscription: Subscription | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Connection:
        """Connect, with MQTT 5 first and 3.1.1 if the broker does not know it (unless the settings fix one).

        ``will_topic`` is where the broker announces ``offline`` when this connection is lost.

        Raises:
            DeliveryError: unreachable, refused, not MQTT, TLS that fails, or ``cancelled``; the hint says what to do.
        """
        protocols: tuple[Protocol, ...] = ("5", "3.1.1") if settings.protocol == "auto" else (settings.protocol,)
        is_silent = False
        for protocol in protocols:
            connection = cls(settings, client_id, protocol, waker)
            try:
                connection._connect(will_topic, subscription, cancelled)
            except _OtherProtocolError as error:
                connection._drop()
                is_silent = connection._answer is None
                if protocol == protocols[-1]:
                    raise DeliveryError(error.message, error.hint) from None
            except BaseException:
                connection._drop()
                raise
            else:
                connection.may_know_5 = is_silent
                return connection
        raise AssertionError("the last protocol returns or raises")

    @property
    def subscribed(self) -> bool:
        """Whether the broker has answered the subscription, if there is one."""
        return self._subscription is None or len(self._granted) >= len(self._subscription.filters)

    @property
    def unanswered(self) -> bool:
        """Whether a subscription of ``listen`` has no answer yet."""
        return bool(self._asked)

    @property
    def largest_incoming(self) -> int:
        """Bytes of the largest packet that may come in, its header apart."""
        return self._framing.largest

    def listen(self, topic: str, handler: Callable[[Received], None]) -> None:
        """Subscribe to one topic, unless that is done, so that what is published after it is handed to ``handler``."""
        now = time.monotonic()
        if now - self.not_granted.get(topic, -ASK_AGAIN_S) < ASK_AGAIN_S or (
            topic in self._listeners and topic not in self.not_granted
        ):
            return
        self.not_granted.pop(topic, None)
        self._listeners[topic] = handler
        self._client.on_message = self._on_message
        _, token = self._client.subscribe(topic, _QOS)
        if token is not None:
            self._asked[token] = (topic, now)

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        retain: bool = False,
        expiry_s: int | None = None,
        correlation: bytes | None = None,
    ) -> int:
        """Hand a publication to the connection; `pump` returns its `Ack` under the returned token, or raises if the
        connection is lost. MQTT 3.1.1 leaves ``expiry_s`` and ``correlation`` out.

        Raises:
            ValueError: MQTT allows no such topic or payload.
        """
        properties = None
        if self.protocol == "5":
            properties = self._publish_properties(payload.startswith(b"{"), expiry_s)
            if correlation is not None:
                properties = copy.copy(properties)
                properties.CorrelationData = correlation
        return self._client.publish(topic, payload, _QOS, retain, properties).mid

    def _publish_properties(self, is_json: bool, expiry_s: int | None) -> Properties:
        known = self._properties.get((is_json, expiry_s))
        if known is None:
            known = self._properties[is_json, expiry_s] = _properties(PacketTypes.PUBLISH)
            known.PayloadFormatIndicator = 1
            if is_json:
                known.ContentType = "application/json"
            if expiry_s is not None:
                known.MessageExpiryInterval = expiry_s
        return known

    def pump(self, timeout_s: float) -> list[Ack]:
        """Send and receive what there is, waiting up to ``timeout_s`` for something to happen or the waker.

        Raises:
            DeliveryError: the connection is lost; says why when the broker told.
        """
        sock = self._socket()
        if sock is None:
            raise self._lost()
        pending = sock.unread or (isinstance(sock, TlsSocket) and sock.pending() > 0)
        fd, wake_fd = sock.fileno(), self._waker.fileno()
        writers = [fd] if self._client.want_write() or sock.unsent else []
        try:
            readable, writable, _ = select.select([fd, wake_fd], writers, [], 0 if pending else timeout_s)
            if wake_fd in readable:
                self._waker.clear()
            if fd in readable or pending:
                _confirm_at_once(sock)
                self._client.loop_read()
                for _ in range(PACKETS - 1):
                    if not sock.unread or self._client.socket() is None:
                        break
                    self._client.loop_read()
            if writable:
                sock.flush()
                self._client.loop_write()
            self._client.loop_misc()
            self._check_unsent()
        except _HandlerError:
            if self._handler_error is not None:
                raise self._handler_error from None
            raise
        except UnwantedPacketError as error:
            raise UnwantedError(
                f"{self._settings.address} sends {error}", "who may write to the topics that this station listens to?"
            ) from None
        except OSError as error:
            raise DeliveryError(f"connection to {self._settings.address} lost: {error}") from None
        except _MALFORMED as error:
            raise DeliveryError(
                f"{self._settings.address} sent what is not MQTT: {error}", "check host and port: is this the broker?"
            ) from error
        acks, self._acks = self._acks, []
        if not acks:
            self._check()
        return acks

    def _socket(self) -> PlainSocket | TlsSocket | None:
        found = self._client.socket()
        return found if isinstance(found, (PlainSocket, TlsSocket)) else None

    def _check_unsent(self) -> None:
        """End the connection to a broker that sends and sends and does not read the answers."""
        sock = self._socket()
        if not self._client.want_write() and not (sock is not None and sock.unsent):
            self._answered = self._framing.publications
        if self._framing.publications - self._answered > MAX_UNSENT:
            raise UnwantedError(f"{self._settings.address} does not read the answers", "is this your broker?")

    def acknowledge(self, messages: Sequence[Received]) -> None:
        """Acknowledge messages that the handler did not, in the order in which they came.

        Raises:
            DeliveryError: the connection is lost.
        """
        sock = self._socket()
        if sock is None:
            raise self._lost()
        try:
            with sock.one_write():
                for message in messages:
                    if message.token:
                        self._client.ack(message.token, _QOS)
        except OSError as error:
            raise DeliveryError(f"connection to {self._settings.address} lost: {error}") from None

    def close(self, timeout_s: float = 1.0) -> None:
        """Say goodbye, so that the broker does not publish the will."""
        if self._client.is_connected() and self._handler_error is None:
            if self._subscription is not None or self._listeners:
                self._round_trip(timeout_s)
            self._client.disconnect()
            deadline = time.monotonic() + timeout_s
            while self._client.want_write() and time.monotonic() < deadline:
                try:
                    self.pump(0.05)
                except DeliveryError:
                    break
        self._drop()

    def _round_trip(self, timeout_s: float) -> None:
        """A round trip, since a socket closed with messages unread resets the connection, and the broker then forgets
        the acknowledgements that it has not read."""
        deadline = time.monotonic() + timeout_s
        self._client.unsubscribe("talus/none")
        with contextlib.suppress(DeliveryError):
            while not self._unsubscribed and time.monotonic() < deadline:
                self.pump(0.05)

    def abandon(self) -> None:
        """Close without a goodbye: the broker publishes the will."""
        self._drop()

    def _connect(
        self, will_topic: str | None, subscription: Subscription | None, cancelled: Callable[[], bool]
    ) -> None:
        settings = self._settings
        five = self.protocol == "5"
        keep = subscription is not None and subscription.session_expiry_s > 0
        self._client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._client_id,
            clean_session=None if five else not keep,
            protocol=MQTTProtocolVersion.MQTTv5 if five else MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
        )
        client = self._client
        client.connect_timeout = settings.connect_timeout_s
        client.max_inflight_messages_set(0)
        client.on_connect = self._on_connect
        client.on_publish = self._on_publish
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        client.on_unsubscribe = self._on_unsubscribe
        if settings.username is not None:
            client.username_pw_set(settings.username, settings.newest_password())
        client.tls_set_context(followed(None if settings.tls is None else _tls_context(settings.tls)))
        if will_topic is not None:
            client.will_set(will_topic, OFFLINE, _QOS, retain=True)
        client.manual_ack_set(True)
        if subscription is not None:
            self._framing = Framing(subscription.largest)
            client.on_message = self._on_message
            self._subscription = subscription
        properties = _connect_properties(subscription) if five else None
        try:
            if five:
                client.connect(
                    settings.host, settings.port, settings.keepalive_s, clean_start=not keep, properties=properties
                )
            else:
                client.connect(settings.host, settings.port, settings.keepalive_s)
        except (OSError, *_MALFORMED) as error:
            raise unreachable(settings, error) from None
        if (sock := self._socket()) is not None:
            # An alert must not wait until the event before it is acknowledged (Nagle).
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.framing = self._framing
        self._await_connack(cancelled)
        if subscription is not None:
            self._subscribe(subscription, time.monotonic() + settings.connect_timeout_s)

    def _subscribe(self, subscription: Subscription, deadline: float) -> None:
        for name in subscription.filters:
            self._client.subscribe(name, _QOS)
        if not subscription.required:
            return
        while len(self._granted) < len(subscription.filters):
            if time.monotonic() > deadline:
                raise DeliveryError(f"{self._settings.address} does not answer a subscription", "see the broker's log")
            self.pump(0.1)
        for code in self._granted:
            if code.is_failure:
                raise DeliveryError(
                    f"{self._settings.address} refused the subscription: {code.getName()}",
                    refusal_hint(int(code.value)),
                )

    def _await_connack(self, cancelled: Callable[[], bool]) -> None:
        settings = self._settings
        deadline = time.monotonic() + settings.connect_timeout_s
        while self._answer is None:
            if cancelled():
                raise DeliveryError("stopped while connecting")
            left = deadline - time.monotonic()
            if left <= 0:
                # Some brokers of 3.1.1 wait for ever for the rest of an MQTT 5 CONNECT, which they misread.
                raise _OtherProtocolError(
                    f"{settings.address} did not answer in {settings.connect_timeout_s:g} s",
                    "is this the broker's port, and with or without TLS?",
                )
            try:
                self.pump(left)
            except DeliveryError as error:
                if self._answer is None and self._client.socket() is None:
                    raise _OtherProtocolError(
                        f"{settings.address} closed the connection without an answer",
                        "is this the broker's port, and with or without TLS?",
                    ) from error
                if self._answer is None:
                    raise
        if self._answer.is_failure:
            code, name = int(self._answer.value), self._answer.getName()
            kind = _OtherProtocolError if code == _UNSUPPORTED_PROTOCOL else DeliveryError
            raise kind(f"{settings.address} refused the connection: {name}", refusal_hint(code))

    def _check(self) -> None:
        if self._client.socket() is None:
            raise self._lost()

    def _lost(self) -> DeliveryError:
        address = self._settings.address
        if self._goodbye is not None:
            code, name = int(self._goodbye.value), self._goodbye.getName()
            return DeliveryError(f"{address} ended the connection: {name}", refusal_hint(code))
        return DeliveryError(
            f"connection to {address} lost",
            "the agent keeps trying; if it recurs, see the broker's log: another client with the same mqtt.client_id?",
        )

    def _drop(self) -> None:
        sock = self._client.socket() if hasattr(self, "_client") else None
        if sock is not None:
            sock.close()

    def _on_connect(
        self, _client: Client, _data: object, _flags: ConnectFlags, code: ReasonCode, properties: Properties | None
    ) -> None:
        self._answer = code
        self.receive_maximum = int(getattr(properties, "ReceiveMaximum", self.receive_maximum))
        self.maximum_packet = getattr(properties, "MaximumPacketSize", None)
        if not getattr(properties, "RetainAvailable", 1):
            self.lacks += ("retained messages",)
        if not getattr(properties, "MaximumQoS", _QOS):
            self.lacks += ("QoS 1",)

    def _on_publish(
        self, _client: Client, _data: object, token: int, code: ReasonCode, _properties: Properties
    ) -> None:
        self._acks.append(Ack(token, int(code.value), code.getName()))

    def _on_disconnect(
        self, _client: Client, _data: object, flags: DisconnectFlags, code: ReasonCode, _properties: Properties | None
    ) -> None:
        if flags.is_disconnect_packet_from_server and code.value:
            self._goodbye = code

    def _on_message(self, _client: Client, _data: object, message: MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:
            topic = ""
        if (listener := self._listeners.get(topic)) is not None:
            listener(Received(topic, bytes(message.payload), message.retain))
            self._client.ack(message.mid, message.qos)
            return
        if self._subscription is None:
            return
        correlation = getattr(message.properties, "CorrelationData", None)
        token = message.mid if message.qos else 0
        received = Received(topic, bytes(message.payload), message.retain, correlation, token)
        try:
            is_done = self._subscription.handler(received)
        except Exception as error:
            self._handler_error = error
            raise _HandlerError from error
        if is_done:
            self._client.ack(message.mid, message.qos)

    def _on_unsubscribe(
        self, _client: Client, _data: object, _token: int, _codes: list[ReasonCode], _properties: Properties | None
    ) -> None:
        self._unsubscribed = True

    def _on_subscribe(
        self, _client: Client, _data: object, token: int, codes: list[ReasonCode], _properties: Properties | None
    ) -> None:
        if (asked := self._asked.pop(token, None)) is not None:
            topic, at = asked
            if any(code.is_failure for code in codes):
                self.not_granted[topic] = at
            else:
                self.listens.add(topic)
            return
        if self._subscription is None or len(self._granted) >= len(self._subscription.filters):
            return
        self._granted += codes[: len(self._subscription.filters)]
        if not self._subscription.required and any(code.is_failure for code in codes):
            self.refused_subscription = True
            _log.warning(
                "%s refused the subscription for remote changes\n  hint: see its access list", self._settings.address
            )


def _confirm_at_once(sock: object) -> None:
    """Linux delays TCP's confirmations by 40 ms, and a broker with Nagle's algorithm on keeps its second PUBACK that
    long. The kernel forgets this option, so it is set again before every read."""
    if isinstance(sock, socket.socket) and hasattr(socket, "TCP_QUICKACK"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


def _connect_properties(subscription: Subscription | None) -> Properties:
    properties = _properties(PacketTypes.CONNECT)
    if subscription is not None:
        if subscription.session_expiry_s > 0:
            properties.SessionExpiryInterval = subscription.session_expiry_s
        if subscription.largest is not None:
            properties.MaximumPacketSize = subscription.largest
        if subscription.at_once is not None:
            properties.ReceiveMaximum = subscription.at_once
    return properties


def _properties(packet: int) -> Properties:
    return Properties(packet)  # type: ignore[no-untyped-call]


class _HandlerError(Exception):
    """Carries what a handler raised through paho, past the errors that are the connection's."""


class _OtherProtocolError(DeliveryError):
    """The broker may speak another version of the protocol."""


def _tls_context(tls: TlsConfig) -> ssl.SSLContext:
    try:
        return client_context(tls.ca_file, tls.cert_file, tls.key_file)
    except (OSError, ValueError) as error:
        files = ", ".join(str(path) for path in (tls.ca_file, tls.cert_file, tls.key_file) if path is not None)
        why = in_words(error)
        raise DeliveryError(
            f"TLS files cannot be used ({files}): {why}", "these must be readable PEM files (mqtt.tls, or --ca)"
        ) from None


_HINTS = {
    0x81: "the peer does not speak MQTT as expected: check the port",
    0x85: "set mqtt.client_id to one that the broker accepts",
    0x86: "check the user and the password",
    0x87: "check the user and the password, and what the broker's access list allows that user",
    0x88: "the broker is there but not in service: see its log",
    0x89: "the broker is overloaded; the agent keeps trying",
    0x8A: "the broker has banned this client",
    0x8E: "another client uses the same mqtt.client_id: give each agent its own",
    0x95: "the broker's limit for the size of a packet is too low",
    0x97: "the broker's quota for this client is used up",
    0x9A: "the broker must support retained messages",
    0x9B: "the broker must support QoS 1",
    0x9F: "the broker limits the rate of connections; the agent keeps trying",
}
"""What an operator can do about a refusal with this MQTT 5 reason code."""


def refusal_hint(code: int) -> str:
    """For a refusal with this MQTT 5 reason code."""
    return _HINTS.get(code, "see the broker's log")


def unreachable(settings: MqttSettings, error: Exception) -> DeliveryError:
    """The error to raise for what the socket, the resolver or TLS raised."""
    address = settings.address
    if isinstance(error, socket.gaierror):
        text, hint = f"no address for {settings.host!r}: {in_words(error)}", "check the name of the broker, and the DNS"
    elif isinstance(error, ssl.SSLCertVerificationError):
        text, hint = refusal(address, error, "mqtt.tls.ca_file, or --ca")
    elif isinstance(error, ssl.SSLError):
        text, hint = f"TLS with {address} fails: {error.reason or error}", "is this the broker's TLS port?"
    elif isinstance(error, ConnectionRefusedError):
        text, hint = f"{address} refused the connection", "is the broker running, and is this its port?"
    elif isinstance(error, ConnectionResetError):
        text, hint = f"{address} closed the connection", "is this the broker's port, and with or without TLS?"
    elif isinstance(error, TimeoutError):
        text, hint = f"{address} does not answer", "check the network, the firewall, and the name of the broker"
    else:
        text, hint = f"{address} cannot be reached: {error}", "check the network and the mqtt section"
    return DeliveryError(text, hint)
