"""The sink ``mqtt``: one thread, and the life of its connection to the broker, from top to bottom of this file.

    connect (MQTT 5, then 3.1.1)  ->  accepted  ->  ``online``  ->  send  ->  stopped: ``stopped``, goodbye
          ^                                                           |
          '----- wait, longer each time (``backoff_max_s``) <---------'  lost: the broker says ``offline``

``Connection`` speaks MQTT and is made anew each time; ``Sender`` knows what to send over it, and what a refusal means.
It sends retained values, then the outbox, in order, a bounded number of messages at a time. What the broker has not
acknowledged stays in the outbox, and a refusal never stops the rest:

- a reason that may pass (quota, access list) puts the topic on hold for up to a minute, and the message stays;
- a reason that will not pass (too large, malformed) sets the message aside in the outbox; what was too large goes back
  into the queue when a connection begins whose broker takes it;
- every topic that the broker refuses is listed (``Refusals``) until a message on it is acknowledged;
- what was acknowledged in the last seconds before a connection is lost is sent again: a broker that crashed may have
  acknowledged what it had not written down;
- an alert that the disk refuses is sent all the same (`send_now`), before all else; once the disk takes it, it is sent
  again as what it then is, a copy;
- with MQTT 3.1.1, where an acknowledgement may hide a refusal, a message counts as acknowledged when it has come back,
  where the station hears itself (``Echoes``);
- a message that connections die with is sent alone; if they die with it even so, it is put on hold, and a second one of
  its topic puts the topic on hold, so that what a broker chokes on cannot block the others for ever.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from agent.backoff import Backoff, ThrottledLog, delays
from agent.config.broker import MqttSettings
from agent.deliver.connection import REFUSED, Ack, Connection, Subscription, UnwantedError, refusal_hint
from agent.deliver.echoes import Echoes
from agent.deliver.outbox import Cursor, Entry
from agent.deliver.outbox_file import TOO_LARGE, packet_bytes
from agent.deliver.reasons import LinkStatus, Refusal, of_connection
from agent.deliver.sink import Retained, UnstoredAlerts
from agent.deliver.sockets import Waker
from agent.errors import DeliveryError
from agent.messages.payloads import ONLINE, STOPPED, Message, Priority, largest_alert, topic, with_handed
from agent.reasons import Reason
from agent.types import StationId, counted, waiting

IGNORE_S = 600.0
"""How long a sender of more than can be held is ignored: what goes out matters more than what comes in."""
FINISH_S = 10.0
"""How long what is in flight may take before MQTT 5 is tried."""
SHORT_S = 60.0
"""An interruption below this does not begin anew the time for which the broker has been there."""
TRY_5_S, TRY_5_MOST_S = 3600.0, 86_400.0
"""How long MQTT 3.1.1 is spoken to a broker that may know 5, until that is tried again: twice as long each time, to a
day."""
REFRESH_S = 3600.0
"""All retained values are published again so often, and ``online`` with each health report: somebody may have cleared
them at the broker, or the will of an old connection may come late, over a bridge or from another node."""
LOSSES_S = 600.0
"""Connections lost in so many seconds are counted."""

_log = logging.getLogger(__name__)


class MqttSink:
    """See the module. `start` and `stop` are called once, in this order; the rest from any thread at any time."""

    def __init__(
        self,
        settings: MqttSettings,
        cursor: Cursor,
        station: StationId,
        subscription: Subscription | None = None,
        *,
        voters: int = 0,
    ) -> None:
        """``station`` is whose availability this connection stands for: MQTT allows one will a connection.
        ``subscription`` is made anew with every connection; its handler must not wait. ``voters``: how many stations
        an alert may name with their votes."""
        self._subscription = subscription
        self._ignore_until = 0.0
        self._settings = settings
        self._cursor = cursor
        self._alert_bytes = largest_alert(settings.prefix, voters)
        self._client_id = settings.client_id or f"talus-{station.short}"
        self._availability = topic(settings.prefix, station, "availability")
        self._refresh_at = time.monotonic() + REFRESH_S
        self._waker = Waker()
        self._retained = Retained(cursor)
        self._sender = Sender(settings, cursor, self._retained)
        self._stopping = threading.Event()
        self._flush_until = 0.0
        self._give_up_at = 0.0
        self._old_s, self._old_until = TRY_5_S, 0.0
        self._throttled = ThrottledLog(_log.warning)
        self._connected: str | None = None
        self._since = 0.0
        """When the broker was first there, but for short interruptions (monotonic clock, s)."""
        self._last_there = -SHORT_S
        self._answered = False
        self._unanswered = 0
        self._lost: deque[float] = deque(maxlen=1000)
        self._packet_limit: int | None = None
        self._connection: Connection | None = None
        self._connects = 0
        self._error: str | None = None
        self._thread = threading.Thread(target=self._run, name="mqtt-link", daemon=True)
        cursor.listen(self._wake)

    @property
    def alive(self) -> bool:
        """Whether the thread runs: it ends only by `stop`, or by a fault of the agent itself."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Begin to connect and to send; returns at once."""
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> bool:
        """Send what can be sent, say ``stopped``, and end, within ``timeout_s``. True if nothing is left to send."""
        self._flush_until = time.monotonic() + 0.6 * timeout_s
        self._give_up_at = time.monotonic() + 0.9 * timeout_s
        self._stopping.set()
        self._wake()
        self._thread.join(timeout_s)
        if not self._thread.is_alive():
            self._waker.close()
        return self._cursor.depth == 0

    def publish_retained(self, message: Message) -> None:
        """Publish a latest value (state, health) now if connected, and on every connect; only the newest counts."""
        self._retained.put(message)
        if message.name == "health" and not self._stopping.is_set():
            self._retained.put(self._online())
            if (now := time.monotonic()) >= self._refresh_at:
                self._refresh_at = now + REFRESH_S
                self._retained.all_stale()
        self._sender.hint()
        self._wake()

    def send_now(self, message: Message) -> None:
        """Publish what could not be put on disk, before all else; it is sent until it is acknowledged, or this ends."""
        self._sender.send_now(message)
        self._wake()

    def reasons(self) -> list[Reason]:
        """Why what is sent may not arrive."""
        return of_connection(self.status(), self._alert_bytes)

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            self._waker.wake()

    def _run(self) -> None:
        waits = delays(self._settings.backoff_min_s, self._settings.backoff_max_s)
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                self._run_connection()
            except DeliveryError as error:
                self._connected, self._error = None, error.message
                if isinstance(error, UnwantedError):
                    self._ignore_until = time.monotonic() + IGNORE_S
                    self._sender.echoes.pause()
                if self._stopping.is_set():
                    break
                self._throttled.warn(f"no connection to the broker: {error}")
                if time.monotonic() - began > self._settings.backoff_max_s:
                    waits = delays(self._settings.backoff_min_s, self._settings.backoff_max_s)
                    self._throttled.reset()
                self._stopping.wait(next(waits))
        self._connected = None

    def _run_connection(self) -> None:
        """One connection, from the CONNACK to its end."""
        connection = Connection.open(
            self._settings,
            self._client_id,
            self._waker,
            will_topic=self._availability,
            subscription=self._subscription if time.monotonic() >= self._ignore_until else None,
            cancelled=self._stopping.is_set,
        )
        try:
            self._begin(connection)
            self._announce(connection, ONLINE, time.monotonic() + self._sender.patience_s)
            self._answered, self._unanswered = True, 0
            address, depth = self._settings.address, self._cursor.depth
            _log.info("connected to %s, MQTT %s, %s", address, connection.protocol, waiting(depth))
            self._sender.run(connection, self._end_by)
            if not self._stopping.is_set():
                self._old_s = min(2 * self._old_s, TRY_5_MOST_S)
                connection.close()
                return
            self._retained.drop(self._availability)
            self._announce(connection, STOPPED, self._give_up_at)
            connection.close()
        except DeliveryError:
            self._lost.append(time.monotonic())
            raise
        finally:
            self._last_there = time.monotonic()
            connection.abandon()

    def _begin(self, connection: Connection) -> None:
        """The broker has accepted the connection."""
        now = time.monotonic()
        if connection.may_know_5:
            self._old_until = now + self._old_s
        elif connection.protocol == "5":
            self._old_s = TRY_5_S
        if now - self._last_there >= SHORT_S:
            self._since = now
        self._unanswered += not self._answered and self._connects > 0
        self._answered = False
        self._connected, self._error = connection.protocol, None
        self._connects += 1
        self._connection, self._packet_limit = connection, connection.maximum_packet
        self._retained.drop(self._availability)

    def _end_by(self) -> float | None:
        if self._stopping.is_set():
            return self._flush_until
        connection = self._connection
        tries_5 = connection is not None and connection.may_know_5 and time.monotonic() >= self._old_until
        return self._old_until + FINISH_S if tries_5 else None

    def _announce(self, connection: Connection, availability: str, deadline: float) -> None:
        began, token = time.monotonic(), connection.publish(self._availability, availability.encode(), retain=True)
        while time.monotonic() < deadline:
            for ack in connection.pump(0.1):
                if ack.token == token:
                    self._sender.answered(began)
                    if ack.code >= REFUSED:
                        self._availability_refused(availability, ack)
                    else:
                        self._sender.refusals.lift(self._availability)
                    return
        self._sender.waited_in_vain()
        raise DeliveryError(
            f"{self._settings.address} accepts the connection but acknowledges nothing", "see the broker's log"
        )

    def _availability_refused(self, availability: str, ack: Ack) -> None:
        """It is tried again as long as the connection lasts."""
        hint = refusal_hint(ack.code)
        self._throttled.warn(f"{self._availability}: refused by the broker: {ack.reason}\n  hint: {hint}")
        self._sender.refusals.add(self._availability, ack.reason)
        if availability == ONLINE:
            self._retained.put(self._online())

    def _online(self) -> Message:
        return Message(self._availability, ONLINE.encode(), Priority.OTHER, retain=True)

    def status(self) -> LinkStatus:
        """How the link is."""
        counters, now = self._sender.counters, time.monotonic()
        connected, alert_at = self._connected, counters.unheard_alert_at
        return LinkStatus(
            connected=connected is not None,
            connected_s=0.0 if connected is None else now - self._since,
            answered=self._answered,
            unanswered=self._unanswered,
            losses=sum(now - at < LOSSES_S for at in tuple(self._lost)),
            protocol=connected,
            connects=self._connects,
            acknowledged=counters.acknowledged,
            unheard=counters.unheard,
            unheard_alerts=counters.unheard_alerts,
            unheard_alert_s=None if alert_at is None else now - alert_at,
            refused=counters.refused,
            refusals=self._sender.refusals.all(),
            unseen=self._sender.echoes.unseen,
            kept=self._sender.echoes.kept,
            packet_limit=self._packet_limit,
            orders=self._orders(),
            error=self._error or self._sender.last_refusal,
        )

    def _orders(self) -> Literal["none", "heard", "refused", "ignored"]:
        if self._subscription is None:
            return "none"
        if time.monotonic() < self._ignore_until:
            return "ignored"
        connection = self._connection
        return "refused" if connection is not None and connection.refused_subscription else "heard"


