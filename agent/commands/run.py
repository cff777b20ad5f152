"""``talus run``: the service, until it is told to stop."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

EXAMPLE = "talus run --config /etc/talus/station.yaml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="configuration file (YAML)")


def main(args: argparse.Namespace) -> int:
    stamp = "" if "JOURNAL_STREAM" in os.environ else "%(asctime)s "  # the journal has its own
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format=f"{stamp}%(levelname)s %(name)s: %(message)s")
    from agent.config import load
    from agent.service import Service

    os.umask(0o077)  # what it writes is for its user alone
    config = load(args.config)
    logging.getLogger().setLevel(config.log.level.upper())
    return Service(config, lambda: load(args.config)).run()
