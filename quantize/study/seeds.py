"""How much of a difference is luck: the student again from other random numbers, distilled and alone.

An interval over events does not hold what the seed of a training moves. The teachers are the same in every run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from pydantic import JsonValue

from quantize.study.compare import DRAWS, FIGURES, crossfitted, drawn, event_draws, gained
from quantize.study.crossval import cross_validate
from quantize.study.evaluate import Truth
from quantize.study.report import triple
from quantize.train.lab import Lab

METHODS = ("distilled", "alone")


def repeat(lab: Lab, count: int, only: Sequence[int]) -> dict[str, JsonValue]:
    """Both students with ``count`` seeds on the folds ``only``, in the neutral view, whole window: ``FIGURES`` of every
    run, and how much better the distilled ones are in the mean, by a paired bootstrap over events."""
    figures: dict[str, list[JsonValue]] = {name: [] for name in METHODS}
    gains = []
    for seed in range(count):
        answered = [cross_validate(replace(lab, seed=seed), name, only) for name in METHODS]
        index = answered[0].index
        truth, folds = Truth.of([lab.records[int(i)].row for i in index]), (lab.parts // 2)[index]
        weights = event_draws(truth, DRAWS)
        found = [
            drawn(crossfitted(out.logits, truth, folds)["neutral"].probabilities[:, -1], truth, weights)
            for out in answered
        ]
        for name, values in zip(METHODS, found, strict=True):
            figures[name].append([round(float(value), 4) for value in values[0]])
        gains.append(found[0] - found[1])
    gain = gained(np.mean(gains, axis=0))
    return {
        "folds": len(only),
        "figures": list(FIGURES),
        "methods": {**figures},
        "difference": {name: triple(figure) for name, figure in gain.items()},
    }
