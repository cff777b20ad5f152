"""Outbox and link together, for the commands that send: opened, drained and closed as one."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from agent.deliver.connection import Subscription
from agent.deliver.link import MqttLink
from agent.deliver.outbox import Outbox
from agent.deliver.reasons import reasons
from agent.detect.resume import JournalEntry, decode
from agent.errors import DataError
from agent.messages.payloads import Message, largest_alert
from agent.messages.schema import MOST_REFUSED, TEXT_LIMIT, LinkHealth, OutboxHealth, RefusedTopic
from agent.reasons import Reason
from agent.types import StationId

if TYPE_CHECKING:
    from agent.config.broker import MqttSettings

QUEUE_SHARE = 0.8
"""Of ``outbox.max_mb``, for messages; the rest is pages, write-ahead log and journal (see bench/spool.py)."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Undelivered:
    """What the broker does not have: ``waiting`` on disk for the next time, ``refused`` for good in this one, and why
    the link is down, or what it heard last."""

    waiting: int
    refused: int
    error: str | None


class Delivery:
    """``put`` returns when the messages are on disk; sending begins with ``link.start()``."""

    def __init__(
        self,
        settings: MqttSettings,
        station: StationId,
        path: Path,
        max_mb: int = 200,
        subscription: Subscription | None = None,
        *,
        voters: int = 0,
    ) -> None:
        """``voters``: how many stations an alert may name with their votes."""
        self.path = path
        self.prefix = settings.prefix
        self.outbox = Outbox(path, round(max_mb * 1e6 * QUEUE_SHARE))
        self.link = MqttLink(settings, self.outbox, station, subscription)
        self._set_aside = self.outbox.stats().set_aside_total
        self._alert_bytes = largest_alert(settings.prefix, voters)
        self._progress = (-1, 0.0)

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
        if self.link.alive:
            self.link.stop(timeout_s)
        stats, error = self.outbox.stats(), self.link.status().error
        self.outbox.close()
        return Undelivered(stats.depth, stats.set_aside_total - self._set_aside, error)

    @property
    def packet_limit(self) -> int | None:
        """Bytes of the largest packet that the broker takes, None while it has told no limit."""
        return self.link.status().packet_limit

    def health(self) -> tuple[OutboxHealth, LinkHealth, list[Reason]]:
        """For the health message: figures of the outbox and of the connection, and what is wrong with either.

        Raises:
            DeliveryError: the outbox cannot be read.
        """
        stats, status = self.outbox.stats(), self.link.status()
        return (
            OutboxHealth(
                depth=stats.depth,
                bytes=stats.bytes,
                oldest_s=round(stats.oldest_s, 1),
                dropped=stats.dropped,
                lost=stats.lost,
                set_aside=stats.set_aside,
                set_aside_total=stats.set_aside_total,
            ),
            LinkHealth(
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
            ),
            reasons(stats, status, self._alert_bytes),
        )
