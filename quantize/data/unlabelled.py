"""Real records without a class: traces of unknown events, and pieces of the continuous streams. For pre-training and
for a teacher's opinion, never for a figure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agent.errors import DataError
from agent.types import NS, WINDOW_RATE_HZ
from quantize.data.records import Record, Row, load_record, read_csv

NO_LABEL = ""
PIECE_S = 160


def read_unlabelled(root: Path) -> list[Record]:
    """The records of ``root/unlabelled``; empty where there is no such folder."""
    table = root / "unlabelled" / "metadata.csv"
    if not table.is_file():
        return []
    columns = ("trace_name", "source_dataset", "source_id", "trace_channels")
    return [load_record(_row(root, fields, table)) for _, fields in read_csv(table, columns)]


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


def _row(root: Path, fields: dict[str, str], table: Path) -> Row:
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
