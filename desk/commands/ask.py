"""``talus ask``: give a station a command, signed, and print its answer."""

from __future__ import annotations

import argparse
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from agent.commands.options import add_broker, settings_of
from agent.errors import ControlError, UsageError
from desk.commands.options import ANSWER_S, add_action, add_wait, station_named, write
from desk.push.presence import tell_absence, waiting

if TYPE_CHECKING:
    from agent.messages.schema import Response

_WHERE = "--key ops.pem --station XX.SLOPE --broker mqtts://ops@broker.example"
EXAMPLES = {
    "self-test": f"talus ask self-test {_WHERE}",
    "test-alarm": f"talus ask test-alarm {_WHERE}",
    "evidence": f"talus ask evidence XX.SLOPE.00.HH-20260101T030000.120Z --out event.mseed {_WHERE}",
}
EXAMPLE = "\n  ".join(EXAMPLES.values())
EVIDENCE_S = 600.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="COMMAND", required=True)
    evidence = add_action(actions, "evidence", "fetch the record of an event as miniSEED", EXAMPLES["evidence"])
    evidence.add_argument("event", metavar="EVENT", help="its `id`, from `talus watch` or the log")
    evidence.add_argument("--out", type=Path, required=True, metavar="FILE", help="where the record goes")
    for name, words in (
        ("test-alarm", "send a test alert, marked as an exercise"),
        ("self-test", "run the golden windows and say how the station is"),
    ):
        add_action(actions, name, words, EXAMPLES[name])
    for name, one in actions.choices.items():
        one.add_argument("--station", required=True, metavar="NET.STA", help="which station")
        one.add_argument("--key", type=Path, required=True, metavar="FILE", help="the private key")
        add_wait(one, EVIDENCE_S if name == "evidence" else ANSWER_S)
        add_broker(one)


def main(args: argparse.Namespace) -> int:
    content = {"do": args.action.replace("-", "_")}
    if args.action == "evidence":
        if args.out.exists() or not os.access(args.out.parent, os.W_OK):
            why = "exists" if args.out.exists() else "cannot be written"
            raise UsageError(f"{args.out} {why}", "name another file, in a folder that you may write")
        return _give(args, {**content, "event": args.event}, args.wait, args.out)
    return _give(args, content, args.wait)


def give(args: argparse.Namespace, content: dict[str, object], wait_s: float) -> tuple[Response, dict[int, bytes]]:
    """Sign and send a command; its answer, and the pieces of a record that came with it.

    Raises:
        ControlError: the station refuses, fails, or does not answer.
    """
    from desk.push.models import ask, command
    from desk.push.signing import SigningKey

    station, settings = station_named(args.station), settings_of(args)
    payload = command(SigningKey.load(args.key), station, content)
    tell_absence(args.command, settings, station, wait_s)
    wait = waiting(args.command, settings, station, wait_s)
    answer, pieces = ask(wait, payload, str(content["do"]), str(content.get("event", "")) or None)
    if answer.status != "done":
        raise ControlError(answer.kind or answer.status, f"{args.station}: {answer.status}: {answer.reason}")
    return answer, pieces


def _give(args: argparse.Namespace, content: dict[str, object], wait_s: float, out: Path | None = None) -> int:
    """Print the answer, write the evidence that came with it; the exit status."""
    answer, pieces = give(args, content, wait_s)
    if out is not None:
        raw = b"".join(pieces[number] for number in sorted(pieces))
        if hashlib.sha256(raw).hexdigest() != answer.result["sha256"]:
            raise ControlError("evidence", "what came is not what the station sent", "ask again")
        write(out, raw)
        print(f"{args.station}: {out}: {len(raw)} bytes, as the station has them")
        return 0
    words = ", ".join(f"{name} {value}" for name, value in answer.result.items() if value is not None)
    print(f"{args.station}: {answer.command}: done, {words}")
    return 0
