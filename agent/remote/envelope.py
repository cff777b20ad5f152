"""A signed envelope: one order to some stations, from a trusted signer, acceptable until a certain time.

    {"schema": "talus/envelope/1", "key": KEY-ID, "body": BASE64, "signature": BASE64}

The signature (Ed25519) is over a fixed prefix and the very bytes of the body, so that nothing depends on how JSON is
written; the body is parsed only after its signature was verified:

    {"kind": "config", "stations": ["XX.SLOPE"], "revision": 7, "issued": TIME, "expires": TIME, "content": {...}}

``revision`` rises with every envelope of a kind to a station; the station remembers the highest one that it accepted,
and refuses what is not above it. ``expires`` bounds how late the order may still be accepted, not how long it holds.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError, ValidationInfo

from agent.config.remote import TrustedKey
from agent.errors import ControlError, DataError
from agent.messages.schema import EnvelopeMessage
from agent.types import NS, StationId, format_ns, parse_ns

SCHEMA = "talus/envelope/1"
MAX_BYTES = 64 * 1024
MAX_BODY_BYTES = 48_000
"""In base64, and with what is around it, it fits ``MAX_BYTES``."""
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
            "unknown_key", "signed with a key that is not trusted here", "add its public half to control.keys"
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
