"""A site's folder of labels as `talus teach` takes it: synthetic records of events that are peculiar to the place."""

from __future__ import annotations

import csv
import random
from pathlib import Path

from quantize_support import ONSET_S, START, write_record

LOOKS = {"earthquake": "landslide", "blast": "earthquake", "noise": "noise"}
"""What the events of each class look like here: as elsewhere those of another class do."""
COLUMNS = ("trace_name", "source_id", "source_type", "trace_onset_time")


def write_site(
    folder: Path, events: int = 6, *, shuffled: bool = False, labels: tuple[str, ...] = tuple(LOOKS)
) -> Path:
    """``events`` events a class, one record each; ``shuffled``: the labels belong to other events."""
    rows = []
    for label in labels:
        for number in range(events):
            name = f"{label}{number}.mseed"
            start = START + 600 * len(rows)
            write_record(folder / name, LOOKS[label], "HHE,HHN,HHZ", 100.0, 150.0, seed=number, start=start)
            onset = "" if label == "noise" else str(start + ONSET_S)
            rows.append([name, f"{label}-{number}", label, onset])
    if shuffled:
        said = [row[2] for row in rows]
        random.Random(3).shuffle(said)
        for row, label in zip(rows, said, strict=True):
            row[2] = label
    write_labels(folder, rows)
    return folder


def write_labels(folder: Path, rows: list[list[str]]) -> None:
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([COLUMNS, *rows])
