"""The records: their tables, their events, their splits, and their samples at the network's rate.

Rows are read strictly: a column that is missing, a label outside ``LABELS``, a file that is not there or an event in
two splits is an error that names the row, because each of them would silently spoil every figure that follows.

Real records without a class (traces of unknown events, pieces of the continuous streams) are for pre-training and for a
teacher's opinion, never for a figure.
"""

from __future__ import annotations

import csv
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agent.dsp.window import interpolate
from agent.errors import DataError
from agent.sources import SourceProblem
from agent.sources.intake import Intake
from agent.sources.records import stations
from agent.types import LABELS, NS, WINDOW_ONSET, WINDOW_RATE_HZ, WINDOW_SAMPLES, Segment, parse_ns

COLUMNS = (
    "trace_name",
    "source_dataset",
    "source_id",
    "source_type",
    "source_subtype",
    "split",
    "trace_channels",
    "trace_sampling_rate_hz",
    "trace_onset_time",
)
FULL_S = (WINDOW_SAMPLES - WINDOW_ONSET) / WINDOW_RATE_HZ
"""Seconds after the onset that a full window holds."""
LENGTHS_S = (3.0, 5.0, 10.0, 20.0, 40.0, 80.0, FULL_S)
"""At which verdicts are given; the last is the full window."""
SPLITS = ("train", "val")
TRANSIENT = "triggered transient"
"""Prefix of ``source_subtype`` of the noise that triggers; its figures are kept apart from those of quiet noise."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of ``metadata.csv``: one station's record of one event."""

    path: Path
    name: str
    dataset: str
    event: str
    label: str
    subtype: str
    split: str
    channels: tuple[str, ...]
    rate_hz: float
    onset_ns: int | None

    @property
    def index(self) -> int:
        """Index of the label in ``LABELS``."""
        return LABELS.index(self.label)

    @property
    def transient(self) -> bool:
        """Noise that sets off a trigger."""
        return self.subtype.startswith(TRANSIENT)


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """A row with its samples: ``data`` float32 ``[3, n]`` (E, N, Z) at 100 Hz from ``start_ns``, each component
    demeaned.

    ``present`` says which components were recorded; absent ones and gaps are zero.
    """

    row: Row
    start_ns: int
    data: NDArray[np.float32]
    present: tuple[bool, bool, bool]

    @property
    def onset(self) -> int | None:
        """Sample of the onset in ``data``; None where the table has none."""
        return None if self.row.onset_ns is None else self.index_of(self.row.onset_ns)

    def index_of(self, ns: int) -> int:
        return round((ns - self.start_ns) * WINDOW_RATE_HZ / NS)


def default_root() -> Path | None:
    """The data folder: ``TALUS_DATA``, else ``../shared/data`` beside the repository, None where neither exists."""
    named = os.environ.get("TALUS_DATA")
    root = Path(named) if named else Path(__file__).resolve().parents[2].parent / "shared" / "data"
    return root if (root / "metadata.csv").is_file() else None


def read_table(root: Path) -> list[Row]:
    """Every row of ``root/metadata.csv``.

    Raises:
        DataError: the table is missing or lacks a column; a row has an unknown label or split, an unreadable number or
            time, or names a file that does not exist; an event is in two splits.
    """
    table = root / "metadata.csv"
    if not table.is_file():
        raise DataError(
            f"{table} does not exist", "give the folder that holds metadata.csv with --data, or set TALUS_DATA"
        )
    rows = [_row(root, table, line, fields) for line, fields in read_csv(table, COLUMNS)]
    if not rows:
        raise DataError(f"{table} has no rows", "a training table needs records")
    _refuse_split_events(table, rows)
    return rows


def read_csv(table: Path, columns: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """Line number and fields of each line of a table, with or without the byte order mark that spreadsheets write.

    Raises:
        DataError: a column is missing, a line is cut short, or the file is no text in UTF-8.
    """
    rows = []
    try:
        with table.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle)
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            if missing:
                raise DataError(f"{table} lacks the columns {', '.join(missing)}", "the header names the columns")
            for fields in reader:
                if any(fields[name] is None for name in columns):
                    raise DataError(f"{table}:{reader.line_num}: the line is cut short", "copy the table again")
                rows.append((reader.line_num, fields))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table} cannot be read: {error}", "save it as CSV in UTF-8") from None
    return rows


