"""A site's own labels: miniSEED and a table, made into windows as the station would cut them.

Needs neither SciPy nor PyTorch. Every record gives windows of every length, as recorded and as its vertical alone
between 1 and 16 Hz, at its onset and a little beside it: a trigger does not fall on the sample that an analyst picks.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agent.dsp.sos import SosFilter, butterworth
from agent.dsp.window import Preparation, interpolate, prepare
from agent.errors import DataError
from agent.types import LABELS, NS, WINDOW_RATE_HZ, Segment, format_ns, parse_ns
from quantize.data.records import FULL_S, LENGTHS_S, Row, read_csv, read_segments

TABLE = "metadata.csv"
COLUMNS = ("trace_name", "source_id", "source_type")
"""What the table must have; ``trace_onset_time`` and the others of docs/training.md are read where they are there."""
JITTER_S = (0.0, -1.5)
"""Where the second set of windows begins, seconds from the onset."""
BAND_HZ = (1.0, 16.0)
_NEVER_TAUGHT = "collapse"


@dataclass(frozen=True, slots=True, eq=False)
class SiteWindows:
    """``data`` float32 ``[n, 3, 10240]``; of each its record (index), seconds after the onset, and whether it is the
    one window of its record that is judged (as recorded, whole, at the onset)."""

    data: NDArray[np.float32]
    record: NDArray[np.int64]
    seconds: NDArray[np.float64]
    judged: NDArray[np.bool_]


def read_site(folder: Path, *, reviewed: bool = False) -> list[Row]:
    """The labelled records of a folder; of ``reviewed`` ones those that can be taught, since people also answer with
    the class that cannot.

    Raises:
        DataError: the table is missing or lacks a column, has a row twice, or a row has an unknown label, a time that
            is none, or names a file that does not exist; the message names the line.
    """
    table = folder / TABLE
    if not table.is_file():
        raise DataError(
            f"{table} does not exist",
            "the folder needs a table, one line a station and event, with the columns " + ", ".join(COLUMNS),
        )
    rows: list[Row] = []
    lines: dict[tuple[str, str, str, int | None], int] = {}
    for line, fields in read_csv(table, COLUMNS):
        if reviewed and fields["source_type"] == _NEVER_TAUGHT:
            continue
        row = _row(folder, table, line, fields)
        first = lines.setdefault((row.name, row.event, row.label, row.onset_ns), line)
        if first != line:
            raise DataError(f"{table}:{line}: is line {first} again", "remove one of the two: it would count twice")
        rows.append(row)
    if not rows:
        raise DataError(f"{table} has no rows", "label some events first")
    return rows


def _row(folder: Path, table: Path, line: int, fields: Mapping[str, str | None]) -> Row:
    where, label = f"{table}:{line}", fields["source_type"] or ""
    if label not in LABELS or label == _NEVER_TAUGHT:
        known = ", ".join(name for name in LABELS if name != _NEVER_TAUGHT)
        raise DataError(f"{where}: source_type {label!r} cannot be taught", f"use one of {known}")
    name = fields["trace_name"] or ""
    path = folder / name
    if not path.is_file():
        raise DataError(f"{where}: {path} does not exist", "copy the whole folder, or remove the line")
    if not fields["source_id"]:
        raise DataError(f"{where}: source_id is blank", "give the event a name that all its records share")
    onset = fields.get("trace_onset_time") or ""
    try:
        onset_ns = parse_ns(onset) if onset else None
    except (ValueError, DataError) as error:
        raise DataError(f"{where}: {error}", "trace_onset_time is an ISO 8601 time, UTC, or blank") from None
    return Row(
        path=path,
        name=name,
        dataset=fields.get("source_dataset") or folder.name,
        event=fields["source_id"],
        label=label,
        subtype=fields.get("source_subtype") or "",
        split="train",
        channels=(),
        rate_hz=float(WINDOW_RATE_HZ),
        onset_ns=onset_ns,
    )


def together(labelled: Sequence[Row], reviewed: Sequence[Row]) -> list[Row]:
    """Both tables as one: where an event is in both, the review's label counts."""
    said = {row.event: row.label for row in reviewed}
    known = {(row.event, row.name) for row in reviewed}
    kept = [
        replace(row, label=said.get(row.event, row.label)) for row in labelled if (row.event, row.name) not in known
    ]
    return [*kept, *reviewed]


