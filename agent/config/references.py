"""What a configuration refers to: is it there, and is a secret kept as one?"""

from __future__ import annotations

import contextlib
import datetime
import glob
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agent.config.broker import MqttConfig, TlsConfig
from agent.config.outputs import is_loopback
from agent.config.sources import SeedLinkServerConfig
from agent.config.station import Config
from agent.config.stations import undeclared
from agent.config.yaml import Loc

CREDENTIALS = Path("/run/credentials")
"""systemd's folder: what is in it exists only while the service runs, and only for the service."""
SLOW_BANDS = {"M": 10.0, "L": 1.0, "V": 0.1, "U": 0.01}
"""Largest samples a second of the FDSN band codes that are slow."""
STARTED = "SYSTEMD_EXEC_PID"
"""The variable by which systemd tells a process that it started it."""


@dataclass(frozen=True, slots=True)
class Remark:
    """Something about the surroundings of a configuration; ``fatal`` if the agent cannot start like this."""

    loc: Loc
    reason: str
    fatal: bool


def remarks(config: Config) -> Iterator[Remark]:
    """Everything that is amiss around ``config`` on this machine, now."""
    patterns = config.source.paths if config.source.kind == "archive" else ()
    for index, pattern in enumerate(patterns):
        if not Path(pattern).exists() and next(glob.iglob(pattern, recursive=True), None) is None:  # noqa: PTH207 - absolute
            yield Remark(("source", "paths", index), "nothing is there at the moment", False)
    for index, server in enumerate(config.source.servers if config.source.kind == "seedlink" else ()):
        yield from _tls(("source", "servers", index, "tls"), server.tls)
        yield from _too_slow(index, server, config.tunables.trigger.low_hz)
    for loc, name in undeclared(config):
        own = f"{config.station.network}.{config.station.station}"
        reason = (
            f"is not this agent's own station ({own}): its alerts go out under {name.replace('.', '/')}, which the"
            " broker's access list must allow; if that is meant, list it in the section stations"
        )
        yield Remark(loc, reason, False)
    if config.classifier.bundle is not None and not config.classifier.bundle.exists():
        yield Remark(("classifier", "bundle"), "there is no such file or folder", True)
    if config.mqtt is not None:
        yield from _mqtt(config.mqtt)
    elif config.control.keys:
        yield Remark(("control", "keys"), "no remote order can come without a section mqtt", False)


def _too_slow(index: int, server: SeedLinkServerConfig, low_hz: float) -> Iterator[Remark]:
    """Channels whose band code stands for so few samples a second that the trigger cannot use them."""
    from agent.config.station import HIGHEST_CORNER

    for number, station in enumerate(server.stations):
        for place, selector in enumerate(station.selectors):
            rate_hz = SLOW_BANDS.get(_band(selector))
            if rate_hz is not None and HIGHEST_CORNER * rate_hz / 2 <= low_hz:
                loc = ("source", "servers", index, "stations", number, "selectors", place)
                reason = f"has at most {rate_hz:g} samples a second, too few for a trigger from {low_hz:g} Hz on"
                yield Remark(loc, f"{reason}; name the HH?, EH? or BH? channels", False)


def _band(selector: str) -> str:
    """The band code that a selector asks for; empty for an exclusion."""
    name = selector.partition(".")[0]
    if name.startswith("!"):
        return ""
    return name.split("_")[1] if "_" in name else name[-3]


def _tls(loc: Loc, tls: TlsConfig | None) -> Iterator[Remark]:
    for name in ("ca_file", "cert_file", "key_file"):
        path = getattr(tls, name, None)
        if path is None:
            continue
        found = tuple(_file((*loc, name), path, secret=name == "key_file"))
        yield from found
        if name != "key_file" and not any(remark.fatal for remark in found):
            yield from _certificates((*loc, name), path)


def _certificates(loc: Loc, path: Path) -> Iterator[Remark]:
    from agent.host.tls import flaws

    with contextlib.suppress(OSError):  # told already
        for flaw in flaws(path, datetime.datetime.now(datetime.timezone.utc)):
            yield Remark(loc, flaw, False)


def _mqtt(mqtt: MqttConfig) -> Iterator[Remark]:
    if mqtt.password_file is not None:
        yield from _file(("mqtt", "password_file"), mqtt.password_file, secret=True)
    if mqtt.password_env is not None and not os.environ.get(mqtt.password_env):
        yield Remark(
            ("mqtt", "password_env"), "this variable is not set here; the agent needs it when it starts", False
        )
    yield from _tls(("mqtt", "tls"), mqtt.tls)
    if mqtt.tls is None and mqtt.username is not None and not is_loopback(mqtt.host):
        yield Remark(
            ("mqtt", "username"), "goes over the network in the clear with its password; add a tls section", False
        )


def _file(loc: Loc, path: Path, secret: bool) -> Iterator[Remark]:
    try:
        with path.open("rb"):
            mode = path.stat().st_mode
    except OSError as error:
        if CREDENTIALS not in path.parents:
            yield Remark(loc, f"cannot be read: {error.strerror}", True)
        elif os.environ.get(STARTED) == str(os.getpid()):
            reason = f"cannot be read: {error.strerror}; LoadCredential in a drop-in makes it (talus docs systemd)"
            yield Remark(loc, reason, True)
        return
    if secret and mode & (stat.S_IRWXG | stat.S_IRWXO):
        yield Remark(loc, f"others than its owner may use this file (mode {stat.S_IMODE(mode):04o}); chmod 600", False)
