"""What an alert is worth, and what the defaults of the alert policy rest on.

    python bench/alerts.py streams [--data ../shared/data] [--config FILE] [--json]
    python bench/alerts.py sizes [--data ../shared/data] [--most 60]
    python bench/alerts.py rates [--years 10] [--crises 20]
    python bench/alerts.py drill [--seeds 20] [--hours 1]

``streams``, the default policy on continuous real data, against lists of what happened there. For each stream, with
95 % intervals: the listed landslides that raise an alert at any of its stations, the time from the listed onset to that
alert, alerts that no listed landslide explains for a station and a day, and the share of events on which the last
verdict abstains. Below it, verdict by verdict (3, 5, 10, 20 s and so on after the trigger): what the station that was
there calls each listed landslide, and the alerts that were out by then. The station that was there is the one with the
largest amplitude over its own noise; a site's other stations do not vote.

An alert belongs to a listed event if its trigger overlaps the listed interval, widened by five seconds. ``truth.csv``
holds published events (high), a rule on the envelope (Merapi, medium: by the same shape that a detector looks for) and
the hints of another model (Luhu, medium and low: its mask is noisy). Landslides that were cut as labelled records count
as listed too, but only to explain an alert. Intervals of unknown kind (``*_unclassified.csv``) make an alert neither
right nor wrong. Merapi stands apart: its list is by a rule, and leaves out small rockfalls.

These hours are not unseen: the network learned from other minutes or from these, without labels or with, see its card;
and the defaults of the policy were chosen on these streams (docs/configuration.md, "Why these defaults"). The peer is
ObsPy's batch trigger with the same settings on each station's vertical: how many triggers an operator would get without
a classifier.

``sizes``: amplitude of recorded landslides in multiples of the sensor's noise, and duration of the trigger. The default
steps of severity (``agent.config.policy.SIZE_STEPS``) rest on these figures. Of each record the event with the largest
product of amplitude and duration counts; the last two columns are the share of records whose event is severe or extreme
by the steps of amplitude and duration.

``rates``: how often the alarm on the event rate is false, and how long before a failure it comes. Events are drawn, not
detected: a Poisson process for a steady site; for a crisis the simulator's own script, whose rate grows as the inverse
of the time left, over two days after three quiet ones. The peer is what is easily written instead and often is: an
alarm whenever the last hour has at least five events and three times the rate of the day before.

``drill``: whether the final slide of a crisis raises its own alert, and how soon: ``talus simulate --seed N --speed 0``
for each seed. The goal: in 18 of 20 seeds an event that began with the slide alerts within 20 s of the slide's onset,
and in none is it held back by a smaller event. A slope about to fail is never quiet: where an event of before goes on
into the slide, its alert is counted apart.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import io
import json
import random
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from scipy import stats
from support import choose, option, part, row

from agent.alert.policy import Policy
from agent.alert.rate_alerts import RateWatch
from agent.cli import main as talus
from agent.config.file import ClassifierConfig, PolicyConfig, TunablesConfig, load
from agent.config.policy import SIZE_STEPS, AccelerationConfig, LandslideRule, RulesConfig, rank
from agent.service.assemble import build_line
from agent.sources.archive import ArchiveSource
from agent.sources.simulator import Planned, Rates, Scenario, crisis, steady
from agent.types import NS, Alert, Classification, Detection, Event, Quality, StationId, event_id, format_ns, parse_ns

DATA = Path(__file__).parents[2] / "shared" / "data"
SLACK_NS = 5 * NS
RULED = "merapi"
"""Begin of the names of the streams whose list is by a rule."""


@dataclass(frozen=True, slots=True)
class Listed:
    """An interval of a list. ``counts``: it is one of those that should be found; else it only explains alerts."""

    begin_ns: int
    end_ns: int
    label: str
    confidence: str
    counts: bool = True

    def holds(self, event: Event) -> bool:
        """Whether the event began in the interval, or was still triggered at its begin."""
        off_ns = event.onset_ns + round(event.detection.duration_s * NS)
        return off_ns >= self.begin_ns - SLACK_NS and event.onset_ns <= self.end_ns + SLACK_NS


@dataclass(frozen=True, slots=True)
class Replayed:
    """A stream's revisions in the order in which they were decided, and its length summed over its stations."""

    name: str
    revisions: list[Event]
    hours: float
    stations: int

    @property
    def last(self) -> list[Event]:
        """The newest revision of each event."""
        return list({event.id: event for event in self.revisions}.values())


