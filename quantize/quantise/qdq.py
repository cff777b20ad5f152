"""Explicit quantisation: one set of calibrated ranges, written as Q/DQ pairs in two dialects.

TensorRT wants signed int8 with zero point 0, float biases, and a pair before each convolution's input only, so that
nothing stands between Conv and Relu. ONNX Runtime on a CPU fuses a convolution to QLinearConv if its output is
quantised too, to uint8, and its bias is int32. A file that suits one is slow or refused in the other, hence two files;
their ranges, and so their scales for signed tensors, are the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from quantize.quantise.infer import INPUT, OUTPUT, ExportError

_TINY = 1e-8


@dataclass(frozen=True, slots=True)
class Range:
    """Calibrated range of a tensor; values outside are clipped."""

    low: float
    high: float

    @property
    def magnitude(self) -> float:
        return max(-self.low, self.high, _TINY)


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a runtime wants its Q/DQ: ``weight_limit`` is the largest quantised weight in magnitude."""

    name: str
    unsigned: bool
    weight_limit: int
    float_bias: bool


TENSORRT = Dialect("tensorrt", unsigned=False, weight_limit=127, float_bias=True)

CPU = Dialect("cpu", unsigned=True, weight_limit=64, float_bias=False)
"""Weights of seven bits: on AVX2 without VNNI, ONNX Runtime multiplies uint8 by int8 and adds neighbours in 16 bits,
saturating. 2 x 255 x 64 = 32640 fits there, 2 x 255 x 127 does not."""


def quantised_tensors(model: onnx.ModelProto, dialect: Dialect) -> list[str]:
    """Names of the FP32 graph's activations that ``dialect`` quantises, in the order of the graph."""
    graph = _Graph(model)
    chosen: set[str] = set()
    for node in model.graph.node:
        if node.op_type == "Conv":
            chosen.add(node.input[0])
            if dialect.unsigned:
                chosen.add(graph.after_relu(node))
        elif node.op_type == "Add":
            if dialect.unsigned:
                chosen.update((*node.input, graph.after_relu(node)))
            elif (identity := graph.identity(node)) is not None:
                chosen.add(node.input[identity])
    order = [model.graph.input[0].name, *(node.output[0] for node in model.graph.node)]
    return [name for name in order if name in chosen]


def quantise(model: onnx.ModelProto, ranges: Mapping[str, Range], dialect: Dialect) -> onnx.ModelProto:
    """The FP32 graph ``model`` with Q/DQ in ``dialect``. Weights per output channel, activations per tensor.

    Raises:
        ExportError: a tensor that needs a range has none.
    """
    writer = _Writer(model, ranges, dialect)
    result = writer.write()
    onnx.checker.check_model(result, full_check=True)
    return result


def dequantise(model: onnx.ModelProto) -> onnx.ModelProto:
    """The float graph of an INT8 file: every Q/DQ taken out, the weights what the quantised ones stand for."""
    constants = {w.name: numpy_helper.to_array(w) for w in model.graph.initializer}
    alias: dict[str, str] = {}
    floats: dict[str, NDArray[Any]] = {}
    nodes = []
    for node in model.graph.node:
        source = alias.get(node.input[0], node.input[0])
        if node.op_type == "DequantizeLinear" and source in constants:
            values, scale = constants[source], constants[node.input[1]]
            floats[node.output[0]] = values.astype(np.float32) * scale.reshape(-1, *[1] * (values.ndim - 1))
        elif node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            alias[node.output[0]] = source
        else:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            for position, name in enumerate(node.input):
                copy.input[position] = alias.get(name, name)
                if name in constants:
                    floats[name] = constants[name]
            nodes.append(copy)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:], result.graph.initializer[:]
    result.graph.node.extend(nodes)
    result.graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in floats.items())
    onnx.checker.check_model(result, full_check=True)
    return result


class _Graph:
    """Who makes and who reads each tensor."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.maker = {name: node for node in model.graph.node for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in model.graph.node:
            for name in node.input:
                self.readers[name].append(node)

    def after_relu(self, node: onnx.NodeProto) -> str:
        """The output of ``node``, or of the Relu that alone reads it."""
        output = str(node.output[0])
        readers = self.readers[output]
        return str(readers[0].output[0]) if [r.op_type for r in readers] == ["Relu"] else output

    def identity(self, add: onnx.NodeProto) -> int | None:
        """Position of the operand of ``add`` that is not the fused convolution's output; None without a convolution."""
        from_conv = [self._is_conv(name) for name in add.input]
        if not any(from_conv):
            return None
        return 1 if from_conv[0] else 0

    def _is_conv(self, name: str) -> bool:
        maker = self.maker.get(name)
        return maker is not None and maker.op_type == "Conv"


