"""A swarm: one trigger a second for ten minutes, in real time; nothing lost, and 95 % of the verdicts within a second.

A real agent as a process, with the network that it comes with, and a real Mosquitto; 20 simulated stations that feel an
event every nine seconds on average, not all of them all. A verdict's time is from the packet with the last sample that
it needed to the decision; the line below it is the time until a subscriber has it. The peer is the broker's own round
trip, measured by publishing beside the agent.

    python bench/burst.py [--minutes 10]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml
from chaos_world import NETWORK, STATION, Broker, Ears, Keeper
from delivery import paho_client
from support import row

from agent.types import LABELS, NS, parse_ns
from demo.broker import BrokerAddress

STATIONS = 20
PER_HOUR = 400.0
P95_S = 1.0
SETTLE_S = 95.0
"""The last events' windows are full, and their ends are sent."""
RULE = {"severity": "minor", "min_probability": 0.3, "min_duration_s": 0.5, "refractory_s": 0}


def write_config(folder: Path, port: int, minutes: float) -> Path:
    rates = {f"{kind}s_per_hour": 0.0 for kind in ("slopequake", "rockfall", "slide", "blast", "earthquake")}
    body = {
        "station": {"network": NETWORK, "station": STATION},
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        return run(Path(name), options.minutes)


def run(folder: Path, minutes: float) -> int:
    (folder / "state").mkdir()
    broker = Broker(folder / "broker")
    broker.start()
    ears = Ears(broker.port)
    ears.start()
    ears.ready.wait(20)
    keeper = Keeper(write_config(folder, broker.port, minutes), folder / "state", folder / "agent.log")
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


if __name__ == "__main__":
    sys.exit(main())
