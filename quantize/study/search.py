"""Which depth and width the student should have: accuracy against latency, on folds by event.

Every shape learns from labels alone, on the same windows and for the same number of steps, and is judged on events that
it never saw; its latency is that of the graph in float under ONNX Runtime on one thread, which orders the shapes as
INT8 does and needs no calibration. What is chosen stands in ``configs/quantize/student.yaml``.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
import torch

from agent.types import COMPONENTS, WINDOW_SAMPLES
from quantize.quantise import infer
from quantize.quantise.export import export_fp32
from quantize.quantise.graph import INPUT
from quantize.study.crossval import cross_validate
from quantize.study.evaluate import Figure, Truth, per_event, score, softmax
from quantize.train.lab import Lab
from quantize.train.student import StudentConfig, build_student, parameter_count

SHAPES: Mapping[str, StudentConfig] = MappingProxyType(
    {
        "narrow": StudentConfig((16, 24, 32, 48, 64, 64, 64)),
        "shallow": StudentConfig((32, 64, 96, 128), (31, 9, 9, 9), (8, 4, 4, 2), (2, 3)),
        "default": StudentConfig(),
        "fine": StudentConfig((24, 32, 48, 64, 96, 128, 128, 128), (15, 7, 5, 5, 5, 5, 5, 5), (4,) + (2,) * 7, (5, 7)),
        "wide": StudentConfig((32, 64, 96, 128, 160, 160), (31, 7, 5, 5, 5, 5), (8, 2, 2, 2, 2, 2), (3, 5)),
    }
)
"""Shapes that are tried; each within the half million parameters of the bundle."""


@dataclass(frozen=True, slots=True)
class Tried:
    """One shape: parameters, milliseconds a window, and what is right in the neutral view, whole window."""

    name: str
    parameters: int
    milliseconds: float
    records: Figure
    events_balanced: Figure


def search(lab: Lab, windows: int, only: Sequence[int]) -> list[Tried]:
    """Train every shape on the folds ``only`` with ``windows`` windows each. Resumable, like all that it calls."""
    lab.bank()  # all shapes share its windows, by a link to where they are
    tried = []
    for name, shape in SHAPES.items():
        config = replace(lab.config, student=shape, alone=replace(lab.config.alone, windows=windows))
        place = replace(lab, config=config, work=lab.work / "search" / name)
        place.work.mkdir(parents=True, exist_ok=True)
        bank = place.work / "bank"
        if not bank.exists():
            bank.symlink_to((lab.work / "bank").resolve())
        folds = cross_validate(place, "alone", only)
        truth = Truth.of([lab.records[int(i)].row for i in folds.index])
        p = softmax(folds.logits["neutral"][:, -1])
        tried.append(
            Tried(
                name,
                parameter_count(build_student(shape)),
                latency(shape),
                score(p, truth).accuracy,
                score(*per_event(p, truth)).balanced,
            )
        )
    return tried


def latency(shape: StudentConfig, rounds: int = 60) -> float:
    """Median milliseconds of one window in FP32 on one thread."""
    torch.manual_seed(0)
    runner = infer.session(export_fp32(build_student(shape).eval()))
    window = np.random.default_rng(0).standard_normal((1, len(COMPONENTS), 1, WINDOW_SAMPLES)).astype(np.float32)
    times = []
    for turn in range(-5, rounds):
        begin = time.perf_counter()
        runner.run(None, {INPUT: window})
        if turn >= 0:
            times.append(1e3 * (time.perf_counter() - begin))
    return float(np.median(times))


def table(tried: Sequence[Tried]) -> str:
    """The front as text."""
    lines = [f"{'shape':<10}{'parameters':>12}{'ms (FP32)':>12}{'records %':>20}{'events bal. %':>20}"]
    lines += [
        f"{one.name:<10}{one.parameters:>12}{one.milliseconds:>12.2f}{one.records!s:>20}{one.events_balanced!s:>20}"
        for one in tried
    ]
    return "\n".join(lines)
