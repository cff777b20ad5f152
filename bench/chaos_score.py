"""The scorecard of bench/chaos.py, from what a run leaves in its folder.

    python bench/chaos_score.py FOLDER

What should have been said is known in three ways that share nothing with the way of a message: the run without faults
(``reference.json``), the agents' own log, and the policy, shown the events that arrived. After a restart the filters
begin elsewhere, which moves an onset by a sample, and a verdict at the edge of a rule may fall on its other side: that
alert is decided otherwise, and not lost, as long as its event was told and the policy agrees with what was delivered.
"""

from __future__ import annotations

import bisect
import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from support import row

from agent.alert.policy import Policy
from agent.config.policy import PolicyConfig
from agent.messages.schema import MODELS, parse
from agent.messages.text import describe
from agent.types import LABELS, NS, UNKNOWN_QUALITY, Classification, Detection, Event, Quality, StationId, parse_ns

SAME_ONSET_NS = NS
ROUNDING = 0.00005
OTHERWISE = 0.001
"""Share of the alerts that may be decided otherwise than without faults (one in any case)."""
RULE = {
    "severity": "minor",
    "min_probability": 0.3,
    "min_duration_s": 0.5,
    "refractory_s": 0,
    "escalate": [{"severity": "severe", "min_probability": 0.7}],
}
RULES = {"rules": dict.fromkeys(LABELS, RULE)}
"""The policy of the run. It knows no past but the event's own, so that it can be applied event by event."""

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


def score(folder: Path) -> bool:
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


if __name__ == "__main__":
    sys.exit(0 if score(Path(sys.argv[1])) else 1)
