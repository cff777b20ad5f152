"""One training loop for every network here: teacher, student, STFT baseline, on windows of banks.

Resumable and reproducible: a step's windows depend on the seed and the step alone; the state is on disk every so many
steps, and a call for a finished run returns at once. The result is the moving average of the weights.
"""

from __future__ import annotations

import copy
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import nn

from agent.atomic import replacing
from agent.errors import ConfigError
from agent.types import LABELS
from quantize.data.bank import UNLABELLED, Bank
from quantize.train.hardware import ahead, device, mixed_precision

log = logging.getLogger("quantize.train.fit")

M = TypeVar("M", bound=nn.Module)
Count = Annotated[int, Field(ge=1)]

SMOOTHED = tuple(label != "collapse" for label in LABELS)
"""Labels that share the smoothing mass; collapse, hardly learned, would only be made likelier by it."""

Groups = Callable[[nn.Module], list[dict[str, Any]]]
"""Parameter groups of an optimiser; ``scale`` in a group multiplies the learning rate."""


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
    work.mkdir(parents=True, exist_ok=True)
    claim(work, repr((config, [(len(s.index), s.share, s.soft is not None) for s in sources])))
    average = copy.deepcopy(model)
    done = work / "average.pt"
    if done.is_file():
        average.load_state_dict(torch.load(done, weights_only=True))
        return average.eval()
    model.to(device())
    average.to(device())
    torch.set_num_threads(config.threads)
    optimiser = torch.optim.AdamW(groups or decayed_groups(model, config.weight_decay), lr=config.learning_rate)
    scales = [group.get("scale", 1.0) for group in optimiser.param_groups]
    steps = max(1, config.windows // config.batch)
    first = _resume(work / "state.pt", model, average, optimiser)
    began, losses = time.monotonic(), 0.0
    model.train()
    draw = partial(_draw, sources, config)
    for step, made in enumerate(ahead(draw, range(first, steps)), first):
        batch = made.to(device())
        torch.manual_seed(config.seed * 1_000_003 + step)
        for group, scale in zip(optimiser.param_groups, scales, strict=True):
            group["lr"] = scale * _rate(config, step / steps)
        with mixed_precision(config.bfloat16):
            logits = model(batch.windows)
        loss = _loss(logits.float(), batch, config)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        optimiser.step()
        move_average(average, model, min(config.average, (1 + step) / (10 + step)))
        losses += float(loss.detach())
        if (step + 1) % save_every == 0 or step + 1 == steps:
            spent = time.monotonic() - began
            line = {"step": step + 1, "loss": round(losses / ((step % save_every) + 1), 4), "seconds": round(spent, 1)}
            log.info("%s of %d: %s", work.name, steps, line)
            with (work / "log.jsonl").open("a", encoding="utf-8") as handle:
                handle.write(json.dumps(line) + "\n")
            losses = 0.0
            if step + 1 < steps:
                _save(work / "state.pt", model, average, optimiser, step + 1)
    average.cpu()
    with replacing(done) as file:
        torch.save(average.state_dict(), file)
    (work / "state.pt").unlink(missing_ok=True)
    return average.eval()


def claim(work: Path, text: str) -> None:
    """Refuse to go on with a run that was something else."""
    work.mkdir(parents=True, exist_ok=True)
    path = work / "run.txt"
    if not path.is_file():
        path.write_text(text, encoding="utf-8")
    elif path.read_text(encoding="utf-8") != text:
        raise ConfigError(
            f"{work} holds a run of another configuration or of other records", "name another --work folder"
        )


@torch.no_grad()
def move_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Exponential moving average of all weights and statistics."""
    for mine, theirs in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if mine.dtype.is_floating_point:
            mine.lerp_(theirs, 1 - decay)
        else:
            mine.copy_(theirs)


def _rate(config: FitConfig, progress: float) -> float:
    """Linear warm-up, then half a cosine to zero; ``progress`` in 0..1."""
    if progress < config.warm_up:
        return config.learning_rate * (progress + 1e-3) / config.warm_up
    share = (progress - config.warm_up) / max(1e-9, 1 - config.warm_up)
    return config.learning_rate * 0.5 * (1 + float(np.cos(np.pi * min(1.0, share))))


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


def _resume(path: Path, model: nn.Module, average: nn.Module, optimiser: torch.optim.Optimizer) -> int:
    if not path.is_file():
        return 0
    state = torch.load(path, weights_only=True, map_location=device())
    model.load_state_dict(state["model"])
    average.load_state_dict(state["average"])
    optimiser.load_state_dict(state["optimiser"])
    return int(state["step"])


def _save(path: Path, model: nn.Module, average: nn.Module, optimiser: torch.optim.Optimizer, step: int) -> None:
    state = {
        "model": model.state_dict(),
        "average": average.state_dict(),
        "optimiser": optimiser.state_dict(),
        "step": step,
    }
    with replacing(path) as file:
        torch.save(state, file)
