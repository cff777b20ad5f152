"""Figures mean what they say: per event, over four classes, with intervals that are wide where events are few."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from agent.types import LABELS
from quantize.data.records import LENGTHS_S, Row
from quantize.study.evaluate import (
    HIGHEST,
    LOWEST,
    RISK,
    Truth,
    calibration_error,
    confusion_matrix,
    fit_confidence,
    fit_temperature,
    per_event,
    risk_coverage,
    score,
    softmax,
    summarise,
    thresholds,
)
from quantize.study.report import Answers, by_region, calibrated, measure, numbers, text


def rows_of(*labels_and_events: tuple[str, str], subtype: str = "") -> list[Row]:
    return [
        Row(Path("x"), f"{i}", "made", event, label, subtype, "val", ("HHZ",), 100.0, None)
        for i, (label, event) in enumerate(labels_and_events)
    ]


def certain(*answers: str) -> np.ndarray:
    return np.eye(len(LABELS))[[LABELS.index(answer) for answer in answers]]


def test_figures_of_a_known_table() -> None:
    rows = rows_of(("earthquake", "a"), ("earthquake", "a"), ("earthquake", "b"), ("blast", "c"), ("noise", "d"))
    answers = certain("earthquake", "blast", "earthquake", "blast", "landslide")
    scores = score(answers, Truth.of(rows), draws=50)
    assert scores.accuracy.value == pytest.approx(3 / 5)
    assert scores.balanced.value == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert scores.macro_f1.value == pytest.approx((4 / 5 + 2 / 3 + 0) / 3)
    assert scores.recall[0] == pytest.approx(2 / 3)
    assert np.isnan(scores.recall[LABELS.index("collapse")])


def test_an_event_is_the_mean_of_its_records() -> None:
    rows = rows_of(("earthquake", "a"), ("earthquake", "a"), ("earthquake", "a"), ("noise", "a"))
    p = np.array([[0.4, 0.6, 0, 0, 0], [0.4, 0.6, 0, 0, 0], [0.9, 0.1, 0, 0, 0], [0, 0, 0, 0, 1.0]])
    events, truth = per_event(p, Truth.of(rows))
    assert len(events) == 2, "noise before an event is not that event"
    assert events[0] == pytest.approx([1.7 / 3, 1.3 / 3, 0, 0, 0])
    assert score(events, truth, draws=10).accuracy.value == 1.0


def test_collapse_is_apart_but_its_name_is_a_wrong_answer() -> None:
    rows = rows_of(("collapse", "a"), ("blast", "b"), ("blast", "c"))
    accuracy, balanced, _ = summarise(confusion_matrix(Truth.of(rows).labels, np.array([0, 1, 2])))
    assert accuracy == balanced == 0.5


def test_intervals_count_events_not_records() -> None:
    """A hundred records of two events, one all right and one all wrong, tell next to nothing."""
    few = rows_of(*[("blast", "a")] * 50, *[("blast", "b")] * 50)
    many = rows_of(*[("blast", str(i)) for i in range(100)])
    answers = certain(*["blast"] * 50, *["noise"] * 50)
    wide, narrow = score(answers, Truth.of(few)).accuracy, score(answers, Truth.of(many)).accuracy
    assert wide.value == narrow.value == 0.5
    assert wide.high - wide.low == 1.0
    assert 0.1 < narrow.high - narrow.low < 0.3


def test_temperature_is_found_again() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (4000, 5))
    cumulative = softmax(logits).cumsum(axis=1)
    labels = (rng.random((4000, 1)) > cumulative).sum(axis=1)
    assert fit_temperature(2.5 * logits, labels) == pytest.approx(2.5, rel=0.1)
    assert calibration_error(softmax(logits), labels) < 0.03
    assert calibration_error(softmax(4 * logits), labels) > 0.1


def test_risk_falls_with_coverage() -> None:
    p = np.array([[0.9, 0.1, 0, 0, 0], [0.6, 0.4, 0, 0, 0], [0.45, 0.55, 0, 0, 0]])
    assert risk_coverage(p, np.array([0, 0, 0]), [0.0, 0.58, 0.95])[:2] == [
        (0.0, 1.0, pytest.approx(1 / 3)),
        (0.58, pytest.approx(2 / 3), 0.0),
    ]
    assert np.isnan(risk_coverage(p, np.array([0, 0, 0]), [0.95])[0][2])


def test_a_label_that_errs_has_to_be_surer() -> None:
    rng = np.random.default_rng(0)
    top = rng.uniform(0.4, 1.0, 4000)
    p = np.zeros((4000, 5))
    p[np.arange(4000), np.tile([0, 3], 2000)] = top
    labels = np.tile([0, 3], 2000)
    wrong = rng.random(4000) > 1.1 * top
    labels[wrong & (labels == 3)] = 4
    found = thresholds(p, labels)
    assert found["earthquake"] == LOWEST
    assert LOWEST < found["landslide"] < HIGHEST
    kept = (p.argmax(1) == 3) & (top >= found["landslide"])
    assert (labels[kept] != 3).mean() <= RISK
    assert found["collapse"] == HIGHEST


def test_blasts_that_do_not_hold_are_withheld_and_landslides_never() -> None:
    """A blast withheld costs nothing; a landslide withheld would cost an alert."""
    p = np.zeros((400, 5))
    p[np.arange(400), np.tile([1, 3], 200)] = np.random.default_rng(0).uniform(0.4, 0.9, 400)
    found = thresholds(p, np.zeros(400, dtype=np.int64))
    assert found["landslide"] == HIGHEST
    assert not (p[:, 1] >= found["blast"]).any()


def test_report_says_by_region_what_events_were_called() -> None:
    rows = rows_of(("blast", "a"), ("blast", "a"), ("blast", "b"), ("blast", "c"), ("noise", "c"))
    called = certain("landslide", "landslide", "blast", "landslide", "noise")
    given = Answers(np.repeat(called[:, None], len(LENGTHS_S), axis=1), np.zeros((5, len(LENGTHS_S)), dtype=bool))
    lines = [" ".join(line.split()) for line in by_region(given, rows, {"a": "north", "b": "north", "c": "alps"})]
    assert lines == ["alps blast 1: landslide 1", "alps noise 1: noise 1", "north blast 2: landslide 1, blast 1"]


def test_report_has_every_length_view_and_interval() -> None:
    kinds = ("earthquake", "blast", "landslide", "noise", "collapse")
    rows = rows_of(*[(label, f"{label}{i}") for label in kinds for i in range(8)])
    rng = np.random.default_rng(0)
    logits = {
        view: rng.normal(0, 1, (len(rows), len(LENGTHS_S), 5)) + 3 * np.eye(5)[[r.index for r in rows]][:, None]
        for view in ("neutral", "recorded")
    }
    confidence = fit_confidence(logits, Truth.of(rows))
    assert [seconds for seconds, _ in confidence.temperatures] == list(LENGTHS_S)
    measured = measure(calibrated(logits, confidence), rows)
    shown = text(measured, rows, "made up")
    assert shown.startswith("made up: 32 records of 32 events")
    for line in ("Neutral view", "As recorded", "   3 s", "whole", "records, whole window"):
        assert line in shown
    figures = numbers(measured)
    assert list(figures) == ["neutral", "recorded"]
    value, low, high = figures["neutral"]["3"]["record_accuracy"]
    assert low <= value <= high


def test_withheld_answers_count_apart() -> None:
    rows = rows_of(("noise", "a"), ("noise", "b"), subtype="triggered transient, one station only")
    p = np.repeat(certain("blast", "noise")[:, None], len(LENGTHS_S), axis=1)
    withheld = np.zeros(p.shape[:2], dtype=bool)
    withheld[0] = True
    first = measure({"neutral": Answers(p, withheld)}, rows)[0]
    assert first.answered == 0.5
    assert first.answered_accuracy == 1.0
    assert first.transient_held == 1.0
    assert measure({"neutral": Answers(p, ~withheld)}, rows)[0].transient_held == 0.5
