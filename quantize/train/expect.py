"""How long trainings will take here, told before they begin: steps of each network, timed on this machine."""

from __future__ import annotations

import time

import torch
from torch import nn

from agent.types import COMPONENTS, WINDOW_SAMPLES
from quantize.train.fit import FitConfig
from quantize.train.hardware import device, mixed_precision
from quantize.train.lab import Lab
from quantize.train.prime_dp import PrimeDP
from quantize.train.student import build_student
from quantize.train.transfer import EventTeacher


def transfer_time(lab: Lab, networks: int) -> str:
    """What PRIME-DP and a student of it take, trained ``networks`` times each; the pre-training, where it is needed,
    and whatever is there already are not counted."""
    config = lab.config
    teacher = EventTeacher(PrimeDP(config.pretrain.variant), config.teacher.pool, config.teacher.dropout)
    hours = networks * (_hours(teacher, config.teacher.fit) + _hours(build_student(config.student), config.distil.fit))
    start = "" if lab.checkpoint is not None else ", and the pre-training before that"
    return f"about {hours:.1f} h on this machine, {networks} times teacher and student{start}; it may be broken off"


def _hours(model: nn.Module, config: FitConfig) -> float:
    """Hours of a whole training, from its second step."""
    torch.set_num_threads(config.threads)
    model.to(device()).train()
    windows = torch.randn(config.batch, len(COMPONENTS), 1, WINDOW_SAMPLES, device=device())
    for _ in range(2):
        begin = time.perf_counter()
        with mixed_precision(config.bfloat16):
            logits = model(windows)
        logits.float().sum().backward()
        spent = time.perf_counter() - begin
    return spent * config.windows / config.batch / 3600
