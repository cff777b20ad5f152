"""What the commands that change a station share: the station that they are about, and files that they write."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from agent.errors import ConfigError, ControlError, UsageError

if TYPE_CHECKING:
    from agent.types import StationId
    from desk.settings import DeskConfig

    Actions: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]

VALID_DAYS = 7.0
"""Within which an order must have been accepted."""
ANSWER_S = 30.0
"""How long an answer is waited for."""


def add_action(actions: Actions, name: str, summary: str, example: str) -> argparse.ArgumentParser:
    """One action of a command, with what it does and how it is typed in its own help."""
    return actions.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_wait(parser: argparse._ActionsContainer, default_s: float, more: str = "", *, fixed: bool = True) -> None:
    """The option ``--wait``; ``more`` is said behind its default, which without ``fixed`` depends on other options: the
    value is then None where it is not given."""
    parser.add_argument(
        "--wait",
        type=_seconds,
        default=default_s if fixed else None,
        metavar="SECONDS",
        help=f"wait at most so long for the answer (default {default_s:g}{more})",
    )


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise ValueError(text)
    return value


_seconds.__name__ = "number of seconds"  # what argparse says that it wants


def desk_config(config: Path | None, state: Path | None, database: str | None = None) -> DeskConfig:
    """The desk that a command works on: of its file, of its state folder, or the user's own; ``database`` (URL) goes
    before the one of the desk.

    Raises:
        ConfigError: there is no database where it was looked for.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    from agent.config.file import load_section
    from desk.settings import DeskConfig, default_state_dir

    if config is not None:
        desk = load_section(DeskConfig, config)
    else:
        folder = str(state or default_state_dir())
        desk = DeskConfig.model_validate({"mqtt": {"host": "localhost"}, "state_dir": folder})
    if database is not None:
        desk = desk.model_copy(update={"database": database})
    try:
        url = make_url(desk.database_url)
    except ArgumentError:
        raise ConfigError("the database is no URL", "write sqlite:///FILE or postgresql://HOST/NAME") from None
    if url.get_backend_name() == "sqlite" and url.database and not Path(url.database).is_file():
        raise ConfigError(
            f"{url.database} does not exist",
            "name the desk with --config FILE or --state FOLDER; its first start makes the database",
        )
    return desk


def write(path: Path, content: bytes) -> None:
    """
    Raises:
        UsageError: the file cannot be written.
    """
    try:
        path.write_bytes(content)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", "name a file in a folder that you may write") from None


def silent(station: str, what: str) -> ControlError:
    """The error for a station of which the broker holds no report."""
    hint = "is its name right, was it ever connected to this broker, and has its file control.keys?"
    return ControlError("silent", f"no {what} report from {station} yet", hint)


def station_named(name: str) -> StationId:
    """
    Raises:
        UsageError: not ``NET.STA``.
    """
    from agent.remote.gate import STATION_NAME
    from agent.types import StationId

    network, dot, station = name.partition(".")
    if not (dot and STATION_NAME.fullmatch(name)):
        raise UsageError(f"{name!r} is no station", "write NETWORK.STATION in capitals, such as XX.SLOPE")
    return StationId(network, station, "", "")
