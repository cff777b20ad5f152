"""``talus simulate``: a drill. A synthetic site through the whole line, and what was sent beside what was detected; or
``--scenario crisis``, days of faults with a scorecard (``desk.crisis``)."""

from __future__ import annotations

import argparse
import dataclasses
import secrets
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from agent.commands.options import add_broker, check_time, settings_of
from agent.config.broker import DEFAULT_PREFIX
from agent.config.sources import station_ids
from agent.errors import INTERRUPTED, UsageError
from agent.messages.payloads import Message
from agent.sources.simulator import (
    FAULTS,
    KINDS,
    Certain,
    Rates,
    Scenario,
    Sent,
    SentFault,
    SimulatedSite,
    SimulatorSource,
    crisis,
    failure,
    rockfalls,
    steady,
)
from agent.types import NS, SLOW, Discard, StationId, counted, format_ns, parse_ns

if TYPE_CHECKING:
    from agent.config.file import Config
    from agent.deliver.delivery import Delivery
    from agent.messages.schema import DecisionPart
    from agent.service.assemble import Fed, Line

EXAMPLE = (
    "talus simulate\n  talus simulate --speed 0 --seed 7 --fault gap --fault stall\n"
    "  talus simulate --broker mqtt://localhost\n  talus simulate --scenario crisis --seed 1"
)
FAULTS_PER_HOUR = 6.0
STEADY = {"slopequake": 12.0, "rockfall": 6.0, "blast": 1.0, "earthquake": 2.0}
"""Events per hour of the calm script."""
_SLACK_NS = 2 * NS
_PATIENCE_S = 30.0

