"""The desk: how fast, how large, and what is lost when it is killed.

    python bench/desk.py [ingest] [pages] [million] [memory] [kills] [event] [--postgres]

- *ingest*: messages a second from a broker that has them ready, each acknowledged after its commit.
- *pages*: from the publication of an event to 200 open pages, at 10 events a second; processor share of the desk.
- *million*: a database of 1,000,000 events: its size, and what each page asks of it.
- *memory*: the desk after a day's worth of 64 stations (health once a minute, 300 events each).
- *event*: the page of an event in Chromium, three components of 12,000 samples, median and largest of ten visits until
  all is drawn, and of drawing alone; and its picture. The peer is the page of the same event without a record: what
  Chromium and the desk cost by themselves.
- *kills*: the desk killed 50 times (SIGKILL) and the broker 20 times in a stream of 5,000 events.

Broker, desk and database are processes of their own on this machine; their processor time is the kernel's. With other
programs at work the shares, sizes and losses still hold; the times do not, so the load is printed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import shutil
import sys
from pathlib import Path

import numpy as np
from broker_support import Mosquitto
from desk_process_support import DeskProcess, Feeder, csrf, payload, persistent_broker, phone
from desk_support import START_NS, event, event_id, verdict
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from postgres_support import cluster
from sqlalchemy import func, insert, select, text
from support import cpu_s, row
from test_desk_losses import soonest_repetition, stream

from agent.health.report import Health, HealthInputs, Identity
from agent.types import LABELS, NS, StationId, format_ns
from desk.store import partitions, queries, tables
from desk.store.store import Arrival, Store, note_changes
from desk.web import glance

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from agent.alert.evidence import encode
from agent.messages.schema import EventMessage
from agent.types import Segment, StreamId
from demo.screenshots import ARGUMENTS, DESKTOP, NAME, PASSWORD, log_in, served
from desk import accounts
from desk.evidence import Records
from desk.pictures.of_store import picture_of

MINUTE, HOUR, DAY = 60 * NS, 3600 * NS, 86_400 * NS


def rss_mb(pid: int) -> float:
    """Resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


PROPERTIES = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
PROPERTIES.PayloadFormatIndicator, PROPERTIES.ContentType = 1, "application/json"
"""Of a station's messages."""


def publisher(broker: Mosquitto) -> Client:
    """A client that sends as fast as it is asked to."""
    client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
    client.max_inflight_messages_set(2000)
    client.max_queued_messages_set(0)
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    return client


