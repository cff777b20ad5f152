"""The outbox: a message is on disk before it is sent, and leaves the disk when every sink has had it.

SQLite in WAL mode. ``put`` commits with ``synchronous=FULL``, so that what it returned from survives a power cut; the
deletion after an acknowledgement commits with ``NORMAL``, because losing it costs only a duplicate, which receivers
recognise. A lock file beside it keeps other agents away.

Each sink has a ``Cursor``: its own place in the outbox. ``queue.waiting`` has one bit for each sink that has not had
the message yet; a message goes when the last bit does. What waits for a sink that is not configured any more stays
until the room is needed.

The order of sending is alerts, events, the rest; among messages of one priority and key it is the order of ``put``.
When the outbox is full, the oldest messages go in this order: those that no main sink waits for, the rest, superseded
revisions (``expendable``), events, and alerts only when nothing else is left.

The journal beside the queue keeps what the next run of the agent must know (``Message.journal``), the newest 4096
records; each is committed together with its message.

A corrupt file is moved aside, what can be read of it is carried over, and a fresh one takes its place. On a disk that
is read-only, or too full for the file, the outbox is in memory: it begins with what can be read from the disk, and
ends with the process. Either way a sink may get copies.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, TypeVar

from agent.atomic import sync_folder
from agent.backoff import ThrottledLog
from agent.deliver.outbox_file import (
    CHOSEN,
    DAMAGE,
    QUEUE,
    ROW_OVERHEAD,
    SCHEMA,
    TOO_LARGE,
    VERSION,
    check_version,
    corrupt_files,
    count,
    is_corruption,
    is_sound,
    locked,
    mapped,
    message_of,
    packet_bytes,
    put_back,
    readable,
    row_bytes,
    same_file,
    values_of,
)
from agent.errors import DeliveryError, in_words
from agent.host.disk import readable_copy, refuses
from agent.messages.payloads import Message, Priority
from agent.types import NS, counted

MAIN = "mqtt"
"""The sink whose messages are dropped last."""
LOCK_WAIT_S = 2.0
"""How long a call waits while the disk writes."""
_JOURNAL_KEPT = 4096
_CHECK_LIMIT = 64 * 1024 * 1024
_MOST_IN_MEMORY = 16 * 1024 * 1024
_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_LOOK_AHEAD = 8
"""Rows looked at for each one asked for, since all but the first of a key are passed over."""
_ASIDE_KEPT = 1000


@dataclass(frozen=True, slots=True)
class OutboxStats:
    """What waits for the main sink, and what was lost.

    ``depth`` messages wait, the oldest since ``oldest_s``; all that is kept has ``bytes`` (of ``max_bytes``).
    ``dropped`` counts what was dropped for want of room since the file was made, ``lost`` the events and alerts among
    it, the last one ``lost_age_s`` ago (None: never). ``set_aside`` messages, among them ``set_aside_alerts``, were
    refused for good by the broker, the last one for ``set_aside_reason``; ``set_aside_total`` counts since the file was
    made.
    ``moved_aside`` are the corrupt files in the folder. ``in_memory`` is the disk's error where messages are kept in
    memory (None: they are on disk).
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


