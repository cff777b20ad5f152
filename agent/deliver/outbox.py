"""The outbox: a message is on disk before it is sent, and leaves the disk after the broker's acknowledgement.

SQLite in WAL mode. ``put`` commits with ``synchronous=FULL``, so that what it returned from survives a power cut; the
deletion after an acknowledgement commits with ``NORMAL``, because losing it costs only a duplicate, which receivers
recognise. A lock file beside it keeps other agents away. ``talus outbox`` reads the file meanwhile, and sends again or
deletes what was set aside (``agent.deliver.set_aside``); `stats` notices that.

A message that the broker refuses for good is set aside: it stays in the table ``set_aside`` until an operator sends it
again or drops it, or until a broker takes packets of its size.

Deletion waits a moment longer (``settle``, ``done``): what a broker acknowledged just before it crashed is sent again.

The order of sending is alerts, events, the rest; among messages of one priority and key it is the order of ``put``, and
the next one is not handed out before the one before it is acknowledged. When the outbox is full, the oldest messages go
in this order: the rest, superseded revisions (``expendable``), events, and alerts only when nothing else is left.

The journal beside the queue keeps what the next run of the agent must know (``Message.journal``), the newest 4096
records; each is committed together with its message.

A file that SQLite calls corrupt, or that holds what was never put, is moved aside, what can still be read is carried
over, and a fresh one takes its place. SQLite has no checksums: a bit that flipped in a row shows only when it is read.

On a disk that is read-only, or too full for the file, the outbox is in memory: it begins with what can be read from the
disk, and ends with the process. What was on the disk and acknowledged meanwhile is sent again from there: as copies.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, TypeVar

from agent.backoff import ThrottledLog
from agent.deliver.outbox_file import (
    DAMAGE,
    ROW_OVERHEAD,
    SCHEMA,
    TOO_LARGE,
    VERSION,
    add_dropped,
    check_version,
    corrupt_files,
    delete,
    is_corruption,
    is_sound,
    locked,
    mapped,
    packet_bytes,
    put_back,
    readable,
    readable_journal,
    readable_retained,
    row_bytes,
)
from agent.errors import DeliveryError
from agent.host.disk import readable_copy, refuses
from agent.messages.payloads import Message, Priority
from agent.types import NS

_LOOK_AHEAD = 8
"""Rows looked at for each one asked for, since all but the first of a key are passed over."""

_ASIDE_KEPT = 1000
_JOURNAL_KEPT = 4096
_CHECK_LIMIT = 64 * 1024 * 1024
_MOST_IN_MEMORY = 16 * 1024 * 1024

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Entry:
    """A message handed out for sending; ``id`` names it to the outbox."""

    id: int
    message: Message
    put_ns: int


@dataclass(frozen=True, slots=True)
class OutboxStats:
    """What waits, and what was lost.

    ``depth`` messages of ``bytes`` (of ``max_bytes``) wait, the oldest since ``oldest_s``. ``dropped`` counts what was
    dropped for want of room since the file was made, ``lost`` the events and alerts among it, the last one
    ``lost_age_s`` ago (None: never). ``set_aside`` messages, among them ``set_aside_alerts``, were refused for good by
    the broker, the last one for ``set_aside_reason``; ``set_aside_total`` counts since the file was made.
    ``moved_aside`` are the corrupt files in the folder. ``in_memory`` is what the disk says that takes nothing, where
    messages are kept in memory (None: they are on disk).
    """

    depth: int
    bytes: int
    max_bytes: int
    oldest_s: float
    dropped: int
    lost: int
    lost_age_s: float | None
    set_aside: int
    set_aside_alerts: int
    set_aside_reason: str
    set_aside_total: int
    moved_aside: tuple[Path, ...]
    in_memory: str | None = None


class Outbox:
    """See the module. Every method may be called from any thread.

    Every method raises DeliveryError when the disk refuses (full, read-only, gone); nothing is changed then and the
    call may be repeated.
    """

    def __init__(self, path: Path, max_bytes: int = 256 * 1024 * 1024) -> None:
        """Open or make the file. ``max_bytes`` bounds the queue (payloads and rows; the file is somewhat larger)."""
        self.path = path
        self._max_bytes = max_bytes
        self._lock = threading.RLock()
        self._listeners: list[Callable[[], None]] = []
        self._taken: dict[int, tuple[int, str]] = {}
        self._settled: set[int] = set()
        self._highest_taken = 0
        self._throttled = ThrottledLog(_log.error)
        self._depth = self._bytes = self._version = self._data_version = 0
        self._counters: dict[str, int] = {}
        self._lock_file: IO[bytes] | None = None
        self._in_memory: str | None = None
        """Why the messages are kept in memory; None where they are on disk."""
        self._oldest = (0, 0.0)
        """The message that has waited longest, and when it was first found to be that."""
        with mapped(path):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._lock_file = locked(path)
                self._db = self._open(path)
            except (OSError, *DAMAGE) as error:
                if refuses(error):
                    self._work_in_memory(error)
                elif is_corruption(error):
                    self._replace(error)
                else:
                    raise

    @property
    def depth(self) -> int:
        """How many messages wait (retained values apart)."""
        return self._depth - len(self._settled)

    def listen(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` after every `put`, in the putting thread: it must return at once."""
        self._listeners.append(callback)

    def put(self, messages: Sequence[Message]) -> None:
        """Commit the messages to disk, all or none, in one transaction.

        Raises:
            DeliveryError: the disk refused, or a message is larger than the whole outbox.
        """
        now = time.time_ns()
        size = sum(row_bytes(message.payload) for message in messages if not message.retain)
        if size > self._max_bytes:
            raise DeliveryError(
                f"{size} bytes do not fit into an outbox of {self._max_bytes}", "raise the size of the outbox"
            )

        def insert(db: sqlite3.Connection) -> tuple[int, int, int]:
            for message in messages:
                if message.retain:
                    db.execute(
                        "INSERT OR REPLACE INTO retained VALUES (?, ?, ?)",
                        (message.topic, message.payload, self._version + 1),
                    )
            db.executemany(
                "INSERT INTO queue(priority, key, topic, payload, expendable, expiry_s, put_ns, correlation)"
                " VALUES (?,?,?,?,?,?,?,?)",
                [
                    (int(m.priority), m.key, m.topic, m.payload, m.expendable, m.expiry_s, now, m.correlation)
                    for m in messages
                    if not m.retain
                ],
            )
            records = [(m.journal,) for m in messages if m.journal is not None]
            if records:
                db.executemany("INSERT INTO journal(record) VALUES (?)", records)
                db.execute("DELETE FROM journal WHERE id <= (SELECT max(id) FROM journal) - ?", (_JOURNAL_KEPT,))
            return self._make_room(db, size)

        with self._lock:
            if self._bytes + size > self._max_bytes:
                self.done(list(self._settled))
            rows, freed, events = self._write(insert, "FULL")
            self._version += 1
            self._depth += sum(not message.retain for message in messages) - rows
            self._bytes += size - freed
            if rows:
                self._count(dropped=rows, lost=events, lost_ns=now if events else 0)
        if rows:
            total = self._counters["dropped"]
            kinds = f"{rows} messages, {events} of them events or alerts; {total} since the file was made"
            self._throttled.warn(f"outbox {self.path} is full: dropped {kinds}", key="full")
        for listener in self._listeners:
            listener()

    def take(self, limit: int, skip_topics: Collection[str] = (), skip_ids: Collection[int] = ()) -> list[Entry]:
        """Hand out up to ``limit`` messages in the order of sending; each is out until `done`, `release` or `refuse`.

        What is behind a message that is out (and not settled) or skipped and has its priority and key is passed over.
        """

        def select(db: sqlite3.Connection) -> list[Entry]:
            rows = db.execute(
                "SELECT id, priority, key FROM queue WHERE topic NOT IN (SELECT value FROM json_each(?))"
                " ORDER BY priority, id LIMIT ?",
                (json.dumps(list(skip_topics)), len(self._taken) + len(skip_ids) + _LOOK_AHEAD * limit),
            ).fetchall()
            blocked = {name for row_id, name in self._taken.items() if row_id not in self._settled}
            chosen: list[tuple[int, tuple[int, str]]] = []
            for row_id, priority, key in rows:
                name = (priority, key or str(row_id))
                if len(chosen) == limit or row_id in self._taken:
                    continue
                if name not in blocked and row_id not in skip_ids:
                    chosen.append((row_id, name))
                blocked.add(name)
            entries = []
            for row_id, _ in chosen:
                row = db.execute("SELECT * FROM queue WHERE id = ?", (row_id,)).fetchone()
                if not is_sound(row):
                    raise sqlite3.DatabaseError(f"row {row_id} is damaged")
                _, priority, key, topic, payload, expendable, expiry_s, put_ns, correlation = row
                message = Message(
                    topic, payload, Priority(priority), key, False, bool(expendable), expiry_s, correlation
                )
                entries.append(Entry(row_id, message, put_ns))
            self._taken.update(chosen)
            self._highest_taken = max(self._highest_taken, *(row_id for row_id, _ in chosen), 0)
            return entries

        with self._lock:
            return self._guarded(select) if self._depth > len(self._taken) else []

    def settle(self, ids: Collection[int]) -> None:
        """The broker has acknowledged these: what is behind them may go. They stay on disk until `done`, but no longer
        count as waiting, and are handed out again after `release` or a restart."""
        with self._lock:
            self._settled.update(row_id for row_id in ids if row_id in self._taken)

    def done(self, ids: Collection[int]) -> None:
        """The broker has acknowledged these for good: delete them."""

        with self._lock:
            rows, freed = self._write(lambda db: delete(db, ids), "NORMAL") if ids else (0, 0)
            self._forget(ids, rows, freed)

    def release(self, ids: Collection[int]) -> None:
        """These were not acknowledged: they may be handed out again."""
        with self._lock:
            for row_id in ids:
                self._taken.pop(row_id, None)
                self._settled.discard(row_id)

    def refuse(self, row_id: int, code: int, reason: str) -> None:
        """Set this one aside: the broker refuses it for good, with the MQTT 5 reason ``code``. A thousand are kept;
        beyond that the oldest that matters least is dropped."""

        now = time.time_ns()

        def move(db: sqlite3.Connection) -> tuple[int, int, int, int]:
            db.execute(
                "INSERT OR REPLACE INTO set_aside SELECT *, ?, ?, ? FROM queue WHERE id = ?",
                (code, reason, now, row_id),
            )
            db.execute("UPDATE counter SET value = value + 1 WHERE name = 'set_aside'")
            surplus = db.execute(
                "SELECT id, priority FROM set_aside ORDER BY priority, id DESC LIMIT -1 OFFSET ?", (_ASIDE_KEPT,)
            ).fetchall()
            db.executemany("DELETE FROM set_aside WHERE id = ?", [(row,) for row, _ in surplus])
            lost = sum(priority != Priority.OTHER for _, priority in surplus)
            add_dropped(db, len(surplus), lost, now)
            return *delete(db, (row_id,)), len(surplus), lost

        with self._lock:
            rows, freed, dropped, lost = self._write(move, "FULL")
            self._count(set_aside=1, dropped=dropped, lost=lost, lost_ns=now if lost else 0)
            self._forget((row_id,), rows, freed)

    def take_back(self, packet_limit: int | None) -> int:
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
            moved = self._write(move, "FULL")
            if moved:
                self._guarded(self._recount)
        return moved

    def retained(self, after: int = 0) -> tuple[list[Message], int]:
        """Retained messages put since version ``after``, and the version to ask with next time."""

        def select(db: sqlite3.Connection) -> list[Message]:
            rows = db.execute("SELECT topic, payload FROM retained WHERE version > ?", (after,)).fetchall()
            if not all(isinstance(topic, str) and isinstance(payload, bytes) for topic, payload in rows):
                raise sqlite3.DatabaseError("a retained message is damaged")
            return [Message(topic, payload, Priority.OTHER, retain=True) for topic, payload in rows]

        with self._lock:
            return (self._guarded(select) if self._version > after else []), self._version

    def journal(self) -> list[bytes]:
        """What was put as ``Message.journal``, the newest 4096, oldest first."""

        def select(db: sqlite3.Connection) -> list[bytes]:
            rows = db.execute("SELECT record FROM journal ORDER BY id").fetchall()
            return [record for (record,) in rows if isinstance(record, bytes)]

        with self._lock:
            return self._guarded(select)

    def stats(self) -> OutboxStats:
        """Figures for health."""

        def oldest(db: sqlite3.Connection) -> tuple[int, int] | None:
            row = db.execute(
                "SELECT id, put_ns FROM queue WHERE id NOT IN (SELECT value FROM json_each(?)) ORDER BY id LIMIT 1",
                (json.dumps(list(self._settled)),),
            ).fetchone()
            return None if row is None else (int(row[0]), int(row[1]))

        def aside(db: sqlite3.Connection) -> tuple[int, int, str]:
            count, alerts = db.execute(
                "SELECT count(*), count(CASE WHEN priority = ? THEN 1 END) FROM set_aside", (int(Priority.ALERT),)
            ).fetchone()
            row = db.execute("SELECT reason FROM set_aside ORDER BY refused_ns DESC LIMIT 1").fetchone()
            return int(count), int(alerts), "" if row is None else str(row[0])

        with self._lock:
            more = self._guarded(self._changed_elsewhere)
            waiting, (set_aside, alerts, reason) = self._guarded(oldest), self._guarded(aside)
            now, counters = time.time_ns(), self._counters
            stats = OutboxStats(
                depth=self.depth,
                bytes=self._bytes,
                max_bytes=self._max_bytes,
                oldest_s=self._age_s(waiting, now),
                dropped=counters["dropped"],
                lost=counters["lost"],
                lost_age_s=max(0.0, (now - counters["lost_ns"]) / NS) if counters["lost_ns"] else None,
                set_aside=set_aside,
                set_aside_alerts=alerts,
                set_aside_reason=reason,
                set_aside_total=counters["set_aside"],
                moved_aside=corrupt_files(self.path),
                in_memory=self._in_memory,
            )
        if more:
            for listener in self._listeners:
                listener()
        return stats

    def _age_s(self, oldest: tuple[int, int] | None, now_ns: int) -> float:
        """For how long the message has waited, also where the machine's clock was set back meanwhile."""
        if oldest is None:
            return 0.0
        row_id, put_ns = oldest
        if row_id != self._oldest[0]:
            self._oldest = row_id, time.monotonic()
        return max((now_ns - put_ns) / NS, time.monotonic() - self._oldest[1])

    def _changed_elsewhere(self, db: sqlite3.Connection) -> bool:
        """Count anew if another process has written into the file; True if it may have put something into the queue."""
        version = int(db.execute("PRAGMA data_version").fetchone()[0])
        if version == self._data_version:
            return False
        self._data_version = version
        self._recount(db)
        return True

    def _recount(self, db: sqlite3.Connection) -> None:
        self._depth, self._bytes = db.execute(
            "SELECT count(*), coalesce(sum(length(payload) + ?), 0) FROM queue", (ROW_OVERHEAD,)
        ).fetchone()
        self._counters = {
            name: db.execute(
                "SELECT coalesce(max(CAST(value AS INTEGER)), 0) FROM counter WHERE name = ?", (name,)
            ).fetchone()[0]
            for name in ("dropped", "lost", "lost_ns", "set_aside")
        }

    def _count(self, **more: int) -> None:
        for name, value in more.items():
            self._counters[name] = (
                max(self._counters[name], value) if name == "lost_ns" else self._counters[name] + value
            )

    def close(self) -> None:
        """Write everything into the main file and unlock it."""
        with self._lock, mapped(self.path):
            self._db.close()
            if self._lock_file is not None:
                self._lock_file.close()

    def _open(self, path: Path | None) -> sqlite3.Connection:
        """The file, or a database in memory."""
        db = sqlite3.connect(path or ":memory:", timeout=1.0, isolation_level=None, check_same_thread=False)
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA journal_size_limit=16777216")
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                db.executescript(f"BEGIN IMMEDIATE; {SCHEMA} PRAGMA user_version={VERSION}; COMMIT;")
            else:
                check_version(self.path, version)
            if path is not None and path.stat().st_size <= _CHECK_LIMIT:
                verdict = db.execute("PRAGMA quick_check(1)").fetchone()[0]
                if verdict != "ok":
                    raise sqlite3.DatabaseError(verdict)
            self._recount(db)
            self._data_version = int(db.execute("PRAGMA data_version").fetchone()[0])
            self._version = db.execute("SELECT coalesce(max(CAST(version AS INTEGER)), 0) FROM retained").fetchone()[0]
        except BaseException:
            db.close()
            raise
        return db

    def _replace(self, error: Exception) -> None:
        """Move the corrupt file aside and start afresh with what can still be read of it."""
        aside = self.path.with_name(f"{self.path.name}.corrupt-{datetime.now(timezone.utc):%Y%m%dT%H%M%S.%fZ}")
        for suffix in ("", "-wal"):
            with contextlib.suppress(FileNotFoundError):
                self.path.with_name(self.path.name + suffix).rename(aside.with_name(aside.name + suffix))
        self.path.with_name(self.path.name + "-shm").unlink(missing_ok=True)
        version = self._version
        self._db = self._open(self.path)
        self._version = max(self._version, version)
        saved = self._carry_over(aside)
        _log.error("outbox was corrupt (%s): kept as %s, %d messages carried over", error, aside, saved)

    def _work_in_memory(self, error: Exception) -> None:
        """Go on without the disk, with what it still shows of an earlier outbox."""
        self._in_memory = (error.strerror if isinstance(error, OSError) else None) or str(error)
        self._max_bytes = min(self._max_bytes, _MOST_IN_MEMORY)
        self._db = self._open(None)
        with readable_copy(self.path) as copy:
            saved = self._carry_over(copy) if copy is not None else 0
        kept = f"pending messages are held in memory, {saved} of them from the disk"
        _log.error("outbox %s: %s; %s", self.path, self._in_memory, kept)

    def _carry_over(self, aside: Path) -> int:
        """Copy what can be read of another outbox file into this one; how many messages wait."""
        saved = 0
        self._db.execute("BEGIN IMMEDIATE")
        for row in readable(aside, "queue"):
            self._db.execute("INSERT INTO queue VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
            self._depth += 1
            self._bytes += row_bytes(row[4])
            saved += 1
        for row in readable(aside, "set_aside"):
            self._db.execute("INSERT OR IGNORE INTO set_aside VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        self._db.executemany("INSERT INTO journal(record) VALUES (?)", readable_journal(aside))
        for topic, payload in readable_retained(aside):
            self._version += 1
            self._db.execute("INSERT OR IGNORE INTO retained VALUES (?, ?, ?)", (topic, payload, self._version))
        # Messages handed out from the old file are still acknowledged by their number: no new one may get it.
        self._db.execute("DELETE FROM sqlite_sequence WHERE name = 'queue' AND seq < ?", (self._highest_taken,))
        self._db.execute(
            "INSERT INTO sqlite_sequence(name, seq) SELECT 'queue', ?"
            " WHERE NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = 'queue')",
            (self._highest_taken,),
        )
        self._db.execute("COMMIT")
        return saved

    def _guarded(self, action: Callable[[sqlite3.Connection], _T]) -> _T:
        with mapped(self.path):
            try:
                return action(self._db)
            except DAMAGE as error:
                if not is_corruption(error) or self._in_memory:
                    raise
                with contextlib.suppress(sqlite3.Error):
                    self._db.close()
                self._replace(error)
                return action(self._db)

    def _write(self, action: Callable[[sqlite3.Connection], _T], synchronous: str) -> _T:
        def transaction(db: sqlite3.Connection) -> _T:
            db.execute(f"PRAGMA synchronous={synchronous}")
            db.execute("BEGIN IMMEDIATE")
            try:
                result = action(db)
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise
            return result

        return self._guarded(transaction)

    def _make_room(self, db: sqlite3.Connection, size: int) -> tuple[int, int, int]:
        """Delete until ``size`` more bytes fit: number of rows, their bytes, how many of them were events or alerts."""
        rows = freed = events = 0
        excess = self._bytes + size - self._max_bytes
        while freed < excess:
            chunk = db.execute(
                "SELECT id, length(payload), priority FROM queue WHERE id NOT IN (SELECT value FROM json_each(?))"
                " ORDER BY priority DESC, expendable DESC, id LIMIT 4096",
                (json.dumps(list(self._taken)),),
            ).fetchall()
            if not chunk:
                break
            gone = []
            for row_id, length, priority in chunk:
                if freed < excess + self._max_bytes // 100:
                    gone.append(row_id)
                    freed += length + ROW_OVERHEAD
                    events += priority != Priority.OTHER
            delete(db, gone)
            rows += len(gone)
        add_dropped(db, rows, events, time.time_ns())
        return rows, freed, events

    def _forget(self, ids: Iterable[int], rows: int, freed: int) -> None:
        for row_id in ids:
            self._taken.pop(row_id, None)
            self._settled.discard(row_id)
        self._depth -= rows
        self._bytes -= freed
