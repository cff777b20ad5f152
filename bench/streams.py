"""What the agent finds on continuous real data: truth intervals found, missed, and triggers that nothing explains.

    python bench/streams.py [--data ../shared/data]

``truth.csv`` holds analysts' and published events (high) and the hints of another model (medium, low: its rockfall mask
is noisy). An interval counts as found by an event whose onset is in it, widened by five seconds; its label is the
highest vote of the stations' last verdicts. The peer is ObsPy's batch trigger with the same settings on each station's
vertical: how many triggers an operator would get without a classifier.

These hours are not unseen: the default model was pre-trained on them without labels, they are the noise under its
synthetic events, and 59 records of the training split are of the same stations and minutes (54 noise, 4 earthquake, 1
landslide). What it says of them is flattered.
"""

from __future__ import annotations

import argparse
import csv
from collections import Counter
from pathlib import Path

from support import row

from agent.config.file import ClassifierConfig, TunablesConfig
from agent.service.assemble import build_line
from agent.sources.archive import ArchiveSource
from agent.types import LABELS, NS, Event, parse_ns

SLACK_NS = 5 * NS


def replay(folder: Path) -> tuple[list[Event], list[Event], float]:
    """Last revisions, events that raised an alert, and hours of data summed over stations."""
    line = build_line(TunablesConfig(), ClassifierConfig(), "talus/v1")
    last: dict[str, Event] = {}
    alerts: dict[str, Event] = {}
    seconds: Counter[str] = Counter()
    source = ArchiveSource([folder], 10.0, on_problem=lambda problem: None)

    def take(outputs: list[object]) -> None:
        for output in outputs:
            if isinstance(output, Event):
                last[output.id] = output
                if any(b'"action":"raise"' in m.payload and not m.retain for m in line.reporter.report(output, 0)):
                    alerts[output.id] = output

    for block in source.blocks():
        if block.stream.component == "Z":
            seconds[str(block.stream.station)] += len(block.samples) / block.rate_hz
        take(line.pipeline.feed(block))
    take(line.pipeline.flush())
    return list(last.values()), list(alerts.values()), sum(seconds.values()) / 3600


def obspy_triggers(folder: Path) -> int:
    """Triggers of ObsPy's batch functions with the same settings, on the verticals."""
    import obspy
    from obspy.signal.filter import bandpass
    from obspy.signal.trigger import recursive_sta_lta, trigger_onset

    t = TunablesConfig().trigger
    count = 0
    for trace in obspy.read(str(folder / "*Z.mseed")):
        rate = trace.stats.sampling_rate
        filtered = bandpass(trace.data, t.low_hz, t.high_hz, rate, corners=t.order)
        ratio = recursive_sta_lta(filtered, round(rate * t.sta_s), round(rate * t.lta_s))
        count += len(trigger_onset(ratio, t.on, t.off))
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    streams = parser.parse_args().data / "streams"
    with (streams / "truth.csv").open(encoding="utf-8") as handle:
        truth = list(csv.DictReader(handle))
    for folder in sorted(path for path in streams.iterdir() if path.is_dir()):
        events, alerts, hours = replay(folder)
        print(f"\n{folder.name}: {hours:.1f} station-hours")
        explained: set[str] = set()
        for entry in (t for t in truth if t["stream"] == folder.name):
            begin, end = parse_ns(entry["start"]) - SLACK_NS, parse_ns(entry["end"]) + SLACK_NS
            hits = [event for event in events if begin <= event.onset_ns <= end]
            explained |= {event.id for event in hits}
            votes = [sum(e.classification.probabilities[i] for e in hits if e.classification) for i in range(5)]
            said = LABELS[votes.index(max(votes))] if hits else "missed"
            alarm = sum(event.id in {hit.id for hit in hits} for event in alerts)
            print(
                f"  {entry['start'][11:19]}-{entry['end'][11:19]} {entry['confidence']:<7}{entry['label']:<12}"
                f"{said:<12}{len(hits)} triggers, {alarm} alerts"
            )
        labels = Counter(
            "abstained" if e.classification is None or e.classification.abstained else e.classification.label
            for e in events
        )
        stray = [event for event in events if event.id not in explained]
        called = Counter(e.classification.label for e in stray if e.classification and not e.classification.abstained)
        row("  events, by last verdict", str(len(events)), ", ".join(f"{k} {v}" for k, v in labels.most_common()))
        row(
            "  triggers outside every interval, per station-hour",
            f"{len(stray) / hours:.1f}",
            ", ".join(f"{k} {v}" for k, v in called.most_common()),
        )
        row(
            "  alerts, and those outside every interval", f"{len(alerts)}, {sum(e.id not in explained for e in alerts)}"
        )
        row("  ObsPy's batch trigger on the verticals, per station-hour", f"{obspy_triggers(folder) / hours:.1f}")


if __name__ == "__main__":
    main()
