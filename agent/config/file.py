"""The configuration file: read, checked as a whole with what it refers to, frozen.

station.py    the sections, and the stations that they name; policy.py the alert rules and the coincidence of
              stations, sources.py the kinds of source, remote.py remote orders and trusted keys, broker.py the broker,
              outputs.py all others that are told
section.py    what all sections share
yaml.py       YAML to values with their lines
explain.py    what is wrong, in words
reference.py  the catalogue of settings
"""

from __future__ import annotations

import contextlib
import datetime
import glob
import hashlib
import itertools
import json
import logging
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from agent.config.broker import MqttConfig, TlsConfig
from agent.config.explain import dotted, escaped, shown, validate
from agent.config.outputs import is_loopback
from agent.config.policy import PolicyConfig
from agent.config.remote import ControlConfig
from agent.config.section import Section
from agent.config.sources import ArchiveConfig, SeedLinkServerConfig
from agent.config.station import (
    ClassifierConfig,
    Config,
    StationConfig,
    TriggerConfig,
    TunablesConfig,
    undeclared,
)
from agent.config.yaml import MAX_BYTES, Document, Fault, Loc, Spot, YamlFault, parse
from agent.errors import ConfigError, in_words

CREDENTIALS = Path("/run/credentials")
"""systemd's folder: what is in it exists only while the service runs, and only for the service."""
SLOW_BANDS = {"M": 10.0, "L": 1.0, "V": 0.1, "U": 0.01}
"""Largest samples a second of the FDSN band codes that are slow."""
STARTED = "SYSTEMD_EXEC_PID"
"""The variable by which systemd tells a process that it started it."""
__all__ = [
    "ArchiveConfig",
    "ClassifierConfig",
    "Config",
    "ConfigFileError",
    "ControlConfig",
    "MqttConfig",
    "PolicyConfig",
    "Problem",
    "StationConfig",
    "TriggerConfig",
    "TunablesConfig",
    "check",
    "digest",
    "load",
]
_log = logging.getLogger(__name__)
S = TypeVar("S", bound=Section)


@dataclass(frozen=True, slots=True)
class Remark:
    """Something about the surroundings of a configuration; ``fatal`` if the agent cannot start like this."""

    loc: Loc
    reason: str
    fatal: bool


def remarks(config: Config) -> Iterator[Remark]:
    """All problems of the surroundings of ``config`` on this machine, now."""
    patterns = config.source.paths if config.source.kind in ("archive", "folder") else ()
    for index, pattern in enumerate(map(str, patterns)):
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
            yield Remark(loc, f"cannot be read: {in_words(error)}", True)
        elif os.environ.get(STARTED) == str(os.getpid()):
            reason = f"cannot be read: {in_words(error)}; LoadCredential in a drop-in makes it (talus docs systemd)"
            yield Remark(loc, reason, True)
        return
    if secret and mode & (stat.S_IRWXG | stat.S_IRWXO):
        yield Remark(loc, f"others than its owner may use this file (mode {stat.S_IMODE(mode):04o}); chmod 600", False)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a file: where, what, and the value as written (None where there is none to show, or where
    it could be a secret). With ``level`` ``warning`` the agent starts all the same."""

    file: str
    line: int
    field: str
    reason: str
    value: str | None = None
    level: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}: " if self.line else f"{self.file}: "
        field = f"{self.field}: " if self.field else ""
        given = "" if self.value is None else f" (given: {self.value})"
        return f"{where}{'warning: ' if self.level == 'warning' else ''}{field}{self.reason}{given}"


_CANNOT_BE_READ = "cannot be read"


def hint(problems: Sequence[Problem], more: str = "") -> str:
    """What to do about the problems of one file."""
    if any(problem.reason.startswith(_CANNOT_BE_READ) and not problem.field for problem in problems):
        return "check the path, and whether this user may read the file"
    return "; ".join(filter(None, ("`talus docs configuration` lists every setting", more)))


class ConfigFileError(ConfigError):
    """A file with errors: ``problems`` has every one of them, in the order of the lines."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__(
            "\n".join(str(problem) for problem in problems),
            hint(problems, "`talus check --config FILE` tries a file without using it"),
        )
        self.problems = problems


def load(path: Path | str) -> Config:
    """The configuration in a file; warnings about it go to the log.

    Raises:
        ConfigFileError: the file, or anything in it, cannot be used.
    """
    config, problems = _examine(Path(path))
    errors = [problem for problem in problems if problem.level == "error"]
    if config is None or errors:
        raise ConfigFileError(errors)
    for problem in problems:
        _log.warning("%s", problem)
    return config


