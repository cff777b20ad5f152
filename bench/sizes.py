"""How large recorded landslides are: amplitude in multiples of the sensor's noise, and duration of the trigger.

    python bench/sizes.py [--data ../shared/data] [--most 60]

The default steps of severity (``agent.config.policy.SIZE_STEPS``) rest on these figures. Of each record the event with
the largest product of amplitude and duration counts; the last two columns are the share of records whose event is
severe or extreme by the steps of amplitude and duration.
"""

from __future__ import annotations

import argparse
import csv
import random
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from agent.config.file import ClassifierConfig, TunablesConfig
from agent.config.policy import SIZE_STEPS, rank
from agent.service.assemble import build_line
from agent.sources.archive import ArchiveSource
from agent.types import Detection, Event


def largest(path: Path) -> Detection | None:
    """What the trigger saw of the largest event in a file; None without an event whose noise is known."""
    line = build_line(TunablesConfig(), ClassifierConfig(backends=("constant",)), "talus/v1")
    last: dict[str, Detection] = {}

    def take(outputs: Iterable[object]) -> None:
        last.update((output.id, output.detection) for output in outputs if isinstance(output, Event))

    for block in ArchiveSource([path], 1.0, on_problem=lambda problem: None).blocks():
        take(line.pipeline.feed(block))
    take(line.pipeline.flush())
    known = [seen for seen in last.values() if seen.amplitude is not None]
    return max(known, key=lambda seen: seen.size, default=None)


def severity(seen: Detection) -> int:
    """Rank of the severity that the default steps give."""
    reached = [
        rank(step.severity)
        for step in SIZE_STEPS
        if step.min_stations is None
        and (seen.amplitude or 0.0) >= (step.min_amplitude or 0.0)
        and seen.duration_s >= (step.min_duration_s or 0.0)
    ]
    return max([rank("moderate"), *reached])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--most", type=int, default=60, help="records of each source, drawn with a fixed seed")
    args = parser.parse_args()
    by_source: dict[str, list[str]] = defaultdict(list)
    with (args.data / "metadata.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["source_type"] == "landslide":
                by_source[row["source_dataset"]].append(row["trace_name"])
    chance = random.Random(1)
    print(
        f"{'source':<18} {'events':>6}  amplitude 10/25/50/75/90 %        duration, s 10/25/50/75/90 %   severe extreme"
    )
    everything: list[Detection] = []
    for source, names in sorted(by_source.items()):
        drawn = chance.sample(names, min(args.most, len(names)))
        found = [seen for name in drawn if (seen := largest(args.data / name)) is not None]
        everything += found
        print(line_of(source, found))
    print(line_of("all", everything))


def line_of(source: str, found: list[Detection]) -> str:
    """One line of the table."""
    if not found:
        return f"{source:<18} {0:>6}"
    quantiles = (10, 25, 50, 75, 90)
    amplitude = np.percentile([seen.amplitude or 0.0 for seen in found], quantiles)
    duration = np.percentile([seen.duration_s for seen in found], quantiles)
    ranks = np.array([severity(seen) for seen in found])
    shares = [float(np.mean(ranks == rank(word))) for word in ("severe", "extreme")]
    columns = (" ".join(f"{value:6.1f}" for value in values) for values in (amplitude, duration))
    return f"{source:<18} {len(found):>6}  {'   '.join(columns)}   {shares[0]:6.2f} {shares[1]:7.2f}"


if __name__ == "__main__":
    main()
