"""The agent's last word about itself, in a file of its state folder: what ``talus status`` reads.

A file needs no permission of the agent's, works while it hangs, and after its death still says what it saw last. It is
replaced as a whole every few seconds and is not forced to the disk: it describes a moment, and the disk may be a card.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import Field

from agent.atomic import ANYONE, replace_file
from agent.errors import TalusError
from agent.host.disk import folder_in_memory
from agent.messages.schema import (
    AlertMessage,
    Amount,
    Count,
    EventMessage,
    HealthMessage,
    Payload,
    StateMessage,
    Time,
    parse,
)
from agent.types import NS, format_ns, parse_ns

FILE = "status.json"
MAX_BYTES = 1_000_000
STALE_FACTOR = 3.0
"""So many intervals without a word, and something is wrong."""
_GRACE_S = 5.0

Verdict: TypeAlias = Literal["ok", "starting", "degraded", "silent", "gone", "stopped"]
"""``starting``: it does not listen yet, which is no fault;
``silent``: the process is there but says nothing; ``gone``: it is not there; ``stopped``: it was told to end."""

_log = logging.getLogger(__name__)


class StatusMessage(Payload):
    """What is in the file."""

    schema_: Literal["talus/status/1"] = Field(default="talus/status/1", alias="schema")
    written: Time
    interval_s: Amount = Field(description="how long after this the next word is due")
    pid: Count
    stopped: bool
    state: StateMessage
    health: HealthMessage
    last_event: EventMessage | None = Field(default=None, description="since the agent started")
    last_alert: AlertMessage | None = Field(description="since the agent started")


@dataclass(frozen=True, slots=True)
class Status:
    """The file's content, how old it is, and what follows from both."""

    said: StatusMessage
    age_s: float
    verdict: Verdict


class StatusFile:
    """Written by one thread."""

    def __init__(self, state_dir: Path, complain: Callable[[str], None] = _log.warning) -> None:
        self.path = state_dir / FILE
        self._complain = complain
        self._failed = False

    def write(self, body: StatusMessage) -> None:
        """Replace the file, or one in memory where the disk refuses; that is logged once, and is no reason to stop."""
        raw = body.model_dump_json().encode() + b"\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self.path, raw, mode=ANYONE, durable=False)
            self._failed = False
        except OSError as error:
            try:
                replace_file(_spare(self.path.parent), raw, mode=ANYONE, durable=False)
            except OSError:
                if not self._failed:
                    self._complain(f"{self.path}: {error.strerror}; `talus status` will show old figures")
            self._failed = True


def read(state_dir: Path, now_ns: int | None = None) -> Status:
    """What the agent that uses this folder said last.

    Raises:
        TalusError: no agent has used it, or the file may not be read or is not what it should be.
    """
    path = max(state_dir / FILE, _spare(state_dir), key=_written)
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES)
    except FileNotFoundError:
        raise TalusError(
            f"no agent has said anything in {state_dir}", "is it the state_dir of its configuration? see --config"
        ) from None
    except OSError as error:
        raise TalusError(f"{path}: {error.strerror}", "run this as the agent's user, or with sudo") from None
    said = parse(StatusMessage, raw)
    age_s = ((time.time_ns() if now_ns is None else now_ns) - parse_ns(said.written)) / NS
    return Status(said, age_s, _verdict(said, age_s))


def _spare(state_dir: Path) -> Path:
    """Where the file is written when the disk refuses it; several agents may share the folder."""
    name = hashlib.sha256(os.fsencode(state_dir.absolute())).hexdigest()[:16]
    return folder_in_memory() / f"status-{name}.json"


def _written(path: Path) -> float:
    """When a file was written; 0 where there is none, or where only its user may look."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _verdict(said: StatusMessage, age_s: float) -> Verdict:
    if said.stopped:
        return "stopped"
    if not _lives(said.pid):
        return "gone"
    if not -_GRACE_S <= age_s <= STALE_FACTOR * said.interval_s + _GRACE_S:
        return "silent"
    status = said.health.status
    return status if status in ("ok", "starting") else "degraded"


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def status_message(
    state: StateMessage,
    health: HealthMessage,
    last_alert: AlertMessage | None,
    interval_s: float,
    *,
    last_event: EventMessage | None = None,
    stopped: bool,
) -> StatusMessage:
    """As of now."""
    return StatusMessage(
        written=format_ns(time.time_ns()),
        interval_s=interval_s,
        pid=os.getpid(),
        stopped=stopped,
        state=state,
        health=health,
        last_event=last_event,
        last_alert=last_alert,
    )
