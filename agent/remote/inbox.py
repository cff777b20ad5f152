"""Messages from the broker on their way to who judges them: few, small, and never a burden to the connection."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from agent.deliver.connection import Received
from agent.remote.envelope import MAX_BYTES

CAPACITY = 32
MAX_CORRELATION = 64
"""Bytes; longer correlation data are not given back."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """A message for ``name``; ``correlation`` goes back with the answer."""

    name: str
    payload: bytes
    correlation: bytes | None = None


class Inbox:
    """Filled by the link's thread, which never waits, and emptied by another."""

    def __init__(self, topics: Mapping[str, str], largest: int = MAX_BYTES) -> None:
        """``topics``: what is subscribed to, and its name here."""
        self._topics = dict(topics)
        self._largest = largest
        self._lock = threading.Lock()
        self._waiting: deque[Arrived] = deque()
        self.lost = 0
        """Messages that found no room, or were too large."""

    @property
    def topics(self) -> Collection[str]:
        """What to subscribe to."""
        return self._topics.keys()

    def offer(self, message: Received) -> bool:
        """Take it if it may be of interest; always True, as every message is acknowledged."""
        name = self._topics.get(message.topic)
        if name is None or not message.payload:
            return True
        with self._lock:
            if len(message.payload) > self._largest:
                self.lost += 1
                return True
            if len(self._waiting) >= CAPACITY:
                self.lost += 1
                self._waiting.popleft()  # a newer order replaces an older one, so the newest is what matters
            given = message.correlation
            correlation = given if given is not None and len(given) <= MAX_CORRELATION else None
            self._waiting.append(Arrived(name, message.payload, correlation))
        return True

    def take(self) -> Arrived | None:
        """The oldest, if there is one."""
        with self._lock:
            return self._waiting.popleft() if self._waiting else None
