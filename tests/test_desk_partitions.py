"""What goes by its age: monthly partitions in PostgreSQL, which the desk makes and drops by itself."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import numpy as np
import pytest
from desk_support import START_NS
from postgres_support import Cluster
from sqlalchemy import literal_column, select
from test_minmax import message

from agent.health.report import Health, HealthInputs, Identity
from agent.types import NS, StationId, format_ns
from desk.drum import drum_of
from desk.store import queries, tables
from desk.store.partitions import MONTHLY, months
from desk.store.store import Arrival, Store

DAY = 86_400 * NS
MARCH, APRIL, MAY = 12 * 2026 + 2, 12 * 2026 + 3, 12 * 2026 + 4
"""``START_NS`` is the first of March."""


def batch(at_ns: int, now_ns: int | None = None) -> list[Arrival]:
    """A health message and ten minutes of extremes of a time, received then or at ``now_ns``."""
    found = Health(Identity(StationId("XX", "SLP", "", ""), "0123456789abcdef"), Path()).message(1, HealthInputs())
    bodies = found.model_copy(update={"time": format_ns(at_ns)}), message(np.full(600, -9.0), np.full(600, 9.0), at_ns)
    return [Arrival("XX.SLP", body, at_ns if now_ns is None else now_ns) for body in bodies]


def rows(store: Store) -> dict[str, int]:
    """How many rows lie in which partition; none of the empty ones."""
    found: dict[str, int] = {}
    with store.reading() as connection:
        for one in MONTHLY:
            place = select(literal_column("tableoid::regclass::text")).select_from(one.table)
            for name in connection.execute(place).scalars():
                found[name] = found.get(name, 0) + 1
    return found


def divided(store: Store) -> list[list[int]]:
    with store.reading() as connection:
        return [months(connection, one) for one in MONTHLY]


def both(month: str, number: int = 1) -> dict[str, int]:
    return {f"envelope_{month}": number, f"health_hour_{month}": number}


def test_old_months_are_dropped_as_a_whole_and_what_was_heard_stays(postgresql: Cluster) -> None:
    store = Store(postgresql.database(), envelope_days=40, health_days=40)
    store.ingest(batch(START_NS))
    store.ingest(batch(START_NS + 45 * DAY))
    assert rows(store) == both("2026_03") | both("2026_04"), "the first of March is old, its last day is not"
    store.ingest(batch(START_NS + 71 * DAY))
    assert rows(store) == both("2026_04") | both("2026_05")
    assert divided(store) == [[APRIL, MAY, MAY + 1]] * 2
    with store.reading() as connection:
        days = connection.execute(select(tables.health_day.c.day, tables.health_day.c.messages)).all()
        assert days == [(START_NS // DAY, 1)]
        assert queries.first_ns(connection) == START_NS // DAY * DAY
        assert drum_of(connection, None, "XX.SLP", START_NS).source == "none"
    store.close()


def test_rows_of_any_time_find_a_place_and_those_that_come_late_move_into_theirs(postgresql: Cluster) -> None:
    """Protects what a station sends after months without a line, or with a wrong clock."""
    store = Store(postgresql.database(), envelope_days=100, health_days=100)
    now = START_NS + 75 * DAY
    store.ingest([*batch(now), *batch(START_NS, now), *batch(0, now), *batch(START_NS + 3000 * DAY, now)])
    assert rows(store) == both("2026_05") | both("default", 3)
    now += DAY
    store.ingest(batch(START_NS + 3600 * NS, now))
    assert rows(store) == both("2026_05") | both("2026_03", 2) | both("default")
    assert divided(store) == [[MARCH, MAY, MAY + 1]] * 2
    with store.reading() as connection:
        assert drum_of(connection, None, "XX.SLP", START_NS).source == "envelope"
        assert drum_of(connection, None, "XX.SLP", START_NS + 3000 * DAY).source == "envelope"
        assert len(queries.coverage(connection, "XX.SLP", START_NS, START_NS + 2 * 3600 * NS)) == 2
    store.close()


def test_desks_that_make_a_month_at_once_make_it_once(postgresql: Cluster) -> None:
    url = postgresql.database()
    stores = [Store(url) for _ in range(4)]
    for at_ns in (START_NS, START_NS + 400 * DAY, START_NS + 500 * DAY):
        threads = [threading.Thread(target=store.ingest, args=(batch(at_ns),)) for store in stores]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    with stores[0].reading() as connection:
        hours = connection.execute(select(tables.health_hour.c.messages)).scalars().all()
    assert hours == [4, 4]
    assert divided(stores[0]) == divided(stores[3])
    for store in stores:
        store.close()


def test_a_reader_that_holds_a_table_does_not_hold_up_what_comes(
    postgresql: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """Protects the desk while the database is dumped: a dump reads every table for as long as it takes."""
    store = Store(postgresql.database())
    with store.reading() as dump, caplog.at_level(logging.WARNING):
        assert not dump.execute(select(tables.envelope)).all()
        store.ingest(batch(START_NS))
        assert "stay for another hour" in caplog.text
        assert rows(store) == both("default")
    store.ingest(batch(START_NS + 2 * 3600 * NS))
    assert rows(store) == both("2026_03", 2)
    assert store.refusal is None
    store.close()
