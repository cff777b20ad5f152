"""Message bodies as the database keeps them: JSON, compressed against a sample of its own kind.

A message of 1.3 kB repeats mostly the names of its fields. With a preset dictionary (RFC 1950, ``FDICT``) zlib makes
about 250 bytes of it, which is what keeps a million events below a gigabyte.
"""

from __future__ import annotations

import json
import zlib
from typing import Any

from sqlalchemy import LargeBinary
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator

from agent.messages.schema import Payload

LARGEST = 4 * 1024 * 1024
"""Bytes of JSON that a body may have. Every topic has a lower limit of its own."""

_FIRST_SAMPLE = (
    b'{"schema":"talus/alert/1","id":"XX.SLOPE.00.HH-20260101T000000.000Z","action":"raise","severity":"severe",'
    b'"label":"landslide","reason":"","rate":null,"expires":"2026-01-01T00:00:00.000000000Z"'
    b'{"schema":"talus/event/1","id":"XX.SLOPE.00.HH-20260101T000000.000Z","revision":0,"phase":"end",'
    b'"station":"XX.SLOPE.00.HH","onset":"2026-01-01T00:00:00.000000000Z","detection":{"ratio":1.0,"duration_s":3.0,'
    b'"peak_counts":100.0,"dominant_hz":3.0},"classification":{"label":"earthquake","probability":0.9,'
    b'"probabilities":{"earthquake":0.9,"blast":0.05,"collapse":0.01,"landslide":0.01,"noise":0.03},"window_s":81.92,'
    b'"abstained":false,"model":{"name":"talus-student 0.1.0","sha256":""},"backend":"onnxruntime",'
    b'"precision":"int8"},"reason":null,"timing":{"data":"2026-01-01T00:00:00.000000000Z",'
    b'"received":"2026-01-01T00:00:00.000000000Z","decided":"2026-01-01T00:00:00.000000000Z",'
    b'"handed":"2026-01-01T00:00:00.000000000Z"},"quality":{"gap_s":0.0,"components":"ENZ","clock":null},'
    b'"evidence":{"sha256":"","bytes":45056,"start":"","end":""},"coincidence":null,"quakeml_type":"landslide",'
    b'"exercise":false,"boot_id":"0123456789abcdef","seq":1}'
)
_SAMPLES = {1: _FIRST_SAMPLE}
"""Dictionaries by number. A number is never given another content: what is stored names it in its first byte."""
_NEWEST = 1


def pack(body: Payload) -> bytes:
    """The stored form: the dictionary's number, then the compressed JSON."""
    packer = zlib.compressobj(6, zlib.DEFLATED, zlib.MAX_WBITS, 8, zlib.Z_DEFAULT_STRATEGY, _SAMPLES[_NEWEST])
    text = body.model_dump_json(by_alias=True).encode()
    return bytes([_NEWEST]) + packer.compress(text) + packer.flush()


def unpack(stored: bytes) -> dict[str, Any]:
    """What ``pack`` was given, as JSON has it.

    Raises:
        ValueError: the stored bytes are damaged.
    """
    try:
        unpacker = zlib.decompressobj(zlib.MAX_WBITS, _SAMPLES[stored[0]])
        body: dict[str, Any] = json.loads(unpacker.decompress(stored[1:], LARGEST))
    except (zlib.error, KeyError, IndexError) as error:
        raise ValueError(f"a stored message is damaged: {error}") from None
    return body


class Body(TypeDecorator[Any]):
    """A column of message bodies: a checked payload on the way in, a dictionary on the way out."""

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: Payload | None, dialect: Dialect) -> bytes | None:
        """Compress on the way in."""
        return None if value is None else pack(value)

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> dict[str, Any] | None:
        """Decompress on the way out."""
        return None if value is None else unpack(bytes(value))