def check(path: Path | str, doubts: Callable[[Config], Iterable[tuple[Loc, str]]] = lambda _: ()) -> list[Problem]:
    """Every error and every warning about a file, in the order of the lines; empty if all is well. ``doubts`` finds
    settings that are allowed and hardly meant."""
    return _guarded(Path(path), lambda: _examined(Path(path), doubts))[1]


def digest(section: Section) -> str:
    """SHA-256 (hex) of what a configuration, or a section of it, says: comments, order and spelt-out defaults do not
    change it. No secret goes into it, only where secrets are kept."""
    plain = section.model_dump(mode="json")
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def load_section(model: type[S], path: Path) -> S:
    """A file that holds one section of its own, such as the desk's.

    Raises:
        ConfigFileError: the file, or anything in it, cannot be used.
    """
    found, problems = _guarded(path, lambda: _validated(model, path)[:2])
    if found is None or problems:
        raise ConfigFileError(problems)
    return found


def _examine(path: Path) -> tuple[Config | None, list[Problem]]:
    return _guarded(path, lambda: _examined(path))


def _guarded(path: Path, read: Callable[[], tuple[S | None, list[Problem]]]) -> tuple[S | None, list[Problem]]:
    """What ``read`` gives; a fault of the reading itself is a problem of the file, and ends no agent that runs."""
    try:
        return read()
    except Exception as error:  # noqa: BLE001 - whatever it is, at SIGHUP the agent must go on
        _log.debug("a fault in the reading of %s", path, exc_info=error)
        reason = f"cannot be checked ({type(error).__name__}: {escaped(str(error))[:200]}); please report this file"
        return None, [Problem(str(path), 0, "", reason)]


def _examined(
    path: Path, doubts: Callable[[Config], Iterable[tuple[Loc, str]]] = lambda _: ()
) -> tuple[Config | None, list[Problem]]:
    config, problems, document = _validated(Config, path)
    if config is not None and document is not None and not problems:
        doubtful = (Remark(loc, reason, False) for loc, reason in doubts(config))
        for remark in itertools.chain(remarks(config), doubtful):
            spot = _spot(document, remark.loc)
            level: Literal["error", "warning"] = "error" if remark.fatal else "warning"
            value = shown(remark.loc, spot.text)
            problems.append(Problem(str(path), spot.line, dotted(remark.loc), remark.reason, value, level))
    return config, sorted(problems, key=lambda problem: problem.line)


def _validated(model: type[S], path: Path) -> tuple[S | None, list[Problem], Document | None]:
    file = str(path)
    try:
        document = parse(_text(path))
    except YamlFault as error:
        fault = error.fault
        return None, [Problem(file, fault.spot.line, "", _with_column(fault.spot, fault.reason))], None
    broken = {fault.loc for fault in document.faults}
    config, findings = validate(model, document.value, {"base": path.parent})
    problems = [Problem(file, f.spot.line, escaped(dotted(f.loc)), f.reason) for f in document.faults]
    for finding in findings:
        if finding.loc not in broken:
            spot = _spot(document, finding.loc)
            value = shown(finding.loc, spot.text) if finding.about_value else None
            problems.append(Problem(file, spot.line, escaped(dotted(finding.loc)), finding.reason, value))
    return config, sorted(problems, key=lambda problem: problem.line), document


def _text(path: Path) -> str:
    """The file as text.

    Raises:
        YamlFault: there is no such file, or it is no text.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise _unreadable(f"{_CANNOT_BE_READ}: {in_words(error)}") from None
    if len(raw) > MAX_BYTES:
        raise _unreadable(f"is larger than {MAX_BYTES // 1024} KiB; is this the configuration?")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise _unreadable("is not UTF-8 text; save the file in that encoding", line) from None


def _unreadable(reason: str, line: int = 0) -> YamlFault:
    return YamlFault(Fault(Spot(line, 0), reason))


def _with_column(spot: Spot, reason: str) -> str:
    return f"column {spot.column}: {reason}" if spot.column else reason


def _spot(document: Document, loc: Loc) -> Spot:
    """Where the value stands, or the nearest section around it."""
    for length in range(len(loc), -1, -1):
        spot = document.spots.get(loc[:length])
        if spot is not None:
            return spot if length == len(loc) else Spot(spot.line, spot.column)
    return Spot(1, 1)
