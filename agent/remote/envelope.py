"""A signed envelope: one order to some stations, from someone whom they trust, until a certain time.

    {"schema": "talus/envelope/1", "key": KEY-ID, "body": BASE64, "signature": BASE64}

The signature (Ed25519) is over a fixed prefix and the very bytes of the body, so that nothing depends on how JSON is
written; only after it was verified is the body parsed:

    {"kind": "config", "stations": ["XX.SLOPE"], "revision": 7, "issued": TIME, "expires": TIME, "content": {...}}

``revision`` rises with every envelope of a kind to a station; the station remembers the highest one that it accepted,
and refuses what is not above it. ``expires`` bounds how late the order may still be accepted, not how long it holds.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from agent.config.keys import SIGNATURE_BYTES, SigningKey, TrustedKey
from agent.errors import ControlError, DataError
from agent.messages.schema import EnvelopeMessage
from agent.remote import strict_json
from agent.types import NS, StationId, format_ns, parse_ns

SCHEMA = "talus/envelope/1"
MAX_BYTES = strict_json.MAX_BYTES
MAX_BODY_BYTES = 48_000
"""In base64, and with what is around it, it fits ``MAX_BYTES``."""
EVERY_STATION = "*"
MAX_STATIONS = 256
MAX_AHEAD_S = 3600.0
"""Issued further in the future than this: one of the clocks is wrong, and nobody can say whether it has expired."""

_PREFIX = b"talus/envelope/1\x00"
"""What is signed is told apart from whatever else the same key may sign."""
STATION_NAME = re.compile(r"[A-Z0-9-]{1,8}\.[A-Z0-9-]{1,8}")
_KIND = re.compile(r"[a-z_]{1,16}")


@dataclass(frozen=True, slots=True)
class Body:
    """An order. ``stations`` are ``NET.STA``, or ``*`` for all; times are UTC nanoseconds."""

    kind: str
    stations: tuple[str, ...]
    revision: int
    issued_ns: int
    expires_ns: int
    content: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not _KIND.fullmatch(self.kind):
            raise _malformed("kind is not a word")
        if not 1 <= len(self.stations) <= MAX_STATIONS or not all(
            name == EVERY_STATION or STATION_NAME.fullmatch(name) for name in self.stations
        ):
            raise _malformed(f"stations must be 1 to {MAX_STATIONS} of NET.STA, or '*'")
        if not 1 <= self.revision <= strict_json.LARGEST_INT:
            raise _malformed("revision must be a whole number from 1 on")
        if self.expires_ns <= self.issued_ns:
            raise _malformed("it expires before it was issued")


@dataclass(frozen=True, slots=True)
class Opened:
    """What came in a genuine envelope, and who signed it. ``sha256`` names the body."""

    body: Body
    key: TrustedKey
    sha256: str


def seal(body: Body, key: SigningKey) -> bytes:
    """The envelope, ready to be published.

    Raises:
        ControlError: it would be too large.
    """
    raw = json.dumps(
        {
            "kind": body.kind,
            "stations": list(body.stations),
            "revision": body.revision,
            "issued": format_ns(body.issued_ns),
            "expires": format_ns(body.expires_ns),
            "content": body.content,
        },
        separators=(",", ":"),
        allow_nan=False,
    ).encode()
    if len(raw) > MAX_BODY_BYTES:
        raise ControlError("malformed", f"the order has {len(raw)} bytes, stations take {MAX_BODY_BYTES}")
    return (
        EnvelopeMessage(
            key=key.trusted("").id,
            body=base64.b64encode(raw).decode(),
            signature=base64.b64encode(key.sign(_PREFIX + raw)).decode(),
        )
        .model_dump_json()
        .encode()
    )


def unseal(payload: bytes, trusted: Iterable[TrustedKey]) -> Opened:
    """Check form and signature of an envelope, whoever sent it, and that its key may order what it holds.

    Raises:
        ControlError: ``malformed``, ``unknown_key``, ``signature`` or ``scope``.
    """
    try:
        outer = EnvelopeMessage.model_validate(_mapping(payload, "the envelope"))
    except ValidationError:
        raise _malformed(f"not a message as {SCHEMA} has it") from None
    raw, signature = _base64(outer.body, "body"), _base64(outer.signature, "signature")
    if len(signature) != SIGNATURE_BYTES:
        raise _malformed(f"signature has {len(signature)} bytes, not {SIGNATURE_BYTES}")
    key = next((key for key in trusted if key.id == outer.key), None)
    if key is None:
        raise ControlError(
            "unknown_key", "signed with a key that is not trusted here", "add its public half to control.keys"
        )
    if not key.verifies(signature, _PREFIX + raw):
        raise ControlError(
            "signature", f"the signature is not that of {key.name}", "altered on its way, or not signed by that key"
        )
    body = _body(raw)
    scope = _scope(body)
    if scope is not None and scope not in key.may:
        raise ControlError(
            "scope",
            f"{key.name} may not order this ({scope})",
            "sign with another key, or extend `may` in control.keys",
        )
    return Opened(body, key, hashlib.sha256(raw).hexdigest())


def _scope(body: Body) -> str | None:
    """What a key must be trusted with for this order; None where every trusted key will do."""
    if body.kind in ("config", "model"):
        return body.kind
    name = body.content.get("do") if body.kind == "command" else None
    if name in ("promote_model", "roll_back_model"):
        return "model"
    return str(name) if name in ("evidence", "test_alarm") else None


def admit(opened: Opened, station: StationId, kind: str, above: int, now_ns: int) -> None:
    """Whether a genuine envelope is for this station, now; ``above`` is the highest revision accepted so far.

    Raises:
        ControlError: ``other_kind``, ``other_station``, ``old_revision``, ``expired`` or ``ahead``.
    """
    body = opened.body
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


def _body(raw: bytes) -> Body:
    inner = _mapping(raw, "the body")
    _exactly(inner, {"kind": str, "stations": list, "revision": int, "issued": str, "expires": str, "content": dict})
    if not all(isinstance(name, str) for name in inner["stations"]):
        raise _malformed("stations must be text")
    try:
        issued_ns, expires_ns = parse_ns(inner["issued"]), parse_ns(inner["expires"])
    except DataError:
        raise _malformed("issued or expires is not a time") from None
    return Body(inner["kind"], tuple(inner["stations"]), inner["revision"], issued_ns, expires_ns, inner["content"])


def _mapping(text: bytes, what: str) -> dict[str, Any]:
    try:
        value = strict_json.loads(text, MAX_BYTES)
    except ValueError as error:
        raise _malformed(f"{what}: {error}") from None
    if not isinstance(value, dict):
        raise _malformed(f"{what} is not an object")
    return value


def _exactly(value: Mapping[str, Any], fields: Mapping[str, type]) -> None:
    if value.keys() != fields.keys():
        raise _malformed(f"must have the fields {', '.join(fields)} and no others")
    for name, kind in fields.items():
        if not isinstance(value[name], kind) or isinstance(value[name], bool):
            raise _malformed(f"{name} has the wrong type")


def _base64(text: str, name: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise _malformed(f"{name} is not base64") from None


def _malformed(reason: str) -> ControlError:
    return ControlError("malformed", reason, "make envelopes with `talus config sign`")
