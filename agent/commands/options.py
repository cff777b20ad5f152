"""What the commands of an operator's desk share: the broker and the station that they are about."""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from agent.errors import ControlError, DataError, UsageError

if TYPE_CHECKING:
    from agent.config.broker import MqttSettings
    from agent.types import StationId

    Actions: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]

PASSWORD_VARIABLE = "TALUS_MQTT_PASSWORD"  # noqa: S105
VALID_DAYS = 7.0
"""Within which an order must have been accepted."""
ANSWER_S = 30.0
"""How long an answer is waited for."""


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
    from agent.config.broker import MqttSettings
    from agent.config.tls import TlsConfig

    settings = MqttSettings.from_url(args.broker or "", os.environ.get(PASSWORD_VARIABLE))
    if args.ca is None:
        return settings
    if settings.tls is None or args.broker is None:
        raise UsageError("--ca is for TLS", "write --broker mqtts://...")
    return dataclasses.replace(settings, tls=TlsConfig(ca_file=Path(args.ca)))


def add_action(actions: Actions, name: str, summary: str, example: str) -> argparse.ArgumentParser:
    """One action of a command, with what it does and how it is typed in its own help."""
    return actions.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def write(path: Path, content: bytes) -> None:
    """
    Raises:
        UsageError: the file cannot be written.
    """
    try:
        path.write_bytes(content)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", "name a file in a folder that you may write") from None


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


def silent(station: str, what: str) -> ControlError:
    """The error for a station of which the broker holds no report."""
    hint = "is its name right, was it ever connected to this broker, and has its file control.keys?"
    return ControlError("silent", f"no {what} report from {station} yet", hint)


def station_named(name: str) -> StationId:
    """
    Raises:
        UsageError: not ``NET.STA``.
    """
    from agent.remote.envelope import STATION_NAME
    from agent.types import StationId

    network, dot, station = name.partition(".")
    if not (dot and STATION_NAME.fullmatch(name)):
        raise UsageError(f"{name!r} is no station", "write NETWORK.STATION in capitals, such as XX.SLOPE")
    return StationId(network, station, "", "")
