"""``talus fleet``: all stations of a broker at a glance, and orders to many of them in waves."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.commands.options import add_broker, settings_of
from agent.config.explain import escaped
from agent.errors import ControlError, UsageError
from agent.types import counted
from desk.commands.options import VALID_DAYS, add_wait, station_named

if TYPE_CHECKING:
    from agent.config.broker import MqttSettings
    from desk.push.fleet import Member, Order

EXAMPLE = (
    "talus fleet --broker mqtts://ops@broker.example\n"
    "  talus fleet push config change.json --broker mqtts://ops@broker.example --all --wave 10\n"
    "  talus fleet push model bundle.zip --key ops.pem --broker mqtts://ops@broker.example --stations 'XX.A*,YY.TOP'"
)
WAIT_S = 86_400.0
_HEAD = ("STATION", "STATUS", "VERSION", "MODEL", "CONFIG", "HEARS", "VOICE", "HEALTH")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what", nargs="*", metavar="push config ORDER | push model BUNDLE",
        help="nothing: list the stations; or push what `talus config sign` wrote, or a bundle",
    )  # fmt: skip
    add_broker(parser)
    parser.add_argument("--json", action="store_true", help="the list as JSON")
    push = parser.add_argument_group("push")
    which = push.add_mutually_exclusive_group()
    which.add_argument("--stations", metavar="LIST", help="NET.STA, separated by commas, in this order; patterns too")
    which.add_argument("--all", action="store_true", help="every station that the broker knows")
    push.add_argument("--except", dest="left_out", metavar="LIST", help="without these")
    push.add_argument("--wave", type=int, default=1, metavar="N", help="so many at a time (default 1)")
    add_wait(push, WAIT_S, ", a day; for one station to keep it")
    push.add_argument("--key", type=Path, metavar="FILE", help="the private key that signs a model's orders")


def main(args: argparse.Namespace) -> int:
    match args.what:
        case []:
            return _list(args)
        case ["push", "config" | "model" as kind, file]:
            return _push(args, kind, Path(file))
        case _:
            raise UsageError(f"talus fleet {' '.join(args.what)} is not a command", "see talus fleet --help")


def _list(args: argparse.Namespace) -> int:
    from desk.push.fleet import look

    members = list(look(settings_of(args)).values())
    now_ns = time.time_ns()
    if args.json:
        print(json.dumps([_record(member, now_ns) for member in members], indent=1))
    else:
        print(_table([_HEAD, *(_line(member, now_ns) for member in members)]))
    ill = sum(member.fault(now_ns) is not None for member in members)
    print(f"talus fleet: {counted(len(members), 'station')}, {ill} not well", file=sys.stderr)
    return int(ill > 0 or not members)


def _record(member: Member, now_ns: int) -> dict[str, Any]:
    fault, age_s = member.fault(now_ns), member.age_s(now_ns)
    return {
        "station": member.name,
        "ok": fault is None,
        "fault": fault,
        "availability": member.availability,
        "version": member.state.versions.get("talus") if member.state else None,
        "model": member.serving,
        "config": member.revision,
        "hearing": member.hearing,
        "voice": member.voice,
        "health_age_s": None if age_s is None else round(age_s),
    }


def _line(member: Member, now_ns: int) -> tuple[str, ...]:
    told = _record(member, now_ns)
    share, age_s = told["hearing"], told["health_age_s"]
    texts = (
        member.name, told["fault"] or "ok", told["version"], told["model"], told["config"],
        None if share is None else f"{100 * share:.0f} %", told["voice"], None if age_s is None else f"{age_s} s",
    )  # fmt: skip
    return tuple("-" if text is None else escaped(text) for text in texts)


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    return "\n".join(
        "  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _push(args: argparse.Namespace, kind: str, file: Path) -> int:
    from desk.push.fleet import look, roll_out

    if args.wave < 1:
        raise UsageError(f"--wave must be positive, not {args.wave}", "give a whole number from 1 on")
    if not args.all and args.stations is None:
        raise UsageError("for which stations?", "give --stations LIST or --all")
    settings = settings_of(args)
    order = _order(args, kind, file, settings)
    members = look(settings)
    names = _chosen(args, members)
    done = 0

    def begin(number: int, wave: Sequence[str]) -> None:
        print(f"wave {number}: {', '.join(wave)}", flush=True)

    def tell(name: str, reason: str | None) -> None:
        nonlocal done
        done += reason is None
        print(escaped(f"{name}: {'kept' if reason is None else reason}"), flush=True)

    stopped = roll_out(names, args.wave, order, members, again=lambda: look(settings), begin=begin, tell=tell)
    if stopped is None:
        print(f"talus fleet: kept by {counted(done, 'station')} now, by {len(names) - done} before", file=sys.stderr)
        return 0
    reasons = "; ".join(f"{name} {reason}" for name, reason in sorted(stopped.reasons.items()))
    print(escaped(f"talus fleet: stopped: {reasons}"), file=sys.stderr)
    print(
        f"talus fleet: {counted(len(stopped.left), 'station')} not begun; the same command goes on, "
        "and passes over those that have kept it",
        file=sys.stderr,
    )
    return 1


def _order(args: argparse.Namespace, kind: str, file: Path, settings: MqttSettings) -> Order:
    from agent.remote.gate import MAX_BYTES
    from desk.push.configuration import stations_of
    from desk.push.fleet import configuration_order, model_order
    from desk.push.signing import SigningKey

    if kind == "model":
        if args.key is None:
            raise UsageError("a model's orders are signed here, one for each station", "give --key FILE")
        return model_order(settings, file, SigningKey.load(args.key), args.wait, VALID_DAYS)
    try:
        payload = file.read_bytes()[: MAX_BYTES + 1].strip()
    except OSError as error:
        raise ControlError("malformed", f"{file}: {error.strerror}", "`talus config sign` makes one") from None
    stations_of(payload)
    return configuration_order(settings, payload, args.wait)


def _chosen(args: argparse.Namespace, members: Mapping[str, Member]) -> list[str]:
    """The stations, each once: those of a pattern as the broker knows them, in the order of their names."""
    patterns = ["*"] if args.all else [one.strip() for one in args.stations.split(",") if one.strip()]
    known = [name for name, member in members.items() if member.availability]
    names: dict[str, None] = {}
    for one in patterns:
        several = any(letter in one for letter in "*?[")
        found = [name for name in known if fnmatchcase(name, one)] if several else [station_named(one).short]
        if not found:
            raise UsageError(f"the broker knows no station {one}", "see talus fleet --broker URL")
        names |= dict.fromkeys(found)
    left_out = [one.strip() for one in (args.left_out or "").split(",")]
    return [name for name in names if not any(fnmatchcase(name, one) for one in left_out)]
