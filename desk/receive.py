"""From the broker to the database: each message is acknowledged only after it is committed.

The desk has a persistent session of its own: what comes while it is away waits at the broker. It subscribes plainly,
not to a shared subscription, where a dead member would keep its half. Everything that arrives is hostile until it has
passed the schema; what does not pass is counted, named once in a while, and acknowledged, since it would never pass.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from agent.backoff import delays
from agent.config.broker import MqttSettings
from agent.deliver.connection import Connection, Received, Subscription
from agent.deliver.sockets import Waker
from agent.errors import DataError, DeliveryError
from agent.messages.envelope import Packed, unpack
from agent.messages.payloads import OFFLINE, ONLINE, STOPPED
from agent.messages.schema import MODELS, MinMaxMessage, parse
from agent.messages.text import printable
from agent.types import parse_ns
from desk.pieces import Pieces
from desk.store.store import Arrival, Change, Store
from desk.worker import Worker

LARGEST = 512 * 1024
"""Bytes of a packet; a broker that sends a larger one is hung up on."""
NAMES = ("event", "alert", "availability", "state", "health", "envelope")
SESSION_EXPIRY_S = 30 * 86_400
BATCH = 500
"""Messages in one transaction at most, and as many again that the broker may send meanwhile, ..."""
BATCH_BYTES = 8 * 1024 * 1024
"""... of so many bytes together."""
GATHER_S = 0.02
"""Messages that come within this time of the first are one transaction, ..."""
LONGEST_GATHER_S = 0.2
"""... and those that come without a pause, as after the desk was away, as many as this time brings."""
RETRY_S = 2.0
"""After the database has refused."""
_EARLIEST_NS, _LATEST_NS = parse_ns("1970-01-01T00:00:00Z"), parse_ns("2200-01-01T00:00:00Z")
"""What the database can hold. A station whose clock is wrong by years is still heard."""
_STATION = re.compile(r"[A-Z0-9-]{1,8}\.[A-Z0-9-]{1,8}")
_UNFIT = (DataError, ValueError, ArithmeticError, LookupError, TypeError)
"""What a message can raise that the schema lets through and the database or the folder of records cannot hold. Raised
further, it would not be acknowledged, and come again with every connection."""


@dataclass(slots=True)
class Tally:
    """Since the start. ``refused`` did not pass the schema; ``written`` are committed and acknowledged."""

    written: int = 0
    refused: int = 0
    connects: int = 0
    connected: bool = False
    error: str | None = None
    heard: float = field(default_factory=time.monotonic)
    """When the last message came, on the monotonic clock."""


class Receiver(Worker):
    """Receives and stores. ``changed`` is called in its thread after each commit."""

    def __init__(
        self,
        settings: MqttSettings,
        store: Store,
        session: str,
        changed: Callable[[Sequence[Change]], None] = lambda _: None,
        pieces: Pieces | None = None,
    ) -> None:
        """``session`` is the client identifier under which the broker keeps what comes meanwhile; every desk has its
        own. ``pieces`` takes the records that stations send by themselves; None leaves them."""
        super().__init__("receiver")
        self.tally = Tally()
        self._settings, self._store, self._session, self._changed = settings, store, session, changed
        self._pieces = pieces
        self._socket_waker = Waker()
        self._batch: list[Received] = []
        self._bytes = 0
        self._waits = delays(settings.backoff_min_s, settings.backoff_max_s)

    def wake(self) -> None:
        """End the wait for the broker, too."""
        super().wake()
        self._socket_waker.wake()

    def step(self) -> float:
        """See ``Worker``: one connection, and how long to wait until the next."""
        began = time.monotonic()
        try:
            self._once()
        except DeliveryError as error:
            self.tally.error = error.message
            self.throttled.warn(str(error))
            if time.monotonic() - began > self._settings.backoff_max_s:
                self._waits = delays(self._settings.backoff_min_s, self._settings.backoff_max_s)
            return next(self._waits)
        finally:
            self.tally.connected = False
        return 0.0

    def _once(self) -> None:
        """One connection, until it is lost or ``stop`` is called."""
        self._clear()
        names = NAMES if self._pieces is None else (*NAMES, "evidence/+/+")
        filters = [f"{self._settings.prefix}/+/+/{name}" for name in names]
        connection = Connection.open(
            self._settings,
            self._session,
            self._socket_waker,
            subscription=Subscription(filters, self._hold, SESSION_EXPIRY_S, largest=LARGEST, at_once=2 * BATCH),
            cancelled=lambda: self.stopping,
        )
        with contextlib.closing(connection):
            self.tally.connects += 1
            self.tally.connected, self.tally.error = True, None
            while not self.stopping:
                self._gather(connection)
                if self._batch:
                    self._write(connection)

    def _hold(self, message: Received) -> bool:
        self._batch.append(message)
        self._bytes += len(message.payload)
        return False

    def _clear(self) -> None:
        self._batch, self._bytes = [], 0

    def _gather(self, connection: Connection) -> None:
        connection.pump(1.0)
        begun, known = time.monotonic(), 0
        while self._batch and len(self._batch) < BATCH and self._bytes < BATCH_BYTES:
            past = time.monotonic() - begun
            if past > GATHER_S and (past > LONGEST_GATHER_S or len(self._batch) == known):
                return
            known = len(self._batch)
            connection.pump(max(0.0, GATHER_S - past))

    def _write(self, connection: Connection) -> None:
        """Commit what was gathered, then acknowledge it."""
        now_ns = time.time_ns()
        self.tally.heard = time.monotonic()
        arrivals = []
        pieces = []
        for message in self._batch:
            if not message.payload:  # a stored value that is deleted, or a probe of `talus doctor`
                continue
            if message.topic.split("/")[-3:-2] == ["evidence"]:
                pieces.append(message)
                continue
            try:
                arrivals.append(self._checked(message, now_ns))
            except DataError as error:
                self._refuse(message.topic, error.message)
        try:
            changes = self._store_all(arrivals)
            changes += self._gather_records(pieces, now_ns)
        except DeliveryError:
            # The broker keeps what is not acknowledged, and sends it again with the next connection.
            self.pause(RETRY_S)
            raise
        connection.acknowledge(self._batch)
        self._clear()
        if changes:
            self._changed(changes)

    def _store_all(self, arrivals: Sequence[Arrival]) -> list[Change]:
        """Store a batch; where the database cannot hold it, half by half, so that only the one is refused.

        Raises:
            DeliveryError: the database takes nothing at present.
        """
        if not arrivals:
            return []
        try:
            changes = self._store.ingest(arrivals)
        except _UNFIT as error:
            if len(arrivals) == 1:
                self._refuse(arrivals[0].station, str(error))
                return []
            half = len(arrivals) // 2
            return self._store_all(arrivals[:half]) + self._store_all(arrivals[half:])
        self.tally.written += len(arrivals)
        return changes

    def _refuse(self, topic: str, why: str) -> None:
        self.tally.refused += 1
        parts = topic.removeprefix(f"{self._settings.prefix}/").split("/")
        known = _STATION.fullmatch(".".join(parts[:2])) is not None
        topic = topic[:200].encode("ascii", "backslashreplace").decode()
        # However many topics somebody invents, they make one line.
        self.throttled.warn(printable(f"refused a message on {topic}: {why}"), key=topic if known else "no station")

    def _gather_records(self, pieces: Sequence[Received], now_ns: int) -> list[Change]:
        """Records come after the events that announce them."""
        changes: list[Change] = []
        for message in pieces:
            if self._pieces is None:
                continue
            network, station, _, event, number = message.topic.split("/")[-5:]
            try:
                if not _STATION.fullmatch(sender := f"{network}.{station}"):
                    raise DataError("not the topic of a station")
                changes += self._pieces.take(sender, event, number, message.payload, now_ns)
            except _UNFIT as error:
                self._refuse(message.topic, str(error))
        return changes

    def _checked(self, message: Received, now_ns: int) -> Arrival:
        """The message if it is what its topic promises.

        Raises:
            DataError: it is not, or it speaks of another station, or of a time that cannot be.
        """
        parts = message.topic.removeprefix(f"{self._settings.prefix}/").split("/")
        if len(parts) != 3 or parts[2] not in NAMES:
            raise DataError("not a topic of Talus")
        network, station, name = parts
        code = f"{network}.{station}"
        if not _STATION.fullmatch(code):
            raise DataError("not the topic of a station")
        if name == "availability":
            word = message.payload[:40].decode("utf-8", "replace")
            if word not in (ONLINE, OFFLINE, STOPPED):
                raise DataError(f"{word!r} is not an availability")
            return Arrival(code, word, now_ns)
        body = parse(MODELS[name], message.payload)
        said = str(getattr(body, "station", ""))
        if not f"{said}.".startswith(f"{code}."):
            raise DataError(f"it says that it is from {said}")
        if isinstance(body, MinMaxMessage):
            unpack(Packed(body.count, body.scale, body.data))
        uid = str(getattr(body, "id", said))
        if not uid.startswith((f"{code}.", f"{code}-")) and uid != said:
            raise DataError(f"it is about {uid}, another station's")
        onset = next((time for name in ("onset", "time", "start") if (time := getattr(body, name, None))), None)
        if onset is not None and not _EARLIEST_NS <= parse_ns(onset) <= _LATEST_NS:
            raise DataError(f"its time {onset} cannot be")
        return Arrival(code, body, now_ns)
