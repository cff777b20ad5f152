"""A region of the earth, as the parameters of an FDSN web service name it: a box, a circle, or what is in both."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from agent.errors import DataError
from desk.web.glance import distance_km

DEGREE_KM = distance_km((0.0, 0.0), (1.0, 0.0))
PARAMETERS = {
    "minlatitude": "minlat", "maxlatitude": "maxlat", "minlongitude": "minlon", "maxlongitude": "maxlon",
    "latitude": "lat", "longitude": "lon", "minradius": None, "maxradius": None,
}  # fmt: skip
"""Names and short names."""
_LIMITS = {"latitude": (-90.0, 90.0), "longitude": (-180.0, 180.0), "radius": (0.0, 180.0)}


@dataclass(frozen=True, slots=True)
class Region:
    """All in degrees. A box whose ``west`` is larger than its ``east`` goes across the 180th meridian; the distance to
    ``centre`` (latitude, longitude) is from ``nearest`` to ``farthest``."""

    south: float
    north: float
    west: float
    east: float
    centre: tuple[float, float]
    nearest: float
    farthest: float

    @classmethod
    def of(cls, given: Mapping[str, str]) -> Region | None:
        """The region of a query's parameters; None where it names none.

        Raises:
            DataError: a value is no number, is outside its limits, or leaves nothing between two of them.
        """
        if not given.keys() & PARAMETERS.keys():
            return None
        found = cls(
            number(given, "minlatitude", -90.0, *_LIMITS["latitude"]),
            number(given, "maxlatitude", 90.0, *_LIMITS["latitude"]),
            number(given, "minlongitude", -180.0, *_LIMITS["longitude"]),
            number(given, "maxlongitude", 180.0, *_LIMITS["longitude"]),
            (
                number(given, "latitude", 0.0, *_LIMITS["latitude"]),
                number(given, "longitude", 0.0, *_LIMITS["longitude"]),
            ),
            number(given, "minradius", 0.0, *_LIMITS["radius"]),
            number(given, "maxradius", 180.0, *_LIMITS["radius"]),
        )
        if found.south > found.north:
            raise DataError("minlatitude is larger than maxlatitude")
        if found.nearest > found.farthest:
            raise DataError("minradius is larger than maxradius")
        return found

    def holds(self, latitude: float, longitude: float) -> bool:
        """Whether a place is in the region, its borders included."""
        if not self.south <= latitude <= self.north:
            return False
        from_west, to_east = longitude >= self.west, longitude <= self.east
        if not (from_west and to_east if self.west <= self.east else from_west or to_east):
            return False
        return self.nearest <= distance_km(self.centre, (latitude, longitude)) / DEGREE_KM <= self.farthest


def number(given: Mapping[str, str], name: str, usual: float, least: float, most: float) -> float:
    """A parameter's value; ``usual`` where it is not given.

    Raises:
        DataError: it is no number from ``least`` to ``most``.
    """
    try:
        value = float(given.get(name, usual))
    except ValueError:
        value = math.nan
    if not least <= value <= most:
        raise DataError(f"{name} is a number" + (f" from {least:g} to {most:g}" if math.isfinite(most) else ""))
    return value
