"""The certificates with which the station connects, and when they end: a connection outlives its certificate, and the
station would be mute, or deaf, from the next one on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

from agent.config.broker import TlsConfig
from agent.config.file import Config
from agent.config.sources import SeedLinkConfig
from agent.host.tls import expiry
from agent.reasons import Reason

LOOK = timedelta(minutes=10)
"""How often the files are read."""


class Certificates:
    """For one thread."""

    def __init__(self, config: Config) -> None:
        self._files = list(_files(config))
        self._looked: datetime | None = None
        self._found: list[Reason] = []

    def reasons(self, now: datetime | None = None) -> list[Reason]:
        """Those that have expired or will soon; ``now``: UTC, by default the machine's."""
        now = now or datetime.now(timezone.utc)
        if self._looked is None or not timedelta(0) <= now - self._looked < LOOK:
            self._looked = now
            self._found = [reason for name, path in self._files for reason in _judge(name, path, now)]
        return self._found


def _files(config: Config) -> Iterator[tuple[str, Path]]:
    sections: list[tuple[str, TlsConfig | None]] = [("mqtt.tls", config.mqtt.tls if config.mqtt else None)]
    if isinstance(config.source, SeedLinkConfig):
        sections += [(f"source.servers[{n}].tls", server.tls) for n, server in enumerate(config.source.servers)]
    for name, tls in sections:
        if tls is not None and tls.ca_file is not None:
            yield f"{name}.ca_file", tls.ca_file
        if tls is not None and tls.cert_file is not None:
            yield f"{name}.cert_file", tls.cert_file


def _judge(name: str, path: Path, now: datetime) -> Iterator[Reason]:
    with contextlib.suppress(OSError, ValueError):  # the connection tells of these
        if (when := expiry(path, now)) is not None:
            text = f"the certificate of {name} ({path}) {when}: there will be no new connection with it"
            yield Reason("certificate", text, name)
