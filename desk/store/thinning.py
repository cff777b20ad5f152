"""Old hours of health become days: a rate still has the time that was heard, no longer which hours it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, and_, case, delete, func, select

from desk.store import tables as t

AT_ONCE = 10
"""Days that one call makes at most: a large database that is thinned for the first time is not held up."""


def share(hours: Table) -> ColumnElement[float]:
    """The share of an hour in which the station could trigger; where that was not told, 1 without a fault and 0 for an
    hour that was degraded throughout."""
    h = hours.c
    return func.coalesce(h.armed, 1.0 - 1.0 * h.degraded / case((h.messages == 0, 1), else_=h.messages))


def thin(connection: Connection, upsert: Callable[[Table], Any], before_day: int, hours: Table = t.health_hour) -> int:
    """Make days (since 1970) before ``before_day`` of their hours, the oldest first; returns how many hours went.

    ``upsert``: the insert of this database. ``hours``: the table of hours, or a part of it.
    """
    h = hours.c
    oldest = connection.execute(select(func.min(h.hour))).scalar()
    if oldest is None or oldest // 24 >= before_day:
        return 0
    begin, end = int(oldest) // 24, min(before_day, int(oldest) // 24 + AT_ONCE)
    span = and_(h.hour >= 24 * begin, h.hour < 24 * end)
    add_days(connection, upsert, hours, span)
    return int(connection.execute(delete(hours).where(span)).rowcount)


def add_days(connection: Connection, upsert: Callable[[Table], Any], hours: Table, span: ColumnElement[bool]) -> None:
    """Add the days of the hours in ``span``. Where a day is there, as when an archive is imported again, the larger
    share stays."""
    h, d = hours.c, t.health_day.c
    day = ((h.hour - h.hour % 24) / 24).label("day")
    days = select(h.station_id, day, func.sum(h.messages), func.sum(h.degraded), func.sum(share(hours)) / 24.0)
    statement = upsert(t.health_day).from_select(
        ["station_id", "day", "messages", "degraded", "heard"], days.where(span).group_by(h.station_id, day)
    )
    new = statement.excluded
    changes = {
        "messages": d.messages + new.messages,
        "degraded": d.degraded + new.degraded,
        "heard": case((d.heard > new.heard, d.heard), else_=new.heard),
    }
    connection.execute(statement.on_conflict_do_update(index_elements=["station_id", "day"], set_=changes))
