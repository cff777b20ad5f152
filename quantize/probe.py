"""What a classifier reaches that never sees a sample: the size of the trap in these data.

Landslides were mostly recorded with three components, blasts and most earthquakes with one; every source has its own
sampling rate, length and encoding. A tree on these four alone, with the folds of every other method, says how much of
an accuracy on the records as they are proves nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue
from sklearn.tree import DecisionTreeClassifier

from agent.errors import DataError
from agent.types import LABELS
from quantize.data import Row
from quantize.evaluate import Array, Truth, per_event, score
from quantize.report import triple

COLUMNS = ("rate", "components", "length", "encoding")
SETS: tuple[tuple[str, ...], ...] = (COLUMNS, *((name,) for name in COLUMNS))
_ENCODINGS = ("INT16", "INT32", "FLOAT32", "FLOAT64", "STEIM1", "STEIM2")


def recording(rows: Sequence[Row]) -> Array:
    """``COLUMNS`` of each row's file, ``[rows, 4]``, from its headers: samples a second, components, seconds, encoding.

    Raises:
        DataError: a file's headers cannot be read.
    """
    from obspy import read

    made = np.empty((len(rows), len(COLUMNS)))
    for i, row in enumerate(rows):
        try:
            stream = read(str(row.path), format="MSEED", headonly=True)
        except Exception as error:  # as in ``quantize.data.read_segments``
            raise DataError(f"{row.path} cannot be read: {error}", "the file should be MiniSEED") from error
        seconds = max(trace.stats.endtime for trace in stream) - min(trace.stats.starttime for trace in stream)
        encoding = _ENCODINGS.index(stream[0].stats.mseed.encoding)
        made[i] = (row.rate_hz, len({trace.stats.channel for trace in stream}), seconds, encoding)
    return made


def probe(
    rows: Sequence[Row], columns: Array, fold: NDArray[np.int64], *, draws: int = 1000, seed: int = 0
) -> dict[str, JsonValue]:
    """Figures of a decision tree for each of ``SETS`` of ``columns`` (from ``recording``), out of fold.

    Raises:
        DataError: there is one fold only.
    """
    if len(np.unique(fold)) < 2:
        raise DataError("all records are of one fold", "give records of several events")
    truth = Truth.of(rows)
    found: list[JsonValue] = []
    for names in SETS:
        chosen = columns[:, [COLUMNS.index(name) for name in names]]
        p = _out_of_fold(chosen, truth.labels, fold, seed)
        records, events = score(p, truth, draws), score(*per_event(p, truth), draws)
        found.append(
            {
                "sees": list(names),
                "record_accuracy": triple(records.accuracy),
                "record_balanced_accuracy": triple(records.balanced),
                "event_accuracy": triple(events.accuracy),
                "event_balanced_accuracy": triple(events.balanced),
            }
        )
    return {"folds": len(np.unique(fold)), "classifiers": found}


def _out_of_fold(columns: Array, labels: NDArray[np.int64], fold: NDArray[np.int64], seed: int) -> Array:
    p = np.zeros((len(labels), len(LABELS)))
    for number in np.unique(fold):
        out = fold == number
        tree = DecisionTreeClassifier(min_samples_leaf=3, random_state=seed).fit(columns[~out], labels[~out])
        p[np.ix_(out, tree.classes_)] = tree.predict_proba(columns[out])
    return p
