"""``talus config``: change a station's tunables remotely, signed."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.commands.options import add_broker, settings_of
from agent.config.explain import dotted, escaped
from agent.errors import ConfigError, ControlError, UsageError
from agent.types import counted
from desk.commands.options import ANSWER_S, VALID_DAYS, add_action, add_wait, silent, station_named, write
from desk.push.presence import tell_absence, waiting

if TYPE_CHECKING:
    from agent.config.file import Config, TunablesConfig
    from agent.messages.schema import Outcome
    from agent.remote.trigger_watch import Known
    from desk.push.configuration import Seen
    from desk.push.dry_run import Rehearsal

EXAMPLES = {
    "keygen": "talus config keygen ops.pem --name ops",
    "dry-run": "talus config dry-run change.yaml records/ --config station.yaml",
    "sign": "talus config sign change.yaml --key ops.pem --station XX.SLOPE --config station.yaml --out change.json",
    "push": "talus config push change.json --broker mqtts://ops@broker.example --follow",
    "show": "talus config show --broker mqtts://ops@broker.example --station XX.SLOPE",
    "history": "talus config history --broker mqtts://ops@broker.example --station XX.SLOPE",
}
EXAMPLE = "\n  ".join(EXAMPLES.values())
_NAMED = 5
"""Lost events that are named."""
NAME_LIMIT = 40
"""Letters in the name of a key (``control.keys[].name``)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    keygen = add_action(actions, "keygen", "make a key; prints what the station's file needs", EXAMPLES["keygen"])
    keygen.add_argument("file", type=Path, metavar="FILE", help="where the private key goes (mode 0600)")
    keygen.add_argument("--name", default="control-room", help="whose key it is (default control-room)")

    sign = add_action(actions, "sign", "make a signed order from a file of tunables", EXAMPLES["sign"])
    _add_change(sign)
    sign.add_argument("--key", type=Path, required=True, metavar="FILE", help="the private key")
    sign.add_argument(
        "--station", action="append", required=True, metavar="NET.STA", help="for whom it is; repeatable; '*' is all"
    )
    sign.add_argument("--revision", type=int, help="above all earlier ones (default: the time, in seconds)")
    sign.add_argument(
        "--valid",
        type=float,
        default=VALID_DAYS,
        metavar="DAYS",
        help=f"to be accepted within (default {VALID_DAYS:g})",
    )
    sign.add_argument("--out", type=Path, metavar="FILE", help="where the order goes (default: standard output)")
    sign.add_argument("--dry-run", nargs="+", metavar="DATA", help="say first what it would have made of recorded data")

    push = add_action(actions, "push", "publish an order and say what became of it", EXAMPLES["push"])
    push.add_argument("file", type=Path, metavar="ORDER", help="what sign wrote")
    add_broker(push)
    push.add_argument("--station", action="append", metavar="NET.STA", help="to these only (default: those it names)")
    push.add_argument("--follow", action="store_true", help="wait until it is kept or rolled back")
    add_wait(push, ANSWER_S, "; a day with --follow", fixed=False)

    for name, words in (("show", "show a station's active settings"), ("history", "list what became of its orders")):
        one = add_action(actions, name, words, EXAMPLES[name])
        add_broker(one)
        one.add_argument("--station", required=True, metavar="NET.STA", help="which station")
        one.add_argument("--json", action="store_true", help="the station's report as it came")

    rehearse = add_action(actions, "dry-run", "say what a change would have made of recorded data", EXAMPLES["dry-run"])
    _add_change(rehearse)
    rehearse.add_argument(
        "data",
        nargs="*",
        metavar="DATA",
        help="files, folders or patterns (default: the records in state_dir)",
    )
    rehearse.add_argument("--json", action="store_true", help="the figures as JSON")


def _add_change(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", type=Path, metavar="FILE", help="what is to change: trigger, verdict, policy, reporting"
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="the station's file, which the change overrides")


def main(args: argparse.Namespace) -> int:
    actions = {
        "keygen": _keygen, "sign": _sign, "push": _push, "show": _show, "history": _history, "dry-run": _dry_run,
    }  # fmt: skip
    return actions[args.action](args)


def _keygen(args: argparse.Namespace) -> int:
    from desk.push.signing import SigningKey

    if not 1 <= len(args.name) <= NAME_LIMIT:
        raise UsageError(f"--name must have 1 to {NAME_LIMIT} letters, not {args.name!r}", "give a name such as ops")
    key = SigningKey.create(args.file).trusted(args.name)
    print(f"control:\n  keys:\n    - {{name: {json.dumps(key.name)}, public: {json.dumps(key.public)}}}")
    print(f"talus config: {args.file} is the private key: keep it off the station, and a copy safe", file=sys.stderr)
    return 0


