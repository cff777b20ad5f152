"""A comparison says what the answers say: paired, by event, calibrated on other folds, noise apart."""

from __future__ import annotations

import json
from pathlib import Path

import learning_support
import numpy as np
import pytest
from quantize_support import write_folder
from test_quantize_evaluate import rows_of

from agent.errors import ConfigError, DataError
from agent.types import LABELS
from quantize.data.records import FULL_S, LENGTHS_S, TRANSIENT, Row, read_table
from quantize.study import tables
from quantize.study.compare import compare, crossfitted, paired_differences
from quantize.study.evaluate import FIGURES, OutOfFold, Truth, calibration_error, score, softmax
from quantize.study.plots import comparison_pictures
from quantize.study.probe import COLUMNS, probe, recording

pytestmark = learning_support.TRAIN

CLASSES = ("earthquake", "blast", "landslide", "noise")


def site(events: int = 20, *, transient: bool = False) -> list[Row]:
    """Two records of each of ``events`` events a class."""
    subtype = TRANSIENT if transient else ""
    pairs = [(label, f"{label}{i}") for label in CLASSES for i in range(events) for _ in range(2)]
    rows = rows_of(*pairs)
    noisy = rows_of(*pairs, subtype=subtype)
    return [noisy[i] if row.label == "noise" else row for i, row in enumerate(rows)]


def answers(rows: list[Row], skill: float, seed: int) -> dict[str, np.ndarray]:
    """Logits that favour the truth by ``skill``, the more the longer the window."""
    rng = np.random.default_rng(seed)
    truth = Truth.of(rows).labels
    logits = rng.normal(0, 1, (len(rows), len(LENGTHS_S), len(LABELS)))
    logits[..., LABELS.index("collapse")] = -5
    rise = np.linspace(0.5, 1.0, len(LENGTHS_S))
    logits[np.arange(len(rows)), :, truth] += skill * rise
    return {"neutral": logits, "recorded": logits + 0.01}


@pytest.fixture(scope="module")
def found() -> dict[str, object]:
    rows = site()
    fold = np.arange(len(rows)) // 2 % 5
    index = np.arange(len(rows))
    shuffled = np.random.default_rng(0).permutation(index)
    good, weak = answers(rows, 4.0, 1), answers(rows, 1.0, 2)
    out = {
        "stft": OutOfFold(index, weak),
        "distilled": OutOfFold(shuffled, {view: values[shuffled] for view, values in good.items()}),
    }
    return compare(out, rows, fold, draws=100)


def test_figures_are_those_of_the_answers_whatever_their_order(found: dict[str, object]) -> None:
    rows = site()
    expected = score(softmax(answers(rows, 4.0, 1)["neutral"][:, -1]), Truth.of(rows))
    cell = found["methods"]["distilled"]["neutral"][f"{FULL_S:g}"]  # type: ignore[index]
    assert cell["record_accuracy"][0] == pytest.approx(expected.accuracy.value, abs=1e-4)
    whole = found["methods"]["distilled"]["neutral"]["whole"]  # type: ignore[index]
    assert whole["confusion_records"] == expected.confusion.tolist()
    early = found["methods"]["distilled"]["neutral"]["3"]  # type: ignore[index]
    assert early["record_early_share"] == pytest.approx(
        early["record_balanced_accuracy"][0] / cell["record_balanced_accuracy"][0], abs=1e-3
    )


def test_a_difference_equals_that_of_its_figures_and_excludes_zero_where_it_is_plain(found: dict[str, object]) -> None:
    (neutral, _) = found["differences"]  # type: ignore[misc]
    cells = {n: found["methods"][n]["neutral"][f"{FULL_S:g}"] for n in ("stft", "distilled")}  # type: ignore[index]
    for name in FIGURES:
        value, low, high = neutral[name]
        assert value == pytest.approx(cells["distilled"][name][0] - cells["stft"][name][0], abs=2e-4)
        assert 0 < low <= value <= high


def test_pairing_takes_out_what_both_share() -> None:
    """Two methods wrong on the same hard events differ surely by little; their own intervals are wide."""
    rows = site(10)
    truth = Truth.of(rows)
    hard = truth.events % 3 == 0
    answered = np.where(hard, (truth.labels + 1) % 5, truth.labels)
    better = answered.copy()
    better[np.flatnonzero(hard)[:2]] = truth.labels[np.flatnonzero(hard)[:2]]
    a, b = np.eye(5)[better], np.eye(5)[answered]
    gain = paired_differences(a, b, truth)["record_accuracy"]
    own = score(b, truth).accuracy
    assert gain.value == pytest.approx(2 / len(rows))
    assert gain.high - gain.low < (own.high - own.low) / 2
    none = paired_differences(a, a, truth)
    assert all(f.value == f.low == f.high == 0 for f in none.values())