class _BriefLock:
    """A lock that is waited for briefly: who holds it for longer waits for the disk."""

    def __init__(self, lock: threading.RLock, path: Path) -> None:
        self._lock, self._path = lock, path

    def __enter__(self) -> None:
        if not self._lock.acquire(timeout=LOCK_WAIT_S):
            raise DeliveryError(f"outbox {self._path}: the disk has not finished writing", "see dmesg; is it failing?")

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class Outbox:
    """See the module. Every method may be called from any thread.

    Every method raises DeliveryError when the disk refuses (full, read-only, gone); nothing is changed then and the
    call may be repeated. ``put`` waits as long as the disk takes; meanwhile the others raise DeliveryError too.
    """

    def __init__(self, path: Path, max_bytes: int = 256 * 1024 * 1024, sinks: Sequence[str] = (MAIN,)) -> None:
        """Open or make the file. ``max_bytes`` bounds the queue (payloads and rows; the file is somewhat larger).
        Each message waits for all ``sinks``; ``MAIN``, or else the first, is the main one."""
        self.path = path
        self._max_bytes = max_bytes
        self._turn = threading.RLock()
        self.lock = _BriefLock(self._turn, path)
        self._listeners: list[Callable[[], None]] = []
        self._cursors = {name: Cursor(self, name) for name in sinks}
        self._main = self._cursors.get(MAIN) or self._cursors[sinks[0]]
        self._throttled = ThrottledLog(_log.error)
        self._bytes = self._version = self._data_version = 0
        self._next_id = 1
        """Never given twice in one run: what a sink has in its hands is named by it, even after a corrupt file."""
        self._lock_file: IO[bytes] | None = None
        self._in_memory: str | None = None
        self._file: os.stat_result | None = None
        """What was opened."""
        with mapped(path):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._lock_file = locked(path)
                self._db = self._open(path)
            except (OSError, *DAMAGE) as error:
                if refuses(error):
                    self._work_in_memory(error, path)
                elif is_corruption(error):
                    self._replace(error)
                else:
                    raise

    def cursor(self, sink: str) -> Cursor:
        """The place of one sink."""
        return self._cursors[sink]

    @property
    def depth(self) -> int:
        """How many messages wait for the sink that has most of them before it (retained values apart)."""
        return max(cursor.depth for cursor in self._cursors.values())

    def listen(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` after every `put`, in the putting thread: it must return at once."""
        self._listeners.append(callback)

    def put(self, messages: Sequence[Message]) -> None:
        """Commit the messages to disk, all or none, in one transaction.

        Raises:
            DeliveryError: the disk refused, or a message is larger than the whole outbox.
        """
        now = time.time_ns()
        queued = [message for message in messages if not message.retain]
        size = sum(row_bytes(message.payload) for message in queued)
        if size > self._max_bytes:
            raise DeliveryError(
                f"{size} bytes do not fit into an outbox of {self._max_bytes}", "raise the size of the outbox"
            )

        def insert(db: sqlite3.Connection) -> tuple[int, int]:
            db.executemany(
                "INSERT OR REPLACE INTO retained VALUES (?, ?, ?)",
                [(m.topic, m.payload, self._version + 1) for m in messages if m.retain],
            )
            db.executemany(
                f"INSERT INTO queue({QUEUE}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [(n, self._all, *values_of(m, now)) for n, m in enumerate(queued, self._next_id)],
            )
            records = [(m.journal,) for m in messages if m.journal is not None]
            if records:
                db.executemany("INSERT INTO journal(record) VALUES (?)", records)
                db.execute("DELETE FROM journal WHERE id <= (SELECT max(id) FROM journal) - ?", (_JOURNAL_KEPT,))
            return self._make_room(db, size)

        with self._turn:
            if self._bytes + size > self._max_bytes:
                for cursor in self._cursors.values():
                    cursor.delete_acknowledged()
            rows, lost = self.write(insert, "FULL")
            self._version += 1
            self._next_id += len(queued)
            self._bytes += size
            for cursor in self._cursors.values():
                cursor.depth_on_disk += len(queued)
            if rows:
                self.read(self.recount)
        if rows:
            kinds = f"{counted(rows, 'message')} dropped, of them events or alerts: {lost}"
            self._throttled.warn(f"outbox {self.path} is full: {kinds}", key="full")
        self._tell()

    def retained(self, after: int = 0) -> tuple[list[Message], int]:
        """Retained messages put since version ``after``, and the version to ask with next time."""

        def select(db: sqlite3.Connection) -> list[Message]:
            rows = db.execute("SELECT topic, payload FROM retained WHERE version > ?", (after,)).fetchall()
            if not all(isinstance(topic, str) and isinstance(payload, bytes) for topic, payload in rows):
                raise sqlite3.DatabaseError("a retained message is damaged")
            return [Message(topic, payload, Priority.OTHER, retain=True) for topic, payload in rows]

        with self.lock:
            return (self.read(select) if self._version > after else []), self._version

    def journal(self) -> list[bytes]:
        """What was put as ``Message.journal``, the newest 4096, oldest first."""

        def select(db: sqlite3.Connection) -> list[bytes]:
            rows = db.execute("SELECT record FROM journal ORDER BY id").fetchall()
            return [record for (record,) in rows if isinstance(record, bytes)]

        with self.lock:
            return self.read(select)

    def stats(self) -> OutboxStats:
        """Figures for health."""

        def aside(db: sqlite3.Connection) -> tuple[int, int, str]:
            count, alerts = db.execute(
                "SELECT count(*), count(CASE WHEN priority = ? THEN 1 END) FROM set_aside", (Priority.ALERT,)
            ).fetchone()
            row = db.execute("SELECT reason FROM set_aside ORDER BY refused_ns DESC LIMIT 1").fetchone()
            return int(count), int(alerts), "" if row is None else str(row[0])

        def counters(db: sqlite3.Connection) -> dict[str, int]:
            return dict(db.execute("SELECT name, CAST(value AS INTEGER) FROM counter").fetchall())

        with self.lock:
            self._put_back()
            changed = self.read(self._changed_elsewhere)
            (set_aside, alerts, reason), counted = self.read(aside), self.read(counters)
            lost_ns = counted.get("lost_ns", 0)
            stats = OutboxStats(
                depth=self._main.depth,
                bytes=self._bytes,
                max_bytes=self._max_bytes,
                oldest_s=self._main.oldest_s(),
                dropped=counted.get("dropped", 0),
                lost=counted.get("lost", 0),
                lost_age_s=max(0.0, (time.time_ns() - lost_ns) / NS) if lost_ns else None,
                set_aside=set_aside,
                set_aside_alerts=alerts,
                set_aside_reason=reason,
                set_aside_total=counted.get("set_aside", 0),
                moved_aside=corrupt_files(self.path),
                in_memory=self._in_memory,
            )
        if changed:
            self._tell()
        return stats

    def close(self) -> OutboxStats:
        """Write everything into the main file and unlock it; returns the last figures."""
        with self._turn, mapped(self.path):
            stats = self.stats()
            self._db.close()
            if self._lock_file is not None:
                self._lock_file.close()
        return stats

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()

    @property
    def _all(self) -> int:
        return sum(cursor.bit for cursor in self._cursors.values())

    def _changed_elsewhere(self, db: sqlite3.Connection) -> bool:
        """Count anew if another process has written into the file; True if it may have put something into the queue."""
        version = int(db.execute("PRAGMA data_version").fetchone()[0])
        if version == self._data_version:
            return False
        self._data_version = version
        self.recount(db)
        return True

    def freed(self, size: int) -> None:
        """For cursors: ``size`` bytes are free again."""
        self._bytes -= size

    def recount(self, db: sqlite3.Connection) -> None:
        """For cursors: what is kept, and what waits for whom, as the file has it."""
        [self._bytes] = db.execute(
            "SELECT coalesce(sum(length(payload) + ?), 0) FROM queue", (ROW_OVERHEAD,)
        ).fetchone()
        for cursor in self._cursors.values():
            [cursor.depth_on_disk] = db.execute(
                "SELECT count(*) FROM queue WHERE waiting & ?", (cursor.bit,)
            ).fetchone()

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
            self._register(db)
            self.recount(db)
            self._file = None if path is None else path.stat()
            self._data_version = int(db.execute("PRAGMA data_version").fetchone()[0])
            for table in ("queue", "set_aside"):
                [highest] = db.execute(f"SELECT coalesce(max(id), 0) FROM {table}").fetchone()
                self._next_id = max(self._next_id, highest + 1)
            [version] = db.execute("SELECT coalesce(max(CAST(version AS INTEGER)), 0) FROM retained").fetchone()
            self._version = max(self._version, version)
        except BaseException:
            db.close()
            raise
        return db

    def _register(self, db: sqlite3.Connection) -> None:
        """Give each sink its bit, which it keeps."""
        known: dict[str, int] = dict(db.execute("SELECT name, bit FROM sink").fetchall())
        for name, cursor in self._cursors.items():
            if name not in known:
                known[name] = next(1 << n for n in range(62) if 1 << n not in known.values())
                db.execute("INSERT INTO sink VALUES (?, ?)", (name, known[name]))
            cursor.bit = known[name]

    def _replace(self, error: Exception) -> None:
        """Move the corrupt file aside and start afresh with what can still be read of it; in memory where the disk that
        damaged it takes no other."""
        aside = self.path
        try:
            aside = self._move_aside()
            self._db = self._open(self.path)
            saved = self._carry_over(aside)
        except (OSError, *DAMAGE) as refusal:
            self._work_in_memory(refusal, aside)
            return
        _log.error("outbox was corrupt (%s): kept as %s, %d messages carried over", error, aside, saved)

    def _move_aside(self) -> Path:
        """Give another name to what has the outbox's, and return it."""
        aside = self.path.with_name(f"{self.path.name}.corrupt-{datetime.now(timezone.utc):%Y%m%dT%H%M%S.%fZ}")
        for suffix in ("", "-wal"):
            with contextlib.suppress(FileNotFoundError):
                self.path.with_name(self.path.name + suffix).rename(aside.with_name(aside.name + suffix))
        self.path.with_name(self.path.name + "-shm").unlink(missing_ok=True)
        return aside

    def _put_back(self) -> None:
        """Write the file anew if it was deleted, or another was put in its place: what is written to it would go with
        the process. One that is in its place is moved aside."""
        if self._in_memory or same_file(self.path, self._file):
            return
        with mapped(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            copy = self.path.with_name(f"{self.path.name}.copy")
            copy.unlink(missing_ok=True)
            with contextlib.closing(sqlite3.connect(copy)) as db:
                self._db.backup(db)
            if self._lock_file is not None:
                self._lock_file.close()
            self._lock_file = locked(self.path)
            self._db.close()
            try:
                aside = self._move_aside()
                copy.replace(self.path)
                sync_folder(self.path.parent)
                self._db = self._open(self.path)
            except (OSError, *DAMAGE) as refusal:
                self._work_in_memory(refusal, copy if copy.exists() else self.path)
                return
        found = f"; what was in its place is kept as {aside}" if aside.exists() else ""
        _log.error("outbox %s was deleted or replaced while it was in use: it is written anew%s", self.path, found)

    def _work_in_memory(self, error: Exception, shown: Path) -> None:
        """Go on without the disk, with what it still shows of an earlier outbox in the file ``shown``."""
        self._in_memory = in_words(error)
        self._max_bytes = min(self._max_bytes, _MOST_IN_MEMORY)
        self._db = self._open(None)
        with readable_copy(shown) as copy:
            saved = self._carry_over(copy) if copy is not None else 0
        kept = f"pending messages are held in memory, {saved} of them from the disk"
        _log.error("outbox %s: %s; %s", self.path, self._in_memory, kept)

    def _carry_over(self, other: Path) -> int:
        """Copy what can be read of another file into this one, for every sink; how many messages wait."""
        db, saved = self._db, 0
        db.execute("BEGIN IMMEDIATE")
        for row_id, _, *rest in readable(other, "queue"):
            db.execute("INSERT OR IGNORE INTO queue VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (row_id, self._all, *rest))
            self._next_id = max(self._next_id, row_id + 1)
            saved += 1
        for row_id, _, *rest in readable(other, "set_aside"):
            values = (row_id, self._main.bit, *rest)
            db.execute("INSERT OR IGNORE INTO set_aside VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
            self._next_id = max(self._next_id, row_id + 1)
        self._version += 1
        for topic, payload, _ in readable(other, "retained"):
            db.execute("INSERT OR IGNORE INTO retained VALUES (?, ?, ?)", (topic, payload, self._version))
        db.executemany(
            "INSERT INTO journal(record) VALUES (?)", ((record,) for _, record in readable(other, "journal"))
        )
        db.execute("COMMIT")
        self.recount(db)
        return saved

    def read(self, action: Callable[[sqlite3.Connection], _T]) -> _T:
        """For cursors, with the lock held: the result of ``action``, on a fresh file if this one is corrupt."""
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

    def write(self, action: Callable[[sqlite3.Connection], _T], synchronous: str) -> _T:
        """For cursors, with the lock held: ``action`` in a transaction, which counts as a whole or not at all."""

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

        return self.read(transaction)

    def _make_room(self, db: sqlite3.Connection, size: int) -> tuple[int, int]:
        """Delete until ``size`` more bytes fit: number of rows, and how many of them were events or alerts."""
        rows = freed = lost = 0
        excess = self._bytes + size - self._max_bytes
        held = [row_id for cursor in self._cursors.values() for row_id in list(cursor.out)]
        while freed < excess:
            chunk = db.execute(
                f"SELECT id, length(payload), priority, waiting FROM queue WHERE NOT id {CHOSEN}"
                " ORDER BY waiting & ? != 0, waiting & ? != 0, priority DESC, expendable DESC, id LIMIT 4096",
                (json.dumps(held), self._main.bit, self._all),
            ).fetchall()
            if not chunk:
                break
            gone = []
            for row_id, length, priority, waiting in chunk:
                if freed < excess + self._max_bytes // 100:
                    gone.append(row_id)
                    freed += length + ROW_OVERHEAD
                    lost += priority != Priority.OTHER and bool(waiting & self._all)
            db.execute(f"DELETE FROM queue WHERE id {CHOSEN}", (json.dumps(gone),))
            rows += len(gone)
        count(db, dropped=rows, lost=lost)
        return rows, lost


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
            blocked = {name for row_id, name in list(self.out.items()) if row_id not in self._acknowledged}
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
        as waiting, and are handed out again after ``release`` or a restart. Neither waits for the disk."""
        self._acknowledged.update([row_id for row_id in ids if row_id in self.out])

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
