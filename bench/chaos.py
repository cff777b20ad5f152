"""No alert is lost: a real agent and a real Mosquitto through hundreds of faults, and a scorecard.

    python bench/chaos.py run [--alerts 10000] [--faults 200] [--seed 1] [--folder DIR]
    python bench/chaos.py score FOLDER

``run``: a recorder writes a simulated slope (hours of it in minutes, its clock stepping now and then) into a folder
that the agent watches; the agent reaches the broker through a proxy; `talus watch` and a second subscriber listen.
Meanwhile, at random times drawn from a seed: SIGKILL of the agent or the broker, the link cut or stalled, the disk full
(a limit on the agent's files, which needs no root), the broker refusing what is published. A run over the same records
without any fault, in one process and without a broker, is what it is held against.

``score``: the scorecard again, from what a run leaves in its folder. What should have been said is known in three ways
that share nothing with the way of a message: the run without faults (``reference.json``), the agents' own log, and the
policy, shown the events that arrived. After a restart the filters begin elsewhere, which moves an onset by a sample,
and a verdict at the edge of a rule may fall on its other side: that alert is decided otherwise, and not lost, as long
as its event was told and the policy agrees with what was delivered.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import bisect
import json
import multiprocessing
import random
import re
import signal
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import yaml
from chaos_world import NETWORK, START_NS, STATION, Ears, Keeper, Recorder, Watcher, make_records
from support import choose, option, part, row

from agent.alert.policy import Policy
from agent.config.file import load
from agent.config.policy import PolicyConfig
from agent.messages.schema import MODELS, parse
from agent.messages.text import describe
from agent.service.assemble import build_line
from agent.sources.folder import FolderSource
from agent.types import LABELS, NS, UNKNOWN_QUALITY, Classification, Detection, Event, Quality, StationId, parse_ns
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
RULE = {
    "severity": "minor",
    "min_probability": 0.3,
    "min_duration_s": 0.5,
    "refractory_s": 0,
    "escalate": [{"severity": "severe", "min_probability": 0.7}],
}
RULES = {"rules": dict.fromkeys(LABELS, RULE)}
"""The policy of the run. It knows no past but the event's own, so that it can be applied event by event."""
TUNABLES = {
    # The recorder writes hours in minutes: components are far apart in data time for a moment.
    "trigger": {"lta_s": 5.0, "sta_s": 0.3, "on": 3.0, "off": 1.5, "merge_s": 0.2, "max_component_lag_s": 120.0}
    # No slow events: their background is saved every ten minutes of the clock, in which hours of records pass here.
    | {"slow": {"enabled": False}},
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


@part(
    option("--alerts", type=int, default=10_000, help="about so many"),
    option("--faults", type=int, default=200),
    option("--seed", type=int, default=1),
    option("--folder", type=Path, help="where everything lies: the disk to be used; kept afterwards"),
)
def run(args: argparse.Namespace) -> int:
    """Records through faults, and the scorecard."""
    with tempfile.TemporaryDirectory() as name:
        folder = args.folder or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        return through_faults(folder, args.alerts, args.faults, args.seed)


def through_faults(folder: Path, alerts: int, faults: int, seed: int) -> int:
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
    return 0 if scored(folder) else 1


SAME_ONSET_NS = NS
ROUNDING = 0.00005
OTHERWISE = 0.001
"""Share of the alerts that may be decided otherwise than without faults (one in any case)."""
_ALERT = re.compile(r"agent\.service\.threads: (ALERT .*)")
Body = dict[str, Any]
Alerted = tuple[str, str, int]


@dataclass(frozen=True, slots=True)
class Facts:
    """What only the run itself knows (``run.json``)."""

    hours: float
    steps: int
    took_s: float
    faults: dict[str, int]
    status: int
    stop_s: float
    passed_over: int
    starts: int
    own_deaths: int

    def write(self, folder: Path) -> None:
        """Into the folder of the run."""
        (folder / "run.json").write_text(json.dumps(asdict(self)))


@dataclass(frozen=True, slots=True)
class Said:
    """An alert, or an event (``told``), as it can be compared between runs."""

    action: str
    id: str
    onset_ns: int


def identity(body: Body) -> tuple[str, int, str, int]:
    """By which copies are recognised."""
    return body["id"], body["revision"], body["boot_id"], body["seq"]


def unmatched(wanted: Sequence[Said], given: Sequence[Said]) -> list[Said]:
    """Of ``wanted`` what has no partner in ``given``: the same on the same event, or within a second of it."""
    exact = Counter((one.action, one.id) for one in given)
    rest = []
    for one in wanted:
        if exact[one.action, one.id]:
            exact[one.action, one.id] -= 1
        else:
            rest.append(one)
    near: dict[str, list[int]] = defaultdict(list)
    for one in given:
        if exact[one.action, one.id] > 0:
            bisect.insort(near[one.action], one.onset_ns)
    lost = []
    for one in rest:
        onsets = near[one.action]
        place = bisect.bisect_left(onsets, one.onset_ns - SAME_ONSET_NS)
        if place < len(onsets) and onsets[place] <= one.onset_ns + SAME_ONSET_NS:
            del onsets[place]
        else:
            lost.append(one)
    return lost


def out_of_order(heard: Iterable[tuple[str, Body]]) -> int:
    """Events and alerts of which a revision arrived for the first time after a later one."""
    newest: dict[tuple[str, str], int] = {}
    seen: set[tuple[str, str, int]] = set()
    wrong = 0
    for name, body in heard:
        key = (name, body["id"])
        if (*key, body["revision"]) not in seen:
            seen.add((*key, body["revision"]))
            wrong += body["revision"] < newest.get(key, -1)
            newest[key] = max(newest.get(key, -1), body["revision"])
    return wrong


def against_policy(events: Iterable[Body], alerts: Iterable[Body]) -> tuple[list[Alerted], list[Alerted]]:
    """Action, event and revision of the alerts that the rules give for the events that were told and that did not come;
    and of those that came without a cause."""
    told: dict[str, list[Body]] = defaultdict(list)
    came: dict[str, Counter[Alerted]] = defaultdict(Counter)
    for body in events:
        told[body["id"]].append(body)
    for body in alerts:
        came[body["id"]][body["action"], body["id"], body["revision"]] += 1
    lacking, causeless = [], []
    for name in told.keys() | came.keys():
        # A message has a probability rounded: what it was rounded from may lie on the other side of a limit.
        ways = [_due(told[name], shift) for shift in (0.0, -ROUNDING, ROUNDING)]
        if came[name] not in ways:
            lacking += (ways[0] - came[name]).elements()
            causeless += (came[name] - ways[0]).elements()
    return lacking, causeless


def _due(revisions: list[Body], shift: float) -> Counter[Alerted]:
    """The alerts that the rules give for one event, if its probabilities were so much higher."""
    policy = Policy(PolicyConfig.model_validate(RULES))
    found: Counter[Alerted] = Counter()
    for body in sorted(revisions, key=lambda body: int(body["revision"])):
        event = _event(body)
        assert event.classification is not None
        likely = replace(event.classification, probability=event.classification.probability + shift)
        for alert in policy.consider(replace(event, classification=likely)):
            found[alert.action, alert.event.id, alert.event.revision] += 1
    return found


def _event(body: Body) -> Event:
    """A message as the policy saw the event."""
    verdict, seen = body["classification"], body["detection"]
    network, station, location, band = body["station"].split(".")
    return Event(
        id=body["id"],
        revision=body["revision"],
        phase=body["phase"],
        station=StationId(network, station, location, band),
        onset_ns=parse_ns(body["onset"]),
        detection=Detection(seen["ratio"], seen["duration_s"], seen["peak_counts"], seen["dominant_hz"]),
        classification=Classification(
            verdict["label"], verdict["probability"], tuple(verdict["probabilities"][label] for label in LABELS),
            verdict["abstained"], verdict["window_s"], "", "", verdict["backend"], verdict["precision"],
        ),
        quality=Quality(0.0, "", UNKNOWN_QUALITY),
        data_ns=parse_ns(body["timing"]["data"]),
    )  # fmt: skip


def scored(folder: Path) -> bool:
    """Print the card; whether all of it is met."""
    run = Facts(**json.loads((folder / "run.json").read_text()))
    bodies = [json.loads(line) for line in (folder / "heard.jsonl").read_text().splitlines()]
    heard = [(body["schema"].split("/")[1], body) for body in bodies]
    printed = [identity(json.loads(line)) for line in (folder / "watch.jsonl").read_text().splitlines()]
    reference = json.loads((folder / "reference.json").read_text())
    decided = Counter(found[1] for line in (folder / "agent.log").open() if (found := _ALERT.search(line)))
    unique = {identity(body): (kind, body) for kind, body in heard}
    events = [body for kind, body in unique.values() if kind == "event"]
    alerts = [body for kind, body in unique.values() if kind == "alert"]
    met = []

    def must(name: str, value: object, goal: str, is_met: bool) -> None:
        met.append(is_met)
        row(name, str(value), goal, is_met)

    row("records", f"{run.hours:.1f} h in {run.took_s / 60:.1f} min", f"{run.steps} steps of the recorder's clock")
    for name, count in sorted(run.faults.items()):
        row(f"  {name}", str(count))
    row("faults", str(sum(run.faults.values()) + run.steps), "with the clock's")
    row("starts of the agent", str(run.starts))
    wanted = [Said(action, name, onset) for kind, name, _, action, onset in reference if kind == "alert"]
    given = [Said(body["action"], body["id"], parse_ns(body["onset"])) for body in alerts]
    row("alerts decided by a run without faults", str(len(wanted)))
    row("alerts decided, by the agents' own log", str(decided.total()))
    row("alerts delivered, each counted once", str(len(given)))

    words = Counter(describe(parse(MODELS["alert"], json.dumps(body).encode())) for body in alerts)
    untold = decided - words
    must("lost, against the agents' own log", untold.total(), "0", not untold)
    all_events = {name: Said("told", name, onset) for kind, name, _, _, onset in reference if kind == "event"}
    told = {body["id"]: Said("told", body["id"], parse_ns(body["onset"])) for body in events}
    silent = unmatched(list(all_events.values()), list(told.values()))
    must(f"lost, of the {len(all_events)} events of the run without faults", len(silent), "0", not silent)
    lacking, causeless = against_policy(events, alerts)
    must("lost, against the policy shown the events delivered", len(lacking), "0", not lacking)
    must("delivered, and not given by that policy", len(causeless), "0", not causeless)
    fewer, more = unmatched(wanted, given), unmatched(given, wanted)
    must("decided otherwise than without faults", f"{len(fewer)} not, {len(more)} more", f"<= {OTHERWISE:.1%}",
         max(len(fewer), len(more)) <= max(1.0, OTHERWISE * len(wanted)))  # fmt: skip

    again = Counter((kind, body["id"], body["revision"], body.get("action")) for kind, body in unique.values())
    twice = sum(count - 1 for count in again.values())
    must("told twice by different runs of the agent", twice, "0", twice == 0)
    must("copies, all passed over by talus watch", len(heard) - len(unique), f"{run.passed_over} passed over",
         run.passed_over >= 0 and len(printed) == len(set(printed)))  # fmt: skip
    missing = unique.keys() - set(printed)
    must("missing at talus watch", len(missing), "0", not missing)
    wrong = out_of_order(heard)
    must("revisions of an event out of order", wrong, "0", wrong == 0)
    last: dict[str, tuple[int, str]] = {}
    for body in events:
        last[body["id"]] = max(last.get(body["id"], (-1, "")), (body["revision"], body["phase"]))
    unended = sum(phase != "end" for _, phase in last.values())
    must("events without an end", unended, "0", unended == 0)
    must("agents that died by themselves", run.own_deaths, "0", not run.own_deaths)
    must("stop in order, seconds", f"{run.stop_s:.1f}", "<= 5", run.stop_s <= 5 and run.status == 0)
    (folder / "lost.json").write_text(json.dumps({
        "untold": list(untold), "silent": [asdict(one) for one in silent], "lacking": lacking,
        "causeless": causeless, "fewer": [asdict(one) for one in fewer], "more": [asdict(one) for one in more],
        "missing": list(missing)}))  # fmt: skip
    return all(met)


@part(
    option("folder", type=Path),
)
def score(args: argparse.Namespace) -> int:
    """The scorecard of a run that was kept."""
    return 0 if scored(args.folder) else 1


if __name__ == "__main__":
    sys.exit(choose(__doc__))
