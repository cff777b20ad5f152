"""The file of the outbox: its tables, what is done to them by the agent and by ``talus outbox``, and its damage.

A file that SQLite calls corrupt is moved aside by the agent; what can still be read of it is carried over.

``talus outbox`` lists and changes it while the agent runs, or not. An agent that runs notices what was changed within
ten seconds.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sqlite3
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import quote

from agent.errors import DeliveryError, UsageError
from agent.messages.payloads import PACKET_OVERHEAD, Message, Priority

VERSION = 4
"""Version of the layout of the tables."""
TOO_LARGE = 0x95
"""MQTT 5: packet too large, the one refusal that another limit of the broker mends."""
ROW_OVERHEAD = 200
"""Bytes a row costs beyond its payload: topic, key, columns, index entry."""

CHOSEN = "IN (SELECT value FROM json_each(?))"
"""Condition: the column is in a list given as JSON."""
QUEUE = "id, waiting, priority, key, topic, expendable, expiry_s, put_ns, correlation, payload"
_QUEUE = """
    id INTEGER PRIMARY KEY, waiting INTEGER NOT NULL, priority INTEGER NOT NULL, key TEXT NOT NULL, topic TEXT NOT NULL,
    expendable INTEGER NOT NULL, expiry_s INTEGER, put_ns INTEGER NOT NULL, correlation BLOB, payload BLOB NOT NULL"""
SCHEMA = f"""
CREATE TABLE sink(name TEXT PRIMARY KEY, bit INTEGER NOT NULL);
CREATE TABLE queue({_QUEUE});
CREATE INDEX queue_order ON queue(priority, id, waiting);
CREATE TABLE set_aside({_QUEUE}, code INTEGER NOT NULL, reason TEXT NOT NULL, refused_ns INTEGER NOT NULL);
CREATE TABLE retained(topic TEXT PRIMARY KEY, payload BLOB NOT NULL, version INTEGER NOT NULL);
CREATE TABLE counter(name TEXT PRIMARY KEY, value INTEGER NOT NULL);
INSERT INTO counter VALUES ('dropped', 0), ('lost', 0), ('lost_ns', 0), ('set_aside', 0);
CREATE TABLE journal(id INTEGER PRIMARY KEY, record BLOB NOT NULL);
"""
"""``waiting``: the bits of the sinks that have not had the message; of one that was set aside, whose it was."""
_COLUMNS: dict[str, tuple[type | None, ...]] = {
    "queue": (int, int, int, str, str, int, None, int, None, bytes),
    "set_aside": (int, int, int, str, str, int, None, int, None, bytes, int, str, int),
    "retained": (str, bytes, int),
    "journal": (int, bytes),
}
"""What the columns hold; None: checked apart."""
DAMAGE = (sqlite3.DatabaseError, UnicodeDecodeError)
"""What reading a damaged file raises, among other things that are no damage; see ``is_corruption``."""


def row_bytes(payload: bytes) -> int:
    """What a message counts for in the size of the outbox."""
    return len(payload) + ROW_OVERHEAD


def packet_bytes(topic: str, payload: bytes, correlation: bytes | None) -> int:
    """Most bytes of the PUBLISH packet of a message, with its MQTT 5 properties."""
    return len(topic.encode()) + len(payload) + len(correlation or b"") + PACKET_OVERHEAD


def put_back(db: sqlite3.Connection, ids: Collection[int]) -> int:
    """Move what was set aside back into the queue, under its old number and so in its old place."""
    chosen = json.dumps(list(ids))
    db.execute(
        f"INSERT INTO queue SELECT {QUEUE} FROM set_aside WHERE id {CHOSEN}"
        " ON CONFLICT(id) DO UPDATE SET waiting = waiting | excluded.waiting",
        (chosen,),
    )
    return db.execute(f"DELETE FROM set_aside WHERE id {CHOSEN}", (chosen,)).rowcount


def values_of(message: Message, put_ns: int) -> tuple[Any, ...]:
    """The columns of a message, after ``waiting``."""
    m = message
    return m.priority, m.key, m.topic, m.expendable, m.expiry_s, put_ns, m.correlation, m.payload


def message_of(row: tuple[Any, ...]) -> Message:
    """The message in a row of the queue."""
    _, _, priority, key, topic, expendable, expiry_s, _, correlation, payload = row
    return Message(topic, payload, Priority(priority), key, False, bool(expendable), expiry_s, correlation)


def count(db: sqlite3.Connection, **more: int) -> None:
    """Add to counters; the time of the last loss is kept with ``lost``."""
    for name, value in more.items():
        if value:
            db.execute("UPDATE counter SET value = value + ? WHERE name = ?", (value, name))
    if more.get("lost"):
        db.execute("UPDATE counter SET value = ? WHERE name = 'lost_ns'", (time.time_ns(),))


def corrupt_files(path: Path) -> tuple[Path, ...]:
    """Files that were moved aside because they were corrupt, the oldest first."""
    try:
        found = [one for one in path.parent.iterdir() if one.name.startswith(f"{path.name}.corrupt-")]
    except OSError:
        return ()
    return tuple(sorted(one for one in found if not one.name.endswith(("-wal", "-shm"))))


def check_version(path: Path, version: int) -> None:
    """
    Raises:
        DeliveryError: the file was made by another version of the agent.
    """
    if version != VERSION:
        raise DeliveryError(
            f"{path} has layout {version}, this agent knows {VERSION}",
            "move the file away, or run the version of the agent that made it",
        )


def locked(path: Path) -> IO[bytes]:
    """The lock file, locked until it is closed.

    Raises:
        DeliveryError: another process has it.
    """
    file = path.with_name(f"{path.name}.lock").open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise DeliveryError(f"outbox {path} is in use", "another agent runs with the same outbox: stop it") from None
    return file


def same_file(path: Path, opened: os.stat_result | None) -> bool:
    """Whether the path still leads to what was opened."""
    try:
        return opened is not None and os.path.samestat(path.stat(), opened)
    except OSError:
        return False


def readable(path: Path, table: str) -> Iterator[tuple[Any, ...]]:
    """Sound rows of a corrupt file: from the first on up to one that cannot be read, and from the last down to it."""
    seen: set[object] = set()
    for order in ("rowid", "rowid DESC"):
        with contextlib.suppress(*DAMAGE), contextlib.closing(sqlite3.connect(path)) as db:
            db.text_factory = _text_or_none
            for row in db.execute(f"SELECT * FROM {table} ORDER BY {order}"):
                if row[0] not in seen and is_sound(table, row):
                    yield row
                seen.add(row[0])


def _text_or_none(raw: bytes) -> str | None:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None


def is_sound(table: str, row: tuple[Any, ...]) -> bool:
    """Whether every column holds what only the agent writes there."""
    kinds = _COLUMNS[table]
    if len(row) != len(kinds) or not all(
        k is None or isinstance(value, k) for k, value in zip(kinds, row, strict=True)
    ):
        return False
    if table not in ("queue", "set_aside"):
        return True
    priority, expiry_s, correlation = row[2], row[6], row[8]
    return (
        priority in tuple(Priority)
        and (expiry_s is None or (isinstance(expiry_s, int) and expiry_s >= 0))
        and (correlation is None or isinstance(correlation, bytes))
    )


def is_corruption(error: Exception) -> bool:
    """SQLite's "malformed" and "not a database" come as the base class; what the disk refuses comes as a subclass, and
    so does damage that only shows in the words of the layout or of a row."""
    return (
        type(error) is sqlite3.DatabaseError
        or isinstance(error, (UnicodeDecodeError, sqlite3.IntegrityError))
        or str(error).startswith(("Could not decode to UTF-8", "no such table", "no such column"))
    )


@contextlib.contextmanager
def mapped(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        text = str(error)
        if "locked" in text:
            raise DeliveryError(
                f"outbox {path} is locked", "another program is writing to it: close that; it is tried again"
            ) from error
        if "full" in text or "disk I/O" in text:
            hint = "free space on that disk, or look for disk errors in the kernel's log; sending is tried again"
        else:
            hint = "the file and its directory must exist and be writable by the user that the agent runs as"
        raise DeliveryError(f"outbox {path}: {text}", hint) from error


_T = TypeVar("_T")
_BUSY_S = 5.0


@dataclass(frozen=True, slots=True)
class Waiting:
    """A message that waits for the broker. ``event`` is the key under which it is kept in order: for events and alerts
    their identifier."""

    number: int
    kind: str
    topic: str
    event: str
    bytes: int
    put_ns: int


@dataclass(frozen=True, slots=True)
class SetAside(Waiting):
    """A message that the broker refused for good at ``refused_ns``, with the MQTT 5 reason ``code``."""

    code: int
    reason: str
    refused_ns: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Listing:
    """``waiting`` holds the first messages in the order of sending, of ``waiting_total``."""

    waiting: list[Waiting]
    waiting_total: int
    set_aside: list[SetAside]


def listing(path: Path, limit: int | None) -> Listing:
    """What is in the outbox; of what waits at most ``limit`` messages (None: all).

    Raises:
        DeliveryError: the file cannot be read.
    """
    with _opened(path, write=False) as db:
        total = db.execute("SELECT count(*) FROM queue").fetchone()[0]
        waiting = db.execute(
            "SELECT id, priority, topic, key, length(payload), put_ns FROM queue ORDER BY priority, id LIMIT ?",
            (-1 if limit is None else limit,),
        )
        aside = db.execute(
            "SELECT id, priority, topic, key, length(payload), put_ns, code, reason, refused_ns, payload"
            " FROM set_aside ORDER BY id"
        )
        return Listing(
            [Waiting(number, _kind(priority), *rest) for number, priority, *rest in waiting],
            int(total),
            [SetAside(number, _kind(priority), *rest) for number, priority, *rest in aside],
        )


def retry(path: Path, numbers: list[int] | None) -> int:
    """Put messages that were set aside back into the queue (None: all of them); returns how many.

    Raises:
        DeliveryError: the file cannot be written.
        UsageError: one of the numbers is not that of a message that was set aside.
    """
    return _change(path, numbers, put_back)


def drop(path: Path, numbers: list[int] | None) -> int:
    """Delete messages that were set aside; see ``retry``."""

    def delete(db: sqlite3.Connection, ids: list[int]) -> int:
        return sum(db.execute("DELETE FROM set_aside WHERE id = ?", (number,)).rowcount for number in ids)

    return _change(path, numbers, delete)


def _change(path: Path, numbers: list[int] | None, action: Callable[[sqlite3.Connection, list[int]], _T]) -> _T:
    with _opened(path, write=True) as db:
        db.execute("PRAGMA synchronous=FULL")
        db.execute("BEGIN IMMEDIATE")
        known = [number for (number,) in db.execute("SELECT id FROM set_aside ORDER BY id")]
        unknown = sorted(set(numbers or ()) - set(known))
        if unknown:
            db.execute("ROLLBACK")
            words = ", ".join(map(str, unknown))
            raise UsageError(
                f"no message {words} is set aside in {path}", "`talus outbox` lists them with their numbers"
            )
        done = action(db, known if numbers is None else numbers)
        db.execute("COMMIT")
        return done


@contextlib.contextmanager
def _opened(path: Path, *, write: bool) -> Iterator[sqlite3.Connection]:
    if not path.exists():
        raise DeliveryError(f"there is no outbox {path}", "has an agent with this configuration run? see --config")
    address = f"file:{quote(str(path))}?mode={'rw' if write else 'ro'}"
    try:
        with contextlib.closing(sqlite3.connect(address, uri=True, timeout=_BUSY_S, isolation_level=None)) as db:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                raise DeliveryError(f"outbox {path} is empty", "the agent fills it when it is started")
            check_version(path, version)
            yield db
    except (sqlite3.Error, OSError) as error:
        if is_corruption(error):
            hint = "it is damaged: the agent moves it aside and carries over what it can when it is started"
        else:
            hint = "run this as the agent's user, or with sudo; is the disk full, or read-only?"
        raise DeliveryError(f"outbox {path}: {error}", hint) from error


def _kind(priority: int) -> str:
    """``alert``, ``event`` or ``other``."""
    return Priority(priority).name.lower()
