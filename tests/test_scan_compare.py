"""A catalogue against what is known, against what a person says of a sample, and in the desk's database."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from records_support import trace, write
from scipy.stats import binomtest, chi2
from sqlalchemy import select

from agent.cli import main
from agent.errors import DataError, UsageError
from agent.types import NS, format_ns, parse_ns
from desk.scan.catalogue import COLUMNS, LEDGER_COLUMNS, read
from desk.scan.compare import (
    Rate,
    Share,
    compare,
    draw_sample,
    read_review,
    read_truth,
    review_words,
    words,
)
from desk.store import tables as t
from desk.store.store import Store

DAY = parse_ns("2026-03-01T00:00:00Z")


def write_catalogue(folder: Path, events: list[tuple[float, str, str]], armed_h: float = 24.0) -> Path:
    """Events: seconds after midnight, station, type."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "catalogue.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, restval="")
        table.writeheader()
        for at_s, station, kind in events:
            text = format_ns(DAY + round(at_s * NS))
            name = f"XX.{station}.00.HH-20260301T{text[11:13]}{text[14:16]}{text[17:19]}.{text[20:23]}Z"
            shares = {
                f"probability_{label}": 0.2 for label in ("earthquake", "blast", "collapse", "landslide", "noise")
            }
            table.writerow({
                "source_id": name, "station_network_code": "XX", "station_code": station,
                "station_location_code": "00", "trace_channel": "HH", "trace_onset_time": text, "source_type": kind,
                "label": "noise" if kind == "undecided" else kind, "probability": 0.8, "window_s": 81.92, "ratio": 8.0,
                "abstained": kind == "undecided", "duration_s": 3.0, "peak_counts": 100.0, "gap_s": 0.0,
                "trace_component_order": "ENZ", "time_questionable": False, **shares,
            })  # fmt: skip
    with (folder / "ledger.csv").open("w", newline="") as file:
        ledger = csv.DictWriter(file, LEDGER_COLUMNS, restval="")
        ledger.writeheader()
        ledger.writerow({
            "station_network_code": "XX", "station_code": "SLP", "station_location_code": "00", "trace_channel": "HH",
            "day": "2026-03-01", "state": "judged", "armed_h": armed_h, "armed_by_hour": " ".join(["1"] * 24),
        })  # fmt: skip
    about = {"bundle": {"name": "talus-student", "sha256": "ab" * 32}, "digest": "0" * 40}
    (folder / "catalogue.json").write_text(json.dumps(about))
    return folder


def write_truth(path: Path, rows: list[tuple[float, float, str]], **more: str) -> Path:
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["start", "end", "label", *more])
        for begin, end, label in rows:
            times = [format_ns(DAY + round(at * NS)) for at in (begin, end)]
            table.writerow([*times, label, *more.values()])
    return path


@pytest.mark.parametrize(("count", "total"), [(0, 5), (3, 3), (7, 20), (480, 500)])
def test_intervals_of_shares_are_those_of_wilson(count: int, total: int) -> None:
    """Protects the figures: SciPy's are the same."""
    known = binomtest(count, total).proportion_ci(method="wilson")
    assert Share(count, total).interval == pytest.approx((known.low, known.high), abs=1e-9)


@pytest.mark.parametrize("count", [0, 1, 4, 60, 900])
def test_intervals_of_rates_are_exact(count: int) -> None:
    """Protects the figures: those of Garwood by the chi-square distribution."""
    low = chi2.ppf(0.025, 2 * count) / 2 if count else 0.0
    high = chi2.ppf(0.975, 2 * count + 2) / 2
    assert Rate(count, 2.0).interval == pytest.approx((low / 2, high / 2), rel=1e-6)


def test_found_missed_wrong_and_false(tmp_path: Path) -> None:
    """Protects what a reader takes from it: each known event once, whatever the number of stations that had it."""
    catalogue = write_catalogue(
        tmp_path / "scan",
        [
            (100, "SLP", "landslide"), (101, "TOP", "noise"), (500, "SLP", "blast"), (900, "SLP", "undecided"),
            (2000, "SLP", "landslide"), (3000, "SLP", "noise"), (4000, "SLP", "earthquake"),
        ],
        armed_h=12.0,
    )  # fmt: skip
    known = [(98, 110, "landslide"), (498, 510, "landslide"), (898, 905, "landslide"), (1500, 1510, "landslide")]
    truth = write_truth(tmp_path / "truth.csv", [*known, (3990, 4010, "unclassified")])
    result = compare(catalogue, read_truth(truth))
    assert result.known["landslide"] == 4
    assert result.found["landslide"] == 3
    assert result.right["landslide"] == 1
    assert result.wrong["landslide"] == {"blast": 1, "undecided": 1}
    assert result.false == {"landslide": 1}
    assert result.unknown == 1
    assert result.station_days == 0.5
    assert "landslide     2.00 (0.05 to 11.14)" in words(result)


