"""The gate: the one way in for every signed order, be it a configuration, a model or a command.

    broker -> offer (bounded) -> signature -> scope -> kind, station, revision, expiry -> content -> disk -> Admitted

The state of a kind is one file, ``control/KIND.json``, replaced as a whole: a power cut leaves the old one or the new
one. It is written before an order is carried out, so that one that is repeated is refused whatever happens in between.
What is refused is not written at all.

An order comes in a signed envelope, to some stations, from a trusted signer, acceptable until a certain time:

    {"schema": "talus/envelope/1", "key": KEY-ID, "body": BASE64, "signature": BASE64}

The signature (Ed25519) is over a fixed prefix and the very bytes of the body, so that nothing depends on how JSON is
written; the body is parsed only after its signature was verified:

    {"kind": "config", "stations": ["XX.SLOPE"], "revision": 7, "issued": TIME, "expires": TIME, "content": {...}}

``revision`` rises with every envelope of a kind to a station; the station remembers the highest one that it accepted,
and refuses what is not above it. ``expires`` bounds how late the order may still be accepted, not how long it holds.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import math
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, NoReturn, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError, ValidationInfo

from agent.atomic import replace_file
from agent.backoff import ThrottledLog
from agent.config.remote import TrustedKey
from agent.deliver.connection import Received
from agent.errors import ControlError, DataError, in_words
from agent.messages.schema import TEXT_LIMIT, Count, EnvelopeMessage, Outcome, Sha256
from agent.types import NS, StationId, format_ns, parse_ns

SCHEMA = "talus/envelope/1"
MAX_BYTES = 64 * 1024
MAX_BODY_BYTES = 48_000
"""Largest body: in base64, with what is around it, it fits ``MAX_BYTES``."""
EVERY_STATION = "*"
MAX_STATIONS = 256
MAX_AHEAD_S = 3600.0
"""Issued further in the future than this: one of the clocks is wrong, and nobody can say whether it has expired."""
LARGEST_INT = 2**53
"""Every reader of JSON understands whole numbers up to this one as they were written."""
PREFIX = b"talus/envelope/1\x00"
"""What is signed is told apart from whatever else the same key may sign."""
_STATION = r"[A-Z0-9-]{1,8}\.[A-Z0-9-]{1,8}"
STATION_NAME = re.compile(_STATION)
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


def _time(value: object, info: ValidationInfo) -> object:
    if not isinstance(value, str):
        if info.mode == "json":
            raise ValueError("must be a time, written as text")
        return value
    try:
        return parse_ns(value)
    except DataError as error:
        raise ValueError(f"is not a time; {error.hint}") from None


class Body(BaseModel):
    """An order. ``stations`` are ``NET.STA``, or ``*`` for all; times are UTC nanoseconds."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, populate_by_name=True)

    kind: Annotated[str, Field(pattern=r"^[a-z_]{1,16}$")]
    stations: tuple[Annotated[str, Field(pattern=rf"^(\*|{_STATION})$")], ...] = Field(
        strict=False, min_length=1, max_length=MAX_STATIONS
    )
    revision: Annotated[int, Field(ge=1, le=LARGEST_INT)]
    issued_ns: Annotated[int, BeforeValidator(_time), PlainSerializer(format_ns), Field(alias="issued")]
    expires_ns: Annotated[int, BeforeValidator(_time), PlainSerializer(format_ns), Field(alias="expires")]
    content: dict[str, Any]

    @property
    def scope(self) -> str | None:
        """What a key must be trusted with for this order; None where every trusted key will do."""
        if self.kind in ("config", "model"):
            return self.kind
        name = self.content.get("do") if self.kind == "command" else None
        if name in ("promote_model", "roll_back_model"):
            return "model"
        return str(name) if name in ("evidence", "test_alarm") else None


@dataclass(frozen=True, slots=True)
class Opened:
    """The body of a genuine envelope, and the key that signed it."""

    body: Body
    key: TrustedKey


