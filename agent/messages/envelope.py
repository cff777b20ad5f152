"""The smallest and largest sample of each second, packed for a thin link: about 250 kB a day and component.

The values are whole steps of ``scale`` counts, a power of two: a second's usual range is 16 to 32 steps, more than a
line of a drum plot shows. The first ``count`` numbers are the differences of successive minima, zigzag (0, -1, 1, -2 as
0, 1, 2, 3); the second ``count`` are maximum - minimum + 1, with 0 for a second of which nothing is known. They are
written as unsigned 32-bit numbers in four planes, all lowest bytes first, compressed by zlib, in base64.
"""

from __future__ import annotations

import base64
import binascii
import math
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agent.errors import DataError

LONGEST = 3600
"""Seconds in one message at most."""
_LEAST_STEPS = 16
_LARGEST = 2**27
"""Steps that a value may have: differences of such values and their zigzag form fit 32 bits."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Packed:
    """What goes into a message."""

    count: int
    scale: float
    data: str


def pack(low: Floats, high: Floats) -> Packed:
    """Pack the extremes of successive seconds, counts; NaN where nothing is known."""
    known = np.isfinite(low)
    ranges = (high - low)[known]
    usual = float(np.median(ranges)) if len(ranges) else 0.0
    largest = float(max(np.abs(low[known]).max(), np.abs(high[known]).max())) if len(ranges) else 0.0
    least = max(1.0, usual / _LEAST_STEPS if usual else 1.0, largest / _LARGEST * 2)
    scale = 2.0 ** math.floor(math.log2(least))
    below = np.zeros(len(low), np.int64)
    width = np.zeros(len(low), np.int64)
    below[known] = np.floor(low[known] / scale).astype(np.int64)
    width[known] = np.ceil(high[known] / scale).astype(np.int64) - below[known] + 1
    places = np.maximum.accumulate(np.where(known, np.arange(len(low)), -1))
    below = np.where(places >= 0, below[places], 0)
    steps = np.diff(below, prepend=0)
    numbers = np.concatenate([(steps << 1) ^ (steps >> 63), width]).astype("<u4")
    planes = numbers.view(np.uint8).reshape(-1, 4).T.tobytes()
    return Packed(len(low), scale, base64.b64encode(zlib.compress(planes, 9)).decode())


def unpack(packed: Packed) -> tuple[Floats, Floats]:
    """What ``pack`` was given, to a step; NaN where nothing is known.

    Raises:
        DataError: not what ``pack`` makes.
    """
    size = 8 * packed.count
    try:
        unpacker = zlib.decompressobj()
        planes = unpacker.decompress(base64.b64decode(packed.data, validate=True), size + 1)
    except (binascii.Error, ValueError, zlib.error) as error:
        raise DataError(f"an envelope cannot be read: {error}", "see agent/messages/envelope.py") from None
    if len(planes) != size or not unpacker.eof:
        raise DataError(f"an envelope of {packed.count} s has {len(planes)} bytes", f"{size} are right")
    raw = np.frombuffer(planes, np.uint8).reshape(4, -1).T
    numbers = np.ascontiguousarray(raw).view("<u4").ravel().astype(np.int64)
    steps, width = numbers[: packed.count], numbers[packed.count :]
    low = np.cumsum((steps >> 1) ^ -(steps & 1)) * packed.scale
    known = width > 0
    return np.where(known, low, np.nan), np.where(known, low + (width - 1) * packed.scale, np.nan)


def merged(one: Packed, other: Packed) -> Packed:
    """The extremes of both, which begin with the same second.

    Raises:
        DataError: one of them cannot be read.
    """
    if one == other:
        return one
    parts = [unpack(packed) for packed in (one, other)]
    low, high = (np.full(max(one.count, other.count), np.nan) for _ in range(2))
    for lows, highs in parts:
        low[: len(lows)], high[: len(highs)] = np.fmin(low[: len(lows)], lows), np.fmax(high[: len(highs)], highs)
    return pack(low, high)
