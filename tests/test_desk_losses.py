"""Nothing is lost: desk and broker are killed in a stream of events, and the disk of the database is full."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from broker_support import Mosquitto, needs_mosquitto, wait_for
from desk_process_support import DeskProcess, Feeder, Phone, csrf, payload, persistent_broker, phone
from desk_support import START_NS, alert, event
from sqlalchemy import select

from agent.types import NS
from desk.store import tables
from desk.store.store import Store

MINUTE = 60 * NS
pytestmark = needs_mosquitto


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with persistent_broker(tmp_path) as found:
        yield found


@pytest.fixture
def service() -> Iterator[Phone]:
    with phone() as found:
        yield found


def stream(events: int, alerts: int) -> list[tuple[str, bytes]]:
    """Four revisions an event, and some events' alerts in between."""
    messages = []
    for n in range(events):
        onset_ns = START_NS + n * MINUTE
        for revision in range(4):
            messages.append(("event", payload(event(revision, onset_ns=onset_ns))))
            if revision == 1 and n % (events // alerts) == 0:
                messages.append(("alert", payload(alert(0, onset_ns=onset_ns))))
    return messages


def check_stored(folder: Path, events: int, alerts: int) -> None:
    """Every revision of every event, every alert, and one notification of each."""
    store = Store(f"sqlite:///{folder}/state/desk.db")
    with store.reading() as connection:
        last = dict(connection.execute(select(tables.event.c.uid, tables.event.c.revision)).all())
        assert last == {event(onset_ns=START_NS + n * MINUTE).id: 3 for n in range(events)}
        assert len(connection.execute(select(tables.revision.c.number)).all()) == 4 * events
        wanted = {alert(onset_ns=START_NS + n * MINUTE).id for n in range(0, events, events // alerts)}
        assert {row.uid for row in connection.execute(select(tables.alert.c.uid))} == wanted
        subjects = [row.subject for row in connection.execute(select(tables.notification.c.subject))]
        assert sorted(subjects) == sorted(f"alert {uid} 0" for uid in wanted)
    store.close()


def soonest_repetition(service: Phone) -> float:
    """Seconds between the two nearest messages to the phone that say the same."""
    times = defaultdict(list)
    for told in list(service.told):
        times[told.words["message"]].append(told.at)
    gaps = [later - at for several in times.values() for at, later in itertools.pairwise(several)]
    return min(gaps, default=float("inf"))


def test_kills_of_the_desk_and_of_the_broker_in_a_stream_lose_nothing(
    tmp_path: Path, broker: Mosquitto, service: Phone
) -> None:
    events, alerts, chance = 150, 15, random.Random(1)
    acknowledged: set[str] = set()
    targets = [{"name": "ann", "url": f"json://{service.host}/ann"}]
    with DeskProcess(tmp_path / "desk", broker, targets=targets) as desk:
        desk.account()
        desk.start()
        client = desk.client()
        headers = csrf(client)
        # A broker that forgot the desk's subscription would take the messages for nobody.
        broker.save()
        # However slow the machine, all of the stream comes again after a kill of the broker; the last kill is the
        # desk's, and what that would cost comes from nowhere again.
        feeder = Feeder(broker.settings(), stream(events, alerts), per_s=150, resent_s=300)
        feeder.start()
        for victim in ("broker", "broker", "desk"):
            until = time.monotonic() + chance.uniform(0.2, 0.8)
            while time.monotonic() < until or not acknowledged:
                for row in client.get("/api/v1/alerts?open=1").json()["alerts"][:1]:
                    answer = client.post(f"/api/v1/alerts/{row['id']}/ack", json={}, headers=headers)
                    acknowledged.add(row["id"]) if answer.status_code == 200 else None
                time.sleep(0.05)
            if victim == "broker":
                broker.kill()
                time.sleep(0.2)
                broker.start()
            else:
                desk.kill()
                desk.start()
        wait_for(lambda: feeder.done, what="the broker has acknowledged all")

        def complete() -> bool:
            rows = client.get("/api/v1/events?limit=1000").json()["events"]
            return sum(row["revision"] == 3 for row in rows) == events

        wait_for(complete, what="every last revision")
        wait_for(lambda: len(client.get("/api/v1/alerts").json()["alerts"]) == alerts, what="every alert")
        acked = {row["id"] for row in client.get("/api/v1/alerts").json()["alerts"] if row["acked_by"]}
        desk.stop()
    assert acknowledged
    assert acknowledged <= acked
    assert soonest_repetition(service) >= 60
    check_stored(tmp_path / "desk", events, alerts)


@pytest.mark.skipif(os.getuid() != 0, reason="a small disk can be mounted by root only")
def test_a_full_disk_under_the_database_costs_nothing_and_is_said(
    tmp_path: Path, broker: Mosquitto, service: Phone
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], check=False).returncode:
        pytest.skip("this machine does not let its root mount a disk")
    try:
        desk = DeskProcess(disk / "desk", broker, targets=[{"name": "ann", "url": f"json://{service.host}/ann"}])
        desk.account()
        desk.start()
        client = desk.client()
        messages = stream(200, 20)
        early = Feeder(broker.settings(), messages[:40], per_s=400)
        early.send()
        wait_for(lambda: client.get("/api/v1/events").json()["events"], what="the first events")
        filler = disk / "filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(b"x" * 4096):
                pass
        Feeder(broker.settings(), messages[40:], per_s=800).send()
        wait_for(
            lambda: httpx.get(f"{desk.address}/healthz", timeout=60).status_code == 503,
            what="the desk says that it is not well",
        )
        assert "database refuses" in httpx.get(f"{desk.address}/healthz", timeout=60).text
        assert "full" in client.get("/").text
        assert client.get("/").status_code == 200, "the pages show what is stored"
        filler.unlink()
        wait_for(desk.is_up, what="the desk is well again")

        def complete() -> bool:
            rows = client.get("/api/v1/events?limit=1000").json()["events"]
            return sum(row["revision"] == 3 for row in rows) == 200

        wait_for(complete, what="every last revision")
        desk.stop()
        check_stored(disk / "desk", 200, 20)
    finally:
        desk.stop()
        subprocess.run(["umount", "--lazy", disk], check=False)
