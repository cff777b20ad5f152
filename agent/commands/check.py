"""``talus check``: every problem of a configuration file at once."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from agent.commands.options import say

EXAMPLE = "talus check --config /etc/talus/station.yaml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="configuration file (YAML)")
    parser.add_argument("--json", action="store_true", help="one JSON object a problem: file, line, field, reason, ...")


def main(args: argparse.Namespace) -> int:
    """Exit status 1 if the agent could not use the file; a warning alone leaves it at 0."""
    from agent.config.file import check, hint
    from agent.remote.doubts import about_file

    problems = check(args.config, about_file)
    is_bad = any(problem.level == "error" for problem in problems)
    if args.json:
        for problem in problems:
            say(json.dumps(asdict(problem), ensure_ascii=False))
        return int(is_bad)
    for problem in problems:
        print(problem, file=sys.stderr)
    if is_bad:
        print(f"  hint: {hint(problems)}", file=sys.stderr)
        return 1
    say(f"{args.config}: good")
    return 0
