"""What a fleet costs its broker and desk, and from these docs/scale.md.

    python bench/scale.py messages [--events 47]
    python bench/scale.py fleet [--stations 500] [--seconds 60]
    python bench/scale.py envelope FILE...

``messages``: bytes and processor time a message. Messages are those of the station's own line on ObsPy's real
three-component record, stored by the desk's own store in SQLite as they would be received: one batch is one transaction
with a commit to disk. Disk is what the database has grown by, per event with all its revisions. Nothing is sent: what a
broker adds is its own.

``fleet`` of 500 stations: what their messages ask of the desk and its PostgreSQL, and a rollout that stops by itself.
One publisher sends in the names of all stations: a health message of each a minute, of three components as in
``messages``, and four event messages a second, twice what 47 events a station and day are. A page of the desk notes
when it sees which event. Then ``talus fleet push config`` gives an order to all of them in waves, of which one station
takes it back. Broker, desk and PostgreSQL are processes of this machine, which commit to disk as in operation.

``envelope``: what the minima and maxima of a vertical take on the link, a day, beside the same samples as miniSEED
(Steim 2). Topic and packet headers are counted; ``processor`` is what the station spends on them for each hour of data.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

import argparse
import json
import sqlite3
import tempfile
import threading
import time
from contextlib import ExitStack, closing

import numpy as np
from agent_support import talus
from broker_support import Mosquitto, wait_for
from by_data_time import SENSOR, T0, Station
from control_support import envelope as sealed
from control_support import key
from desk_process_support import DeskProcess, payload
from desk_support import event
from fleet_support import Stations
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion
from postgres_support import Cluster, cluster
from support import TICKS, choose, cpu_s, make_busy, option, part, row

from agent.alert.evidence import encode
from agent.config.file import ClassifierConfig, TunablesConfig
from agent.detect.envelope import Envelopes
from agent.messages.payloads import PACKET_OVERHEAD, Message, Stamp
from agent.messages.schema import EventMessage, HealthMessage
from agent.service.assemble import build_line
from agent.sources.archive import ArchiveSource
from agent.types import NS, Segment
from desk.store.store import Arrival, Store

STATIONS = (10, 500, 5000)
SITES = 500
HEALTH_A_DAY = 1440
COPIES = 8
TIMES = 40
"""Each event is stored so often, under another identifier."""


def payloads_of(folder: Path) -> list[bytes]:
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


@part(
    option("--events", type=float, default=47.0, help="events a station and day (47, Xin et al. 2024)"),
)
def messages(args: argparse.Namespace) -> None:
    """Bytes and processor time a message."""
    with tempfile.TemporaryDirectory() as folder:
        payloads = payloads_of(Path(folder))
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
        # As they come from that many stations: each once a minute, and few have arrived at a time.
        reports = [Arrival(f"XX.S{at % SITES}", report, T0 + at * 60 * NS // SITES) for at in range(8 * SITES)]
        health_s = stored(store, reports, batch=8)
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


EVENTS_S = 4.0
WAVE = 50


def publisher(broker: Mosquitto) -> Client:
    """A client that sends as fast as it is asked to."""
    client = Client(CallbackAPIVersion.VERSION2)
    client.max_inflight_messages_set(2000)
    client.max_queued_messages_set(0)
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    return client


def database_s(server: Cluster) -> float:
    """Processor time of PostgreSQL so far: the server, its processes, and those that have ended."""
    assert server._process is not None
    total, parent = 0, server._process.pid
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, fields = int(path.parent.name), path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if pid == parent:
            total += sum(map(int, fields[11:15]))
        elif int(fields[1]) == parent:
            total += sum(map(int, fields[11:13]))
    return total / TICKS


def live(folder: Path, server: Cluster, names: list[str], seconds: float) -> None:
    """Messages of all stations into the desk, and from the broker to a page."""
    import httpx

    broker = Mosquitto(folder, "max_queued_messages 0").start()
    desk = DeskProcess(folder / "desk", broker, database=server.database())
    desk.account("vera", "viewer")
    desk.start()
    sent: dict[str, float] = {}
    seen: dict[str, float] = {}
    opened, stop = threading.Event(), threading.Event()
    client = desk.client("vera")

    def page() -> None:
        try:
            with client.stream("GET", "/api/v1/stream", timeout=None) as answer:
                for line in answer.iter_lines():
                    if "hello" in line:
                        opened.set()
                    for uid in [uid for uid in list(sent)[-200:] if uid not in seen and uid in line]:
                        seen[uid] = time.monotonic()
        except httpx.HTTPError:
            assert stop.is_set()

    threading.Thread(target=page, daemon=True).start()
    wait_for(opened.is_set, 60, "the page is open")
    sending = publisher(broker)
    body = health()[1].decode()
    for name in names:  # each once, so that what is new of a station is not in the figure
        place = name.replace(".", "/")
        sending.publish(f"talus/v1/{place}/availability", "online", 1, retain=True)
    sending.publish("talus/v1/XX/S000/none", b"", 1).wait_for_publish(60)
    time.sleep(5)
    begun, used, base = time.monotonic(), cpu_s(desk.pid), database_s(server)
    reports = events = 0
    known = json.loads(body)["station"]
    while (now := time.monotonic() - begun) < seconds:
        while reports < now * len(names) / 60:
            name = names[reports % len(names)]
            text = body.replace(known, name)
            sending.publish(f"talus/v1/{name.replace('.', '/')}/health", text, 1, retain=True)
            reports += 1
        while events < now * EVENTS_S:
            name = names[events * 7 % len(names)]
            found = event(0, onset_ns=time.time_ns() // 1_000_000 * 1_000_000, sensor=f"{name}.00.HH")
            sent[found.id] = time.monotonic()
            topic = f"talus/v1/{name.replace('.', '/')}/event"
            sending.publish(topic, payload(found), 1)
            events += 1
        time.sleep(0.01)
    wait_for(lambda: len(seen) == len(sent), 60, "the page has seen every event")
    elapsed = time.monotonic() - begun
    one, other = (cpu_s(desk.pid) - used) / elapsed, (database_s(server) - base) / elapsed
    delays = sorted(seen[uid] - at for uid, at in sent.items())
    p95 = delays[int(0.95 * len(delays))]
    row(f"{len(names)} stations: health and event messages", f"{reports:,} and {events:,} in {elapsed:.0f} s")
    row("  desk", f"{one:.2f} cores")
    row("  PostgreSQL", f"{other:.2f} cores")
    row("  desk and PostgreSQL", f"{one + other:.2f} cores", "<= 1", one + other <= 1)
    row("  broker to page, median and 95 %", f"{delays[len(delays) // 2]:.2f} and {p95:.2f} s", "<= 1 s", p95 <= 1)
    stop.set()
    desk.stop()
    broker.stop()


def rollout(folder: Path, names: list[str]) -> None:
    """An order in waves, of which the third has a station that takes it back."""
    broker = Mosquitto(folder, "max_queued_messages 0", "max_connections -1").start()
    harmed = names[2 * WAVE + WAVE // 2]
    order = folder / "order.json"
    order.write_bytes(sealed(key(folder), int(time.time()), {"trigger": {"on": 5.0}}, stations=("*",)))
    push = ("fleet", "push", "config", order, "--all", "--wave", WAVE, "--broker", f"mqtt://127.0.0.1:{broker.port}")
    with Stations(broker, names, harmed={harmed}) as stations:
        begun = time.monotonic()
        status, _, err = talus(*push)
        seconds, given = time.monotonic() - begun, len(set(stations.orders))
        assert f"stopped: {harmed} rolled back" in err, err
        stops = status == 1 and given == 3 * WAVE
        row(f"rollout in waves of {WAVE}, one of the third takes it back", f"{given} given", f"{3 * WAVE}", stops)
        row("  until it has stopped", f"{seconds:.1f} s")
        begun = time.monotonic()
        status, _, err = talus(*push, "--except", harmed)
        given = len(set(stations.orders))
        row("  again, without that one", f"{given} given, {time.monotonic() - begun:.1f} s", f"{len(names)}",
            status == 0 and given == len(names))  # fmt: skip
    broker.stop()


@part(
    option("--stations", type=int, default=500),
    option("--seconds", type=float, default=60.0),
)
def fleet(args: argparse.Namespace) -> None:
    """Five hundred stations at once."""
    names = [f"XX.S{number:03d}" for number in range(args.stations)]
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        live(folder, stack.enter_context(cluster(durable=True)), names, args.seconds)
        (folder / "rollout").mkdir()
        rollout(folder / "rollout", names)
    print(f"load at the end {os.getloadavg()[0]:.1f}")


VERTICAL = 2
DAY_S = 86_400


@part(
    option("files", nargs="+", type=Path, metavar="FILE", help="continuous records"),
)
def envelope(args: argparse.Namespace) -> None:
    """The minima and maxima of a vertical."""
    for path in args.files:
        print(line_of(path))


def line_of(path: Path) -> str:
    """One line of the table."""
    envelopes = Envelopes("Z", "talus/v1", lambda: Stamp("0" * 16, 1_000_000, 0, 0), exercise=False)
    messages: list[Message] = []
    seconds = raw = spent = 0.0
    for block in ArchiveSource([path], on_problem=lambda problem: None).blocks():
        if block.stream.row != VERTICAL:
            continue
        seconds += len(block.samples) / block.rate_hz
        raw += len(encode({block.stream: [Segment(block.start_ns, block.rate_hz, block.samples)]}))
        began = time.process_time()
        messages += envelopes.feed(block)
        spent += time.process_time() - began
    messages += envelopes.flush()
    size = sum(len(one.payload) + len(one.topic) + PACKET_OVERHEAD for one in messages)
    day = DAY_S / max(seconds, 1.0) / 1000
    return (
        f"{path.name:<24} {seconds / 3600:5.1f} h  {size * day:6.0f} kB a day, miniSEED {raw * day:6.0f} kB;"
        f" processor {1000 * spent / max(seconds / 3600, 1e-9):.0f} ms an hour"
    )


if __name__ == "__main__":
    sys.exit(choose(__doc__))
