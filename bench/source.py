"""Cost of the archive source for a day of 3 x 100 Hz, on one core: records as they are, and packets of a second.

The peers are what one would write with ObsPy alone: ``read`` the files, and then ``Stream.slice`` second by second. All
include reading and decoding the files, which are made here, of Steim-2 miniSEED.

    OMP_NUM_THREADS=1 python bench/source.py [--hours 24] [--peer-minutes 20]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from obspy import Stream, Trace, UTCDateTime, read

from agent.sources.archive import ArchiveSource

RATE_HZ = 100
START = UTCDateTime(2024, 5, 1)
TARGET_US = 8.0
"""Of the 66 us that a block may cost in the whole line."""


def make_day(folder: Path, hours: float) -> int:
    """Three SDS files of a random walk with quiet and busy hours; returns the number of samples."""
    n = int(hours * 3600 * RATE_HZ)
    rng = np.random.default_rng(0)
    for channel in ("HHE", "HHN", "HHZ"):
        loudness = np.repeat(rng.integers(2, 300, n // 1000 + 1), 1000)[:n]
        data = (rng.normal(size=n) * loudness).astype(np.int32)
        header = {"network": "XX", "station": "SLP", "location": "00", "channel": channel}
        trace = Trace(data, header | {"sampling_rate": RATE_HZ, "starttime": START})
        trace.write(str(folder / f"XX.SLP.00.{channel}.D.2024.122"), format="MSEED", encoding="STEIM2", reclen=512)
    return 3 * n


def source(folder: Path, packet_s: float | None) -> tuple[int, int, float]:
    """Blocks, samples, and processor seconds."""
    blocks = samples = 0
    begin = time.process_time()
    for block in ArchiveSource([folder], packet_s, on_problem=print).blocks():
        blocks += 1
        samples += len(block.samples)
    return blocks, samples, time.process_time() - begin


def peer(folder: Path, hours: float, seconds: int) -> tuple[float, float]:
    """Processor seconds for reading, and microseconds a block: reading shared over all blocks of the day, slicing
    measured on some of it."""
    begin = time.process_time()
    stream = Stream()
    for path in sorted(folder.iterdir()):
        stream += read(str(path))
    reading = time.process_time() - begin
    begin = time.process_time()
    blocks = sum(len(stream.slice(START + i, START + i + 1 - 1 / RATE_HZ)) for i in range(seconds))
    return reading, 1e6 * (reading / (3 * 3600 * hours) + (time.process_time() - begin) / blocks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=24.0, help="length of the record")
    parser.add_argument("--peer-minutes", type=float, default=20.0, help="how much of it the peer slices")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        expected = make_day(folder, arguments.hours)
        read(str(next(folder.iterdir())), headonly=True)  # imports done
        records, samples, as_recorded = source(folder, None)
        blocks, same, cut = source(folder, 1.0)
        seconds = int(min(arguments.peer_minutes * 60, arguments.hours * 3600))
        reading, theirs_us = peer(folder, arguments.hours, seconds)
    assert samples == same == expected
    ours_us = 1e6 * cut / blocks
    print(f"archive source, {records} records as they are: {as_recorded:.2f} s CPU")
    print(f"archive source, {blocks} packets of 1 s: {cut:.2f} s CPU, {ours_us:.1f} us a block (target {TARGET_US:g})")
    print(f"ObsPy's read alone: {reading:.2f} s CPU")
    print(f"read + Stream.slice: {theirs_us:.1f} us a block, {theirs_us / ours_us:.0f} times as much")


if __name__ == "__main__":
    main()
