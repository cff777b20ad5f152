"""What commands share: the broker that is named, times, and output whose reader may leave."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from agent.errors import DataError, UsageError

if TYPE_CHECKING:
    from agent.config.broker import MqttSettings

PASSWORD_VARIABLE = "TALUS_MQTT_PASSWORD"  # noqa: S105


def add_broker(parser: argparse.ArgumentParser, purpose: str = "", *, required: bool = True) -> None:
    """The options ``--broker`` and ``--ca``, the same wherever a broker is named; ``purpose`` begins the help."""
    parser.add_argument(
        "--broker",
        required=required,
        metavar="URL",
        help=f"{purpose}mqtt://[user@]host[:port][/prefix], or mqtts://; the password comes from {PASSWORD_VARIABLE}",
    )
    parser.add_argument("--ca", metavar="FILE", help="certificates to trust, PEM (default: the system's)")


def settings_of(args: argparse.Namespace) -> MqttSettings:
    """How to reach the broker that was named; the password comes from the environment.

    Raises:
        ConfigError: not the address of a broker.
        UsageError: ``--ca`` without TLS.
    """
    from agent.config.broker import MqttSettings, TlsConfig

    settings = MqttSettings.from_url(args.broker or "", os.environ.get(PASSWORD_VARIABLE))
    if args.ca is None:
        return settings
    if settings.tls is None or args.broker is None:
        raise UsageError("--ca is for TLS", "write --broker mqtts://...")
    return settings.model_copy(update={"tls": TlsConfig(ca_file=Path(args.ca))})


def check_time(option: str, text: str) -> None:
    """
    Raises:
        UsageError: not a time.
    """
    from agent.types import parse_ns

    try:
        parse_ns(text)
    except DataError as error:
        raise UsageError(f"{option}: {error.message}", error.hint) from None


def say(text: object) -> None:
    """Print a line at once. A reader that has gone (``| head``) changes neither the command nor its exit status."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        discard_output()


def discard_output() -> None:
    """Write nothing to standard output any more; Python would complain when it closes what nobody reads."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
