"""Records of events: asked for at the stations with a key that may do nothing else, checked, and kept as miniSEED."""

from __future__ import annotations

import hashlib
import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import Connection, select, update

from agent.atomic import replace_file
from agent.config.broker import MqttSettings
from agent.errors import ControlError, DataError, TalusError
from agent.messages.schema import EVENT_ID
from agent.types import NS, StationId, place_of
from desk.push.models import ask, command
from desk.push.presence import Waiting
from desk.push.signing import SigningKey
from desk.store import tables as t
from desk.store.store import Store, note_changes
from desk.worker import Worker

WAIT_S = 120.0
"""For a station's answer and its pieces."""
TRIES = 6
FIRST_RETRY_NS = 60 * NS
LONGEST_RETRY_NS = 600 * NS
PAUSE_S = 11.0
"""Between two questions to stations: they take six commands a minute."""
LOOK_S = 3600.0
"""The folder of records is looked through so often: other desks may write to it."""
ROOM = 0.95
"""Share of the room that is left full when the oldest records have to go."""
_UID = re.compile(EVENT_ID)


class Records:
    """A folder of records, one file an event. Any thread may call."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        self._lock = threading.Lock()
        self._bytes = self._looked = 0.0
        """What the folder holds at most, and when it was last looked through, on the monotonic clock."""

    def path(self, uid: str) -> Path:
        """Where the record of an event is, or would be.

        Raises:
            DataError: not an event's identifier.
        """
        if not _UID.fullmatch(uid):
            raise DataError(f"{uid[:80]!r} is no event")
        return self.folder / place_of(uid) / f"{uid}.mseed"

    def keep(self, uid: str, raw: bytes) -> Path:
        """Write a record, and let the oldest go where there is no room."""
        path = self.path(uid)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, raw)
        with self._lock:
            self._bytes += len(raw)
            if not self._looked or self._bytes > self.max_bytes or time.monotonic() - self._looked > LOOK_S:
                self._make_room()
        return path

    def _make_room(self) -> None:
        """Look through the folder, which takes a second where it holds a hundred thousand records; where there is no
        room, the oldest go until there is some to spare."""
        files = [(stat.st_mtime, stat.st_size, file) for file in self.folder.glob("*/*.mseed") if (stat := _stat(file))]
        size = sum(one[1] for one in files)
        if size > self.max_bytes:
            files.sort()
            for _, bytes_, file in files[:-1]:
                file.unlink(missing_ok=True)
                size -= bytes_
                if size <= ROOM * self.max_bytes:
                    break
        self._bytes, self._looked = size, time.monotonic()


def _stat(file: Path) -> os.stat_result | None:
    try:
        return file.stat()
    except FileNotFoundError:  # another desk over the same folder has made room
        return None


class Fetcher(Worker):
    """Asks for the records that stations have offered, one after another."""

    def __init__(
        self, settings: MqttSettings, store: Store, records: Records, key: SigningKey, *, only_alerts: bool,
        arrived: Callable[[Connection, str, int], None] = lambda _connection, _uid, _now_ns: None,
        changed: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        """``arrived`` is called in the transaction that notes an event's record (connection, identifier, ns);
        ``changed`` after each answer that is stored."""
        super().__init__("evidence")
        self._settings, self._store, self._records, self._key = settings, store, records, key
        self._only_alerts, self._arrived, self._changed = only_alerts, arrived, changed

    def step(self) -> float:
        """See ``Worker``. A stop in the middle of a question costs a repetition of it."""
        if not self.fetch_one(time.time_ns()):
            return 10.0
        self.pause(PAUSE_S)
        return 0.0

    def fetch_one(self, now_ns: int) -> bool:
        """Ask for the record that is due; whether there was one."""
        found = self._due(now_ns)
        if found is None:
            return False
        key, uid, station, sha256, tries = found
        network, code = station.split(".")
        try:
            raw = self._ask(StationId(network, code, "", ""), uid, sha256)
        except TalusError as error:
            self.throttled.warn(f"the record of {uid} did not come: {error}", key=station)
            lost = tries + 1 >= TRIES or (isinstance(error, ControlError) and error.kind == "unknown_event")
            wait_ns = FIRST_RETRY_NS << min(tries, 8)
            values: dict[str, object] = {
                "state": "lost" if lost else "offered",
                "tries": tries + 1,
                "asked_ns": now_ns + wait_ns,
            }
            self._write(key, uid, {**values, "error": error.message[:500]})
            return True
        try:
            path = self._records.keep(uid, raw)
        except OSError as error:
            words = f"the record of {uid} cannot be kept: {error}"
            self.throttled.warn(words, key="disk")
            self._write(key, uid, {"asked_ns": now_ns + LONGEST_RETRY_NS, "error": words[:500]})
            return True
        values = {
            "state": "here",
            "path": str(path.relative_to(self._records.folder)),
            "bytes": len(raw),
            "error": None,
        }
        self._write(key, uid, {**values, "sha256": hashlib.sha256(raw).hexdigest()})
        return True

    def _due(self, now_ns: int) -> tuple[int, str, str, str | None, int] | None:
        """The record to ask for: event, its identifier, the agent that has it, its hash, how often it was asked for."""
        v, e = t.evidence.c, t.event.c
        online = t.station.c.availability == "online"
        with self._store.reading() as connection:
            states = connection.execute(select(t.station.c.code, t.station.c.state).where(online)).all()
        agents = {part["station"]: row.code for row in states for part in (row.state or {}).get("stations", [])}
        statement = (
            select(v.event_id, e.uid, t.station.c.code, t.station.c.availability, v.sha256, v.tries)
            .join(t.event, e.id == v.event_id)
            .join(t.sensor, t.sensor.c.id == e.sensor_id)
            .join(t.station, t.station.c.id == t.sensor.c.station_id)
            .where(
                v.state == "offered",
                (v.asked_ns.is_(None)) | (v.asked_ns <= now_ns),
                online | t.station.c.code.in_(agents),
            )
        )
        if self._only_alerts:
            statement = statement.where(e.uid.in_(select(t.alert.c.event_uid)))
        with self._store.reading() as connection:
            row = connection.execute(statement.order_by(v.tries, e.onset_ns.desc()).limit(1)).first()
        if row is None:
            return None
        agent = row.code if row.availability == "online" else agents[row.code]
        return row.event_id, row.uid, agent, row.sha256, row.tries

    def _ask(self, station: StationId, uid: str, sha256: str | None) -> bytes:
        payload = command(self._key, station, {"do": "evidence", "event": uid})
        answer, pieces = ask(Waiting(self._settings, station, WAIT_S), payload, "evidence", uid)
        if answer.status != "done":
            raise ControlError(answer.kind or answer.status, answer.reason or "the station gives no reason")
        raw = b"".join(pieces[number] for number in sorted(pieces))
        if hashlib.sha256(raw).hexdigest() != answer.result.get("sha256") or (
            sha256 and answer.result["sha256"] != sha256
        ):
            raise ControlError("evidence", "what came is not what the station announced")
        return raw

    def _write(self, key: int, uid: str, values: dict[str, object]) -> None:
        with self._store.writing() as connection:
            connection.execute(update(t.evidence).where(t.evidence.c.event_id == key).values(values))
            note_changes(connection, [("evidence", uid)], time.time_ns())
            if values.get("state") == "here":
                self._arrived(connection, uid, time.time_ns())
        self._changed()
