"""Weights and input that follow from names alone, so that two implementations can be compared without a checkpoint.

Every value comes from numpy's PCG64 seeded by the SHA-256 of the entry's name: no file changes hands, and an entry
under a wrong name or of a wrong shape gets other numbers. The scales keep activations where errors show.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
from numpy.typing import NDArray

from agent.types import WINDOW_RATE_HZ, WINDOW_SAMPLES
from quantize.train.prime_dp import PrimeDP


def _normal(name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    return np.random.default_rng(seed).standard_normal(shape)


def fill_value(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The value of one float entry of a state dict."""
    z = _normal(name, shape)
    leaf = name.rpartition(".")[2]
    if leaf == "running_mean":
        value = 0.1 * z
    elif leaf == "running_var":
        value = 0.25 + 0.1 * np.abs(z) if name.startswith("embedding_wave.") else 0.7 + 0.2 * np.abs(z)
    elif leaf.startswith("bias") or leaf.endswith("bias"):
        value = 0.05 * z
    elif len(shape) == 1:
        value = 1 + 0.1 * z
    elif name == "embedding_info.weight":
        value = z
    elif len(shape) == 3 and name.startswith("decoder_") and name.endswith(".layers.0.weight"):
        value = z * math.sqrt(1.5 / (shape[0] * shape[2] / 2))
    else:
        value = z * math.sqrt(1.5 / math.prod(shape[1:]))
    return value.astype(np.float32)


def fill(model: PrimeDP) -> PrimeDP:
    """Give every float parameter and statistic of ``model`` its name-derived value; returns it in evaluation mode."""
    with torch.no_grad():
        for name, entry in model.state_dict().items():
            if entry.is_floating_point():
                entry.copy_(torch.from_numpy(fill_value(name, tuple(entry.shape))))
    return model.eval()


def reference_input() -> NDArray[np.float32]:
    """Two windows ``[2, 3, 10240]`` with a P and an S wave train each on a little noise, demeaned, scaled to 1."""
    t = np.arange(WINDOW_SAMPLES) / WINDOW_RATE_HZ
    windows = np.empty((2, 3, WINDOW_SAMPLES))
    for b, c in np.ndindex(2, 3):
        p, s = t - (20.48 + 1.5 * b), t - (31 + 4 * b)
        wave = (1.0 if c == 2 else 0.5) * _train(p, 4, 7 + c) + (0.6 if c == 2 else 1.0) * _train(s, 9, 2.5 + 0.5 * c)
        wave += 0.02 * _normal(f"input/{b}/{c}", t.shape)
        wave -= wave.mean()
        windows[b, c] = wave / (np.abs(wave).max() + 1e-6)
    return windows.astype(np.float32)


def _train(t: NDArray[np.float64], decay_s: float, hz: float) -> NDArray[np.float64]:
    after = np.maximum(t, 0)
    return np.where(t >= 0, np.exp(-after / decay_s) * np.sin(2 * np.pi * hz * after), 0.0)
