"""What an envelope of the kind ``model`` orders: one bundle, named by the hashes of its pieces.

    {"name": "talus-student", "version": "0.2.0", "sha256": HEX, "bytes": N, "chunks": [HEX, ...], "promote": "auto"}

The hash of every piece stands in the signed envelope, so a piece is judged when it arrives, from wherever: a stranger
on the broker can delay an update and not spoil it. ``url`` (https) says where the whole file may be had instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from agent.errors import ControlError
from agent.remote.gate import first_fault

KIND = "model"
CHUNK_BYTES = 32 * 1024
MAX_BYTES = 16 << 20
"""Largest zip of a bundle: its hashes still fit into an envelope."""

INDEX_BYTES = 4
MAX_PIECE = CHUNK_BYTES + INDEX_BYTES
"""Largest message that carries a piece."""

Promote: TypeAlias = Literal["auto", "hold"]
_Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class ModelOrder(BaseModel):
    """A bundle to fetch, try and take: zip of ``size`` bytes in pieces of ``CHUNK_BYTES`` (the last one is shorter).

    ``promote``: ``auto`` takes it when it has agreed with the live model for long enough, ``hold`` waits for a command.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, populate_by_name=True)

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,63}$")]
    version: Annotated[str, Field(pattern=r"^[0-9A-Za-z][0-9A-Za-z.+-]{0,31}$")]
    sha256: _Hash
    size: Annotated[int, Field(alias="bytes", ge=1, le=MAX_BYTES)]
    chunks: tuple[_Hash, ...] = Field(strict=False)
    promote: Promote
    url: Annotated[str, Field(pattern=r"^https://[!-~]{1,480}$")] | None = None

    @model_validator(mode="after")
    def _pieces_fit(self) -> ModelOrder:
        if len(self.chunks) != -(-self.size // CHUNK_BYTES):
            raise ValueError(f"{self.size} bytes are not {len(self.chunks)} pieces of {CHUNK_BYTES}")
        return self

    @property
    def title(self) -> str:
        """The model's name, as events have it."""
        return f"{self.name} {self.version}"

    def span(self, index: int) -> tuple[int, int]:
        """First byte of a piece, and the one after its last."""
        return index * CHUNK_BYTES, min((index + 1) * CHUNK_BYTES, self.size)

    def content(self) -> dict[str, Any]:
        """The envelope's content."""
        return self.model_dump(by_alias=True, mode="json", exclude_none=True)


def unwrap(payload: bytes) -> tuple[int, bytes]:
    """Number and bytes of a piece; whether they are what was ordered is for ``Download`` to judge."""
    return int.from_bytes(payload[:INDEX_BYTES], "big"), payload[INDEX_BYTES:]


def parse(content: Mapping[str, Any]) -> ModelOrder:
    """The order that an envelope holds.

    Raises:
        ControlError: ``malformed``.
    """
    try:
        return ModelOrder.model_validate(content)
    except ValidationError as error:
        raise ControlError(
            "malformed", f"not an order of a model ({first_fault(error)})", "make the order with `talus model push`"
        ) from None
