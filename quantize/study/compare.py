"""Several methods side by side, on the same records, each answered by networks that never saw the record's event.

Everything ends in plain values, so that the model card, the report and the pictures are made of the numbers that the
manifest carries, and of no others. A difference between two methods comes from a paired bootstrap: both are judged on
the same draw of events, which takes out what makes one draw harder than another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from agent.errors import ConfigError
from agent.types import LABELS
from quantize.data.records import FULL_S, LENGTHS_S, Row
from quantize.study.evaluate import (
    CLASSES,
    FIGURES,
    Array,
    Figure,
    OutOfFold,
    Truth,
    fit_confidence,
    per_event,
    reliability,
    risk_coverage,
)
from quantize.study.report import Answers, Measured, calibrated, measure, numbers, triple

FORMAT = "talus/comparison/1"
PAIRS = (
    ("int8", "stft"),
    ("int8", "mixed"),
    ("int8", "alone"),
    ("int8", "prime"),
    ("int8", "distilled"),
    ("distilled", "stft"),
    ("distilled", "boosting"),
    ("distilled", "alone"),
    ("distilled", "prime"),
    ("distilled", "teachers"),
    ("prime", "stft"),
    ("alone", "stft"),
    ("mixed", "stft"),
    ("mixed", "boosting"),
    ("mixed", "alone"),
)
"""Which differences are told, where both methods are there."""
LOCAL = ("sechilienne",)
"""Data sets recorded on the moving slope itself."""
DRAWS = 1000
THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(4, 20))


@dataclass(frozen=True, slots=True, eq=False)
class _Method:
    answers: dict[str, Answers]
    measured: list[Measured]


def compare(
    answered: Mapping[str, OutOfFold], rows: Sequence[Row], fold: NDArray[np.int64], *, draws: int = DRAWS
) -> dict[str, JsonValue]:
    """Everything there is to say of the methods ``answered``, as plain values (shares 0 to 1; figures as value, low,
    high). ``rows`` and ``fold`` are of all records; an answer's ``index`` points into both.

    Raises:
        ConfigError: the methods have not answered the same records.
    """
    index = _common_index(answered)
    chosen, folds = [rows[int(i)] for i in index], fold[index]
    truth = Truth.of(chosen)
    methods = {}
    for name, out in answered.items():
        made = crossfitted(out.in_order(), truth, folds)
        methods[name] = _Method(made, measure(made, chosen))
    learned = truth.labels != LABELS.index("collapse")
    return {
        "format": FORMAT,
        "records": int(learned.sum()),
        "events": len(np.unique(truth.events[learned])),
        "folds": len(np.unique(folds)),
        "overlapping": int(np.isin(fold, folds).sum()) - len(index),
        "classes": {
            label: [int((truth.labels == i).sum()), len(np.unique(truth.events[truth.labels == i]))]
            for i, label in enumerate(LABELS)
        },
        "methods": {name: _figures(method, truth, chosen) for name, method in methods.items()},
        "differences": [
            difference
            for first, second in PAIRS
            if first in methods and second in methods
            for difference in _differences(first, second, methods, truth, draws)
        ],
    }


def _common_index(answered: Mapping[str, OutOfFold]) -> NDArray[np.int64]:
    indices = {name: np.sort(out.index) for name, out in answered.items()}
    if not indices:
        raise ConfigError("there is no method to compare", "run `python -m quantize crossval` first")
    first, *others = indices
    for other in others:
        if not np.array_equal(indices[first], indices[other]):
            raise ConfigError(
                f"{first} and {other} have not answered the same records", "run the same folds of every method"
            )
    return indices[first]


def crossfitted(logits: Mapping[str, Array], truth: Truth, folds: NDArray[np.int64]) -> dict[str, Answers]:
    """Calibrated answers from logits ``[records, lengths, 5]`` by view. Temperatures and thresholds for a fold come
    from the other folds, so that the calibration error is none of a fit to itself; a single fold has no others."""
    every = np.unique(folds)
    p = {view: np.empty_like(values) for view, values in logits.items()}
    withheld = {view: np.empty(values.shape[:2], dtype=bool) for view, values in logits.items()}
    for fold in every:
        inside = folds == fold
        others = ~inside if len(every) > 1 else inside
        fitted = fit_confidence(
            {view: values[others] for view, values in logits.items()}, truth.take(np.flatnonzero(others))
        )
        for view, made in calibrated({view: values[inside] for view, values in logits.items()}, fitted).items():
            p[view][inside], withheld[view][inside] = made.probabilities, made.abstained
    return {view: Answers(p[view], withheld[view]) for view in logits}


def _figures(method: _Method, truth: Truth, rows: Sequence[Row]) -> dict[str, JsonValue]:
    """All figures of one method: by view, then by window length, and what only the whole window is told of."""
    by_view: dict[str, Any] = numbers(method.measured)
    for view, answers in method.answers.items():
        cells = {seconds: by_view[view][f"{seconds:g}"] for seconds in LENGTHS_S}
        for k, (seconds, cell) in enumerate(cells.items()):
            for unit in ("record", "event"):
                balanced = f"{unit}_balanced_accuracy"
                cell[f"{unit}_early_share"] = round(
                    cells[seconds][balanced][0] / max(cells[FULL_S][balanced][0], 1e-9), 4
                )
            for name, kind in (("triggering", truth.transient), ("quiet", _quiet(truth))):
                cell[f"noise_{name}"] = _noise(answers, k, kind)
        by_view[view]["whole"] = _whole(method, view, truth, rows)
    return by_view


def _quiet(truth: Truth) -> NDArray[np.bool_]:
    quiet: NDArray[np.bool_] = (truth.labels == LABELS.index("noise")) & ~truth.transient
    return quiet


def _noise(answers: Answers, k: int, kind: NDArray[np.bool_]) -> dict[str, JsonValue]:
    """Noise of one kind: how many records, called noise (whether or not surely), called noise or withheld."""
    right = answers.probabilities[kind, k].argmax(axis=-1) == LABELS.index("noise")
    held = right | answers.abstained[kind, k]
    count = int(kind.sum())
    return {
        "records": count,
        "right": round(float(right.mean()), 4) if count else None,
        "right_or_withheld": round(float(held.mean()), 4) if count else None,
    }


def _whole(method: _Method, view: str, truth: Truth, rows: Sequence[Row]) -> dict[str, JsonValue]:
    """Per class, confusion, reliability, risk against coverage: of the whole window."""
    found = next(m for m in method.measured if m.view == view and m.seconds == FULL_S)
    p, labels = method.answers[view].probabilities[:, -1], truth.labels
    learned = labels != LABELS.index("collapse")
    answers = p.argmax(axis=-1)
    local = np.array([row.dataset in LOCAL for row in rows], dtype=bool)
    return {
        "recall": {
            LABELS[i]: [round(found.records.recall[i], 4), round(found.events.recall[i], 4)]
            for i in CLASSES
            if found.records.confusion[i].sum()
        },
        "confusion_records": found.records.confusion.tolist(),
        "confusion_events": found.events.confusion.tolist(),
        "reliability": [
            [count, round(sure, 4), round(right, 4)] for count, sure, right in reliability(p[learned], labels[learned])
        ],
        "risk_coverage": [
            [threshold, round(coverage, 4), round(risk, 4)]
            for threshold, coverage, risk in risk_coverage(p[learned], labels[learned], THRESHOLDS)
            if coverage > 0
        ],
        "local": [int((answers == labels)[local].sum()), int(local.sum())],
        "collapse": [LABELS[int(i)] for i in answers[~learned]],
    }


def _differences(
    first: str, second: str, methods: Mapping[str, _Method], truth: Truth, draws: int
) -> list[dict[str, JsonValue]]:
    made: list[dict[str, JsonValue]] = []
    for view in methods[first].answers:
        a, b = (methods[name].answers[view].probabilities[:, -1] for name in (first, second))
        figures = paired_differences(a, b, truth, draws=draws)
        values: dict[str, JsonValue] = {name: triple(figure) for name, figure in figures.items()}
        made.append({"first": first, "second": second, "view": view, **values})
    return made


def paired_differences(first: Array, second: Array, truth: Truth, *, draws: int = DRAWS) -> dict[str, Figure]:
    """How much better (``first`` minus ``second``) in each of ``FIGURES``; probabilities ``[records, 5]``.

    The 95 % interval is that of the difference over draws of whole events, the same ones for both.
    """
    weights = event_draws(truth, draws)
    return gained(drawn(first, truth, weights) - drawn(second, truth, weights))


def event_draws(truth: Truth, draws: int) -> Array:
    """How often each event counts, ``[1 + draws, events]``: every one once, then draws with replacement."""
    count = int(truth.events.max()) + 1
    rng = np.random.default_rng(0)
    return np.concatenate(
        [np.ones((1, count)), rng.multinomial(count, np.full(count, 1 / count), size=draws).astype(np.float64)]
    )


def gained(gain: Array) -> dict[str, Figure]:
    """Value and 95 % interval of each of ``FIGURES`` from a difference ``[1 + draws, 4]``."""
    low, high = np.nanpercentile(gain[1:], [2.5, 97.5], axis=0)
    return {name: Figure(float(gain[0, i]), float(low[i]), float(high[i])) for i, name in enumerate(FIGURES)}


def drawn(p: Array, truth: Truth, weights: Array) -> Array:
    """``FIGURES`` of probabilities ``[records, 5]`` for each row of ``weights``, ``[rows, 4]``."""
    columns = []
    for answers, known in ((p, truth), per_event(p, truth)):
        matrices = np.zeros((weights.shape[1], len(LABELS), len(LABELS)))
        np.add.at(matrices, (known.events, known.labels, answers.argmax(axis=-1)), 1)
        drawn = np.tensordot(weights, matrices, axes=1)[:, list(CLASSES)]
        true, hit = drawn.sum(axis=2), drawn[:, range(len(CLASSES)), list(CLASSES)]
        recall = np.divide(hit, true, out=np.full_like(hit, np.nan), where=true > 0)
        columns += [hit.sum(axis=1) / np.maximum(true.sum(axis=1), 1), np.nanmean(recall, axis=1)]
    return np.stack(columns, axis=1)
