"""What pages, the interface for programs and the exports ask of the database.

Each function is one or a few statements on a connection of its own, and returns plain frozen values. Lists are read
page by page with a key (onset and row), never with an offset, so that the millionth event costs what the first does.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, Connection, Row, Select, bindparam, exists, func, or_, select, text

from agent.types import LABELS, NS, SLOW
from desk.store import tables as t
from desk.store.partitions import HOURS, spans
from desk.store.thinning import share

HOUR_NS = 3600 * NS
PAGE = 100
"""Rows of a list that are read at once, unless told otherwise."""
FEED_PAGE = 1000
"""Changes that are read at once."""
QUIET_NS = 180 * NS
"""A station that is online and has not been heard for so long is called silent."""
COMPARED = 1000
"""Events of the same sensor with which the size of one is compared."""
NEIGHBOUR_NS = 60 * NS
"""Events of other sensors this close in onset are shown beside an event."""


@dataclass(frozen=True, slots=True)
class EventRow:
    """One line of a list of events. ``name`` is the class: a label, ``undecided``, ``unclassified`` or ``slow``;
    ``review`` the label that a person gave."""

    key: int
    uid: str
    sensor: str
    onset_ns: int
    revision: int
    ended: bool
    name: str
    label: str | None
    probability: float | None
    ratio: float | None
    duration_s: float | None
    peak_counts: float | None
    exercise: bool
    review: str | None
    alert: str | None
    """``raise severe``, ``retract severe``; None where there was none."""
    imported: bool
    """From an archive: no station has sent it."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One revision of an event: ``shares`` are the probabilities by label, to 1/255."""

    number: int
    received_ns: int
    window_s: float | None
    name: str
    shares: dict[str, float] | None


@dataclass(frozen=True, slots=True)
class StationRow:
    """A station as the desk knows it. ``health`` and ``state`` are its newest messages."""

    code: str
    availability: str | None
    availability_ns: int | None
    heard_ns: int
    health_ns: int | None
    health: dict[str, Any] | None
    state: dict[str, Any] | None
    position: tuple[float, float, float | None] | None
    """Latitude and longitude, degrees; elevation, metres."""

    def status(self, now_ns: int) -> str:
        """How the station is, in one word: what it says itself, unless it cannot say it any more."""
        if self.availability in ("offline", "stopped"):
            return self.availability
        if self.availability is None and self.health is None and self.state is None:
            # It has never said how it is, as one without an agent of its own: it cannot fall silent.
            return "unknown" if self.heard_ns else "imported"
        if now_ns - self.heard_ns > QUIET_NS:
            return "silent"
        return str((self.health or {}).get("status", "unknown"))


@dataclass(frozen=True, slots=True)
class Call:
    """A notification about an alert. ``state``: waiting, sending, sent or dropped; ``error``: why it was not sent."""

    target: str
    state: str
    due_ns: int
    sent_ns: int | None
    tries: int
    error: str | None


@dataclass(frozen=True, slots=True)
class AlertRow:
    """An alert in its newest revision, with the acknowledgement that stands."""

    key: int
    uid: str
    event_uid: str
    sensor: str
    onset_ns: int
    revision: int
    action: str
    severity: str
    label: str
    exercise: bool
    raised_ns: int
    acked_ns: int | None
    acked_by: str | None
    asked_ns: int
    """When what was acknowledged came, the alert itself or its escalation; of an open one, when the alert came."""
    reason: str
    calls: tuple[Call, ...]
    """The newest of each target, in the order in which they are due; without the pictures that follow."""

    @property
    def is_open(self) -> bool:
        """Whether it waits for someone: not acknowledged and not retracted."""
        return self.acked_ns is None and self.action != "retract"


@dataclass(frozen=True, slots=True)
class Filter:
    """Which events. Times in ns; ``reviewed``: True for those that a person has answered."""

    sensor: str | None = None
    station: str | None = None
    name: str | None = None
    names: tuple[str, ...] | None = None
    """One of several classes."""
    stations: tuple[str, ...] | None = None
    """One of several stations."""
    from_ns: int | None = None
    to_ns: int | None = None
    reviewed: bool | None = None
    alerted: bool = False
    exercise: bool | None = None


