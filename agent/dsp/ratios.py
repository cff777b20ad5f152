"""The ratio of the last minutes where it was worked out, which is near triggers alone: what peaks are looked up in."""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from agent.types import NS


class _Piece(NamedTuple):
    """Ratios of consecutive samples, the first with number ``first``, taken at ``start_ns``."""

    first: int
    start_ns: int
    rate_hz: float
    ratio: NDArray[np.float64]

    def after(self, time_ns: int) -> int:
        """Index of the first ratio at or after a time; may lie outside."""
        return math.ceil((time_ns - self.start_ns - 0.5) * self.rate_hz / NS)


class Ratios:
    """Takes memory for what there is, and forgets by age: most of the time there is nothing. Not thread-safe."""

    def __init__(self, kept: int) -> None:
        """``kept``: samples for which a ratio is remembered."""
        self._kept = kept
        self._pieces: deque[_Piece] = deque()

    def keep(self, first: int, start_ns: int, rate_hz: float, ratio: NDArray[np.float64]) -> None:
        """Remember the ratios ``[n]`` of numbered samples, which are after all earlier ones and not changed any more.

        Args:
            first: number of the first sample.
            start_ns: its time.
            rate_hz: the rate that the times show.
            ratio: short to long average.
        """
        pieces, oldest = self._pieces, first + len(ratio) - self._kept
        pieces.append(_Piece(first, start_ns, rate_hz, ratio))
        while pieces[0].first + len(pieces[0].ratio) <= oldest:
            pieces.popleft()

    def peak(self, from_ns: int, to_ns: int) -> float:
        """The largest one in ``from_ns <= t < to_ns``, 0 where there is none."""
        largest = 0.0
        for piece in self._pieces:
            begin, end = max(0, piece.after(from_ns)), piece.after(to_ns)
            if begin < min(end, len(piece.ratio)):
                largest = max(largest, float(piece.ratio[begin:end].max()))
        return largest
