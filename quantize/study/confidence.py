"""How far to trust a verdict: a temperature for each window length, and a threshold for each label.

Both are fitted on answers of networks that never saw the event (cross-validation), in both views together, and then
stand as numbers in the manifest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agent.types import LABELS
from quantize.data.lengths import LENGTHS_S
from quantize.study.evaluate import Array, Truth, fit_temperature, softmax

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