def site_windows(rows: Sequence[Row], preparation: Preparation) -> SiteWindows:
    """Windows of every record.

    Raises:
        DataError: a file cannot be read, holds nothing to learn from, or does not hold its onset.
    """
    made: list[NDArray[np.float32]] = []
    record: list[int] = []
    seconds: list[float] = []
    judged: list[bool] = []
    for number, row in enumerate(rows):
        segments = read_segments(row)
        onset_ns = _onset(row, segments)
        narrow = _vertical(segments)
        for jitter in JITTER_S:
            at = onset_ns + round(jitter * NS)
            for length in LENGTHS_S:
                windows = (prepare(segments, at, length, preparation).data, _copied(narrow, at, length, preparation))
                for as_recorded, window in zip((True, False), windows, strict=True):
                    made.append(window)
                    record.append(number)
                    seconds.append(length)
                    judged.append(as_recorded and jitter == 0.0 and length == FULL_S)
    return SiteWindows(np.stack(made), np.array(record), np.array(seconds), np.array(judged))


def _copied(segments: Mapping[int, Sequence[Segment]], at: int, length: float, how: Preparation) -> NDArray[np.float32]:
    """The band-passed vertical in all three rows."""
    window = prepare(segments, at, length, how).data
    return np.repeat(window[2:3], 3, axis=0)


def _vertical(segments: Mapping[int, Sequence[Segment]]) -> dict[int, list[Segment]]:
    """The vertical, or what stands in for it, between 1 and 16 Hz."""
    runs = segments[2] if 2 in segments else next(iter(segments.values()))
    made = []
    for run in runs:
        high = BAND_HZ[1] if run.rate_hz > 2.2 * BAND_HZ[1] else None
        x = np.asarray(run.samples, dtype=np.float64)
        filtered = SosFilter(butterworth(BAND_HZ[0], high, run.rate_hz, 4)).process(x - x.mean())
        made.append(Segment(run.start_ns, run.rate_hz, filtered))
    return {2: made}


def _onset(row: Row, segments: Mapping[int, Sequence[Segment]]) -> int:
    """The table's onset; of noise without one a place that follows from the record's name; else where short-term power
    exceeds long-term power most."""
    runs = max(_vertical(segments)[2], key=lambda run: run.end_ns - run.start_ns)
    if row.onset_ns is not None:
        start = min(run.start_ns for parts in segments.values() for run in parts)
        end = max(run.end_ns for parts in segments.values() for run in parts)
        if not start <= row.onset_ns < end:
            words = f"{row.path} does not hold its onset {format_ns(row.onset_ns)}"
            span = f"the record runs from {format_ns(start)} to {format_ns(end)}"
            raise DataError(words, f"correct trace_onset_time, which is UTC: {span}")
        return row.onset_ns
    length = runs.end_ns - runs.start_ns
    if row.label == "noise":
        digest = hashlib.sha256(row.name.encode()).digest()
        return runs.start_ns + round(length * (0.2 + 0.5 * digest[0] / 255))
    return runs.start_ns + round(_strongest(runs) * NS)


def _strongest(run: Segment) -> float:
    """Seconds into a run at which the ratio of one second's power to that of the ten before it is largest."""
    x = np.asarray(run.samples, dtype=np.float64)
    if run.rate_hz != WINDOW_RATE_HZ:
        count = int((len(x) - 1) / run.rate_hz * WINDOW_RATE_HZ) + 1
        x = interpolate(x, run.rate_hz, 0.0, count, WINDOW_RATE_HZ)
    total = np.concatenate([[0.0], np.cumsum(x**2)])
    short = WINDOW_RATE_HZ
    long = min(10 * WINDOW_RATE_HZ, max(short, len(x) // 3))
    centre = np.arange(long, max(long + 1, len(x) - short))
    before = (total[centre] - total[centre - long]) / long
    after = (total[np.minimum(centre + short, len(x))] - total[centre]) / short
    return float(centre[np.argmax(after / (before + 1e-9 * (x**2).mean() + 1e-300))]) / WINDOW_RATE_HZ


def slug(name: str) -> str:
    """A name as a manifest may hold it: lower case, letters, digits and hyphens."""
    made = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return made or "site"
