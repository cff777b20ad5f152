"""A week without a connection: 28,000 events in the outbox, then a broker again.

Seven revisions an event and an alert for every tenth, spooled while no broker answers, in the outbox's default size
(``outbox.max_mb``: 200). What must hold: the files stay within 200 MB; no alert is dropped, and of each event the first
and the last word are kept; on reconnect at least 500 messages a second, alerts first; the memory stays flat. The peer
is paho-mqtt's own queue with the same messages: in memory, and gone with the process.

    python bench/spool.py [--events 28000] [--folder DIR]
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
from delivery import STATION, event, paho_client
from support import row

from agent.config.broker import MqttSettings
from agent.deliver.connection import Connection, Received, Subscription
from agent.deliver.delivery import Delivery
from agent.deliver.sockets import Waker
from agent.detect.resume import encode
from agent.errors import DeliveryError
from agent.messages.payloads import Message, Stamp, alert_message, event_message
from agent.types import Alert, EventPhase
from demo.broker import BrokerAddress, local_broker

DRAIN_PER_S = 500.0
MAX_MB = 200.0
FLAT_MB = 40.0
"""How much more memory a full outbox may take than an empty one."""
REVISIONS: tuple[EventPhase, ...] = ("new", *["update"] * 5, "end")  # type: ignore[assignment]


def week(events: int) -> Iterator[list[Message]]:
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
    for number, batch in enumerate(week(events)):
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
        for batch in week(events):
            for message in batch:
                client.publish(message.topic, message.payload, 1)
        return {"more_mb": rss_mb() - before}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=28_000)
    parser.add_argument("--folder", type=Path, help="where the outbox lies: the disk to be measured")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        path = Path(name, "outbox.sqlite3")
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            found = pool.apply(spool, (path, options.events))
            paho = pool.apply(peer, (path, options.events))
    alerts = -(-options.events // 10)
    met = [
        (f"{options.events} events, {found['messages']:.0f} messages put", f"{found['put_per_s']:.0f} /s", "", None),
        ("largest size of the files", f"{found['file_mb']:.0f} MB", f"<= {MAX_MB:g}", found["file_mb"] <= MAX_MB),
        ("messages kept, dropped", f"{found['waiting']:.0f}, {found['dropped']:.0f}", "", None),
        ("alerts delivered", f"{found['alerts']:.0f}", f"{alerts}", found["alerts"] == alerts),
        ("alerts that came after an event", f"{found['late']:.0f}", "0", found["late"] == 0),
        ("first words, last words delivered", f"{found['new']:.0f}, {found['end']:.0f}", f"{options.events} each",
         found["new"] == found["end"] == options.events),
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


if __name__ == "__main__":
    sys.exit(main())
