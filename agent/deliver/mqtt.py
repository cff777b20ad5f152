"""The sink ``mqtt``: one thread, and the life of its connection to the broker, from top to bottom of this file.

    connect (MQTT 5, then 3.1.1)  ->  accepted  ->  ``online``  ->  send  ->  stopped: ``stopped``, goodbye
          ^                                                           |
          '----- wait, longer each time (``backoff_max_s``) <---------'  lost: the broker says ``offline``

``Connection`` speaks MQTT and is made anew each time; ``Sender`` knows what to send over it, and what a refusal means.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from typing import Literal

from agent.backoff import ThrottledLog, delays
from agent.config.broker import MqttSettings
from agent.deliver.connection import REFUSED, Ack, Connection, Subscription, UnwantedError, refusal_hint
from agent.deliver.outbox import Cursor
from agent.deliver.reasons import LinkStatus, of_connection
from agent.deliver.sender import Sender
from agent.deliver.sink import Retained
from agent.deliver.sockets import Waker
from agent.errors import DeliveryError
from agent.messages.payloads import ONLINE, STOPPED, Message, Priority, largest_alert, topic
from agent.reasons import Reason
from agent.types import StationId

IGNORE_S = 600.0
"""How long a sender of more than can be held is ignored: what goes out matters more than what comes in."""
SHORT_S = 60.0
"""An interruption below this does not begin anew the time for which the broker has been there."""
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
        self._waker = Waker()
        self._retained = Retained(cursor)
        self._sender = Sender(settings, cursor, self._retained)
        self._stopping = threading.Event()
        self._flush_until = 0.0
        self._give_up_at = 0.0
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
            self._announce(connection, ONLINE, time.monotonic() + self._settings.ack_timeout_s)
            self._answered, self._unanswered = True, 0
            address, waiting = self._settings.address, self._cursor.depth
            _log.info("connected to %s, MQTT %s, %d messages wait", address, connection.protocol, waiting)
            self._sender.run(connection, self._end_by)
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
        if now - self._last_there >= SHORT_S:
            self._since = now
        self._unanswered += not self._answered and self._connects > 0
        self._answered = False
        self._connected, self._error = connection.protocol, None
        self._connects += 1
        self._connection, self._packet_limit = connection, connection.maximum_packet
        self._retained.drop(self._availability)

    def _end_by(self) -> float | None:
        return self._flush_until if self._stopping.is_set() else None

    def _announce(self, connection: Connection, availability: str, deadline: float) -> None:
        token = connection.publish(self._availability, availability.encode(), retain=True)
        while time.monotonic() < deadline:
            for ack in connection.pump(0.1):
                if ack.token == token:
                    if ack.code >= REFUSED:
                        self._availability_refused(availability, ack)
                    else:
                        self._sender.refusals.lift(self._availability)
                    return
        raise DeliveryError(
            f"{self._settings.address} accepts the connection but acknowledges nothing", "see the broker's log"
        )

    def _availability_refused(self, availability: str, ack: Ack) -> None:
        """It is tried again as long as the connection lasts."""
        hint = refusal_hint(ack.code)
        self._throttled.warn(f"{self._availability}: refused by the broker: {ack.reason}\n  hint: {hint}")
        self._sender.refusals.add(self._availability, ack.reason)
        if availability == ONLINE:
            message = Message(self._availability, availability.encode(), Priority.OTHER, retain=True)
            self._retained.put(message)

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
