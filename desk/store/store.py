"""What arrives at the desk, written so that every message may come any number of times and in any order.

A batch is one transaction: it is acknowledged to the broker after the commit, so a kill at any moment costs nothing but
a repetition. The revision with the highest number of each event and alert stands; every revision is kept.
"""

from __future__ import annotations

import base64
import json
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import (
    Connection,
    Engine,
    and_,
    bindparam,
    case,
    create_engine,
    event,
    exc,
    func,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url

from agent.errors import ConfigError, DataError, DeliveryError
from agent.messages.envelope import Packed, merged
from agent.messages.schema import (
    AlertMessage,
    ClassificationPart,
    EventMessage,
    HealthMessage,
    MinMaxMessage,
    Payload,
    StateMessage,
)
from agent.types import LABELS, NS, SLOW, EventKind, parse_ns
from desk.store import partitions, thinning
from desk.store import tables as t
from desk.store.layout import prepare

FEED_KEPT = 20_000
"""Changes that a page may have missed and still read on from."""
FEED_CHANNEL = "talus_feed"
"""PostgreSQL's channel on which a desk tells the others that the feed has grown."""
HOUR_NS = 3600 * NS
_log = logging.getLogger(__name__)
_PHASES = ("new", "update", "end")
_WRITER = 7_100_121
"""Number of the advisory lock in PostgreSQL that every writer of the desk's database holds until its commit."""
_POSTGRESQL = (
    "-c lock_timeout=20000 -c statement_timeout=60000 -c idle_in_transaction_session_timeout=60000"
    " -c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3"
)
"""Milliseconds and seconds. What a desk held that is gone, also with its network, is free again after half a minute."""

# Statements that every message needs are built once: SQLAlchemy takes longer to build one than SQLite to run it.
_KNOWN_EVENTS = select(t.event.c.uid, t.event.c.id, t.event.c.revision, t.event.c.review).where(
    t.event.c.uid.in_(bindparam("uids", expanding=True))
)
_NEWER_EVENT = update(t.event).where(t.event.c.id == bindparam("key"), t.event.c.revision < bindparam("newest"))
_HEARD = update(t.station).where(t.station.c.id == bindparam("key")).values(heard_ns=bindparam("at_ns"))
_NEWER_HEALTH = (
    update(t.station)
    .where(
        t.station.c.id == bindparam("key"),
        t.station.c.health_ns.is_(None) | (t.station.c.health_ns <= bindparam("time_ns")),
    )
    .values(health=bindparam("message"), health_ns=bindparam("time_ns"))
)
_GIVE_UP_SOON = text("SET LOCAL lock_timeout = '1s'")
_ADD_CHANGES = insert(t.feed)
_NEWEST_CHANGE = select(func.max(t.feed.c.id))


@dataclass(frozen=True, slots=True)
class Arrival:
    """One message from the broker, checked: ``station`` is the topic's NET.STA, ``body`` a payload or, for
    ``availability``, its word. ``received_ns`` is the desk's clock."""

    station: str
    body: Payload | str
    received_ns: int
    imported: bool = False
    """Of an archive: no station has sent it."""


@dataclass(frozen=True, slots=True)
class Change:
    """What an entry of the feed says: ``kind`` (event, alert, station, ack, review, silence, evidence) and whose."""

    kind: str
    subject: str


AlertHook = Callable[[Connection, int, AlertMessage, int], None]
"""Called inside the transaction that stores a revision of an alert for the first time, unless a newer one is stored
already: connection, the alert's key, the message, and when it was received (ns). What it writes is committed with the
alert, or not at all."""


class Store:
    """Safe to use from any thread. Writes are one at a time, of all the desks over one database; readers see what is
    committed. So the keys of the feed are committed in their order, and a page that read up to one has missed none.

    Every method raises DeliveryError when the database refuses (full, locked, gone), and DataError when it cannot hold
    what it is given; nothing is changed then.
    """

    def __init__(
        self, url: str, on_alert: AlertHook | None = None, *, envelope_days: int = 400, health_days: int = 400
    ) -> None:
        """Open or make the database of ``url`` (``sqlite:///path`` or ``postgresql+psycopg://...``). Minima and maxima
        for drum plots are kept for ``envelope_days``, the health of each hour for ``health_days``, then of each day.

        Raises:
            ConfigError: not a database that the desk can use, or one of another layout.
        """
        self.engine = _engine(url)
        self.is_postgresql = self.engine.dialect.name == "postgresql"
        self._writer = self.engine.execution_options(talus_writes=True)
        self._on_alert = on_alert
        self.envelope_days = envelope_days
        self.health_days = health_days
        self._kept_up_ns = 0
        self._lock = threading.RLock()
        self._read_error: str | None = None
        self._write_error: str | None = None
        self._stations: dict[str, int] = {}
        self._sending: set[str] = set()
        """Stations that are known to have sent something."""
        self._declared: dict[str, dict[str, Any]] = {}
        """Positions of stations as the agent that works on their data tells them."""
        self._sensors: dict[str, int] = {}
        self._upsert = postgresql.insert if self.is_postgresql else sqlite.insert
        self._add_events = self._upsert(t.event).on_conflict_do_nothing(index_elements=["uid"])
        self._add_revisions = self._upsert(t.revision).on_conflict_do_nothing(index_elements=["event_id", "number"])
        self._add_hours = _counted_hours(self._upsert(t.health_hour))
        self._add_evidence = self._upsert(t.evidence).on_conflict_do_nothing(index_elements=["event_id"])
        try:
            with self.writing() as connection:
                prepare(connection)
        except (DeliveryError, DataError) as error:
            raise ConfigError(
                f"the desk's database cannot be opened: {error.message}", f"see the address {_without_password(url)}"
            ) from None

    def close(self) -> None:
        """Close every connection to the database."""
        self.engine.dispose()

    @property
    def refusal(self) -> str | None:
        """Why the database did not take or give what it was last asked for; None while all is well."""
        return self._write_error or self._read_error

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection that reads.

        Raises:
            DeliveryError: the database does not answer.
        """
        try:
            with self.engine.connect() as connection:
                yield connection
        except exc.DBAPIError as error:
            self._read_error = f"the desk's database does not answer: {_why(error)}"
            raise DeliveryError(self._read_error, "see its log") from None
        self._read_error = None

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction for one writer."""
        with self._lock:
            try:
                with self._writer.begin() as connection:
                    if self.is_postgresql:
                        connection.execute(select(func.pg_advisory_xact_lock(_WRITER)))
                    yield connection
            except BaseException as error:
                # Keys of rows that were not committed.
                self._stations.clear()
                self._sending.clear()
                self._sensors.clear()
                if isinstance(error, exc.DBAPIError) and not isinstance(error, (exc.DataError, exc.IntegrityError)):
                    self._write_error = f"the desk's database refuses: {_why(error)}"
                    raise DeliveryError(self._write_error, "is its disk full?") from None
                if isinstance(error, exc.StatementError):
                    raise DataError(f"the desk's database cannot hold this: {_why(error)}") from None
                raise
            self._write_error = None

    def ingest(self, arrivals: Sequence[Arrival]) -> list[Change]:
        """Store a batch in one transaction; returns what changed. What is known already changes nothing."""
        if any(isinstance(arrival.body, (HealthMessage, MinMaxMessage)) for arrival in arrivals):
            self._keep_up(max(arrival.received_ns for arrival in arrivals))
        with self.writing() as connection:
            self._note_senders(connection, arrivals)
            changed: dict[tuple[str, str], int] = {}
            events = _newest_last([a for a in arrivals if isinstance(a.body, EventMessage)])
            self._ingest_events(connection, events, changed)
            others = (EventMessage, AlertMessage, MinMaxMessage)
            self._ingest_stations(connection, [a for a in arrivals if not isinstance(a.body, others)], changed)
            for arrival in arrivals:
                if isinstance(arrival.body, AlertMessage):
                    self._ingest_alert(connection, arrival, arrival.body, changed)
                elif isinstance(arrival.body, MinMaxMessage):
                    self._ingest_envelope(connection, arrival, arrival.body)
            return note_changes(connection, list(changed), max((a.received_ns for a in arrivals), default=0))

    # -- what goes by its age

    def _keep_up(self, now_ns: int) -> None:
        """Once an hour let go what is old and make the next partitions. It does not hold up what comes: what has no
        partition lies in the default one, and what is refused is tried again an hour later."""
        with self._lock:
            if 0 <= now_ns - self._kept_up_ns <= HOUR_NS:
                return
            self._kept_up_ns = now_ns
            before_day = now_ns // (24 * HOUR_NS) - self.health_days
            oldest_ns = {
                t.envelope: now_ns - self.envelope_days * 24 * HOUR_NS,
                t.health_hour: before_day * 24 * HOUR_NS,
            }
            minmax, hours = t.envelope, t.health_hour
            try:
                if self.is_postgresql:
                    for one in partitions.MONTHLY:
                        self._keep_partitions(one, oldest_ns[one.table], now_ns)
                    minmax, hours = (one.default for one in partitions.MONTHLY)
                with self.writing() as connection:
                    connection.execute(minmax.delete().where(minmax.c.start_ns < oldest_ns[t.envelope]))
                    thinning.thin(connection, self._upsert, before_day, hours)
            except (DeliveryError, DataError) as error:
                _log.warning("old rows of the desk's database stay for another hour: %s", error)

    def _keep_partitions(self, one: partitions.Monthly, oldest_ns: int, now_ns: int) -> None:
        """Drop the months that ended before ``oldest_ns``, and make those that are needed, each in a transaction of its
        own: it keeps readers away from the table for that long, and gives up soon where one holds it."""
        with self.reading() as connection:
            over = partitions.over(connection, one, oldest_ns)
            missing = partitions.missing(connection, one, oldest_ns, now_ns)
        for month in (*missing, *over):
            with self.writing() as connection:
                connection.execute(_GIVE_UP_SOON)
                if month in missing:
                    partitions.make(connection, one, month)
                elif month in partitions.months(connection, one):
                    if one.table is t.health_hour:
                        hour = t.health_hour.c.hour
                        span = and_(hour >= one.begin(month), hour < one.begin(month + 1))
                        thinning.add_days(connection, self._upsert, t.health_hour, span)
                    partitions.drop(connection, one, month)

    # -- events

    def _ingest_events(
        self, connection: Connection, arrivals: Sequence[Arrival], changed: dict[tuple[str, str], int]
    ) -> None:
        if not arrivals:
            return
        bodies = [(a, a.body) for a in arrivals if isinstance(a.body, EventMessage)]
        uids = sorted({body.id for _, body in bodies})
        known = self._known_events(connection, uids)
        newest: dict[str, tuple[Arrival, EventMessage]] = {}
        for arrival, body in bodies:
            newest[body.id] = arrival, body
        fresh = [uid for uid in uids if uid not in known]
        if fresh:
            rows = [self._event_row(connection, *newest[uid]) for uid in fresh]
            connection.execute(self._add_events, rows)
            known.update(self._known_events(connection, fresh))
            changed.update((("event", uid), 1) for uid in fresh)
        newer = []
        for uid, (arrival, body) in newest.items():
            key, revision, reviewed = known[uid]
            if body.revision > revision:
                row = self._event_row(connection, arrival, body)
                if reviewed is not None:
                    row["class"] = reviewed
                newer.append({**row, "key": key, "newest": body.revision})
                changed["event", uid] = 1
        if newer:
            connection.execute(_NEWER_EVENT, newer)
        rows = [_revision_row(known[body.id][0], arrival, body) for arrival, body in bodies]
        connection.execute(self._add_revisions, rows)
        offered = [
            {"event_id": known[body.id][0], "state": "offered", "sha256": part.sha256, "bytes": part.bytes}
            for _, body in newest.values()
            if (part := body.evidence) is not None
        ]
        if offered:
            connection.execute(self._add_evidence, offered)

    def _known_events(self, connection: Connection, uids: Sequence[str]) -> dict[str, tuple[int, int, int | None]]:
        """Key, revision and reviewed class of the events that are stored, by identifier."""
        found: dict[str, tuple[int, int, int | None]] = {}
        for begin in range(0, len(uids), 500):
            for row in connection.execute(_KNOWN_EVENTS, {"uids": uids[begin : begin + 500]}):
                found[row.uid] = row.id, row.revision, row.review
        return found

    def _event_row(self, connection: Connection, arrival: Arrival, body: EventMessage) -> dict[str, Any]:
        verdict = body.classification
        return {
            "uid": body.id,
            "sensor_id": self.sensor_id(
                connection, arrival.station, body.station, 0 if arrival.imported else arrival.received_ns
            ),
            "onset_ns": parse_ns(body.onset),
            "revision": body.revision,
            "ended": body.phase == "end",
            "class": class_of(body.kind, verdict),
            "label": None if verdict is None else LABELS.index(verdict.label),
            "probability": None if verdict is None else verdict.probability,
            "doubt": doubt_of(verdict) - (t.IMPORTED if arrival.imported else 0.0),
            "ratio": body.detection.ratio,
            "duration_s": body.detection.duration_s,
            "peak_counts": body.detection.peak_counts,
            "exercise": body.exercise,
            "received_ns": arrival.received_ns,
            "body": body,
        }

    # -- alerts

    def _ingest_alert(
        self, connection: Connection, arrival: Arrival, body: AlertMessage, changed: dict[tuple[str, str], int]
    ) -> None:
        row = {
            "uid": body.id,
            "event_uid": body.id if body.rate is None else body.rate.event,
            "sensor_id": self.sensor_id(connection, arrival.station, body.station, arrival.received_ns),
            "onset_ns": parse_ns(body.onset),
            "revision": body.revision,
            "action": body.action,
            "severity": body.severity,
            "label": body.label,
            "exercise": body.exercise,
            "raised_ns": arrival.received_ns,
            "body": body,
        }
        connection.execute(self._upsert(t.alert).on_conflict_do_nothing(index_elements=["uid"]), [row])
        key: int = connection.execute(select(t.alert.c.id).where(t.alert.c.uid == body.id)).scalar_one()
        newer = {name: row[name] for name in ("revision", "action", "severity", "label", "exercise", "body")}
        older = (t.alert.c.id == key) & (t.alert.c.revision < body.revision)
        connection.execute(update(t.alert).where(older).values(newer))
        stands = connection.execute(select(t.alert.c.revision).where(t.alert.c.id == key)).scalar_one()
        told = (t.alert_revision.c.alert_id == key) & (t.alert_revision.c.number == body.revision)
        if connection.execute(select(t.alert_revision.c.number).where(told)).first() is None:
            connection.execute(
                insert(t.alert_revision).values(
                    alert_id=key,
                    number=body.revision,
                    received_ns=arrival.received_ns,
                    action=body.action,
                    body=body,
                )
            )
            changed["alert", body.id] = 1
            if self._on_alert is not None and body.revision == stands:
                self._on_alert(connection, key, body, arrival.received_ns)

    # -- envelopes

    def _ingest_envelope(self, connection: Connection, arrival: Arrival, body: MinMaxMessage) -> None:
        """Keep the minima and maxima of some seconds. Of a block that comes twice, as after a restart in the middle of
        it, both count."""
        table = t.envelope
        key = {
            "sensor_id": self.sensor_id(connection, arrival.station, body.station, arrival.received_ns),
            "component": body.component,
            "start_ns": parse_ns(body.start),
        }
        packed = Packed(body.count, body.scale, body.data)
        mine = and_(*(table.c[name] == value for name, value in key.items()))
        known = connection.execute(select(table.c.seconds, table.c.scale, table.c.data).where(mine)).first()
        if known is not None:
            packed = merged(packed, Packed(known.seconds, known.scale, base64.b64encode(known.data).decode()))
        values = {"seconds": packed.count, "scale": packed.scale, "data": base64.b64decode(packed.data)}
        statement = self._upsert(table).values({**key, **values})
        connection.execute(statement.on_conflict_do_update(index_elements=list(key), set_=values))

    # -- stations

    def _note_senders(self, connection: Connection, arrivals: Sequence[Arrival]) -> None:
        """Stations that were known from an archive alone, and send something now, are stations like the others."""
        for arrival in arrivals:
            if not arrival.imported and arrival.station not in self._sending:
                only_imported = (t.station.c.code == arrival.station) & (t.station.c.heard_ns == 0)
                connection.execute(update(t.station).where(only_imported).values(heard_ns=arrival.received_ns))
                self._sending.add(arrival.station)

    def station_id(self, connection: Connection, code: str, heard_ns: int) -> int:
        """The key of a station, which is made where it is new. ``heard_ns`` is 0 for what is imported."""
        if code not in self._stations:
            row = {"code": code, "heard_ns": heard_ns, **self._declared.get(code, {})}
            connection.execute(self._upsert(t.station).on_conflict_do_nothing(index_elements=["code"]), [row])
            found = connection.execute(select(t.station.c.id).where(t.station.c.code == code)).scalar_one()
            self._stations[code] = found
        return self._stations[code]

    def sensor_id(self, connection: Connection, station: str, code: str, heard_ns: int) -> int:
        """The key of a sensor of a station, which is made where it is new."""
        if code not in self._sensors:
            row = {"code": code, "station_id": self.station_id(connection, station, heard_ns)}
            connection.execute(self._upsert(t.sensor).on_conflict_do_nothing(index_elements=["code"]), [row])
            found = connection.execute(select(t.sensor.c.id).where(t.sensor.c.code == code)).scalar_one()
            self._sensors[code] = found
        return self._sensors[code]

    def _ingest_stations(
        self, connection: Connection, arrivals: Sequence[Arrival], changed: dict[tuple[str, str], int]
    ) -> None:
        told: dict[int, dict[str, Any]] = {}
        newest: dict[int, dict[str, Any]] = {}
        hours = []
        for arrival in arrivals:
            key, body = self.station_id(connection, arrival.station, arrival.received_ns), arrival.body
            values = told.setdefault(key, {})
            values["heard_ns"] = arrival.received_ns
            changed["station", arrival.station] = 1
            if isinstance(body, str):
                values |= {"availability": body, "availability_ns": arrival.received_ns}
            elif isinstance(body, HealthMessage):
                time_ns = parse_ns(body.time)
                hours.append(_health_row(key, time_ns, body))
                if key not in newest or newest[key]["time_ns"] <= time_ns:
                    newest[key] = {"key": key, "time_ns": time_ns, "message": body}
            elif isinstance(body, StateMessage):
                values["state"] = body
                if body.position is not None:
                    values |= body.position.model_dump()
                self._place_others(connection, body)
        heard = [{"key": key, "at_ns": values["heard_ns"]} for key, values in told.items() if len(values) == 1]
        if heard:
            connection.execute(_HEARD, heard)
        for key, values in told.items():
            if len(values) > 1:
                connection.execute(update(t.station).where(t.station.c.id == key).values(values))
        if newest:
            connection.execute(_NEWER_HEALTH, list(newest.values()))
            connection.execute(self._add_hours, hours)

    def _place_others(self, connection: Connection, body: StateMessage) -> None:
        """Positions of stations that have no agent of their own, as the agent that works on their data tells them."""
        for part in body.stations:
            if part.position is not None:
                self._declared[part.station] = part.position.model_dump()
                none_of_its_own = (t.station.c.code == part.station) & t.station.c.state.is_(None)
                connection.execute(update(t.station).where(none_of_its_own).values(self._declared[part.station]))


def _health_row(key: int, time_ns: int, body: HealthMessage) -> dict[str, Any]:
    reasons = json.dumps([reason.model_dump() for reason in body.reasons])
    shares = [one.armed_10min for one in body.hearing if one.armed_10min is not None]
    return {
        "station_id": key, "hour": time_ns // HOUR_NS, "messages": 1, "degraded": int(body.status != "ok"),
        "reasons": reasons, "armed": min(shares, default=None),
    }  # fmt: skip


def _counted_hours(statement: Any) -> Any:
    """The statement that adds rows of one message each to the hours that are there."""
    known, more = t.health_hour.c, statement.excluded
    mean = (known.armed * known.messages + more.armed) / (known.messages + 1)
    changes = {
        "messages": known.messages + 1,
        "degraded": known.degraded + more.degraded,
        "reasons": case((more.degraded > 0, more.reasons), else_=known.reasons),
        "armed": func.coalesce(mean, more.armed, known.armed),
    }
    return statement.on_conflict_do_update(index_elements=["station_id", "hour"], set_=changes)


def class_of(kind: EventKind, verdict: ClassificationPart | None) -> int:
    """The class of an event that nobody has answered."""
    if verdict is None:
        return t.SLOW if kind == SLOW else t.UNCLASSIFIED
    return t.UNDECIDED if verdict.abstained else LABELS.index(verdict.label)


def doubt_of(verdict: ClassificationPart | None) -> float:
    """How unsure the network was: 1 where it gave no verdict, else 1 - p of its answer, and above 1 if it abstained."""
    if verdict is None:
        return 1.0
    return (1.0 if verdict.abstained else 0.0) + 1.0 - verdict.probability


def note_changes(connection: Connection, changes: Sequence[tuple[str, str]], when_ns: int) -> list[Change]:
    """Append to the feed: (kind, subject) each. The oldest entries beyond ``FEED_KEPT`` go."""
    if changes:
        rows = [{"when_ns": when_ns, "kind": kind, "subject": subject} for kind, subject in changes]
        connection.execute(_ADD_CHANGES, rows)
        newest: int = connection.execute(_NEWEST_CHANGE).scalar_one()
        if newest % 1000 < len(changes):
            connection.execute(t.feed.delete().where(t.feed.c.id <= newest - FEED_KEPT))
        if connection.dialect.name == "postgresql":
            connection.execute(select(func.pg_notify(FEED_CHANNEL, "")))
    return [Change(kind, subject) for kind, subject in changes]


@dataclass(frozen=True, slots=True)
class Act:
    """What a person did: ``what`` (ack, review, login, ...) to ``subject``; ``address`` is the client's."""

    who: str
    what: str
    subject: str
    detail: str = ""
    address: str = ""


def audit(connection: Connection, act: Act, when_ns: int) -> None:
    """Record an act of a person."""
    row = {
        "when_ns": when_ns, "who": act.who, "act": act.what, "subject": act.subject, "detail": act.detail,
        "address": act.address,
    }  # fmt: skip
    connection.execute(insert(t.audit).values(row))


def _revision_row(key: int, arrival: Arrival, body: EventMessage) -> dict[str, Any]:
    verdict = body.classification
    shares = None
    if verdict is not None:
        shares = bytes(round(255 * float(getattr(verdict.probabilities, label))) for label in LABELS)
    return {
        "event_id": key,
        "number": body.revision,
        "received_ns": arrival.received_ns,
        "phase": _PHASES.index(body.phase),
        "label": None if verdict is None else LABELS.index(verdict.label),
        "abstained": None if verdict is None else verdict.abstained,
        "window_s": None if verdict is None else verdict.window_s,
        "probabilities": shares,
    }


def _newest_last(arrivals: Sequence[Arrival]) -> list[Arrival]:
    """Events by revision, so that the last of each identifier is its newest."""
    return sorted(arrivals, key=lambda a: a.body.revision if isinstance(a.body, EventMessage) else 0)


def _engine(url: str) -> Engine:
    try:
        parsed = make_url(url)
    except exc.ArgumentError:
        raise ConfigError(f"{url!r} is no address of a database", "write sqlite:///desk.db") from None
    name = parsed.get_backend_name()
    if name == "sqlite":
        return _sqlite(parsed)
    if name != "postgresql":
        raise ConfigError(f"the desk does not know {name} databases", "use sqlite:///... or postgresql+psycopg://...")
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    options = f"{_POSTGRESQL} {parsed.query.get('options', '')}"
    given = {"connect_timeout": 10, "options": options.strip()}
    try:
        return create_engine(parsed, pool_pre_ping=True, connect_args=given)
    except (ImportError, exc.NoSuchModuleError) as error:
        raise ConfigError(
            f"the driver of this database is not installed: {error}", "pip install 'talus-agent[desk,postgres]'"
        ) from None


def _sqlite(url: URL) -> Engine:
    if url.database and url.database != ":memory:":
        try:
            Path(url.database).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{url.database}: {error.strerror}", "name a file that the desk may write") from None
    engine = create_engine(url, connect_args={"timeout": 10.0, "check_same_thread": False})
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: object) -> None:
    # Python's module would begin a transaction only before the first change, and none for a table that is made.
    connection.isolation_level = None
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        "cache_size=-8000",  # of each connection; the system's own cache holds the file
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("talus_writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _without_password(url: str) -> str:
    return make_url(url).render_as_string(hide_password=True)


def _why(error: exc.StatementError) -> str:
    return (str(error.orig).splitlines() or [type(error.orig).__name__])[0]
