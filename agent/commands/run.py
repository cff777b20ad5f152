"""``talus run``: the service, until it is told to stop."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path

from agent.host.journal import log_to_stderr

EXAMPLE = "talus run --config /etc/talus/station.yaml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="configuration file (YAML)")


def main(args: argparse.Namespace) -> int:
    log_to_stderr()
    from agent.config.file import load
    from agent.service.service import Service

    os.umask(0o077)  # what it writes is for its user alone
    config = load(args.config)
    logging.getLogger().setLevel(config.log.level.upper())
    return Service(config, lambda: load(args.config)).run()
