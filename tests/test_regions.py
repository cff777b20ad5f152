"""A station stands where training never was: regions are left out whole, and the figures say so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from quantize_support import row, write_folder, write_record, write_table

from agent.dsp.window import Preparation
from agent.errors import DataError
from agent.types import parse_ns
from quantize.data.augment import Augmentation, Augmenter, Sampler
from quantize.data.records import LENGTHS_S, Record, Row, load_records, read_table, read_weak_labels
from quantize.data.regions import left_out, numbers, read_regions
from quantize.data.trust import in_working_hours, is_judged, trust
from quantize.study import by_region, tables
from quantize.study.evaluate import OutOfFold

BASE = Row(Path("a__XX.AAA.mseed"), "a", "uw", "e", "earthquake", "", "train", ("HHZ",), 100.0, 0)


def rows_of(region: str, label: str, count: int, station: str = "XX.AAA") -> list[Row]:
    names = [f"{region}-{label}-{i}" for i in range(count)]
    return [
        replace(BASE, path=Path(f"{n}__{station}.mseed"), name=n, event=n, dataset="made", label=label) for n in names
    ]


def test_only_regions_with_enough_of_a_class_are_left_out_and_the_largest_is_first() -> None:
    rows = [*rows_of("small", "blast", 3), *rows_of("alps", "landslide", 20), *rows_of("west", "earthquake", 40)]
    regions = {row.event: row.event.split("-")[0] for row in rows}
    assert left_out(rows, regions) == ["west", "alps"]
    assert [int(n) for n in np.unique(numbers(rows, regions))] == [0, 1, 2]
    assert numbers(rows, regions)[0] == 2  # what is never left out comes after


def test_an_event_without_a_region_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_regions(tmp_path, [BASE])
    (tmp_path / "regions.csv").write_text("source_id,region\nother,alps\n", encoding="utf-8")
    with pytest.raises(DataError, match="'e' among them"):
        read_regions(tmp_path, [BASE])


@pytest.mark.parametrize(
    ("when", "working"),
    [
        ("2020-06-03T17:30:00Z", True),  # Wednesday, 10:30 in summer
        ("2020-06-03T08:30:00Z", False),  # 1:30
        ("2020-06-06T20:00:00Z", False),  # Saturday
        ("2020-01-08T17:30:00Z", True),  # 9:30 in winter
        ("2020-06-04T00:30:00Z", False),  # 17:30
    ],
)
def test_an_earthquake_of_working_hours_is_believed_less(when: str, working: bool) -> None:
    ns = parse_ns(when)
    assert in_working_hours(ns) is working
    assert (trust(replace(BASE, onset_ns=ns)) < 1) is working
    assert trust(replace(BASE, onset_ns=ns, label="blast")) == 1
    assert trust(replace(BASE, onset_ns=ns, dataset="phasenet")) == 1


def test_a_doubtful_event_is_drawn_less_often_and_the_demonstrations_are_not_judged() -> None:
    def record(row: Row) -> Record:
        return Record(row, 0, np.zeros((3, 100), np.float32), (False, False, True))

    sure, doubtful = (
        record(replace(BASE, event=x, onset_ns=parse_ns(t)))
        for x, t in (("night", "2020-06-03T08:30:00Z"), ("day", "2020-06-03T17:30:00Z"))
    )
    rng = np.random.default_rng(0)
    sampler = Sampler([sure, doubtful])
    drawn = np.mean([sampler.draw(rng) for _ in range(2000)])
    assert 0.2 < drawn < 0.35
    even = Sampler([sure, doubtful], doubt=False)
    assert 0.45 < np.mean([even.draw(rng) for _ in range(2000)]) < 0.55
    assert not is_judged(replace(BASE, dataset="unterhaching")) and is_judged(BASE)


def test_a_record_of_a_few_seconds_is_not_known_by_its_length(tmp_path: Path) -> None:
    """Six seconds of a vehicle stand in another record's noise: no part of the window is empty because of them."""
    rows = []
    for name, seconds in (("long", 120.0), ("short", 6.0)):
        write_record(tmp_path / f"{name}.mseed", "noise", "HHZ", 100.0, seconds)
        rows.append(row(f"{name}.mseed", name, "noise", trace_onset_time=""))
    write_table(tmp_path, rows)
    augmenter = Augmenter(
        load_records(read_table(tmp_path)),
        Preparation(highpass_hz=1.0),
        Augmentation(fill_noise=0.0, truncate=0.0, cut=0.0, copy_vertical=0.0, only_vertical=1.0),
    )
    for seed in range(5):
        window = augmenter.window(1, np.random.default_rng(seed))[2]
        assert np.count_nonzero(window) > 4000
        loud = np.flatnonzero(np.abs(window) > 0.5)
        assert 0 < np.ptp(loud) < 900


