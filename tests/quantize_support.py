"""A labelled data folder of synthetic records in the layout of the real one."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from obspy import Stream, Trace, UTCDateTime

from quantize.data.records import COLUMNS

START = UTCDateTime("2020-01-01T00:00:00Z")
ONSET_S = 40.0
DECAY_S = {"earthquake": 8.0, "blast": 2.0, "collapse": 5.0, "landslide": 25.0, "noise": 0.0}


def motion(label: str, rate: float, seconds: float, rng: np.random.Generator) -> np.ndarray:
    """Noise, and from ``ONSET_S`` a decaying burst whose duration depends on the label."""
    t = np.arange(round(seconds * rate)) / rate
    x = rng.standard_normal(len(t))
    if DECAY_S[label]:
        after = t >= ONSET_S
        x[after] += 30 * np.exp(-(t[after] - ONSET_S) / DECAY_S[label]) * np.sin(2 * np.pi * 5 * t[after])
    return np.round(100 * x).astype(np.int32)


def write_record(
    path: Path,
    label: str,
    channels: str,
    rate: float,
    seconds: float = 120.0,
    *,
    seed: int = 0,
    start: UTCDateTime = START,
) -> None:
    rng = np.random.default_rng(seed)
    traces = []
    for channel in channels.split(","):
        header = {"network": "XX", "station": "AAA", "channel": channel, "sampling_rate": rate, "starttime": start}
        traces.append(Trace(motion(label, rate, seconds, rng), header))
    path.parent.mkdir(parents=True, exist_ok=True)
    Stream(traces).write(str(path), format="MSEED")


def row(name: str, event: str, label: str, split: str = "train", **other: str) -> dict[str, str]:
    base = {
        "trace_name": name,
        "source_dataset": f"made_{label}",
        "source_id": event,
        "source_type": label,
        "source_subtype": "",
        "split": split,
        "trace_channels": "HHZ",
        "trace_sampling_rate_hz": "100.0",
        "trace_onset_time": str(START + ONSET_S),
    }
    return base | other


def write_table(root: Path, rows: list[dict[str, str]], columns: tuple[str, ...] = COLUMNS) -> None:
    with (root / "metadata.csv").open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def write_folder(root: Path, events: int = 6) -> Path:
    """``events`` one-record events of each label (one of collapse), none at the time of another; the last two of each
    are validation."""
    rows = []
    for label in DECAY_S:
        for number in range(1 if label == "collapse" else events):
            event = f"{label}{number}"
            channels, rate = (("HHE,HHN,HHZ", 100.0), ("BHZ", 50.0))[number % 2]
            name = f"records/{event}.mseed"
            start = START + 600 * len(rows)
            write_record(root / name, label, channels, rate, seed=number, start=start)
            onset = {"trace_onset_time": "" if label == "noise" else str(start + ONSET_S)}
            split = "val" if number >= events - 2 else "train"
            rows.append(
                row(name, event, label, split, trace_channels=channels, trace_sampling_rate_hz=str(rate), **onset)
            )
    write_table(root, rows)
    write_picks(root, {r["trace_name"]: r["trace_onset_time"] for r in rows if r["source_type"] != "noise"})
    return root


def write_picks(root: Path, onsets: dict[str, str]) -> None:
    """A table of picks as of a phase picker: a P at every onset."""
    (root / "soft_labels").mkdir()
    lines = [f"{name},{onset},Pg,0.8,vertical copied" for name, onset in onsets.items()]
    header = "trace_name,pick_time,phase,probability,input"
    (root / "soft_labels" / "picks.csv").write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
