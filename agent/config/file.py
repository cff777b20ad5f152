"""The configuration file: read, checked as a whole, frozen.

station.py     the sections; policy.py the alert rules and the coincidence of stations, sources.py the kinds of source,
               remote.py remote orders and trusted keys, broker.py the broker, outputs.py all others that are told
stations.py    the stations that a configuration names
section.py     what all sections share
yaml.py        YAML to values with their lines
explain.py     what is wrong, in words
references.py  what the file refers to
reference.py   the catalogue of settings and the tables of docs/configuration.md
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from agent.config.broker import MqttConfig
from agent.config.explain import dotted, printable, shown, validate
from agent.config.policy import PolicyConfig
from agent.config.references import remarks
from agent.config.remote import ControlConfig
from agent.config.section import Section
from agent.config.sources import ArchiveConfig
from agent.config.station import (
    ClassifierConfig,
    Config,
    StationConfig,
    TriggerConfig,
    TunablesConfig,
)
from agent.config.yaml import MAX_BYTES, Document, Fault, Loc, Spot, YamlFault, parse
from agent.errors import ConfigError

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


class ConfigFileError(ConfigError):
    """A file with errors: ``problems`` has every one of them, in the order of the lines."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__(
            "\n".join(str(problem) for problem in problems),
            "`talus docs configuration` lists every setting; `talus check --config FILE` tries a file without using it",
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


def check(path: Path | str) -> list[Problem]:
    """Every error and every warning about a file, in the order of the lines; empty if all is well."""
    return _examine(Path(path))[1]


def digest(section: Section) -> str:
    """SHA-256 (hex) of what a configuration, or a section of it, says: comments, order and spelt-out defaults do not
    change it. No secret goes into it, only where secrets are kept."""
    plain = section.model_dump(mode="json")
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


S = TypeVar("S", bound=Section)


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
        reason = f"cannot be checked ({type(error).__name__}: {printable(str(error))[:200]}); please report this file"
        return None, [Problem(str(path), 0, "", reason)]


def _examined(path: Path) -> tuple[Config | None, list[Problem]]:
    config, problems, document = _validated(Config, path)
    if config is not None and document is not None and not problems:
        for remark in remarks(config):
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
    problems = [Problem(file, f.spot.line, printable(dotted(f.loc)), f.reason) for f in document.faults]
    for finding in findings:
        if finding.loc not in broken:
            spot = _spot(document, finding.loc)
            value = shown(finding.loc, spot.text) if finding.about_value else None
            problems.append(Problem(file, spot.line, printable(dotted(finding.loc)), finding.reason, value))
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
        raise _unreadable(f"cannot be read: {error.strerror}") from None
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
