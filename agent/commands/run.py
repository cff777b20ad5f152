"""``talus run``: the service, until it is told to stop."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from pathlib import Path

EXAMPLE = "talus run --config /etc/talus/station.yaml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="configuration file (YAML)")


def main(args: argparse.Namespace) -> int:
    _log_to_stderr()
    from agent.config.file import load
    from agent.service.service import Service

    os.umask(0o077)  # what it writes is for its user alone
    config = load(args.config)
    logging.getLogger().setLevel(config.log.level.upper())
    return Service(config, lambda: load(args.config)).run()


def _log_to_stderr() -> None:
    """Log in UTC, as everything else that the agent says; the journal stamps its lines itself."""
    stamp = "" if os.environ.get("JOURNAL_STREAM") else "%(asctime)s.%(msecs)03dZ "
    formatter = logging.Formatter(f"{stamp}%(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.INFO, handlers=[handler])
