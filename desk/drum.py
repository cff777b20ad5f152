"""A day of one station as the smallest and largest sample of each second: as the station sends them, or else from the
records of its events."""

from __future__ import annotations

import base64
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, select

from agent.errors import TalusError
from agent.messages.envelope import LONGEST, Packed, unpack
from agent.types import NS
from desk.evidence import Records
from desk.record import LONGEST_S, Trace, traces
from desk.store import tables as t

DAY_S = 86_400
LEVEL_S = 600
"""The zero line is set anew for each ten minutes: a drift of the sensor is not what the plot is for."""
MOST_RECORDS = 1000
"""Of one day that are read."""

_log = logging.getLogger(__name__)
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Drum:
    """``low`` and ``high``: counts about the zero line, one a second of the day, NaN where nothing was recorded.
    ``source`` says what they were made of: the station's ``envelope``, the ``records`` of events, or ``none``."""

    sensor: str
    component: str
    source: Literal["envelope", "records", "none"]
    low: Floats
    high: Floats

    def scale(self) -> float:
        """Counts from the middle of a line to its edge: six times the usual amplitude, so that noise is a thin line and
        an event stands out."""
        half = (self.high - self.low) / 2
        known = half[np.isfinite(half)]
        return max(1.0, 6 * float(np.median(known))) if len(known) else 1.0

    def parts(self, step_s: int) -> list[dict[str, Any]]:
        """Runs without a gap, one pair of values for each ``step_s`` seconds; for a page."""
        count = DAY_S // step_s
        low = np.fmin.reduce(self.low[: count * step_s].reshape(count, step_s), axis=1)
        high = np.fmax.reduce(self.high[: count * step_s].reshape(count, step_s), axis=1)
        return [
            {
                "second": begin * step_s,
                "low": np.round(low[begin:end]).astype(int).tolist(),
                "high": np.round(high[begin:end]).astype(int).tolist(),
            }
            for begin, end in _runs(np.isfinite(low))
        ]


def drum_of(connection: Connection, records: Records | None, station: str, begin_ns: int) -> Drum:
    """The day of a station that begins at ``begin_ns``: of its sensor with the most to show. Records of events stand in
    where it sends no envelope."""
    found = _of_envelopes(connection, station, begin_ns)
    if not found and records is not None:
        found = _of_records(connection, records, station, begin_ns)
    return max(found, key=_seconds, default=Drum("", "Z", "none", *_empty()))


def _of_envelopes(connection: Connection, station: str, begin_ns: int) -> list[Drum]:
    v = t.envelope.c
    statement = (
        select(t.sensor.c.code, v.component, v.start_ns, v.seconds, v.scale, v.data)
        .join(t.sensor, t.sensor.c.id == v.sensor_id)
        .join(t.station, t.station.c.id == t.sensor.c.station_id)
        .where(t.station.c.code == station)
        .where(v.start_ns > begin_ns - LONGEST * NS, v.start_ns < begin_ns + DAY_S * NS)
        .order_by(v.start_ns)
    )
    days: dict[tuple[str, str], tuple[Floats, Floats]] = {}
    for row in connection.execute(statement):
        lows, highs = unpack(Packed(row.seconds, row.scale, base64.b64encode(row.data).decode()))
        low, high = days.setdefault((row.code, row.component), _empty())
        at = (row.start_ns - begin_ns) // NS
        first, last = max(0, at), min(DAY_S, at + row.seconds)
        if first < last:
            low[first:last] = np.fmin(low[first:last], lows[first - at : last - at])
            high[first:last] = np.fmax(high[first:last], highs[first - at : last - at])
    return [Drum(code, name, "envelope", *levelled(*day)) for (code, name), day in days.items()]


def _of_records(connection: Connection, records: Records, station: str, begin_ns: int) -> list[Drum]:
    earliest_ns = begin_ns - round(LONGEST_S * NS)
    statement = (
        select(t.event.c.uid, t.event.c.onset_ns, t.sensor.c.code)
        .join(t.evidence, t.evidence.c.event_id == t.event.c.id)
        .join(t.sensor, t.sensor.c.id == t.event.c.sensor_id)
        .join(t.station, t.station.c.id == t.sensor.c.station_id)
        .where(t.station.c.code == station, t.evidence.c.state == "here")
        .where(t.event.c.onset_ns >= earliest_ns, t.event.c.onset_ns < begin_ns + DAY_S * NS)
        .order_by(t.event.c.onset_ns)
        .limit(MOST_RECORDS)
    )
    days: dict[str, tuple[Floats, Floats, str]] = {}
    for row in connection.execute(statement):
        path = records.path(row.uid)
        if not path.is_file():
            continue
        try:
            trace = traces(path, row.code, row.onset_ns)[0]
        except TalusError as error:
            _log.warning("the record of %s is left out of the day: %s", row.uid, error)
            continue
        if row.code not in days:
            days[row.code] = (*_empty(), trace.name)
        low, high, _ = days[row.code]
        _add(low, high, trace, row.onset_ns + round(trace.start_s * NS) - begin_ns)
    return [Drum(code, name, "records", *levelled(low, high)) for code, (low, high, name) in days.items()]


def _add(low: Floats, high: Floats, trace: Trace, start_ns: int) -> None:
    """Put the extremes of a record's seconds into the day; ``start_ns`` counts from its midnight."""
    times = start_ns / NS + np.arange(len(trace.samples)) / trace.rate_hz
    seconds = np.floor(times).astype(int)
    kept = (seconds >= 0) & (seconds < DAY_S) & np.isfinite(trace.samples)
    np.fmin.at(low, seconds[kept], trace.samples[kept])
    np.fmax.at(high, seconds[kept], trace.samples[kept])


def levelled(low: Floats, high: Floats) -> tuple[Floats, Floats]:
    """The extremes about the median of each ten minutes."""
    middle = ((low + high) / 2).reshape(-1, LEVEL_S)
    known = np.isfinite(middle).any(axis=1)
    level = np.zeros(len(middle))
    level[known] = np.nanmedian(middle[known], axis=1)
    lines = np.repeat(level, LEVEL_S)
    return low - lines, high - lines


def _empty() -> tuple[Floats, Floats]:
    return np.full(DAY_S, np.nan), np.full(DAY_S, np.nan)


def _seconds(drum: Drum) -> int:
    return int(np.isfinite(drum.low).sum())


def _runs(known: NDArray[np.bool_]) -> Sequence[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], known, [False]]).astype(np.int8)))
    return [(int(begin), int(end)) for begin, end in edges.reshape(-1, 2)]
