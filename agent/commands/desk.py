"""What the commands of an operator's desk share: the broker and the station that they are about."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from agent.errors import UsageError

if TYPE_CHECKING:
    from agent.mqtt_settings import MqttSettings
    from agent.types import StationId

PASSWORD_VARIABLE = "TALUS_MQTT_PASSWORD"  # noqa: S105
VALID_DAYS = 7.0
"""Within which an order must have been accepted."""
ANSWER_S = 30.0
"""How long an answer is waited for."""


def add_broker(parser: argparse.ArgumentParser) -> None:
    """The option ``--broker``."""
    parser.add_argument(
        "--broker",
        required=True,
        metavar="URL",
        help=f"mqtt://[user@]host[:port][/prefix], or mqtts://; the password comes from {PASSWORD_VARIABLE}",
    )


def settings_of(args: argparse.Namespace) -> MqttSettings:
    """How to reach the broker that was named; the password comes from the environment."""
    from agent.mqtt_settings import MqttSettings

    return MqttSettings.from_url(args.broker, os.environ.get(PASSWORD_VARIABLE))


def station_named(name: str) -> StationId:
    """
    Raises:
        UsageError: not ``NET.STA``.
    """
    from agent.types import StationId

    network, dot, station = name.partition(".")
    if not (dot and network and station and name.replace(".", "").replace("-", "").isalnum()):
        raise UsageError(f"{name!r} is no station", "write NETWORK.STATION, such as XX.SLOPE")
    return StationId(network, station, "", "")