def _row(root: Path, table: Path, line: int, fields: Mapping[str, str]) -> Row:
    where = f"{table}:{line}"
    label, split = fields["source_type"], fields["split"]
    if label not in LABELS:
        raise DataError(f"{where}: source_type {label!r} is not a label", f"use one of {', '.join(LABELS)}")
    if split not in SPLITS:
        raise DataError(f"{where}: split {split!r} is not known", f"use one of {', '.join(SPLITS)}")
    try:
        rate_hz = float(fields["trace_sampling_rate_hz"])
        onset_ns = parse_ns(fields["trace_onset_time"]) if fields["trace_onset_time"] else None
    except (ValueError, DataError) as error:
        raise DataError(f"{where}: {error}", "the rate is a number, the onset an ISO 8601 time or blank") from None
    if not (np.isfinite(rate_hz) and rate_hz > 0):
        raise DataError(f"{where}: the rate {rate_hz} is not positive", "give samples a second")
    path = root / fields["trace_name"]
    if not path.is_file():
        raise DataError(f"{where}: {path} does not exist", "copy the whole data folder, or remove the row")
    return Row(
        path=path,
        name=fields["trace_name"],
        dataset=fields["source_dataset"],
        event=fields["source_id"],
        label=label,
        subtype=fields["source_subtype"],
        split=split,
        channels=tuple(fields["trace_channels"].split(",")),
        rate_hz=rate_hz,
        onset_ns=onset_ns,
    )


def _refuse_split_events(table: Path, rows: Sequence[Row]) -> None:
    seen: dict[str, str] = {}
    for row in rows:
        if seen.setdefault(row.event, row.split) != row.split:
            raise DataError(
                f"{table}: event {row.event!r} is in the splits {seen[row.event]!r} and {row.split!r}",
                "records of one event are not independent: put them all into one split",
            )


def folds(rows: Sequence[Row], count: int, seed: int) -> NDArray[np.int64]:
    """Fold of each row, 0 to ``count`` - 1: whole events, each source's events of a label dealt out evenly.

    An event's noise carries the event's id and stays in its fold.
    """
    group: dict[str, tuple[str, str]] = {}
    for row in rows:
        key = (row.label, row.dataset)
        # An event that has both a signal and the noise before it is dealt out as the signal.
        if row.event not in group or row.label != "noise":
            group[row.event] = key
    members: dict[tuple[str, str], list[str]] = defaultdict(list)
    for event, key in group.items():
        members[key].append(event)
    rng = np.random.default_rng(seed)
    fold: dict[str, int] = {}
    start = 0
    for key in sorted(members):
        events = sorted(members[key])
        for place, member in enumerate(rng.permutation(len(events))):
            fold[events[member]] = (start + place) % count
        start += len(events)
    return np.array([fold[row.event] for row in rows], dtype=np.int64)


def read_segments(row: Row) -> dict[int, list[Segment]]:
    """The file's samples as recorded, by input row (E 0, N 1, Z 2), in time order, as a station would have them.

    Raises:
        DataError: the file cannot be read or is damaged, or holds no component with finite, changing samples.
    """
    problems: list[SourceProblem] = []
    intake = Intake(problems.append)
    blocks = [block for recording in intake.read(row.path) for block in recording.blocks()]
    if intake.counters().keys() & {"damaged", "foreign", "cut_off"} or (problems and not blocks):
        raise DataError(f"{row.path}: {problems[0].message}", problems[0].hint)
    found: dict[int, list[Segment]] = defaultdict(list)
    for _, components in stations(blocks):
        for component, segments in components.items():
            found[component] += [part for part in segments if len(part.samples) > 1 and np.ptp(part.samples) != 0]
    usable = {component: sorted(parts, key=lambda part: part.start_ns) for component, parts in found.items() if parts}
    if not usable:
        raise DataError(
            f"{row.path} has no usable component", "NaN, constant and one-sample traces cannot be learned from"
        )
    return usable


def load_record(row: Row) -> Record:
    """Read a row's file and bring every component to 100 Hz on one time axis.

    Raises:
        DataError: the file cannot be read, holds nothing to learn from, or does not hold the row's onset.
    """
    segments = read_segments(row)
    every = [segment for parts in segments.values() for segment in parts]
    start_ns = min(segment.start_ns for segment in every)
    end_ns = max(segment.end_ns for segment in every)
    if row.onset_ns is not None and not start_ns <= row.onset_ns < end_ns:
        raise DataError(f"{row.path} does not hold its onset", "correct trace_onset_time, which is UTC")
    data = np.zeros((3, round((end_ns - start_ns) * WINDOW_RATE_HZ / NS)), dtype=np.float32)
    for component, parts in segments.items():
        mean = np.concatenate([part.samples for part in parts]).mean(dtype=np.float64)
        for part in parts:
            samples = resample(part.samples.astype(np.float64) - mean, part.rate_hz)
            at = round((part.start_ns - start_ns) * WINDOW_RATE_HZ / NS)
            samples = samples[: data.shape[1] - at]
            data[component, at : at + len(samples)] = samples
    return Record(row, start_ns, data, (0 in segments, 1 in segments, 2 in segments))