def events(
    connection: Connection, wanted: Filter | None = None, *, before: tuple[int, int] | None = None, limit: int = PAGE
) -> list[EventRow]:
    """The newest events first. ``before``: onset and key of the last row of the page before."""
    statement = _event_columns()
    for condition in _conditions(wanted or Filter()):
        statement = statement.where(condition)
    if before is not None:
        onset_ns, key = before
        # The first condition alone is a range of the index; with OR the database would read from the newest event on.
        statement = statement.where(
            t.event.c.onset_ns <= onset_ns, or_(t.event.c.onset_ns < onset_ns, t.event.c.id < key)
        )
    statement = statement.order_by(t.event.c.onset_ns.desc(), t.event.c.id.desc()).limit(limit)
    return [_event_row(row) for row in connection.execute(statement)]


def event(connection: Connection, uid: str) -> tuple[EventRow, dict[str, Any]] | None:
    """One event and its newest message."""
    row = connection.execute(_event_columns(t.event.c.body).where(t.event.c.uid == uid)).first()
    return None if row is None else (_event_row(row), row.body)


def events_of(connection: Connection, uids: Sequence[str]) -> list[EventRow]:
    """The events of so many identifiers that are stored, in no order."""
    return [_event_row(row) for row in connection.execute(_EVENTS_OF, {"uids": uids})] if uids else []


def verdicts(connection: Connection, key: int) -> list[Verdict]:
    """How the verdict on an event grew, oldest first."""
    statement = select(t.revision, t.event.c.uid).join(t.event).where(t.revision.c.event_id == key)
    rows = connection.execute(statement.order_by(t.revision.c.number))
    found = []
    for row in rows:
        shares = None
        if row.probabilities is not None:
            shares = {label: round(part / 255, 3) for label, part in zip(LABELS, row.probabilities, strict=True)}
        if row.label is None:
            name = SLOW if row.uid.endswith("-slow") else "unclassified"
        else:
            name = "undecided" if row.abstained else LABELS[row.label]
        found.append(Verdict(row.number, row.received_ns, row.window_s, name, shares))
    return found


def neighbours(connection: Connection, row: EventRow) -> list[EventRow]:
    """Events of other sensors within ``NEIGHBOUR_NS``."""
    span = t.event.c.onset_ns.between(row.onset_ns - NEIGHBOUR_NS, row.onset_ns + NEIGHBOUR_NS)
    statement = _event_columns().where(span, t.event.c.id != row.key, t.sensor.c.code != row.sensor)
    return [_event_row(found) for found in connection.execute(statement.order_by(t.event.c.onset_ns).limit(PAGE))]


def peaks_before(connection: Connection, row: EventRow) -> list[float]:
    """Peaks (counts) of the ``COMPARED`` events of the same sensor before one, exercises with exercises."""
    e = t.event.c
    mine = e.sensor_id == select(t.sensor.c.id).where(t.sensor.c.code == row.sensor).scalar_subquery()
    statement = (
        select(e.peak_counts)
        .where(mine, e.onset_ns < row.onset_ns, e.exercise.is_(row.exercise), e.peak_counts.is_not(None))
        .order_by(e.onset_ns.desc())
        .limit(COMPARED)
    )
    return list(connection.execute(statement).scalars())


def queue(connection: Connection, *, limit: int = PAGE, exercise: bool = False) -> list[EventRow]:
    """Ended events that nobody has answered, those first of which the network was least sure; imported ones last."""
    # The words of the partial index, which the database would not recognise in another form.
    statement = (
        _event_columns()
        .where(text("review IS NULL AND ended"), t.event.c.exercise.is_(exercise))
        .order_by(t.event.c.doubt.desc(), t.event.c.onset_ns.desc())
        .limit(limit)
    )
    return [_event_row(row) for row in connection.execute(statement)]


def random_unreviewed(
    connection: Connection, limit: int, *, exercise: bool = False, imported: bool = False
) -> list[EventRow]:
    """Ended events that nobody has answered, imported or not, drawn at random: one near each of some random keys. They
    are fewer than ``limit`` where most of those that are stored are of the other kind."""
    top = connection.execute(select(func.max(t.event.c.id))).scalar_one() or 0
    statement = (
        _event_columns()
        .where(text("review IS NULL AND ended"), t.event.c.exercise.is_(exercise))
        .where(t.event.c.id >= bindparam("least"))
        .order_by(t.event.c.id)
        .limit(1)
    )
    found: dict[int, EventRow] = {}
    for _ in range(4 * limit if top else 0):
        if len(found) == limit:
            break
        row = connection.execute(statement, {"least": 1 + secrets.randbelow(top)}).first()
        if row is not None and (row.doubt < 0) == imported:
            found[row.id] = _event_row(row)
    return list(found.values())


