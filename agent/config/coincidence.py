"""Several stations of one site that must agree before anyone is woken; ``agent.alert.coincidence`` applies it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import AfterValidator, Field

from agent.config.section import Disagreement, Section, parse_code

MAX_STATIONS = 64
"""Most stations in one coincidence: a site's message names each with its vote."""


def _station(text: str) -> str:
    network, dot, station = text.partition(".")
    if not dot or "." in station:
        raise ValueError("must be NETWORK.STATION, such as XX.S01")
    parse_code(network)
    parse_code(station)
    return text


StationCode = Annotated[str, AfterValidator(_station)]
"""``NET.STA``: every sensor of the station."""


class CoincidenceConfig(Section):
    """Alerts about single events of these stations wait until enough of them have seen the same."""

    stations: tuple[StationCode, ...] = Field(
        strict=False,
        min_length=2,
        max_length=MAX_STATIONS,
        examples=[["XX.S01", "XX.S02"]],
        description="stations of the site, NETWORK.STATION each; sensors of one station count once",
    )
    required: int = Field(
        default=2, ge=2, le=MAX_STATIONS, description="different stations that must have an event, at least"
    )
    window_s: float = Field(
        default=10.0, gt=0, le=120,
        description="their onsets lie within so many seconds: what a slow wave takes across the site, and a margin",
    )  # fmt: skip
    max_lag_s: float = Field(
        default=15.0, ge=1, le=300,
        description="how long a verdict waits for stations whose data come later, seconds of data; "
        "one that is further behind counts as dead",
    )  # fmt: skip
    weights: dict[StationCode, Annotated[float, Field(gt=0, le=100)]] = Field(
        default={}, description="weight of a station's vote, NETWORK.STATION: number; 1 for those not named"
    )

    def disagreements(self) -> Iterator[Disagreement]:
        if len(set(self.stations)) != len(self.stations):
            yield Disagreement(("stations",), "names the same station twice")
        if self.required > len(self.stations):
            reason = f"must not exceed the number of stations ({len(self.stations)})"
            yield Disagreement(("required", "stations"), reason)
        for name in self.weights:
            if name not in self.stations:
                yield Disagreement(("weights", "stations"), f"names {name}, which is not among the stations")


class SiteConfig(Section):
    """What the stations of this agent have to do with each other."""

    coincidence: CoincidenceConfig | None = Field(
        default=None, description="alerts wait until several stations agree; without this section each alerts alone"
    )