def test_confidence_for_a_fold_comes_from_the_others() -> None:
    rows = site()
    truth, fold = Truth.of(rows), np.arange(160) // 2 % 5
    logits = answers(rows, 2.0, 3)
    base = crossfitted(logits, truth, fold)["neutral"].probabilities
    # a fold whose labels are turned round changes the temperature of every fold but its own
    labels = np.where(fold == 0, (truth.labels + 1) % 5, truth.labels)
    turned = crossfitted(logits, Truth(labels, truth.events, truth.groups, truth.transient), fold)["neutral"]
    assert np.array_equal(turned.probabilities[fold == 0], base[fold == 0])
    assert np.abs(turned.probabilities[fold == 1] - base[fold == 1]).max() > 0.01


def test_overconfident_answers_are_calibrated() -> None:
    rows = site(60)
    truth, fold = Truth.of(rows), np.arange(len(rows)) // 2 % 5
    logits = {view: 6 * values for view, values in answers(rows, 1.5, 4).items()}
    raw = calibration_error(softmax(logits["neutral"][:, -1]), truth.labels)
    fitted = calibration_error(crossfitted(logits, truth, fold)["neutral"].probabilities[:, -1], truth.labels)
    assert raw > 0.2
    assert fitted < 0.08


@pytest.mark.parametrize("transient", [True, False])
def test_noise_that_triggers_is_counted_apart(transient: bool) -> None:
    rows = site(6, transient=transient)
    out = {"alone": OutOfFold(np.arange(len(rows)), answers(rows, 3.0, 5))}
    found = compare(out, rows, np.arange(len(rows)) // 2 % 3, draws=10)
    cell = found["methods"]["alone"]["neutral"][f"{FULL_S:g}"]  # type: ignore[index,call-overload]
    counts = (cell["noise_triggering"]["records"], cell["noise_quiet"]["records"])  # type: ignore[index,call-overload]
    assert counts == ((12, 0) if transient else (0, 12))


def test_methods_must_have_answered_the_same_records() -> None:
    rows = site(6)
    whole, part = np.arange(len(rows)), np.arange(len(rows) - 1)
    logits = answers(rows, 1.0, 0)
    out = {
        "stft": OutOfFold(whole, logits),
        "alone": OutOfFold(part, {view: values[:-1] for view, values in logits.items()}),
    }
    with pytest.raises(ConfigError, match="stft and alone"):
        compare(out, rows, whole // 2 % 5)
    with pytest.raises(ConfigError, match="no method"):
        compare({}, rows, whole // 2 % 5)


def test_pictures_are_drawn_from_the_plain_values(found: dict[str, object], tmp_path: Path) -> None:
    """Twice the same bytes: a picture changes only with the figures."""
    first = comparison_pictures(tmp_path / "a", json.loads(json.dumps(found)))
    again = comparison_pictures(tmp_path / "b", json.loads(json.dumps(found)))
    assert [path.name for path in first] == ["reliability.png", "confusion_records.png", "confusion_events.png"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]


def test_every_table_of_the_comparison_is_printed(found: dict[str, object], tmp_path: Path) -> None:
    text = tables.comparison(found)
    accuracy = found["methods"]["distilled"]["neutral"][f"{FULL_S:g}"]["record_accuracy"]  # type: ignore[index]
    assert f"| student, distilled, FP32  | {tables.figure(accuracy)}" in text
    assert "student, distilled, FP32 - STFT network of the paper" in text
    assert text.count("noise that triggers") == 2
    assert "earthquake 40/20" in text


def test_a_probe_finds_a_class_that_its_recording_gives_away() -> None:
    """Landslides at a rate of their own, the rest mixed: found by the rate, and by nothing else."""
    rows = site(10)
    rng = np.random.default_rng(0)
    columns = rng.integers(1, 4, (len(rows), len(COLUMNS))).astype(np.float64)
    landslide = np.array([row.label == "landslide" for row in rows])
    columns[:, COLUMNS.index("rate")] = np.where(landslide, 40.0, rng.choice([50.0, 100.0], len(rows)))
    found = probe(rows, columns, np.arange(len(rows)) // 2 % 5, draws=20)["classifiers"]
    by_name = {tuple(row["sees"]): row["record_accuracy"][0] for row in found}  # type: ignore[index,call-overload,union-attr]
    assert by_name["rate",] > 0.4
    assert by_name["encoding",] < 0.35
    assert "rate + components + length + encoding" in tables.probe({"classifiers": found})


def test_a_probe_of_one_event_is_refused() -> None:
    with pytest.raises(DataError, match="one fold"):
        probe(site(1)[:1], np.zeros((1, len(COLUMNS))), np.zeros(1, dtype=np.int64))


def test_the_recording_is_read_from_the_headers(tmp_path: Path) -> None:
    rows = read_table(write_folder(tmp_path / "data", events=3))
    made = recording(rows)
    three = [row.channels == ("HHE", "HHN", "HHZ") for row in rows]
    assert made[:, COLUMNS.index("components")].tolist() == [3 if whole else 1 for whole in three]
    assert made[:, COLUMNS.index("length")] == pytest.approx(120, abs=0.05)