def load_records(rows: Sequence[Row]) -> list[Record]:
    """``load_record`` of every row, in order; about 0.2 MB a record stay in memory."""
    return [load_record(row) for row in rows]


def resample(samples: NDArray[np.float64], rate_hz: float) -> NDArray[np.float64]:
    """Bring demeaned samples to 100 Hz with the agent's own interpolation; the first sample keeps its time."""
    if rate_hz == WINDOW_RATE_HZ:
        return samples
    count = int(np.floor((len(samples) - 1) / rate_hz * WINDOW_RATE_HZ + 1e-6)) + 1
    return interpolate(samples, rate_hz, 0.0, count, WINDOW_RATE_HZ)


def by_event(rows: Sequence[Row]) -> Iterator[tuple[tuple[str, str], list[int]]]:
    """Indices of the rows of each (event, label), in table order."""
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        groups[row.event, row.label].append(index)
    yield from groups.items()


NO_LABEL = ""
PIECE_S = 160


def read_unlabelled(root: Path) -> list[Record]:
    """The records of ``root/unlabelled``; empty where there is no such folder."""
    table = root / "unlabelled" / "metadata.csv"
    if not table.is_file():
        return []
    columns = ("trace_name", "source_dataset", "source_id", "trace_channels")
    return [load_record(_unlabelled_row(root, fields, table)) for _, fields in read_csv(table, columns)]


def read_weak_labels(root: Path) -> dict[str, float]:
    """Probability that an event without a class is a blast, by its time of day alone; empty where there is no table.

    Raises:
        DataError: a probability is no number between 0 and 1.
    """
    table = root / "soft_labels" / "uw_timeofday.csv"
    if not table.is_file():
        return {}
    found = {}
    for line, fields in read_csv(table, ("source_id", "p_blast_time_only")):
        try:
            found[fields["source_id"]] = float(fields["p_blast_time_only"])
        except ValueError:
            raise DataError(f"{table}:{line}: {fields['p_blast_time_only']!r} is no number", "give 0 to 1") from None
        if not 0 <= found[fields["source_id"]] <= 1:
            raise DataError(f"{table}:{line}: the probability is not between 0 and 1", "give 0 to 1")
    return found


def read_streams(root: Path) -> list[Record]:
    """The streams of ``root/streams`` in pieces of ``PIECE_S`` seconds without a gap; empty where there is no such
    folder."""
    table = root / "streams" / "streams.csv"
    if not table.is_file():
        return []
    stations: dict[tuple[str, str], list[str]] = {}
    for _, fields in read_csv(table, ("stream", "station", "file")):
        stations.setdefault((fields["stream"], fields["station"]), []).append(fields["file"])
    pieces = []
    for (stream, station), files in stations.items():
        parts = [load_record(_stream_row(root, stream, station, file)) for file in files]
        pieces += _pieces(parts)
    return pieces


def _pieces(parts: list[Record]) -> list[Record]:
    """Components of one station on one axis, cut into pieces."""
    first = parts[0]
    count = min(part.data.shape[1] for part in parts)
    data = sum(part.data[:, :count] for part in parts[1:]) + first.data[:, :count]
    present = tuple(any(part.present[i] for part in parts) for i in range(3))
    width = PIECE_S * WINDOW_RATE_HZ
    return [
        Record(
            first.row,
            first.start_ns + at * NS // WINDOW_RATE_HZ,
            data[:, at : at + width],
            (present[0], present[1], present[2]),
        )
        for at in range(0, count - width + 1, width)
        if not _gappy(data[list(present), at : at + width])
    ]


def _gappy(piece: NDArray[np.float32]) -> bool:
    """Whether a component of the piece is constant for a whole second: a gap, filled with zeros."""
    seconds = piece.reshape(len(piece), -1, WINDOW_RATE_HZ)
    return bool((np.ptp(seconds, axis=2) == 0).any())


def _unlabelled_row(root: Path, fields: dict[str, str], table: Path) -> Row:
    path = root / fields["trace_name"]
    if not path.is_file():
        raise DataError(f"{table}: {path} does not exist", "copy the whole data folder, or remove the row")
    return Row(
        path=path,
        name=fields["trace_name"],
        dataset=fields["source_dataset"],
        event=fields["source_id"],
        label=NO_LABEL,
        subtype="",
        split="unlabelled",
        channels=tuple(fields["trace_channels"].split(",")),
        rate_hz=float(WINDOW_RATE_HZ),
        onset_ns=None,
    )


def _stream_row(root: Path, stream: str, station: str, file: str) -> Row:
    path = root / file
    if not path.is_file():
        raise DataError(f"{path} does not exist", "copy the whole data folder, or remove the row of streams.csv")
    return Row(path, file, stream, f"{stream}/{station}", NO_LABEL, "", "unlabelled", (), 100.0, None)