_NO_SUBSCRIBERS = 0x10
_NOT_BACK = "it is acknowledged and does not come back (MQTT 3.1.1)"
_NOT_BACK_HINT = "let the station write and read there, in the broker's access list, or use a broker with MQTT 5"
_HOPELESS = frozenset({0x90, TOO_LARGE, 0x99})
"""Topic name invalid, packet too large, payload format invalid: the same message will be refused for ever."""

_SUSPECT_AFTER = 2
"""Connections lost with a message in flight, after which messages are sent one by one: of which do they die?"""

_BLOCKING_AFTER = 5
_EXERCISE = b'"exercise":true'
"""Marks the payload of an exercise, to which nobody need subscribe. Quotes in free text are escaped."""
_BLOCKING_HINT = "see the broker's log: its limit for the size of a message, or its access list?"
_TICK_S = 1.0
MOST_PATIENCE_S = 300.0
"""Longest wait for an acknowledgement: ``ack_timeout_s``, doubled each time that it was too short, as a broker or a
link may be slower than that; until one comes in ``ack_timeout_s``. A connection that is dead ends earlier, by the
keep-alive: the broker must answer a ping that goes out after ``keepalive_s`` of silence within another."""
LINGER_S = 5.0
"""How long what was acknowledged stays on disk: longer than a broker takes from the acknowledgement to its own disk."""
LINGER_MESSAGES = 256
"""The most that lingers: while a backlog is drained, the time is shorter."""
MOST_REPEATS = 3
"""Most times that an acknowledged message is sent again: a broker may crash because of it."""


