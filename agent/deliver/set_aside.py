"""What waits in an outbox and what was set aside there, for ``talus outbox``: the agent may run meanwhile, or not.

An agent that runs notices within ten seconds what was changed here.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from agent.deliver.outbox_file import check_version, is_corruption, put_back
from agent.errors import DeliveryError, UsageError
from agent.messages.payloads import Priority

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
