"""The desk's database: whatever the order and number of times in which messages come, the last revision stands."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from desk_support import START_NS, alert, event, slow_event, verdict
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import insert, select
from test_formats import state

from agent.errors import ConfigError, DataError
from agent.health.report import Health, HealthInputs, Identity
from agent.messages.schema import HealthMessage, HearingHealth, PositionPart, StationPart
from agent.types import LABELS, NS, StationId, format_ns, place_of
from desk.store import answers, queries, tables, thinning
from desk.store.layout import LAYOUT
from desk.store.store import Arrival, Store
from desk.web.views import hearing_words

HOUR = 3600 * NS
ANN, BEN = answers.Person("ann"), answers.Person("ben")


def arrivals(*bodies: object, at_ns: int = START_NS) -> list[Arrival]:
    return [Arrival("XX.SLP", body, at_ns) for body in bodies]  # type: ignore[arg-type]


@pytest.fixture
def store(database: str) -> Iterator[Store]:
    opened = Store(database)
    yield opened
    opened.close()


def empty(store: Store) -> None:
    """Delete every row."""
    with store.writing() as connection:
        for table in reversed(tables.metadata.sorted_tables):
            if table is not tables.version:
                connection.execute(table.delete())
    store._stations.clear()
    store._sensors.clear()


def shown(store: Store, uid: str) -> queries.EventRow:
    with store.engine.connect() as connection:
        found = queries.event(connection, uid)
    assert found is not None
    return found[0]


def tallied(store: Store) -> dict[str, int]:
    with store.engine.connect() as connection:
        found: dict[str, int] = {}
        for _, name, n in queries.counts(connection, START_NS - HOUR, START_NS + 24 * HOUR):
            found[name] = found.get(name, 0) + n
    return found


@settings(max_examples=25)
@given(data=st.data())
def test_the_last_revision_stands_whatever_the_order_and_however_often_messages_come(
    store: Store, data: st.DataObject
) -> None:
    empty(store)
    labels = {(number, revision): data.draw(st.sampled_from(LABELS)) for number in range(3) for revision in range(4)}
    messages = [
        event(revision, onset_ns=START_NS + number * 60 * NS, classification=verdict(label))
        for (number, revision), label in labels.items()
    ]
    order = data.draw(st.lists(st.sampled_from(messages), min_size=1, max_size=30))
    size = data.draw(st.integers(1, 30))
    for begin in range(0, len(order), size):
        store.ingest(arrivals(*order[begin : begin + size]))
    newest = {}
    for message in order:
        if message.id not in newest or message.revision > newest[message.id].revision:
            newest[message.id] = message
    with store.engine.connect() as connection:
        rows = queries.events(connection)
        grown = {row.uid: [verdict.number for verdict in queries.verdicts(connection, row.key)] for row in rows}
    assert {row.uid: (row.revision, row.name) for row in rows} == {
        uid: (message.revision, message.classification and message.classification.label)
        for uid, message in newest.items()
    }
    assert grown == {uid: sorted({m.revision for m in order if m.id == uid}) for uid in newest}
    assert sum(tallied(store).values()) == len(newest)


def test_counts_follow_a_verdict_that_changes_and_leave_exercises_out(store: Store) -> None:
    store.ingest(arrivals(event(0), event(0, onset_ns=START_NS + NS, exercise=True)))
    assert tallied(store) == {"landslide": 1}
    store.ingest(arrivals(event(1, classification=verdict("blast"))))
    assert tallied(store) == {"blast": 1}
    answers.answer(store, ANN, [event().id], answers.Answer("collapse"), START_NS)
    assert tallied(store) == {"collapse": 1}


def test_a_slow_event_is_of_its_own_class(store: Store) -> None:
    slow, failed = slow_event(), event(3, onset_ns=START_NS + NS, classification=None, reason="it failed")
    store.ingest(arrivals(slow, failed))
    answers.answer(store, ANN, [slow.id], answers.Answer("landslide"), START_NS)
    assert tallied(store) == {"landslide": 1, "unclassified": 1}
    answers.answer(store, ANN, [slow.id], answers.Answer(None), START_NS)
    assert tallied(store) == {"slow": 1, "unclassified": 1}
    with store.reading() as connection:
        (row,) = queries.events(connection, queries.Filter(name="slow"))
        grown = queries.verdicts(connection, row.key)
    assert (row.uid, [one.name for one in grown]) == (slow.id, ["slow"])


def test_a_review_outlives_later_revisions_and_can_be_taken_back(store: Store) -> None:
    uid = event().id
    store.ingest(arrivals(event(0)))
    answers.answer(store, ANN, [uid], answers.Answer("blast"), START_NS)
    store.ingest(arrivals(event(3, classification=verdict("earthquake"))))
    assert (shown(store, uid).name, shown(store, uid).label) == ("blast", "earthquake")
    answers.answer(store, BEN, [uid], answers.Answer("collapse"), START_NS + 1)
    assert shown(store, uid).name == "collapse"
    answers.answer(store, BEN, [uid], answers.Answer(None), START_NS + 2)
    assert shown(store, uid).name == "blast"
    answers.answer(store, ANN, [uid], answers.Answer(None, note="a truck passed"), START_NS + 3)
    assert shown(store, uid).name == "blast"
    answers.answer(store, ANN, [uid], answers.Answer(None), START_NS + 4)
    assert shown(store, uid).name == "earthquake"


def test_one_unknown_event_among_many_reviews_changes_none(store: Store) -> None:
    store.ingest(arrivals(event(0)))
    with pytest.raises(DataError, match="no event"):
        answers.answer(store, ANN, [event().id, "XX.NO.00.HH-20260301T000000.000Z"], answers.Answer("blast"), START_NS)
    assert shown(store, event().id).name == "landslide"


def test_an_alert_is_told_once_a_revision_and_in_the_same_transaction(database: str) -> None:
    told = []
    store = Store(database, lambda _c, key, body, _at: told.append((key, body.revision)))
    for _ in range(3):
        store.ingest(arrivals(alert(0), alert(1, "escalate")))
    store.ingest(arrivals(alert(0)))
    assert told == [(1, 0), (1, 1)]
    with store.engine.connect() as connection:
        (row,) = queries.alerts(connection)
    assert (row.action, row.revision, row.is_open) == ("escalate", 1, True)


def test_an_acknowledgement_is_kept_by_person_and_ends_the_waiting(store: Store) -> None:
    store.ingest(arrivals(alert(0)))
    uid = alert().id
    assert answers.acknowledge(store, ANN, uid, START_NS + 5) is not None
    assert answers.acknowledge(store, ANN, uid, START_NS + 6) is None
    assert answers.acknowledge(store, BEN, uid, START_NS + 7) is not None
    with store.engine.connect() as connection:
        (row,) = queries.alerts(connection)
    assert (row.acked_by, row.acked_ns, row.is_open) == ("ann", START_NS + 5, False)
    with pytest.raises(DataError, match="no alert"):
        answers.acknowledge(store, ANN, "XX.NO.00.HH-20260301T000000.000Z", START_NS)


def test_a_silence_has_a_reason_and_an_end(store: Store) -> None:
    for wanted in (
        answers.Silence("XX.SLP", "", START_NS + HOUR, " "),
        answers.Silence("XX.SLP", "", START_NS - 1, "roadworks"),
        answers.Silence("XX.SLP", "blasts", START_NS + HOUR, "roadworks"),
        answers.Silence("XX.SLP", "", START_NS + 40 * 24 * HOUR, "roadworks"),
    ):
        with pytest.raises(DataError):
            answers.silence(store, ANN, wanted, START_NS)
    for label in ("blast", "slow"):
        answers.silence(store, ANN, answers.Silence("XX.SLP", label, START_NS + HOUR, "roadworks"), START_NS)
    with store.engine.connect() as connection:
        asked = [
            answers.is_silenced(connection, station, label, START_NS + late)
            for station, label, late in (
                ("XX.SLP", "blast", 1), ("XX.SLP", "landslide", 1), ("XX.TOE", "blast", 1), ("XX.SLP", "blast", HOUR),
                ("XX.SLP", "slow", 1),
            )
        ]  # fmt: skip
    assert asked == [True, False, False, False, True]


def test_pages_read_on_through_events_of_the_same_moment(store: Store) -> None:
    sensors = [f"XX.SL{number:02d}.00.HH" for number in range(25)]
    store.ingest(arrivals(*(event(0, sensor=sensor) for sensor in sensors)))
    found, before = [], None
    with store.engine.connect() as connection:
        while page := queries.events(connection, before=before, limit=10):
            found += [row.sensor for row in page]
            before = page[-1].onset_ns, page[-1].key
    assert sorted(found) == sensors


def test_the_queue_shows_the_least_sure_first_and_nothing_that_is_answered(store: Store) -> None:
    sure, unsure, silent = (
        event(3, onset_ns=START_NS + n * NS, classification=c)
        for n, c in enumerate((verdict(probability=0.99), verdict(probability=0.5), verdict(abstained=True)))
    )
    going_on = event(1, onset_ns=START_NS + 9 * NS)
    store.ingest(arrivals(sure, unsure, silent, going_on))
    with store.engine.connect() as connection:
        assert [row.uid for row in queries.queue(connection)] == [silent.id, unsure.id, sure.id]
    answers.answer(store, ANN, [silent.id], answers.Answer("noise"), START_NS)
    with store.engine.connect() as connection:
        assert [row.uid for row in queries.queue(connection)] == [unsure.id, sure.id]


def test_what_was_imported_stands_behind_what_stations_send(store: Store) -> None:
    """Protects whoever reviews and looks at *Now* and *Counts* from an archive's events, stations and hours."""
    old = event(0, phase="end", sensor="XX.OLD.00.HH", classification=verdict(abstained=True))
    before = event(0, phase="end", onset_ns=START_NS + NS, classification=None, reason="it failed")
    store.ingest([Arrival(place_of(body.station), body, START_NS, imported=True) for body in (old, before)])
    with store.writing() as connection:
        hour = {"hour": START_NS // HOUR - 1, "messages": 0, "degraded": 0, "armed": 0.5, "reasons": "[]"}
        key = store.station_id(connection, "XX.OLD", 0)
        connection.execute(insert(tables.health_hour).values(station_id=key, **hour))
        assert queries.stations(connection) == []
        assert len(queries.coverage(connection, None, START_NS - HOUR, START_NS)) == 1
    sure = event(3, onset_ns=START_NS + 2 * NS, classification=verdict(probability=0.99))
    store.ingest(arrivals(sure, "online"))
    with store.writing() as connection:
        mine = hour | {"station_id": store.station_id(connection, "XX.SLP", START_NS), "hour": START_NS // HOUR}
        connection.execute(insert(tables.health_hour).values(mine))
    with store.reading() as connection:
        queue = [row.uid for row in queries.queue(connection)]
        drawn = {row.uid for row in queries.random_unreviewed(connection, 9, imported=True)}
        live = [row.code for row in queries.stations(connection)]
        known = {row.code: row.status(START_NS + HOUR) for row in queries.stations(connection, imported=True)}
        heard = queries.coverage(connection, None, START_NS, START_NS + HOUR)
    assert (queue[0], drawn, live) == (sure.id, {old.id, before.id}, ["XX.SLP"])
    assert (known, len(heard)) == ({"XX.OLD": "imported", "XX.SLP": "silent"}, 1)
    store.ingest([Arrival("XX.OLD", event(0, sensor="XX.OLD.00.HH", onset_ns=START_NS + HOUR), START_NS)])
    with store.reading() as connection:
        assert [row.code for row in queries.stations(connection)] == ["XX.OLD", "XX.SLP"]


@pytest.mark.parametrize("number", [LAYOUT - 1, LAYOUT + 1])
def test_a_database_of_another_layout_is_refused_and_keeps_what_it_has(database: str, number: int) -> None:
    store = Store(database)
    store.ingest(arrivals(event(3)))
    with store.writing() as connection:
        connection.execute(tables.version.update().values(number=number))
    with pytest.raises(ConfigError, match=f"layout {number}, this version needs {LAYOUT}") as refused:
        Store(database)
    assert "nothing was changed" in str(refused.value.hint)
    with store.writing() as connection:
        assert connection.execute(select(tables.version.c.number)).scalar_one() == number
        connection.execute(tables.version.update().values(number=LAYOUT))
    assert shown(store, event().id).name == "landslide"
    assert tallied(store) == {"landslide": 1}
    store.close()


def test_what_is_no_address_of_a_database_is_refused() -> None:
    with pytest.raises(ConfigError, match="no address"):
        Store("desk.db")


def test_a_station_without_an_agent_of_its_own_stands_where_its_agent_says(store: Store) -> None:
    part = StationPart(
        station="XX.SLP", name=None, position=PositionPart(latitude=46.5, longitude=8.0, elevation_m=1200)
    )
    told = state().model_copy(update={"station": "XX.SITE", "stations": [part]})
    store.ingest([Arrival("XX.SITE", told, START_NS)])
    store.ingest(arrivals(event(0)))
    with store.engine.connect() as connection:
        rows = {row.code: row for row in connection.execute(select(tables.station))}
    assert (rows["XX.SLP"].latitude, rows["XX.SLP"].longitude, rows["XX.SLP"].elevation_m) == (46.5, 8.0, 1200)


def test_the_reasons_of_a_degraded_station_are_kept_by_the_hour(tmp_path: Path, store: Store) -> None:
    health = Health(Identity(StationId("XX", "SLP", "", ""), "0123456789abcdef"), tmp_path)
    store.ingest(arrivals(health.message(1, HealthInputs())))
    with store.engine.connect() as connection:
        (row,) = connection.execute(select(tables.health_hour)).all()
    assert row.degraded == 1
    assert "no_samples" in [reason["code"] for reason in json.loads(row.reasons)]


def test_an_hour_counts_as_heard_by_what_the_deafest_sensor_heard(store: Store) -> None:
    def health(minute: int, shares: list[float | None]) -> HealthMessage:
        found = Health(Identity(StationId("XX", "SLP", "", ""), "0123456789abcdef"), Path()).message(1, HealthInputs())
        parts = [
            HearingHealth(
                station="XX.SLP.00.HH", listening_in_s=None, armed_10min=share, armed_hour=share, threshold_counts=None,
                usual_counts=None, usual_hours=0.0, plausible=True,
            )
            for share in shares
        ]  # fmt: skip
        return found.model_copy(update={"time": format_ns(START_NS + minute * 60 * NS), "hearing": parts})

    store.ingest(arrivals(health(0, [1.0, 0.5]), health(1, [1.0, 1.0]), health(2, [None]), health(61, [None])))
    with store.engine.connect() as connection:
        told = (
            connection.execute(select(tables.health_hour.c.armed).order_by(tables.health_hour.c.hour)).scalars().all()
        )
    assert told == [pytest.approx(0.75), None]
    assert hearing_words([{"armed_10min": 0.5}, {"armed_10min": None}, {"armed_10min": 1.0}]) == "50 %"


def test_old_hours_of_health_become_days_and_the_time_that_was_heard_stays(store: Store) -> None:
    """Protects rates over years: what a day was heard stays the same."""
    day = START_NS // (24 * HOUR)
    with store.writing() as connection:
        key = store.station_id(connection, "XX.SLP", START_NS)

        def put(*hours: tuple[int, float | None]) -> None:
            rows = [
                {"station_id": key, "hour": 24 * day + hour, "messages": 60, "degraded": 30, "armed": armed}
                for hour, armed in hours
            ]
            connection.execute(insert(tables.health_hour), rows)

        put(*((hour, 1.0) for hour in range(6)), (7, None), (24 * thinning.AT_ONCE, 0.5))
        before = sum(share for _, share in queries.coverage(connection, "XX.SLP", START_NS, START_NS + 24 * HOUR))
        assert thinning.thin(connection, store._upsert, day) == 0
        assert thinning.thin(connection, store._upsert, day + 100) == 7
        told = queries.coverage(connection, "XX.SLP", START_NS, START_NS + 24 * HOUR)
        assert [hour for hour, _ in told] == list(range(24 * day, 24 * day + 24))
        assert sum(share for _, share in told) == pytest.approx(before)
        assert queries.coverage(connection, None, START_NS, START_NS + 24 * HOUR) == told
        put((9, 1.0))
        assert [thinning.thin(connection, store._upsert, day + 100) for _ in range(3)] == [1, 1, 0]
        assert connection.execute(
            select(tables.health_day.c.messages).order_by(tables.health_day.c.day)
        ).scalars().all() == [480, 60]


def test_what_is_known_begins_with_the_first_event_or_hour_or_day_of_health(store: Store) -> None:
    with store.reading() as connection:
        assert queries.first_ns(connection) == 0
    first = START_NS // queries.HOUR_NS
    store.ingest([Arrival("XX.SLP", event(0), START_NS), Arrival("XX.TOE", "online", START_NS)])
    day = {"messages": 1, "degraded": 0}
    for values, table, expected in (
        ({}, None, first),
        ({"hour": first - 5, "reasons": "[]"}, tables.health_hour, first - 5),
        ({"hour": first + 5, "reasons": "[]"}, tables.health_hour, first - 5),
        ({"day": first // 24 - 3, "heard": 1.0}, tables.health_day, first - 72),
    ):
        with store.writing() as connection:
            if table is not None:
                key = store.station_id(connection, "XX.TOE", START_NS)
                connection.execute(table.insert().values(station_id=key, **day, **values))
        with store.reading() as connection:
            assert queries.first_ns(connection) == expected * queries.HOUR_NS


def test_health_that_comes_thins_what_is_old(tmp_path: Path) -> None:
    opened = Store(f"sqlite:///{tmp_path}/desk.db", health_days=30)
    found = Health(Identity(StationId("XX", "SLP", "", ""), "0123456789abcdef"), tmp_path).message(1, HealthInputs())
    for days in (0, 20, 40):
        at_ns = START_NS + days * 24 * HOUR
        opened.ingest(arrivals(found.model_copy(update={"time": format_ns(at_ns)}), at_ns=at_ns))
    with opened.reading() as connection:
        assert len(connection.execute(select(tables.health_hour)).all()) == 2
        assert len(connection.execute(select(tables.health_day)).all()) == 1
    opened.close()


def test_counts_of_all_sensors_by_day_are_the_sum_of_the_hours_of_each(store: Store) -> None:
    sensors = ("XX.SLP.00.HH", "XX.SLP.01.HH")
    bodies = [event(0, onset_ns=START_NS + n * HOUR, sensor=sensors[n % 2]) for n in range(50)]
    store.ingest(arrivals(*bodies))
    store.ingest(arrivals(event(1, onset_ns=START_NS, classification=verdict("blast"))))
    with store.reading() as connection:
        ends = START_NS + 72 * HOUR
        by_day = queries.counts(connection, START_NS, ends, hours=24)
        by_hour = [queries.counts(connection, START_NS, ends, sensor=sensor) for sensor in sensors]
    assert [(name, number) for _, name, number in by_day] == [
        ("blast", 1), ("landslide", 23), ("landslide", 24), ("landslide", 2)
    ]  # fmt: skip
    assert sum(number for rows in by_hour for _, _, number in rows) == 50