def _sign(args: argparse.Namespace) -> int:
    from agent.config.file import TunablesConfig
    from agent.remote.doubts import doubts
    from agent.remote.gate import EVERY_STATION, Body
    from agent.types import NS
    from desk.push.signing import SigningKey, seal

    stations = tuple(name if name == EVERY_STATION else station_named(name).short for name in args.station)
    if args.revision is not None and args.revision < 1:
        raise UsageError(f"--revision must be positive, not {args.revision}", "give a whole number from 1 on")
    config, content, after = _change(args)
    for place, doubt in doubts(config.tunables if config else TunablesConfig(), after):
        print(f"talus config: warning: {dotted(place)}: {doubt}", file=sys.stderr)
    if args.dry_run:
        print(_table(_rehearse(args.dry_run, config, after), _known(args.dry_run, config, after)), file=sys.stderr)
    if not 0 < args.valid <= 3650:
        raise UsageError(f"--valid must be positive, and at most 3650 days, not {args.valid:g}", "give days, such as 7")
    now_ns = time.time_ns()
    revision = now_ns // NS if args.revision is None else args.revision
    expires_ns = now_ns + round(args.valid * 86_400) * NS
    body = Body(
        kind="config",
        stations=stations,
        revision=revision,
        issued_ns=now_ns,
        expires_ns=expires_ns,
        content=content,
    )
    text = seal(body, SigningKey.load(args.key))
    if args.out is None:
        print(text.decode())
    else:
        write(args.out, text)
        print(f"talus config: revision {revision} for {', '.join(args.station)} is in {args.out}", file=sys.stderr)
    return 0


def _push(args: argparse.Namespace) -> int:
    from agent.remote.gate import EVERY_STATION, MAX_BYTES
    from desk.push.configuration import push, stations_of

    try:
        payload = args.file.read_bytes()[: MAX_BYTES + 1].strip()
    except OSError as error:
        raise ControlError("malformed", f"{args.file}: {error.strerror}", "`talus config sign` makes one") from None
    names = args.station or stations_of(payload)
    if EVERY_STATION in names:
        raise UsageError("the order is for every station", "name those to which it is pushed with --station")
    until = ("kept",) if args.follow else ("trial", "kept")
    wait_s = args.wait if args.wait is not None else 86_400.0 if args.follow else ANSWER_S
    settings, well = settings_of(args), True
    for name in names:
        tell_absence("config", settings, station_named(name), wait_s)
        said = push(waiting("config", settings, station_named(name), wait_s), payload, until)
        print(f"{name}: {_told(said)}", flush=True)
        well = well and said.result in until
    return 0 if well else 1


def _show(args: argparse.Namespace) -> int:
    seen = _look(args)
    if seen.report is None:
        raise silent(args.station, "configuration")
    report = seen.report
    if args.json:
        print(report.model_dump_json())
        return 0
    rules = {
        "file": "the configuration file is active",
        "trial": f"revision {report.revision} is active, on trial for another {report.trial_left_s or 0:g} s",
        "kept": f"revision {report.revision} is active, and kept",
    }
    print(f"{report.station}: {rules[report.status]} (as of {report.time}; {seen.availability or 'never seen'})")
    print(f"  highest revision accepted: {report.highest}; refused since the start: {report.refusals}")
    for line in [*report.history[-1:], *report.refused[-1:]]:
        print(f"  {line.time}  {_told(line)}")
    if seen.order is not None:
        print(f"  the broker holds an order for {', '.join(_claimed(seen.order))}")
    return 0


def _history(args: argparse.Namespace) -> int:
    report = _look(args).report
    if report is None:
        raise silent(args.station, "configuration")
    if args.json:
        print(report.model_dump_json())
        return 0
    for line in sorted([*report.history, *report.refused], key=lambda line: line.time):
        print(f"{line.time}  {_told(line)}")
    return 0


def _dry_run(args: argparse.Namespace) -> int:
    config, _, after = _change(args)
    known = _known(args.data, config, after)
    if not args.data and not known.events:
        raise UsageError("there is nothing to try the change on", "name recorded data, or the station's --config")
    found = _rehearse(args.data, config, after)
    if args.json:
        sides = {
            name: {
                "triggers": tally.triggers,
                "discarded": tally.discarded,
                "events": dict(tally.events),
                "alerts": dict(tally.alerts),
            }
            for name, tally in (("before", found.before), ("after", found.after))
        }
        records = {"events": known.events, "lost": list(known.lost)}
        print(json.dumps({"seconds": round(found.seconds, 3), **sides, "lost": list(found.lost), "records": records}))
    else:
        print(_table(found, known))
    return 0


