"""Echoes: with MQTT 3.1.1 the station listens to itself, as the broker does not say what it refuses.

A broker of MQTT 3.1.1 acknowledges also what its access list forbids, and drops it. What it hands back to the station
was published; what does not come back may have been dropped, or the station may not read there. So the station
subscribes to each topic of ``WATCHED`` before the first message on it, and looks for every message:

- something has come back on this connection (the station *hears* itself): a message counts as acknowledged when it is
  back, and one that is not back after ``ECHO_S`` counts as refused;
- nothing has come back, or the subscription was refused: nothing can be told. The acknowledgement counts, so that
  nothing is delayed and nobody gets copies again and again, but the topic is named (``unseen``), and alerts stay on
  disk as *kept* (other messages for ``ECHO_S``): they are sent once more when the station hears itself, or when MQTT 5
  tells.

With MQTT 5 nothing of this is needed, and nothing is done.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field
from typing import Generic, Literal, Protocol, TypeVar

from agent.deliver.connection import Connection, Received

WATCHED = frozenset({"state", "health", "event", "alert"})
"""Last levels of the topics that are listened to: two that are sent at every connect and all the time, and those that
matter."""
ECHO_S = 10.0
"""How long a message may take to come back after its acknowledgement, or as long as that took."""
MOST_KEPT = 256
"""Alerts, and as many other messages, that may have been dropped and are kept."""
KEPT_S = 86_400.0
"""How long alerts are."""
HANG_UPS = 3
"""Connections in a row that end before a subscription is answered: the broker hangs up on it."""
PAUSE_S = 3600.0
"""Then nothing is subscribed to for so long."""
_MOST_EXPECTED = 4096


class Sent(Protocol):
    """A message that was handed to the connection."""

    @property
    def topic(self) -> str: ...
    @property
    def at(self) -> float:
        """When (monotonic clock, s)."""
        ...

    @property
    def echo(self) -> bytes | None:
        """What `Echoes.expect` returned."""
        ...

    @property
    def row(self) -> int | None:
        """Row in the outbox; None: it is not from there."""
        ...

    @property
    def is_alert(self) -> bool: ...


_S = TypeVar("_S", bound=Sent)


@dataclass(slots=True)
class Resolved(Generic[_S]):
    """What has become of messages that were acknowledged. ``back``: they came back; ``dropped``: they did not.
    Rows that were kept: ``proven`` came back, ``again`` are to be sent again, ``expired`` are given up."""

    back: list[_S] = field(default_factory=list)
    dropped: list[_S] = field(default_factory=list)
    proven: list[int] = field(default_factory=list)
    again: list[int] = field(default_factory=list)
    expired: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Kept:
    digest: bytes
    topic: str
    since: float
    """When it was acknowledged (monotonic clock, s)."""
    is_alert: bool


class Echoes(Generic[_S]):
    """Owned by the network thread, for the life of the process; ``unseen`` and ``kept`` may be read from any thread."""

    def __init__(self) -> None:
        self._connection: Connection | None = None
        self._hears = False
        self._expected: dict[bytes, str] = {}
        """Topics of what was sent and has not come back, by digest."""
        self._back: set[bytes] = set()
        self._awaited: dict[bytes, tuple[_S, float]] = {}
        """Acknowledged, and until when it may come back."""
        self._unknown: dict[bytes, tuple[_S, float]] = {}
        """The same, of what counts as acknowledged."""
        self._kept: dict[int, _Kept] = {}
        """What may have been dropped, by row: alerts, and other messages as long as they may come back."""
        self._hang_ups = 0
        self._paused_until = 0.0
        self.unseen: tuple[str, ...] = ()
        """Topics of which nothing comes back, while nothing can be told."""

    @property
    def kept(self) -> int:
        """How many alerts are kept that may have been dropped."""
        return sum(kept.is_alert for kept in tuple(self._kept.values()))

    def begin(self, connection: Connection) -> list[int]:
        """A new connection; returns rows that are to be sent again, as this one tells what it refuses."""
        self._connection, self._hears = connection, False
        self._expected.clear()
        self._back.clear()
        self._unknown.clear()
        if connection.protocol != "5":
            return []
        again = list(self._kept)
        self._kept.clear()
        self.unseen = ()
        return again

    def end(self) -> list[_S]:
        """The connection is lost, or will be closed: what was acknowledged and has not come back."""
        connection, awaited = self._connection, [sent for sent, _ in self._awaited.values()]
        self._awaited.clear()
        if connection is not None and connection.unanswered:
            self._hang_ups += 1
            if self._hang_ups >= HANG_UPS:
                self._hang_ups, self._paused_until = 0, time.monotonic() + PAUSE_S
        elif connection is not None and connection.listens:
            self._hang_ups = 0
        self._connection = None
        return awaited

    def pause(self) -> None:
        """What comes in is more than can be held: subscribe to nothing for a while."""
        self._paused_until = time.monotonic() + PAUSE_S

    def expect(self, topic: str, payload: bytes) -> bytes | None:
        """This will be sent next: listen to its topic. Returns what names it here, None where nothing is expected."""
        connection = self._connection
        if connection is None or connection.protocol == "5" or topic.rsplit("/", 1)[-1] not in WATCHED:
            return None
        if time.monotonic() >= self._paused_until and len(payload) + len(topic) < connection.largest_incoming:
            connection.listen(topic, self._on_message)
        digest = hashlib.blake2b(topic.encode() + b"\0" + payload, digest_size=16).digest()
        self._expected[digest] = topic
        if len(self._expected) > _MOST_EXPECTED:
            self._forget(next(iter(self._expected)))
        return digest

    def _on_message(self, message: Received) -> None:
        """What the broker stored earlier proves nothing."""
        digest = hashlib.blake2b(message.topic.encode() + b"\0" + message.payload, digest_size=16).digest()
        connection = self._connection
        if message.retain or digest not in self._expected or connection is None:
            return
        self._back.add(digest)
        if not self._hears:
            # What of the rest comes back, the next message on each topic shows.
            self._hears = True
            self.unseen = tuple(name for name in self.unseen if name in connection.not_granted)
        self._confirm(message.topic)

    def _confirm(self, topic: str) -> None:
        self.unseen = tuple(name for name in self.unseen if name != topic)

    def _hears_on(self, topic: str) -> bool:
        return self._hears and self._connection is not None and topic in self._connection.listens

    def acknowledged(self, sent: _S) -> Literal["back", "awaited", "unknown"]:
        """The broker has acknowledged it: whether it is back, will be told by `resolve`, or counts as acknowledged."""
        if sent.echo is None:
            return "back"
        if sent.echo in self._back:
            self._forget(sent.echo)
            return "back"
        now = time.monotonic()
        due = now + max(ECHO_S, now - sent.at)
        if self._hears_on(sent.topic):
            self._awaited[sent.echo] = (sent, due)
            return "awaited"
        self._unknown[sent.echo] = (sent, due)
        if sent.row is not None:
            self._kept[sent.row] = _Kept(sent.echo, sent.topic, now, sent.is_alert)
        return "unknown"

    def busy(self, most: int, refused: set[str]) -> list[str]:
        """Topics on which so much is awaited that no more is to be sent: one message where the topic is ``refused``."""
        counts: dict[str, int] = {}
        for sent, _ in self._awaited.values():
            counts[sent.topic] = counts.get(sent.topic, 0) + 1
        return [topic for topic, number in counts.items() if number >= (1 if topic in refused else most)]

    @property
    def awaited(self) -> list[_S]:
        """What is acknowledged, and will count when it is back."""
        return [sent for sent, _ in self._awaited.values()]

    def is_kept(self, row: int) -> bool:
        """Whether this row must stay on disk although it counts as acknowledged."""
        return row in self._kept

    def release(self, rows: list[int]) -> None:
        """These will be sent again for another reason."""
        for row in rows:
            self._kept.pop(row, None)

    def doubt(self, topic: str) -> None:
        """Nothing of this topic comes back."""
        if topic not in self.unseen:
            self.unseen = (*self.unseen, topic)

    def resolve(self) -> Resolved[_S]:
        """What has become known since the last call."""
        found: Resolved[_S] = Resolved()
        if not self._awaited and not self._unknown and not self._kept:
            return found
        now = time.monotonic()
        for digest in [digest for digest in self._awaited if digest in self._back]:
            found.back.append(self._awaited.pop(digest)[0])
            self._forget(digest)
        for digest in [digest for digest, (_, due) in self._awaited.items() if now > due]:
            # Should it come back later, its next copy is known to have been published.
            sent, _ = self._awaited.pop(digest)
            found.dropped.append(sent)
            self._confirm(sent.topic)
        for row in [row for row, kept in self._kept.items() if kept.digest in self._back]:
            found.proven.append(row)
            del self._kept[row]
        for digest in [digest for digest in self._unknown if digest in self._back]:
            self._forget(digest)
            del self._unknown[digest]
        for digest in [digest for digest, (_, due) in self._unknown.items() if now > due]:
            sent, _ = self._unknown.pop(digest)
            if not self._hears_on(sent.topic):
                self.doubt(sent.topic)
        self._resolve_kept(found, now)
        return found

    def _resolve_kept(self, found: Resolved[_S], now: float) -> None:
        pending = {sent.row for sent, _ in self._unknown.values()}
        surplus = {
            alerts: sum(k.is_alert == alerts for k in self._kept.values()) - MOST_KEPT for alerts in (True, False)
        }
        for row, kept in list(self._kept.items()):
            if surplus[kept.is_alert] > 0 or now - kept.since > KEPT_S:
                found.expired.append(row)
            elif row not in pending and self._may_hear(kept.topic, now):
                found.again.append(row)
            elif row not in pending and not kept.is_alert:
                found.expired.append(row)
            else:
                continue
            surplus[kept.is_alert] -= 1
            del self._kept[row]

    def _may_hear(self, topic: str, now: float) -> bool:
        """Whether a message on this topic would show what becomes of it."""
        connection = self._connection
        if connection is None or now < self._paused_until:
            return False
        return self._hears and topic not in connection.not_granted

    def _forget(self, digest: bytes) -> None:
        self._back.discard(digest)
        self._expected.pop(digest, None)