class Refusals:
    """The topics that the broker refuses, each until a message on it is acknowledged. From any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._topics: dict[str, Refusal] = {}

    def add(self, topic: str, reason: str) -> None:
        """One more message on this topic was refused."""
        with self._lock:
            known = self._topics.get(topic)
            count, since = (0, time.monotonic()) if known is None else (known.count, known.since)
            self._topics[topic] = Refusal(topic, reason, count + 1, since)

    def lift(self, topic: str) -> str | None:
        """A message on this topic was acknowledged; returns why one before it was refused, None if none was."""
        with self._lock:
            known = self._topics.pop(topic, None)
        return None if known is None else known.reason

    def topics(self) -> set[str]:
        """The refused topics."""
        with self._lock:
            return set(self._topics)

    def all(self) -> tuple[Refusal, ...]:
        """The refused topics, in the order of the first refusal."""
        with self._lock:
            return tuple(self._topics.values())


@dataclass(slots=True)
class Counters:
    """Since the start. ``unheard``: acknowledged, but the broker knew of no subscriber (MQTT 5); ``unheard_alerts``:
    alerts among them that are no exercise, the last one at ``unheard_alert_at`` (monotonic clock, s; None: the newest
    alert had a subscriber, or there was none)."""

    acknowledged: int = 0
    unheard: int = 0
    unheard_alerts: int = 0
    unheard_alert_at: float | None = None
    refused: int = 0


@dataclass(frozen=True, slots=True)
class _Sent:
    """A message in flight: one of the outbox, or a retained or urgent one (no entry)."""

    message: Message
    entry: Entry | None
    at: float
    echo: bytes | None = None
    """See ``Echoes.expect``."""

    @property
    def topic(self) -> str:
        return self.message.topic

    @property
    def row(self) -> int | None:
        """Row in the outbox."""
        return None if self.entry is None else self.entry.id

    @property
    def is_alert(self) -> bool:
        return self.message.priority == Priority.ALERT

    @property
    def urgent(self) -> bool:
        return self.entry is None and not self.message.retain

    @property
    def name(self) -> int | str:
        return self.message.topic if self.entry is None else self.entry.id


class Sender:
    """Owned by the network thread, for the life of the process; `run` is called with each connection in turn."""

    def __init__(self, settings: MqttSettings, cursor: Cursor, retained: Retained) -> None:
        self.counters = Counters()
        self.refusals = Refusals()
        self.echoes: Echoes[_Sent] = Echoes()
        self.last_refusal: str | None = None
        self._settings = settings
        self._cursor = cursor
        self._retained = retained
        self._unstored = UnstoredAlerts()
        self._fresh = threading.Event()
        self._fresh.set()
        self._throttled = ThrottledLog(_log.warning)
        self._topic_backoff: Backoff[str] = Backoff(5.0, 60.0)
        self._blocking_backoff: Backoff[str] = Backoff(5.0, 600.0)
        self._row_backoff: Backoff[int] = Backoff(5.0, 60.0)
        self._losses: dict[int | str, int] = {}
        self._blocking: dict[str, int] = {}
        self._sent: dict[int, _Sent] = {}
        self._acknowledged: deque[tuple[int, float]] = deque()
        self._handed: dict[int, int] = {}
        self._repeats: dict[int, int] = {}
        self._acks = 0
        self.patience_s = settings.ack_timeout_s
        """How long an acknowledgement is waited for."""
        self._values_first = False
        cursor.listen(self.hint)

    def hint(self) -> None:
        """There is something new to send. May be called from any thread."""
        self._fresh.set()

    def send_now(self, message: Message) -> None:
        """Send what could not be put on disk. May be called from any thread."""
        self._unstored.put(message)
        self._fresh.set()

    def answered(self, sent_at: float) -> None:
        """What was sent then (monotonic clock, s) was acknowledged."""
        if time.monotonic() - sent_at < self._settings.ack_timeout_s:
            self.patience_s = self._settings.ack_timeout_s

    def waited_in_vain(self) -> None:
        """No acknowledgement came in ``patience_s``."""
        self.patience_s = max(self.patience_s, min(2 * self.patience_s, MOST_PATIENCE_S))

    def run(self, connection: Connection, end_by: Callable[[], float | None]) -> None:
        """Send until ``end_by`` names a (monotonic) time; then return when all is sent, or at that time.

        Raises:
            DeliveryError: the connection is lost. What was in flight will be sent again.
        """
        self._retained.all_stale()
        self._acks = 0
        self._topic_backoff.clear()  # this broker, or its access list, may be another one
        self._cursor.release(self.echoes.begin(connection))
        self._requeue_too_large(connection.maximum_packet)
        self._fresh.set()
        try:
            while True:
                idle = not self._send(connection) and not self._sent and not self.echoes.awaited
                deadline = end_by()
                if deadline is not None and (idle or time.monotonic() >= deadline):
                    self._delete_acknowledged(0)
                    break
                for ack in connection.pump(_TICK_S if deadline is None else 0.05):
                    self._on_ack(ack)
                self._resolve_echoes()
                self._delete_acknowledged()
                self._check_ack_timeout()
        except DeliveryError:
            self._count_losses()
            raise
        finally:
            unsure = [*self._sent.values(), *self.echoes.end()]
            self._cursor.release([sent.entry.id for sent in unsure if sent.entry is not None])
            self._sent.clear()
            self._release_acknowledged()

    def _requeue_too_large(self, packet_limit: int | None) -> None:
        """What an earlier connection set aside as too large, and this one takes."""
        with self._disk_may_refuse():
            if moved := self._cursor.requeue(packet_limit):
                _log.warning("%d messages that were set aside as too large are sent: the broker takes them now", moved)

    @contextlib.contextmanager
    def _disk_may_refuse(self) -> Iterator[None]:
        """Log what the disk says, and go on: the connection is well."""
        try:
            yield
        except DeliveryError as error:
            self._throttled.warn(str(error))

    def _send(self, connection: Connection) -> int:
        window = min(self._settings.inflight, connection.receive_maximum)
        if self._losses and max(self._losses.values()) >= _SUSPECT_AFTER:
            window = 1
        room = window - len(self._sent)
        fresh = self._fresh.is_set()
        if room <= 0 or not (fresh or 2 * room >= window):
            return 0
        held = [*self._topic_backoff.active(), *self._blocking_backoff.active()]
        held += self.echoes.busy(window, self.refusals.topics())
        unstored = self._unstored.first(held)
        if unstored is not None and not any(sent.urgent for sent in (*self._sent.values(), *self.echoes.awaited)):
            # One at a time, so that they arrive in order; for the rest the next turn is soon enough.
            self._publish(connection, unstored, None)
            return 1
        self._fresh.clear()
        if fresh:
            with self._disk_may_refuse():
                self._retained.look_up()
        # Values have a quarter of the room, and of little room every second turn: no alert waits for all of them.
        self._values_first = not self._values_first
        values, entries = self._retained.fetch(room // 4 or self._values_first, held), []
        if room > len(values):
            with self._disk_may_refuse():
                entries = self._cursor.fetch(room - len(values), held, self._row_backoff.active())
        if room > len(values) + len(entries):
            values += self._retained.fetch(1, held)
        for entry in entries:
            self._publish(connection, entry.message, entry)
        for message in values:
            self._publish(connection, message, None)
        return len(values) + len(entries)

    def _publish(self, connection: Connection, message: Message, entry: Entry | None) -> None:
        size = packet_bytes(message.topic, message.payload, message.correlation)
        if connection.maximum_packet is not None and size > connection.maximum_packet:
            reason = f"{size} bytes are larger than the broker's {connection.maximum_packet} bytes"
            self._refuse(_Sent(message, entry, 0.0), TOO_LARGE, reason)
            return
        payload = message.payload
        if entry is not None:
            payload = with_handed(payload, self._handed.setdefault(entry.id, time.time_ns()))
        elif not message.retain:
            payload = with_handed(payload, time.time_ns())
        try:
            echo = self.echoes.expect(message.topic, payload)
            token = connection.publish(
                message.topic,
                payload,
                retain=message.retain,
                expiry_s=message.expiry_s,
                correlation=message.correlation,
            )
        except ValueError as error:
            self._refuse(_Sent(message, entry, 0.0), 0x90, str(error))
            return
        self._sent[token] = _Sent(message, entry, time.monotonic(), echo)

    def _on_ack(self, ack: Ack) -> None:
        sent = self._sent.pop(ack.token, None)
        if sent is None:
            return
        self._losses.pop(sent.name, None)
        self.answered(sent.at)
        self._acks += 1
        if self._acks >= self._settings.inflight:
            self._losses.clear()
        if ack.code >= REFUSED:
            self._refuse(sent, ack.code, ack.reason)
            return
        known = self.echoes.acknowledged(sent)
        if known == "unknown" and self.refusals.lift(sent.topic) == _NOT_BACK:
            self.echoes.doubt(sent.topic)
        if known != "awaited":
            self._acknowledge(sent, has_subscriber=ack.code != _NO_SUBSCRIBERS)

    def _acknowledge(self, sent: _Sent, *, has_subscriber: bool = True) -> None:
        self._count_acknowledged(sent.message, has_subscriber)
        self.refusals.lift(sent.message.topic)
        self._topic_backoff.lift(sent.message.topic)
        self._blocking_backoff.lift(sent.message.topic)
        self._blocking.pop(sent.message.topic, None)
        if sent.urgent:
            self._unstored.done(sent.message)
        if sent.entry is not None:
            self._row_backoff.lift(sent.entry.id)
            self._cursor.acknowledge([sent.entry.id])
            self._acknowledged.append((sent.entry.id, time.monotonic()))

    def _resolve_echoes(self) -> None:
        """What came back is acknowledged, and what did not is refused."""
        resolved = self.echoes.resolve()
        for sent in resolved.back:
            self._acknowledge(sent)
        for sent in resolved.dropped:
            self._refuse(sent, None, _NOT_BACK)
        if resolved.again:
            _log.warning("%s sent again: the broker may have dropped them", counted(len(resolved.again), "message"))
            lingering = {row_id for row_id, _ in self._acknowledged}.intersection(resolved.again)
            self._acknowledged = deque(one for one in self._acknowledged if one[0] not in lingering)
            self._cursor.release(resolved.again)
            self._fresh.set()
        if resolved.proven or resolved.expired:
            lingering = {row_id for row_id, _ in self._acknowledged}
            done = [row_id for row_id in (*resolved.proven, *resolved.expired) if row_id not in lingering]
            self._acknowledged.extendleft((row_id, -LINGER_S) for row_id in done)

    def _count_acknowledged(self, message: Message, has_subscriber: bool) -> None:
        counters = self.counters
        counters.acknowledged += 1
        counters.unheard += not has_subscriber
        if message.priority == Priority.ALERT and not message.retain and _EXERCISE not in message.payload:
            counters.unheard_alerts += not has_subscriber
            counters.unheard_alert_at = None if has_subscriber else time.monotonic()

    def _refuse(self, sent: _Sent, code: int | None, reason: str) -> None:
        """``code``: of MQTT 5, None where the broker said nothing."""
        name = sent.message.topic
        self.counters.refused += 1
        self.last_refusal = f"{name}: refused by the broker: {reason}"
        if code in _HOPELESS and sent.urgent:
            self._unstored.done(sent.message)
            self.refusals.add(name, reason)
            self._throttled.warn(f"{self.last_refusal}; the message is left to the disk")
            return
        if code in _HOPELESS and sent.entry is not None:
            self._throttled.warn(f"{self.last_refusal}; the message is set aside")
            try:
                self._cursor.refuse(sent.entry.id, code, reason)
                self._handed.pop(sent.entry.id, None)
            except DeliveryError as error:
                self._throttled.warn(str(error))
                self._row_backoff.add(sent.entry.id)
                self._cursor.release([sent.entry.id])
            return
        self._topic_backoff.add(name)
        self.refusals.add(name, reason)
        hint = _NOT_BACK_HINT if code is None else refusal_hint(code)
        self._throttled.warn(f"{self.last_refusal}; it is kept and tried again\n  hint: {hint}")
        if sent.entry is not None:
            self._cursor.release([sent.entry.id])
        elif not sent.urgent:
            self._retained.again(name)

    def _delete_acknowledged(self, kept: int = LINGER_MESSAGES) -> None:
        """Delete what was acknowledged; the newest ``kept`` stay as long as they are young."""
        surplus, old = len(self._acknowledged) - kept, time.monotonic() - LINGER_S
        due = [row_id for n, (row_id, at) in enumerate(self._acknowledged) if n < surplus or at <= old]
        if not due:
            return
        with self._disk_may_refuse():
            self._cursor.delete([row_id for row_id in due if not self.echoes.is_kept(row_id)])
            for row_id in due:
                self._acknowledged.popleft()
                self._handed.pop(row_id, None)

    def _release_acknowledged(self) -> None:
        """The connection is lost: what was acknowledged last is sent again, unless that has been done often enough."""
        again = [row_id for row_id, _ in self._acknowledged]
        self.echoes.release(again)
        self._acknowledged.clear()
        self._repeats = {row_id: self._repeats.get(row_id, 0) + 1 for row_id in again}
        exhausted = [row_id for row_id, count in self._repeats.items() if count > MOST_REPEATS]
        with contextlib.suppress(DeliveryError):
            self._cursor.delete(exhausted)
        self._cursor.release(again)

    def _check_ack_timeout(self) -> None:
        oldest = next(iter(self._sent.values()), None)
        if oldest is not None and time.monotonic() - oldest.at > (waited_s := self.patience_s):
            self.waited_in_vain()
            raise DeliveryError(
                f"{self._settings.address} has not acknowledged a message for {waited_s:g} s",
                "the broker hangs, or the link loses packets; the message is sent again",
            )

    def _count_losses(self) -> None:
        """The connection died with these in flight; find out whether it died of one of them."""
        self._losses = {sent.name: self._losses.get(sent.name, 0) + 1 for sent in self._sent.values()}
        if len(self._sent) != 1:
            return
        (sent,) = self._sent.values()
        if self._losses[sent.name] < _BLOCKING_AFTER:
            return
        self._losses.clear()
        name = sent.message.topic
        reason = f"connections die with a message of {len(sent.message.payload)} bytes"
        self.last_refusal = f"{name}: {reason}"
        self.refusals.add(name, reason)
        self._throttled.warn(f"{self.last_refusal}; it is kept and tried again later\n  hint: {_BLOCKING_HINT}")
        if sent.entry is None:
            self._blocking_backoff.add(name)
            return
        self._row_backoff.add(sent.entry.id)
        if self._blocking.setdefault(name, sent.entry.id) != sent.entry.id:
            self._blocking_backoff.add(name)
