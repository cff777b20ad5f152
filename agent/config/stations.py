"""The stations whose data an agent works on, besides the one that it reports itself under."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from agent.config.sources import station_ids
from agent.config.station import Config, DeclaredStationConfig
from agent.config.yaml import Loc


@dataclass(frozen=True, slots=True)
class Stations:
    """``known``: NET.STA of every station under whose topics the agent will write, its own first. ``complete``: the
    source can bring no others."""

    known: tuple[str, ...]
    complete: bool


def stations_of(config: Config) -> Stations:
    """The stations of a configuration: its own, those that it declares, and those that its source names."""
    named = list(_named(config).values())
    names = [_own(config), *_declared(config), *(name for name in named if not _is_pattern(name))]
    complete = config.source.kind not in ("archive", "folder") and not any(map(_is_pattern, named))
    return Stations(tuple(dict.fromkeys(names)), complete)


def others(config: Config) -> Mapping[str, DeclaredStationConfig | None]:
    """The known stations but for the agent's own, each with what the file declares of it."""
    declared = {one.station: one for one in config.stations}
    return {name: declared.get(name) for name in stations_of(config).known[1:]}


def undeclared(config: Config) -> Iterator[tuple[Loc, str]]:
    """Where the source names a station that is neither the agent's own nor declared, and which one."""
    if config.source.kind == "simulator":
        return
    expected = [_own(config), *_declared(config)]
    for loc, name in _named(config).items():
        if not any(fnmatch.fnmatchcase(one, name) for one in expected):
            yield loc, name


def _own(config: Config) -> str:
    return f"{config.station.network}.{config.station.station}"


def _declared(config: Config) -> list[str]:
    together = config.site.coincidence
    return [*(one.station for one in config.stations), *(together.stations if together is not None else ())]


def _named(config: Config) -> Mapping[Loc, str]:
    """What the source says of its stations, NET.STA or a pattern of it, by its place in the file."""
    source, own = config.source, config.station
    if source.kind == "seedlink":
        return {
            ("source", "servers", i, "stations", j, "station"): station.station.replace("_", ".", 1)
            for i, server in enumerate(source.servers)
            for j, station in enumerate(server.stations)
        }
    if source.kind == "shake_udp":
        return {
            ("source", "senders", i): f"{sender.network or own.network}.{sender.station or own.station}"
            for i, sender in enumerate(source.senders)
        }
    if source.kind == "simulator":
        found = station_ids(own.network, own.station, source.stations, source.rate_hz)
        return {("source", "stations", i): station.short for i, station in enumerate(found)}
    return {}


def _is_pattern(name: str) -> bool:
    return "*" in name or "?" in name
