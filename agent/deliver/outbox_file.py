"""The file of the outbox: its tables, what is done to them by the agent and by ``talus outbox``, and its damage.

A file that SQLite calls corrupt is moved aside by the agent; what can still be read of it is carried over.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import sqlite3
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO, Any, Literal

from agent.errors import DeliveryError
from agent.messages.payloads import PACKET_OVERHEAD, Priority

VERSION = 3
"""Of the layout of the tables."""
TOO_LARGE = 0x95
"""MQTT 5: packet too large, the one refusal that another limit of the broker mends."""
ROW_OVERHEAD = 200
"""Bytes a row costs beyond its payload: topic, key, columns, index entry."""

SCHEMA = """
CREATE TABLE queue(
    id INTEGER PRIMARY KEY AUTOINCREMENT, priority INTEGER NOT NULL, key TEXT NOT NULL, topic TEXT NOT NULL,
    payload BLOB NOT NULL, expendable INTEGER NOT NULL, expiry_s INTEGER, put_ns INTEGER NOT NULL,
    correlation BLOB);
CREATE INDEX queue_order ON queue(priority, id);
CREATE TABLE retained(topic TEXT PRIMARY KEY, payload BLOB NOT NULL, version INTEGER NOT NULL);
CREATE TABLE set_aside(
    id INTEGER PRIMARY KEY, priority INTEGER NOT NULL, key TEXT NOT NULL, topic TEXT NOT NULL,
    payload BLOB NOT NULL, expendable INTEGER NOT NULL, expiry_s INTEGER, put_ns INTEGER NOT NULL,
    correlation BLOB, code INTEGER NOT NULL, reason TEXT NOT NULL, refused_ns INTEGER NOT NULL);
CREATE TABLE counter(name TEXT PRIMARY KEY, value INTEGER NOT NULL);
INSERT INTO counter VALUES ('dropped', 0), ('lost', 0), ('lost_ns', 0), ('set_aside', 0);
CREATE TABLE journal(id INTEGER PRIMARY KEY, record BLOB NOT NULL);
"""
"""``set_aside`` begins with the columns of ``queue``."""
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
        "INSERT OR IGNORE INTO queue"
        " SELECT id, priority, key, topic, payload, expendable, expiry_s, put_ns, correlation FROM set_aside"
        " WHERE id IN (SELECT value FROM json_each(?))",
        (chosen,),
    )
    return db.execute("DELETE FROM set_aside WHERE id IN (SELECT value FROM json_each(?))", (chosen,)).rowcount


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


def add_dropped(db: sqlite3.Connection, rows: int, lost: int, now_ns: int) -> None:
    """Count messages that are gone for good, ``lost`` of them events or alerts."""
    if rows:
        db.execute("UPDATE counter SET value = value + ? WHERE name = 'dropped'", (rows,))
    if lost:
        db.execute("UPDATE counter SET value = value + ? WHERE name = 'lost'", (lost,))
        db.execute("UPDATE counter SET value = ? WHERE name = 'lost_ns'", (now_ns,))


def delete(db: sqlite3.Connection, ids: Collection[int]) -> tuple[int, int]:
    """Delete from the queue: how many rows, and their bytes."""
    chosen = json.dumps(list(ids))
    rows, freed = db.execute(
        "SELECT count(*), coalesce(sum(length(payload) + ?), 0) FROM queue"
        " WHERE id IN (SELECT value FROM json_each(?))",
        (ROW_OVERHEAD, chosen),
    ).fetchone()
    db.execute("DELETE FROM queue WHERE id IN (SELECT value FROM json_each(?))", (chosen,))
    return int(rows), int(freed)


def readable(path: Path, table: Literal["queue", "set_aside"]) -> Iterator[tuple[Any, ...]]:
    """Sound rows of a corrupt file: from the first on up to one that cannot be read, and from the last down to it."""
    seen: set[int] = set()
    for order in ("id", "id DESC"):
        with contextlib.suppress(*DAMAGE), contextlib.closing(sqlite3.connect(path)) as db:
            db.text_factory = _text_or_none
            for row in db.execute(f"SELECT * FROM {table} ORDER BY {order}"):  # noqa: S608 - names of ours
                if row[0] not in seen and is_sound(row):
                    yield row
                seen.add(row[0])


def readable_journal(path: Path) -> Iterator[tuple[bytes]]:
    """Records of a corrupt file, up to the first that cannot be read."""
    with contextlib.suppress(*DAMAGE), contextlib.closing(sqlite3.connect(path)) as db:
        for (record,) in db.execute("SELECT record FROM journal ORDER BY id"):
            if isinstance(record, bytes):
                yield (record,)


def readable_retained(path: Path) -> Iterator[tuple[str, bytes]]:
    """Retained messages of a corrupt file, up to the first that cannot be read."""
    with contextlib.suppress(*DAMAGE), contextlib.closing(sqlite3.connect(path)) as db:
        for topic, payload in db.execute("SELECT topic, payload FROM retained"):
            if isinstance(topic, str) and isinstance(payload, bytes):
                yield topic, payload


def _text_or_none(raw: bytes) -> str | None:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None


def is_sound(row: tuple[Any, ...]) -> bool:
    """Whether every column holds what only `put` and `refuse` write there."""
    if len(row) not in (9, 12):
        return False
    row_id, priority, key, topic, payload, expendable, expiry_s, put_ns, correlation, *refusal = row
    if refusal and not (isinstance(refusal[0], int) and isinstance(refusal[1], str) and isinstance(refusal[2], int)):
        return False
    return (
        all(isinstance(value, int) for value in (row_id, priority, expendable, put_ns))
        and priority in tuple(Priority)
        and isinstance(key, str)
        and isinstance(topic, str)
        and isinstance(payload, bytes)
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
