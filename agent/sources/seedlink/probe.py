"""A look at the SeedLink servers for ``talus doctor``: reached, understood, stations there, samples coming, on time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from agent.errors import SourceError
from agent.sources.freshness import Freshness, assess
from agent.sources.miniseed import RecordReader
from agent.sources.seedlink.request import held, subscribe
from agent.sources.seedlink.resume import Past, match
from agent.sources.seedlink.wire import Connection
from agent.types import NS, SampleBlock

if TYPE_CHECKING:
    from agent.config.seedlink import SeedLinkConfig, SeedLinkServerConfig, SeedLinkStationConfig

DATA_S = 20.0
"""How long samples are waited for: a record of 512 bytes at 100 Hz takes some five seconds to fill."""
_NO_HINT = "is it a SeedLink server? The service tries again by itself"


def probe(config: SeedLinkConfig, wait_s: float = DATA_S) -> Iterator[Freshness]:
    """Every server in turn, one sight for it and one for each station; nothing is stored.

    Args:
        config: the section ``source``.
        wait_s: how long samples are waited for, at each server.
    """
    for section in config.servers:
        try:
            yield from _probe(section, config.connect_timeout_s, wait_s)
        except SourceError as error:
            yield Freshness(False, error.message, error.hint or _NO_HINT)


def _probe(server: SeedLinkServerConfig, timeout_s: float, wait_s: float) -> Iterator[Freshness]:
    connection = Connection(server, timeout_s)
    refusals: list[SourceError] = []
    try:
        connection.open()
        yield Freshness(True, f"{server.address}: SeedLink {connection.version}, {connection.software}")
        stations = sorted(held(connection) or {})
        try:
            accepted = subscribe(
                connection, server.stations, Past({}), (), lambda _, error: refusals.append(error)
            ).requests
        finally:
            yield from (Freshness(False, error.message, _hint(error, stations)) for error in refusals)
        newest = _receive(connection, accepted, wait_s)
    finally:
        connection.close()
    for request in accepted:
        yield _assess(request, newest, wait_s)


def _hint(error: SourceError, stations: list[str]) -> str:
    if "'STATION " not in error.message or not stations:
        return error.hint
    return f"{error.hint}; the server has {', '.join(stations[:8])}" + (" ..." if len(stations) > 8 else "")


def _receive(
    connection: Connection, requests: list[SeedLinkStationConfig], wait_s: float
) -> dict[str, tuple[SampleBlock, float]]:
    """For each station that sent samples its last block, and the smallest lag of all of its blocks, seconds."""
    reader = RecordReader()
    found: dict[str, tuple[SampleBlock, float]] = {}
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline and not all(any(map(match(request.station), found)) for request in requests):
        packet = connection.receive(min(1.0, deadline - time.monotonic()))
        if packet is None or packet.form not in ("2", "3"):
            continue
        record = reader.read(packet.payload)
        for block in record.blocks[-1:]:
            lag_s = (time.time_ns() - block.end_ns) / NS
            station = packet.station or record.station
            found[station] = (block, min(lag_s, found[station][1]) if station in found else lag_s)
    return found


def _assess(request: SeedLinkStationConfig, newest: dict[str, tuple[SampleBlock, float]], wait_s: float) -> Freshness:
    name = next(filter(match(request.station), newest), None)
    if name is None:
        hint = "check that the recorder runs, and the selectors; the server accepted both"
        return Freshness(False, f"{request.station} has sent no samples for {wait_s:g} s", hint)
    block, lag_s = newest[name]
    what = f"{name}: {block.stream.seed} at {block.rate_hz:g} Hz"
    return assess(what, block, lag_s)
