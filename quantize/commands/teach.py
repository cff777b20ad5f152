"""``talus teach``: the shipped network learns a site's own labels, and is refused where that does not help.

The packages that it needs are those of the agent; nothing is trained but the last layer, in seconds.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from agent.errors import UsageError
from agent.inference.bundle import DEFAULT_BUNDLE

EXAMPLE = "talus teach labels/ --out taught/    then: talus model push --hold"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder",
        type=Path,
        nargs="?",
        help="folder with metadata.csv (trace_name, source_id, source_type, trace_onset_time) and its miniSEED files",
    )
    parser.add_argument("--reviews", type=Path, metavar="FOLDER", help="what the desk exported; its labels come first")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER",
        help="folder for the bundle; with --offer, for the windows and their metadata.csv",
    )  # fmt: skip
    parser.add_argument(
        "--bundle", type=Path, default=DEFAULT_BUNDLE, help="the bundle to teach (default: the agent's own)"
    )
    parser.add_argument("--site", help="name of the site, for the version and the card (default: the folder's)")
    parser.add_argument(
        "--offer",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="continuous records of the site: list 20 random windows of them to be labelled, and stop",
    )


def main(args: argparse.Namespace) -> int:
    """Teach, print what came of it, and write the bundle; the status is 1 where it is refused."""
    from quantize.teach.lesson import offer, teach

    if args.offer:
        print(offer(args.offer, args.out))
        return 0
    folders = [folder for folder in (args.folder, args.reviews) if folder is not None]
    if not folders:
        raise UsageError("there is nothing to learn from", "give a folder with metadata.csv, or --reviews")
    report, reasons = teach(args.bundle, args.folder, args.reviews, args.out, args.site)
    print(report)
    for reason in reasons:
        print(f"refused: {reason}", file=sys.stderr)
    return int(bool(reasons))
