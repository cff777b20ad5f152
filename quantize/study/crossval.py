"""Cross-validation over all records, grouped by event: the broad estimate, and the data for calibration.

The validation split has four blast events. Out-of-fold answers on every event, each by a network that never saw that
event, say more about a method; the committed weights themselves are judged on the validation split.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from agent.atomic import replacing
from quantize.data.lengths import LENGTHS_S
from quantize.data.views import VIEWS
from quantize.study.evaluate import Array, OutOfFold, predict, softmax
from quantize.train.lab import Lab
from quantize.train.methods import folder, method


def cross_validate(lab: Lab, name: str, only: Sequence[int] | None = None) -> OutOfFold:
    """Train the method ``name`` once a fold (of all, or of ``only``) and collect its answers on the records by which it
    is judged. Resumable."""
    only = range(lab.count) if only is None else only
    answered = [answers(lab, name, fold) for fold in only]
    judged = [lab.judged(fold) for fold in only]
    places = [np.isin(lab.held_out(fold), index) for fold, index in zip(only, judged, strict=True)]
    return OutOfFold(
        np.concatenate(judged),
        {
            view: np.concatenate([part[view][place] for part, place in zip(answered, places, strict=True)])
            for view in VIEWS
        },
    )


def together(parts: Sequence[OutOfFold]) -> OutOfFold:
    """The mean of several methods' probabilities, as logits: what a student of all of them could reach.

    The methods have answered the same records in the same order.
    """
    index, views = parts[0].index, parts[0].logits
    return OutOfFold(
        index, {view: np.log(np.mean([softmax(part.logits[view]) for part in parts], axis=0)) for view in views}
    )


def answers(lab: Lab, name: str, fold: int | None) -> dict[str, Array]:
    """Logits ``[records, lengths, 5]`` by view of one fold's network on the records left out of it."""
    path = folder(lab, name, fold) / "answers.npz"
    if not path.is_file():
        logits = method(name)(lab, fold)
        held = [lab.records[int(i)] for i in lab.held_out(fold)]
        made = {str(view): predict(logits, held, view, LENGTHS_S, lab.config.preparation) for view in VIEWS}
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            np.savez(file, allow_pickle=False, **made)
    with np.load(path) as saved:
        return {str(view): saved[view] for view in VIEWS}
