"""``python -m demo.scan_picture --out PICTURE``: a scan of a simulated archive, drawn as ``talus plot rate`` does.

A slope that fails at the end of a day, with two hours of which nothing was recorded. Nothing of the network is used.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import obspy

from agent import cli
from agent.sources.simulator import Scenario, SimulatedSite, SimulatorSource, crisis, failure
from agent.types import NS, StationId, parse_ns

BEGIN_NS = parse_ns("2026-03-01T00:00:00Z")
STATION = StationId("XX", "SLOPE", "00", "HH")
AWAY_S = (9 * 3600, 11 * 3600)
"""When the recorder was off."""


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m demo.scan_picture", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, metavar="PICTURE", help="a .png, .svg, .webp or .pdf file")
    parser.add_argument("--hours", type=float, default=24.0, help="of the archive (default 24)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="talus-scan-") as folder:
        archive, found = Path(folder) / "archive", Path(folder) / "scan"
        write_archive(archive, args.hours * 3600)
        return cli.main(["scan", str(archive), "--out", str(found), "--no-slow"]) or cli.main(
            ["plot", "rate", str(found / "catalogue.csv"), "--out", str(args.out)]
        )


def write_archive(folder: Path, seconds: float, seed: int = 11) -> None:
    """A file a component and recorded span."""
    scenario = Scenario(seed, crisis(seconds), 1, failure(seconds))
    site = SimulatedSite((STATION,), packet_s=10.0)
    source = SimulatorSource(site, scenario, seed, start_ns=BEGIN_NS, seconds=seconds, speed=0)
    spans: dict[tuple[str, bool], list[np.ndarray[tuple[int], np.dtype[np.int32]]]] = {}
    for block in source.blocks():
        at_s = (block.start_ns - BEGIN_NS) / NS
        if not AWAY_S[0] <= at_s < AWAY_S[1]:
            spans.setdefault((block.stream.component, at_s >= AWAY_S[1]), []).append(block.samples.astype(np.int32))
    folder.mkdir(parents=True)
    for (component, is_later), pieces in spans.items():
        start = obspy.UTCDateTime(ns=BEGIN_NS + (AWAY_S[1] if is_later else 0) * NS)
        codes = {"network": STATION.network, "station": STATION.station, "location": STATION.location}
        header = {**codes, "channel": f"HH{component}", "sampling_rate": site.rate_hz, "starttime": start}
        trace = obspy.Trace(np.concatenate(pieces), header)
        trace.write(str(folder / f"{trace.id}.{start.hour:02d}.mseed"), format="MSEED", encoding="STEIM2")


if __name__ == "__main__":
    sys.exit(main())