def until(condition: Callable[[], Any], seconds: float, what: str) -> None:
    """Wait."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {seconds:g} s: {what}")
        time.sleep(0.1)


def stored(url: str, table: Any) -> int:
    """Rows of a table."""
    store = Store(url)
    with store.reading() as connection:
        number: int = connection.execute(select(func.count()).select_from(table)).scalar_one()
    store.close()
    return number


def ingest(folder: Path, url: str, name: str) -> None:
    """Events wait at the broker for the desk's session; the desk is started and takes them."""
    broker = Mosquitto(folder, "max_queued_messages 0", "max_inflight_messages 1000").start()
    desk = DeskProcess(folder / "desk", broker, database=url)
    desk.start()
    desk.stop()
    number = 40_000
    client = publisher(broker)
    bodies = [payload(event(n % 4, onset_ns=START_NS + n // 4 * 7 * NS)) for n in range(number)]
    for body in bodies:
        client.publish("talus/v1/XX/SLP/event", body, 1, properties=PROPERTIES)
    until(lambda: client.publish("talus/v1/XX/SLP/none", b"", 1).wait_for_publish(120) is None, 300, "all published")
    store = Store(url)

    def done() -> int:
        with store.reading() as connection:
            return int(connection.execute(select(func.count()).select_from(tables.revision)).scalar_one())

    desk.start(wait=False)
    until(done, 60, "the first message")
    begun, first, used = time.monotonic(), done(), cpu_s(desk.pid)
    until(lambda: done() == number, 300, "all messages stored")
    seconds = time.monotonic() - begun
    rate = (number - first) / seconds
    row(f"ingest, {name}: messages/s, commit before each ack", f"{rate:,.0f}", ">= 2,000", rate >= 2000)
    row("  processor time of the desk a message", f"{1e6 * (cpu_s(desk.pid) - used) / (number - first):,.0f} us")
    store.close()
    desk.stop()
    broker.stop()


def pages(folder: Path, url: str, name: str, *, seconds: float = 30.0, clients: int = 200) -> None:
    """Publish 10 events a second, each in its own moment; every page notes when it sees which."""
    import httpx

    broker = Mosquitto(folder).start()
    desk = DeskProcess(folder / "desk", broker, database=url)
    desk.account("vera", "viewer")
    desk.start()
    cookie = desk.client("vera").cookies["talus_desk"]
    sent: dict[str, float] = {}
    delays: list[float] = []
    ready = threading.Semaphore(0)
    stop = threading.Event()

    class Page(asyncio.Protocol):
        rest = b""

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            asked = f"GET /api/v1/stream HTTP/1.1\r\nHost: x\r\nCookie: talus_desk={cookie}\r\n\r\n"
            transport.write(asked.encode())  # type: ignore[attr-defined]

        def data_received(self, data: bytes) -> None:
            now = time.monotonic()
            *changes, self.rest = (self.rest + data).split(b"\n\n")
            for change in changes:
                if b"event: hello" in change:
                    ready.release()
                    continue
                begin = change.find(b'"subject":"') + 11
                uid = change[begin : change.find(b'"', begin)].decode()
                if uid in sent:
                    delays.append(now - sent[uid])

    async def all_pages() -> None:
        port, loop = int(desk.address.rpartition(":")[2]), asyncio.get_running_loop()
        for _ in range(clients):
            await loop.create_connection(Page, "127.0.0.1", port)
        while not stop.is_set():
            await asyncio.sleep(0.1)

    thread = threading.Thread(target=lambda: asyncio.run(all_pages()), daemon=True)
    thread.start()
    for _ in range(clients):
        if not ready.acquire(timeout=60):
            raise SystemExit("not all pages are open")
    client = publisher(broker)
    number, used, begun = 0, cpu_s(desk.pid), time.monotonic()
    while time.monotonic() - begun < seconds:
        body = event(0, onset_ns=time.time_ns() // 1_000_000 * 1_000_000)
        sent[body.id] = time.monotonic()
        client.publish("talus/v1/XX/SLP/event", payload(body), 1, properties=PROPERTIES)
        number += 1
        time.sleep(max(0.0, begun + number / 10 - time.monotonic()))
    share = (cpu_s(desk.pid) - used) / (time.monotonic() - begun)
    deadline = time.monotonic() + 20
    while len(delays) < number * clients and time.monotonic() < deadline:
        time.sleep(0.1)
    stop.set()
    delays.sort()
    p50, p95 = 1000 * statistics.median(delays), 1000 * delays[int(0.95 * len(delays))]
    goal = len(delays) == number * clients
    row(
        f"pages, {name}: {clients} pages, 10 events/s, all seen",
        f"{len(delays):,} of {number * clients:,}",
        "all",
        goal,
    )
    row("  broker to page, median", f"{p50:.0f} ms")
    row("  broker to page, 95 %", f"{p95:.0f} ms", "<= 300 ms", p95 <= 300)
    row("  processor of the desk", f"{100 * share:.0f} % of a core", "<= 25 %", share <= 0.25)
    assert httpx.get(f"{desk.address}/healthz").status_code == 200
    desk.stop()
    broker.stop()


class Text:
    """A message that is JSON already."""

    def __init__(self, body: dict[str, Any]) -> None:
        self._body = body

    def model_dump_json(self, *, by_alias: bool) -> str:
        """As a checked message gives it."""
        assert by_alias
        return json.dumps(self._body, separators=(",", ":"))


def fill(url: str, number: int) -> None:
    """A database of so many events: 64 sensors, two years, four revisions and a record each. The rows are those of the
    store, in larger transactions and without their way through the schema."""
    store, chance = Store(url), random.Random(1)
    sensors = [f"XX.S{n:02d}.00.HH" for n in range(64)]
    store.ingest([Arrival(code[:6], "online", START_NS) for code in sensors])
    with store.writing() as connection:
        keys = [store.sensor_id(connection, code[:6], code, START_NS) for code in sensors]
    step_ns, begun = 730 * DAY // number, time.monotonic()
    whole = json.loads(payload(event(3)))
    for begin in range(0, number, 10_000):
        events, revisions, records, alerts = [], [], [], []
        for n in range(begin, min(begin + 10_000, number)):
            place, onset_ns, key = chance.randrange(64), START_NS - 730 * DAY + n * step_ns, n + 1
            label = chance.choices(range(5), (2, 1, 3, 6, 20))[0]
            share, abstained = chance.uniform(0.3, 0.99), chance.random() < 0.05
            found = verdict(LABELS[label], round(share, 4), 81.92, abstained=abstained)
            detection = {
                "ratio": round(chance.uniform(4, 40), 3), "duration_s": round(chance.uniform(2, 60), 2),
                "peak_counts": round(chance.uniform(100, 1e5), 1), "dominant_hz": round(chance.uniform(1, 25), 2),
            }  # fmt: skip
            uid, onset, digest = (
                event_id(onset_ns, sensors[place]),
                format_ns(onset_ns),
                f"{chance.getrandbits(256):064x}",
            )
            evidence = {"sha256": digest, "bytes": 45056, "start": onset, "end": format_ns(onset_ns + 82 * NS)}
            body = {**whole, "id": uid, "station": sensors[place], "onset": onset, "detection": detection}
            body |= {"classification": found, "evidence": evidence, "seq": n}
            body["timing"] = {"data": onset, "received": onset, "decided": onset, "handed": onset}
            review = 1 if n % 20 == 0 else None
            events.append({
                "id": key, "uid": uid, "sensor_id": keys[place], "onset_ns": onset_ns, "revision": 3, "ended": True,
                "class": review or (tables.UNDECIDED if abstained else label), "label": label, "probability": share,
                "doubt": (1.0 if abstained else 0.0) + 1 - share, "ratio": detection["ratio"],
                "duration_s": detection["duration_s"], "peak_counts": detection["peak_counts"], "exercise": False,
                "received_ns": onset_ns + 82 * NS, "review": review, "body": Text(body),
            })  # fmt: skip
            parts = bytes(round(255 * part) for part in found["probabilities"].values())
            revisions += [
                {"event_id": key, "number": r, "received_ns": onset_ns + round(window_s * NS), "phase": min(r, 2),
                 "label": label, "abstained": abstained, "window_s": window_s, "probabilities": parts}
                for r, window_s in enumerate((3.0, 10.0, 40.0, 81.92))
            ]  # fmt: skip
            records.append({"event_id": key, "state": "lost", "sha256": digest, "bytes": 45056, "tries": 6})
            if n % 500 == 0:
                alerts.append({
                    "uid": uid, "event_uid": uid, "sensor_id": keys[place], "onset_ns": onset_ns, "revision": 0,
                    "action": "raise", "severity": "severe", "label": "landslide", "exercise": False,
                    "raised_ns": onset_ns + 4 * NS, "acked_ns": None if n % 5000 == 0 else onset_ns + MINUTE,
                    "body": Text(body),
                })  # fmt: skip
        with store.writing() as connection:
            for table, rows in (
                (tables.event, events), (tables.revision, revisions), (tables.evidence, records), (tables.alert, alerts)
            ):  # fmt: skip
                connection.execute(insert(table), rows)
        if begin % 100_000 == 0:
            print(f"  {begin:,} events, {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    hours = range(START_NS // HOUR - 730 * 24, START_NS // HOUR)
    with store.writing() as connection:
        first, last = (partitions.month_of(START_NS - days * DAY) for days in (730, -1))
        for month in range(first, last + 1) if store.is_postgresql else ():
            for one in partitions.MONTHLY:
                partitions.make(connection, one, month)
        for key in connection.execute(select(tables.station.c.id)).scalars().all():
            rows = [{"station_id": key, "hour": hour, "messages": 60, "degraded": 0, "armed": 0.99} for hour in hours]
            connection.execute(insert(tables.health_hour), rows)
        note_changes(connection, [("event", uid)] * 200, START_NS)
        connection.execute(text("ANALYZE"))
    store.close()


def questions() -> Iterator[tuple[str, Callable[[Any], Any]]]:
    """What each page asks of the database."""
    end, month = START_NS, 30 * DAY
    some = queries.Filter(sensor="XX.S07.00.HH", name="landslide", from_ns=end - 400 * DAY, to_ns=end)
    yield "now: stations", queries.stations
    yield "now: open alerts", lambda c: queries.alerts(c, only_open=True)
    yield "now: newest events", lambda c: queries.events(c, queries.Filter(to_ns=end + DAY), limit=60)
    yield "events: the whole list, first page", queries.events
    yield "events: in the middle, by cursor", lambda c: queries.events(c, before=(end - 365 * DAY, 2**40))
    yield "events: sensor, class and year", lambda c: queries.events(c, some)
    yield "events: a class", lambda c: queries.events(c, queries.Filter(name="collapse"))
    yield "events: with an alert", lambda c: queries.events(c, queries.Filter(alerted=True))
    yield "events: answered", lambda c: queries.events(c, queries.Filter(reviewed=True))
    yield (
        "events: not answered, a station",
        lambda c: queries.events(c, queries.Filter(station="XX.S03", reviewed=False)),
    )
    yield "events: exercises", lambda c: queries.events(c, queries.Filter(exercise=True))

    def one(c: Any) -> Any:
        row = queries.events(c, before=(end - 100 * DAY, 2**40), limit=1)[0]
        queries.event(c, row.uid)
        queries.verdicts(c, row.key)
        queries.alerts(c, event_uid=row.uid)
        glance.size_words(c, row)
        return glance.neighbours(c, row, queries.neighbours(c, row), end)

    yield "event: with verdicts, alerts, neighbours, size", one
    day = queries.Filter(station="XX.S09", from_ns=end - 50 * DAY, to_ns=end - 49 * DAY)
    yield "day: a station's events", lambda c: queries.events(c, day, limit=5000)
    yield "counts: since when", queries.first_ns
    yield "counts: a week, all sensors, by hour", lambda c: queries.counts(c, end - 7 * DAY, end)
    yield "counts: a month, all sensors, by hour", lambda c: queries.counts(c, end - month, end)
    yield (
        "counts: a year, a sensor, by day",
        lambda c: queries.counts(c, end - 365 * DAY, end, sensor="XX.S07.00.HH", hours=24),
    )
    yield "counts: two years, all sensors, by day", lambda c: queries.counts(c, end - 730 * DAY, end, hours=24)
    yield "counts: coverage of a month", lambda c: queries.coverage(c, "XX.S07", end - month, end)
    yield "counts: coverage of a month, all stations", lambda c: queries.coverage(c, None, end - month, end)
    yield "review: the queue", queries.queue
    yield "review: a random tenth", lambda c: queries.random_unreviewed(c, 10)
    yield "alerts", lambda c: queries.alerts(c, limit=300)
    yield "stream: read on", lambda c: queries.feed_since(c, queries.feed_span(c)[1] - 100)


def million(_folder: Path, url: str, name: str, number: int = 1_000_000) -> None:
    """Size, and the time of each page's question (and its processor time): the median of nine, after one that warms
    the cache."""
    if not stored(url, tables.event):
        begun = time.monotonic()
        fill(url, number)
        row(f"{name}: {number:,} events of four revisions written in", f"{time.monotonic() - begun:,.0f} s")
    store = Store(url)
    if store.is_postgresql:
        with store.reading() as connection:
            size = connection.execute(text("SELECT pg_database_size(current_database())")).scalar_one() / 1e6
    else:
        with store.engine.connect() as connection:
            connection.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        file = Path(str(store.engine.url.database))
        size = sum(path.stat().st_size for path in file.parent.glob(f"{file.name}*")) / 1e6
    goal = size < 1000
    row(f"{name}: size of the database", f"{size:,.0f} MB", "< 1,000 MB", goal)
    for words, ask in questions():
        times, used = [], []
        for _ in range(10):
            with store.reading() as connection:
                begun, cpu = time.perf_counter(), time.thread_time()
                ask(connection)
                times.append(1000 * (time.perf_counter() - begun))
                used.append(1000 * (time.thread_time() - cpu))
        took, worked = statistics.median(times[1:]), statistics.median(used[1:])
        row(f"  {words}", f"{took:.1f} ms ({worked:.1f})", "<= 50 ms", took <= 50)
    store.close()


def memory(folder: Path, url: str, name: str, *, minutes: int = 1440) -> None:
    """A day of 64 stations, through the broker, while pages are asked for."""
    broker = Mosquitto(folder, "max_queued_messages 0").start()
    desk = DeskProcess(folder / "desk", broker, database=url)
    desk.account("vera", "viewer")
    desk.start()
    before, client, browser = rss_mb(desk.pid), publisher(broker), desk.client("vera")
    number = 0
    report = Health(Identity(StationId("XX", "SLP", "", ""), "0123456789abcdef"), folder).message(1, HealthInputs())
    start = format_ns(START_NS)
    health = payload(report.model_copy(update={"station": "XX.S00", "time": start}))
    events = [payload(event(revision, sensor="XX.S00.00.HH")) for revision in range(4)]
    stamp = event_id(START_NS, "XX.S00.00.HH").rpartition("-")[2].encode()
    for minute in range(minutes):
        at_ns = START_NS + minute * MINUTE
        now = format_ns(at_ns).encode()
        bodies = [("health", health.replace(start.encode(), now))]
        if minute % 5 == 0:
            onset = event_id(at_ns, "XX.S00.00.HH").rpartition("-")[2].encode()
            bodies += [("event", body.replace(start.encode(), now).replace(stamp, onset)) for body in events]
        for station in range(64):
            for topic, body in bodies:
                own = body.replace(b"XX.S00", f"XX.S{station:02d}".encode())
                sent = client.publish(f"talus/v1/XX/S{station:02d}/{topic}", own, 1, properties=PROPERTIES)
                number += 1
        if minute % 60 == 0:
            sent.wait_for_publish(300)  # a client holds 65,535 messages at most, and drops what is more
        day = f"/day?station=XX.S01&date={format_ns(START_NS)[:10]}"
        if minute == 0:
            until(lambda path=day: browser.get(path).status_code == 200, 60, "the first messages")
        if minute % 60 == 0:
            for path in ("/", "/events", "/alerts", "/counts", day):
                assert browser.get(path).status_code == 200, path
    end_ns = START_NS + (minutes - 1) // 5 * 5 * MINUTE
    until(
        lambda: browser.get("/api/v1/events?limit=1").json()["events"][0]["onset"] >= format_ns(end_ns)[:19], 900, "all"
    )
    rss = rss_mb(desk.pid)
    row(f"memory, {name}: at the start", f"{before:.0f} MB")
    row(f"  after {number:,} messages of 64 stations, {minutes / 60:g} h", f"{rss:.0f} MB", "<= 200 MB", rss <= 200)
    desk.stop()
    broker.stop()


class Progress:
    """How many revisions are stored."""

    def __init__(self, url: str) -> None:
        self._store, self._known = Store(url), 0

    def grown(self, most: int) -> bool:
        """Whether there are more than at the last True, or ``most``."""
        with self._store.reading() as connection:
            now = int(connection.execute(select(func.count()).select_from(tables.revision)).scalar_one())
        grown, self._known = now > self._known or now == most, now
        return grown


def kills(folder: Path, url: str, name: str, *, events: int = 5000, desks: int = 50, brokers: int = 20) -> None:
    """Kills at random moments, evenly over the stream; alerts are acknowledged as they come."""
    alerts, chance = events // 50, random.Random(1)
    with persistent_broker(folder) as broker, phone() as service:
        targets = [{"name": "ann", "url": f"json://{service.host}/ann"}]
        desk = DeskProcess(folder / "desk", broker, database=url, targets=targets)
        desk.account()
        desk.start()
        client = desk.client()
        headers, acknowledged = csrf(client), set()
        broker.save()  # with the desk's subscription
        feeder = Feeder(broker.settings(), stream(events, alerts), per_s=100)
        feeder.start()
        order = ["desk"] * desks + ["broker"] * brokers
        chance.shuffle(order)
        begun, progress = time.monotonic(), Progress(url)
        for count, victim in enumerate(order):
            due = (count + chance.random()) / len(order) * 4 * events
            while feeder.sent < due and not feeder.done:
                time.sleep(0.05)
                for one in client.get("/api/v1/alerts?open=1").json()["alerts"][:1]:
                    answer = client.post(f"/api/v1/alerts/{one['id']}/ack", json={}, headers=headers)
                    if answer.status_code == 200:
                        acknowledged.add(one["id"])
            if victim == "desk":
                # On a loaded machine the stream may be over before the desk has started so often: each one stores some.
                until(lambda: progress.grown(4 * events), 120, "a revision")
                desk.kill()
                desk.start(wait=False)
                until(lambda: reachable(desk), 60, "the pages")
            else:
                broker.kill()
                time.sleep(chance.uniform(0, 1))
                broker.start()
        until(lambda: feeder.done, 600, "the broker has acknowledged all")
        until(lambda: stored(url, tables.revision) == 4 * events, 300, "every revision")
        seconds = time.monotonic() - begun
        time.sleep(75)  # a call that was on its way at a kill is sent again after its lease
        store = Store(url)
        with store.reading() as connection:
            e, a, n = tables.event.c, tables.alert.c, tables.notification.c
            last = connection.execute(select(func.count()).where(e.revision == 3, e.ended)).scalar_one()
            found = connection.execute(select(func.count()).select_from(tables.alert)).scalar_one()
            acked = set(connection.execute(select(a.uid).where(a.acked_ns.is_not(None))).scalars())
            states = dict(connection.execute(select(n.state, func.count()).group_by(n.state)).all())
        store.close()
        told = {one.words["message"] for one in service.told}
        row(f"kills, {name}: desk {desks}, broker {brokers}, in", f"{seconds:,.0f} s")
        row("  last revisions", f"{last:,} of {events:,}", "all", last == events)
        row("  alerts", f"{found} of {alerts}", "all", found == alerts)
        row(
            "  acknowledgements kept",
            f"{len(acknowledged & acked)} of {len(acknowledged)}",
            "all",
            acknowledged <= acked,
        )
        waiting = states.get("waiting", 0) + states.get("sending", 0)
        row("  notifications waiting at the end", f"{waiting}", "0", waiting == 0)
        dropped = states.get("dropped", 0)
        goal = len(told) + dropped >= alerts
        row("  told, or acknowledged before", f"{len(told)} + {dropped} of {alerts}", "all", goal)
        soonest = soonest_repetition(service)
        words = "none" if soonest == float("inf") else f"{soonest:.0f} s"
        row("  soonest repetition on the phone", words, ">= 60 s", soonest >= 60)
        desk.stop()


def reachable(desk: DeskProcess) -> bool:
    """Whether it answers, well or not."""
    import httpx

    try:
        return httpx.get(f"{desk.address}/healthz").status_code in {200, 503}
    except httpx.HTTPError:
        return False


VISITS = 10
ONSET_NS = 1_772_323_200 * NS
IDS = ("XX.ONE.00.HH-20260301T000000.000Z", "XX.TWO.00.HH-20260301T000000.000Z")


def event_page(folder: Path, url: str, name: str) -> None:
    """An event with a record of three components: its picture, and its page in a browser."""
    store, records = prepared(folder, url)
    for turn in ("first", "second"):
        began, used = time.perf_counter(), time.process_time()
        picture = picture_of(store, records, folder / turn, IDS[0])
        took, used = time.perf_counter() - began, time.process_time() - used
        assert picture is not None
        figures = f"{took:.2f} s, {used:.2f} s of the processor, {picture.stat().st_size / 1000:.0f} kB"
        row(f"{turn} picture of an event, {name}", figures)
    with served(store, records) as base:
        visits(base)


def prepared(folder: Path, url: str) -> tuple[Store, Records]:
    """Two events, the first with a record of 120 s at 100 Hz and three components."""
    store, records = Store(url), Records(folder / "evidence", 10**9)
    accounts.add_account(store, "bench", NAME, "admin", PASSWORD, now_ns=1)
    rng = np.random.default_rng(5)
    data = {}
    for name in "ENZ":
        samples = rng.normal(0, 80, 12_000)
        samples[2000:5000] += rng.normal(0, 6000, 3000) * np.exp(-np.arange(3000) / 900)
        data[StreamId.parse(f"FDSN:XX_ONE_00_H_H_{name}")] = [
            Segment(ONSET_NS - 20 * NS, 100.0, samples.astype(np.int32))
        ]
    records.keep(IDS[0], encode(data))
    for uid in IDS:
        store.ingest([Arrival(uid[:6], message(uid, revision), ONSET_NS) for revision in range(4)])
    with store.writing() as connection:
        connection.execute(tables.evidence.insert().values(event_id=1, state="here", bytes=1))
    return store, records


def message(uid: str, revision: int) -> EventMessage:
    """A revision of an event."""
    when = format_ns(ONSET_NS)
    shares = {"earthquake": 0.02, "blast": 0.02, "collapse": 0.02, "landslide": 0.92, "noise": 0.02}
    return EventMessage.model_validate({
        "schema": "talus/event/1", "id": uid, "revision": revision,
        "phase": ("new", "update", "update", "end")[revision], "station": uid.rpartition("-")[0], "onset": when,
        "reason": None, "quakeml_type": "landslide", "exercise": False,
        "detection": {"ratio": 9.0, "duration_s": 20.0, "peak_counts": 6000.0, "dominant_hz": 8.0},
        "classification": {"label": "landslide", "probability": 0.92, "probabilities": shares, "abstained": False,
                           "window_s": (3.0, 10.0, 40.0, 81.92)[revision], "backend": "onnxruntime",
                           "precision": "int8", "model": {"name": "bench", "sha256": "0" * 64}},
        "timing": {"data": when, "received": when, "decided": when, "handed": None},
        "quality": {"gap_s": 0.0, "components": "ENZ", "clock": None}, "boot_id": "0" * 16, "seq": revision,
    })  # fmt: skip


def visits(base: str) -> None:
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium") or "chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(ARGUMENTS))
        page = browser.new_page(viewport={"width": DESKTOP[0], "height": DESKTOP[1]})
        log_in(page, base)
        for name, uid, ready in (
            ("with record", IDS[0], "#waveform[data-spectrogram]"),
            ("without record", IDS[1], "#around canvas"),
        ):
            whole, drawing = [], []
            for _ in range(VISITS):
                began = time.perf_counter()
                page.goto(f"{base}/event/{uid}", wait_until="commit")
                page.wait_for_selector(ready, state="attached")
                whole.append(1000 * (time.perf_counter() - began))
                drawing.append(float(page.get_attribute("#waveform", "data-draw-ms") or "nan"))
            words = f"drawing {statistics.median(drawing):.0f}, at most {max(drawing):.0f} ms" if uid == IDS[0] else ""
            figures = f"{statistics.median(whole):.0f} ms, at most {max(whole):.0f} ms"
            row(f"page of an event {name}, to the last pixel", figures, words)
        browser.close()


PARTS = {"ingest": ingest, "pages": pages, "million": million, "memory": memory, "kills": kills, "event": event_page}


def main() -> None:
    """Run the parts and print the card."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all)")
    parser.add_argument("--postgres", action="store_true", help="on a PostgreSQL cluster of its own instead of SQLite")
    parser.add_argument("--events", type=int, default=1_000_000, help="of the part million (default 1,000,000)")
    parser.add_argument("--share", type=float, default=1.0, help="of the parts kills and memory (0.2: a fifth)")
    parser.add_argument(
        "--keep", type=Path, metavar="FILE", help="SQLite database of the part million, used again if there"
    )
    args = parser.parse_args()
    for part in args.parts:
        if part not in PARTS:
            parser.error(f"{part} is no part: {', '.join(PARTS)}")
    processor = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    print(f"{processor}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}, SQLite", end=" ")
    print(f"{sqlite3.sqlite_version}; load at the start {load}")
    with ExitStack() as stack:
        server = stack.enter_context(cluster(durable=True)) if args.postgres else None
        for part in args.parts or PARTS:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"talus-desk-{part}-")))
            url = server.database() if server is not None else f"sqlite:///{folder}/{part}.db"
            if part == "million" and args.keep is not None:
                url = f"sqlite:///{args.keep.resolve()}"
            name = "PostgreSQL" if server is not None else "SQLite"
            more: dict[str, Any] = {"number": args.events} if part == "million" else {}
            if part == "memory":
                more = {"minutes": round(args.share * 1440)}
            if part == "kills":
                more = {name_: round(args.share * n) for name_, n in (("events", 5000), ("desks", 50), ("brokers", 20))}
            PARTS[part](folder, url, name, **more)
    print(json.dumps({"load at the end": [round(one, 1) for one in os.getloadavg()]}))


if __name__ == "__main__":
    main()