@dataclass(slots=True)
class Found:
    """A listed landslide, with the alerts and the events that belong to it."""

    listed: Listed
    events: list[Event] = field(default_factory=list)
    alerts: list[Alert] = field(default_factory=list)

    @property
    def there(self) -> Event | None:
        """The event of the station that was there: the largest amplitude over the noise, the first among equals."""
        triggered = (event for event in self.events if event.kind == "trigger")
        return max(triggered, key=lambda event: event.detection.amplitude or 0.0, default=None)


@dataclass(slots=True)
class Score:
    """A stream judged."""

    replayed: Replayed
    landslides: list[Found]
    unlisted: list[Alert]
    of_other: list[Alert]
    """Alerts on what is listed as something else: they count as unlisted too."""
    unknown: list[Alert]
    taken_back: int


def replay(folder: Path, tunables: TunablesConfig, classifier: ClassifierConfig) -> Replayed:
    """What the stations say of a stream's events."""
    line = build_line(tunables, classifier, "talus/v1")
    seconds: Counter[str] = Counter()
    revisions: list[Event] = []

    def take(outputs: Iterable[object]) -> None:
        revisions.extend(output for output in outputs if isinstance(output, Event))

    for block in ArchiveSource([folder], 10.0, on_problem=lambda problem: None).blocks():
        if block.stream.component == "Z":
            seconds[str(block.stream.station)] += len(block.samples) / block.rate_hz
        take(line.pipeline.feed(block))
    take(line.pipeline.flush())
    return Replayed(folder.name, revisions, sum(seconds.values()) / 3600, len(seconds))


def judge(replayed: Replayed, listed: Sequence[Listed], policy: PolicyConfig) -> Score:
    """The alerts of a policy on a stream, and what explains them."""
    judging = Policy(policy)
    raised: dict[str, Alert] = {}
    taken_back = 0
    for event in replayed.revisions:
        for alert in judging.decide(event).alerts:
            if alert.action == "raise":
                raised.setdefault(alert.id, alert)
            taken_back += alert.action == "retract"
    last = {event.id: event for event in replayed.revisions}
    found = [Found(entry) for entry in listed if entry.label == "landslide" and entry.counts]
    score = Score(replayed, found, [], [], [], taken_back)
    for one in found:
        one.events = [event for event in last.values() if one.listed.holds(event)]
        one.alerts = [alert for alert in raised.values() if one.listed.holds(last[alert.id])]
    for alert in raised.values():
        labels = {entry.label for entry in listed if entry.holds(last[alert.id])}
        if "landslide" in labels:
            continue
        if "unknown" in labels:
            score.unknown.append(alert)
            continue
        score.unlisted.append(alert)
        if labels:
            score.of_other.append(alert)
    return score


def lists(data: Path, name: str, begin_ns: int, end_ns: int) -> list[Listed]:
    """All that is known of a stream."""
    found = []
    for path, unknown in ((data / "streams" / "truth.csv", False), *_unclassified(data)):
        for entry in _rows(path):
            if entry["stream"] == name:
                label = "unknown" if unknown else entry["label"]
                found.append(Listed(parse_ns(entry["start"]), parse_ns(entry["end"]), label, entry["confidence"]))
    stations = {line["station"] for line in _rows(data / "streams" / "streams.csv") if line["stream"] == name}
    for record in _rows(data / "metadata.csv"):
        if record["station_code"] in stations and record["source_type"] == "landslide" and record["trace_onset_time"]:
            onset_ns = parse_ns(record["trace_onset_time"])
            if begin_ns <= onset_ns < end_ns:
                found.append(Listed(onset_ns, onset_ns + 10 * NS, "landslide", "record", counts=False))
    return found


