"""A fleet of 500 stations: what their messages ask of the desk and its PostgreSQL, and a rollout that stops by itself.

    python bench/fleet.py [--stations 500] [--seconds 60]

One publisher sends in the names of all stations: a health message of each a minute, of three components as
bench/scale.py makes it, and four event messages a second, twice what 47 events a station and day are. A page of the
desk notes when it sees which event. Then ``talus fleet push config`` gives an order to all of them in waves, of which
one station takes it back. Broker, desk and PostgreSQL are processes of this machine, which commit to disk as in
operation.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from agent_support import talus
from broker_support import Mosquitto, wait_for
from control_support import envelope, key
from desk_process_support import DeskProcess, payload
from desk_support import event
from fleet_support import Stations
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion
from postgres_support import Cluster, cluster
from scale import health
from support import row

EVENTS_S = 4.0
WAVE = 50
TICKS = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


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
    order.write_bytes(envelope(key(folder), int(time.time()), {"trigger": {"on": 5.0}}, stations=("*",)))
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stations", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=60.0)
    args = parser.parse_args()
    names = [f"XX.S{number:03d}" for number in range(args.stations)]
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        live(folder, stack.enter_context(cluster(durable=True)), names, args.seconds)
        (folder / "rollout").mkdir()
        rollout(folder / "rollout", names)
    print(f"load at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
