"""How fast recorded data go through the whole line, against ObsPy's batch functions on the same data.

    python bench/replay.py [--hours 24] [--folder /tmp/talus-bench]

Goals: packets of 1 s at 5,000 x real time on one core, triggers and windows included; whole records (packets of a
minute) at half the speed of ObsPy's batch band-pass and ``recursive_sta_lta`` or more. Both sides in one process, on
one core, in processor time, so that what else the machine does counts for neither.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from support import make_day, on_one_core, row

on_one_core()

from agent.config.file import ClassifierConfig, TunablesConfig  # noqa: E402
from agent.service.assemble import build_line  # noqa: E402
from agent.sources.archive import ArchiveSource  # noqa: E402
from agent.types import Event  # noqa: E402


def replay(files: list[Path], packet_s: float | None) -> tuple[float, int]:
    """Processor seconds and events found, from opening the files to the last message."""
    tunables = TunablesConfig()
    line = build_line(tunables, ClassifierConfig(), "talus/v1")
    started = time.process_time()
    events = set()
    source = ArchiveSource(files, packet_s, on_problem=print)
    for block in source.blocks():
        for output in line.pipeline.feed(block):
            if isinstance(output, Event):
                line.reporter.report(output, 0)
                events.add(output.id)
    for output in line.pipeline.flush():
        if isinstance(output, Event):
            line.reporter.report(output, 0)
            events.add(output.id)
    return time.process_time() - started, len(events)


def obspy_batch(files: list[Path]) -> float:
    """Processor seconds for reading, band-pass and STA/LTA of the whole day."""
    import obspy
    from obspy.signal.filter import bandpass
    from obspy.signal.trigger import recursive_sta_lta, trigger_onset

    trigger = TunablesConfig().trigger
    started = time.process_time()
    for file in files:
        trace = obspy.read(str(file))[0]
        filtered = bandpass(trace.data, trigger.low_hz, trigger.high_hz, 100.0, corners=trigger.order)
        ratio = recursive_sta_lta(filtered, round(100 * trigger.sta_s), round(100 * trigger.lta_s))
        trigger_onset(ratio, trigger.on, trigger.off)
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "talus-bench")
    args = parser.parse_args()
    files = make_day(args.folder / f"day-{args.hours:g}h", args.hours)
    seconds = args.hours * 3600
    batch = min(obspy_batch(files) for _ in range(2))
    recorded, found = replay(files, None)
    small, events = replay(files, 1.0)
    whole, same = replay(files, 60.0)
    row(
        f"{args.hours:g} h x 3 x 100 Hz, packets of 1 s ({events} events)",
        f"{seconds / small:,.0f} x real time",
        ">= 5,000 x",
        seconds / small >= 5000,
    )
    row(f"records as they are ({found} events)", f"{seconds / recorded:,.0f} x real time")
    row(f"packets of 60 s ({same} events)", f"{seconds / whole:,.0f} x real time")
    row("ObsPy batch: read, band-pass, STA/LTA (no windows)", f"{seconds / batch:,.0f} x real time")
    row("whole records against ObsPy's batch", f"{batch / whole:.2f} of its speed", ">= 0.5", batch / whole >= 0.5)
    assert events == same == found, "the packets changed the events"


if __name__ == "__main__":
    main()
