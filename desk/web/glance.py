"""What somebody who is woken needs first of an event, in words: how its size compares, and what the neighbours saw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from agent.types import NS, place_of
from desk.store import queries

NEAR_KM = 30.0
"""Stations beyond are no neighbours."""
MOST = 6
"""Neighbours that are named, the nearest first."""
LEAST_COMPARED = 10
"""Events of the sensor, below which no rank is told."""
LIVE_NS = 3600 * NS
"""At a younger event, a neighbour is as it says now; at an older one, its hours of health say whether it heard."""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """Another station at the time of an event. ``event`` is what its sensors saw within a minute; where that is
    nothing, ``words`` say whether it could."""

    code: str
    km: float | None
    event: queries.EventRow | None
    words: str


def size_words(connection: Connection, row: queries.EventRow) -> str | None:
    """How an event's peak compares with those of the sensor before it; None where there is nothing to compare."""
    if row.peak_counts is None:
        return None
    peaks = queries.peaks_before(connection, row)
    if len(peaks) < LEAST_COMPARED:
        return None
    smaller = sum(peak < row.peak_counts for peak in peaks)
    if smaller == len(peaks):
        return f"the largest of {len(peaks) + 1} here"
    return f"larger than {smaller} of the last {len(peaks)} here"


def neighbours(
    connection: Connection, row: queries.EventRow, others: Sequence[queries.EventRow], now_ns: int
) -> list[Neighbour]:
    """The stations near an event's, the nearest first. ``others``: events of other sensors about the same time."""
    place = place_of(row.sensor)
    stations = {one.code: one for one in queries.stations(connection, imported=True)}
    here = stations.get(place)
    seen = {place_of(other.sensor): other for other in sorted(others, key=lambda o: -abs(o.onset_ns - row.onset_ns))}
    near = []
    for code, one in stations.items():
        km = None
        if here is not None and here.position is not None and one.position is not None:
            km = distance_km(here.position[:2], one.position[:2])
        if code != place and (code in seen or (km is not None and km <= NEAR_KM)):
            near.append((math.inf if km is None else km, code, km))
    found = []
    for _, code, km in sorted(near)[:MOST]:
        found.append(Neighbour(code, km, seen.get(code), _silence_words(connection, stations[code], row, now_ns)))
    return found


def _silence_words(connection: Connection, station: queries.StationRow, row: queries.EventRow, now_ns: int) -> str:
    status = station.status(now_ns)
    if now_ns - row.onset_ns < LIVE_NS and status != "imported":
        return "nothing" if status in ("ok", "degraded") else f"{status}, heard nothing"
    told = queries.coverage(connection, station.code, row.onset_ns, row.onset_ns + 1)
    return "nothing" if told and told[0][1] > 0 else "was not heard"


def distance_km(one: tuple[float, float], other: tuple[float, float]) -> float:
    """Between two positions (latitude, longitude in degrees), on a sphere."""
    (lat, lon), (lat2, lon2) = (tuple(map(math.radians, place)) for place in (one, other))
    part = math.sin((lat2 - lat) / 2) ** 2 + math.cos(lat) * math.cos(lat2) * math.sin((lon2 - lon) / 2) ** 2
    return 2 * 6371.0 * math.asin(math.sqrt(min(1.0, part)))


def span_words(km: float | None) -> str:
    """``850 m``, ``12 km``; nothing where it is not known."""
    if km is None:
        return ""
    return f"{1000 * km:.0f} m" if km < 1 else f"{km:.1f} km" if km < 10 else f"{km:.0f} km"
