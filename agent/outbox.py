"""The outbox: a message is on disk before it is sent, and leaves the disk after the broker's acknowledgement.

SQLite in WAL mode. ``put`` commits with ``synchronous=FULL``, so that what it returned from survives a power cut; the
deletion after an acknowledgement commits with ``NORMAL``, because losing it costs only a duplicate, which receivers
recognise. The file is locked for one process.

Deletion waits a moment longer (``settle``, ``done``): what a broker acknowledged just before it crashed is sent again.

The order of sending is alerts, events, the rest; among messages of one priority and key it is the order of ``put``, and
the next one is not handed out before the one before it is acknowledged. When the outbox is full, the oldest messages go
in this order: the rest, superseded revisions (``expendable``), events, and alerts only when nothing else is left.

The journal beside the queue keeps what the next run of the agent must know (``Message.journal``), the newest 4096
records; each is committed together with its message.

A file that SQLite calls corrupt, or that holds what was never put, is moved aside, what can still be read is carried
over, and a fresh one takes its place. SQLite has no checksums: a bit that flipped in a row shows only when it is read.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

from agent.errors import DeliveryError
from agent.messages import Message, Priority
from agent.patience import QuietLog
from agent.types import NS

_VERSION = 2
_ROW_OVERHEAD = 200
"""Bytes a row costs beyond its payload: topic, key, columns, index entry."""

_LOOK_AHEAD = 8
"""Rows looked at for each one asked for, since all but the first of a key are passed over."""

_SCHEMA = """
CREATE TABLE queue(
    id INTEGER PRIMARY KEY AUTOINCREMENT, priority INTEGER NOT NULL, key TEXT NOT NULL, topic TEXT NOT NULL,
    payload BLOB NOT NULL, expendable INTEGER NOT NULL, expiry_s INTEGER, put_ns INTEGER NOT NULL,
    correlation BLOB);
CREATE INDEX queue_order ON queue(priority, id);
CREATE TABLE retained(topic TEXT PRIMARY KEY, payload BLOB NOT NULL, version INTEGER NOT NULL);
CREATE TABLE dead(
    id INTEGER PRIMARY KEY, topic TEXT NOT NULL, payload BLOB NOT NULL, reason TEXT NOT NULL, put_ns INTEGER NOT NULL);
