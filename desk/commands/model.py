"""``talus model``: change a station's model remotely, signed."""

from __future__ import annotations

import argparse
import time
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from agent.commands.options import add_broker, settings_of
from agent.config.explain import escaped
from agent.errors import ControlError, UsageError
from desk.commands.ask import give
from desk.commands.options import ANSWER_S, VALID_DAYS, add_action, add_wait, silent, station_named
from desk.push.presence import tell_absence, waiting

if TYPE_CHECKING:
    from agent.messages.schema import ModelReport

_WHERE = "--station XX.SLOPE --broker mqtts://ops@broker.example"
EXAMPLES = {
    "push": f"talus model push bundle.zip --key ops.pem {_WHERE} --follow",
    "show": f"talus model show {_WHERE}",
    "promote": f"talus model promote --key ops.pem {_WHERE}",
    "rollback": f"talus model rollback --key ops.pem {_WHERE}",
}
EXAMPLE = "\n  ".join(EXAMPLES.values())
PUSH_S = 3600.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    push = add_action(actions, "push", "send a bundle and report its progress", EXAMPLES["push"])
    push.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder or zip")
    push.add_argument("--hold", action="store_true", help="try it in the shadow, and wait for promote")
    push.add_argument("--url", metavar="URL", help="https address from which the station may fetch the zip")
    push.add_argument(
        "--follow", action="store_true", help="wait until it is kept (default: until it is in the shadow)"
    )
    add_wait(push, PUSH_S)
    show = add_action(actions, "show", "show which model serves, and the state of an order", EXAMPLES["show"])
    show.add_argument("--json", action="store_true", help="the station's report as it came")
    promote = add_action(actions, "promote", "take the model that is in the shadow, now", EXAMPLES["promote"])
    rollback = add_action(actions, "rollback", "go back to the model before", EXAMPLES["rollback"])
    for one in (push, show, promote, rollback):
        one.add_argument("--station", required=True, metavar="NET.STA", help="which station")
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
            return _exchange(args, "promote_model", {"probation", "kept", "rolled_back", "refused"})
        case _:
            return _exchange(args, "roll_back_model", {"rolled_back", "refused"})


def _exchange(args: argparse.Namespace, what: str, ends: Collection[str]) -> int:
    """Order it, and wait until the station says what serves now; the exit status."""
    from desk.push.models import look

    settings, station = settings_of(args), station_named(args.station)
    before = look(settings, station)
    give(args, {"do": what}, ANSWER_S)
    deadline = time.monotonic() + ANSWER_S
    while time.monotonic() < deadline:
        report = look(settings, station)
        if report is not None and report.phase in ends and (before is None or report.time > before.time):
            print(_told(report))
            return int(report.phase == "refused")
    raise ControlError("timeout", f"{args.station} is not done yet", "`talus model show` says how it stands")


def _push(args: argparse.Namespace) -> int:
    from desk.push.models import offer, push
    from desk.push.signing import SigningKey

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
    settings = settings_of(args)
    tell_absence("model", settings, station, args.wait)
    last = push(waiting("model", settings, station, args.wait), offered, until=until, tell=tell)
    return int(last.phase in ("refused", "rolled_back"))


def _show(args: argparse.Namespace) -> int:
    from desk.push.models import look

    report = look(settings_of(args), station_named(args.station))
    if report is None:
        raise silent(args.station, "model")
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
    return escaped(words)
