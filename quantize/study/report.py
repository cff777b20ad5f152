"""Figures of a model over labelled records, as text for a terminal, as Markdown for the card, as numbers for the
manifest."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from agent.dsp.window import Preparation
from agent.inference import Classifier
from agent.types import LABELS, Window
from quantize.data.records import FULL_S, LENGTHS_S, Record, Row
from quantize.data.views import VIEWS, ViewName, view_windows
from quantize.study.evaluate import (
    FIGURES,
    Array,
    Confidence,
    Figure,
    Scores,
    Truth,
    calibration_error,
    per_event,
    score,
    softmax,
)


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """Calibrated probabilities ``[records, lengths, 5]`` of one view, and which answers were withheld ``[records,
    lengths]``."""

    probabilities: Array
    abstained: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """All figures of one view at one window length."""

    view: str
    seconds: float
    records: Scores
    events: Scores
    calibration_error: float
    answered: float
    answered_accuracy: float
    transient_held: float
    """Share of the noise that triggers which was called noise or withheld; NaN where there is none."""


def calibrated(logits: Mapping[str, Array], confidence: Confidence) -> dict[str, Answers]:
    """Answers from logits ``[records, lengths, 5]`` by view, as the agent gives them under ``confidence``."""
    limits = np.array([confidence.thresholds[label] for label in LABELS])
    made = {}
    for view, values in logits.items():
        parts = [softmax(values[:, i], temperature) for i, (_, temperature) in enumerate(confidence.temperatures)]
        p = np.stack(parts, axis=1)
        made[view] = Answers(p, p.max(axis=-1) < limits[p.argmax(axis=-1)])
    return made


def classified(classifier: Classifier, records: Sequence[Record], preparation: Preparation) -> dict[str, Answers]:
    """Answers of the agent's own classifier to every record, at every length, in both views."""
    return {view: _classified(classifier, records, view, preparation) for view in VIEWS}


def _classified(classifier: Classifier, records: Sequence[Record], view: ViewName, preparation: Preparation) -> Answers:
    probabilities = np.empty((len(records), len(LENGTHS_S), len(LABELS)))
    abstained = np.empty(probabilities.shape[:2], dtype=bool)
    for i, record in enumerate(records):
        windows = view_windows(view, record, LENGTHS_S, preparation)
        for k, (seconds, data) in enumerate(zip(LENGTHS_S, windows, strict=True)):
            window = Window(data, record.row.onset_ns or record.start_ns, seconds, (1.0, 1.0, 1.0), 0.0)
            verdict = classifier.classify(window)
            probabilities[i, k], abstained[i, k] = verdict.probabilities, verdict.abstained
    return Answers(probabilities, abstained)


def measure(answers: Mapping[str, Answers], rows: Sequence[Row]) -> list[Measured]:
    """Every figure of every view and length."""
    truth = Truth.of(rows)
    learned = truth.labels != LABELS.index("collapse")
    found = []
    for view, given in answers.items():
        for k, seconds in enumerate(LENGTHS_S):
            p, withheld = given.probabilities[:, k], given.abstained[:, k]
            right = p.argmax(axis=-1) == truth.labels
            answered = ~withheld & learned
            held = (right | withheld)[truth.transient]
            found.append(
                Measured(
                    view,
                    seconds,
                    score(p, truth),
                    score(*per_event(p, truth)),
                    calibration_error(p[learned], truth.labels[learned]),
                    float(answered.sum() / learned.sum()),
                    float(right[answered].mean()) if answered.any() else float("nan"),
                    float(held.mean()) if len(held) else float("nan"),
                )
            )
    return found


def text(measured: Sequence[Measured], rows: Sequence[Row], title: str) -> str:
    """The whole report for a terminal."""
    return "\n".join(_lines(measured, rows, title))


def _lines(measured: Sequence[Measured], rows: Sequence[Row], title: str) -> Iterator[str]:
    learned = [row for row in rows if row.label != "collapse"]
    counts = ", ".join(
        f"{label} {sum(r.label == label for r in learned)}/{len({r.event for r in learned if r.label == label})}"
        for label in LABELS
        if label != "collapse"
    )
    yield f"{title}: {len(learned)} records of {len({r.event for r in learned})} events ({counts})"
    yield "Per cent, with 95 % intervals from drawing events. Four classes: collapse, with one record in all, is apart."
    for view in dict.fromkeys(m.view for m in measured):
        yield ""
        yield _VIEW_TITLES[view]
        head = (
            "records: accuracy",
            "balanced accuracy",
            "macro F1",
            "events: accuracy",
            "balanced accuracy",
            "macro F1",
        )
        yield _row("", head)
        chosen = [m for m in measured if m.view == view]
        for m in chosen:
            r, e = m.records, m.events
            figures = (r.accuracy, r.balanced, r.macro_f1, e.accuracy, e.balanced, e.macro_f1)
            yield _row(_name(m.seconds), [str(figure) for figure in figures])
        yield _row("", ("calibration error", "answered", "right of answered", "noise that triggers: right or withheld"))
        for m in chosen:
            shares = (m.calibration_error, m.answered, m.answered_accuracy, m.transient_held)
            yield _row(_name(m.seconds), [f"{100 * share:.1f}" for share in shares])
        for unit in ("records", "events"):
            yield f"{unit}, whole window: truth in rows, answer in columns"
            yield from _confusion(chosen[-1].records if unit == "records" else chosen[-1].events)


