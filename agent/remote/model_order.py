"""What an envelope of the kind ``model`` orders: one bundle, named by the hashes of its pieces.

    {"name": "talus-student", "version": "0.2.0", "sha256": HEX, "bytes": N, "chunks": [HEX, ...], "promote": "auto"}

The hash of every piece stands in the signed envelope, so a piece is judged when it arrives, from wherever: a stranger
on the broker can delay an update and not spoil it. ``url`` (https) says where the whole file may be had instead.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from agent.errors import ControlError

KIND = "model"
CHUNK_BYTES = 32 * 1024
MAX_BYTES = 16 << 20
"""Largest zip of a bundle: its hashes still fit into an envelope."""

_INDEX_BYTES = 4
MAX_PIECE = CHUNK_BYTES + _INDEX_BYTES
"""Largest message that carries a piece."""

Promote: TypeAlias = Literal["auto", "hold"]
_HEX = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}")
_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+-]{0,31}")
_URL = re.compile(r"https://[!-~]{1,480}")
_FIELDS: Mapping[str, type] = {
    "name": str, "version": str, "sha256": str, "bytes": int, "chunks": list, "promote": str, "url": str
}  # fmt: skip
_OPTIONAL = {"url"}


@dataclass(frozen=True, slots=True)
class ModelOrder:
    """A bundle to fetch, try and take: zip of ``size`` bytes in pieces of ``CHUNK_BYTES`` (the last one is shorter).

    ``promote``: ``auto`` takes it when it has agreed with the live model for long enough, ``hold`` waits for a command.
    """

    name: str
    version: str
    sha256: str
    size: int
    chunks: tuple[str, ...]
    promote: Promote = "auto"
    url: str | None = None

    @property
    def title(self) -> str:
        """As the model is named in events."""
        return f"{self.name} {self.version}"

    def span(self, index: int) -> tuple[int, int]:
        """First byte of a piece, and the one after its last."""
        return index * CHUNK_BYTES, min((index + 1) * CHUNK_BYTES, self.size)

    def content(self) -> dict[str, Any]:
        """The envelope's content."""
        made: dict[str, Any] = {
            "name": self.name,
            "version": self.version,
            "sha256": self.sha256,
            "bytes": self.size,
            "chunks": list(self.chunks),
            "promote": self.promote,
        }
        return made if self.url is None else {**made, "url": self.url}


def wrap(index: int, piece: bytes) -> bytes:
    """A piece as it travels: its number, most significant byte first, and its bytes."""
    return index.to_bytes(_INDEX_BYTES, "big") + piece


def unwrap(payload: bytes) -> tuple[int, bytes]:
    """Number and bytes of a piece; whether they are what was ordered is for ``Download`` to judge."""
    return int.from_bytes(payload[:_INDEX_BYTES], "big"), payload[_INDEX_BYTES:]


def order_of(
    zipped: bytes, name: str, version: str, *, promote: Promote = "auto", url: str | None = None
) -> ModelOrder:
    """The order for a bundle's zip.

    Raises:
        ControlError: too large, or an address that is not https.
    """
    pieces = [zipped[start : start + CHUNK_BYTES] for start in range(0, len(zipped), CHUNK_BYTES)]
    chunks = [hashlib.sha256(piece).hexdigest() for piece in pieces]
    made = ModelOrder(name, version, hashlib.sha256(zipped).hexdigest(), len(zipped), tuple(chunks), promote, url)
    return parse(made.content())


def parse(content: Mapping[str, Any]) -> ModelOrder:
    """The order that an envelope holds.

    Raises:
        ControlError: ``malformed``.
    """
    missing = _FIELDS.keys() - _OPTIONAL - content.keys()
    if missing or content.keys() - _FIELDS.keys():
        raise _malformed(f"must have the fields {', '.join(_FIELDS)} ({', '.join(_OPTIONAL)} may lack)")
    for field, kind in _FIELDS.items():
        if field in content and (not isinstance(content[field], kind) or isinstance(content[field], bool)):
            raise _malformed(f"{field} has the wrong type")
    chunks = content["chunks"]
    if not 1 <= content["bytes"] <= MAX_BYTES:
        raise _malformed(f"a bundle's zip has 1 to {MAX_BYTES} bytes")
    if len(chunks) != -(-content["bytes"] // CHUNK_BYTES):
        raise _malformed(f"{content['bytes']} bytes are not {len(chunks)} pieces of {CHUNK_BYTES}")
    if not all(isinstance(text, str) and _HEX.fullmatch(text) for text in (*chunks, content["sha256"])):
        raise _malformed("a hash is not 64 hex digits")
    if not _NAME.fullmatch(content["name"]) or not _VERSION.fullmatch(content["version"]):
        raise _malformed("name or version is not that of a bundle")
    if content["promote"] not in ("auto", "hold"):
        raise _malformed("promote is auto or hold")
    url = content.get("url")
    if url is not None and not _URL.fullmatch(url):
        raise _malformed("url is not an https address")
    return ModelOrder(
        content["name"], content["version"], content["sha256"], content["bytes"], tuple(chunks), content["promote"], url
    )


def _malformed(reason: str) -> ControlError:
    return ControlError("malformed", reason, "make the order with `talus model push`")
