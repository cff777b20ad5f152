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
from pymseed import MiniSEEDError, MS3Record
from sklearn.tree import DecisionTreeClassifier

from agent.errors import DataError
from agent.types import LABELS, NS
from quantize.data.records import Row
from quantize.study.evaluate import Array, Truth, per_event, score
from quantize.study.report import triple

COLUMNS = ("rate", "components", "length", "encoding")
SETS: tuple[tuple[str, ...], ...] = (COLUMNS, *((name,) for name in COLUMNS))
_ENCODINGS = (1, 3, 4, 5, 10, 11)
"""miniSEED's numbers: 16 and 32 bits, single and double precision, Steim 1 and 2."""


def recording(rows: Sequence[Row]) -> Array:
    """``COLUMNS`` of each row's file, ``[rows, 4]``, from its headers: samples a second, components, seconds, encoding.

    Raises:
        DataError: a file's headers cannot be read.
    """
    made = np.empty((len(rows), len(COLUMNS)))
    for i, row in enumerate(rows):
        try:
            headers = [
                (record.sourceid, record.encoding, record.starttime, record.endtime)
                for record in MS3Record.from_file(str(row.path))
            ]
            names, encodings, starts, ends = zip(*headers, strict=True)
            encoding = _ENCODINGS.index(encodings[0])
        except (MiniSEEDError, ValueError, OSError) as error:
            raise DataError(f"{row.path} cannot be read: {error}", "the file should be miniSEED") from error
        made[i] = (row.rate_hz, len(set(names)), (max(ends) - min(starts)) / NS, encoding)
    return made


def probe(rows: Sequence[Row], columns: Array, fold: NDArray[np.int64], *, draws: int = 1000) -> dict[str, JsonValue]:
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
        p = _out_of_fold(chosen, truth.labels, fold)
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


def _out_of_fold(columns: Array, labels: NDArray[np.int64], fold: NDArray[np.int64]) -> Array:
    p = np.zeros((len(labels), len(LABELS)))
    for number in np.unique(fold):
        out = fold == number
        tree = DecisionTreeClassifier(min_samples_leaf=3, random_state=0).fit(columns[~out], labels[~out])
        p[np.ix_(out, tree.classes_)] = tree.predict_proba(columns[out])
    return p
