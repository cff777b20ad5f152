"""One sink's place in the outbox: what it has had, what it has in its hands, and what is next."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.deliver.outbox_file import (
    CHOSEN,
    QUEUE,
    ROW_OVERHEAD,
    TOO_LARGE,
    count,
    is_sound,
    message_of,
    packet_bytes,
    put_back,
)
from agent.messages.payloads import Message, Priority
from agent.types import NS

if TYPE_CHECKING:
    from agent.deliver.outbox import Outbox

_LOOK_AHEAD = 8
"""Rows looked at for each one asked for, since all but the first of a key are passed over."""
_ASIDE_KEPT = 1000


@dataclass(frozen=True, slots=True)
class Entry:
    """A message handed out for sending; ``id`` names it to the outbox."""

    id: int
    message: Message


class Cursor:
    """From any thread; every method raises DeliveryError when the disk refuses.

    A message that was fetched is *out* until it is deleted, released or refused; while it is out, later ones of its
    priority and key are not handed out, unless it is acknowledged.
    """

    def __init__(self, outbox: Outbox, sink: str) -> None:
        self.sink = sink
        self.bit = 0
        self.depth_on_disk = 0
        """With what is acknowledged and not deleted."""
        self.out: dict[int, tuple[int, str]] = {}
        """Priority and key of what is out."""
        self._acknowledged: set[int] = set()
        self._outbox = outbox
        self._lock = outbox.lock
        self._oldest = (0, 0.0)
        """The message that has waited longest, and when it was first found to be that."""

    @property
    def depth(self) -> int:
        """How many messages wait (retained values apart)."""
        return self.depth_on_disk - len(self._acknowledged)

    def listen(self, callback: Callable[[], None]) -> None:
        """See ``Outbox.listen``."""
        self._outbox.listen(callback)

    def retained(self, after: int = 0) -> tuple[list[Message], int]:
        """See ``Outbox.retained``."""
        return self._outbox.retained(after)

    def fetch(self, limit: int, skip_topics: Collection[str] = (), skip_ids: Collection[int] = ()) -> list[Entry]:
        """Hand out up to ``limit`` messages in the order of sending.

        What is behind a message that is out (and not acknowledged) or skipped and has its priority and key is passed
        over.
        """

        def select(db: sqlite3.Connection) -> list[Entry]:
            rows = db.execute(
                f"SELECT id, priority, key FROM queue WHERE waiting & ? AND NOT topic {CHOSEN}"
                " ORDER BY priority, id LIMIT ?",
                (self.bit, json.dumps(list(skip_topics)), len(self.out) + len(skip_ids) + _LOOK_AHEAD * limit),
            ).fetchall()
            blocked = {name for row_id, name in self.out.items() if row_id not in self._acknowledged}
            chosen: dict[int, tuple[int, str]] = {}
            for row_id, priority, key in rows:
                name = (priority, key or str(row_id))
                if len(chosen) == limit or row_id in self.out:
                    continue
                if name not in blocked and row_id not in skip_ids:
                    chosen[row_id] = name
                blocked.add(name)
            entries = [self._entry(db, row_id) for row_id in chosen]
            self.out.update(chosen)
            return entries

        with self._lock:
            return self._outbox.read(select) if self.depth_on_disk > len(self.out) else []

    @staticmethod
    def _entry(db: sqlite3.Connection, row_id: int) -> Entry:
        row = db.execute("SELECT * FROM queue WHERE id = ?", (row_id,)).fetchone()
        if not is_sound("queue", row):
            raise sqlite3.DatabaseError(f"row {row_id} is damaged")
        return Entry(row_id, message_of(row))

    def acknowledge(self, ids: Collection[int]) -> None:
        """The other side has these: what is behind them may go. They stay on disk until ``delete``, but no longer count
        as waiting, and are handed out again after ``release`` or a restart."""
        with self._lock:
            self._acknowledged.update(row_id for row_id in ids if row_id in self.out)

    def delete(self, ids: Collection[int]) -> None:
        """The other side has these for good."""
        with self._lock:
            if ids:
                self._forget(ids, *self._outbox.write(lambda db: self._clear(db, ids), "NORMAL"))

    def delete_acknowledged(self) -> None:
        """Delete what is acknowledged, to make room."""
        self.delete(list(self._acknowledged))

    def release(self, ids: Collection[int]) -> None:
        """These were not acknowledged: they may be handed out again."""
        with self._lock:
            for row_id in ids:
                self.out.pop(row_id, None)
                self._acknowledged.discard(row_id)

    def refuse(self, row_id: int, code: int, reason: str) -> None:
        """Set this one aside: the broker refuses it for good, with the MQTT 5 reason ``code``. A thousand are kept;
        beyond that the oldest that matters least is dropped."""

        def move(db: sqlite3.Connection) -> tuple[int, int]:
            columns = QUEUE.replace("waiting", "?")
            db.execute(
                f"INSERT OR REPLACE INTO set_aside SELECT {columns}, ?, ?, ? FROM queue WHERE id = ?",
                (self.bit, code, reason, time.time_ns(), row_id),
            )
            surplus = db.execute(
                "SELECT id, priority FROM set_aside ORDER BY priority, id DESC LIMIT -1 OFFSET ?", (_ASIDE_KEPT,)
            ).fetchall()
            db.executemany("DELETE FROM set_aside WHERE id = ?", [(row,) for row, _ in surplus])
            lost = sum(priority != Priority.OTHER for _, priority in surplus)
            count(db, set_aside=1, dropped=len(surplus), lost=lost)
            return self._clear(db, (row_id,))

        with self._lock:
            self._forget((row_id,), *self._outbox.write(move, "FULL"))

    def requeue(self, packet_limit: int | None) -> int:
        """Put what was set aside as too large back into the queue, where packets of ``packet_limit`` bytes (None: of
        any size) now hold it; returns how many messages."""

        def move(db: sqlite3.Connection) -> int:
            rows = db.execute("SELECT id, topic, payload, correlation FROM set_aside WHERE code = ?", (TOO_LARGE,))
            fitting = [
                row_id
                for row_id, topic, payload, correlation in rows
                if packet_limit is None or packet_bytes(topic, payload, correlation) <= packet_limit
            ]
            return put_back(db, fitting)

        with self._lock:
            moved = self._outbox.write(move, "FULL")
            if moved:
                self._outbox.read(self._outbox.recount)
        return moved

    def oldest_s(self) -> float:
        """For how long the oldest message has waited, also where the machine's clock was set back meanwhile."""

        def select(db: sqlite3.Connection) -> tuple[int, int] | None:
            row: tuple[int, int] | None = db.execute(
                f"SELECT id, put_ns FROM queue WHERE waiting & ? AND NOT id {CHOSEN} ORDER BY id LIMIT 1",
                (self.bit, json.dumps(list(self._acknowledged))),
            ).fetchone()
            return row

        with self._lock:
            oldest = self._outbox.read(select)
            if oldest is None:
                return 0.0
            row_id, put_ns = oldest
            if row_id != self._oldest[0]:
                self._oldest = row_id, time.monotonic()
            return max((time.time_ns() - put_ns) / NS, time.monotonic() - self._oldest[1])

    def _clear(self, db: sqlite3.Connection, ids: Collection[int]) -> tuple[int, int]:
        """Clear this sink's bit in rows, and delete those that no sink waits for: how many had it, and bytes freed."""
        chosen = json.dumps(list(ids))
        rows, freed = db.execute(
            "SELECT count(*), coalesce(sum(CASE WHEN waiting = ? THEN length(payload) + ? END), 0) FROM queue"
            f" WHERE id {CHOSEN} AND waiting & ?",
            (self.bit, ROW_OVERHEAD, chosen, self.bit),
        ).fetchone()
        gone = db.execute(f"DELETE FROM queue WHERE id {CHOSEN} AND waiting = ?", (chosen, self.bit)).rowcount
        if gone < rows:
            db.execute(
                f"UPDATE queue SET waiting = waiting & ~? WHERE id {CHOSEN} AND waiting & ?",
                (self.bit, chosen, self.bit),
            )
        return int(rows), int(freed)

    def _forget(self, ids: Collection[int], rows: int, freed: int) -> None:
        self.release(ids)
        self.depth_on_disk -= rows
        self._outbox.freed(freed)