def unseal(payload: bytes, trusted: Iterable[TrustedKey]) -> Opened:
    """Check form and signature of an envelope, whoever sent it, and that its key may order what it holds.

    Raises:
        ControlError: ``malformed``, ``unknown_key``, ``signature`` or ``scope``.
    """
    outer = _outer(payload)
    raw, signature = _base64(outer.body, "body"), _base64(outer.signature, "signature")
    key = next((key for key in trusted if key.id == outer.key), None)
    if key is None:
        raise ControlError(
            "unknown_key",
            "signed with a key that is not in this station's control.keys",
            "add its public half to control.keys",
        )
    if not key.verifies(signature, PREFIX + raw):
        raise ControlError(
            "signature", f"the signature is not that of {key.name}", "altered on its way, or not signed by that key"
        )
    body = _body(raw)
    if body.scope is not None and body.scope not in key.may:
        raise ControlError(
            "scope",
            f"{key.name} may not order this ({body.scope})",
            "sign with another key, or extend `may` in control.keys",
        )
    return Opened(body, key)


def unverified_body(payload: bytes) -> Body:
    """The body of an envelope whose signature nobody has checked: to show it, not to obey it.

    Raises:
        ControlError: ``malformed``.
    """
    return _body(_base64(_outer(payload).body, "body"))


def admit(body: Body, station: StationId, kind: str, above: int, now_ns: int) -> None:
    """Check that a genuine order is for this station, now; ``above`` is the highest revision accepted so far.

    Raises:
        ControlError: ``other_kind``, ``other_station``, ``old_revision``, ``expired`` or ``ahead``.
    """
    if body.kind != kind:
        raise ControlError("other_kind", f"holds a {body.kind}, not a {kind}", "publish it to the topic of its kind")
    if EVERY_STATION not in body.stations and station.short not in body.stations:
        raise ControlError(
            "other_station", f"not for {station.short}", "sign it for this station: --station, once for each"
        )
    if body.revision <= above:
        raise ControlError(
            "old_revision", f"revision {body.revision} is not above {above}, which was accepted before",
            f"sign it anew with --revision {above + 1} or higher",
        )  # fmt: skip
    if now_ns >= body.expires_ns:
        raise ControlError("expired", f"expired at {format_ns(body.expires_ns)}", "sign it anew")
    if body.issued_ns - now_ns > MAX_AHEAD_S * NS:
        raise ControlError(
            "ahead", f"issued at {format_ns(body.issued_ns)}, which is still to come by this machine's clock",
            "set the clocks of this machine and of the one that signs",
        )  # fmt: skip


def first_fault(error: ValidationError) -> str:
    """The first thing that is wrong with a value, in words; the value itself is not repeated."""
    fault = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(map(str, fault["loc"]))[:80]
    return f"{place}: {fault['msg']}" if place else fault["msg"]


def _outer(payload: bytes) -> EnvelopeMessage:
    """A name that is given twice does no harm here: whichever body is meant, its signature is checked."""
    if len(payload) > MAX_BYTES:
        raise _malformed(f"{len(payload)} bytes, at most {MAX_BYTES} are read")
    try:
        return EnvelopeMessage.model_validate_json(payload)
    except ValidationError as error:
        raise _malformed(f"not a message as {SCHEMA} has it ({first_fault(error)})") from None


def _body(raw: bytes) -> Body:
    """Pydantic bounds the depth and the digits, and refuses NaN, half characters and all but UTF-8. Of names given
    twice it would take the last; two readers of one text must not understand two things."""
    try:
        body = Body.model_validate_json(raw)
        json.loads(raw, object_pairs_hook=_each_once, parse_constant=_refused, parse_float=_finite, parse_int=_exact)
    except ValidationError as error:
        raise _malformed(f"the body is not an order ({first_fault(error)})") from None
    except ValueError as error:
        raise _malformed(f"the body is not an order ({error})") from None
    if body.expires_ns <= body.issued_ns:
        raise _malformed("it expires before it was issued")
    return body


def _each_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a name is given twice")
    return dict(pairs)


def _refused(_: str) -> NoReturn:
    raise ValueError("NaN and Infinity are not JSON")


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError("a number that is not finite")
    return value


def _exact(text: str) -> int:
    if abs(value := int(text)) > LARGEST_INT:
        raise ValueError("an integer beyond 53 bits")
    return value


def _base64(text: str, name: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise _malformed(f"{name} is not base64") from None


def _malformed(reason: str) -> ControlError:
    return ControlError("malformed", reason, "make envelopes with `talus config sign`")


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
                "store", f"{folder}: {in_words(error)}", "the agent's user must own this folder"
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
            raise ControlError("store", f"{self._path}: {in_words(error)}", "free space, or see the disk") from None
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