CREATE TABLE counter(name TEXT PRIMARY KEY, value INTEGER NOT NULL);
INSERT INTO counter VALUES ('dropped', 0), ('dead', 0);
CREATE TABLE journal(id INTEGER PRIMARY KEY, record BLOB NOT NULL);
"""
_DAMAGE = (sqlite3.DatabaseError, UnicodeDecodeError)
"""What reading a damaged file raises, among other things that are no damage; see ``_is_corruption``."""
_DEAD_KEPT = 1000
_JOURNAL_KEPT = 4096
_CHECK_LIMIT = 64 * 1024 * 1024

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
    """``depth`` messages of ``bytes`` in all wait, the oldest since ``oldest_s``. ``dropped`` (for want of room) and
    ``dead`` (refused for good by the broker) count since the file was made. ``moved_aside`` names corrupt files."""

    depth: int
    bytes: int
    oldest_s: float
    dropped: int
    dead: int
    moved_aside: tuple[Path, ...]


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
        self._moved_aside: list[Path] = []
        self._quiet = QuietLog(_log.error)
        self._depth = self._bytes = self._dropped = self._dead = self._version = 0
        with _mapped(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._db = self._open()
            except _DAMAGE as error:
                if not _is_corruption(error):
                    raise
                self._replace(error)

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
        size = sum(_size(message.payload) for message in messages if not message.retain)
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
            self._dropped += rows
        if rows:
            kinds = f"{rows} messages, {events} of them events or alerts; {self._dropped} since the file was made"
            self._quiet.warn(f"outbox {self.path} is full: dropped {kinds}", key="full")
        for listener in self._listeners:
            listener()

    def take(self, limit: int, skip_topics: Collection[str] = (), skip_ids: Collection[int] = ()) -> list[Entry]:
        """Hand out up to ``limit`` messages in the order of sending; each stays out until `done`, `release` or `bury`.

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
                if not _is_sound(row):
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

        def delete(db: sqlite3.Connection) -> tuple[int, int]:
            return _delete(db, ids)

        with self._lock:
            rows, freed = self._write(delete, "NORMAL") if ids else (0, 0)
            self._forget(ids, rows, freed)

    def release(self, ids: Collection[int]) -> None:
        """These were not acknowledged: they may be handed out again."""
        with self._lock:
            for row_id in ids:
                self._taken.pop(row_id, None)
                self._settled.discard(row_id)

    def bury(self, row_id: int, reason: str) -> None:
        """The broker will never take this one: move it to the table ``dead`` (the newest thousand are kept)."""

        def move(db: sqlite3.Connection) -> tuple[int, int]:
            db.execute(
                "INSERT OR REPLACE INTO dead SELECT id, topic, payload, ?, put_ns FROM queue WHERE id = ?",
                (reason, row_id),
            )
            db.execute("DELETE FROM dead WHERE id <= (SELECT max(id) FROM dead) - ?", (_DEAD_KEPT,))
            db.execute("UPDATE counter SET value = value + 1 WHERE name = 'dead'")
            return _delete(db, (row_id,))

        with self._lock:
            rows, freed = self._write(move, "FULL")
            self._dead += 1
            self._forget((row_id,), rows, freed)

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

        def oldest(db: sqlite3.Connection) -> int | None:
            row = db.execute(
                "SELECT put_ns FROM queue WHERE id NOT IN (SELECT value FROM json_each(?)) ORDER BY id LIMIT 1",
                (json.dumps(list(self._settled)),),
            ).fetchone()
            return None if row is None else int(row[0])

        with self._lock:
            put_ns = self._guarded(oldest)
            age = 0.0 if put_ns is None else max(0.0, (time.time_ns() - put_ns) / NS)
            return OutboxStats(self.depth, self._bytes, age, self._dropped, self._dead, tuple(self._moved_aside))

    def close(self) -> None:
        """Write everything into the main file and unlock it."""
        with self._lock, _mapped(self.path):
            self._db.close()

    def _open(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, timeout=1.0, isolation_level=None, check_same_thread=False)
        try:
            db.execute("PRAGMA locking_mode=EXCLUSIVE")
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA journal_size_limit=16777216")
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version={_VERSION}; COMMIT;")
            elif version != _VERSION:
                raise DeliveryError(
                    f"{self.path} has layout {version}, this agent knows {_VERSION}",
                    "move the file away, or run the version of the agent that made it",
                )
            if self.path.stat().st_size <= _CHECK_LIMIT:
                verdict = db.execute("PRAGMA quick_check(1)").fetchone()[0]
                if verdict != "ok":
                    raise sqlite3.DatabaseError(verdict)
            self._depth, self._bytes = db.execute(
                "SELECT count(*), coalesce(sum(length(payload) + ?), 0) FROM queue", (_ROW_OVERHEAD,)
            ).fetchone()
            self._dropped, self._dead = (
                db.execute(
                    "SELECT coalesce(max(CAST(value AS INTEGER)), 0) FROM counter WHERE name = ?", (name,)
                ).fetchone()[0]
                for name in ("dropped", "dead")
            )
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
        self._moved_aside.append(aside)
        version = self._version
        self._db = self._open()
        self._version = max(self._version, version)
        saved = 0
        self._db.execute("BEGIN IMMEDIATE")
        for row in _readable(aside):
            self._db.execute("INSERT INTO queue VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
            self._depth += 1
            self._bytes += _size(row[4])
            saved += 1
        self._db.executemany("INSERT INTO journal(record) VALUES (?)", _readable_journal(aside))
        # Messages handed out from the old file are still acknowledged by their number: no new one may get it.
        self._db.execute("DELETE FROM sqlite_sequence WHERE name = 'queue' AND seq < ?", (self._highest_taken,))
        self._db.execute(
            "INSERT INTO sqlite_sequence(name, seq) SELECT 'queue', ?"
            " WHERE NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = 'queue')",
            (self._highest_taken,),
        )
        self._db.execute("COMMIT")
        _log.error("outbox was corrupt (%s): kept as %s, %d messages carried over", error, aside, saved)

    def _guarded(self, action: Callable[[sqlite3.Connection], _T]) -> _T:
        with _mapped(self.path):
            try:
                return action(self._db)
            except _DAMAGE as error:
                if not _is_corruption(error):
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
                    freed += length + _ROW_OVERHEAD
                    events += priority != Priority.OTHER
            _delete(db, gone)
            rows += len(gone)
        if rows:
            db.execute("UPDATE counter SET value = value + ? WHERE name = 'dropped'", (rows,))
        return rows, freed, events

    def _forget(self, ids: Iterable[int], rows: int, freed: int) -> None:
        for row_id in ids:
            self._taken.pop(row_id, None)
            self._settled.discard(row_id)
        self._depth -= rows
        self._bytes -= freed


def _size(payload: bytes) -> int:
    return len(payload) + _ROW_OVERHEAD


def _delete(db: sqlite3.Connection, ids: Collection[int]) -> tuple[int, int]:
    chosen = json.dumps(list(ids))
    rows, freed = db.execute(
        "SELECT count(*), coalesce(sum(length(payload) + ?), 0) FROM queue"
        " WHERE id IN (SELECT value FROM json_each(?))",
        (_ROW_OVERHEAD, chosen),
    ).fetchone()
    db.execute("DELETE FROM queue WHERE id IN (SELECT value FROM json_each(?))", (chosen,))
    return int(rows), int(freed)


def _readable(path: Path) -> Iterator[tuple[Any, ...]]:
    """Sound rows of a corrupt file: from the first on up to one that cannot be read, and from the last down to it."""
    seen: set[int] = set()
    for query in ("SELECT * FROM queue ORDER BY id", "SELECT * FROM queue ORDER BY id DESC"):
        with contextlib.suppress(*_DAMAGE), contextlib.closing(sqlite3.connect(path)) as db:
            db.text_factory = _text_or_none
            for row in db.execute(query):
                if row[0] not in seen and _is_sound(row):
                    yield row
                seen.add(row[0])


def _readable_journal(path: Path) -> Iterator[tuple[bytes]]:
    """Records of a corrupt file, up to the first that cannot be read."""
    with contextlib.suppress(*_DAMAGE), contextlib.closing(sqlite3.connect(path)) as db:
        for (record,) in db.execute("SELECT record FROM journal ORDER BY id"):
            if isinstance(record, bytes):
                yield (record,)


def _text_or_none(raw: bytes) -> str | None:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None


def _is_sound(row: tuple[Any, ...]) -> bool:
    """Whether every column holds what only `put` writes there."""
    if len(row) != 9:
        return False
    row_id, priority, key, topic, payload, expendable, expiry_s, put_ns, correlation = row
    return (
        all(isinstance(value, int) for value in (row_id, priority, expendable, put_ns))
        and priority in tuple(Priority)
        and isinstance(key, str)
        and isinstance(topic, str)
        and isinstance(payload, bytes)
        and (expiry_s is None or (isinstance(expiry_s, int) and expiry_s >= 0))
        and (correlation is None or isinstance(correlation, bytes))
    )


def _is_corruption(error: Exception) -> bool:
    """SQLite's "malformed" and "not a database" come as the base class; what the disk refuses comes as a subclass, and
    so does damage that only shows in the words of the layout or of a row."""
    return (
        type(error) is sqlite3.DatabaseError
        or isinstance(error, (UnicodeDecodeError, sqlite3.IntegrityError))
        or str(error).startswith(("Could not decode to UTF-8", "no such table", "no such column"))
    )


@contextlib.contextmanager
def _mapped(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        text = str(error)
        if "locked" in text:
            raise DeliveryError(
                f"outbox {path} is in use", "another agent runs with the same outbox: stop it"
            ) from error
        if "full" in text or "disk I/O" in text:
            hint = "free space on that disk, or look for disk errors in the kernel's log; sending is tried again"
        else:
            hint = "the file and its directory must exist and be writable by the user that the agent runs as"
        raise DeliveryError(f"outbox {path}: {text}", hint) from error
