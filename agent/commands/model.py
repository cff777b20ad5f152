"""``talus model``: change a station's model from afar, signed."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from agent.commands.ask import give
from agent.commands.desk import ANSWER_S, VALID_DAYS, add_broker, settings_of, station_named
from agent.config_words import printable
from agent.errors import ControlError, UsageError

if TYPE_CHECKING:
    from agent.schema import ModelReport

EXAMPLE = (
    "talus model push bundle.zip --key ops.pem --station XX.SLOPE --broker mqtts://ops@broker.example\n"
    "  talus model show --station XX.SLOPE --broker mqtts://ops@broker.example\n"
    "  talus model rollback --key ops.pem --station XX.SLOPE --broker mqtts://ops@broker.example"
)
PUSH_S = 3600.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    push = actions.add_parser("push", help="send a bundle and say how it fares")
    push.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder or zip")
    push.add_argument("--hold", action="store_true", help="try it in the shadow, and wait for promote")
    push.add_argument("--url", metavar="URL", help="https address from which the station may fetch the zip")
    push.add_argument(
        "--follow", action="store_true", help="wait until it is kept (default: until it is in the shadow)"
    )
    push.add_argument("--wait", type=float, default=PUSH_S, metavar="SECONDS", help="at most so long")
    show = actions.add_parser("show", help="say which model serves, and how an order stands")
    show.add_argument("--json", action="store_true", help="the station's report as it came")
    promote = actions.add_parser("promote", help="take the model that is in the shadow, now")
    rollback = actions.add_parser("rollback", help="go back to the model before")
    for one in (push, show, promote, rollback):
        one.add_argument("--station", required=True, metavar="NET.STA")
        add_broker(one)
    for one in (push, promote, rollback):
        one.add_argument("--key", type=Path, required=True, metavar="FILE", help="the private key")


def main(args: argparse.Namespace) -> int:
    match args.action:
        case "push":
            return _push(args)
        case "show":
            return _show(args)
        case "promote":
            return give(args, {"do": "promote_model"}, ANSWER_S)
        case _:
            return give(args, {"do": "roll_back_model"}, ANSWER_S)


def _push(args: argparse.Namespace) -> int:
    from agent.control.keys import SigningKey
    from agent.control.model_client import offer, push

    if args.hold and args.follow:
        raise UsageError("--hold and --follow contradict each other", "a model on hold is kept after promote")
    key, station = SigningKey.load(args.key), station_named(args.station)
    offered = offer(
        args.bundle, key, station, promote="hold" if args.hold else "auto", url=args.url, valid_days=VALID_DAYS
    )
    told: list[str] = []

    def tell(report: ModelReport) -> None:
        line = _told(report)
        if [line] != told[-1:]:
            told.append(line)
            print(line, flush=True)

    until = {"kept"} if args.follow else {"shadow", "ready", "probation", "kept"}
    last = push(settings_of(args), station, offered, until=until, timeout_s=args.wait, tell=tell)
    return int(last.phase in ("refused", "rolled_back"))


def _show(args: argparse.Namespace) -> int:
    from agent.control.model_client import look

    report = look(settings_of(args), station_named(args.station))
    if report is None:
        raise ControlError(
            "silent", f"{args.station} has said nothing of its model", "does its file have control.keys?"
        )
    print(report.model_dump_json() if args.json else f"{report.time}  {_told(report)}")
    return 0


def _told(report: ModelReport) -> str:
    name = report.ordered.name if report.ordered else report.serving.name
    words = f"{report.station}: {name}: {report.phase.replace('_', ' ')}"
    if report.phase == "fetching":
        words += f", {report.got} of {report.pieces} pieces"
    if report.agreement is not None and report.agreement.windows:
        words += f", agrees on {report.agreement.same} of {report.agreement.windows} windows"
    if report.reason:
        words += f" ({report.reason})"
    words += f"; {report.serving.name} serves"
    return printable(words)
