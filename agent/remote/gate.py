"""The gate: the one way in for every signed order, be it a configuration, a model or a command.

    broker -> offer (bounded) -> signature -> scope -> kind, station, revision, expiry -> content -> disk -> Admitted

The state of a kind is one file, ``control/KIND.json``, replaced as a whole: a power cut leaves the old one or the new
one. It is written before an order is carried out, so that one that is repeated is refused whatever happens in between.
What is refused is not written at all.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agent.atomic import replace_file
from agent.backoff import ThrottledLog
from agent.config.remote import TrustedKey
from agent.deliver.connection import Received
from agent.errors import ControlError
from agent.messages.schema import TEXT_LIMIT, Count, Outcome, Sha256
from agent.remote.envelope import MAX_BYTES, admit, first_fault, unseal
from agent.types import StationId, format_ns

CAPACITY = 32
"""Messages that wait; a newer one drives out the oldest, as a newer order replaces an older one."""
MAX_CORRELATION = 64
"""Bytes; longer correlation data are not given back."""
HISTORY = 50
"""Outcomes that are remembered."""
PASSING = ("store", "ahead")
"""Reasons that may be gone when the same message comes again."""
_MAX_FILE = 3 * MAX_BYTES + 1_000 * HISTORY

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class _Kept(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Order(_Kept):
    """An order that was accepted. ``envelope`` is the SHA-256 of the message as it came, ``key`` the signer's name."""

    revision: Count
    envelope: Sha256
    key: str
    content: dict[str, Any]


class Stored(_Kept):
    """``kept`` is active, or ``trial`` for the time being; ``highest`` is the highest revision that was ever accepted,
    rolled back or not, and ``newest`` its envelope. ``history`` has the newest outcome last."""

    kept: Order | None = None
    trial: Order | None = None
    highest: Count = 0
    newest: Sha256 | None = None
    history: tuple[Outcome, ...] = Field(default=(), strict=False, max_length=HISTORY)

    def with_outcome(self, outcome: Outcome, **changes: Any) -> Stored:
        """With one more line of history."""
        return self.model_copy(update={**changes, "history": (*self.history, outcome)[-HISTORY:]})


class Store:
    """The state of one kind of order, on disk. Owned by one thread."""

    def __init__(self, folder: Path, kind: str) -> None:
        """Read what is there; ``fault`` says why it could not be used, in which case everything begins anew.

        Raises:
            ControlError: the folder cannot be made or read.
        """
        self._path = folder / f"{kind}.json"
        self.fault: str | None = None
        self.stored = Stored()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._path.open("rb") as file:
                self.stored = Stored.model_validate_json(file.read(_MAX_FILE))
        except FileNotFoundError:
            return
        except OSError as error:
            raise ControlError(
                "store", f"{folder}: {error.strerror}", "the agent's user must own this folder"
            ) from None
        except ValidationError as error:
            self.fault = (
                f"{self._path} is damaged, or from another version, and is not used ({first_fault(error)});"
                " send the change again"
            )

    def write(self, stored: Stored) -> None:
        """Replace the state; it is on disk when this returns, and the old one stands if it does not.

        Raises:
            ControlError: the disk refuses it.
        """
        try:
            replace_file(self._path, stored.model_dump_json().encode())
        except OSError as error:
            raise ControlError("store", f"{self._path}: {error.strerror}", "free space, or see the disk") from None
        self.stored = stored


@dataclass(frozen=True, slots=True)
class Request:
    """The message that brought an order: its SHA-256, by which an answer names it, and the MQTT 5 correlation data
    that the answer gives back. Only the former can be relied on: correlation data are not signed."""

    envelope: str
    correlation: bytes | None = None


@dataclass(frozen=True, slots=True)
class Admitted(Generic[_T]):
    """An order to be carried out; ``content`` is what it asks for, checked."""

    request: Request
    order: Order
    content: _T