def _unclassified(data: Path) -> list[tuple[Path, bool]]:
    return [(path, True) for path in sorted((data / "streams").glob("*_unclassified.csv"))]


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8") as handle:
        yield from csv.DictReader(handle)


def called(event: Event | None) -> str:
    """What a revision calls its event."""
    return "no trigger" if event is None else event.called


def share(hits: int, of: int) -> str:
    """A proportion with its interval (Clopper & Pearson), per cent."""
    if not of:
        return "-"
    low = stats.beta.ppf(0.025, hits, of - hits + 1) if hits else 0.0
    high = stats.beta.ppf(0.975, hits + 1, of - hits) if hits < of else 1.0
    return f"{hits} of {of} ({100 * hits / of:.0f} % [{100 * low:.0f}, {100 * high:.0f}])"


def rate(count: int, days: float) -> str:
    """Events a day with the interval of a Poisson count (Garwood)."""
    low = stats.chi2.ppf(0.025, 2 * count) / 2 if count else 0.0
    high = stats.chi2.ppf(0.975, 2 * count + 2) / 2
    return f"{count} in {days:.2f} days: {count / days:.2f} [{low / days:.2f}, {high / days:.2f}]"


def middle(values: Sequence[float]) -> str:
    """A median with its interval (order statistics)."""
    if not values:
        return "-"
    ordered, n = sorted(values), len(values)
    k = int(stats.binom.ppf(0.025, n, 0.5))
    ends = f" [{ordered[max(0, k - 1)]:.1f}, {ordered[min(n - 1, n - k)]:.1f}]" if n > 5 else ""
    return f"{median(ordered):.1f} s{ends}, longest {ordered[-1]:.1f} s"


def delays(score: Score) -> list[float]:
    """Seconds from the listed onset to the first alert, of each landslide that raised one."""
    return [
        (min(alert.event.data_ns for alert in one.alerts) - one.listed.begin_ns) / NS
        for one in score.landslides
        if one.alerts
    ]


def own_delays(score: Score) -> list[float]:
    """The same from the onset of the event that alerted."""
    firsts = [min(one.alerts, key=lambda alert: alert.event.data_ns) for one in score.landslides if one.alerts]
    return [(alert.event.data_ns - alert.event.onset_ns) / NS for alert in firsts]


def summary(name: str, scores: Sequence[Score]) -> dict[str, Any]:
    """The figures of one or several streams."""
    found = [one for score in scores for one in score.landslides]
    last = [event for score in scores for event in score.replayed.last]
    severities = Counter(alert.severity for score in scores for one in score.landslides for alert in one.alerts)
    there = [one.there for one in found]
    hit = sum(
        event is not None and any(alert.id == event.id for alert in one.alerts)
        for one, event in zip(found, there, strict=True)
    )
    unlisted = [alert for score in scores for alert in score.unlisted]
    triggers = [event for event in last if event.kind == "trigger"]
    alone = sum(bool(one.alerts) and all(alert.event.kind == "slow" for alert in one.alerts) for one in found)
    days = sum(score.replayed.hours for score in scores) / 24
    return {
        "streams": name,
        "station_days": round(days, 3),
        "events": len(triggers),
        "slow events": len(last) - len(triggers),
        "listed landslides": len(found),
        "triggered": share(sum(event is not None for event in there), len(found)),
        "alerts, any station": share(sum(bool(one.alerts) for one in found), len(found)),
        "of these by the level of minutes alone": alone,
        "alerts, the station that was there": share(hit, len(found)),
        "listed onset to alert": middle([value for score in scores for value in delays(score)]),
        "trigger to alert": middle([value for score in scores for value in own_delays(score)]),
        "unlisted alerts a station and day": rate(len(unlisted), days),
        "of these slow": sum(alert.event.kind == "slow" for alert in unlisted),
        "of these on listed others": sum(len(score.of_other) for score in scores),
        "on intervals of unknown kind": sum(len(score.unknown) for score in scores),
        "alerts taken back": sum(score.taken_back for score in scores),
        "undecided events": share(sum(called(event) == "undecided" for event in triggers), len(triggers)),
        "severity, listed": dict(severities),
        "severity, unlisted": dict(Counter(alert.severity for alert in unlisted)),
    }


