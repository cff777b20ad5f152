"""The training table is read strictly, and no event is ever on both sides of a split."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from quantize_support import ONSET_S, START, row, write_folder, write_record, write_table

from agent.errors import DataError
from quantize.data.records import (
    COLUMNS,
    by_event,
    default_root,
    folds,
    load_record,
    read_streams,
    read_table,
    read_unlabelled,
)


@pytest.fixture
def one(tmp_path: Path) -> Path:
    write_record(tmp_path / "a.mseed", "blast", "HHZ", 100.0, 60.0)
    return tmp_path


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"source_type": "quarry"}, "'quarry' is not a label"),
        ({"split": "test"}, "split 'test'"),
        ({"trace_sampling_rate_hz": "fast"}, "fast"),
        ({"trace_sampling_rate_hz": "nan"}, "not positive"),
        ({"trace_sampling_rate_hz": "0"}, "not positive"),
        ({"trace_onset_time": "yesterday"}, "yesterday"),
        ({"trace_name": "b.mseed"}, "b.mseed does not exist"),
    ],
)
def test_a_bad_row_names_its_line_and_value(one: Path, change: dict[str, str], said: str) -> None:
    write_table(one, [row("a.mseed", "e1", "blast"), row("a.mseed", "e2", "blast") | change])
    with pytest.raises(DataError, match=said) as error:
        read_table(one)
    assert ":3:" in error.value.message
    assert error.value.hint


def test_an_event_in_two_splits_is_refused(one: Path) -> None:
    write_table(one, [row("a.mseed", "e1", "blast", "train"), row("a.mseed", "e1", "noise", "val")])
    with pytest.raises(DataError, match="'e1' is in the splits"):
        read_table(one)


def test_a_missing_table_column_or_row_is_refused(one: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_table(one)
    write_table(one, [row("a.mseed", "e1", "blast")], tuple(c for c in COLUMNS if c != "source_id"))
    with pytest.raises(DataError, match="lacks the columns source_id"):
        read_table(one)
    write_table(one, [])
    with pytest.raises(DataError, match="no rows"):
        read_table(one)


def test_a_table_from_a_spreadsheet_is_read_and_a_damaged_one_is_named(one: Path) -> None:
    """Spreadsheets begin a table with a byte order mark; others write it in another encoding; a copy may be cut."""
    write_table(one, [row("a.mseed", "e1", "blast", source_subtype="Kiesgrube Süd")])
    table = one / "metadata.csv"
    whole = table.read_bytes()
    table.write_bytes(b"\xef\xbb\xbf" + whole)
    assert read_table(one)[0].subtype == "Kiesgrube Süd"
    table.write_bytes(whole.decode("utf-8").encode("latin-1"))
    with pytest.raises(DataError, match=r"metadata\.csv cannot be read"):
        read_table(one)
    table.write_bytes(whole.rstrip().rpartition(b",")[0])
    with pytest.raises(DataError, match=r"metadata\.csv:2: the line is cut short"):
        read_table(one)


def test_tables_of_records_without_a_class_are_read_as_strictly(one: Path) -> None:
    for read, name in ((read_unlabelled, "unlabelled/metadata.csv"), (read_streams, "streams/streams.csv")):
        (one / name).parent.mkdir()
        (one / name).write_text("file_name\na.mseed\n", encoding="utf-8")
        with pytest.raises(DataError, match="lacks the columns"):
            read(one)


def test_an_onset_outside_its_record_is_refused(one: Path) -> None:
    for hours in (-1, 1):
        write_table(one, [row("a.mseed", "e1", "blast", trace_onset_time=str(START + 3600 * hours))])
        with pytest.raises(DataError, match=r"a\.mseed does not hold its onset"):
            load_record(read_table(one)[0])


def test_a_record_cut_within_a_packet_is_named(one: Path) -> None:
    write_table(one, [row("a.mseed", "e1", "blast")])
    (one / "a.mseed").write_bytes((one / "a.mseed").read_bytes()[:1000])
    with pytest.raises(DataError, match=r"a\.mseed: cut off in its last record"):
        load_record(read_table(one)[0])


def test_a_record_is_never_unpickled(one: Path, tmp_path: Path) -> None:
    """Detection by ObsPy loads what looks like a pickle, which runs whatever code its author wished."""
    trap = tmp_path / "trap"

    class Bait:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(trap),)

    write_table(one, [row("a.mseed", "e1", "blast")])
    (one / "a.mseed").write_bytes(pickle.dumps(["obspy.core.stream", Bait()], protocol=2))
    with pytest.raises(DataError, match=r"a\.mseed"):
        load_record(read_table(one)[0])
    assert not trap.exists()


@pytest.mark.parametrize("content", [b"", b"not a seismogram", b"\0" * 512])
def test_an_unreadable_record_is_named(one: Path, content: bytes) -> None:
    write_table(one, [row("a.mseed", "e1", "blast")])
    (one / "a.mseed").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.mseed"):
        load_record(read_table(one)[0])


@pytest.mark.parametrize("rate", [50.0, 100.0, 250.0])
def test_records_come_to_100_hz_with_their_onset_in_place(tmp_path: Path, rate: float) -> None:
    write_record(tmp_path / "a.mseed", "blast", "DP1,DP2,DPZ", rate, 80.0)
    write_table(tmp_path, [row("a.mseed", "e1", "blast")])
    record = load_record(read_table(tmp_path)[0])
    assert record.present == (True, True, True)
    assert record.onset == round(ONSET_S * 100)
    assert abs(record.data.shape[1] - 8000) <= 2
    for component in record.data:
        loud = np.abs(component) > 0.5 * np.abs(component).max()
        assert abs(int(np.argmax(loud)) - record.onset) < 15


def test_absent_components_are_marked_and_zero(one: Path) -> None:
    write_table(one, [row("a.mseed", "e1", "blast")])
    record = load_record(read_table(one)[0])
    assert record.present == (False, False, True)
    assert not record.data[:2].any()


def test_folds_keep_events_whole_and_labels_spread(tmp_path: Path) -> None:
    rows = read_table(write_folder(tmp_path, events=10))
    rows += [r for r in rows if r.label == "landslide"]
    fold = folds(rows, 5, seed=3)
    assert np.array_equal(fold, folds(rows, 5, seed=3))
    for (_, label), members in by_event(rows):
        assert len(set(fold[members])) == 1
        if label != "collapse":
            per_fold = np.bincount([fold[i] for i, r in enumerate(rows) if r.label == label], minlength=5)
            assert per_fold.min() == per_fold.max()


@pytest.mark.skipif(default_root() is None, reason="no labelled records here: set TALUS_DATA")
def test_the_real_table_reads() -> None:
    root = default_root()
    assert root is not None
    rows = read_table(root)
    assert {row.label for row in rows} == {"earthquake", "blast", "collapse", "landslide", "noise"}
    assert any(row.transient for row in rows)
    fold = folds(rows, 5, seed=0)
    for label in ("earthquake", "blast", "landslide", "noise"):
        assert {int(f) for f, row in zip(fold, rows, strict=True) if row.label == label} == set(range(5))
