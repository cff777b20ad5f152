"""A synthetic archive of several days, with events, noise of its own and gaps at midnight."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from obspy import UTCDateTime
from records_support import trace, write

from agent.config.station import ClassifierConfig, SlowTriggerConfig, TriggerConfig
from agent.detect.pipeline import Pipeline
from agent.inference import Classifier
from agent.sources.archive import ArchiveSource
from agent.types import NS, Event, parse_ns
from desk.scan.index import look
from desk.scan.judge import Settings, Task, judge
from desk.scan.result import Result, row_of
from desk.scan.units import DAY_NS, Unit, after_ns, before_ns

DAY = parse_ns("2026-03-01T00:00:00Z")
RATE_HZ = 20
"""The lowest rate that the agent takes: days are cheap."""
NO_SLOW = SlowTriggerConfig(enabled=False)
TRIGGER = TriggerConfig(low_hz=1.0, high_hz=8.0, lta_s=10.0, max_duration_s=30.0, slow=NO_SLOW)
CONSTANT = ClassifierConfig(backends=("onnxruntime",))


def ground(days: float, seed: int = 1, every_s: float = 900.0) -> NDArray[np.float64]:
    """Noise ``[3, n]`` with an event in about ``every_s`` seconds, some of them seconds around midnight."""
    rng = np.random.default_rng(seed)
    n = round(days * 86_400 * RATE_HZ)
    data = rng.normal(0, 100.0, (3, n))
    onsets = set(rng.uniform(0, n, round(days * 86_400 / every_s)).astype(int))
    for day in range(1, int(np.ceil(days))):
        onsets |= {day * 86_400 * RATE_HZ + round(offset * RATE_HZ) for offset in (-130.3, -40.1, -1.4, 0.6, 35.2)}
    for onset in sorted(onsets):
        length = min(n - onset, round(RATE_HZ * rng.uniform(2, 25)))
        envelope = np.exp(-np.arange(length) / (length / 4)) * rng.uniform(800, 6000)
        data[:, onset : onset + length] += envelope * rng.normal(0, 1, (3, length))
    return data


def write_archive(
    root: Path,
    data: NDArray[np.float64],
    holes: Sequence[tuple[str, float, float]] = (),
    station: str = "SLP",
) -> Path:
    """An SDS archive: a file a component and day, records of seconds that pass midnight; ``holes``: component, and from
    when to when it is missing, seconds."""
    n = data.shape[1]
    for component, samples in zip("ENZ", data, strict=True):
        kept = np.ones(n, bool)
        for name, begin, end in holes:
            if name in (component, "*"):
                kept[round(begin * RATE_HZ) : round(end * RATE_HZ)] = False
        edges = np.flatnonzero(np.diff(kept.astype(np.int8), prepend=0, append=0)).tolist()
        runs = list(zip(edges[::2], edges[1::2], strict=True))
        day = 0
        while day * 86_400 * RATE_HZ < n:
            begin, end = day * 86_400 * RATE_HZ, min(n, (day + 1) * 86_400 * RATE_HZ)
            when = UTCDateTime(ns=DAY + day * DAY_NS)
            channel = f"HH{component}"
            name = f"XX.{station}.00.{channel}.D.{when.year}.{when.julday:03d}"
            traces = [
                trace(
                    samples[max(a, begin) : min(b, end)].astype(np.int32), channel,
                    DAY + round(max(a, begin) * NS / RATE_HZ), RATE_HZ, station,
                )
                for a, b in runs
                if max(a, begin) < min(b, end)
            ]  # fmt: skip
            if traces:
                path = root / str(when.year) / "XX" / station / f"{channel}.D" / name
                write(path, *traces, encoding="STEIM2", reclen=512)
            day += 1
    return root


def settings_of(trigger: TriggerConfig = TRIGGER) -> Settings:
    return Settings.of(trigger, CONSTANT)


def unbroken(paths: list[Path], classifier: Classifier, trigger: TriggerConfig = TRIGGER) -> dict[str, list[object]]:
    """The last revision of every event that the station's own pipeline has in one pass over all of it, in packets of a
    second as a station gets them."""
    pipeline = Pipeline(trigger, (3.0, 5.0, 10.0, 20.0, 40.0, 80.0), classifier)
    found: dict[str, list[object]] = {}
    for block in ArchiveSource(paths, 1.0, on_problem=print, grid_ns=0).blocks():
        outputs = pipeline.feed(block)
        found |= {o.id: row_of(o) for o in outputs if isinstance(o, Event)}
    outputs = pipeline.flush()
    return found | {o.id: row_of(o) for o in outputs if isinstance(o, Event)}


def judged(units: list[Unit], settings: Settings) -> list[Result]:
    return [Result.of(judge(Task(unit, settings)).content or b"") for unit in units]


def units_of(paths: list[Path], trigger: TriggerConfig = TRIGGER) -> list[Unit]:
    return look(paths).units(before_ns(trigger), after_ns(trigger))


def rows_of(results: list[Result]) -> dict[str, list[object]]:
    """By identifier; none may be there twice."""
    rows = [row for result in results for row in result.events]
    assert len({row[0] for row in rows}) == len(rows)
    return {row[0]: row for row in rows}


def cut_at(units: list[Unit], cuts: list[int]) -> list[Unit]:
    """The same units, each in pieces between these times."""
    pieces = []
    for unit in units:
        edges = [unit.from_ns, *sorted({cut for cut in cuts if unit.from_ns < cut < unit.to_ns}), unit.to_ns]
        pieces += [Unit(unit.station, a, b, unit.files) for a, b in pairwise(edges)]
    return pieces
