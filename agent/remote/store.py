"""The remote orders that a station has accepted, on disk; a power cut leaves the last state or the new one.

Two files take turns (``NAME.0`` and ``NAME.1``). Each has a number that rises and a SHA-256 over number and content,
and is written beside its place, forced to the disk, and renamed. The newest that is whole counts; one that is torn is
reported and overwritten by the next write.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agent.atomic import replace_file
from agent.errors import ControlError
from agent.messages.schema import TEXT_LIMIT, Count, Outcome, Sha256
from agent.remote import strict_json
from agent.remote.envelope import MAX_BYTES
from agent.types import format_ns

HISTORY = 50
"""Outcomes that are remembered."""
_MAX_FILE = 3 * MAX_BYTES + 1_000 * HISTORY
_MAGIC = "talus-slot/1"


class _Kept(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Order(_Kept):
    """An order that was accepted. ``envelope`` is the SHA-256 of the message as it came, ``key`` the signer's name."""

    revision: Count
    envelope: Sha256
    key: str
    content: dict[str, Any]


def refused(envelope: str, order: Order | None, error: ControlError) -> Outcome:
    """The outcome of a message that is not obeyed; ``order`` is what it held, if a trusted key signed it."""
    return Outcome(
        envelope=envelope,
        revision=None if order is None else order.revision,
        key=None if order is None else order.key,
        result="refused",
        kind=error.kind,
        reason=error.message[:TEXT_LIMIT],
        time=format_ns(time.time_ns()),
    )


class Stored(_Kept):
    """``kept`` rules; ``trial`` rules for the time being; ``highest`` is the highest revision that was ever accepted,
    rolled back or not, and ``newest`` its envelope. ``history`` has the newest outcome last."""

    kept: Order | None = None
    trial: Order | None = None
    highest: Count = 0
    newest: Sha256 | None = None
    history: tuple[Outcome, ...] = Field(default=(), strict=False, max_length=HISTORY)

    def with_outcome(self, outcome: Outcome, **changes: Any) -> Stored:
        """With one more line of history."""
        return self.model_copy(update={**changes, "history": (*self.history, outcome)[-HISTORY:]})


@dataclass(frozen=True, slots=True)
class _Slot:
    sequence: int
    stored: Stored


class Store:
    """One kind of order's state. Owned by one thread."""

    def __init__(self, folder: Path, name: str) -> None:
        """Reads what is there; ``faults`` says what could not be read.

        Raises:
            ControlError: the folder cannot be made or read.
        """
        self._paths = (folder / f"{name}.0", folder / f"{name}.1")
        self.faults: list[str] = []
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = [slot for path in self._paths if (slot := self._read(path)) is not None]
        except OSError as error:
            raise ControlError(
                "store", f"{folder}: {error.strerror}", "the agent's user must own this folder"
            ) from None
        newest = max(found, key=lambda slot: slot.sequence, default=_Slot(0, Stored()))
        self._sequence = newest.sequence
        self.stored = newest.stored

    def write(self, stored: Stored) -> None:
        """Replace the state; it is on disk when this returns, and the old one stands if it does not.

        Raises:
            ControlError: the disk refuses it.
        """
        sequence = self._sequence + 1
        path = self._paths[sequence % 2]
        try:
            replace_file(path, encode(sequence, stored))
        except OSError as error:
            raise ControlError("store", f"{path}: {error.strerror}", "free space, or see the disk") from None
        self._sequence, self.stored = sequence, stored

    def _read(self, path: Path) -> _Slot | None:
        try:
            with path.open("rb") as file:
                return decode(file.read(_MAX_FILE + 1))
        except FileNotFoundError:
            return None
        except ValueError as error:
            self.faults.append(f"{path}: {error}; it is not used")
            return None


def encode(sequence: int, stored: Stored) -> bytes:
    """A slot's file."""
    body = stored.model_dump_json().encode()
    return f"{_MAGIC} {sequence} {_digest(sequence, body)}\n".encode() + body


def decode(raw: bytes) -> _Slot:
    """What a slot's file says.

    Raises:
        ValueError: it is torn, or something else.
    """
    head, _, body = raw.partition(b"\n")
    words = head.split(b" ")
    if len(words) != 3 or words[0] != _MAGIC.encode() or not words[1].isdigit() or len(words[1]) > 15:
        raise ValueError("is torn, or not a file of the agent's")
    sequence = int(words[1])
    if words[2].decode("latin-1") != _digest(sequence, body):
        raise ValueError("is torn: its checksum does not fit")
    try:
        json_value = json.dumps(strict_json.loads(body, _MAX_FILE))
        return _Slot(sequence, Stored.model_validate_json(json_value))
    except (ValueError, ValidationError):
        raise ValueError("was written by another version of the agent") from None


def _digest(sequence: int, body: bytes) -> str:
    return hashlib.sha256(f"{sequence}\n".encode() + body).hexdigest()
