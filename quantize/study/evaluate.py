"""Figures that can be defended: per record and per event, with intervals over events.

Records of one event are not independent, so every interval comes from drawing whole events with replacement. Collapse,
with its one record, is left out of every average; an answer "collapse" still counts as wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from agent.dsp.window import Preparation
from agent.types import LABELS
from quantize.data.records import LENGTHS_S, Record, Row, by_event

if TYPE_CHECKING:
    from quantize.data.views import ViewName


Array = NDArray[np.float64]
Logits = Callable[[NDArray[np.float32]], Array]
"""Maps windows ``[n, 3, 10240]`` to logits (or log-probabilities) ``[n, 5]``."""

CLASSES = tuple(i for i, label in enumerate(LABELS) if label != "collapse")
"""Label indices that figures average over."""
FIGURES = ("record_accuracy", "record_balanced_accuracy", "event_accuracy", "event_balanced_accuracy")
"""What two results are held against each other by."""


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """What the predictions are held against: label index, event and group (event and label) of each record."""

    labels: NDArray[np.int64]
    events: NDArray[np.int64]
    groups: NDArray[np.int64]
    transient: NDArray[np.bool_]

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Truth:
        groups = np.empty(len(rows), dtype=np.int64)
        for number, (_, members) in enumerate(by_event(rows)):
            groups[members] = number
        _, events = np.unique([row.event for row in rows], return_inverse=True)
        return cls(
            np.array([row.index for row in rows], dtype=np.int64),
            events.astype(np.int64),
            groups,
            np.array([row.transient for row in rows], dtype=bool),
        )

    def take(self, index: NDArray[np.int64]) -> Truth:
        return Truth(self.labels[index], self.events[index], self.groups[index], self.transient[index])


@dataclass(frozen=True, slots=True, eq=False)
class OutOfFold:
    """Answers of networks that learned nothing of a record's fold: logits ``[records, lengths, 5]`` by view; ``index``
    says which of the records given they belong to."""

    index: NDArray[np.int64]
    logits: dict[str, Array]

    def in_order(self) -> dict[str, Array]:
        """The logits in the order of the records."""
        order = np.argsort(self.index)
        return {view: values[order] for view, values in self.logits.items()}


@dataclass(frozen=True, slots=True)
class Figure:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]"


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """Figures of one view at one window length; ``confusion`` ``[5, 5]`` counts truth in rows, answer in columns."""

    accuracy: Figure
    balanced: Figure
    macro_f1: Figure
    recall: tuple[float, ...]
    confusion: NDArray[np.int64]


def predict(
    logits: Logits,
    records: Sequence[Record],
    view: ViewName,
    lengths_s: Sequence[float],
    preparation: Preparation,
) -> Array:
    """Logits of every record at every window length, ``[records, lengths, 5]``."""
    from quantize.data.views import view_windows  # needs SciPy, which the rest of this module does without

    return np.stack([logits(view_windows(view, record, lengths_s, preparation)) for record in records])


def predict_views(logits: Logits, records: Sequence[Record], preparation: Preparation) -> dict[str, Array]:
    """``predict`` at all of ``LENGTHS_S``, by view."""
    from quantize.data.views import VIEWS  # needs SciPy, which the rest of this module does without

    return {str(view): predict(logits, records, view, LENGTHS_S, preparation) for view in VIEWS}


def softmax(logits: Array, temperature: float = 1.0) -> Array:
    shifted = logits / temperature
    shifted = shifted - shifted.max(axis=-1, keepdims=True)
    powers = np.exp(shifted)
    result: Array = powers / powers.sum(axis=-1, keepdims=True)
    return result


def per_event(probabilities: Array, truth: Truth) -> tuple[Array, Truth]:
    """Mean of the records' probabilities over each group, with the truth of the groups."""
    ids, first, inverse = np.unique(truth.groups, return_index=True, return_inverse=True)
    total = np.zeros((len(ids), probabilities.shape[-1]))
    np.add.at(total, inverse, probabilities)
    return total / np.bincount(inverse)[:, None], truth.take(first)