Say: TypeAlias = Callable[[str], None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--scenario",
        choices=("failure", "steady", "rockfalls", "crisis"),
        default="failure",
        help="failure: rates grow until the slope fails (default); steady: a calm site; "
        "rockfalls: eight and nothing else, each almost twice as large as the one before; "
        "crisis: a day of it with blasts, earthquakes, faults of the recorder, cuts of link, power, broker and disk, "
        "as fast as it goes, with a scorecard (needs Mosquitto)",
    )
    parser.add_argument("--hours", type=float, help="length of the scenario (default 1, of a crisis 24)")
    parser.add_argument("--speed", type=float, help="times real time (default 60); 0: as fast as it goes")
    parser.add_argument("--seed", type=int, default=1, help="the same seed and start give the same data (default 1)")
    parser.add_argument("--start", metavar="TIME", help="time of the first sample, ISO 8601 (default: now)")
    parser.add_argument(
        "--stations", type=int, metavar="N", help="how many stations (default 1, or all of site.coincidence)"
    )
    parser.add_argument(
        "--fault",
        choices=FAULTS,
        action="append",
        default=[],
        help=f"let this go wrong as well, about {FAULTS_PER_HOUR:g} times in the scenario; may be given several times",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings of trigger, verdicts, policy, network")
    add_broker(parser, "send, marked as an exercise, to ", required=False)
    parser.add_argument(
        "--records", type=Path, metavar="FOLDER", help="of a crisis: take its earthquakes from these records"
    )
    parser.add_argument("--json", action="store_true", help="of a crisis: the scorecard as JSON")
    parser.add_argument("-q", "--quiet", action="store_true", help="only the table at the end")


@dataclass(slots=True)
class _Detected:
    station: StationId
    onset_ns: int
    until_ns: int
    label: str


@dataclass(frozen=True, slots=True)
class _Alerted:
    action: str
    severity: str
    at_ns: int


@dataclass(slots=True)
class _Book:
    """What was sent and what came out, to be compared at the end."""

    begin_ns: int
    sent: list[Sent] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    detected: dict[str, _Detected] = field(default_factory=dict)
    discarded: int = 0
    alerts: Counter[str] = field(default_factory=Counter)
    told: dict[str, list[_Alerted]] = field(default_factory=dict)
    """The alerts of each event that raised one, in order."""
    refused: dict[str, DecisionPart] = field(default_factory=dict)
    """Why there was no alert at the newest revision of each event; of those that were held back, that."""

    def clock(self, time_ns: int) -> str:
        """Time since the start, as h:mm:ss."""
        seconds = (time_ns - self.begin_ns) // NS
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"

    def table(self) -> list[str]:
        """A line for each kind of event: how many were sent and detected, and what the network called them."""
        lines = [f"{'kind':<12} {'sent':>5} {'detected':>9}  called"]
        explained: set[str] = set()
        for kind in KINDS:
            sent = [one for one in self.sent if one.planned.kind == kind]
            found = [self._matches(one) for one in sent]
            explained.update(name for names in found for name in names)
            called = Counter(self.detected[name].label for names in found for name in names[:1])
            words = ", ".join(f"{label} {number}" for label, number in called.most_common())
            if sent:
                lines.append(f"{kind:<12} {len(sent):>5} {sum(map(bool, found)):>9}  {words}")
        others = [one for name, one in self.detected.items() if name not in explained]
        words = ", ".join(f"{label} {n}" for label, n in Counter(one.label for one in others).most_common())
        lines.append(f"{'nothing':<12} {'':>5} {len(others):>9}  {words}")
        return [line.rstrip() for line in lines]

    def slides(self) -> list[str]:
        """A line for each slide: the first alert of an event that began with it, else that of one that went on into it,
        or why there was none."""
        return [
            f"slide of {self.clock(sent.onset_ns)} at {sent.station.short}: {self._outcome(sent)}"
            for sent in self.sent
            if sent.planned.kind == "slide"
        ]

    def _outcome(self, sent: Sent) -> str:
        names = self._matches(sent)
        own = [name for name in names if self.detected[name].onset_ns >= sent.onset_ns - _SLACK_NS]
        alert = self._first(own, sent.onset_ns)
        if alert is not None:
            began = min(self.detected[name].onset_ns for name in own if alert in self.told.get(name, ()))
            late_s = max(0.0, (began - sent.onset_ns) / NS)
            return f"alert {alert.action} {alert.severity} {self._when(alert, sent)}, its trigger {late_s:.0f} s"
        alert = self._first(names, sent.onset_ns)
        if alert is not None:
            return f"an event of before has its alert {alert.action} {alert.severity} {self._when(alert, sent)}"
        reasons = [self.refused[name] for name in names if name in self.refused]
        why = "; ".join(f"{reason.code}: {reason.reason}" for reason in reasons)
        return f"no alert: {why or 'nothing was detected'}"

    def _first(self, names: Sequence[str], since_ns: int) -> _Alerted | None:
        """The first alert of these events since then, but for withdrawals."""
        told = [alert for name in names for alert in self.told.get(name, ())]
        since = [alert for alert in told if alert.action != "retract" and alert.at_ns >= since_ns]
        return min(since, key=lambda alert: alert.at_ns, default=None)

    def _when(self, alert: _Alerted, sent: Sent) -> str:
        return f"at {self.clock(alert.at_ns)}, {(alert.at_ns - sent.onset_ns) / NS:.0f} s after its onset"

    def _matches(self, sent: Sent) -> list[str]:
        """Events at the station during which the signal was there, slow ones last; one may hold several signals."""
        begin_ns, end_ns = sent.onset_ns - _SLACK_NS, sent.onset_ns + round(sent.seconds * NS)
        found = [
            name
            for name, one in self.detected.items()
            if one.station == sent.station and one.onset_ns <= end_ns and one.until_ns + _SLACK_NS >= begin_ns
        ]
        return sorted(found, key=lambda name: self.detected[name].label == SLOW)


def main(args: argparse.Namespace) -> int:
    from agent.config.file import ClassifierConfig, TunablesConfig, load
    from agent.service.assemble import build_line, open_site

    _check(args)
    config = load(args.config) if args.config else None
    if args.scenario == "crisis":
        return _crisis(args, config)
    with tempfile.TemporaryDirectory(prefix="talus-simulate-") as folder:
        delivery = _delivery(args, config, Path(folder)) if args.broker else None
        try:
            line = build_line(
                config.tunables if config else TunablesConfig(),
                config.classifier if config else ClassifierConfig(),
                delivery.prefix if delivery else DEFAULT_PREFIX,
                exercise=True,
                site=open_site(config) if config else None,
                envelope=config.envelope.component if config else None,
            )
            if delivery:
                delivery.start()
            finished = _simulate(args, config, line, delivery)
        finally:
            rest = delivery.close() if delivery else None
    if rest and (rest.waiting or rest.refused):
        why = f": {rest.error}" if rest.error else ""
        lost = counted(rest.waiting + rest.refused, "message")
        print(f"talus simulate: the broker did not take {lost}{why}", file=sys.stderr)
    return INTERRUPTED if not finished else 1 if rest and (rest.waiting or rest.refused) else 0


def _crisis(args: argparse.Namespace, config: Config | None) -> int:
    """Play a crisis; exit status 1 if something was lost, or deaf without a word."""
    import json

    from agent.config.file import ClassifierConfig, TunablesConfig
    from desk.crisis.card import lines, make_card
    from desk.crisis.plan import START, make_plan, recorded_earthquakes
    from desk.crisis.run import play

    unused = [name for name in ("speed", "stations", "broker", "fault") if getattr(args, name)]
    if unused:
        raise UsageError(f"--{unused[0]} is not for a crisis", "it has one station, its own broker and its own faults")
    earthquakes = recorded_earthquakes(args.records) if args.records else []
    plan = make_plan(args.seed, args.hours, args.start or START)
    tunables = config.tunables if config else TunablesConfig()
    classifier = config.classifier if config else ClassifierConfig()

    def say(text: str) -> None:
        if not args.quiet:
            print(text, file=sys.stderr, flush=True)

    try:
        card = make_card(play(plan, tunables, classifier, earthquakes, say))
    except KeyboardInterrupt:
        return INTERRUPTED
    print(json.dumps(dataclasses.asdict(card), indent=1) if args.json else "\n".join(lines(card)))
    return 0 if card.score.is_met else 1


def _check(args: argparse.Namespace) -> None:
    crisis = args.scenario == "crisis"
    args.hours = (24.0 if crisis else 1.0) if args.hours is None else args.hours
    args.speed = (0.0 if crisis else 60.0) if args.speed is None else args.speed
    if not crisis and (args.json or args.records):
        raise UsageError("--json and --records are for --scenario crisis")
    if not 0 < args.hours <= 1000:
        raise UsageError(f"--hours must be positive, and at most 1000, not {args.hours:g}", "give hours, such as 1")
    if not 0 <= args.speed < float("inf"):
        raise UsageError(
            f"--speed must not be negative, nor {args.speed:g}", "give 0 (as fast as it goes), 1 (real time) or N"
        )
    if args.stations is not None and not 1 <= args.stations <= 64:
        raise UsageError(f"--stations must be from 1 to 64, not {args.stations}", "give a number such as 3")
    if not 0 <= args.seed < 2**32:
        raise UsageError(f"--seed must be from 0 to 4294967295, not {args.seed}", "give a number such as 1")
    if args.start:
        check_time("--start", args.start)


def _delivery(args: argparse.Namespace, config: Config | None, folder: Path) -> Delivery:
    """An outbox for this drill alone: nothing of it may reach the broker another day."""
    from agent.deliver.delivery import Delivery

    settings = settings_of(args).model_copy(update={"client_id": f"talus-simulate-{secrets.token_hex(4)}"})
    network = config.station.network if config else "XX"
    return Delivery(settings, StationId(network, "SIMULATE", "", ""), folder / "outbox.sqlite3")


def _simulate(args: argparse.Namespace, config: Config | None, line: Line, delivery: Delivery | None) -> bool:
    """Play the script; False when Ctrl-C ended it."""
    seconds = args.hours * 3600
    begin_ns = parse_ns(args.start) if args.start else time.time_ns()
    book = _Book(begin_ns)
    say: Say = (lambda text: None) if args.quiet else (lambda text: print(text, flush=True))
    source = _source(args, config, seconds, book, say)
    pace = f"at {args.speed:g} x real time" if args.speed else "as fast as it goes"
    print(
        f"talus simulate: {args.scenario} of {args.hours:g} h {pace}, seed {args.seed}, "
        f"from {format_ns(begin_ns)}; all of it is marked as an exercise",
        file=sys.stderr,
    )
    put = delivery.put if delivery else (lambda messages: None)
    started = time.monotonic()
    finished = True
    try:
        at_ns = begin_ns
        for block in source.blocks():
            at_ns = max(at_ns, block.end_ns)
            _take(line.feed(block, time.time_ns()), at_ns, book, say, put)
        _take(line.finish(time.time_ns()), at_ns, book, say, put)
        if delivery:
            delivery.drain(_PATIENCE_S)
    except KeyboardInterrupt:
        finished = False
    print("\n".join([*book.slides(), *book.table()]), flush=True)
    faults = ", ".join(f"{kind.replace('_', ' ')} {n}" for kind, n in sorted(book.faults.items())) or "none"
    alerts = ", ".join(f"{action} {n}" for action, n in sorted(book.alerts.items())) or "none"
    print(
        f"talus simulate: alerts: {alerts}; faults: {faults}; {counted(book.discarded, 'trigger')} discarded; "
        f"{time.monotonic() - started:.1f} s",
        file=sys.stderr,
    )
    return finished


def _source(args: argparse.Namespace, config: Config | None, seconds: float, book: _Book, say: Say) -> SimulatorSource:
    def told(what: Sent | SentFault) -> None:
        if isinstance(what, SentFault):
            book.faults[what.fault.kind] += 1
            say(f"{book.clock(what.time_ns)}  fault     {what.station.short}  {what.fault}")
            return
        book.sent.append(what)
        peak = float(f"{what.peak_counts:.2g}")
        say(
            f"{book.clock(what.onset_ns)}  sent      {what.station.short}  {what.planned.kind}, "
            f"peak {peak:,.0f} counts, {what.seconds:.0f} s"
        )

    site = SimulatedSite(_stations(config, args.stations))
    faults = dict.fromkeys(args.fault, FAULTS_PER_HOUR * 3600 / seconds)
    rates, certain = _script(args.scenario, seconds)
    scenario = Scenario(args.seed, lambda at_s: {**rates(at_s), **faults}, len(site.stations), certain)
    return SimulatorSource(
        site, scenario, args.seed, start_ns=book.begin_ns, seconds=seconds, speed=args.speed, told=told
    )


def _stations(config: Config | None, count: int | None) -> tuple[StationId, ...]:
    """The stations that must agree where the configuration names some, else as many as wanted."""
    together = config.site.coincidence if config else None
    if together is not None:
        codes = [name.partition(".") for name in together.stations[:count]]
        return tuple(StationId(network, station, "", "HH") for network, _, station in codes)
    own = config.station if config else None
    return station_ids(own.network if own else "XX", own.station if own else "SIM", count or 1, 100.0)


def _script(name: str, seconds: float) -> tuple[Rates, tuple[Certain, ...]]:
    """Return the rates of a scenario of this length, and the events that it holds for certain."""
    if name == "failure":
        return crisis(seconds), failure(seconds)
    return (steady({}), rockfalls(seconds)) if name == "rockfalls" else (steady(STEADY), ())


def _take(fed: Fed, at_ns: int, book: _Book, say: Say, put: Callable[[Sequence[Message]], object]) -> None:
    """Note what a packet led to whose last sample is at ``at_ns``."""
    from agent.messages.schema import AlertMessage, EventMessage, parse
    from agent.messages.text import readable

    for output in fed.outputs:
        if isinstance(output, Discard):
            book.discarded += 1
            continue
        verdict = output.classification
        until_ns = output.onset_ns + round(output.detection.duration_s * NS)
        nothing = SLOW if output.kind == SLOW else "unclassified"
        label = nothing if verdict is None else "abstained" if verdict.abstained else verdict.label
        book.detected[output.id] = _Detected(output.station, output.onset_ns, until_ns, label)
        if output.phase != "update":
            word = "detected" if output.phase == "new" else "ended"
            seconds = f"{output.detection.duration_s:.1f} s, ratio {output.detection.ratio:.0f}"
            words = label if verdict is None else f"{label} {verdict.probability:.2f}"
            say(f"{book.clock(output.data_ns)}  {word:<9} {output.station.short}  {words}  [{seconds}]")
    for message in fed.messages:
        if message.name == "alert":
            alert = parse(AlertMessage, message.payload)
            book.alerts[alert.action] += 1
            book.told.setdefault(alert.id, []).append(_Alerted(alert.action, alert.severity, at_ns))
            say(f"{book.clock(at_ns)}  {readable(message)}")
        if message.name == "event":
            event = parse(EventMessage, message.payload)
            before = book.refused.get(event.id)
            if event.decision is not None and (before is None or before.code != "refractory"):
                book.refused[event.id] = event.decision
    # What is retained describes the site as it is, which a drill must not overwrite.
    put([message for message in fed.messages if not message.retain])
