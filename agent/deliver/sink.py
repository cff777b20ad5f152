"""A sink: a way out for messages. Each has its own ``Cursor`` in the outbox, and takes from it what it has not had.

MQTT is one (``agent.deliver.mqtt``). One whose other side has a batch of messages when a function returns, such as a
file, an SMS modem or a serial line, is a ``BatchSink``: it writes that function.
"""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import Protocol

from agent.backoff import ThrottledLog, delays
from agent.deliver.outbox import Cursor
from agent.errors import TalusError, in_words
from agent.messages.payloads import Message
from agent.reasons import Reason
from agent.types import waiting

MOST_UNSTORED = 1000
_BATCH = 100
_LOOK_S = 1.0
HANGS_S = 30.0
"""A batch that takes longer is told of: the disk or the other side hangs."""
_WAIT_S = (0.5, 60.0)
"""Shortest and longest wait before a batch that failed is written again."""

_log = logging.getLogger(__name__)


class Sink(Protocol):
    """What every sink does; tests/contract/test_sinks.py holds each to it.

    What is in the outbox is delivered at least once, also after a kill; messages of one priority and key in their
    order; a copy is the same message. While the other side is away, nothing is lost and no other sink waits. Of a
    retained message only the newest counts. ``start`` and ``stop`` are called once, the rest from any thread.
    """

    @property
    def alive(self) -> bool:
        """Whether its thread runs: it ends only by ``stop``, or by a fault of the agent itself."""
        ...

    def start(self) -> None:
        """Begin to deliver; returns at once."""
        ...

    def stop(self, timeout_s: float = 5.0) -> bool:
        """Deliver what can be delivered within ``timeout_s``, and end; True if nothing is left."""
        ...

    def publish_retained(self, message: Message) -> None:
        """Deliver a latest value (state, health) that is not in the outbox."""
        ...

    def send_now(self, message: Message) -> None:
        """Deliver what could not be put on disk, before all else."""
        ...

    def reasons(self) -> list[Reason]:
        """Why what is sent may not arrive."""
        ...


class Retained:
    """The newest retained message of each topic, and which of them have not been published yet. From any thread."""

    def __init__(self, cursor: Cursor) -> None:
        self._lock = threading.Lock()
        self._cursor, self._version = cursor, 0
        self._messages: dict[str, Message] = {}
        self._stale: set[str] = set()

    def put(self, message: Message) -> None:
        """A newer value."""
        with self._lock:
            self._messages[message.topic] = message
            self._stale.add(message.topic)

    def look_up(self) -> None:
        """Add the newer values of the outbox.

        Raises:
            DeliveryError: it cannot be read.
        """
        newer, self._version = self._cursor.retained(self._version)
        for message in newer:
            self.put(message)

    def all_stale(self) -> None:
        """A new connection: the other side may have forgotten everything."""
        with self._lock:
            self._stale.update(self._messages)

    def drop(self, topic: str) -> None:
        """There is no value of this topic any more."""
        with self._lock:
            self._messages.pop(topic, None)
            self._stale.discard(topic)

    def again(self, topic: str) -> None:
        """This one was refused."""
        with self._lock:
            self._stale.add(topic)

    def fetch(self, limit: int, skip: Collection[str] = ()) -> list[Message]:
        """Hand out up to ``limit`` values that are to be published; they count as published."""
        with self._lock:
            topics = [topic for topic in self._messages if topic in self._stale and topic not in skip][:limit]
            self._stale.difference_update(topics)
            return [self._messages[topic] for topic in topics]


class UnstoredAlerts:
    """Alerts that the disk refused, in order. Each stays until it is acknowledged; what is beyond ``MOST_UNSTORED``
    waits for the disk alone. From any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._messages: list[Message] = []

    def put(self, message: Message) -> None:
        """One more."""
        with self._lock:
            if len(self._messages) < MOST_UNSTORED:
                self._messages.append(message)

    def first(self, skip: Collection[str] = ()) -> Message | None:
        """The oldest whose topic is not to be skipped."""
        with self._lock:
            return next((message for message in self._messages if message.topic not in skip), None)

    def done(self, message: Message) -> None:
        """The other side has it, or will never take it."""
        with self._lock:
            self._messages.remove(message)


class BatchSink(ABC):
    """A sink with a thread that hands batches to ``write``. What fails is written again, after a wait that doubles."""

    def __init__(self, cursor: Cursor) -> None:
        self._cursor = cursor
        self._retained, self._unstored = Retained(cursor), UnstoredAlerts()
        self._written: list[int] = []
        """Rows of the outbox that are written, and not deleted there yet."""
        self._wake, self._stopping, self._stop_at = threading.Event(), threading.Event(), 0.0
        self._error: str | None = None
        self._writing_since: float | None = None
        self._throttled = ThrottledLog(_log.warning)
        self._thread = threading.Thread(target=self._run, name=f"sink-{cursor.sink}", daemon=True)
        cursor.listen(self._wake.set)

    @abstractmethod
    def write(self, messages: Sequence[Message]) -> None:
        """Write the messages in this order; the other side has them when it returns.

        Raises:
            OSError, TalusError: it has some of them, or none.
        """

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> bool:
        self._stop_at = time.monotonic() + 0.8 * timeout_s
        self._stopping.set()
        self._wake.set()
        self._thread.join(timeout_s)
        return self._cursor.depth == 0

    def publish_retained(self, message: Message) -> None:
        self._retained.put(message)
        self._wake.set()

    def send_now(self, message: Message) -> None:
        self._unstored.put(message)
        self._wake.set()

    def reasons(self) -> list[Reason]:
        error, name, since = self._error, self._cursor.sink, self._writing_since
        if since is not None and (waited_s := time.monotonic() - since) > HANGS_S:
            error = f"what was begun {waited_s:.0f} s ago is not written yet"
        if error is None:
            return []
        return [Reason("output_failed", f"outputs.{name}: {error}; {waiting(self._cursor.depth)}", name)]

    def _run(self) -> None:
        waits = delays(*_WAIT_S)
        while not (self._stopping.is_set() and time.monotonic() >= self._stop_at):
            self._wake.clear()
            try:
                more = self._step()
            except (OSError, TalusError) as error:
                self._error = in_words(error)
                self._throttled.warn(f"outputs.{self._cursor.sink}: {error}", key="failed")
                if self._stopping.wait(next(waits)):
                    return
                continue
            self._error, waits = None, delays(*_WAIT_S)
            if not more:
                if self._stopping.is_set():
                    return
                self._wake.wait(_LOOK_S)

    def _step(self) -> bool:
        """Write one batch; whether there may be more."""
        if self._written:
            self._cursor.delete(self._written)
            self._written = []
        if (alert := self._unstored.first()) is not None:
            self._write([alert])
            self._unstored.done(alert)
            return True
        self._retained.look_up()
        values = self._retained.fetch(_BATCH)
        entries = self._cursor.fetch(_BATCH)
        ids = [entry.id for entry in entries]
        try:
            if values or entries:
                self._write([*(entry.message for entry in entries), *values])
        except BaseException:
            self._cursor.release(ids)
            for message in values:
                self._retained.again(message.topic)
            raise
        self._cursor.acknowledge(ids)
        self._written = ids
        return bool(values or entries)

    def _write(self, messages: Sequence[Message]) -> None:
        self._writing_since = time.monotonic()
        try:
            self.write(messages)
        finally:
            self._writing_since = None
