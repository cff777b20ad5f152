"""Networks that learn classes: windows drawn from banks, labels and soft targets, the loss of both.

The result is the moving average of the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import nn

from agent.errors import ConfigError
from agent.types import LABELS
from quantize.data.bank import UNLABELLED, Bank
from quantize.train.hardware import device, mixed_precision
from quantize.train.loop import Pace, claim, train

M = TypeVar("M", bound=nn.Module)
Count = Annotated[int, Field(ge=1)]

SMOOTHED = tuple(label != "collapse" for label in LABELS)
"""Labels that share the smoothing mass; collapse, hardly learned, would only be made likelier by it."""


@dataclass(frozen=True, slots=True)
class FitConfig:
    """``windows``: how many are drawn in all. ``soft``: share of the loss that follows the soft targets where there
    are some, at ``temperature``. ``bfloat16``: matrix products in bfloat16 on devices that have them, which takes half
    the time."""

    windows: Count = 60_000
    batch: Count = 32
    learning_rate: float = 2e-3
    weight_decay: float = 2e-2
    warm_up: float = 0.04
    label_smoothing: float = 0.1
    average: float = 0.995
    soft: float = 0.0
    temperature: float = 2.0
    bfloat16: bool = True
    seed: int = 0
    threads: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """Windows to learn from: the entries ``index`` of a bank, drawn with ``share`` of every batch; ``soft``
    probabilities ``[len(bank), 5]`` of a teacher, in the bank's order."""

    bank: Bank
    index: NDArray[np.int64]
    share: float = 1.0
    soft: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Batch:
    windows: torch.Tensor
    target: torch.Tensor
    labelled: torch.Tensor
    soft: torch.Tensor
    taught: torch.Tensor

    def to(self, where: torch.device) -> _Batch:
        return _Batch(*(getattr(self, field.name).to(where) for field in fields(self)))


def decayed_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay on matrices and kernels only."""
    decayed = [p for p in model.parameters() if p.ndim > 1 and p.requires_grad]
    free = [p for p in model.parameters() if p.ndim <= 1 and p.requires_grad]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]


def fit(
    model: M,
    sources: Sequence[Source],
    config: FitConfig,
    work: Path,
    *,
    groups: list[dict[str, Any]] | None = None,
    save_every: int = 200,
) -> M:
    """Train ``model`` (windows ``[N, 3, 1, 10240]`` to logits ``[N, 5]``); returns the averaged one in evaluation mode.

    ``work`` receives ``state.pt`` on the way, ``average.pt`` (a state dict) at the end, and ``log.jsonl``.

    Raises:
        ConfigError: ``work`` holds a run with another configuration; no source has a window.
    """
    if not any(len(source.index) for source in sources):
        raise ConfigError("there is no window to learn from", "give more records, or fewer folds")
    claim(work, repr((config, [(len(s.index), s.share, s.soft is not None) for s in sources])))

    def loss(model: M, made: _Batch) -> dict[str, torch.Tensor]:
        batch = made.to(device())
        with mixed_precision(config.bfloat16):
            logits = model(batch.windows)
        return {"loss": _loss(logits.float(), batch, config)}

    pace = Pace(
        steps=max(1, config.windows // config.batch),
        learning_rate=config.learning_rate,
        warm_up=config.warm_up,
        average=config.average,
        seed=config.seed,
        threads=config.threads,
        save_every=save_every,
    )
    groups = groups or decayed_groups(model, config.weight_decay)
    return train(model, groups, partial(_draw, sources, config), loss, pace=pace, done=work / "average.pt")


def _draw(sources: Sequence[Source], config: FitConfig, step: int) -> _Batch:
    rng = np.random.default_rng((config.seed, 7, step))
    shares = np.array([source.share if len(source.index) else 0.0 for source in sources])
    which = rng.choice(len(sources), size=config.batch, p=shares / shares.sum())
    windows, labels, soft, taught = [], [], [], []
    for number in np.sort(which):
        source = sources[number]
        entry = int(source.index[rng.integers(len(source.index))])
        windows.append(np.asarray(source.bank.windows[entry], dtype=np.float32) * rng.choice((-1.0, 1.0)))
        labels.append(int(source.bank.label[entry]))
        taught.append(source.soft is not None)
        soft.append(np.full(len(LABELS), 0.2, np.float32) if source.soft is None else source.soft[entry])
    x = torch.from_numpy(np.stack(windows).astype(np.float32))[:, :, None]
    y = torch.tensor(labels)
    labelled = y != UNLABELLED
    target = smoothed(y.clamp(min=0), config.label_smoothing)
    return _Batch(x, target, labelled.float(), torch.from_numpy(np.stack(soft)), torch.tensor(taught).float())


def smoothed(labels: torch.Tensor, smoothing: float) -> torch.Tensor:
    """One-hot targets with ``smoothing`` spread over the labels in ``SMOOTHED``."""
    mask = torch.tensor(SMOOTHED, dtype=torch.float32)
    hot = torch.nn.functional.one_hot(labels, len(LABELS)).float()
    return (1 - smoothing) * hot + smoothing * mask / mask.sum()


def _loss(logits: torch.Tensor, batch: _Batch, config: FitConfig) -> torch.Tensor:
    hard = -(batch.target * torch.log_softmax(logits, dim=1)).sum(1)
    if config.soft == 0.0:
        return (hard * batch.labelled).sum() / batch.labelled.sum().clamp(min=1)
    t = config.temperature
    # The gradient of the softened term shrinks with the square of the temperature (Hinton et al. 2015).
    wanted = torch.softmax(torch.log(batch.soft.clamp(min=1e-6)) / t, dim=1)
    taught = (wanted * (torch.log(wanted.clamp(min=1e-9)) - torch.log_softmax(logits / t, dim=1))).sum(1) * t * t
    # Without a teacher's word the label has the whole say, without a label the teacher.
    share = torch.where(batch.labelled > 0, batch.taught * config.soft, batch.taught)
    weight = share * taught + (1 - share) * batch.labelled * hard
    return weight.sum() / torch.maximum(batch.labelled, batch.taught).sum().clamp(min=1)
