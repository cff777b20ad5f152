"""Whole records for classification: stations, components and gaps as the file has them."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest
from obspy import read
from records_support import NOON, counts, packaged_records, seconds, trace, write

from agent.errors import SourceError
from agent.sources import SourceProblem
from agent.sources.records import read_records

DATA = Path(os.environ.get("TALUS_DATA", Path(__file__).parents[2] / "shared" / "data"))


def test_stations_and_components_are_told_apart(tmp_path):
    """Two sensors of one station are two stations; 1 and 2 stand for N and E where letters are missing."""
    path = write(
        tmp_path / "a.mseed",
        *[trace(counts(500, i), f"HH{c}") for i, c in enumerate("ENZ")],
        *[trace(counts(500, i), f"EH{c}") for i, c in enumerate("12Z")],
        trace(counts(200), "HHZ", station="AAA"),
    )
    records = read_records(path)
    assert [str(record.station) for record in records] == ["XX.AAA.00.HH", "XX.SLP.00.EH", "XX.SLP.00.HH"]
    numbered = records[1].rows
    assert set(numbered) == {0, 1, 2}
    np.testing.assert_array_equal(numbered[0][0].samples, counts(500, 1))
    np.testing.assert_array_equal(numbered[1][0].samples, counts(500, 0))
    assert set(records[0].rows) == {2}


def test_gaps_separate_and_what_continues_is_joined(tmp_path):
    data = counts(1000)
    path = write(
        tmp_path / "a.mseed",
        trace(data[:300]),
        trace(data[300:500], start_ns=NOON + seconds(3)),
        trace(data[600:], start_ns=NOON + seconds(6)),
    )
    [record] = read_records(path)
    first, second = record.rows[2]
    np.testing.assert_array_equal(first.samples, data[:500])
    np.testing.assert_array_equal(second.samples, data[600:])
    assert (first.start_ns, first.end_ns, second.start_ns) == (NOON, NOON + seconds(5), NOON + seconds(6))


def test_overlaps_and_duplicates_count_once(tmp_path):
    data = counts(1000)
    path = write(
        tmp_path / "a.mseed",
        trace(data[:600]),
        trace(data[400:], start_ns=NOON + seconds(4)),
        trace(data[100:200], start_ns=NOON + seconds(1)),
        trace(data[:600]),
    )
    [record] = read_records(path)
    [segment] = record.rows[2]
    np.testing.assert_array_equal(segment.samples, data)


def test_letters_win_over_numbers_and_the_longer_rate_over_the_shorter(tmp_path):
    path = write(
        tmp_path / "a.mseed",
        trace(counts(300, 1), "HHE"),
        trace(counts(900, 2), "HH2"),
        trace(counts(1000, 3), "HHZ", rate=50.0),
        trace(counts(1500, 4), "HHZ", start_ns=NOON + seconds(30), rate=100.0),
    )
    [record] = read_records(path)
    assert [len(segment.samples) for segment in record.rows[0]] == [300]
    assert [segment.rate_hz for segment in record.rows[2]] == [50.0]


def test_problems_beside_usable_data_are_reported(tmp_path):
    problems: list[SourceProblem] = []
    path = write(tmp_path / "a.mseed", trace(counts(300)), trace(counts(300), "LHZ", rate=1.0))
    assert len(read_records(path, on_problem=problems.append)) == 1
    assert "1 Hz" in problems[0].message


@pytest.mark.parametrize("content", [None, b"", b"text " * 100, "pipe"])
def test_an_unreadable_file_is_one_error_with_the_reason(tmp_path, content):
    """(To open a pipe that nobody writes to would wait for ever.)"""
    path = tmp_path / "bad.mseed"
    if content == "pipe":
        os.mkfifo(path)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(SourceError, match=r"bad\.mseed: .*(No such file|empty|no format|regular file)") as caught:
        read_records(path)
    assert caught.value.hint


def test_obspys_gappy_record(tmp_path):
    """``gaps.mseed``: four traces with gaps between them, from a real recorder."""
    path = next(path for path in packaged_records() if path.name == "gaps.mseed")
    [record] = read_records(path)
    stream = read(str(path))
    assert [(s.start_ns, len(s.samples)) for s in record.rows[0]] == [
        (tr.stats.starttime.ns, tr.stats.npts) for tr in stream
    ]


@pytest.mark.skipif(not (DATA / "metadata.csv").exists(), reason="the labelled records are not here (TALUS_DATA)")
def test_every_labelled_record_is_read_with_all_its_components():
    """As many components as the table says, without a problem, except where a record has none that is usable."""
    with (DATA / "metadata.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))[::5]
    assert len(rows) > 100
    for row in rows:
        problems: list[SourceProblem] = []
        [record] = read_records(DATA / row["trace_name"], on_problem=problems.append)
        assert len(record.rows) == int(row["trace_n_components"]), row["trace_name"]
        assert record.station.station == row["station_code"]
        assert not [problem for problem in problems if "lacks SEED codes" not in problem.message], row["trace_name"]