def by_region(given: Answers, rows: Sequence[Row], region: Mapping[str, str]) -> Iterator[str]:
    """What the events of each region and label were called in the whole window, the most frequent answer first;
    ``region`` by event."""
    truth = Truth.of(rows)
    probabilities, events = per_event(given.probabilities[:, -1], truth)
    _, first = np.unique(truth.groups, return_index=True)
    found: dict[tuple[str, int], Counter[str]] = {}
    for at, label, answer in zip(first.tolist(), events.labels.tolist(), probabilities.argmax(axis=-1), strict=True):
        found.setdefault((region[rows[at].event], label), Counter())[LABELS[answer]] += 1
    for (name, label), answers in sorted(found.items()):
        called = ", ".join(f"{answer} {count}" for answer, count in answers.most_common())
        yield f"{name:>16} {LABELS[label]:>12}{sum(answers.values()):>6d}: {called}"


_VIEW_TITLES = {
    "neutral": "Neutral view (vertical only, 1-16 Hz, random placement, same filling): the figures that count",
    "recorded": "As recorded (what `talus classify` sees): flattered by how each source was recorded",
}


def _row(name: str, cells: Sequence[str]) -> str:
    return f"{name:>8}  " + " ".join(f"{cell:<20}" for cell in cells).rstrip()


def _name(seconds: float) -> str:
    return "whole" if seconds == FULL_S else f"{seconds:g} s"


def _confusion(scores: Scores) -> Iterator[str]:
    yield f"{'':>12}" + "".join(f"{label:>12}" for label in LABELS) + f"{'recall':>10}"
    for i, label in enumerate(LABELS):
        if scores.confusion[i].sum():
            cells = "".join(f"{count:>12d}" for count in scores.confusion[i])
            yield f"{label:>12}{cells}{100 * scores.recall[i]:>10.1f}"


def markdown(measured: Sequence[Measured]) -> str:
    """Tables for the model card."""
    lines = []
    for view in dict.fromkeys(m.view for m in measured):
        lines += [
            f"**{_VIEW_TITLES[view]}**",
            "",
            "| after onset | records: accuracy | balanced | macro F1 | events: accuracy | balanced | macro F1 | ECE |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for m in (m for m in measured if m.view == view):
            r, e = m.records, m.events
            cells = [r.accuracy, r.balanced, r.macro_f1, e.accuracy, e.balanced, e.macro_f1]
            lines.append(f"| {_name(m.seconds)} | {' | '.join(map(str, cells))} | {100 * m.calibration_error:.1f} |")
        lines.append("")
    return "\n".join(lines)


def numbers(measured: Sequence[Measured]) -> dict[str, JsonValue]:
    """For the manifest: view, then window length, then figure; values 0 to 1 with four decimals."""
    views: dict[str, dict[str, JsonValue]] = {}
    for m in measured:
        views.setdefault(m.view, {})[f"{m.seconds:g}"] = {
            "record_accuracy": triple(m.records.accuracy),
            "record_balanced_accuracy": triple(m.records.balanced),
            "record_macro_f1": triple(m.records.macro_f1),
            "event_accuracy": triple(m.events.accuracy),
            "event_balanced_accuracy": triple(m.events.balanced),
            "event_macro_f1": triple(m.events.macro_f1),
            "calibration_error": round(m.calibration_error, 4),
            "answered": round(m.answered, 4),
            "answered_accuracy": None if math.isnan(m.answered_accuracy) else round(m.answered_accuracy, 4),
        }
    return {**views}


SAME = 0.01
"""Shares that differ by less are the same figure, rounded by another processor."""


def largest_difference(measured: Mapping[str, Any], stated: Mapping[str, Any]) -> float:
    """Largest difference in any accuracy between two results of ``numbers``, one of them read from a manifest;
    infinite where views or lengths are not the same."""
    ours, theirs = ({(v, s): cell for v, by in each.items() for s, cell in by.items()} for each in (measured, stated))
    if ours.keys() != theirs.keys():
        return math.inf
    pairs = np.array([(cell[name], theirs[key][name]) for key, cell in ours.items() for name in FIGURES])
    return float(np.abs(pairs[:, 0] - pairs[:, 1]).max())


def triple(figure: Figure) -> list[JsonValue]:
    """Value, low and high end, four decimals."""
    return [round(figure.value, 4), round(figure.low, 4), round(figure.high, 4)]
