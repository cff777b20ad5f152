"""What is known of the connection to the broker: what it has acknowledged and refused, and how it stands."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Refusal:
    """A topic that the broker refuses: why, how many messages in a row, and when first (monotonic clock, s)."""

    topic: str
    reason: str
    count: int
    since: float


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

    def lift(self, topic: str) -> None:
        """A message on this topic was acknowledged."""
        with self._lock:
            self._topics.pop(topic, None)

    def all(self) -> tuple[Refusal, ...]:
        """As of now, in the order of the first refusal."""
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
class LinkStatus:
    """``connected`` only after an accepted CONNACK; then for ``connected_s`` seconds, short interruptions included.
    ``answered``: whether this connection has acknowledged anything; ``unanswered``: how many before it, one after the
    other, did not. ``losses``: connections lost in the last ten minutes.

    ``unheard`` counts what the broker acknowledged with the remark that nobody subscribes to it (MQTT 5),
    ``unheard_alerts`` the alerts among it, the newest of them ``unheard_alert_s`` ago (None: the newest had a
    subscriber). ``refusals`` are the topics that the broker refuses now, ``packet_limit`` the size of the largest
    packet that it takes (None: it told no limit). ``orders``: whether it lets the station listen; ``ignored``: it sent
    more than can be held. ``error`` is why the link is down, or what the broker refused last."""

    connected: bool = False
    connected_s: float = 0.0
    answered: bool = False
    unanswered: int = 0
    losses: int = 0
    protocol: str | None = None
    connects: int = 0
    acknowledged: int = 0
    unheard: int = 0
    unheard_alerts: int = 0
    unheard_alert_s: float | None = None
    refused: int = 0
    refusals: tuple[Refusal, ...] = ()
    packet_limit: int | None = None
    orders: Literal["none", "heard", "refused", "ignored"] = "none"
    error: str | None = None
