"""From the last sample to the broker and its subscribers, each figure beside its peer in the same run.

    python bench/delivery.py line [--rounds 500] [--backlog 5000] [--folder DIR]
    python bench/delivery.py service [--copies 40] [--speed 50] [--folder DIR]
    python bench/delivery.py week [--events 28000] [--folder DIR]
    python bench/delivery.py burst [--minutes 10]

``line``, in one thread up to the broker's acknowledgement on the loopback: median <= 20 ms, 99th percentile <= 100 ms;
and a backlog drained at >= 500 messages a second. One message through outbox and link (commit with fsync, publish,
acknowledgement) beside paho-mqtt alone, in memory; the whole line (packet, trigger, network, policy, outbox, broker)
for every packet that leads to a verdict; and the drain of a backlog beside paho's own queue.

``service``, the same path through the whole service with the same bounds: ``talus run`` is a process with all its
threads, and the clock stops only when a subscriber beside it has the message, which is later than the acknowledgement.
It starts when the packet that completed the verdict left the source. The peer is paho-mqtt alone: a publication of the
same size, from memory, to the same subscriber.

``week`` without a connection: 28,000 events in the outbox, then a broker again. Seven revisions an event and an alert
for every tenth, in the outbox's default size (``outbox.max_mb``: 200). What must hold: the files stay within 200 MB; no
alert is dropped, and of each event the first and the last word are kept; on reconnect at least 500 messages a second,
alerts first; the memory stays flat. The peer is paho-mqtt's own queue with the same messages: in memory, and gone with
the process.

``burst``: one trigger a second for ten minutes, in real time; nothing lost, and 95 % of the verdicts within a second. A
real agent as a process, with the network that it comes with, and a real Mosquitto; 20 simulated stations that feel an
event every nine seconds on average, not all of them all. A verdict's time is from the packet with the last sample that
it needed to the decision; the line below it is the time until a subscriber has it. The peer is the broker's own round
trip, measured by publishing beside the agent.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from support import choose, make_busy, option, part, row

from agent.config.broker import (
    DEFAULT_PREFIX,
    MqttSettings,
)
from agent.config.file import ClassifierConfig, TunablesConfig
from agent.deliver.connection import Connection, Received, Subscription
from agent.deliver.delivery import Delivery
from agent.deliver.mqtt import MqttSink
from agent.deliver.outbox import Outbox
from agent.deliver.sockets import Waker
from agent.detect.resume import encode
from agent.errors import DeliveryError
from agent.messages.payloads import Message, Stamp, alert_message, event_message, summary_message
from agent.service.assemble import Line, build_line
from agent.types import (
    LABELS,
    NS,
    Alert,
    Classification,
    Detection,
    Discard,
    Event,
    EventPhase,
    Quality,
    SampleBlock,
    StationId,
    StreamId,
    event_id,
    parse_ns,
)
from demo.broker import BrokerAddress, local_broker
from desk.watch import watch

STATION = StationId("XX", "BENCH", "00", "HH")
START_NS = 1_767_225_600 * NS
RATE_HZ = 100
MEDIAN_MS, P99_MS, DRAIN_PER_S = 20.0, 100.0, 500.0


class TimedOutbox(Outbox):
    """Notes when an acknowledgement arrives and when nothing is left."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.empty = threading.Event()
        self.acknowledged_at = 0.0
        cursor = self.cursor("mqtt")
        acknowledge = cursor.acknowledge

        def timed(ids: Collection[int]) -> None:
            self.acknowledged_at = time.perf_counter()
            acknowledge(ids)
            if self.depth == 0:
                self.empty.set()

        cursor.acknowledge = timed  # type: ignore[method-assign]


def event(number: int, revision: int = 0) -> Event:
    onset_ns = START_NS + number * NS
    verdict = Classification("landslide", 0.91, (0.02, 0.02, 0.03, 0.91, 0.02), False, 3.0, "m", "a" * 64, "b", "int8")
    return Event(
        event_id(STATION, onset_ns), revision, "new", STATION, onset_ns, Detection(12.3, 3.2, 812.0, 7.2), verdict,
        Quality(0.0, "ENZ"), onset_ns + 3 * NS,
    )  # fmt: skip


def messages(number: int) -> list[Message]:
    stamp = Stamp("0" * 16, number, time.time_ns(), time.time_ns())
    return [event_message(event(number), stamp), summary_message(event(number), stamp)]


