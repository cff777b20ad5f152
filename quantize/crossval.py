"""Cross-validation over all records, grouped by event: the broad estimate, and the data for calibration.

The validation split has four blast events. Out-of-fold answers on every event, each by a network that never saw that
event, say more about a method; the committed weights themselves are judged on the validation split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from quantize.data import Record, folds
from quantize.evaluate import Array, Logits, predict
from quantize.signals import LENGTHS_S
from quantize.student import load_student
from quantize.train import TrainConfig, train
from quantize.views import VIEWS

FOLDS = 5
FOLD_SEED = 0


@dataclass(frozen=True, slots=True, eq=False)
class OutOfFold:
    """Logits ``[records, lengths, 5]`` by view; ``index`` says which of the records given they belong to."""

    index: NDArray[np.int64]
    logits: dict[str, Array]


def module_logits(model: nn.Module) -> Logits:
    """A torch module in evaluation mode as a function of windows ``[n, 3, 10240]``."""

    def run(windows: NDArray[np.float32]) -> Array:
        with torch.no_grad():
            logits: Array = model(torch.from_numpy(windows)[:, :, None]).double().numpy()
        return logits

    return run


def cross_validate(
    records: Sequence[Record],
    config: TrainConfig,
    work: Path,
    *,
    ahead: bool = False,
    only: Sequence[int] = tuple(range(FOLDS)),
) -> OutOfFold:
    """Train one network a fold and collect its answers on the fold left out. Resumable, a folder a fold under
    ``work``."""
    fold = folds([record.row for record in records], FOLDS, FOLD_SEED)
    parts: dict[str, list[Array]] = {view: [] for view in VIEWS}
    index = []
    for number in only:
        folder = work / f"fold{number}"
        checkpoint = train([r for r, f in zip(records, fold, strict=True) if f != number], config, folder, ahead=ahead)
        answers = folder / "answers.npz"
        left_out = np.flatnonzero(fold == number)
        if not answers.is_file():
            logits = module_logits(load_student(checkpoint))
            held = [records[int(i)] for i in left_out]
            made = {str(v): predict(logits, held, v, LENGTHS_S, config.preparation) for v in VIEWS}
            np.savez(answers, allow_pickle=False, **made)
        with np.load(answers) as saved:
            for view in VIEWS:
                parts[view].append(saved[view])
        index.append(left_out)
    return OutOfFold(np.concatenate(index), {view: np.concatenate(part) for view, part in parts.items()})