def test_what_nobody_could_hear_is_not_missed(tmp_path: Path) -> None:
    """Protects the share that was found: a list of other years, or of hours without data, says nothing of a network."""
    catalogue = write_catalogue(tmp_path / "scan", [(100, "SLP", "landslide")])
    known = [(98, 110, "landslide"), (7300, 7310, "landslide"), (90_000, 90_010, "landslide")]
    result = compare(catalogue, read_truth(write_truth(tmp_path / "truth.csv", known, station="SLP")))
    assert (result.known["landslide"], result.found["landslide"], result.unheard["landslide"]) == (2, 1, 1)
    assert "landslide: 2 known, 1 missed; 1 more in hours that were not heard" in words(result)
    elsewhere = read_truth(write_truth(tmp_path / "truth.csv", known[1:], station="XX.TOP"))
    assert compare(catalogue, elsewhere).unheard["landslide"] == 2


def test_a_truth_names_its_stations(tmp_path: Path) -> None:
    """Protects from luck: an event elsewhere at the same time is not the one that was meant."""
    catalogue = write_catalogue(tmp_path / "scan", [(100, "TOP", "landslide")])
    for station, found in (("SLP", 0), ("XX.TOP", 1), ("SLP TOP", 1)):
        truth = read_truth(write_truth(tmp_path / "truth.csv", [(98, 110, "landslide")], station=station))
        assert compare(catalogue, truth).found["landslide"] == found
    (tmp_path / "streams.csv").write_text("stream,station\nslope,SLP\n")
    truth = read_truth(write_truth(tmp_path / "truth.csv", [(98, 110, "landslide")], stream="slope"))
    assert compare(catalogue, truth).found["landslide"] == 0


def test_precision_from_a_sample_that_a_person_reviewed(tmp_path: Path) -> None:
    """Protects the estimate: strata by class, weighted by their size, and the same sample each time."""
    rng = np.random.default_rng(1)
    at = np.sort(rng.uniform(0, 86_000, 600))
    kinds = ["landslide" if i % 10 == 0 else "earthquake" for i in range(600)]
    catalogue = write_catalogue(tmp_path / "scan", [(a, "SLP", kind) for a, kind in zip(at, kinds, strict=True)])
    sample, again = tmp_path / "review.csv", tmp_path / "again.csv"
    assert draw_sample(catalogue, sample, 40) == draw_sample(catalogue, again, 40) == 80
    assert sample.read_bytes() == again.read_bytes()
    with pytest.raises(UsageError):
        draw_sample(catalogue, sample, 40)
    with sample.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["source_id"] for row in rows}) == 80
    assert {row["source_type"]: row["stratum_events"] for row in rows} == {"landslide": "60", "earthquake": "540"}
    seen = dict.fromkeys(("landslide", "earthquake"), 0)
    for row in rows:
        seen[row["source_type"]] += 1
        wrong = seen[row["source_type"]] <= (20 if row["source_type"] == "landslide" else 4)
        row["reviewed"] = "noise" if wrong else row["source_type"]
    with sample.open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0].keys())
        table.writeheader()
        table.writerows(rows)
    reviewed = read_review(sample)
    assert reviewed.right["landslide"] == Share(20, 40)
    value, low, high = reviewed.overall(("landslide", "earthquake", "blast")) or (0.0, 0.0, 0.0)
    assert value == pytest.approx(0.1 * 0.5 + 0.9 * 0.9)
    assert low < value < high
    assert high - low < 0.25
    assert "landslide" in review_words(reviewed)
    sample.write_text(sample.read_text().replace(",noise", ",rockfall"))
    with pytest.raises(DataError, match="is no class"):
        read_review(sample)


def test_a_catalogue_goes_into_the_desk_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Protects the desk's counts: real events of a scan, imported twice, stand there once, with the hours heard; what
    the station said itself is not replaced."""
    rng = np.random.default_rng(2)
    data = rng.normal(0, 100, (3, 100 * 900))
    data[:, 50_000:51_500] += 3000 * np.exp(-np.arange(1500) / 400) * rng.normal(0, 1, (3, 1500))
    for component, samples in zip("ENZ", data, strict=True):
        write(tmp_path / "in" / f"{component}.mseed", trace(samples.astype(np.int32), f"HH{component}", DAY))
    assert main(["scan", str(tmp_path / "in"), "--out", str(tmp_path / "scan"), "--jobs", "1"]) == 0
    rows = list(read(tmp_path / "scan"))
    assert rows
    state = tmp_path / "state"
    assert main(["scan", "import", str(tmp_path / "scan"), "--state", str(state)]) == 1
    assert f"{state / 'desk.db'} does not exist" in capsys.readouterr().err
    assert not state.exists()
    config = tmp_path / "desk.yaml"
    config.write_text(f"mqtt: {{host: localhost}}\nstate_dir: {state}\n")
    Store(f"sqlite:///{state / 'desk.db'}").close()
    for where in (["--state", str(state)], ["--config", str(config)]):
        assert main(["scan", "import", str(tmp_path / "scan"), *where]) == 0
    assert f"{len(rows)} event" in (printed := capsys.readouterr().out)
    assert " 0.2 h heard, in 24 rows of an hour" in printed
    store = Store(f"sqlite:///{state / 'desk.db'}")
    with store.engine.connect() as connection:
        stored = connection.execute(select(t.event.c.uid, t.event.c.revision, t.event.c.ended)).all()
        hours = connection.execute(select(t.health_hour.c.hour, t.health_hour.c.armed)).all()
    store.close()
    assert sorted((row.uid, row.revision, row.ended) for row in stored) == [(r["source_id"], 0, True) for r in rows]
    assert dict(hours[:1])[DAY // (3600 * NS)] == pytest.approx(0.24, abs=0.03)