def confusion_matrix(labels: NDArray[np.int64], answers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Counts ``[5, 5]``, truth in rows."""
    matrix = np.zeros((len(LABELS), len(LABELS)), dtype=np.int64)
    np.add.at(matrix, (labels, answers), 1)
    return matrix


def summarise(confusion: NDArray[np.int64] | Array) -> tuple[float, float, float]:
    """Accuracy, balanced accuracy and macro F1 over the classes of ``CLASSES`` that occur."""
    matrix = np.asarray(confusion, dtype=np.float64)[list(CLASSES)]
    true, hit = matrix.sum(axis=1), matrix[np.arange(len(CLASSES)), list(CLASSES)]
    answered = matrix.sum(axis=0)[list(CLASSES)]
    occurs = true > 0
    if not occurs.any():
        return float("nan"), float("nan"), float("nan")
    f1 = 2 * hit[occurs] / (true[occurs] + answered[occurs])
    return float(hit.sum() / true.sum()), float((hit[occurs] / true[occurs]).mean()), float(f1.mean())


def score(probabilities: Array, truth: Truth, draws: int = 1000) -> Scores:
    """Figures with intervals from ``draws`` bootstrap samples of events."""
    answers = probabilities.argmax(axis=-1)
    whole = confusion_matrix(truth.labels, answers)
    # One matrix per event: a bootstrap sample is then a weighted sum of matrices.
    ids, inverse = np.unique(truth.events, return_inverse=True)
    matrices = np.zeros((len(ids), len(LABELS), len(LABELS)))
    np.add.at(matrices, (inverse, truth.labels, answers), 1)
    rng = np.random.default_rng(0)
    counts = rng.multinomial(len(ids), np.full(len(ids), 1 / len(ids)), size=draws)
    samples = np.array([summarise(matrix) for matrix in np.tensordot(counts, matrices, axes=1)])
    low, high = np.nanpercentile(samples, [2.5, 97.5], axis=0)
    values = summarise(whole)
    figures = [Figure(v, float(a), float(b)) for v, a, b in zip(values, low, high, strict=True)]
    total = whole.sum(axis=1)
    recall = tuple(float(whole[i, i] / total[i]) if total[i] else float("nan") for i in range(len(LABELS)))
    return Scores(figures[0], figures[1], figures[2], recall, whole)


_BINS = 10
"""Of the top probability, of equal width."""


def calibration_error(probabilities: Array, labels: NDArray[np.int64]) -> float:
    """Expected calibration error of the top probability, equal-width bins (Guo et al. 2017)."""
    parts = reliability(probabilities, labels)
    return sum(count * abs(sure - right) for count, sure, right in parts) / max(len(labels), 1)


def reliability(probabilities: Array, labels: NDArray[np.int64]) -> list[tuple[int, float, float]]:
    """(answers, mean top probability, share right) of each of the equal-width bins that holds an answer."""
    top, right = probabilities.max(axis=-1), probabilities.argmax(axis=-1) == labels
    which = np.minimum((top * _BINS).astype(int), _BINS - 1)
    held = [which == b for b in range(_BINS) if (which == b).any()]
    return [(int(chosen.sum()), float(top[chosen].mean()), float(right[chosen].mean())) for chosen in held]


def fit_temperature(logits: Array, labels: NDArray[np.int64]) -> float:
    """Temperature with the least mean negative log-likelihood (Guo et al. 2017), by golden section between 0.2 and
    10."""

    def cost(log_temperature: float) -> float:
        p = softmax(logits, float(np.exp(log_temperature)))[np.arange(len(labels)), labels]
        return float(-np.log(np.maximum(p, 1e-12)).mean())

    low, high, ratio = float(np.log(0.2)), float(np.log(10.0)), (5**0.5 - 1) / 2
    for _ in range(50):
        a, b = high - ratio * (high - low), low + ratio * (high - low)
        if cost(a) < cost(b):
            high = b
        else:
            low = a
    return float(np.exp((low + high) / 2))


def risk_coverage(
    probabilities: Array, labels: NDArray[np.int64], thresholds: Sequence[float]
) -> list[tuple[float, float, float]]:
    """(threshold, coverage, error among the answered) for each threshold on the top probability; error NaN where
    none."""
    top, wrong = probabilities.max(axis=-1), probabilities.argmax(axis=-1) != labels
    rows = []
    for threshold in thresholds:
        kept = top >= threshold
        rows.append((float(threshold), float(kept.mean()), float(wrong[kept].mean()) if kept.any() else float("nan")))
    return rows


RISK = 0.2
"""Largest share of wrong answers a label may have before it has to be surer of itself: of five that are told, one."""
LOWEST, HIGHEST = 0.40, 0.70
"""Bounds of a threshold: a plurality at least; and no label is silenced because the sample it was judged on is hard."""
BLAST = 0.95
"""The upper bound of blasts: to withhold one costs nothing, and in a new region hardly any of them is right."""


@dataclass(frozen=True, slots=True)
class Confidence:
    """``temperatures``: (seconds after the onset, temperature), rising seconds. ``thresholds``: by label, in
    ``0..1``."""

    temperatures: tuple[tuple[float, float], ...]
    thresholds: dict[str, float]


def fit_confidence(logits: Mapping[str, Array], truth: Truth) -> Confidence:
    """From out-of-fold logits ``[records, lengths, 5]`` of each view, lengths as in ``LENGTHS_S``; collapse is left
    out."""
    learned = truth.labels != LABELS.index("collapse")
    labels = np.tile(truth.labels[learned], len(logits))
    by_length = [np.concatenate([view[learned, i] for view in logits.values()]) for i in range(len(LENGTHS_S))]
    temperatures = tuple(
        (seconds, round(fit_temperature(part, labels), 3)) for seconds, part in zip(LENGTHS_S, by_length, strict=True)
    )
    every = np.concatenate([softmax(part, t) for part, (_, t) in zip(by_length, temperatures, strict=True)])
    return Confidence(temperatures, thresholds(every, np.tile(labels, len(LENGTHS_S))))


def thresholds(probabilities: Array, labels: NDArray[np.int64]) -> dict[str, float]:
    """Per label the smallest threshold, in steps of 0.05, at which at most ``RISK`` of its answers are wrong, or its
    upper bound; collapse, not learned, has ``HIGHEST``."""
    top, answers = probabilities.max(axis=-1), probabilities.argmax(axis=-1)
    chosen = {}
    for index, label in enumerate(LABELS):
        bound = BLAST if label == "blast" else HIGHEST
        threshold = HIGHEST if label == "collapse" else LOWEST
        while threshold < bound:
            kept = (answers == index) & (top >= threshold)
            if not kept.any() or (labels[kept] != index).mean() <= RISK:
                break
            threshold = round(threshold + 0.05, 2)
        chosen[label] = threshold
    return chosen