def test_a_random_colour_changes_the_spectrum_and_not_what_is_empty(tmp_path: Path) -> None:
    records = load_records(read_table(write_folder(tmp_path, events=3)))
    quiet = ("neutral_band", "random_band", "stretch", "add_noise", "truncate", "burst")
    plain = dict.fromkeys(quiet, 0.0)
    made = [
        Augmenter(records, Preparation(), Augmentation(**plain, colour=colour)).window(0, np.random.default_rng(3))
        for colour in (0.0, 1.0)
    ]
    assert np.isfinite(made[1]).all() and np.abs(made[1]).max() <= 1
    assert not np.allclose(made[0], made[1])


def test_weak_labels_are_read_strictly(tmp_path: Path) -> None:
    assert read_weak_labels(tmp_path) == {}
    (tmp_path / "soft_labels").mkdir()
    table = tmp_path / "soft_labels" / "uw_timeofday.csv"
    table.write_text("source_id,p_blast_time_only\na,0.8\nb,0\n", encoding="utf-8")
    assert read_weak_labels(tmp_path) == {"a": 0.8, "b": 0.0}
    for bad in ("often", "1.5"):
        table.write_text(f"source_id,p_blast_time_only\na,{bad}\n", encoding="utf-8")
        with pytest.raises(DataError, match=":2:"):
            read_weak_labels(tmp_path)


def answers(rows: list[Row], right: float, seed: int) -> OutOfFold:
    """Logits that name the true class in the share ``right`` of the rows, else the class after it."""
    rng = np.random.default_rng(seed)
    said = np.array([row.index if rng.random() < right else (row.index + 1) % 5 for row in rows])
    logits = np.zeros((len(rows), len(LENGTHS_S), 5))
    logits[np.arange(len(rows)), :, said] = 4.0
    return OutOfFold(np.arange(len(rows)), {"neutral": logits, "recorded": logits})


def test_the_table_of_regions_says_what_the_answers_say() -> None:
    rows = [
        *rows_of("west", "earthquake", 30),
        *rows_of("west", "blast", 20),
        *rows_of("alps", "landslide", 30, "YY.BBB"),
        *rows_of("alps", "noise", 20, "YY.BBB"),
    ]
    regions = {row.event: row.event.split("-")[0] for row in rows}
    places = left_out(rows, regions)
    found = by_region.study(
        {"alone": answers(rows, 0.5, 1), "mixed": answers(rows, 1.0, 2)}, rows, numbers(rows, regions), places
    )
    pooled = {name: method["pooled"] for name, method in found["methods"].items()}  # type: ignore[union-attr,index,call-overload]
    assert pooled["mixed"]["event_balanced"][0] == 1.0
    assert pooled["mixed"]["quakes_as_landslide"][0] == 0.0
    assert 0.35 < pooled["alone"]["landslides"][0] < 0.65
    assert pooled["mixed"]["same_station"][0] == 1.0
    assert pooled["mixed"]["hard_noise"] == [-1.0, -1.0, -1.0]  # none among the rows
    gain = found["differences"]["mixed"]["event_balanced"]  # type: ignore[index,call-overload]
    assert gain[1] > 0.2  # the interval of the difference is that of paired draws
    text = tables.by_region(found)
    assert "100 records of 100 events in 2 regions" in text
    assert "| alps   | landslide  | 30 / 30" in text and "| -" in text
