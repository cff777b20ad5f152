"""The layout of a new database, and the refusal of one that has another layout."""

from __future__ import annotations

from sqlalchemy import Connection, insert, inspect, select, text

from agent.errors import ConfigError
from desk.store import tables
from desk.store.partitions import divide

LAYOUT = 8
"""Number of the layout; another one for each change of the tables."""
_HOUR_NS = 3600 * 10**9
_COUNTED = "class, exercise, onset_ns, sensor_id"


def prepare(connection: Connection) -> None:
    """Make the tables of a new database, the triggers that keep ``tally``, and PostgreSQL's partitions; of one that has
    them, look at its layout. A database that is refused is not changed.

    Raises:
        ConfigError: the database has another layout.
    """
    if inspect(connection).has_table(tables.version.name):
        found = connection.execute(select(tables.version.c.number)).scalar()
        if found != LAYOUT:
            raise ConfigError(
                f"the desk's database has layout {found}, this version needs {LAYOUT}",
                "nothing was changed: run the version that made it, or name a new one (database, or state_dir)",
            )
        return
    tables.metadata.create_all(connection)
    is_postgresql = connection.dialect.name == "postgresql"
    for statement in _triggers_of_postgresql() if is_postgresql else _triggers_of_sqlite():
        connection.execute(text(statement))
    if is_postgresql:
        divide(connection)
    connection.execute(insert(tables.version).values(number=LAYOUT))


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
