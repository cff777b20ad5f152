"""Records that stations send by themselves after an alert: pieces gathered on disk, checked by hash, then kept."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Connection, select, update

from agent.atomic import replace_file
from agent.errors import DataError, DeliveryError
from agent.messages.payloads import MAX_EVIDENCE, PIECE_BYTES
from desk.evidence import Records
from desk.store import tables as t
from desk.store.store import Change, Store, note_changes

GATHERED_S = 86_400.0
"""Pieces of a record that is not complete after so long are thrown away."""


@dataclass(frozen=True, slots=True)
class _Announced:
    """A record that an event has announced."""

    event_id: int
    state: str
    sha256: str
    bytes: int


class Pieces:
    """Used by one thread. Only records that an event has announced, with size and hash, are gathered."""

    def __init__(
        self,
        store: Store,
        records: Records,
        arrived: Callable[[Connection, str, int], None] = lambda _connection, _uid, _now_ns: None,
    ) -> None:
        """``arrived`` is called in the transaction that notes an event's record (connection, identifier, ns)."""
        self._store, self._records, self._arrived = store, records, arrived
        self._folder = records.folder / ".pieces"

    def take(self, sender: str, event: str, number: str, payload: bytes, now_ns: int) -> list[Change]:
        """One piece, as the end of its topic names it; what changed when it was the last. ``sender`` is the topic's
        station: an agent also sends records of stations without one, so each sender's pieces are gathered apart, and
        none can spoil another's.

        Raises:
            DataError: nobody has announced it, or the pieces are not what was announced.
            DeliveryError: the disk or the database refuses; the same piece is to come again.
        """
        uid = event.replace("_", ".")
        # Python reads no number of thousands of digits.
        if not (
            number.isascii() and number.isdigit() and len(number) < 9 and int(number) < MAX_EVIDENCE // PIECE_BYTES
        ):
            raise DataError(f"{number[:20]!r} is not the number of a piece")
        if not 0 < len(payload) <= PIECE_BYTES:
            raise DataError(f"a piece of {len(payload)} bytes")
        row = self._announced(uid)
        if row.state == "here":
            return []
        try:
            raw = self._gather(f"{sender}/{uid}", int(number), payload, row.bytes)
            if raw is None:
                return []
            if hashlib.sha256(raw).hexdigest() != row.sha256:
                raise DataError(f"the record of {uid} is not what the event announced")
            path = self._records.keep(uid, raw)
        except OSError as error:
            raise DeliveryError(
                f"the record of {uid} cannot be kept: {error.strerror}", "is the desk's disk full?"
            ) from None
        values = {"state": "here", "path": str(path.relative_to(self._records.folder)), "error": None}
        with self._store.writing() as connection:
            connection.execute(update(t.evidence).where(t.evidence.c.event_id == row.event_id).values(values))
            self._arrived(connection, uid, now_ns)
            return note_changes(connection, [("evidence", uid)], now_ns)

    def _announced(self, uid: str) -> _Announced:
        v = t.evidence.c
        statement = select(v.event_id, v.state, v.sha256, v.bytes).join(t.event, t.event.c.id == v.event_id)
        with self._store.reading() as connection:
            row = connection.execute(statement.where(t.event.c.uid == uid)).first()
        if row is None or row.sha256 is None or not 0 < (row.bytes or 0) <= MAX_EVIDENCE:
            raise DataError(f"a piece of a record that no event has announced: {uid[:64]!r}")
        return _Announced(row.event_id, row.state, row.sha256, row.bytes)

    def _gather(self, name: str, number: int, payload: bytes, size: int) -> bytes | None:
        """The whole record once all its pieces are there; they are gone from the disk then."""
        folder = self._folder / name
        if not folder.is_dir():
            self._tidy()
            folder.mkdir(parents=True)
        replace_file(folder / f"{number}.piece", payload)
        files = sorted(folder.glob("*.piece"), key=lambda file: int(file.stem))
        if sum(file.stat().st_size for file in files) < size:
            return None
        raw = b"".join(file.read_bytes() for file in files)
        shutil.rmtree(folder)
        return raw

    def _tidy(self) -> None:
        """Throw away what was never completed."""
        if not self._folder.is_dir():
            return
        for folder in self._folder.glob("*/*"):
            if time.time() - folder.stat().st_mtime > GATHERED_S:
                shutil.rmtree(folder, ignore_errors=True)
