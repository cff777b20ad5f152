"""Whether the files of a bundle hold one and the same network.

Each file rounds the weights in its own way: eight bits, seven, half precision. Two files of one network differ by no
more than half a step of either; a weight that was changed by more than that in one of them alone stands out, however
little it moves the answers, and even if the manifest's hash was made to fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

_HALF_STEP = 2.0**-11
"""Largest rounding of a half-precision number, as a share of it."""
_SMALLEST_HALF = 2.0**-25
_SLACK = 1.001
_BITS = {np.dtype(np.uint8): 255, np.dtype(np.int8): 127}

Key = tuple[str, str]


@dataclass(frozen=True, slots=True, eq=False)
class _Stored:
    """Values as a file stands for them, and by how much each may have been rounded."""

    values: NDArray[np.float64]
    rounding: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A constant that two files do not share: its node, what differs, and by how many of the largest differences that
    rounding explains."""

    files: tuple[str, str]
    where: str
    excess: float

    def __str__(self) -> str:
        by = (
            "is in one of them alone" if np.isinf(self.excess) else f"differs by {self.excess:.1f} times their rounding"
        )
        return f"{self.files[0]} and {self.files[1]}: {self.where} {by}"


def disagreements(models: Mapping[str, onnx.ModelProto]) -> list[Disagreement]:
    """What the networks ``models`` (by file name) do not have in common; empty for files of one network."""
    stored = {name: dict(_constants(model)) for name, model in models.items()}
    return [found for pair in combinations(stored, 2) for found in _compare(pair, stored[pair[0]], stored[pair[1]])]


def _compare(
    files: tuple[str, str], first: Mapping[Key, _Stored], second: Mapping[Key, _Stored]
) -> Iterator[Disagreement]:
    for key in sorted(first.keys() | second.keys()):
        where = f"{key[1]} of {key[0]}"
        if key[1] == "range" and not (key in first and key in second):
            continue  # the two dialects quantise some tensors that the other leaves in float
        if key not in first or key not in second or first[key].values.shape != second[key].values.shape:
            yield Disagreement(files, where, float("inf"))
            continue
        a, b = first[key], second[key]
        allowed = _SLACK * (a.rounding + b.rounding) + 1e-6 * np.abs(a.values) + 1e-12
        excess = float(np.max(np.abs(a.values - b.values) / allowed, initial=0.0))
        if not excess <= 1:
            yield Disagreement(files, where, excess)


def _constants(model: onnx.ModelProto) -> Iterator[tuple[Key, _Stored]]:
    """Weights and biases by node, ranges by tensor."""
    constants = {w.name: numpy_helper.to_array(w) for w in model.graph.initializer}
    maker = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] not in constants:
            scale, zero = constants[node.input[1]], constants[node.input[2]]
            steps = 127 if zero.any() else _BITS[zero.dtype]
            yield (node.input[0], "range"), _exact(scale.astype(np.float64) * steps)
        if node.op_type in ("Conv", "Gemm"):
            for name, kind in zip(node.input[1:], ("weight", "bias"), strict=False):
                yield (node.name or node.output[0], kind), _read(name, constants, maker)


def _read(name: str, constants: Mapping[str, NDArray[Any]], maker: Mapping[str, onnx.NodeProto]) -> _Stored:
    if name in constants:
        values = constants[name].astype(np.float64)
        if constants[name].dtype != np.float16:
            return _exact(values)
        return _Stored(values, np.abs(values) * _HALF_STEP + _SMALLEST_HALF)
    dequantize = maker[name]
    steps, scale = constants[dequantize.input[0]], constants[dequantize.input[1]].astype(np.float64)
    scale = scale.reshape(-1, *[1] * (steps.ndim - 1))
    return _Stored(steps * scale, np.broadcast_to(scale / 2, steps.shape))


def _exact(values: NDArray[np.float64]) -> _Stored:
    return _Stored(values, np.zeros_like(values))