def stations(connection: Connection, codes: Sequence[str] | None = None, *, imported: bool = False) -> list[StationRow]:
    """All stations, or those of some codes, by code; without those that came, told nothing of themselves and stopped,
    as a drill (``talus simulate``) does. ``imported``: also those of an archive, which have sent the desk nothing."""
    found = []
    statement = select(t.station).order_by(t.station.c.code)
    if codes is not None:
        statement = statement.where(t.station.c.code.in_(codes))
    s = t.station.c
    statement = statement.where(
        or_(s.health_ns.is_not(None), s.state.is_not(None), s.availability.is_distinct_from("stopped"))
    )
    if not imported:
        statement = statement.where(s.heard_ns != 0)
    for row in connection.execute(statement):
        position = None
        if row.latitude is not None and row.longitude is not None:
            position = row.latitude, row.longitude, row.elevation_m
        found.append(
            StationRow(
                row.code, row.availability, row.availability_ns, row.heard_ns, row.health_ns, row.health, row.state,
                position,
            )
        )  # fmt: skip
    return found


def sensors(connection: Connection, station: str) -> list[str]:
    """Codes of a station's sensors."""
    statement = select(t.sensor.c.code).join(t.station).where(t.station.c.code == station).order_by(t.sensor.c.code)
    return list(connection.execute(statement).scalars())


def alerts(
    connection: Connection,
    *,
    only_open: bool = False,
    uids: Sequence[str] | None = None,
    event_uid: str | None = None,
    limit: int = PAGE,
) -> list[AlertRow]:
    """The newest alerts first; those that are open, or of some identifiers, or of an event."""
    # Acknowledgements from before an escalation are older than the one that stands.
    mine = (t.ack.c.alert_id == t.alert.c.id) & (t.ack.c.when_ns >= t.alert.c.acked_ns)
    first = select(t.ack.c.who).where(mine).order_by(t.ack.c.id).limit(1).scalar_subquery()
    r = t.alert_revision.c
    called = (r.alert_id == t.alert.c.id) & (r.action != "retract") & (r.received_ns <= t.alert.c.acked_ns)
    asked = select(func.max(r.received_ns)).where(called).scalar_subquery().label("asked_ns")
    statement = select(t.alert, t.sensor.c.code.label("sensor"), first.label("acked_by"), asked).join(t.sensor)
    if only_open:
        statement = statement.where(t.alert.c.acked_ns.is_(None), t.alert.c.action != "retract")
    if uids is not None:
        statement = statement.where(t.alert.c.uid.in_(uids))
    if event_uid is not None:
        statement = statement.where(t.alert.c.event_uid == event_uid)
    rows = connection.execute(statement.order_by(t.alert.c.raised_ns.desc()).limit(limit)).all()
    told = _calls(connection, [row.id for row in rows])
    return [
        AlertRow(
            row.id, row.uid, row.event_uid, row.sensor, row.onset_ns, row.revision, row.action, row.severity, row.label,
            row.exercise, row.raised_ns, row.acked_ns, row.acked_by,
            row.asked_ns or row.raised_ns, str(row.body.get("reason", "")),
            tuple(sorted(told.get(row.id, {}).values(), key=lambda call: call.due_ns)),
        )
        for row in rows
    ]  # fmt: skip


def _calls(connection: Connection, keys: Sequence[int]) -> dict[int, dict[str, Call]]:
    """The newest notification of each target about each alert."""
    n = t.notification.c
    found: dict[int, dict[str, Call]] = {}
    if keys:
        about = n.alert_id.in_(keys) & n.subject.not_like("picture %")
        for row in connection.execute(select(t.notification).where(about).order_by(n.id)):
            call = Call(row.target, row.state, row.due_ns, row.sent_ns, row.tries, row.error)
            found.setdefault(row.alert_id, {})[row.target] = call
    return found


