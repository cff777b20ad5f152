"""Hours of a simulated site put straight into a desk's database and records, without a broker: for pictures of pages.

The samples are synthetic; what is made of them is the station's own work: trigger, network, policy, records, envelopes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import update

from agent.alert.evidence import EvidenceStore
from agent.config.file import ClassifierConfig, TunablesConfig
from agent.dsp.window import BEFORE_NS
from agent.health.report import Health, HealthInputs, Identity
from agent.messages.payloads import Message
from agent.messages.schema import MODELS, PositionPart, StateMessage, parse
from agent.service.assemble import Line, build_line
from agent.sources.simulator import Scenario, SimulatedSite, SimulatorSource, crisis, failure
from agent.types import NS, Event, Evidence, SampleBlock, StationId, format_ns
from desk.evidence import Records
from desk.store import tables
from desk.store.store import Arrival, Store

PREFIX = "talus/v1"
PLACES = {"CRN": (46.5031, 8.2013, 2140.0), "FLK": (46.5003, 8.2052, 1985.0), "TOE": (46.4976, 8.1997, 1830.0)}
"""Stations of the slope: latitude and longitude, degrees, and elevation, metres."""
_TOLD_NS = 60 * NS
_BATCH = 400


@dataclass(slots=True)
class _Clock:
    """Data time of the newest packet, which stands in for the desk's clock."""

    now_ns: int


def write(store: Store, records: Records, *, hours: float, end_ns: int, seed: int = 11) -> None:
    """A crisis of so many hours that ends at ``end_ns``, at three stations."""
    begin_ns = end_ns - round(hours * 3600) * NS
    stations = [StationId("XX", name, "00", "HH") for name in PLACES]
    site = SimulatedSite(tuple(stations))
    seconds = hours * 3600
    scenario = Scenario(seed, crisis(seconds), len(stations), failure(seconds))
    source = SimulatorSource(site, scenario, seed, start_ns=begin_ns, seconds=seconds, speed=0)
    line = build_line(TunablesConfig(), ClassifierConfig(backends=("onnxruntime",)), PREFIX, envelope="Z")
    clock = _Clock(begin_ns)
    with tempfile.TemporaryDirectory(prefix="talus-history-") as folder:
        _keep_records(line, Path(folder), records)
        store.ingest([Arrival(f"XX.{name}", _state(name), begin_ns) for name in PLACES])
        batch: list[Arrival] = []
        for arrival in _arrivals(source, line, clock):
            batch.append(arrival)
            if len(batch) >= _BATCH:
                store.ingest(batch)
                batch.clear()
        store.ingest([*batch, *(Arrival(f"XX.{name}", "online", clock.now_ns) for name in PLACES)])
    with store.writing() as connection:
        connection.execute(update(tables.evidence).values(state="here"))


def _keep_records(line: Line, folder: Path, records: Records) -> None:
    kept = EvidenceStore(folder, 1000)

    def keep(event: Event) -> Evidence | None:
        recorded = line.pipeline.stations[event.station].recorded(event.onset_ns - BEFORE_NS, event.data_ns)
        found, raw = kept.keep(event.id, recorded), kept.read(event.id)
        if raw is not None:
            records.keep(event.id, raw)
        return found

    line.reporter.keep = keep


def _arrivals(source: SimulatorSource, line: Line, clock: _Clock) -> Iterator[Arrival]:
    health = {name: Health(Identity(StationId("XX", name, "", ""), "0123456789abcdef"), Path()) for name in PLACES}
    due_ns = clock.now_ns + _TOLD_NS
    for block in source.blocks():
        clock.now_ns = max(clock.now_ns, block.end_ns)
        yield from _read(line.feed(block, clock.now_ns).messages, clock)
        health[block.stream.station.station].saw(block, clock.now_ns, used=True)
        if clock.now_ns >= due_ns:
            due_ns += _TOLD_NS
            yield from (_health(name, one, line, block, clock) for name, one in health.items())
    yield from _read(line.finish(clock.now_ns).messages, clock)


def _read(messages: list[Message], clock: _Clock) -> Iterator[Arrival]:
    for message in messages:
        network, station, name = message.topic.removeprefix(f"{PREFIX}/").split("/")
        if name in ("event", "alert", "envelope"):
            yield Arrival(f"{network}.{station}", parse(MODELS[name], message.payload), clock.now_ns)


def _health(name: str, health: Health, line: Line, block: SampleBlock, clock: _Clock) -> Arrival:
    stations = tuple(one for one in line.pipeline.stations.values() if one.id.station == name)
    body = health.message(0, HealthInputs(stations=stations)).model_copy(
        update={"time": format_ns(block.end_ns), "status": "ok", "reasons": []}
    )
    return Arrival(f"XX.{name}", body, clock.now_ns)


def _state(name: str) -> StateMessage:
    latitude, longitude, elevation_m = PLACES[name]
    return StateMessage(
        station=f"XX.{name}",
        boot_id="0123456789abcdef",
        started="2026-01-01T00:00:00.000000000Z",
        versions={},
        model=None,
        backend=None,
        precision=None,
        backend_reason=None,
        config_revision=None,
        config_sha256=None,
        position=PositionPart(latitude=latitude, longitude=longitude, elevation_m=elevation_m),
        exercise=False,
    )
