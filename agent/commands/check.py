"""``talus check``: every problem of a configuration file at once."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

EXAMPLE = "talus check --config /etc/talus/station.yaml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="configuration file (YAML)")


def main(args: argparse.Namespace) -> int:
    """Exit status 1 if the agent could not use the file; a warning alone leaves it at 0."""
    from agent.config.file import check

    problems = check(args.config)
    for problem in problems:
        print(problem, file=sys.stderr)
    if any(problem.level == "error" for problem in problems):
        print("  hint: `talus docs configuration` lists every setting", file=sys.stderr)
        return 1
    print(f"{args.config}: good")
    return 0
