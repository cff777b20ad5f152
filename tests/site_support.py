"""A small site: bursts on noise at several stations, as miniSEED files or as packets."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from records_support import trace, write

from agent.types import NS, SampleBlock, StreamId, parse_ns

START_NS = parse_ns("2026-03-01T00:00:00Z")
RATE_HZ = 100


def ground(station: str, seconds: float, bursts: Sequence[float]) -> NDArray[np.int32]:
    """Three components of noise, with decaying 5 Hz bursts at these seconds."""
    rng = np.random.default_rng(zlib.crc32(station.encode()))
    t = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    out = rng.normal(0, 100, (3, len(t)))
    for onset in bursts:
        tail = np.clip(t - onset, 0, None)
        out += np.array([[2000], [3000], [4000]]) * (t >= onset) * np.exp(-tail / 4) * np.sin(2 * np.pi * 5 * tail)
    return out.astype(np.int32)


def write_site(folder: Path, stations: Mapping[str, tuple[float, Sequence[float]]]) -> Path:
    """A folder with one file a channel; of each station how long it records and when it shakes, seconds."""
    for station, (seconds, bursts) in stations.items():
        for component, samples in zip("ENZ", ground(station, seconds, bursts), strict=True):
            write(
                folder / f"XX.{station}.00.HH{component}.mseed",
                trace(samples, f"HH{component}", START_NS, RATE_HZ, station),
            )
    return folder


def packets(
    stations: Mapping[str, tuple[float, Sequence[float]]], lag_s: Mapping[str, float], packet_s: float = 1.0
) -> list[SampleBlock]:
    """The packets of the site in the order in which they come in, each station so many seconds late."""
    size = round(packet_s * RATE_HZ)
    found: list[tuple[float, SampleBlock]] = []
    for station, (seconds, bursts) in stations.items():
        for component, samples in zip("ENZ", ground(station, seconds, bursts), strict=True):
            stream = StreamId.parse(f"XX.{station}.00.HH{component}")
            for at in range(0, len(samples), size):
                start_ns = START_NS + at * NS // RATE_HZ
                block = SampleBlock(stream, start_ns, float(RATE_HZ), samples[at : at + size])
                found.append((block.end_ns / NS + lag_s.get(station, 0.0), block))
    return [block for _, block in sorted(found, key=lambda item: item[0])]
