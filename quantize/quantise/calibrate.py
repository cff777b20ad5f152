"""Ranges of the activations, observed over calibration windows.

Zeros do not count: windows are zero where nothing was recorded yet and ReLU makes many more, and a percentile over them
would clip the signal. What lies outside a range is clipped, so a narrow range trades rare peaks for finer steps; which
trade is right depends on the network, and ``choose`` decides it by agreement with FP32 on windows of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from agent.inference.bundle import softmax
from quantize.quantise import infer
from quantize.quantise.qdq import CPU, TENSORRT, Range, quantise, quantised_tensors

METHODS = ("minmax", "p99.999", "p99.99")
"""Narrower ranges (99.9 %, or the entropy of TensorRT) change the answers of the default network by 2 and 4 points."""
BINS = 2048

FloatArray = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Observation:
    """One tensor: lowest and highest value, and the histogram of the magnitudes of its non-zero values."""

    low: float
    high: float
    counts: NDArray[np.int64]

    @property
    def magnitude(self) -> float:
        return max(-self.low, self.high)


@dataclass(frozen=True, slots=True)
class Choice:
    """The method that agrees best with FP32, its ranges, and each method's mean difference in probability."""

    method: str
    ranges: dict[str, Range]
    differences: dict[str, float]


def calibrate(model: onnx.ModelProto, windows: FloatArray, method: str = "minmax") -> dict[str, Range]:
    """Range of every activation of the FP32 graph that either dialect quantises, from windows ``[n, 3, 10240]``."""
    return ranges(observe(model, windows), method)


def observe(model: onnx.ModelProto, windows: FloatArray) -> dict[str, Observation]:
    """Run the windows twice: for the extremes, then for histograms between them."""
    names = sorted({*quantised_tensors(model, CPU), *quantised_tensors(model, TENSORRT)})
    low = dict.fromkeys(names, 0.0)
    high = dict.fromkeys(names, 0.0)
    for values in infer.activations(model, windows, names):
        for name, value in values.items():
            low[name] = min(low[name], float(value.min()))
            high[name] = max(high[name], float(value.max()))
    counts = {name: np.zeros(BINS, np.int64) for name in names}
    for values in infer.activations(model, windows, names):
        for name, value in values.items():
            limit = max(-low[name], high[name])
            if limit > 0:
                counts[name] += np.histogram(np.abs(value[value != 0]), BINS, (0, limit))[0]
    return {name: Observation(low[name], high[name], counts[name]) for name in names}


def ranges(observations: dict[str, Observation], method: str) -> dict[str, Range]:
    """The ranges that ``method`` (one of ``METHODS``, or ``p`` with any percentile) draws from the observations."""
    return {name: _range(observation, method) for name, observation in observations.items()}


def _range(seen: Observation, method: str) -> Range:
    if method == "minmax" or not seen.counts.any():
        limit = seen.magnitude
    elif method.startswith("p"):
        below = np.cumsum(seen.counts) / seen.counts.sum()
        limit = seen.magnitude * (int(np.searchsorted(below, float(method[1:]) / 100)) + 1) / BINS
    else:
        raise ValueError(f"{method!r} is not one of {', '.join(METHODS)}")
    return Range(max(seen.low, -limit), min(seen.high, limit))


def choose(
    model: onnx.ModelProto, calibration: FloatArray, validation: FloatArray, methods: Sequence[str] = METHODS
) -> Choice:
    """Calibrate on one set of windows by each method, and keep the one whose two INT8 files agree best on the other."""
    seen = observe(model, calibration)
    exact = softmax(infer.logits(model, validation))
    candidates = {method: ranges(seen, method) for method in methods}
    differences = {}
    for method, candidate in candidates.items():
        answers = [softmax(infer.logits(quantise(model, candidate, d), validation)) for d in (CPU, TENSORRT)]
        differences[method] = float(np.mean([np.abs(answer - exact).mean() for answer in answers]))
    method = min(methods, key=lambda name: differences[name])
    return Choice(method, candidates[method], differences)