def _change(args: argparse.Namespace) -> tuple[Config | None, dict[str, Any], TunablesConfig]:
    """The station's file, if it is given, the change, and the tunables that follow from both."""
    from agent.config.file import TunablesConfig, load
    from agent.remote.configuration import laid_over
    from desk.push.configuration import read_change

    config = load(args.config) if args.config else None
    content = read_change(args.file)
    try:
        after = laid_over(config.tunables if config else TunablesConfig(), content)
    except ControlError as error:
        where = args.config or "the defaults, as no --config is given"
        raise ConfigError(f"{args.file}: {error.message}\n  (laid over {where})", error.hint) from None
    return config, content, after


def _known(data: list[str], config: Config | None, after: TunablesConfig) -> Known:
    """What becomes of recorded events: of the station's own store, if it is here, and of records among the data."""
    from agent.alert.evidence import EvidenceStore
    from agent.config.file import TunablesConfig
    from agent.remote.trigger_watch import RECORDS, Known, compare, onset_of

    given = [Path(name) for name in data]
    files = [file for path in given for file in (sorted(path.rglob("*.mseed")) if path.is_dir() else [path])]
    records = [file for file in files if onset_of(file.stem) is not None]
    if config is not None:
        records += EvidenceStore(config.state_dir / "evidence", config.evidence.max_mb).newest(RECORDS)
    before = (config.tunables if config else TunablesConfig()).trigger
    *_, found = Known(), *compare(dict.fromkeys(records), before, after.trigger)
    return found


def _rehearse(data: list[str], config: Config | None, after: TunablesConfig) -> Rehearsal:
    from agent.config.file import TunablesConfig
    from agent.sources.archive import ArchiveSource
    from desk.push.dry_run import rehearse

    source = ArchiveSource(data, on_problem=lambda problem: print(f"talus config: {problem}", file=sys.stderr))
    before = config.tunables if config else TunablesConfig()
    return rehearse(source.blocks() if data else (), before, after, config)


def _table(found: Rehearsal, known: Known) -> str:
    before, after = found.before, found.after
    rows: list[tuple[str, int, int]] = [
        ("triggers", before.triggers, after.triggers),
        ("  discarded", before.discarded, after.discarded),
        ("events", before.events.total(), after.events.total()),
        *((f"  {label}", before.events[label], after.events[label]) for label in sorted(before.events | after.events)),
        ("alerts raised", before.alerts.total(), after.alerts.total()),
        *((f"  {label}", before.alerts[label], after.alerts[label]) for label in sorted(before.alerts | after.alerts)),
    ]
    if found.seconds > 0:
        lines = [f"{found.seconds / 3600:.2f} h of data", f"{'':<16}{'before':>8}{'after':>8}"]
        lines += [f"{name:<16}{one:>8}{other:>8}" for name, one, other in rows]
    else:
        lines = ["no continuous data were given: only records of events were tried"]
    for what, lost, events in (("", found.lost, len(before.onsets)), (" on record", known.lost, known.events)):
        if events:
            more = f": {', '.join(lost[:_NAMED])}{' ...' if len(lost) > _NAMED else ''}" if lost else ""
            lines.append(f"of {counted(events, 'event')}{what} {len(lost)} would be lost{more}")
    lines += [f"after the change: {reason}" for reason in sorted(after.refused - before.refused)]
    return "\n".join(lines)


def _look(args: argparse.Namespace) -> Seen:
    from desk.push.configuration import look

    return look(settings_of(args), station_named(args.station))


def _told(line: Outcome) -> str:
    what = f"revision {line.revision}" if line.revision is not None else f"an order ({line.envelope[:12]})"
    who = f" by {line.key}" if line.key else ""
    results = {
        "trial": "is active, on trial", "kept": "is kept", "rolled_back": "was rolled back", "refused": "was refused",
    }  # fmt: skip
    why = f": {line.reason}" if line.reason else ""
    text = f"{what}{who} {results[line.result]}{why}"
    return escaped(text)


def _claimed(order: bytes) -> list[str]:
    from desk.push.configuration import stations_of

    try:
        return [name[:20] for name in stations_of(order) if name.isprintable()]
    except ControlError:
        return ["nobody: it is no envelope"]
