"""Where networks are trained: on a GPU where PyTorch finds one, else on the processor; and what is made beside it."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

T = TypeVar("T")

_WORKERS = 4
"""Processes that make batches for a GPU; the processor itself trains no faster with any."""


@cache
def device() -> torch.device:
    """The first GPU, or the processor."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.backends.cudnn.benchmark = True  # the shapes are few, and long thin kernels are not what is tuned for
    torch.backends.cudnn.allow_tf32 = False  # what is not bfloat16 is to be float32, as on a processor
    return torch.device("cuda")


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0))


@cache
def has_bfloat16() -> bool:
    """Whether the device multiplies in bfloat16; elsewhere it would be emulated, slower than float32."""
    if device().type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags or " bf16 " in flags


def mixed_precision(wanted: bool) -> torch.autocast:
    """A context in which matrix products are bfloat16, if ``wanted`` and the device has it."""
    return torch.autocast(device().type, torch.bfloat16, enabled=wanted and has_bfloat16())


def ahead(make: Callable[[int], T], steps: range, workers: int | None = None) -> Iterator[T]:
    """``make(step)`` for every step, in order, made ahead by other processes; by default where a GPU would wait."""
    if workers is None:
        workers = 0 if device().type == "cpu" else min(_WORKERS, processors())
    if not workers:
        return map(make, steps)
    loader: Iterable[T] = DataLoader(
        _Made(make),
        sampler=steps,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4,
        multiprocessing_context=multiprocessing.get_context("fork"),
    )
    return iter(loader)


class _Made(Dataset[T]):
    def __init__(self, make: Callable[[int], T]) -> None:
        self._make = make

    def __getitem__(self, step: int) -> T:
        return self._make(step)