@dataclass(frozen=True, slots=True)
class Refused:
    """A message that is not obeyed, and why; ``outcome.key`` is None unless a trusted key signed it."""

    request: Request
    outcome: Outcome
    error: ControlError


class Gate(Generic[_T]):
    """Admits orders of one kind. ``offer`` is for the link's thread, which never waits; the rest for another."""

    def __init__(
        self,
        kind: str,
        station: StationId,
        folder: Path,
        trusted: Iterable[TrustedKey],
        check: Callable[[Mapping[str, Any]], _T],
        *,
        accepted: Callable[[Stored, Order], Stored] = lambda stored, order: stored,
    ) -> None:
        """``check`` gives what the content of an order asks for, or raises a ``ControlError``; ``accepted`` gives the
        state with an order that was admitted.

        Raises:
            ControlError: the folder cannot be used.
        """
        self.trusted = tuple(trusted)
        """May be replaced at any time."""
        self.store = Store(folder, kind)
        self._kind, self._station, self._check, self._accepted = kind, station, check, accepted
        self._lock = threading.Lock()
        self._waiting: deque[tuple[bytes, bytes | None]] = deque()
        self._lost = 0
        self._last_refused = ""
        self._throttled = ThrottledLog(_log.warning)

    def offer(self, message: Received) -> bool:
        """Queue a message; always True, as every message is acknowledged."""
        if not message.payload:
            return True
        given = message.correlation
        correlation = given if given is not None and len(given) <= MAX_CORRELATION else None
        with self._lock:
            if len(message.payload) > MAX_BYTES:
                self._lost += 1
                return True
            if len(self._waiting) >= CAPACITY:
                self._lost += 1
                self._waiting.popleft()
            self._waiting.append((message.payload, correlation))
        return True

    def next(self) -> Admitted[_T] | Refused | None:
        """Judge the next message that waits; None when none is left, or when all of many were known already."""
        for _ in range(CAPACITY):
            with self._lock:
                lost, self._lost = self._lost, 0
                payload, correlation = self._waiting.popleft() if self._waiting else (None, None)
            if lost:
                self._throttled.warn(f"{lost} messages from the broker were not looked at", key="lost")
            if payload is None:
                return None
            request = Request(hashlib.sha256(payload).hexdigest(), correlation)
            # A retained message comes with every connection; it is judged once.
            if request.envelope not in (self.store.stored.newest, self._last_refused):
                return self._judged(payload, request)
        return None

    def admit_again(self) -> None:
        """Let the newest order in once more, which the broker may still have.

        Raises:
            ControlError: the disk refuses it.
        """
        stored = self.store.stored
        if stored.newest is not None:
            self.store.write(stored.model_copy(update={"highest": stored.highest - 1, "newest": None}))

    def _judged(self, payload: bytes, request: Request) -> Admitted[_T] | Refused:
        order, stored = None, self.store.stored
        try:
            opened = unseal(payload, self.trusted)
            body = opened.body
            order = Order(revision=body.revision, envelope=request.envelope, key=opened.key.name, content=body.content)
            admit(body, self._station, self._kind, stored.highest, time.time_ns())
            content = self._check(body.content)
            newest = {"highest": order.revision, "newest": request.envelope}
            self.store.write(self._accepted(stored, order).model_copy(update=newest))
        except ControlError as error:
            if error.kind not in PASSING:
                self._last_refused = request.envelope
            self._throttled.warn(f"a remote order is refused: {error}", key=error.kind)
            return Refused(request, _outcome(request.envelope, order, error), error)
        return Admitted(request, order, content)


def _outcome(envelope: str, order: Order | None, error: ControlError) -> Outcome:
    return Outcome(
        envelope=envelope,
        revision=None if order is None else order.revision,
        key=None if order is None else order.key,
        result="refused",
        kind=error.kind,
        reason=error.message[:TEXT_LIMIT],
        time=format_ns(time.time_ns()),
    )
