"""Monthly partitions in PostgreSQL of what comes steadily and goes by its age: what is old is dropped, not deleted.

A row whose month has no partition lies in the default one: of a station whose clock is wrong, of an archive that was
imported. ``missing`` names the months that it should not lie there for, and ``make`` moves it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timezone

from sqlalchemy import Column, Connection, MetaData, Table, func, select, text

from agent.types import NS
from desk.store import tables as t


@dataclass(frozen=True, slots=True)
class Monthly:
    """A table that is divided by a column, which counts units of ``unit_ns`` since 1970. Months are UTC, and numbers:
    twelve times the year, and 0 for January."""

    table: Table
    column: str
    unit_ns: int

    @property
    def default(self) -> Table:
        """The partition of what has none."""
        columns = [Column(one.name, one.type) for one in self.table.columns]
        return Table(f"{self.table.name}_default", MetaData(), *columns)

    def partition(self, month: int) -> str:
        """Name of a month's partition."""
        return f"{self.table.name}_{month // 12:04d}_{month % 12 + 1:02d}"

    def begin(self, month: int) -> int:
        """The first value of a month."""
        return int(datetime(month // 12, month % 12 + 1, 1, tzinfo=timezone.utc).timestamp()) * NS // self.unit_ns


HOURS = Monthly(t.health_hour, "hour", 3600 * NS)
MONTHLY = (Monthly(t.envelope, "start_ns", 1), HOURS)


def month_of(time_ns: int) -> int:
    """The number of the month of a time."""
    moment = datetime.fromtimestamp(time_ns // NS, timezone.utc)
    return 12 * moment.year + moment.month - 1


def divide(connection: Connection) -> None:
    """Give each table its default partition."""
    for one in MONTHLY:
        connection.execute(text(f"CREATE TABLE {one.default.name} PARTITION OF {one.table.name} DEFAULT"))


def months(connection: Connection, one: Monthly) -> list[int]:
    """The months that have a partition, in order."""
    statement = text("SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = to_regclass(:name)")
    names = connection.execute(statement, {"name": one.table.name}).scalars()
    found = [re.search(r"_(\d{4})_(\d\d)$", name) for name in names]
    return sorted(12 * int(each[1]) + int(each[2]) - 1 for each in found if each is not None)


def spans(connection: Connection, one: Monthly) -> list[tuple[int, int]]:
    """From which value to before which each partition goes, in order."""
    return [(one.begin(month), one.begin(month + 1)) for month in months(connection, one)]


def missing(connection: Connection, one: Monthly, oldest_ns: int, now_ns: int) -> list[int]:
    """The months that need a partition and have none: this one, the next one, and those of rows in the default
    partition that are neither before ``oldest_ns`` nor after the next month."""
    this = month_of(now_ns)
    wanted, column = {this, this + 1}, one.default.c[one.column]
    at, end = max(oldest_ns // one.unit_ns, 0), one.begin(this + 2)
    while True:
        first = connection.execute(select(func.min(column)).where(column >= at, column < end)).scalar()
        if first is None:
            return sorted(wanted.difference(months(connection, one)))
        month = month_of(first * one.unit_ns)
        wanted.add(month)
        at = one.begin(month + 1)


def make(connection: Connection, one: Monthly, month: int) -> None:
    """Make a month's partition of what lies in the default one, unless another desk has made it. The writers' lock is
    held."""
    if month in months(connection, one):
        return
    name, new, default = one.table.name, one.partition(month), one.default.name
    begin, end = one.begin(month), one.begin(month + 1)
    columns = ", ".join(column.name for column in one.table.columns)
    # Names and numbers of the program's own, no one's input.
    moved = f"DELETE FROM {default} WHERE {one.column} >= {begin} AND {one.column} < {end} RETURNING {columns}"  # noqa: S608
    for statement in (
        f"CREATE TABLE {new} (LIKE {name} INCLUDING DEFAULTS)",
        f"WITH moved AS ({moved}) INSERT INTO {new} ({columns}) SELECT {columns} FROM moved",  # noqa: S608
        f"ALTER TABLE {name} ATTACH PARTITION {new} FOR VALUES FROM ({begin}) TO ({end})",
    ):
        connection.execute(text(statement))


def over(connection: Connection, one: Monthly, oldest_ns: int) -> list[int]:
    """The months with a partition that ended before ``oldest_ns``."""
    return [month for month in months(connection, one) if one.begin(month + 1) * one.unit_ns <= oldest_ns]


def drop(connection: Connection, one: Monthly, month: int) -> None:
    """Drop a month's partition and all that is in it."""
    connection.execute(text(f"DROP TABLE {one.partition(month)}"))