class _Writer:
    def __init__(self, model: onnx.ModelProto, ranges: Mapping[str, Range], dialect: Dialect) -> None:
        self._model = model
        self._graph = _Graph(model)
        self._ranges = ranges
        self._dialect = dialect
        self._quantised = set(quantised_tensors(model, dialect))
        self._weights = {w.name: numpy_helper.to_array(w) for w in model.graph.initializer}
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}

    def write(self) -> onnx.ModelProto:
        source = self._model.graph
        self._pair(source.input[0].name)
        for node in source.node:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            for position, name in enumerate(node.input):
                copy.input[position] = self._reading(node, position, name)
            self._nodes.append(copy)
            self._pair(node.output[0])
        result = onnx.ModelProto()
        result.CopyFrom(self._model)
        del result.graph.node[:], result.graph.initializer[:]
        result.graph.node.extend(self._nodes)
        result.graph.initializer.extend(self._initializers.values())
        return result

    def _reading(self, node: onnx.NodeProto, position: int, name: str) -> str:
        """What ``node`` reads in place of ``name``."""
        if name in self._weights:
            if node.op_type != "Conv":
                return self._constant(name, self._weights[name])
            return self._weight(name) if position == 1 else self._bias(node)
        if name not in self._quantised:
            return name
        if self._dialect.unsigned or node.op_type == "Conv":
            return f"{name}.dq"
        return f"{name}.dq" if node.op_type == "Add" and position == self._graph.identity(node) else name

    def _pair(self, name: str) -> None:
        """Q and DQ behind the tensor ``name``, if it is quantised."""
        if name not in self._quantised:
            return
        scale, zero = self._activation(name)
        constants = [
            self._constant(f"{name}.scale", np.float32(scale)),
            self._constant(f"{name}.zero", zero),
        ]
        self._nodes += [
            helper.make_node("QuantizeLinear", [name, *constants], [f"{name}.q"], name=f"{name}.q"),
            helper.make_node("DequantizeLinear", [f"{name}.q", *constants], [f"{name}.dq"], name=f"{name}.dq"),
        ]

    def _activation(self, name: str) -> tuple[np.float32, NDArray[Any]]:
        if name not in self._ranges:
            raise ExportError(f"no calibrated range for {name}", "calibrate this very graph")
        found = self._ranges[name]
        if not self._dialect.unsigned:
            return np.float32(found.magnitude / 127), np.array(0, np.int8)
        if found.low >= 0:
            return np.float32(found.magnitude / 255), np.array(0, np.uint8)
        # the grid of the signed file, shifted, so that zero stays exact and both files round alike
        return np.float32(found.magnitude / 127), np.array(128, np.uint8)

    def _weight(self, name: str) -> str:
        scale = self._weight_scale(name)
        limit = self._dialect.weight_limit
        steps = np.rint(self._weights[name] / scale.reshape(-1, 1, 1, 1))
        return self._dequantised(name, np.clip(steps, -limit, limit).astype(np.int8), scale)

    def _bias(self, conv: onnx.NodeProto) -> str:
        name = conv.input[2]
        if self._dialect.float_bias:
            return self._constant(name, self._weights[name])
        scale = self._activation(conv.input[0])[0] * self._weight_scale(conv.input[1])
        return self._dequantised(name, np.rint(self._weights[name] / scale).astype(np.int32), scale)

    def _weight_scale(self, name: str) -> NDArray[np.float32]:
        """Scale per output channel; a channel whose bias would not fit int32 beside its weights gets a coarser one."""
        conv = self._graph.readers[name][0]
        largest = np.abs(self._weights[name]).max(axis=(1, 2, 3)) / self._dialect.weight_limit
        unit = self._activation(conv.input[0])[0]
        floor = np.abs(self._weights[conv.input[2]]) / (unit * 2.0**30)
        scale: NDArray[np.float32] = np.maximum(np.maximum(largest, floor), _TINY).astype(np.float32)
        return scale

    def _dequantised(self, name: str, values: NDArray[Any], scale: NDArray[np.float32]) -> str:
        inputs = [
            self._constant(f"{name}.q", values),
            self._constant(f"{name}.scale", scale),
            self._constant(f"{name}.zero", np.zeros(len(scale), values.dtype)),
        ]
        output = f"{name}.dq"
        self._nodes.append(helper.make_node("DequantizeLinear", inputs, [output], name=output, axis=0))
        return output

    def _constant(self, name: str, values: Any) -> str:
        self._initializers[name] = numpy_helper.from_array(np.asarray(values), name)
        return name


def half(fp32: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with float16 weights and arithmetic; input and output stay float32."""
    model = onnx.ModelProto()
    model.CopyFrom(fp32)
    graph = model.graph
    del graph.value_info[:]
    for weight in graph.initializer:
        if weight.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(weight).astype(np.float16)
            weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    inner_in, inner_out = f"{INPUT}.half", f"{OUTPUT}.half"
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == INPUT:
                node.input[index] = inner_in
        for index, name in enumerate(node.output):
            if name == OUTPUT:
                node.output[index] = inner_out
    graph.node.insert(0, helper.make_node("Cast", [INPUT], [inner_in], name="cast.in", to=TensorProto.FLOAT16))
    graph.node.append(helper.make_node("Cast", [inner_out], [OUTPUT], name="cast.out", to=TensorProto.FLOAT))
    onnx.checker.check_model(model, full_check=True)
    return model


def widen(fp16: onnx.ModelProto) -> onnx.ModelProto:
    """The network of a file that ``half`` wrote, with its rounded weights, in float32 arithmetic."""
    model = onnx.ModelProto()
    model.CopyFrom(fp16)
    graph = model.graph
    casts = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Cast"}
    outward = {source: name for name, source in casts.items() if name == OUTPUT}
    kept = [node for node in graph.node if node.op_type != "Cast"]
    for node in kept:
        for index, name in enumerate(node.input):
            node.input[index] = casts.get(name, name)
        for index, name in enumerate(node.output):
            node.output[index] = outward.get(name, name)
    del graph.node[:], graph.value_info[:]
    graph.node.extend(kept)
    for weight in graph.initializer:
        if weight.data_type == TensorProto.FLOAT16:
            weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight).astype(np.float32), weight.name))
    onnx.checker.check_model(model, full_check=True)
    return model
