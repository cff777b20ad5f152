"""What the defaults of the alert policy rest on: how large landslides are, and how often the alarm on rates is false.

    python bench/alarms.py sizes [--data ../shared/data] [--most 60]
    python bench/alarms.py rates [--years 10] [--crises 20]

``sizes``: amplitude of recorded landslides in multiples of the sensor's noise, and duration of the trigger. The default
steps of severity (``agent.config.policy.SIZE_STEPS``) rest on these figures. Of each record the event with the largest
product of amplitude and duration counts; the last two columns are the share of records whose event is severe or extreme
by the steps of amplitude and duration.

``rates``: how often the alarm on the event rate is false, and how long before a failure it comes. Events are drawn, not
detected: a Poisson process for a steady site; for a crisis the simulator's own script, whose rate grows as the inverse
of the time left, over two days after three quiet ones. The peer is what is easily written instead and often is: an
alarm whenever the last hour has at least five events and three times the rate of the day before.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import random
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from support import Call, choose, row

from agent.alert.rate_alerts import RateWatch
from agent.config.file import ClassifierConfig, TunablesConfig
from agent.config.policy import SIZE_STEPS, AccelerationConfig, LandslideRule, RulesConfig, rank
from agent.service.assemble import build_line
from agent.sources.archive import ArchiveSource
from agent.sources.simulator import Planned, Rates, Scenario, crisis, steady
from agent.types import NS, Classification, Detection, Event, Quality, StationId, event_id


def largest(path: Path) -> Detection | None:
    """What the trigger saw of the largest event in a file; None without an event whose noise is known."""
    line = build_line(TunablesConfig(), ClassifierConfig(backends=("constant",)), "talus/v1")
    last: dict[str, Detection] = {}

    def take(outputs: Iterable[object]) -> None:
        last.update((output.id, output.detection) for output in outputs if isinstance(output, Event))

    for block in ArchiveSource([path], 1.0, on_problem=lambda problem: None).blocks():
        take(line.pipeline.feed(block))
    take(line.pipeline.flush())
    known = [seen for seen in last.values() if seen.amplitude is not None]
    return max(known, key=lambda seen: seen.size, default=None)


def severity(seen: Detection) -> int:
    """Rank of the severity that the default steps give."""
    reached = [
        rank(step.severity)
        for step in SIZE_STEPS
        if step.min_stations is None
        and (seen.amplitude or 0.0) >= (step.min_amplitude or 0.0)
        and seen.duration_s >= (step.min_duration_s or 0.0)
    ]
    return max([rank("moderate"), *reached])


def sizes(parser: argparse.ArgumentParser) -> Call:
    """Amplitude and duration of recorded landslides."""
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--most", type=int, default=60, help="records of each source, drawn with a fixed seed")
    return _sizes


def _sizes(args: argparse.Namespace) -> None:
    by_source: dict[str, list[str]] = defaultdict(list)
    with (args.data / "metadata.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["source_type"] == "landslide":
                by_source[row["source_dataset"]].append(row["trace_name"])
    chance = random.Random(1)
    print(
        f"{'source':<18} {'events':>6}  amplitude 10/25/50/75/90 %        duration, s 10/25/50/75/90 %   severe extreme"
    )
    everything: list[Detection] = []
    for source, names in sorted(by_source.items()):
        drawn = chance.sample(names, min(args.most, len(names)))
        found = [seen for name in drawn if (seen := largest(args.data / name)) is not None]
        everything += found
        print(line_of(source, found))
    print(line_of("all", everything))


def line_of(source: str, found: list[Detection]) -> str:
    """One line of the table."""
    if not found:
        return f"{source:<18} {0:>6}"
    quantiles = (10, 25, 50, 75, 90)
    amplitude = np.percentile([seen.amplitude or 0.0 for seen in found], quantiles)
    duration = np.percentile([seen.duration_s for seen in found], quantiles)
    ranks = np.array([severity(seen) for seen in found])
    shares = [float(np.mean(ranks == rank(word))) for word in ("severe", "extreme")]
    columns = (" ".join(f"{value:6.1f}" for value in values) for values in (amplitude, duration))
    return f"{source:<18} {len(found):>6}  {'   '.join(columns)}   {shares[0]:6.2f} {shares[1]:7.2f}"


HOUR, DAY = 3600.0, 86_400.0
STATION = StationId("XX", "SLP", "00", "HH")
VERDICT = Classification(
    "landslide", 0.9, (0.02, 0.03, 0.03, 0.9, 0.02), False, 80.0, "drawn", "0" * 64, "none", "none"
)  # fmt: skip
T0 = 1_772_323_200 * NS
DEFAULTS = AccelerationConfig()
RULES = {
    "the default, chance <= 1e-5": DEFAULTS,
    "chance <= 1e-4": DEFAULTS.model_copy(update={"max_chance": 1e-4}),
    "the peer: the ratio alone": DEFAULTS.model_copy(update={"max_chance": 1.0}),
}


def raised_s(times_s: list[float], settings: AccelerationConfig) -> list[float]:
    """When the alarm is raised, seconds."""
    watch = RateWatch(RulesConfig(landslide=LandslideRule(acceleration=settings)))
    event = Event("", 0, "end", STATION, 0, Detection(9.0, 5.0, 1.0, 5.0), VERDICT, Quality(), 0)
    found = []
    for at_s in times_s:
        onset_ns = T0 + round(at_s * NS)
        one = dataclasses.replace(event, id=event_id(STATION, onset_ns), onset_ns=onset_ns, recorded_s=at_s)
        found += [at_s for alert in watch.consider(one) if alert.action == "raise"]
    return found


def own_events(seed: int, rates: Rates, seconds: float) -> list[float]:
    scenario = Scenario(seed, rates, 1)
    cells = (what for number in range(int(seconds // 60)) for what in scenario.cell(number))
    return [what.at_s for what in cells if isinstance(what, Planned) and what.kind in ("slopequake", "rockfall")]


def rates(parser: argparse.ArgumentParser) -> Call:
    """False alarms on the event rate, and how early a true one comes."""
    parser.add_argument("--years", type=float, default=10.0, help="of a steady site at up to 1 event an hour")
    parser.add_argument("--crises", type=int, default=20)
    return _rates


def _rates(args: argparse.Namespace) -> None:
    for name, settings in RULES.items():
        row(name, "")
        for per_hour in (0.05, 0.2, 1.0, 2.0, 5.0, 18.0):
            days = args.years * 365 / max(1.0, per_hour)
            rng = np.random.default_rng(7)
            times = np.sort(rng.uniform(0, days * DAY, rng.poisson(per_hour * 24 * days)))
            false = len(raised_s(times.tolist(), settings)) / days * 365
            row(f"  false alarms a year, steady {per_hour:g} an hour", f"{false:.2f}")
        leads = []
        for seed in range(args.crises):
            ramp, quiet_s, length_s = crisis(2 * DAY), 3 * DAY, 1.8 * DAY
            calm = own_events(seed, steady(ramp(0.0)), quiet_s)
            rising = [quiet_s + at_s for at_s in own_events(seed + 100, ramp, length_s)]
            first = [at_s for at_s in raised_s([*calm, *rising], settings) if at_s > quiet_s]
            leads.append((quiet_s + length_s - first[0]) / HOUR if first else 0.0)
        row(f"  hours before the failure, {args.crises} crises: least, median, most",
            f"{min(leads):.1f}, {float(np.median(leads)):.1f}, {max(leads):.1f}")  # fmt: skip


if __name__ == "__main__":
    sys.exit(choose(__doc__, sizes, rates))
