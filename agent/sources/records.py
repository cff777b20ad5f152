"""Whole records for classification: every station in a file, with its components as runs without gaps."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from agent.config.station import TriggerConfig
from agent.dsp.continuity import LARGEST, Continuity
from agent.dsp.detector import Detector
from agent.dsp.ring import RingBuffer
from agent.dsp.timeline import same_rate
from agent.errors import SourceError
from agent.sources import ProblemSink, SourceProblem
from agent.sources.intake import Intake
from agent.types import COMPONENTS, SampleBlock, Segment, StationId, StreamId, TriggerOff


class StationRecord(NamedTuple):
    """One sensor's data in a file: ``rows[r]`` are the gap-separated segments of input row ``r`` (E 0, N 1, Z 2).

    Segments of a row are in time order, do not overlap, and share one sampling rate; a row without data is absent.
    """

    station: StationId
    rows: dict[int, list[Segment]]

    def between(self, from_ns: int, to_ns: int) -> StationRecord:
        """What it has from ``from_ns`` to before ``to_ns``."""
        cut = {row: [run.between(from_ns, to_ns) for run in runs] for row, runs in self.rows.items()}
        return StationRecord(
            self.station,
            {row: kept for row, runs in cut.items() if (kept := [run for run in runs if len(run.samples)])},
        )


_NEVER = 1 << 63
_PACKET_S = 10.0
_CODES = (("E", "2"), ("N", "1"), ("Z", "3"))
"""Component codes of each input row, the preferred first."""


def read_records(*paths: str | Path, on_problem: ProblemSink = lambda problem: None) -> list[StationRecord]:
    """All stations in one file or several, sorted by name; 20 to 1000 Hz, samples as recorded.

    Overlaps and samples that are not finite are dealt with as at a station (``Continuity``). Where a component changes
    its rate, the rate with the longest time is kept. Where a sensor has both E, N and 2, 1, the letters are kept.

    Raises:
        SourceError: nothing in the file can be used; the message says why.
    """
    problems: list[SourceProblem] = []
    blocks = [
        block
        for path in paths
        for recording in Intake(problems.append).read(Path(path))
        for block in recording.blocks()
    ]
    found, path = stations(blocks), ", ".join(map(str, paths))
    if not found:
        if blocks:
            problems.append(SourceProblem(str(path), "holds no valid sample", "all of them are NaN, or infinite"))
        reasons = list(dict.fromkeys(problem.message for problem in problems)) or ["holds no ground motion"]
        more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
        hint = next((problem.hint for problem in problems), "name a file with seismic waveforms, components E, N, Z")
        raise SourceError(f"{path}: {reasons[0]}{more}", hint)
    floats = [block.samples for block in blocks if block.samples.dtype.kind == "f"]
    invalid = sum(len(samples) - int(np.count_nonzero(np.abs(samples) <= LARGEST)) for samples in floats)
    if invalid:
        total = sum(len(block.samples) for block in blocks)
        message = f"{invalid} of {total} samples are not finite or beyond {LARGEST:g}, and count as not recorded"
        problems.append(SourceProblem(str(path), message))
    for problem in problems:
        on_problem(problem)
    return found


def stations(blocks: Iterable[SampleBlock]) -> list[StationRecord]:
    """What ``blocks`` hold of each station, sorted by name; see ``read_records``."""
    grouped: dict[StationId, dict[str, list[SampleBlock]]] = {}
    for block in blocks:
        grouped.setdefault(block.stream.station, {}).setdefault(block.stream.component, []).append(block)
    return [StationRecord(station, rows) for station in sorted(grouped) if (rows := _rows(grouped[station]))]


def _rows(components: dict[str, list[SampleBlock]]) -> dict[int, list[Segment]]:
    rows: dict[int, list[Segment]] = {}
    for row, codes in enumerate(_CODES):
        code = next((code for code in codes if code in components), None)
        if code is not None:
            segments = _segments(_one_rate(components[code]))
            if segments:
                rows[row] = segments
    return rows


def _one_rate(blocks: list[SampleBlock]) -> list[SampleBlock]:
    """The blocks of one nominal rate, that with the longest time."""
    seconds: dict[float, float] = {}
    for block in blocks:
        nominal = next((rate for rate in seconds if same_rate(block.rate_hz, rate)), block.rate_hz)
        seconds[nominal] = seconds.get(nominal, 0.0) + len(block.samples) / block.rate_hz
    longest = max(seconds, key=lambda hz: (seconds[hz], hz))
    return [block for block in blocks if same_rate(block.rate_hz, longest)]


def _segments(blocks: list[SampleBlock]) -> list[Segment]:
    """What a station would have recorded of one component: without overlaps and invalid samples, in runs."""
    continuity = Continuity()
    rate_hz = blocks[0].rate_hz
    ring = RingBuffer(rate_hz, sum(len(block.samples) for block in blocks) / rate_hz)
    for block in sorted(blocks, key=lambda block: block.start_ns):
        for piece in continuity.accept(block):
            ring.write(piece.start_ns, piece.samples, rate_hz=piece.rate_hz, continues=piece.continues)
    return ring.segments(-_NEVER, _NEVER)


def strongest_trigger(record: StationRecord, trigger: TriggerConfig) -> int | None:
    """Onset (ns) of the trigger with the highest STA/LTA ratio in a record, None where nothing triggers."""
    detector = Detector(record.station, trigger)
    blocks = [
        block
        for row, runs in record.rows.items()
        for run in runs
        for block in run.packets(StreamId(record.station, COMPONENTS[row]), _PACKET_S)
    ]
    fed = [output for block in sorted(blocks, key=lambda block: block.start_ns) for output in detector.feed(block)]
    ends = [output for output in [*fed, *detector.flush()] if isinstance(output, TriggerOff)]
    return max(ends, key=lambda end: end.peak_ratio).onset_ns if ends else None
