"""``talus watch``: a subscriber's view of a broker."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys

from agent.errors import UsageError

EXAMPLE = (
    "talus watch --broker mqtt://localhost:1883\n  talus watch --broker mqtts://user@host --format json --session desk"
)
PASSWORD_VARIABLE = "TALUS_MQTT_PASSWORD"  # noqa: S105


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--broker",
        required=True,
        metavar="URL",
        help=f"mqtt://[user@]host[:port][/prefix], or mqtts:// for TLS; the password comes from {PASSWORD_VARIABLE}",
    )
    parser.add_argument("--format", choices=("text", "json"), default="text", help="a line of text or the payload")
    parser.add_argument("--limit", type=int, metavar="N", help="end after so many events and alerts")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="end after so long")
    parser.add_argument(
        "--session", metavar="NAME", help="have the broker keep, under this name, what comes while no one watches"
    )
    parser.add_argument("--ca", metavar="FILE", help="certificates to trust, PEM (default: the system's)")


def main(args: argparse.Namespace) -> int:
    from agent.mqtt_settings import MqttSettings, TlsSettings
    from agent.watch import watch

    if args.limit is not None and args.limit < 1:
        raise UsageError(f"--limit {args.limit}", "give 1 or more")
    settings = MqttSettings.from_url(args.broker, os.environ.get(PASSWORD_VARIABLE))
    if args.ca is not None:
        settings = dataclasses.replace(settings, tls=TlsSettings(ca=args.ca))
    tally = watch(
        settings,
        sys.stdout,
        sys.stderr,
        style=args.format,
        limit=args.limit,
        timeout_s=args.timeout,
        session=args.session,
    )
    print(
        f"talus watch: {tally.printed} events and alerts, {tally.duplicates} duplicates, {tally.refused} refused",
        file=sys.stderr,
    )
    return 0
