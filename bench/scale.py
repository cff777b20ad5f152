"""What a station costs its broker and desk: bytes and processor time a message, and from these docs/scale.md.

    python bench/scale.py [--events 47]

Messages are those of the station's own line on ObsPy's real three-component record, stored by the desk's own store in
SQLite as they would be received: one batch is one transaction with a commit to disk. Disk is what the database has
grown by, per event with all its revisions. Nothing is sent: what a broker adds is its own.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

import numpy as np
from by_data_time import SENSOR, T0, Station
from support import make_busy, row

from agent.config.file import ClassifierConfig, TunablesConfig
from agent.messages.schema import EventMessage, HealthMessage
from agent.service.assemble import build_line
from agent.sources.archive import ArchiveSource
from agent.types import NS
from desk.store.store import Arrival, Store

STATIONS = (10, 500, 5000)
HEALTH_A_DAY = 1440
COPIES = 8
TIMES = 40
"""Each event is stored so often, under another identifier."""


def messages(folder: Path) -> list[bytes]:
    """Payloads of all revisions of the events of a record."""
    line = build_line(TunablesConfig(), ClassifierConfig(), "talus/v1")
    found = []
    for block in ArchiveSource(make_busy(folder, COPIES), on_problem=print).blocks():
        found += line.feed(block, block.end_ns).messages
    found += line.finish(0).messages
    return [one.payload for one in found if one.name == "event"]


def health() -> tuple[HealthMessage, bytes]:
    """A health report of a station of three components that has run for a quarter of an hour."""
    station, rng = Station(), np.random.default_rng(1)
    for second in range(900):
        for component in "ENZ":
            samples = rng.normal(0, 200, 100).astype(np.int32)
            station.feed(component, samples, T0 + second * NS, sensor=SENSOR)
    body = station.report()
    return body, body.model_dump_json().encode()


def stored(store: Store, arrivals: list[Arrival], batch: int = 200) -> float:
    """Processor time of storing them, seconds."""
    began = time.process_time()
    for at in range(0, len(arrivals), batch):
        store.ingest(arrivals[at : at + batch])
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=float, default=47.0, help="events a station and day (47, Xin et al. 2024)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        payloads = messages(Path(folder))
        report, told = health()
        database = Path(folder) / "desk.sqlite3"
        store = Store(f"sqlite:///{database}")
        arrivals = []
        for number in range(TIMES):
            for payload in payloads:
                body = json.loads(payload)
                body["id"] = body["id"].replace("XX.BUSY", f"XX.B{number}")
                arrivals.append(Arrival("XX.BUSY", EventMessage.model_validate_json(json.dumps(body)), T0))
        events = len({arrival.body.id for arrival in arrivals if isinstance(arrival.body, EventMessage)})
        empty = size(database)
        event_s = stored(store, arrivals)
        store.close()
        grown = size(database) - empty
        store = Store(f"sqlite:///{database}")
        reports = [Arrival("XX.SLP", report, T0 + second * NS) for second in range(4000)]
        health_s = stored(store, reports)
        store.close()
    revisions = len(arrivals) / events
    each = sum(map(len, payloads)) / len(payloads)
    row("an event message", f"{each:.0f} bytes")
    row("messages an event", f"{revisions:.1f}")
    row("a health message, 3 components", f"{len(told)} bytes")
    row("disk an event, all revisions (SQLite)", f"{grown / events:.0f} bytes")
    row("storing an event message, processor", f"{1e6 * event_s / len(arrivals):.0f} us")
    row("storing a health message, processor", f"{1e6 * health_s / len(reports):.0f} us")
    for stations in STATIONS:
        a_day = stations * (HEALTH_A_DAY + args.events * revisions)
        traffic = stations * (HEALTH_A_DAY * len(told) + args.events * revisions * each)
        core = stations * (HEALTH_A_DAY * health_s / len(reports) + args.events * revisions * event_s / len(arrivals))
        disk = stations * args.events * grown / events * 365
        row(
            f"{stations} stations",
            f"{a_day / 86_400:.2f} messages/s",
            f"{traffic / 1e6:.1f} MB a day, {disk / 1e9:.2f} GB a year, {core / 864:.2f} % of a core",
        )


def size(database: Path) -> int:
    """Of the database, with all that was written in its place."""
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return database.stat().st_size


if __name__ == "__main__":
    main()