def counts(
    connection: Connection,
    from_ns: int,
    to_ns: int,
    *,
    sensor: str | None = None,
    hours: int = 1,
    exercises: bool = False,
) -> list[tuple[int, str, int]]:
    """Events by class in bins of ``hours``: begin of the bin (hours since 1970), class, number. Exercises are left out
    unless asked for. Bins of days begin with the whole day in which ``from_ns`` lies.

    A bin without events is not in the list; whether the station could hear then is ``coverage``'s to say."""
    n, step = t.tally.c, 24 if hours % 24 == 0 else 1
    whose = (
        t.ALL_SENSORS if sensor is None else select(t.sensor.c.id).where(t.sensor.c.code == sensor).scalar_subquery()
    )
    statement = (
        select(n.hour, n["class"].label("name"), n.events)
        .where(n.sensor_id == whose, n.step == step)
        .where(n.hour > from_ns // HOUR_NS - step, n.hour < -(-to_ns // HOUR_NS))
    )
    rows = [tuple(row) for row in connection.execute(statement.order_by(n.hour, n["class"]))]
    if exercises:
        rows = sorted(rows + _counts_of_exercises(connection, sensor, from_ns, to_ns, step))
    found: dict[tuple[int, int], int] = {}
    for hour, name, number in rows:
        place = hour - hour % hours, name
        found[place] = found.get(place, 0) + number
    return [(begin, t.CLASSES[name], number) for (begin, name), number in found.items() if number]


def _counts_of_exercises(
    connection: Connection, sensor: str | None, from_ns: int, to_ns: int, step: int
) -> list[tuple[int, int, int]]:
    """As the tally has the other events: they are few, and an index of their own finds them."""
    e, wide_ns = t.event.c, step * HOUR_NS
    begin = (e.onset_ns - e.onset_ns % wide_ns) / HOUR_NS
    statement = (
        select(begin.label("hour"), e["class"].label("name"), func.count())
        .where(text("exercise"), e.onset_ns >= from_ns - from_ns % wide_ns, e.onset_ns < -(-to_ns // HOUR_NS) * HOUR_NS)
        .group_by("hour", "name")
    )
    if sensor is not None:
        statement = statement.where(*_conditions(Filter(sensor=sensor)))
    return [(int(hour), name, number) for hour, name, number in connection.execute(statement)]


def coverage(connection: Connection, station: str | None, from_ns: int, to_ns: int) -> list[tuple[int, float]]:
    """Hours (since 1970) of which the station told anything, with the share of time in which it could trigger; where
    that was not told, 1 for an hour without a fault and 0 for one that was degraded throughout. Each hour of an old
    day has the day's. Without a station: of the one that heard least, and no hour of which one of those that ever told
    something told nothing; stations of an archive count only where there are no others."""
    h, d = t.health_hour.c, t.health_day.c
    first, last = from_ns // HOUR_NS, -(-to_ns // HOUR_NS)
    # The database counts: of 500 stations a month has 360,000 rows.
    hours = select(h.hour, func.min(share(t.health_hour)), func.count()).where(h.hour >= first, h.hour < last)
    days = select(d.day, func.min(d.heard), func.count()).where(d.day >= first // 24, d.day < -(-last // 24))
    needed = 1
    if station is not None:
        mine = select(t.station.c.id).where(t.station.c.code == station).scalar_subquery()
        hours, days = hours.where(h.station_id == mine), days.where(d.station_id == mine)
    else:
        # Of each station on its own, so that not every hour is read.
        s = t.station.c
        told = or_(exists().where(h.station_id == s.id), exists().where(d.station_id == s.id))
        number = select(func.count()).select_from(t.station).where(told)
        needed = connection.execute(number.where(s.heard_ns != 0)).scalar_one()
        if needed:
            imported = select(s.id).where(s.heard_ns == 0)
            hours, days = hours.where(h.station_id.not_in(imported)), days.where(d.station_id.not_in(imported))
        else:
            needed = connection.execute(number).scalar_one()
    found: dict[int, tuple[float, int]] = {}
    for day, least, number in connection.execute(days.group_by(d.day)):
        for hour in range(max(first, 24 * day), min(last, 24 * day + 24)):
            found[hour] = least, number
    for hour, least, number in connection.execute(hours.group_by(h.hour)):
        of_days, others = found.get(hour, (least, 0))
        found[hour] = min(least, of_days), number + others
    return [(hour, least) for hour, (least, number) in sorted(found.items()) if number >= needed]


def first_ns(connection: Connection) -> int:
    """When the first hour began of which anything is known; 0 where nothing is."""
    n = t.tally.c
    first_day = _first_of_each(connection, t.health_day.c.day)
    counted = select(func.min(n.hour)).where(n.sensor_id == t.ALL_SENSORS, n.step == 1, n.hour > 0)
    drills = connection.execute(select(func.min(t.event.c.onset_ns)).where(text("exercise"), t.event.c.onset_ns > 0))
    drilled = drills.scalar()
    hours = [first_day and 24 * first_day, connection.execute(counted).scalar(), drilled and drilled // HOUR_NS]
    if connection.dialect.name == "postgresql":
        hours.append(_first_of_each(connection, HOURS.default.c.hour))
        in_order = (_first_of_each(connection, t.health_hour.c.hour, *span) for span in spans(connection, HOURS))
        hours.append(next(filter(None, in_order), None))
    else:
        hours.append(_first_of_each(connection, t.health_hour.c.hour))
    return min((hour for hour in hours if hour), default=0) * HOUR_NS


def _first_of_each(connection: Connection, column: Column[int], least: int = 1, end: int = 2**31 - 1) -> int | None:
    """The first hour or day from ``least`` to before ``end``: of each station on its own, which is the first row of its
    part of the index, and not the whole table."""
    whose = column.table.c.station_id == t.station.c.id
    mine = select(func.min(column)).where(whose, column >= least, column < end).scalar_subquery()
    found: int | None = connection.execute(select(func.min(mine)).select_from(t.station)).scalar()
    return found


def feed_since(connection: Connection, key: int, limit: int = FEED_PAGE) -> list[tuple[int, str, str]]:
    """Changes after ``key``, oldest first: key, kind, subject."""
    return [(row.id, row.kind, row.subject) for row in connection.execute(_FEED_SINCE, {"key": key, "limit": limit})]


def feed_span(connection: Connection) -> tuple[int, int]:
    """First and last key of the feed; (0, 0) where it is empty."""
    row = connection.execute(select(func.min(t.feed.c.id), func.max(t.feed.c.id))).one()
    return int(row[0] or 0), int(row[1] or 0)


def _event_columns(*more: Any) -> Select[Any]:
    e = t.event.c
    told = select(t.alert.c.action + " " + t.alert.c.severity).where(t.alert.c.uid == e.uid).limit(1).scalar_subquery()
    return select(
        e.id, e.uid, t.sensor.c.code, e.onset_ns, e.revision, e.ended, e["class"].label("name"), e.label, e.probability,
        e.ratio, e.doubt,
        e.duration_s, e.peak_counts, e.exercise, e.review, told.label("told"), *more,
    ).join(t.sensor)  # fmt: skip


def _event_row(row: Row[Any]) -> EventRow:
    return EventRow(
        row.id,
        row.uid,
        row.code,
        row.onset_ns,
        row.revision,
        row.ended,
        t.CLASSES[row.name],
        None if row.label is None else LABELS[row.label],
        row.probability,
        row.ratio,
        row.duration_s,
        row.peak_counts,
        row.exercise,
        None if row.review is None else LABELS[row.review],
        row.told,
        row.doubt < 0,
    )


def _conditions(wanted: Filter) -> Sequence[Any]:
    e = t.event.c
    found: list[Any] = []
    if wanted.sensor is not None:
        found.append(e.sensor_id == select(t.sensor.c.id).where(t.sensor.c.code == wanted.sensor).scalar_subquery())
    if wanted.station is not None:
        ids = select(t.sensor.c.id).join(t.station).where(t.station.c.code == wanted.station)
        found.append(e.sensor_id.in_(ids))
    if wanted.stations is not None:
        ids = select(t.sensor.c.id).join(t.station).where(t.station.c.code.in_(wanted.stations))
        found.append(e.sensor_id.in_(ids))
    if wanted.name is not None:
        found.append(e["class"] == t.CLASSES.index(wanted.name))
    if wanted.names is not None:
        found.append(e["class"].in_([t.CLASSES.index(name) for name in wanted.names]))
    if wanted.from_ns is not None:
        found.append(e.onset_ns >= wanted.from_ns)
    if wanted.to_ns is not None:
        found.append(e.onset_ns < wanted.to_ns)
    if wanted.reviewed is not None:
        found.append(e.review.is_not(None) if wanted.reviewed else e.review.is_(None))
    if wanted.alerted:
        found.append(e.uid.in_(select(t.alert.c.event_uid)))
    if wanted.exercise is not None:
        found.append(text("exercise") if wanted.exercise else e.exercise.is_(False))
    return found


# What is asked at every change is built once.
_EVENTS_OF = _event_columns().where(t.event.c.uid.in_(bindparam("uids", expanding=True)))
_FEED_SINCE = (
    select(t.feed.c.id, t.feed.c.kind, t.feed.c.subject)
    .where(t.feed.c.id > bindparam("key"))
    .order_by(t.feed.c.id)
    .limit(bindparam("limit"))
)
