"""Quantisation-aware fine-tuning: where calibration alone loses too much, the weights learn to live on the grid.

Batch norms are folded first, so that what is trained is what is exported. In the forward pass weights and the input of
every convolution are rounded as in the CPU file, the coarser of the two; the gradient passes the rounding as if it were
not there (straight-through, Bengio et al. 2013) and stops where a value was clipped. The target is the network's own
answer in FP32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from agent.errors import ConfigError
from quantize.quantise.export import export_fp32, folded
from quantize.quantise.qdq import CPU, Range, quantised_tensors
from quantize.train.fit import Source
from quantize.train.hardware import device
from quantize.train.loop import Pace, claim, train
from quantize.train.student import Student

MOST_LOST = 0.005
"""Share of windows right that INT8 may lose before it is fine-tuned."""
TEMPERATURE = 2.0


@dataclass(frozen=True, slots=True)
class TuneConfig:
    """A few hundred steps of Adam, the learning rate falling to zero along half a cosine."""

    steps: int = 400
    batch: int = 32
    learning_rate: float = 5e-5
    weight_limit: int = CPU.weight_limit
    seed: int = 0


class OnGrid(nn.Module):
    """A student without batch norms, computed with rounded weights and activations; ``student`` is the network below.

    ``ranges``: of the input and of each convolution's output after its ReLU, in order.
    """

    def __init__(self, student: Student, ranges: list[Range], weight_limit: int = CPU.weight_limit) -> None:
        super().__init__()
        self.student = folded(student)
        convolutions = sum(isinstance(part, nn.Conv2d) for part in self.student.modules())
        if len(ranges) != convolutions + 1:
            raise ConfigError(
                f"{len(ranges)} ranges for a network of {convolutions} convolutions", "calibrate this very network"
            )
        self._ranges, self._limit = ranges, weight_limit

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ranges = iter(self._ranges)
        x = _activation(x, next(ranges))
        pooled = []
        for stage in self.student.stages:
            for part in stage.children():
                if isinstance(part, nn.Conv2d):
                    x = nn.functional.conv2d(x, _weight(part.weight, self._limit), part.bias, part.stride, part.padding)
                elif isinstance(part, nn.ReLU):
                    x = _activation(torch.relu(x), next(ranges))
            pooled += [self.student.mean(x), self.student.peak(x)]
        logits: torch.Tensor = self.student.head(self.student.dropout(torch.cat(pooled, dim=1).flatten(1)))
        return logits

    def train(self, mode: bool = True) -> OnGrid:
        """No dropout: what is trained is what answers."""
        super().train(mode)
        self.student.eval()
        return self


def fine_tune(
    student: Student, ranges: Mapping[str, Range], source: Source, work: Path, config: TuneConfig | None = None
) -> Student:
    """``student`` fine-tuned on the windows of ``source`` so that it survives INT8; calibrate the result anew.

    ``ranges`` are those of the student's calibration, by tensor of its exported graph. The result is kept in
    ``work/tuned.pt``.

    Raises:
        ConfigError: ``work`` holds the result of another configuration.
    """
    config = config or TuneConfig()
    order = [ranges[name] for name in quantised_tensors(export_fp32(student), CPU)]
    grid = OnGrid(student, order, config.weight_limit)
    claim(work, repr((config, len(source.index), order)))
    student.eval().to(device())

    def windows(step: int) -> torch.Tensor:
        rng = np.random.default_rng((config.seed, step))
        some = np.sort(rng.choice(source.index, size=config.batch))
        signs = rng.choice((-1.0, 1.0), size=(config.batch, 1, 1))
        return torch.from_numpy((source.bank.windows[some] * signs).astype(np.float32))[:, :, None]

    def loss(grid: OnGrid, made: torch.Tensor) -> dict[str, torch.Tensor]:
        x = made.to(device())
        with torch.no_grad():
            target = torch.softmax(student(x) / TEMPERATURE, dim=1)
        told = torch.log_softmax(grid(x) / TEMPERATURE, dim=1)
        return {"divergence": nn.functional.kl_div(told, target, reduction="batchmean")}

    pace = Pace(steps=config.steps, learning_rate=config.learning_rate, clip=float("inf"), seed=config.seed)
    groups = [{"params": list(grid.parameters()), "weight_decay": 0.0}]
    tuned = train(grid, groups, windows, loss, pace=pace, done=work / "tuned.pt")
    student.cpu()
    return tuned.student


def _weight(weight: torch.Tensor, limit: int) -> torch.Tensor:
    """Per output channel, symmetric, ``limit`` levels on either side of zero."""
    scale = (weight.detach().abs().amax(dim=(1, 2, 3), keepdim=True) / limit).clamp(min=1e-8)
    return _rounded(weight / scale) * scale


def _activation(x: torch.Tensor, found: Range) -> torch.Tensor:
    """Clipped to its range and rounded to 255 levels where it is never negative, else to 127 on either side."""
    scale = found.magnitude / (255 if found.low >= 0 else 127)
    return _rounded(x.clamp(max(found.low, -found.magnitude), found.magnitude) / scale) * scale


def _rounded(x: torch.Tensor) -> torch.Tensor:
    return x + (torch.round(x) - x).detach()