def by_verdict(scores: Sequence[Score], at_s: Sequence[float]) -> Iterator[str]:
    """A line for each verdict, and one for the last word."""
    yield (
        f"  {'verdict':<8}{'called landslide':>18}{'other':>7}{'withheld':>9}{'alerts by then':>16}"
        f"{'unlisted called landslide, a day':>34}"
    )
    days = sum(score.replayed.hours for score in scores) / 24
    for at in (*at_s, float("inf")):
        calls: Counter[str] = Counter()
        alerts = false = 0
        for score in scores:
            newest = {
                event.id: event for event in score.replayed.revisions if (event.data_ns - event.onset_ns) / NS <= at
            }
            for one in score.landslides:
                event = one.there
                calls[called(newest.get(event.id) if event else None)] += 1
                alerts += any((alert.event.data_ns - alert.event.onset_ns) / NS <= at for alert in one.alerts)
            explained = {event.id for one in score.landslides for event in one.events}
            false += sum(called(event) == "landslide" for event in newest.values() if event.id not in explained)
        of = calls.total()
        other = of - calls["landslide"] - calls["undecided"] - calls["no trigger"]
        name = "last" if at == float("inf") else f"{at:g} s"
        yield (
            f"  {name:<8}{calls['landslide']:>12} of {of:<3}{other:>7}{calls['undecided']:>9}{alerts:>16}"
            f"{false / days:>34.1f}"
        )


def listing(score: Score) -> Iterator[str]:
    """A line for each listed landslide and each alert that none explains."""
    for one in score.landslides:
        begin = format_ns(one.listed.begin_ns)[11:19]
        first = min(one.alerts, key=lambda alert: alert.event.data_ns, default=None)
        words = "no alert"
        if first is not None:
            words = f"{first.severity} after {(first.event.data_ns - one.listed.begin_ns) / NS:.1f} s"
        there = one.there
        where = "" if there is None else f" at {there.station.station}"
        yield f"  {begin}  {one.listed.confidence:<7}{words:<24}{called(there)}{where}"
    for alert in score.unlisted:
        event = alert.event
        begin = format_ns(event.onset_ns)[11:19]
        yield f"  {begin}  unlisted, {event.station.station}: {alert.severity}, {alert.reason}"


def obspy_triggers(folder: Path) -> int:
    """Triggers of ObsPy's batch functions with the same settings, on the verticals."""
    import obspy
    from obspy.signal.filter import bandpass
    from obspy.signal.trigger import recursive_sta_lta, trigger_onset

    t = TunablesConfig().trigger
    count = 0
    for trace in obspy.read(str(folder / "*Z.mseed")):
        rate_hz = trace.stats.sampling_rate
        filtered = bandpass(np.asarray(trace.data, dtype=np.float64), t.low_hz, t.high_hz, rate_hz, corners=t.order)
        if len(filtered) > rate_hz * t.lta_s:
            ratio = recursive_sta_lta(filtered, round(rate_hz * t.sta_s), round(rate_hz * t.lta_s))
            count += len(trigger_onset(ratio, t.on, t.off))
    return count


def score_of(data: Path, replayed: Replayed, policy: PolicyConfig) -> Score:
    """A replayed stream against its lists."""
    times = [event.data_ns for event in replayed.revisions]
    listed = lists(data, replayed.name, min(times, default=0) - 120 * NS, max(times, default=0) + 1)
    return judge(replayed, listed, policy)


