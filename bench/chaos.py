"""No alert is lost: a real agent and a real Mosquitto through hundreds of faults, and a scorecard.

A recorder writes a simulated slope (hours of it in minutes, its clock stepping now and then) into a folder that the
agent watches; the agent reaches the broker through a proxy; `talus watch` and a second subscriber listen. Meanwhile, at
random times drawn from a seed: SIGKILL of the agent or the broker, the link cut or stalled, the disk full (a limit on
the agent's files, which needs no root), the broker refusing what is published. A run over the same records without any
fault, in one process and without a broker, is what it is held against (``chaos_score.py``).

    python bench/chaos.py [--alerts 10000] [--faults 200] [--seed 1] [--folder DIR]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from chaos_score import RULES, Facts, score
from chaos_world import NETWORK, START_NS, STATION, Ears, Keeper, Recorder, Watcher, make_records

from agent.config.file import load
from agent.service.assemble import build_line
from agent.sources.folder import FolderSource
from agent.types import NS, Event, parse_ns
from desk.crisis.broker import Broker, Link

ALERTS_PER_HOUR = 190.0
"""What the records below give."""
PER_HOUR = {"slopequake": 480.0, "clock_step": 1.0}
SPACING_S = 3.0
"""Mean time between faults."""
SETTLE_S = 12.0
"""Silence after which all is taken to have arrived."""
PATIENCE_S = 60.0
"""Longest wait for progress before the next fault."""
QUIET_S = 20.0
"""Without a block the run without faults is at the end of the records."""

ANY_AGE_S = 3_000_000_000
"""The made-up records are of an earlier day, and as good as new here."""

TUNABLES = {
    # The recorder writes hours in minutes: components are far apart in data time for a moment.
    "trigger": {"lta_s": 5.0, "sta_s": 0.3, "on": 3.0, "off": 1.5, "merge_s": 0.2, "max_component_lag_s": 120.0},
    "verdict": {"at_s": [3.0, 10.0]},
    "policy": RULES | {"max_age_s": ANY_AGE_S},
    "reporting": {"health_interval_s": 5},
}


def write_config(folder: Path, port: int) -> Path:
    body = {
        "station": {"network": NETWORK, "station": STATION},
        "source": {"kind": "folder", "paths": [str(folder / "records")], "rescan_s": 1.0, "backlog_s": ANY_AGE_S},
        "mqtt": {"host": "127.0.0.1", "port": port, "keepalive_s": 5},
        "state_dir": str(folder / "state"),
        "tunables": TUNABLES,
    }
    path = folder / "station.yaml"
    path.write_text(yaml.safe_dump(body))
    return path


def reference(made: Path, config: Path, out: Path) -> None:
    """The fault-free run: the same records through the same source and settings; its alerts and events to a file."""
    settings = load(config)
    line = build_line(settings.tunables, settings.classifier, "talus/v1")
    source = FolderSource([made], out.with_suffix(".state"), backlog_s=1e9, on_problem=lambda _: None)
    newest = time.monotonic()
    found: list[tuple[str, str, int, str, int]] = []

    def take(outputs: list[Any]) -> None:
        for output in outputs:
            if isinstance(output, Event):
                for message in line.reporter.report(output, 0):
                    if not message.retain:
                        body = json.loads(message.payload)
                        found.append((message.topic.rsplit("/", 1)[-1], body["id"], body["revision"],
                                      body.get("action", body["phase"]), parse_ns(body["onset"])))  # fmt: skip

    def end_when_quiet() -> None:
        while time.monotonic() - newest < QUIET_S:
            time.sleep(0.2)
        source.close()

    threading.Thread(target=end_when_quiet, daemon=True).start()
    for block in source.blocks():
        newest = time.monotonic()
        take(list(line.pipeline.feed(block)))
    take(list(line.pipeline.flush()))
    out.write_text(json.dumps(found))


def disturb(
    faults: int, seed: int, world: dict[str, Callable[[bool], None]], share: Callable[[], float]
) -> Counter[str]:
    """Faults at random times, each with its end; at first one of each kind. ``share`` is how much of the records has
    been told of: on a slow machine the faults wait for it, so that they strike all along."""
    rng = random.Random(seed)
    weights = {"agent killed": 8, "broker killed": 4, "link cut": 4, "link stalled": 2, "disk full": 3, "refused": 3}
    kinds = rng.sample(list(weights), len(weights))
    kinds += rng.choices(list(weights), list(weights.values()), k=max(0, faults - len(kinds)))
    for number, name in enumerate(kinds[:faults]):
        patience = time.monotonic() + PATIENCE_S
        while share() < 0.95 * number / faults and time.monotonic() < patience:
            time.sleep(0.1)
        time.sleep(rng.uniform(0.2, 1.8) * SPACING_S * 0.5)
        world[name](True)
        time.sleep(rng.uniform(0.1, 1.0) * SPACING_S * 0.8)
        world[name](False)
    return Counter(kinds[:faults])


def settle(recorder: Recorder, ears: Ears, keeper: Keeper) -> None:
    """Until the records are written, read, decided on and delivered; or nothing has moved for five minutes."""
    quiet_since = time.monotonic()
    before: object = None
    while True:
        time.sleep(1.0)
        health = ears.health
        progress = (len(ears.heard), [s["last_sample"] for s in health.get("streams", [])], keeper.starts)
        if progress != before or not recorder.done.is_set():
            before, quiet_since = progress, time.monotonic()
        stages = sum(stage["waiting"] or 0 for stage in health.get("stages", []))
        waiting = stages + (health.get("outbox") or {}).get("depth", 1)
        quiet_s = time.monotonic() - quiet_since
        if quiet_s > 300 or (quiet_s > SETTLE_S and waiting == 0 and health):
            return


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--alerts", type=int, default=10_000, help="about so many")
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where everything lies: the disk to be used; kept afterwards")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = options.folder or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        return run(folder, options.alerts, options.faults, options.seed)


def run(folder: Path, alerts: int, faults: int, seed: int) -> int:
    hours = 1.1 * alerts / ALERTS_PER_HOUR
    made = folder / "made"
    steps = make_records(made, hours, seed, PER_HOUR)
    (folder / "state").mkdir()
    broker = Broker(folder / "broker")
    broker.start()
    way = Link(broker.port)
    way.start()
    config = write_config(folder, way.port)
    truth = folder / "reference.json"
    child = multiprocessing.get_context("spawn").Process(target=reference, args=(made, config, truth))
    child.start()
    ears = Ears(broker.port)
    ears.start()
    ears.ready.wait(20)
    watcher = Watcher(broker.port, folder)
    recorder = Recorder(made, folder / "records", max(10.0, 0.95 * faults * SPACING_S))
    keeper = Keeper(config, folder / "state", folder / "agent.log")
    keeper.start()
    while not (ears.health and broker.has_met("chaos-watch")):
        time.sleep(0.1)
    time.sleep(1.0)
    recorder.start()

    def kill_broker(on: bool) -> None:
        if on:
            broker.end(signal.SIGKILL)
        else:
            broker.start()

    def kill_agent(on: bool) -> None:
        if on:
            keeper.kill()

    world: dict[str, Callable[[bool], None]] = {
        "agent killed": kill_agent,
        "broker killed": kill_broker,
        "link cut": lambda on: setattr(way, "state", "cut" if on else "open"),
        "link stalled": lambda on: setattr(way, "state", "stalled" if on else "open"),
        "disk full": keeper.fill_disk,
        "refused": broker.refuse,
    }
    began = time.monotonic()
    done = disturb(faults, seed, world, lambda: (ears.newest_ns - START_NS) / (hours * 3600 * NS))
    settle(recorder, ears, keeper)
    status, stop_s = keeper.stop()
    time.sleep(3.0)
    ears.stop()
    passed_over = watcher.stop()
    broker.end()
    took_s = time.monotonic() - began
    child.join()
    (folder / "heard.jsonl").write_text("".join(f"{json.dumps(body)}\n" for _, body in ears.heard))
    facts = Facts(hours, steps, took_s, dict(done), status, stop_s, passed_over, keeper.starts, len(keeper.own_deaths))
    facts.write(folder)
    return 0 if score(folder) else 1


if __name__ == "__main__":
    sys.exit(main())
