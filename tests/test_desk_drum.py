"""A day of a station as a drum plot: what was recorded is there, second by second, and what was not stays white."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from desk_support import START_NS, event
from starlette.testclient import TestClient
from test_desk_record import record
from test_desk_web import PASSWORD, logged_in

from agent.types import NS
from desk import accounts
from desk.drum import DAY_S, Drum, drum_of
from desk.evidence import Records
from desk.store import tables
from desk.store.store import Arrival, Store
from desk.web.application import application
from desk.web.live import Live

ONSET_NS = START_NS + 3600 * NS


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(f"sqlite:///{tmp_path}/desk.db")


def keep_record(store: Store, records: Records) -> None:
    """The record of an event an hour after midnight: it begins 20 s before the onset, 60 s long, 5 s of Z missing."""
    evidence = {"sha256": "ab" * 32, "bytes": 1, "start": "2026-03-01T00:00:00.000000000Z"}
    evidence["end"] = evidence["start"]
    store.ingest([Arrival("XX.SLP", event(3, onset_ns=ONSET_NS, evidence=evidence), ONSET_NS)])
    with store.writing() as connection:
        connection.execute(tables.evidence.update().values(state="here"))
    records.keep(event(onset_ns=ONSET_NS).id, record(onset_ns=ONSET_NS))


def test_records_of_events_are_the_day_where_the_station_sends_no_envelope(store: Store, tmp_path: Path) -> None:
    records = Records(tmp_path / "records", 10**9)
    keep_record(store, records)
    with store.engine.connect() as connection:
        day = drum_of(connection, records, "XX.SLP", START_NS)
        other = drum_of(connection, records, "XX.TOE", START_NS)
    known = np.flatnonzero(np.isfinite(day.low))
    assert (day.source, day.sensor, day.component) == ("records", "XX.SLP.00.HH", "Z")
    assert known.tolist() == [*range(3580, 3620), *range(3625, 3640)]
    assert int(np.argmax(day.high[known])) == 20
    assert 700 < day.high[3600] < 1000
    assert (other.source, np.isfinite(other.low).any()) == ("none", False)


def test_coarser_steps_keep_every_extreme_and_every_gap() -> None:
    low, high = np.full(DAY_S, np.nan), np.full(DAY_S, np.nan)
    low[7200:7260], high[7200:7260] = -10.0, 10.0
    low[7213], high[7219] = -500.0, 400.0
    drum = Drum("XX.SLP.00.HH", "Z", "envelope", low, high)
    (fine,) = drum.parts(1)
    (coarse,) = drum.parts(10)
    assert (fine["second"], len(fine["low"])) == (7200, 60)
    assert coarse == {"second": 7200, "low": [-10, -500, -10, -10, -10, -10], "high": [10, 400, 10, 10, 10, 10]}
    assert drum.scale() == 60.0


def test_the_page_gets_the_day_and_a_wrong_question_is_named(store: Store, tmp_path: Path) -> None:
    records = Records(tmp_path / "records", 10**9)
    keep_record(store, records)
    accounts.add_account(store, "setup", "vera", "viewer", PASSWORD, now_ns=time.time_ns())
    with TestClient(
        application(store, Live(store), records=records), base_url="http://desk", follow_redirects=False
    ) as client:
        headers = logged_in(client, "vera")
        found = client.get("/api/v1/drum/XX.SLP/2026-03-01?step=2", headers=headers).json()
        wrong = [
            client.get(f"/api/v1/drum/XX.SLP/{rest}", headers=headers).status_code
            for rest in ("2026-13-01", "yesterday", "2026-03-01?step=0", "2026-03-01?step=61")
        ]
        client.cookies.clear()
        assert client.get("/api/v1/drum/XX.SLP/2026-03-01").status_code == 401
    assert [(part["second"], len(part["low"])) for part in found["parts"]] == [(3580, 20), (3624, 8)]
    assert (found["source"], found["unit"], found["step_s"]) == ("records", "counts", 2)
    assert wrong == [400] * 4
