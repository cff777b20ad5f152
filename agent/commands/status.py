"""``talus status``: how the agent on this machine is."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

EXAMPLE = "talus status\n  talus status --config /etc/talus/station.yaml\n  talus status --json | jq .health.reasons"
DEFAULT_STATE = Path("/var/lib/talus")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--config", type=Path, metavar="FILE", help="configuration that names the state folder")
    where.add_argument(
        "--state", type=Path, default=DEFAULT_STATE, metavar="FOLDER", help=f"state folder (default {DEFAULT_STATE})"
    )
    parser.add_argument("--json", action="store_true", help="the agent's last report as JSON, with the verdict")


def main(args: argparse.Namespace) -> int:
    """0 when all is well; 1 when the agent is degraded, silent, stopped or gone."""
    from agent.commands.options import say
    from agent.health.status import read, screen

    folder = args.state
    if args.config is not None:
        from agent.config.file import load

        folder = load(args.config).state_dir
    status = read(folder)
    if args.json:
        import json

        body = {"verdict": status.verdict, "age_s": round(status.age_s, 1), **status.said.model_dump(by_alias=True)}
        say(json.dumps(body, ensure_ascii=False))
    else:
        say(screen(status, colour=sys.stdout.isatty() and not os.environ.get("NO_COLOR")))
    return 0 if status.verdict == "ok" else 1
