"""Records that a station sends by itself after an alert: kept when whole and as announced, or not at all."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from agent_support import running_agent, write_config
from broker_support import needs_mosquitto, running, wait_for
from desk_support import START_NS, event
from sqlalchemy import select

from agent.config.broker import MqttSettings
from agent.errors import DataError
from agent.messages.payloads import PIECE_BYTES
from desk.evidence import Records
from desk.pieces import Pieces
from desk.receive import Receiver
from desk.store import tables
from desk.store.store import Arrival, Store

RAW = bytes(range(256)) * 300
PLACE = event().id.replace(".", "_")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    found = Store(f"sqlite:///{tmp_path}/desk.db")
    part = {"sha256": hashlib.sha256(RAW).hexdigest(), "bytes": len(RAW)}
    part |= {"start": "2026-03-01T00:00:00.000000000Z", "end": "2026-03-01T00:01:00.000000000Z"}
    found.ingest([Arrival("XX.SLP", event(3, evidence=part), START_NS)])
    return found


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(tmp_path / "records", 10**9)


def pieces(raw: bytes = RAW) -> list[tuple[str, bytes]]:
    return [(str(n), raw[n * PIECE_BYTES : (n + 1) * PIECE_BYTES]) for n in range(-(-len(raw) // PIECE_BYTES))]


def state(store: Store) -> str:
    with store.engine.connect() as connection:
        return str(connection.execute(select(tables.evidence.c.state)).scalar_one())


def test_pieces_in_any_order_and_over_a_restart_of_the_desk_become_the_record(store: Store, records: Records) -> None:
    parts = pieces()
    assert len(parts) == 3
    for number, payload in (parts[2], parts[0], parts[0]):
        assert Pieces(store, records).take("XX.SLP", PLACE, number, payload, START_NS) == []
    (change,) = Pieces(store, records).take("XX.SLP", PLACE, *parts[1], START_NS)
    assert (change.kind, change.subject, state(store)) == ("evidence", event().id, "here")
    assert records.path(event().id).read_bytes() == RAW
    assert Pieces(store, records).take("XX.SLP", PLACE, *parts[0], START_NS) == []
    assert [path.name for path in records.folder.rglob("*") if path.is_file()] == [f"{event().id}.mseed"]


def test_the_record_of_a_slow_event_is_kept_like_any_other(store: Store, records: Records) -> None:
    uid = f"{event().id}-slow"
    part = {"sha256": hashlib.sha256(RAW).hexdigest(), "bytes": len(RAW)}
    part |= {"start": "2026-03-01T00:00:00.000000000Z", "end": "2026-03-01T00:01:00.000000000Z"}
    store.ingest([Arrival("XX.SLP", event(3, id=uid, evidence=part), START_NS)])
    for number, payload in pieces():
        Pieces(store, records).take("XX.SLP", uid.replace(".", "_"), number, payload, START_NS)
    assert records.path(uid).read_bytes() == RAW


def test_what_the_event_did_not_announce_is_refused_and_leaves_nothing(store: Store, records: Records) -> None:
    taker = Pieces(store, records)
    (first, *rest) = pieces(RAW[:-1] + b"?")
    taker.take("XX.SLP", PLACE, *first, START_NS)
    with pytest.raises(DataError, match="not what the event announced"):
        for part in rest:
            taker.take("XX.SLP", PLACE, *part, START_NS)
    for name, number, payload in (
        ("XX_NO_00_HH-20260301T000000_000Z", "0", b"x"), (PLACE, "128", b"x"), (PLACE, "-1", b"x"), (PLACE, "²", b"x"),
        (PLACE, "1" * 60_000, b"x"),
        (PLACE, "0", b""), (PLACE, "0", bytes(PIECE_BYTES + 1)), ("../../etc", "0", b"x"), (PLACE + "/../x", "0", b"x"),
    ):  # fmt: skip
        with pytest.raises(DataError):
            taker.take("XX.SLP", name, number, payload, START_NS)
    assert [path for path in records.folder.rglob("*") if path.is_file()] == []
    assert state(store) == "offered"
    for part in pieces():
        taker.take("XX.SLP", PLACE, *part, START_NS)
    assert state(store) == "here", "a refused record may come again"


def test_pieces_of_another_station_spoil_no_record(store: Store, records: Records) -> None:
    taker = Pieces(store, records)
    good, evil = pieces(), pieces(bytes(len(RAW)))
    for mine, theirs in zip(good[:-1], evil[:-1], strict=True):
        taker.take("XX.SLP", PLACE, *mine, START_NS)
        taker.take("XX.EVIL", PLACE, *theirs, START_NS)
    with pytest.raises(DataError, match="not what the event announced"):
        taker.take("XX.EVIL", PLACE, *evil[-1], START_NS)
    taker.take("XX.SLP", PLACE, *good[-1], START_NS)
    assert records.path(event().id).read_bytes() == RAW


@needs_mosquitto
def test_a_desk_without_any_key_gets_the_record_of_an_alert_from_the_station(tmp_path: Path) -> None:
    source = "{kind: simulator, speed: 30, rates: {slopequakes_per_hour: 900}}"
    rule = "{severity: minor, min_probability: 0.1, min_duration_s: 0, refractory_s: 0, confirm: {k: 1, n: 1}}"
    with running(tmp_path) as broker:
        config = write_config(
            tmp_path / "site", "", broker.port, source=source, evidence="{send: alerts}",
            tunables=f"{{policy: {{rules: {{landslide: {rule}}}}}}}", classifier="{backends: ['constant:landslide']}",
        )  # fmt: skip
        store = Store(f"sqlite:///{tmp_path}/desk.db")
        records = Records(tmp_path / "records", 10**9)
        receiver = Receiver(
            MqttSettings(host="127.0.0.1", port=broker.port), store, "desk", pieces=Pieces(store, records)
        )
        receiver.start()
        try:
            with running_agent("run", "--config", config):
                wait_for(lambda: list(records.folder.glob("*/*.mseed")), what="the record of an alert came")
        finally:
            receiver.stop()
    with store.engine.connect() as connection:
        found = connection.execute(
            select(tables.event.c.uid, tables.evidence.c.sha256)
            .join(tables.event, tables.event.c.id == tables.evidence.c.event_id)
            .where(tables.evidence.c.state == "here")
        ).all()
    assert found
    for row in found:
        assert hashlib.sha256(records.path(row.uid).read_bytes()).hexdigest() == row.sha256
