"""The learning curve: how much a method finds when it knows but a few landslides. The paper's point is that few do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pydantic import JsonValue

from agent.types import LABELS
from quantize.data.lengths import FULL_S
from quantize.study.confidence import fit_confidence
from quantize.study.crossval import cross_validate
from quantize.study.evaluate import Truth
from quantize.study.report import calibrated, measure, triple
from quantize.train.lab import Lab

EVENTS = (10, 30, 100)
METHODS = ("stft", "alone", "prime")
"""Those that take the labels of their records and nothing else."""


def learning_curve(lab: Lab, names: Sequence[str], only: Sequence[int]) -> dict[str, JsonValue]:
    """Figures in the neutral view, whole window, on the folds ``only``, by method and number of landslide events.

    All other classes keep all their records. A network answers records of the same folds whatever it learned from.
    """
    most = min(_landslides(lab, fold) for fold in only)
    points: list[JsonValue] = []
    for name in names:
        for count in (*(few for few in EVENTS if few < most), None):
            out = cross_validate(replace(lab, landslides=count), name, only)
            rows = [lab.records[int(i)].row for i in out.index]
            confidence = fit_confidence(out.logits, Truth.of(rows))
            measured = measure(calibrated(out.logits, confidence), rows)
            found = next(m for m in measured if m.view == "neutral" and m.seconds == FULL_S)
            points.append(
                {
                    "method": name,
                    "events": most if count is None else count,
                    "record_balanced_accuracy": triple(found.records.balanced),
                    "event_balanced_accuracy": triple(found.events.balanced),
                    "landslide_recall": round(found.records.recall[LABELS.index("landslide")], 4),
                }
            )
    return {"folds": len(only), "points": points}


def _landslides(lab: Lab, fold: int | None) -> int:
    return len({record.row.event for record in lab.training(fold) if record.row.label == "landslide"})
