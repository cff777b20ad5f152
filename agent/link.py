"""The network thread: keeps one connection to the broker up, and the outbox draining over it."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from dataclasses import dataclass

from agent.drain import Drain, Retained
from agent.errors import DeliveryError
from agent.messages import ONLINE, STOPPED, Message, topic
from agent.mqtt import REFUSED, Connection, Subscription, UnwantedError
from agent.mqtt_hints import refusal_hint
from agent.mqtt_settings import MqttSettings
from agent.outbox import Outbox
from agent.patience import QuietLog, delays
from agent.types import StationId
from agent.waker import Waker

DEAF_S = 600.0
"""Who sends more than can be held is not listened to for so long: what goes out matters more than what comes in."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LinkStatus:
    """``connected`` only after an accepted CONNACK. ``unheard`` counts what the broker acknowledged with the remark
    that nobody subscribes to it (MQTT 5). ``error`` is why the link is down, or what the broker refused last."""

    connected: bool = False
    protocol: str | None = None
    connects: int = 0
    acknowledged: int = 0
    unheard: int = 0
    refused: int = 0
    error: str | None = None


class MqttLink:
    """The way out. `start` and `stop` are called once, in this order; the rest from any thread at any time."""

    def __init__(
        self, settings: MqttSettings, outbox: Outbox, station: StationId, subscription: Subscription | None = None
    ) -> None:
        """``station`` is whose availability this connection stands for: MQTT allows one will a connection.
        ``subscription`` is made anew with every connection; its handler must not wait."""
        self._subscription = subscription
        self._deaf_until = 0.0
        self._settings = settings
        self._outbox = outbox
        self._client_id = settings.client_id or f"talus-{station.short}"
        self._availability = topic(settings.prefix, station, "availability")
        self._waker = Waker()
        self._retained = Retained()
        self._drain = Drain(settings, outbox, self._retained)
        self._stopping = threading.Event()
        self._flush_until = 0.0
        self._give_up_at = 0.0
        self._quiet = QuietLog(_log.warning)
        self._connected: str | None = None
        self._connects = 0
        self._error: str | None = None
        self._thread = threading.Thread(target=self._run, name="mqtt-link", daemon=True)
        outbox.listen(self._wake)

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
        return self._outbox.depth == 0

    def publish_retained(self, message: Message) -> None:
        """Publish a latest value (state, health) now if connected, and on every connect; only the newest counts."""
        self._retained.put(message)
        self._drain.hint()
        self._wake()

    def urge(self, message: Message) -> None:
        """Publish what could not be put on disk, before all else; it is sent until it is acknowledged, or this ends."""
        self._drain.urge(message)
        self._wake()

    def status(self) -> LinkStatus:
        """How the link is."""
        counters = self._drain.counters
        return LinkStatus(
            connected=self._connected is not None,
            protocol=self._connected,
            connects=self._connects,
            acknowledged=counters.acknowledged,
            unheard=counters.unheard,
            refused=counters.refused,
            error=self._error or self._drain.last_refusal,
        )

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            self._waker.wake()

    def _run(self) -> None:
        waits = delays(self._settings.backoff_min_s, self._settings.backoff_max_s)
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                self._once()
            except DeliveryError as error:
                self._connected, self._error = None, error.message
                if isinstance(error, UnwantedError):
                    self._deaf_until = time.monotonic() + DEAF_S
                if self._stopping.is_set():
                    break
                self._quiet.warn(f"no connection to the broker: {error}")
                if time.monotonic() - began > self._settings.backoff_max_s:
                    waits = delays(self._settings.backoff_min_s, self._settings.backoff_max_s)
                    self._quiet.reset()
                self._stopping.wait(next(waits))
        self._connected = None

    def _once(self) -> None:
        """One connection, from the CONNACK to its end."""
        connection = Connection.open(
            self._settings,
            self._client_id,
            self._waker,
            will_topic=self._availability,
            subscription=self._subscription if time.monotonic() >= self._deaf_until else None,
            cancelled=self._stopping.is_set,
        )
        try:
            self._connected, self._error = connection.protocol, None
            self._connects += 1
            self._announce(connection, ONLINE, time.monotonic() + self._settings.ack_timeout_s)
            address, waiting = self._settings.address, self._outbox.depth
            _log.info("connected to %s, MQTT %s, %d messages wait", address, connection.protocol, waiting)
            self._drain.serve(connection, self._end_by)
            self._announce(connection, STOPPED, self._give_up_at)
            connection.close()
        finally:
            connection.abandon()

    def _end_by(self) -> float | None:
        return self._flush_until if self._stopping.is_set() else None

    def _announce(self, connection: Connection, availability: str, deadline: float) -> None:
        token = connection.publish(self._availability, availability.encode(), retain=True)
        while time.monotonic() < deadline:
            for ack in connection.pump(0.1):
                if ack.token == token:
                    if ack.code >= REFUSED:
                        hint = refusal_hint(ack.code)
                        self._quiet.warn(f"{self._availability}: refused by the broker: {ack.reason}\n  hint: {hint}")
                    return
        raise DeliveryError(
            f"{self._settings.address} accepts the connection but acknowledges nothing", "see the broker's log"
        )
