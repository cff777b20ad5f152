"""Several desks over one PostgreSQL database: one that is killed at any moment changes nothing on the others' pages."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from broker_support import Mosquitto, needs_mosquitto, running, wait_for
from desk_process_support import DeskProcess, Feeder, csrf, payload, phone
from desk_support import START_NS, alert, event
from postgres_support import Cluster, cluster
from sqlalchemy import select

from agent.types import NS
from desk.call.calls import Calls
from desk.call.sender import CallSender, Note
from desk.call.targets import Target
from desk.call.watch import FaultDelays, StationWatch
from desk.store import tables
from desk.store.store import Arrival, Store

MINUTE = 60 * NS


class Page(threading.Thread):
    """A page's stream of changes."""

    def __init__(self, client: httpx.Client) -> None:
        super().__init__(daemon=True)
        self.changes: list[dict[str, Any]] = []
        self.ready = threading.Event()
        self._client = client
        self.start()
        assert self.ready.wait(60)

    def run(self) -> None:
        # The desk is killed while its page is open: the stream then ends without its last chunk.
        with (
            contextlib.suppress(httpx.TransportError),
            self._client.stream("GET", "/api/v1/stream", timeout=60) as answer,
        ):
            for line in answer.iter_lines():
                if line.startswith("event: hello"):
                    self.ready.set()
                if line.startswith("data: {"):
                    self.changes.append(json.loads(line.removeprefix("data: ")))

    def last_revisions(self) -> dict[str, int]:
        return {c["subject"]: c["row"]["revision"] for c in list(self.changes) if c["kind"] == "event"}


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with running(tmp_path) as found:
        yield found


@needs_mosquitto
def test_a_desk_that_is_killed_changes_nothing_on_the_pages_of_another(
    tmp_path: Path, broker: Mosquitto, postgresql: Cluster
) -> None:
    url = postgresql.database()
    with phone() as service:
        shared = {"database": url, "targets": [{"name": "ann", "url": f"json://{service.host}/ann"}]}
        with (
            DeskProcess(tmp_path / "ada", broker, session="desk-ada", **shared) as ada,
            DeskProcess(tmp_path / "bob", broker, session="desk-bob", **shared) as bob,
        ):
            ada.account()
            bob.start()
            ada.start()
            page = Page(bob.client())
            messages = [("event", payload(event(n % 4, onset_ns=START_NS + n // 4 * MINUTE))) for n in range(400)]
            messages += [("alert", payload(alert(0, onset_ns=START_NS + n * MINUTE))) for n in range(10)]
            feeder = Feeder(broker.settings(), messages, per_s=150)
            feeder.start()
            time.sleep(1.0)
            ada.kill()
            ada.start(wait=False)
            wanted = {event(onset_ns=START_NS + n * MINUTE).id: 3 for n in range(100)}
            wait_for(lambda: page.last_revisions() == wanted, what="every last revision on the page of the other desk")
            client = ada.client()
            answer = client.post(f"/api/v1/alerts/{alert(0).id}/ack", json={}, headers=csrf(client))
            assert answer.status_code == 200
            wait_for(lambda: any(c["kind"] == "ack" for c in page.changes), what="an answer given at one, seen at both")
            wait_for(lambda: len(service.told) >= 10, what="ten alerts on the phone")
            ada.stop()
        titles = Counter(told.words["message"].splitlines()[0] for told in service.told)
        assert set(titles.values()) == {1}, "an alert was told by both desks"


def test_two_desks_open_and_tell_one_trouble_once(postgresql: Cluster) -> None:
    url, ann = postgresql.database(), Target("ann", "json://ann")
    told: list[str] = []

    class Way:
        def send(self, target: Target, note: Note) -> None:
            told.append(note.title)

    stores = [Store(url) for _ in range(2)]
    watches = [StationWatch(store, Calls([ann]), FaultDelays(offline_s=300)) for store in stores]
    senders = [CallSender(store, [ann], Way()) for store in stores]

    def at_once(at_ns: int) -> None:
        """Both look at the same moment, and both send."""
        for several in ([lambda w=w: w.look(at_ns) for w in watches], [lambda s=s: s.send_due(at_ns) for s in senders]):
            threads = [threading.Thread(target=act) for act in several]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    stores[0].ingest([Arrival("XX.SLP", "offline", START_NS)])
    for minute in range(8):
        at_once(START_NS + minute * MINUTE)
    stores[1].ingest([Arrival("XX.SLP", "online", START_NS + 8 * MINUTE)])
    at_once(START_NS + 8 * MINUTE)
    assert told == ["XX.SLP is offline", "XX.SLP is well again"]
    with stores[0].reading() as connection:
        assert len(connection.execute(select(tables.trouble)).all()) == 1


def test_two_desks_that_begin_on_an_empty_database_at_once_make_it_once(postgresql: Cluster) -> None:
    url = postgresql.database()
    opened: list[Store] = []
    threads = [threading.Thread(target=lambda: opened.append(Store(url))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 4
    bodies = [Arrival("XX.SLP", event(n % 4, onset_ns=START_NS + n // 4 * NS), START_NS) for n in range(200)]
    threads = [
        threading.Thread(target=store.ingest, args=(bodies[:: 1 - 2 * (n % 2)],)) for n, store in enumerate(opened)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with opened[0].reading() as connection:
        keys = [row.id for row in connection.execute(select(tables.feed).order_by(tables.feed.c.id))]
        assert len(connection.execute(select(tables.event).where(tables.event.c.revision == 3)).all()) == 50
        assert len(connection.execute(select(tables.revision)).all()) == 200
    assert len(keys) == 50, "what another desk has stored already is told once"


@needs_mosquitto
def test_a_database_that_dies_costs_nothing_and_the_desk_goes_on_with_it(tmp_path: Path, broker: Mosquitto) -> None:
    with cluster(durable=True) as server, phone() as service:
        targets = [{"name": "ann", "url": f"json://{service.host}/ann"}]
        with DeskProcess(tmp_path / "desk", broker, database=server.database(), targets=targets) as found:
            found.account()
            found.start()
            messages = [("event", payload(event(n % 4, onset_ns=START_NS + n // 4 * MINUTE))) for n in range(400)]
            feeder = Feeder(broker.settings(), messages, per_s=400)
            feeder.start()
            time.sleep(0.5)
            server.stop()
            assert httpx.get(f"{found.address}/healthz", timeout=60).status_code == 503
            time.sleep(0.5)
            server.start()
            wait_for(found.is_up, what="the desk is well again")
            client = found.client()

            def complete() -> bool:
                rows = client.get("/api/v1/events?limit=1000").json()["events"]
                return sum(row["ended"] and row["revision"] == 3 for row in rows) == 100

            wait_for(complete, what="every last revision")
            messages = [("alert", payload(alert(0)))]
            Feeder(broker.settings(), messages, per_s=10).start()
            wait_for(lambda: service.told, what="the alert on the phone")
            found.stop()
