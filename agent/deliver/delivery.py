"""Outbox and sinks together, for the commands that send: opened, drained and closed as one."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.config.broker import DEFAULT_PREFIX
from agent.deliver.connection import Subscription
from agent.deliver.file import FileSink
from agent.deliver.mqtt import MqttSink
from agent.deliver.outbox import MAIN, Cursor, Outbox
from agent.deliver.reasons import LinkStatus, of_outbox
from agent.deliver.sink import Sink
from agent.detect.resume import JournalEntry, decode
from agent.errors import DataError
from agent.messages.payloads import Message
from agent.messages.schema import MOST_REFUSED, TEXT_LIMIT, LinkHealth, OutboxHealth, RefusedTopic
from agent.reasons import Reason
from agent.types import StationId

if TYPE_CHECKING:
    from agent.config.broker import MqttSettings
    from agent.config.outputs import OutputsConfig

QUEUE_SHARE = 0.8
"""Share of ``outbox.max_mb`` for messages; the rest is pages, write-ahead log and journal (bench/delivery.py, week)."""

SINKS: Mapping[str, Callable[[Any, Cursor], Sink]] = {"file": FileSink}
"""The sink of each section of ``outputs``."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Undelivered:
    """What the broker does not have: ``waiting`` on disk for the next time, ``refused`` for good in this one, and why
    the link is down, or what it heard last."""

    waiting: int
    refused: int
    error: str | None


class Delivery:
    """``put`` returns when the messages are on disk; sending begins with ``start``."""

    def __init__(
        self,
        settings: MqttSettings | None,
        station: StationId,
        path: Path,
        max_mb: int = 200,
        subscription: Subscription | None = None,
        *,
        voters: int = 0,
        outputs: OutputsConfig | None = None,
    ) -> None:
        """``settings``: the broker's, None for none; ``voters``: how many stations an alert may name with their votes;
        ``outputs``: ways out beside the broker."""
        self.path = path
        self.prefix = settings.prefix if settings else DEFAULT_PREFIX
        wanted = [(name, section) for name, section in outputs or () if section is not None]
        names = [*([MAIN] if settings else []), *(name for name, _ in wanted)]
        self.outbox = Outbox(path, round(max_mb * 1e6 * QUEUE_SHARE), names)
        self.mqtt = (
            MqttSink(settings, self.outbox.cursor(MAIN), station, subscription, voters=voters) if settings else None
        )
        self._sinks: dict[str, Sink] = {MAIN: self.mqtt} if self.mqtt else {}
        for name, section in wanted:
            self._sinks[name] = SINKS[name](section, self.outbox.cursor(name))
        self._set_aside = self.outbox.stats().set_aside_total
        self._progress = (-1, 0.0)

    def start(self) -> None:
        """Begin to send; returns at once."""
        for sink in self._sinks.values():
            sink.start()

    @property
    def failed_sink(self) -> str | None:
        """The first sink whose thread has ended although nobody stopped it."""
        return next((name for name, sink in self._sinks.items() if not sink.alive), None)

    def publish_retained(self, message: Message) -> None:
        """Publish a latest value (state, health) that is not in the outbox."""
        for sink in self._sinks.values():
            sink.publish_retained(message)

    def send_now(self, message: Message) -> None:
        """Send what could not be put on disk, before all else."""
        for sink in self._sinks.values():
            sink.send_now(message)

    @property
    def connected(self) -> bool:
        """Whether there is a connection to the broker."""
        return self.mqtt is not None and self.mqtt.status().connected

    def put(self, messages: Sequence[Message]) -> None:
        """See ``Outbox.put``."""
        self.outbox.put(messages)

    def past(self) -> list[JournalEntry]:
        """What earlier runs told, oldest first; records that cannot be read are passed over."""
        found = []
        for record in self.outbox.journal():
            try:
                found.append(decode(record))
            except DataError as error:
                _log.warning("%s: %s", self.path, error)
        return found

    def drained(self, patience_s: float) -> bool:
        """Whether the broker has everything, or has taken nothing for ``patience_s`` although it was asked again and
        again."""
        depth, now = self.outbox.depth, time.monotonic()
        if depth != self._progress[0]:
            self._progress = depth, now
        return depth == 0 or now - self._progress[1] >= patience_s

    def drain(self, patience_s: float) -> None:
        """Wait until ``drained``."""
        while not self.drained(patience_s):
            time.sleep(0.02)

    def close(self, timeout_s: float = 5.0) -> Undelivered:
        """Say ``stopped`` and end; what is unsent stays on disk."""
        stoppers = [threading.Thread(target=one.stop, args=(timeout_s,)) for one in self._sinks.values() if one.alive]
        for thread in stoppers:
            thread.start()
        for thread in stoppers:
            thread.join()
        stats, error = self.outbox.close(), self.mqtt.status().error if self.mqtt else None
        return Undelivered(stats.depth, stats.set_aside_total - self._set_aside, error)

    @property
    def packet_limit(self) -> int | None:
        """Bytes of the largest packet that the broker takes, None while it has told no limit."""
        return self.mqtt.status().packet_limit if self.mqtt else None

    def health(self) -> tuple[OutboxHealth, LinkHealth | None, list[Reason]]:
        """For the health message: figures of the outbox and of the connection, and what is wrong with any sink.

        Raises:
            DeliveryError: the outbox cannot be read.
        """
        stats, status = self.outbox.stats(), self.mqtt.status() if self.mqtt else None
        found = [reason for sink in self._sinks.values() for reason in sink.reasons()]
        outbox = OutboxHealth(
            depth=stats.depth,
            bytes=stats.bytes,
            oldest_s=round(stats.oldest_s, 1),
            dropped=stats.dropped,
            lost=stats.lost,
            set_aside=stats.set_aside,
            set_aside_total=stats.set_aside_total,
        )
        return outbox, None if status is None else _link_health(status), [*found, *of_outbox(stats, status)]


def _link_health(status: LinkStatus) -> LinkHealth:
    return LinkHealth(
        connected=status.connected,
        protocol=status.protocol,
        connects=status.connects,
        acknowledged=status.acknowledged,
        unheard=status.unheard,
        unheard_alerts=status.unheard_alerts,
        packet_limit=status.packet_limit,
        refused=[
            RefusedTopic(topic=one.topic, reason=one.reason[:TEXT_LIMIT], count=one.count)
            for one in status.refusals[:MOST_REFUSED]
        ],
        error=None if status.error is None else status.error[:TEXT_LIMIT],
    )
