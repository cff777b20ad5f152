"""Which records are judged: what was recorded while something was learned from is not independent of it, whatever
events the tables call them, and at whatever stations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from agent.types import NS, WINDOW_RATE_HZ
from quantize.data.records import Record


def apart(held: Sequence[Record], learned: Sequence[Record]) -> NDArray[np.bool_]:
    """Which of the records ``held`` share no moment with any that is ``learned`` from."""
    if not learned:
        return np.ones(len(held), dtype=np.bool_)
    starts, ends = _spans(learned)
    order = np.argsort(starts)
    starts, ends = starts[order], np.maximum.accumulate(ends[order])
    begins, stops = _spans(held)
    before = np.searchsorted(starts, stops, side="left") - 1
    alone: NDArray[np.bool_] = (before < 0) | (ends[before] <= begins)
    return alone


def _spans(records: Sequence[Record]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    starts = np.array([record.start_ns for record in records], dtype=np.int64)
    lengths = np.array([record.data.shape[1] for record in records], dtype=np.int64)
    return starts, starts + lengths * NS // WINDOW_RATE_HZ
