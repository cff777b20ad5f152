"""``talus ask``: give a station a command, signed, and print its answer."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

from agent.commands.desk import ANSWER_S, add_broker, settings_of, station_named
from agent.errors import ControlError, UsageError

EXAMPLE = (
    "talus ask self-test --key ops.pem --station XX.SLOPE --broker mqtts://ops@broker.example\n"
    "  talus ask test-alarm --key ops.pem --station XX.SLOPE --broker mqtts://ops@broker.example\n"
    "  talus ask evidence XX.SLOPE.00.HH-20260101T030000.120Z --out slide.mseed --key ops.pem"
    " --station XX.SLOPE --broker URL"
)
EVIDENCE_S = 600.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="COMMAND", required=True)
    evidence = actions.add_parser("evidence", help="fetch the record of an event as miniSEED")
    evidence.add_argument("event", metavar="EVENT", help="its identifier")
    evidence.add_argument("--out", type=Path, required=True, metavar="FILE", help="where the record goes")
    for name, words in (
        ("test-alarm", "have an alert sent that is marked as an exercise"),
        ("self-test", "run the golden windows and say how the station is"),
    ):
        actions.add_parser(name, help=words)
    for one in actions.choices.values():
        one.add_argument("--station", required=True, metavar="NET.STA")
        one.add_argument("--key", type=Path, required=True, metavar="FILE", help="the private key")
        one.add_argument("--wait", type=float, metavar="SECONDS", help="for the answer")
        add_broker(one)


def main(args: argparse.Namespace) -> int:
    content = {"do": args.action.replace("-", "_")}
    if args.action == "evidence":
        if args.out.exists():
            raise UsageError(f"{args.out} exists", "name another file")
        return give(args, {**content, "event": args.event}, args.wait or EVIDENCE_S, args.out)
    return give(args, content, args.wait or ANSWER_S)


def give(args: argparse.Namespace, content: dict[str, object], wait_s: float, out: Path | None = None) -> int:
    """Sign and send a command, print its answer, write the evidence that came with it; the exit status."""
    from agent.control.keys import SigningKey
    from agent.control.model_client import ask, command

    station = station_named(args.station)
    payload = command(SigningKey.load(args.key), station, content)
    event = str(content["event"]) if out is not None else None
    answer, pieces = ask(settings_of(args), station, payload, wait_s, event)
    if answer.status != "done":
        raise ControlError(answer.kind or answer.status, f"{args.station}: {answer.status}: {answer.reason}")
    if out is not None:
        raw = b"".join(pieces[number] for number in sorted(pieces))
        if hashlib.sha256(raw).hexdigest() != answer.result["sha256"]:
            raise ControlError("evidence", "what came is not what the station sent", "ask again")
        out.write_bytes(raw)
        print(f"{args.station}: {out}: {len(raw)} bytes, as the station has them")
        return 0
    words = ", ".join(f"{name} {value}" for name, value in answer.result.items() if value is not None)
    print(f"{args.station}: {answer.command}: done, {words}")
    return 0
