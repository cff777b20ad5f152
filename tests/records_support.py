"""Makers of recorded files for tests: real miniSEED, SAC and the rest, written by ObsPy."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import obspy
from numpy.typing import NDArray
from obspy import Stream, Trace, UTCDateTime

from agent.types import NS, parse_ns

NOON = parse_ns("2024-05-01T12:00:00Z")
MIDNIGHT = parse_ns("2024-05-01T00:00:00Z")


def counts(n: int, seed: int = 0) -> NDArray[np.int32]:
    """A random walk of ``n`` counts, hard to compress and different for each seed."""
    return np.cumsum(np.random.default_rng(seed).integers(-300, 300, n)).astype(np.int32)


def trace(
    data: Any, channel: str = "HHZ", start_ns: int = NOON, rate: float = 100.0, station: str = "SLP", **codes: str
) -> Trace:
    """One ObsPy trace ``XX.SLP.00.HHZ`` (or as told)."""
    header = {"network": "XX", "station": station, "location": "00", "channel": channel, **codes}
    return Trace(np.asarray(data), header | {"sampling_rate": rate, "starttime": UTCDateTime(ns=start_ns)})


def write(path: Path, *traces: Trace, format: str = "MSEED", **options: Any) -> Path:  # noqa: A002
    """Write traces one after the other, making folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Stream(list(traces)).write(str(path), format=format, **options)
    return path


def write_sds(root: Path, day_ns: int, data: Any, channel: str = "HHZ", rate: float = 100.0) -> Path:
    """One file of an SDS archive with data from ``day_ns`` on."""
    day = UTCDateTime(ns=day_ns)
    name = f"XX.SLP.00.{channel}.D.{day.year}.{day.julday:03d}"
    return write(root / str(day.year) / "XX" / "SLP" / f"{channel}.D" / name, trace(data, channel, day_ns, rate))


def seconds(value: float) -> int:
    """Seconds as integer nanoseconds."""
    return round(value * NS)


def packaged_records() -> list[Path]:
    """Every test file that the installed ObsPy ships with its readers: sound, damaged and not waveforms at all."""
    root = Path(obspy.__file__).parent / "io"
    return sorted(Path(folder, name) for folder, _, names in os.walk(root) for name in names if "tests/data" in folder)
