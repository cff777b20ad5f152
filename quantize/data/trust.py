"""How far the label of a record is believed when it is learned from, and which records no figure rests on.

What was recorded while something was learned from is not independent of it, whatever events the tables call them, and
at whatever stations (``apart``).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta, timezone

import numpy as np
from numpy.typing import NDArray

from agent.types import NS, WINDOW_RATE_HZ
from quantize.data.records import Record, Row

CRATER = 0.25
"""Emergent spindles that look like crater rockfalls, of low confidence."""
WORKING_HOURS = 0.4
"""Earthquakes of ``uw`` on weekdays between 9 and 17 h local time: twice as many as nature makes, so about half may be
blasts."""
DEMONSTRATED = ("unterhaching",)
"""Sources inside the ObsPy package that the demonstration shows: learned from, never judged by."""

_STANDARD_TIME = timezone(timedelta(hours=-8))
_SUMMER = range(4, 11)
"""Months of daylight saving time, whole months: an hour more or less at either end moves no figure."""


def trust(row: Row) -> float:
    """Weight of a record in the drawing of training windows, in ``0..1``."""
    if row.dataset == "ya_crater":
        return CRATER
    if row.dataset == "uw" and row.label == "earthquake" and row.onset_ns is not None:
        return WORKING_HOURS if in_working_hours(row.onset_ns) else 1.0
    return 1.0


def is_judged(row: Row) -> bool:
    """Whether figures may rest on the record."""
    return row.dataset not in DEMONSTRATED


def in_working_hours(ns: int) -> bool:
    """Whether the instant falls on a weekday between 9 and 17 h in the Pacific Northwest."""
    local = datetime.fromtimestamp(ns // NS, tz=_STANDARD_TIME)
    if local.month in _SUMMER:
        local += timedelta(hours=1)
    return local.weekday() < 5 and 9 <= local.hour < 17


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
