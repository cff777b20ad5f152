"""How far each file has been read, on disk: survives a kill at any moment, a loss of power but for the last moments.

A file is known by how it begins, not by its name: a rotated or copied file goes on where its content left off.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from agent.errors import SourceError
from agent.host.disk import is_read_only, readable_copy, refuses

HEAD_BYTES = 64
"""The first record's header: channel, time and number of samples, which no two files share."""
TAIL_BYTES = 4096
"""Enough to hold a header or samples: the end of a record may be padding."""
_KEPT_S = 30 * 86400.0
"""Files that are gone are forgotten after so long."""


def digest(data: bytes) -> bytes:
    """Eight bytes that tell contents apart."""
    return hashlib.blake2b(data, digest_size=8).digest()


@dataclass(frozen=True, slots=True)
class Position:
    """``offset`` bytes are read; ``tail`` is the digest of the last ``TAIL_BYTES`` of them, or of all."""

    offset: int
    tail: bytes


class Positions:
    """A table of positions by the digest of a file's first ``HEAD_BYTES``. For the thread that opened it.

    On a disk that is read-only, full or failing it is held in memory, with what the disk still shows.

    Raises:
        SourceError: the database cannot be opened or read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.refused: str | None = None
        """Why a disk that is not read-only holds no positions; None where it does."""
        try:
            if is_read_only(path.parent):
                self._db = self._in_memory()
                return
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._db = self._open()
            except (OSError, sqlite3.Error) as error:
                if not refuses(error):
                    raise
                self._db = self._in_memory()
                self.refused = str(error)
        except (OSError, sqlite3.Error) as error:
            raise SourceError(
                f"{path}: positions cannot be kept ({error})", "see its permissions, and the disk"
            ) from None

    def _in_memory(self) -> sqlite3.Connection:
        """The positions of a disk that refuses to be written, kept in memory from now on."""
        db = sqlite3.connect(":memory:", isolation_level=None)
        with readable_copy(self._path) as copy:
            if copy is not None:
                with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(copy)) as stored:
                    stored.backup(db)
        return self._prepared(db)

    def _open(self) -> sqlite3.Connection:
        return self._prepared(sqlite3.connect(self._path, isolation_level=None))

    def _prepared(self, db: sqlite3.Connection) -> sqlite3.Connection:
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=NORMAL")
            db.execute(
                "CREATE TABLE IF NOT EXISTS positions (head BLOB NOT NULL, path BLOB NOT NULL,"
                " offset INTEGER NOT NULL, tail BLOB NOT NULL, seen REAL NOT NULL,"
                " PRIMARY KEY (head, path)) WITHOUT ROWID"
            )
        except sqlite3.DatabaseError as error:
            db.close()
            if isinstance(error, sqlite3.OperationalError):
                raise
            # Not a database, or a damaged one: what was read is not known any more.
            for suffix in ("", "-wal", "-shm"):
                with contextlib.suppress(FileNotFoundError):
                    Path(f"{self._path}{suffix}").replace(f"{self._path}.damaged{suffix}")
            return self._open()
        return db

    def get(self, head: bytes) -> dict[Path, Position]:
        """How far content that begins like this was read, by path.

        Raises:
            OSError: the disk does not give them.
        """
        try:
            rows = self._db.execute("SELECT path, offset, tail FROM positions WHERE head = ?", (head,)).fetchall()
        except sqlite3.Error as error:
            raise OSError(f"where it was left off is not known: {error}") from None
        return {Path(os.fsdecode(path)): Position(offset, tail) for path, offset, tail in rows}

    def put(self, entries: Iterable[tuple[bytes, Path, Position]]) -> None:
        """Store positions by head and path, all or none.

        Raises:
            OSError: the disk refuses them.
        """
        now = time.time()
        rows = [(head, os.fsencode(path), position.offset, position.tail, now) for head, path, position in entries]
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.executemany("INSERT OR REPLACE INTO positions VALUES (?, ?, ?, ?, ?)", rows)
                self._db.execute("COMMIT")
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise OSError(str(error)) from None

    def forget_gone(self) -> None:
        """Drop what was last read long ago and is no longer there, unless the disk refuses."""
        old = self._db.execute("SELECT head, path FROM positions WHERE seen < ?", (time.time() - _KEPT_S,)).fetchall()
        gone = [row for row in old if not os.path.exists(row[1])]  # noqa: PTH110 - a path as bytes
        with contextlib.suppress(sqlite3.OperationalError):
            self._db.executemany("DELETE FROM positions WHERE head = ? AND path = ?", gone)

    def close(self) -> None:
        self._db.close()
