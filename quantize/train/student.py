"""The student: a small dense convolutional network that quantises well and runs on one thread of a small board.

Two-dimensional convolutions with ``(1, k)`` kernels on ``[N, 3, 1, 10240]``, because the runtimes' fast integer paths
are two-dimensional; dense, because depthwise INT8 is not dependable on TensorRT; channels in multiples of 8; batch
normalisation that folds into the convolutions; ReLU only. Average and maximum over time make the verdict independent of
where in the window the motion stands, and keep a short signal from drowning in an empty window.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from agent.errors import ConfigError
from agent.types import LABELS


@dataclass(frozen=True, slots=True)
class StudentConfig:
    """Shape of the network: per convolution its channels, kernel (odd) and stride; ``taps``, the convolutions whose
    output is pooled for the verdict, so that it rests on motion of several durations; dropout before the linear
    layer."""

    channels: tuple[int, ...] = (32, 48, 64, 96, 128, 128, 128)
    kernels: tuple[int, ...] = (31, 7, 5, 5, 5, 5, 5)
    strides: tuple[int, ...] = (8, 2, 2, 2, 2, 2, 2)
    taps: tuple[int, ...] = (4, 6)
    dropout: float = 0.3

    def __post_init__(self) -> None:
        if not self.taps or self.taps != tuple(sorted(set(self.taps))) or self.taps[-1] != len(self.channels) - 1:
            raise ConfigError(
                f"taps {self.taps} do not end at the last convolution", "list rising indices from 0, the last too"
            )
        if not len(self.channels) == len(self.kernels) == len(self.strides) > 0:
            raise ConfigError(
                "channels, kernels and strides differ in length", "give one of each for every convolution"
            )
        if any(c < 16 or c % 8 for c in self.channels):
            raise ConfigError(f"channels {self.channels} do not suit INT8", "use multiples of 8, at least 16")
        if any(k < 1 or k % 2 == 0 for k in self.kernels) or any(s < 1 for s in self.strides):
            raise ConfigError("a kernel is even or a stride below 1", "use odd kernels and strides from 1")


class Student(nn.Module):
    """Logits ``[N, 5]`` in the order of ``LABELS`` from windows ``[N, 3, 1, 10240]``."""

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        width = 3
        layers: list[nn.Module] = []
        for index, channels in enumerate(config.channels):
            kernel, stride = config.kernels[index], config.strides[index]
            layers += [
                nn.Conv2d(width, channels, (1, kernel), (1, stride), (0, kernel // 2), bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(),
            ]
            width = channels
            if index in config.taps:
                stages.append(nn.Sequential(*layers))
                layers = []
        self.stages = nn.ModuleList(stages)
        self.mean = nn.AdaptiveAvgPool2d(1)
        self.peak = nn.AdaptiveMaxPool2d(1)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(2 * sum(config.channels[tap] for tap in config.taps), len(LABELS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = []
        for stage in self.stages:
            x = stage(x)
            pooled += [self.mean(x), self.peak(x)]
        logits: torch.Tensor = self.head(self.dropout(torch.cat(pooled, dim=1).flatten(1)))
        return logits


def build_student(config: StudentConfig) -> Student:
    """A network with fresh weights (from torch's global generator)."""
    return Student(config)


def parameter_count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
