"""Outbox and link together, for the commands that send: opened, drained and closed as one."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from agent.link import MqttLink
from agent.messages import Message
from agent.mqtt import Connection
from agent.outbox import Outbox
from agent.schema import LinkHealth, OutboxHealth
from agent.types import StationId
from agent.waker import Waker

if TYPE_CHECKING:
    from agent.mqtt_settings import MqttSettings


class Delivery:
    """A context manager; ``put`` returns when the messages are on disk."""

    def __init__(self, settings: MqttSettings, station: StationId, path: Path, max_mb: int = 200) -> None:
        self.path = path
        self.outbox = Outbox(path, max_mb * 1_000_000)
        self.link = MqttLink(settings, self.outbox, station)

    def __enter__(self) -> Delivery:
        self.link.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def put(self, messages: Sequence[Message]) -> None:
        """See ``Outbox.put``."""
        self.outbox.put(messages)

    def drain(self, timeout_s: float) -> int:
        """Wait until the broker has everything, at most ``timeout_s``; returns how many messages are left."""
        deadline = time.monotonic() + timeout_s
        while (left := self.outbox.stats().depth) and time.monotonic() < deadline:
            time.sleep(0.02)
        return left

    def close(self, timeout_s: float = 5.0) -> None:
        """Say ``stopped`` and end; what is unsent stays on disk."""
        self.link.stop(timeout_s)
        self.outbox.close()

    def health(self) -> tuple[OutboxHealth, LinkHealth]:
        """For the health message."""
        stats, status = self.outbox.stats(), self.link.status()
        return (
            OutboxHealth(
                depth=stats.depth,
                bytes=stats.bytes,
                oldest_s=round(stats.oldest_s, 1),
                dropped=stats.dropped,
                dead=stats.dead,
            ),
            LinkHealth(
                connected=status.connected,
                protocol=status.protocol,
                connects=status.connects,
                acknowledged=status.acknowledged,
                unheard=status.unheard,
                error=None if status.error is None else status.error[:500],
            ),
        )


def probe(settings: MqttSettings, station: StationId) -> str:
    """Connect once and say what was found; the client identifier is not the agent's, whose connection stays.

    Raises:
        DeliveryError: the broker does not accept the connection; the hint says what to do.
    """
    waker = Waker()
    try:
        connection = Connection.open(settings, f"talus-doctor-{station.short}-{os.getpid()}", waker)
        try:
            return f"{settings.address} accepts us, MQTT {connection.protocol}"
        finally:
            connection.close()
    finally:
        waker.close()
