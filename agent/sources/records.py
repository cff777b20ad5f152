"""Whole records for classification: every station in a file, with its components as runs without gaps."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, cast

import numpy as np

from agent.errors import SourceError
from agent.sources import ProblemSink, SourceProblem
from agent.sources.intake import Intake, Run
from agent.types import NS, Samples, Segment, StationId


class StationRecord(NamedTuple):
    """One sensor's data in a file: ``rows[r]`` are the gap-separated segments of input row ``r`` (E 0, N 1, Z 2).

    Segments of a row are in time order, do not overlap, and share one sampling rate; a row without data is absent.
    """

    station: StationId
    rows: dict[int, list[Segment]]


_CODES = (("E", "2"), ("N", "1"), ("Z", "3"))
"""Component codes of each input row, the preferred first."""


def read_records(path: str | Path, on_problem: ProblemSink = lambda problem: None) -> list[StationRecord]:
    """All stations in a file that ObsPy reads, sorted by name; 20 to 1000 Hz, samples as recorded.

    Where data overlap, what begins first is kept. Where a component changes its rate, the rate with the longest time
    is kept. Where a sensor has both E, N and 2, 1, the letters are kept.

    Raises:
        SourceError: nothing in the file can be used; the message says why.
    """
    problems: list[SourceProblem] = []
    intake = Intake(problems.append)
    grouped: dict[StationId, dict[str, list[Run]]] = {}
    for run in intake.read(Path(path)):
        if len(run.samples):
            grouped.setdefault(run.stream.station, {}).setdefault(run.stream.component, []).append(run)
    if not grouped:
        reasons = list(dict.fromkeys(problem.message for problem in problems)) or ["holds no ground motion"]
        more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
        hint = next((problem.hint for problem in problems), "name a file with seismic waveforms, components E, N, Z")
        raise SourceError(f"{path}: {reasons[0]}{more}", hint)
    for problem in problems:
        on_problem(problem)
    return [StationRecord(station, _rows(grouped[station])) for station in sorted(grouped)]


def _rows(components: dict[str, list[Run]]) -> dict[int, list[Segment]]:
    rows: dict[int, list[Segment]] = {}
    for row, codes in enumerate(_CODES):
        code = next((code for code in codes if code in components), None)
        if code is not None:
            rows[row] = _join(_one_rate(components[code]))
    return rows


def _one_rate(runs: list[Run]) -> list[Run]:
    seconds: dict[float, float] = {}
    for run in runs:
        seconds[run.rate_hz] = seconds.get(run.rate_hz, 0.0) + len(run.samples) / run.rate_hz
    rate = max(seconds, key=lambda hz: (seconds[hz], hz))
    return [run for run in runs if run.rate_hz == rate]


def _join(runs: list[Run]) -> list[Segment]:
    """Runs that continue each other to within half a sample put together; what overlaps is dropped from the later."""
    segments: list[Segment] = []
    pieces: list[Samples] = []
    start_ns, rate_hz, length = 0, runs[0].rate_hz, 0

    def finish() -> None:
        samples = pieces[0] if len(pieces) == 1 else cast(Samples, np.concatenate(pieces))
        segments.append(Segment(start_ns, rate_hz, samples))

    for run in sorted(runs, key=lambda run: run.start_ns):
        late = round((run.start_ns - start_ns) * rate_hz / NS) - length
        if not pieces or late > 0:
            if pieces:
                finish()
            start_ns, pieces, length = run.start_ns, [run.samples], len(run.samples)
        elif -late < len(run.samples):
            pieces.append(run.samples[-late:] if late else run.samples)
            length += len(run.samples) + late
    finish()
    return segments
