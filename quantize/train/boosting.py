"""Gradient boosting on hand features: the habit of the landslide field, as a baseline and as one of the teachers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier

from agent.atomic import replacing
from agent.errors import DataError
from agent.types import LABELS
from quantize.data.bank import Bank
from quantize.study.evaluate import Array, Logits
from quantize.train.features import NAMES, features

Table = NDArray[np.float64]


def feature_table(bank: Bank, path: Path, limit: int) -> Table:
    """Features of the first ``limit`` windows of a bank, ``[limit, len(NAMES)]``; computed once and kept."""
    count = min(limit, len(bank))
    if not path.is_file():
        made = np.empty((count, len(NAMES)))
        for start in range(0, count, 64):
            stop = min(start + 64, count)
            made[start:stop] = features(np.asarray(bank.windows[start:stop], dtype=np.float32))
        with replacing(path) as file:
            np.save(file, made)
    table: Table = np.load(path)
    return table


def train_boosting(table: Table, labels: NDArray[np.int64], seed: int) -> Logits:
    """Trees on features ``[n, k]``; the returned function answers windows ``[n, 3, 10240]`` with log-probabilities.

    Labels that do not occur get next to no probability.

    Raises:
        DataError: one label alone occurs.
    """
    if len(np.unique(labels)) < 2:
        raise DataError("one label alone can be learned from", "give records of two at least, each of several events")
    model = HistGradientBoostingClassifier(
        max_iter=200, learning_rate=0.06, max_leaf_nodes=15, l2_regularization=5.0, max_features=0.5, random_state=seed
    )
    model.fit(table, labels)
    columns = [int(label) for label in model.classes_]

    def answer(windows: NDArray[np.float32]) -> Array:
        probabilities = np.full((len(windows), len(LABELS)), 1e-4)
        probabilities[:, columns] = model.predict_proba(features(windows))
        logs: Array = np.log(np.maximum(probabilities, 1e-6))
        return logs

    return answer
