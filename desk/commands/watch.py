"""``talus watch``: a subscriber's view of a broker."""

from __future__ import annotations

import argparse
import importlib.util
import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from agent.commands.options import add_broker, settings_of
from agent.errors import ConfigError, UsageError
from agent.types import counted

if TYPE_CHECKING:
    from desk.formats import Format
    from desk.formats.folder import DocumentFolder
    from desk.formats.picture import Pictures
    from desk.watch import Watched

EXAMPLE = (
    "talus watch --broker mqtt://localhost:1883\n"
    "  talus watch --broker mqtts://user@host --format json --session desk\n"
    "  talus watch --broker mqtts://user@host --format cap --out /srv/cap --session cap --cap-sender slope@example.org"
)
_CAP = ("cap_sender", "cap_radius", "cap_public", "cap_test")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_broker(parser)
    parser.add_argument(
        "--format",
        choices=("text", "json", "quakeml", "cap", "picture"),
        default="text",
        help="a line of text, the payload, or a document: QuakeML 1.2 of every event, CAP 1.2 of every alert; or a "
        "picture of each event whose record a station sends (evidence.send: alerts)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="documents as files, whose paths are printed: QuakeML one an event (its newest revision), CAP one each; "
        "pictures and the records that they show",
    )
    parser.add_argument("--cap-sender", metavar="NAME", help="CAP: who sends, such as slope@example.org")
    parser.add_argument("--cap-radius", type=float, metavar="KM", help="CAP: circle around the station (default 1)")
    parser.add_argument("--cap-public", action="store_true", help="CAP: scope Public (default: Restricted)")
    parser.add_argument("--cap-test", action="store_true", help="CAP: status Test on everything")
    parser.add_argument("--limit", type=int, metavar="N", help="end after so many events and alerts")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="end after so long")
    parser.add_argument(
        "--session", metavar="NAME", help="have the broker keep, under this name, what comes while no one watches"
    )


def main(args: argparse.Namespace) -> int:
    from desk.watch import Watched, watch

    if args.limit is not None and args.limit < 1:
        raise UsageError(f"--limit {args.limit}", "give 1 or more")
    if args.timeout is not None and not args.timeout > 0:
        raise UsageError(f"--timeout {args.timeout:g}", "give seconds above 0, or leave it out to watch on")
    documents, folder = _documents(args)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a text that this terminal has no letters for ends nothing
    settings = settings_of(args)
    tally = Watched()
    try:
        watch(
            settings,
            sys.stdout,
            sys.stderr,
            style="json" if args.format == "json" else "text",
            documents=documents,
            folder=folder,
            pictures=_pictures(args),
            limit=args.limit,
            timeout_s=args.timeout,
            session=args.session,
            tally=tally,
        )
    except KeyboardInterrupt:
        _sum_up(tally)
        raise
    _sum_up(tally)
    return 0


def _sum_up(tally: Watched) -> None:
    print(
        f"talus watch: {counted(tally.printed, 'message')} shown, {counted(tally.duplicates, 'duplicate')}, "
        f"{tally.refused} refused",
        file=sys.stderr,
    )


def _pictures(args: argparse.Namespace) -> Pictures | None:
    """The folder of pictures; None for other formats.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    if args.format != "picture":
        return None
    if args.out is None:
        raise UsageError("pictures are files", "add --out FOLDER")
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("pictures need matplotlib", "pip install 'talus-agent[plot]'")
    from desk.formats.folder import DocumentFolder
    from desk.formats.picture import Pictures

    return Pictures(DocumentFolder(args.out).path)


def _documents(args: argparse.Namespace) -> tuple[Format | None, DocumentFolder | None]:
    """The chosen standard and where its documents go; both None for text and JSON."""
    given = [f"--{name.replace('_', '-')}" for name in _CAP if getattr(args, name) not in (None, False)]
    if given and args.format != "cap":
        raise UsageError(f"{given[0]} is for --format cap", "add --format cap, or leave it out")
    if args.format not in ("quakeml", "cap"):
        if args.out is not None and args.format != "picture":
            raise UsageError("--out is for documents", "add --format quakeml or cap, or redirect standard output")
        return None, None
    from desk.formats.folder import DocumentFolder

    folder = DocumentFolder(args.out) if args.out is not None else None
    if args.format == "quakeml":
        from desk.formats.quakeml import QuakeML

        return QuakeML(), folder
    from desk.formats.cap import Cap, CapOptions

    radius_km = 1.0 if args.cap_radius is None else args.cap_radius
    return Cap(CapOptions(args.cap_sender, args.cap_test, args.cap_public, radius_km, args.out)), folder