@part(
    option("--data", type=Path, default=DATA),
    option("--config", type=Path, help="settings of trigger, verdicts, policy and network"),
    option("--json", action="store_true", help="the figures alone, as JSON lines"),
)
def streams(args: argparse.Namespace) -> None:
    """The policy on continuous data, against lists of what happened there."""
    config = load(args.config) if args.config else None
    tunables = config.tunables if config else TunablesConfig()
    classifier = config.classifier if config else ClassifierConfig(backends=("onnxruntime",))
    scores: list[Score] = []
    for folder in sorted(path for path in (args.data / "streams").iterdir() if path.is_dir()):
        score = score_of(args.data, replay(folder, tunables, classifier), tunables.policy)
        scores.append(score)
        if args.json:
            continue
        print(f"\n{folder.name}: {score.replayed.stations} stations, {score.replayed.hours:.1f} station-hours")
        print("\n".join(listing(score)))
        peer = obspy_triggers(folder) / score.replayed.hours
        print(f"  ObsPy's batch trigger on the verticals: {peer:.1f} a station-hour")
    ruled = [score for score in scores if score.replayed.name.startswith(RULED)]
    rest = [score for score in scores if not score.replayed.name.startswith(RULED)]
    groups = [*((score.replayed.name, [score]) for score in scores), ("outside Merapi", rest), ("Merapi", ruled)]
    for name, group in groups:
        if not group:
            continue
        figures = summary(name, group)
        if args.json:
            print(json.dumps(figures))
            continue
        print(f"\n{name}")
        for key, value in figures.items():
            if key != "streams":
                print(f"  {key:<38}{value}")
        if figures["listed landslides"]:
            print("\n".join(by_verdict(group, tunables.verdict.at_s)))


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


@part(
    option("--data", type=Path, default=DATA),
    option("--most", type=int, default=60, help="records of each source, drawn with a fixed seed"),
)
def sizes(args: argparse.Namespace) -> None:
    """Amplitude and duration of recorded landslides."""
    by_source: dict[str, list[str]] = defaultdict(list)
    with (args.data / "metadata.csv").open(encoding="utf-8") as file:
        for record in csv.DictReader(file):
            if record["source_type"] == "landslide":
                by_source[record["source_dataset"]].append(record["trace_name"])
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


@part(
    option("--years", type=float, default=10.0, help="of a steady site at up to 1 event an hour"),
    option("--crises", type=int, default=20),
)
def rates(args: argparse.Namespace) -> None:
    """False alarms on the event rate, and how early a true one comes."""
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


WITHIN_S = 20
FAINT_S = 10
"""A trigger so long after the onset: the slide began faint, or in the shadow of what raised the long average before."""


def final_slide(seed: int, hours: float) -> str:
    """The line about the final slide of a drill."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        talus(
            ["simulate", "--quiet", "--speed", "0", "--hours", str(hours), "--seed", str(seed),
             "--start", "2026-03-01T00:00:00Z"]
        )  # fmt: skip
    return next(line for line in out.getvalue().splitlines() if line.startswith("slide of"))


@part(option("--seeds", type=int, default=20), option("--hours", type=float, default=1.0))
def drill(args: argparse.Namespace) -> None:
    """The final slide of a drill."""
    soon = held = early = faint = 0
    for seed in range(1, args.seeds + 1):
        line = final_slide(seed, args.hours)
        match = re.search(r": (alert|an event of before) .* (\d+) s after its onset", line)
        if match is not None and int(match[2]) <= WITHIN_S:
            soon += match[1] == "alert"
            early += match[1] != "alert"
        elif (begun := re.search(r"its trigger (\d+) s", line)) is not None:
            faint += int(begun[1]) >= FAINT_S
        held += "refractory:" in line
        print(f"seed {seed:>2}  {line}", flush=True)
    goal = round(0.9 * args.seeds)
    row("own alert within 20 s of the onset", f"{soon} of {args.seeds}", f"goal: {goal}", soon >= goal)
    row("alert of an event that began before, within 20 s", str(early))
    row(f"later, triggered {FAINT_S} s after the onset or later", str(faint))
    row("held back by a smaller event", str(held), "goal: 0", held == 0)


if __name__ == "__main__":
    sys.exit(choose(__doc__))
