"""From the last sample to the subscriber through the whole service: median <= 20 ms, 99th percentile <= 100 ms.

    python bench/latency.py [--copies 40] [--speed 50] [--folder DIR]

``bench/delivery.py`` measures the same path in one thread, up to the broker's acknowledgement. Here ``talus run`` is a
process with all its threads, and the clock stops only when a subscriber beside it has the message, which is later than
the acknowledgement. It starts when the packet that completed the verdict left the source. The peer in the same run is
paho-mqtt alone: a publication of the same size, from memory, to the same subscriber.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion
from support import make_busy, row

from agent.config.broker import MqttSettings
from agent.types import parse_ns
from demo.broker import BrokerAddress, local_broker
from desk.watch import watch

MEDIAN_MS, P99_MS = 20.0, 100.0


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


def service(broker: BrokerAddress, folder: Path, copies: int, speed: float) -> list[tuple[int, dict[str, Any]]]:
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


def paho_alone(broker: BrokerAddress, size: int, rounds: int) -> np.ndarray:
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--copies", type=int, default=40, help="of the record of 115 s with two earthquakes")
    parser.add_argument("--speed", type=float, default=50.0, help="times real time")
    parser.add_argument("--folder", type=Path, help="where the outbox lies: the disk to be measured")
    args = parser.parse_args()
    with local_broker() as broker, tempfile.TemporaryDirectory(dir=args.folder) as name:
        arrived = service(broker, Path(name), args.copies, args.speed)
        size = round(np.mean([len(json.dumps(body)) for _, body in arrived]))
        peer = paho_alone(broker, size, len(arrived))
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


if __name__ == "__main__":
    sys.exit(main())
