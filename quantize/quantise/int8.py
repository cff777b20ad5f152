"""From a float network to its two INT8 files: ranges of the activations over calibration windows, both dialects from
one choice of ranges, and what that does to each layer.

Zeros do not count: windows are zero where nothing was recorded yet and ReLU makes many more, and a percentile over them
would clip the signal. What lies outside a range is clipped, so a narrow range trades rare peaks for finer steps; which
trade is right depends on the network, and ``choose`` decides it by agreement with FP32 on windows of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from pydantic import JsonValue

from agent.inference.bundle import softmax
from quantize.quantise import infer
from quantize.quantise.infer import OUTPUT, ExportError
from quantize.quantise.qdq import CPU, TENSORRT, Range, quantise, quantised_tensors
from quantize.quantise.rules import lint

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


@dataclass(frozen=True, slots=True, eq=False)
class Int8Files:
    """One network in three forms, and how its ranges were chosen."""

    fp32: onnx.ModelProto
    cpu: onnx.ModelProto
    trt: onnx.ModelProto
    choice: Choice
    calibration_windows: int


def int8_files(
    fp32: onnx.ModelProto, calibration: FloatArray, validation: FloatArray, methods: Sequence[str] = METHODS
) -> Int8Files:
    """Calibrate and quantise. Windows are float32 ``[n, 3, 10240]`` as the agent prepares them, of every length that it
    will see; ranges come from ``calibration``, the choice of method from ``validation``.

    Raises:
        ExportError: a convolution does not fuse under ONNX Runtime, or a rule of TensorRT is broken.
    """
    choice = choose(fp32, calibration, validation, methods)
    cpu, trt = (quantise(fp32, choice.ranges, dialect) for dialect in (CPU, TENSORRT))
    unfused = unfused_convolutions(cpu)
    if unfused:
        raise ExportError(
            f"these convolutions stay in float under ONNX Runtime: {', '.join(unfused)}",
            "follow each by a Relu, an addition or another convolution",
        )
    findings = lint(trt)
    if findings:
        raise ExportError(f"TensorRT would refuse the network: {'; '.join(map(str, findings[:3]))}", findings[0].remedy)
    return Int8Files(fp32, cpu, trt, choice, len(calibration))


def unfused_convolutions(cpu: onnx.ModelProto) -> list[str]:
    """Convolutions of the CPU file that ONNX Runtime would still compute in float."""
    return [node.name for node in infer.optimised(cpu).graph.node if node.op_type in ("Conv", "FusedConv")]


def layer_errors(files: Int8Files, windows: NDArray[np.float32]) -> dict[str, JsonValue]:
    """For every convolution (after its ReLU) and the logits, in both INT8 files: the ratio of the signal's power to
    that of the error, in dB, and the error's root mean square as a share of the signal's. ``windows`` ``[n, 3, 10240]``
    should be none of those that the ranges came from."""
    tensors = _outputs(files.fp32)
    errors = {name: _errors(files.fp32, model, tensors, windows) for name, model in _dialects(files).items()}
    layers: list[JsonValue] = [
        {"layer": layer, "weights": weights, **{name: found[tensor] for name, found in errors.items()}}
        for tensor, (layer, weights) in tensors.items()
    ]
    return {"windows": len(windows), "layers": layers}


def _dialects(files: Int8Files) -> Mapping[str, onnx.ModelProto]:
    return {"cpu": files.cpu, "trt": files.trt}


def _outputs(model: onnx.ModelProto) -> dict[str, tuple[str, int]]:
    """Tensor of each layer's output, with the layer's name and its number of weights."""
    sizes = {w.name: int(np.prod(numpy_helper.to_array(w).shape)) for w in model.graph.initializer}
    readers = {name: node for node in model.graph.node for name in node.input}
    found = {}
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            after = readers.get(node.output[0])
            tensor = after.output[0] if after is not None and after.op_type == "Relu" else node.output[0]
            found[str(tensor)] = (str(node.name or node.output[0]), sizes[node.input[1]])
    return found


def _errors(
    fp32: onnx.ModelProto, int8: onnx.ModelProto, tensors: Mapping[str, object], windows: NDArray[np.float32]
) -> dict[str, JsonValue]:
    names = [name for name in tensors if name != OUTPUT] + [OUTPUT]
    signal, error = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    pairs = zip(infer.activations(fp32, windows, names), infer.activations(int8, windows, names), strict=True)
    for exact, rounded in pairs:
        for name in names:
            signal[name] += float(np.square(exact[name], dtype=np.float64).sum())
            error[name] += float(np.square(exact[name] - rounded[name], dtype=np.float64).sum())
    made: dict[str, JsonValue] = {}
    for name in names:
        share = error[name] / max(signal[name], 1e-30)
        made[name] = [round(-10 * float(np.log10(max(share, 1e-12))), 1), round(float(np.sqrt(share)), 4)]
    return made