def paced(rounds: int, send: Callable[[int], float]) -> np.ndarray:
    """Milliseconds of each round, with a pause after each as between real events."""
    times = []
    for number in range(rounds):
        times.append(1e3 * send(number))
        time.sleep(0.005)
    return np.array(times[rounds // 20 :])


def through_the_outbox(broker: BrokerAddress, folder: Path, rounds: int) -> np.ndarray:
    outbox = TimedOutbox(folder / "latency.db")
    link = MqttSink(MqttSettings.from_url(broker.url), outbox.cursor("mqtt"), STATION)
    link.start()

    def send(number: int) -> float:
        batch = messages(number)
        outbox.empty.clear()
        begin = time.perf_counter()
        outbox.put(batch)
        outbox.empty.wait()
        return outbox.acknowledged_at - begin

    times = paced(rounds, send)
    link.stop()
    outbox.close()
    return times


def paho_client(broker: BrokerAddress) -> Client:
    client = Client(CallbackAPIVersion.VERSION2, "peer", protocol=MQTTProtocolVersion.MQTTv5)
    client.connect(broker.host, broker.port)
    client.loop_start()
    while not client.is_connected():
        time.sleep(0.01)
    return client


def paho_alone(broker: BrokerAddress, rounds: int) -> np.ndarray:
    client = paho_client(broker)

    def send(number: int) -> float:
        batch = messages(number)
        begin = time.perf_counter()
        infos = [client.publish(m.topic, m.payload, 1, m.retain) for m in batch]
        infos[0].wait_for_publish()
        return time.perf_counter() - begin

    times = paced(rounds, send)
    client.disconnect()
    client.loop_stop()
    return times


def commit_alone(folder: Path, rounds: int) -> np.ndarray:
    """The disk's share: the outbox's commit, nothing sent."""
    outbox = Outbox(folder / "commit.db")

    def send(number: int) -> float:
        batch = messages(number)
        begin = time.perf_counter()
        outbox.put(batch)
        return time.perf_counter() - begin

    times = paced(rounds, send)
    outbox.close()
    return times


def packets(seconds: int) -> Iterator[SampleBlock]:
    """Noise with a decaying burst every 40 s, three components, packets of one second."""
    noise = np.random.default_rng(0)
    streams = [StreamId(STATION, component) for component in "ENZ"]
    envelope = np.exp(-np.arange(8 * RATE_HZ) / (2.0 * RATE_HZ)) * 4000
    for second in range(seconds):
        phase = (second - 40) % 40
        for stream in streams:
            samples = noise.normal(0, 60, RATE_HZ)
            if second >= 40 and phase < 8:
                piece = envelope[phase * RATE_HZ : (phase + 1) * RATE_HZ]
                samples += piece * noise.normal(0, 1, RATE_HZ)
            yield SampleBlock(stream, START_NS + second * NS, RATE_HZ, samples.astype(np.int32))


def whole_line(broker: BrokerAddress, folder: Path, seconds: int) -> np.ndarray:
    """Milliseconds from a packet that completes a verdict to the acknowledgement of all that it caused."""
    line: Line = build_line(TunablesConfig(), ClassifierConfig(), DEFAULT_PREFIX)
    outbox = TimedOutbox(folder / "line.db")
    link = MqttSink(MqttSettings.from_url(broker.url), outbox.cursor("mqtt"), STATION)
    link.start()
    times = []
    for block in packets(seconds):
        begin, received_ns = time.perf_counter(), time.time_ns()
        events = [output for output in line.pipeline.feed(block) if not isinstance(output, Discard)]
        batch = list(itertools.chain.from_iterable(line.reporter.report(e, received_ns) for e in events))
        if batch:
            outbox.empty.clear()
            outbox.put(batch)
            outbox.empty.wait()
            times.append(1e3 * (outbox.acknowledged_at - begin))
            time.sleep(0.005)
    link.stop()
    outbox.close()
    return np.array(times[10:])


def drained(broker: BrokerAddress, folder: Path, count: int) -> float:
    """Messages a second from the outbox, filled while there was no connection."""
    outbox = TimedOutbox(folder / "drain.db")
    for first in range(0, count, 100):
        outbox.put([messages(first + n)[0] for n in range(100)])
    link = MqttSink(MqttSettings.from_url(broker.url), outbox.cursor("mqtt"), STATION)
    begin = time.perf_counter()
    link.start()
    outbox.empty.wait()
    rate = count / (time.perf_counter() - begin)
    link.stop()
    outbox.close()
    return rate


def paho_drained(broker: BrokerAddress, count: int) -> float:
    batch = [messages(number)[0] for number in range(count)]
    client = paho_client(broker)
    begin = time.perf_counter()
    infos = [client.publish(m.topic, m.payload, 1) for m in batch]
    infos[-1].wait_for_publish()
    rate = count / (time.perf_counter() - begin)
    client.disconnect()
    client.loop_stop()
    return rate


def show(name: str, times: Sequence[float] | np.ndarray) -> tuple[float, float]:
    median, p99, worst = (float(np.percentile(times, q)) for q in (50, 99, 100))
    row(f"{name} ({len(times)})", f"{median:.2f} / {p99:.2f} / {worst:.2f} ms")
    return median, p99


@part(
    option("--rounds", type=int, default=500),
    option("--backlog", type=int, default=5000),
    option("--seconds", type=int, default=2000, help="of data through the whole line"),
    option("--folder", type=Path, help="where the outbox lies: the disk to be measured"),
)
def line(args: argparse.Namespace) -> int:
    """Up to the acknowledgement, in one thread."""
    with local_broker() as broker, tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        print(f"broker {broker.program}, outbox in {folder.parent}, {os.cpu_count()} cores; median / p99 / most")
        show("paho alone, in memory (peer)", paho_alone(broker, args.rounds))
        show("outbox's commit alone", commit_alone(folder, args.rounds))
        show("put to acknowledgement", through_the_outbox(broker, folder, args.rounds))
        median, p99 = show("last sample in to acknowledgement", whole_line(broker, folder, args.seconds))
        peer = paho_drained(broker, args.backlog)
        rate = drained(broker, folder, args.backlog)
    met = median <= MEDIAN_MS and p99 <= P99_MS
    row("last sample in to acknowledgement", f"{median:.1f} / {p99:.1f} ms", f"<= {MEDIAN_MS:g} / {P99_MS:g} ms", met)
    row(f"backlog of {args.backlog} drained", f"{rate:,.0f} /s", f">= {DRAIN_PER_S:g} /s", rate >= DRAIN_PER_S)
    row("  paho's queue, in memory (peer)", f"{peer:,.0f} /s")
    return 0 if met and rate >= DRAIN_PER_S else 1


class Inbox(io.StringIO):
    """Payloads, and when each came."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[tuple[int, dict[str, Any]]] = []

    def write(self, text: str, /) -> int:
        now = time.time_ns()
        self.messages += [(now, json.loads(line)) for line in text.splitlines() if line.strip()]
        return len(text)


def subscribe(broker: BrokerAddress, done: Callable[[], bool]) -> tuple[Inbox, threading.Thread]:
    inbox = Inbox()

    def listen() -> None:
        while not done():
            watch(MqttSettings.from_url(broker.url), inbox, sys.stderr, style="json", timeout_s=5, session="bench")

    watch(MqttSettings.from_url(broker.url), inbox, sys.stderr, style="json", timeout_s=0, session="bench")
    thread = threading.Thread(target=listen)
    thread.start()
    return inbox, thread


def served(broker: BrokerAddress, folder: Path, copies: int, speed: float) -> list[tuple[int, dict[str, Any]]]:
    """Every event and alert of a run of the service, with the time at which the subscriber had it."""
    make_busy(folder / "records", copies)
    config = folder / "station.yaml"
    config.write_text(
        "station: {network: XX, station: BUSY}\n"
        f"source: {{kind: archive, paths: [records], speed: {speed}}}\n"
        f"mqtt: {{host: {broker.host}, port: {broker.port}}}\n"
        f"state_dir: {folder}/state\n"
        "log: {level: warning}\n"
    )
    ended = threading.Event()
    inbox, thread = subscribe(broker, ended.is_set)
    subprocess.run([sys.executable, "-m", "agent", "run", "--config", str(config)], check=True)
    ended.set()
    thread.join()
    return inbox.messages


def paho_to_subscriber(broker: BrokerAddress, size: int, rounds: int) -> np.ndarray:
    """Milliseconds from a publication to the subscriber, one at a time."""
    came = threading.Event()
    at = [0.0]

    def arrived(*_: object) -> None:
        at[0] = time.perf_counter()
        came.set()

    clients = [Client(CallbackAPIVersion.VERSION2, name) for name in ("peer-out", "peer-in")]
    for client in clients:
        client.connect(broker.host, broker.port)
        client.loop_start()
    clients[1].on_message = arrived
    subscribed = threading.Event()
    clients[1].on_subscribe = lambda *_: subscribed.set()
    clients[1].subscribe("peer", 1)
    subscribed.wait(10)
    times = []
    for _ in range(rounds):
        came.clear()
        begin = time.perf_counter()
        clients[0].publish("peer", bytes(size), 1)
        came.wait(10)
        times.append(1e3 * (at[0] - begin))
        time.sleep(0.01)
    for client in clients:
        client.disconnect()
        client.loop_stop()
    return np.array(times)


def describe(times: np.ndarray) -> str:
    return f"{np.median(times):.2f} / {np.percentile(times, 99):.2f} ms"


@part(
    option("--copies", type=int, default=40, help="of the record of 115 s with two earthquakes"),
    option("--speed", type=float, default=50.0, help="times real time"),
    option("--folder", type=Path, help="where the outbox lies: the disk to be measured"),
)
def service(args: argparse.Namespace) -> int:
    """To a subscriber, through the whole service."""
    with local_broker() as broker, tempfile.TemporaryDirectory(dir=args.folder) as name:
        arrived = served(broker, Path(name), args.copies, args.speed)
        size = round(np.mean([len(json.dumps(body)) for _, body in arrived]))
        peer = paho_to_subscriber(broker, size, len(arrived))
    # The first verdict after a start finds cold caches and a connection in the making.
    arrived = arrived[10:]
    steps = np.array(
        [[parse_ns(body["timing"][step]) for step in ("received", "decided", "handed")] + [at] for at, body in arrived]
    )
    decide, store, send = np.diff(steps, axis=1).T / 1e6
    whole = (steps[:, 3] - steps[:, 0]) / 1e6
    median, p99 = float(np.median(whole)), float(np.percentile(whole, 99))
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {broker.program}; median / 99th percentile")
    row(f"last sample in to subscriber, {len(whole)} messages", describe(whole), f"<= {MEDIAN_MS:g} / {P99_MS:g} ms",
        median <= MEDIAN_MS and p99 <= P99_MS)  # fmt: skip
    row("  detector, window, network, policy", describe(decide))
    row("  outbox on disk, hand-over to the connection", describe(store))
    row("  broker, subscriber", describe(send))
    row(f"paho alone, {size} bytes from memory to subscriber (peer)", describe(peer))
    return 0 if median <= MEDIAN_MS and p99 <= P99_MS else 1


MAX_MB = 200.0
FLAT_MB = 40.0
"""How much more memory a full outbox may take than an empty one."""
REVISIONS: tuple[EventPhase, ...] = ("new", *["update"] * 5, "end")  # type: ignore[assignment]


def week_of(events: int) -> Iterator[list[Message]]:
    """The messages of each event, with what the journal keeps of them."""
    seq = 0
    for number in range(events):
        batch = []
        for revision, phase in enumerate(REVISIONS):
            made = replace(event(number, revision), phase=phase)
            if number % 10 == 0 and revision == 1:
                alert = Alert(made, "raise", "severe", "landslide", "landslide 0.91 after 5 s, 2 of 2 verdicts")
                batch.append(alert_message(alert, Stamp("0" * 16, seq, time.time_ns(), time.time_ns())))
            stamp = Stamp("0" * 16, seq + 1, time.time_ns(), time.time_ns())
            batch.append(replace(event_message(made, stamp), journal=encode(made, cut=False)))
            seq += 2
        yield batch


def rss_mb() -> float:
    return float(psutil.Process().memory_info().rss) / 1e6


def size_mb(path: Path) -> float:
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*")) / 1e6


class Listener(threading.Thread):
    """Counts what arrives, by kind, and how many alerts came after the first event."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.kinds: Counter[str] = Counter()
        self.late = 0
        self.ready = threading.Event()
        self._url = url

    def run(self) -> None:
        subscription = Subscription(["talus/v1/+/+/event", "talus/v1/+/+/alert"], self._hear)
        connection = Connection.open(MqttSettings.from_url(self._url), "listener", Waker(), subscription=subscription)
        self.ready.set()
        with contextlib.suppress(DeliveryError):
            while True:
                connection.pump(1.0)

    def _hear(self, message: Received) -> bool:
        kind = "alert" if message.topic.endswith("alert") else message.payload.split(b'"phase":"')[1][:3].decode()
        self.late += kind == "alert" and self.kinds.total() > self.kinds["alert"]
        self.kinds[kind] += 1
        return True


def spool(path: Path, events: int) -> dict[str, float]:
    """A process of its own: put everything while the broker is away, then drain it; its figures."""
    with local_broker() as broker:
        return _spool(broker, path, events)


def _spool(broker: BrokerAddress, path: Path, events: int) -> dict[str, float]:
    listener = Listener(broker.url)
    listener.start()
    listener.ready.wait(20)
    delivery = Delivery(MqttSettings.from_url(broker.url), STATION, path)
    put = largest = 0.0
    messages = 0
    empty_mb = peak_mb = rss_mb()
    began = time.monotonic()
    for number, batch in enumerate(week_of(events)):
        delivery.put(batch)
        messages += len(batch)
        if number % 500 == 0:
            largest, peak_mb = max(largest, size_mb(path)), max(peak_mb, rss_mb())
    put = time.monotonic() - began
    largest = max(largest, size_mb(path))
    stats = delivery.outbox.stats()
    spooled_mb = rss_mb()
    began = time.monotonic()
    delivery.start()
    while delivery.outbox.depth:
        peak_mb = max(peak_mb, rss_mb())
        time.sleep(0.05)
    drained_s = time.monotonic() - began
    set_aside = delivery.outbox.stats().set_aside
    delivery.close()
    deadline = time.monotonic() + 20
    while listener.kinds.total() < stats.depth and time.monotonic() < deadline:
        time.sleep(0.05)
    return {
        "messages": messages, "put_per_s": messages / put, "file_mb": largest, "waiting": stats.depth,
        "dropped": stats.dropped, "set_aside": set_aside, "per_s": stats.depth / drained_s, "empty_mb": empty_mb,
        "spooled_mb": spooled_mb, "peak_mb": peak_mb, "alerts": listener.kinds["alert"], "new": listener.kinds["new"],
        "end": listener.kinds["end"], "updates": listener.kinds["upd"], "late": listener.late,
    }  # fmt: skip


def peer(path: Path, events: int) -> dict[str, float]:
    """paho's own queue, not connected: what it holds, in memory only."""
    with local_broker() as broker:
        client = paho_client(broker)
        client.disconnect()
        time.sleep(0.2)
        before = rss_mb()
        for batch in week_of(events):
            for message in batch:
                client.publish(message.topic, message.payload, 1)
        return {"more_mb": rss_mb() - before}


@part(
    option("--events", type=int, default=28_000),
    option("--folder", type=Path, help="where the outbox lies: the disk to be measured"),
)
def week(args: argparse.Namespace) -> int:
    """A week without a broker."""
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        path = Path(name, "outbox.sqlite3")
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            found = pool.apply(spool, (path, args.events))
            paho = pool.apply(peer, (path, args.events))
    alerts = -(-args.events // 10)
    met = [
        (f"{args.events} events, {found['messages']:.0f} messages put", f"{found['put_per_s']:.0f} /s", "", None),
        ("largest size of the files", f"{found['file_mb']:.0f} MB", f"<= {MAX_MB:g}", found["file_mb"] <= MAX_MB),
        ("messages kept, dropped", f"{found['waiting']:.0f}, {found['dropped']:.0f}", "", None),
        ("alerts delivered", f"{found['alerts']:.0f}", f"{alerts}", found["alerts"] == alerts),
        ("alerts that came after an event", f"{found['late']:.0f}", "0", found["late"] == 0),
        ("first words, last words delivered", f"{found['new']:.0f}, {found['end']:.0f}", f"{args.events} each",
         found["new"] == found["end"] == args.events),
        ("updates delivered", f"{found['updates']:.0f}", "what room was left for", None),
        ("drained", f"{found['per_s']:.0f} /s", f">= {DRAIN_PER_S:g}", found["per_s"] >= DRAIN_PER_S),
        ("memory: empty, full, most while draining",
         f"{found['empty_mb']:.0f}, {found['spooled_mb']:.0f}, {found['peak_mb']:.0f} MB", f"+{FLAT_MB:g} at most",
         found["peak_mb"] <= found["empty_mb"] + FLAT_MB),
        ("paho's queue in memory (peer), more than empty", f"{paho['more_mb']:.0f} MB", "gone with the process", None),
    ]  # fmt: skip
    for line in met:
        row(*line)
    return 0 if all(line[3] is not False for line in met) else 1


STATIONS = 20
PER_HOUR = 400.0
P95_S = 1.0
SETTLE_S = 95.0
"""The last events' windows are full, and their ends are sent."""
RULE = {"severity": "minor", "min_probability": 0.3, "min_duration_s": 0.5, "refractory_s": 0}


def swarm_config(folder: Path, port: int, minutes: float) -> Path:
    import chaos_world as world

    rates = {f"{kind}s_per_hour": 0.0 for kind in ("slopequake", "rockfall", "slide", "blast", "earthquake")}
    body = {
        "station": {"network": world.NETWORK, "station": world.STATION},
        "source": {
            "kind": "simulator", "stations": STATIONS, "hours": (60 * minutes + 60 + SETTLE_S) / 3600, "seed": 7,
            "rates": rates | {"slopequakes_per_hour": PER_HOUR},
        },
        "mqtt": {"host": "127.0.0.1", "port": port},
        "state_dir": str(folder / "state"),
        "tunables": {
            "trigger": {"lta_s": 10.0, "sta_s": 0.3, "on": 3.0, "merge_s": 0.2},
            "policy": {"rules": dict.fromkeys(LABELS, RULE)},
            "reporting": {"health_interval_s": 5},
        },
    }  # fmt: skip
    path = folder / "station.yaml"
    path.write_text(yaml.safe_dump(body))
    return path


def round_trips(port: int, seconds: float) -> np.ndarray:
    """Seconds from a publication to its acknowledgement, now and then, beside the agent (peer)."""
    client = paho_client(BrokerAddress("127.0.0.1", port, "mosquitto", "auto"))
    times = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        begin = time.perf_counter()
        client.publish("peer/x", b"x" * 1200, 1).wait_for_publish()
        times.append(time.perf_counter() - begin)
        time.sleep(0.5)
    client.disconnect()
    client.loop_stop()
    return np.array(times)


def swarm(folder: Path, minutes: float) -> int:
    import chaos_world as world

    from desk.crisis.broker import Broker

    (folder / "state").mkdir()
    broker = Broker(folder / "broker")
    broker.start()
    ears = world.Ears(broker.port)
    ears.start()
    ears.ready.wait(20)
    keeper = world.Keeper(swarm_config(folder, broker.port, minutes), folder / "state", folder / "agent.log")
    keeper.start()
    peer = round_trips(broker.port, 60 * minutes + 60 + SETTLE_S)
    status, _ = keeper.stop()
    time.sleep(2.0)
    ears.stop()
    broker.end()
    events = [(body, at) for (kind, body), at in zip(ears.heard, ears.times, strict=True) if kind == "event"]
    have = {(body["id"], body["revision"]) for body, _ in events}
    alerts = sum(kind == "alert" for kind, _ in ears.heard)
    firsts = [body for body, _ in events if body["revision"] == 0]
    verdict = np.array([
        (parse_ns(body["timing"]["decided"]) - parse_ns(body["timing"]["received"])) / NS for body, _ in events
    ])  # fmt: skip
    arrived = np.array([at - parse_ns(body["timing"]["received"]) / NS for body, at in events])
    lost = len(keeper.revisions - have)
    p95 = float(np.percentile(verdict, 95))
    onsets = [parse_ns(body["onset"]) / NS for body in firsts]
    rate = (len(onsets) - 1) / (max(onsets) - min(onsets))
    met = lost == 0 and p95 <= P95_S and status == 0 and rate >= 1.0 and not keeper.own_deaths
    row("triggers that became events", f"{len(firsts)}", f"{rate:.2f} a second, >= 1", rate >= 1.0)
    row("revisions decided, by the agent's log", str(len(keeper.revisions)))
    row("revisions delivered, alerts delivered", f"{len(have)}, {alerts}")
    row("revisions lost", str(lost), "0", lost == 0)
    row("packet to verdict: median, p95, most", spread(verdict), f"p95 <= {P95_S:g} s", p95 <= P95_S)
    row("packet to subscriber: median, p95, most", spread(arrived))
    row("the broker's round trip alone (peer)", spread(peer))
    return 0 if met else 1


def spread(times: np.ndarray) -> str:
    median, p95, most = (1e3 * float(np.percentile(times, q)) for q in (50, 95, 100))
    return f"{median:.0f}, {p95:.0f}, {most:.0f} ms"


@part(
    option("--minutes", type=float, default=10.0),
)
def burst(args: argparse.Namespace) -> int:
    """A swarm in real time."""
    with tempfile.TemporaryDirectory() as name:
        return swarm(Path(name), args.minutes)


if __name__ == "__main__":
    sys.exit(choose(__doc__))
