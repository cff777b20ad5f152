"""The one training loop: steps of AdamW under a falling learning rate, resumable, its end kept in a file.

A step's batch and random numbers depend on the seed and the step alone, so a run that was broken off ends with the same
weights; the state is on disk every so many steps, and a call for a finished run returns at once.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from agent.atomic import replacing
from agent.errors import ConfigError
from quantize.train.hardware import ahead, device

log = logging.getLogger("quantize.train.loop")

M = TypeVar("M", bound=nn.Module)
B = TypeVar("B")


@dataclass(frozen=True, slots=True)
class Pace:
    """``warm_up``: share of the steps over which the learning rate rises, before half a cosine to zero. ``clip``: norm
    of the gradient at most. ``average``: decay of the moving average of the weights, which then is the result."""

    steps: int
    learning_rate: float
    warm_up: float = 0.0
    clip: float = 2.0
    average: float | None = None
    seed: int = 0
    threads: int = 1
    save_every: int = 200

    def rate(self, progress: float) -> float:
        """Learning rate at ``progress`` in 0..1."""
        if progress < self.warm_up:
            return self.learning_rate * (progress + 1e-3) / self.warm_up
        share = (progress - self.warm_up) / max(1e-9, 1 - self.warm_up)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def train(
    model: M,
    groups: Sequence[dict[str, Any]],
    make: Callable[[int], B],
    loss_of: Callable[[M, B], dict[str, torch.Tensor]],
    *,
    pace: Pace,
    done: Path,
) -> M:
    """Train ``model`` and return it, or the average of its weights, in evaluation mode on the processor.

    ``groups``: the optimiser's, ``scale`` in one multiplies its learning rate. ``make`` gives the batch of a step,
    ``loss_of`` the terms of its loss by name. ``done``, a state dict, is the result; beside it are ``state.pt`` on the
    way and ``log.jsonl``.
    """
    average = copy.deepcopy(model) if pace.average is not None else model
    if done.is_file():
        average.load_state_dict(torch.load(done, weights_only=True))
        return average.eval()
    done.parent.mkdir(parents=True, exist_ok=True)
    state = done.with_name("state.pt")
    torch.set_num_threads(pace.threads)
    model.to(device())
    average.to(device())
    optimiser = torch.optim.AdamW(groups, lr=pace.learning_rate)
    scales = [group.get("scale", 1.0) for group in optimiser.param_groups]
    first = _resume(state, model, average, optimiser)
    began, sums, summed = time.monotonic(), dict[str, float](), 0
    model.train()
    for step, batch in enumerate(ahead(make, range(first, pace.steps)), first):
        torch.manual_seed(pace.seed * 1_000_003 + step)
        for group, scale in zip(optimiser.param_groups, scales, strict=True):
            group["lr"] = scale * pace.rate(step / pace.steps)
        terms = loss_of(model, batch)
        optimiser.zero_grad()
        sum(terms.values(), torch.zeros((), device=device())).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), pace.clip)
        optimiser.step()
        if pace.average is not None:
            move_average(average, model, min(pace.average, (1 + step) / (10 + step)))
        sums = {name: sums.get(name, 0.0) + float(term.detach()) for name, term in terms.items()}
        summed += 1
        if (step + 1) % pace.save_every == 0 or step + 1 == pace.steps:
            means = {name: round(value / summed, 5) for name, value in sums.items()}
            line = {"step": step + 1, **means, "seconds": round(time.monotonic() - began, 1)}
            log.info("%s/%s, of %d: %s", done.parent.parent.name, done.parent.name, pace.steps, line)
            with done.with_name("log.jsonl").open("a", encoding="utf-8") as handle:
                handle.write(json.dumps(line) + "\n")
            sums, summed = {}, 0
            if step + 1 < pace.steps:
                _save(state, _state(model, average, optimiser, step + 1))
    average.cpu()
    _save(done, average.state_dict())
    state.unlink(missing_ok=True)
    return average.eval()


def claim(work: Path, text: str) -> None:
    """Refuse to go on with a run that was something else.

    Raises:
        ConfigError: ``work`` was claimed with another text.
    """
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


def _state(model: nn.Module, average: nn.Module, optimiser: torch.optim.Optimizer, step: int) -> dict[str, Any]:
    averaged = {} if average is model else {"average": average.state_dict()}
    return {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "step": step, **averaged}


def _resume(path: Path, model: nn.Module, average: nn.Module, optimiser: torch.optim.Optimizer) -> int:
    if not path.is_file():
        return 0
    state = torch.load(path, weights_only=True, map_location=device())
    model.load_state_dict(state["model"])
    if average is not model:
        average.load_state_dict(state["average"])
    optimiser.load_state_dict(state["optimiser"])
    return int(state["step"])


def _save(path: Path, content: object) -> None:
    with replacing(path) as file:
        torch.save(content, file)
