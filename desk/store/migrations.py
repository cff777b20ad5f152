"""The layout of the database, version by version: each step is applied once, in order, in one transaction."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Connection, delete, insert, inspect, select, text, update

from agent.errors import ConfigError
from desk.store import tables
from desk.store.partitions import divide

_HOUR_NS = 3600 * 10**9
_COUNTED = "class, exercise, onset_ns, sensor_id"


def _count(row: str, n: int) -> str:
    hour, day = f"{row}.onset_ns / {_HOUR_NS}", f"{row}.onset_ns / {24 * _HOUR_NS} * 24"
    parts = [
        f"({sensor}, {step}, {begin}, {row}.class, {n})"
        for sensor in (f"{row}.sensor_id", str(tables.ALL_SENSORS))
        for step, begin in ((1, hour), (24, day))
    ]
    # Names and numbers of this file alone, no one's input.
    return (
        f"INSERT INTO tally VALUES {', '.join(parts)}"  # noqa: S608
        " ON CONFLICT (sensor_id, step, hour, class) DO UPDATE SET events = tally.events + excluded.events;"
    )


def _fresh(connection: Connection) -> None:
    """All tables in their newest layout, and the triggers that keep ``tally``."""
    tables.metadata.create_all(connection)
    _add_triggers(connection)
    _divide_by_month(connection)


def _add_triggers(connection: Connection) -> None:
    for statement in _triggers_of_postgresql() if connection.dialect.name == "postgresql" else _triggers_of_sqlite():
        connection.execute(text(statement))


def _triggers_of_postgresql() -> list[str]:
    return [
        "CREATE OR REPLACE FUNCTION talus_tally() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        f"IF TG_OP <> 'INSERT' AND NOT OLD.exercise THEN {_count('OLD', -1)} END IF; "
        f"IF TG_OP <> 'DELETE' AND NOT NEW.exercise THEN {_count('NEW', 1)} END IF; "
        "RETURN NULL; END $$",
        f"CREATE TRIGGER event_tally AFTER INSERT OR DELETE OR UPDATE OF {_COUNTED} ON event"
        " FOR EACH ROW EXECUTE FUNCTION talus_tally()",
    ]


def _triggers_of_sqlite() -> list[str]:
    return [
        f"CREATE TRIGGER event_{name}_{row} AFTER {when} ON event WHEN NOT {row}.exercise BEGIN {_count(row, n)} END"
        for name, when, row, n in (
            ("added", "INSERT", "new", 1),
            ("removed", "DELETE", "old", -1),
            ("changed", f"UPDATE OF {_COUNTED}", "old", -1),
            ("changed", f"UPDATE OF {_COUNTED}", "new", 1),
        )
    ]


def _add_envelope(connection: Connection) -> None:
    """Minima and maxima for drum plots."""
    tables.envelope.create(connection)


def _count_by_day(connection: Connection) -> None:
    """Counts by day and of all sensors together, and indexes of few events among many."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("DROP TRIGGER event_tally ON event"))
    else:
        for name in ("added_new", "removed_old", "changed_old", "changed_new"):
            connection.execute(text(f"DROP TRIGGER event_{name}"))
    tables.tally.drop(connection)
    tables.tally.create(connection)
    _add_triggers(connection)
    for sensor in ("sensor_id", str(tables.ALL_SENSORS)):
        for step in (1, 24):
            hour = f"onset_ns / {step * _HOUR_NS} * {step}"
            kept = f"SELECT {sensor} AS s, {step}, {hour} AS h, class, count(*) FROM event WHERE NOT exercise"  # noqa: S608
            connection.execute(text(f"INSERT INTO tally {kept} GROUP BY s, h, class"))
    for index in tables.event.indexes:
        index.create(connection, checkfirst=True)


def _add_health_day(connection: Connection) -> None:
    """Days that old hours of health become."""
    tables.health_day.create(connection)


def _index_calls(connection: Connection) -> None:
    """The notifications of an alert are found at once."""
    for index in tables.notification.indexes:
        index.create(connection, checkfirst=True)


def _name_slow_events(connection: Connection) -> None:
    """Slow events have a class of their own; the triggers count anew."""
    e = tables.event.c
    slow = e.uid.endswith("-slow", autoescape=True) & (e["class"] == tables.UNCLASSIFIED)
    connection.execute(update(tables.event).where(slow).values({"class": tables.SLOW}))


def _tell_imported(connection: Connection) -> None:
    """What was imported is told from what stations sent: of a station's own event, the end is never the first."""
    e, s = tables.event.c, tables.station.c
    imported = (e.revision == 0) & e.ended
    connection.execute(update(tables.event).where(imported).values(doubt=e.doubt - tables.IMPORTED))
    of_events = select(tables.sensor.c.station_id).select_from(tables.event.join(tables.sensor))
    told, sent = of_events.where(imported), of_events.where(~imported)
    silent = s.availability.is_(None) & s.health_ns.is_(None) & s.state.is_(None)
    connection.execute(update(tables.station).where(silent, s.id.in_(told), s.id.not_in(sent)).values(heard_ns=0))
    never = select(s.code).where(s.heard_ns == 0)
    connection.execute(delete(tables.trouble).where(tables.trouble.c.station.in_(never)))


def _divide_by_month(connection: Connection) -> None:
    """Partitions of what goes by its age, where the database has them."""
    if connection.dialect.name == "postgresql":
        divide(connection)


STEPS: tuple[Callable[[Connection], None], ...] = (
    _add_envelope, _count_by_day, _add_health_day, _index_calls, _divide_by_month, _name_slow_events, _tell_imported,
)  # fmt: skip
"""From layout 1 to 2, from 2 to 3, and so on. A step is never changed once it is released."""


def migrate(connection: Connection) -> int:
    """Bring the database to this program's layout; returns the version.

    Raises:
        ConfigError: the database was written by a newer program.
    """
    newest = len(STEPS) + 1
    if not inspect(connection).has_table("version"):
        _fresh(connection)
        connection.execute(insert(tables.version).values(number=newest))
        return newest
    at = connection.execute(select(tables.version.c.number)).scalar_one()
    if at > newest:
        raise ConfigError(
            f"the desk's database has layout {at}, this program knows {newest}",
            "run the version that wrote it, or a newer one",
        )
    for step in STEPS[at - 1 :]:
        step(connection)
    connection.execute(update(tables.version).values(number=newest))
    return newest
