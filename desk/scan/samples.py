"""Samples of single events, from the archive that was scanned."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from agent.sources.intake import Intake
from agent.sources.records import StationRecord, stations
from agent.types import StationId
from desk.scan.index import SLACK_NS, look
from desk.scan.reading import inputs


class Samples:
    """What the files below some paths hold, found by their names or looked through once."""

    def __init__(self, paths: Sequence[str | Path]) -> None:
        self._holds: dict[StationId, list[tuple[int, int, str]]] = {}
        for path, found in look(paths).holds.items():
            for extent in found:
                self._holds.setdefault(extent.station, []).append((extent.first_ns, extent.end_ns, path))

    def record(self, station: StationId, from_ns: int, to_ns: int) -> StationRecord | None:
        """What was recorded of a sensor in a span; None where nothing was, or it cannot be read."""
        named = {
            path
            for first, end, path in self._holds.get(station, [])
            if first < to_ns + SLACK_NS and end > from_ns - SLACK_NS
        }
        intake = Intake(lambda problem: None)
        blocks = [
            block
            for part in inputs(sorted(named), from_ns, to_ns).parts
            for recording in intake.read(part.path, part.span)
            for block in recording.blocks()
            if block.stream.station == station
        ]
        for record in stations(blocks):
            cut = record.between(from_ns, to_ns)
            if cut.rows:
                return cut
        return None
