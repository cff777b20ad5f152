"""What TensorRT's ONNX parser and builder ask of an INT8 file, checked without a GPU.

The rules are NVIDIA's for explicit quantisation, and what its parser was seen to refuse from version 8.5 to 10; nothing
parses a model with TensorRT itself on a machine without a GPU. A file without findings is what the project writes for
the Jetson; the device still has the last word.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from quantize.quantise.infer import ExportError

OPERATORS = frozenset(
    {
        *("Conv", "Relu", "Add", "Concat", "Flatten", "Gemm", "GlobalAveragePool", "GlobalMaxPool"),
        *("MaxPool", "AveragePool", "QuantizeLinear", "DequantizeLinear"),
    }
)
OPSETS = range(13, 18)
"""From per-channel Q/DQ on, to the newest that TensorRT 8.5 (JetPack 5) reads."""
TYPES = (onnx.TensorProto.FLOAT, onnx.TensorProto.INT8)
CHANNEL_MULTIPLE = 8
MIN_CHANNELS = 16

Fault: TypeAlias = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Target:
    """What a TensorRT's parser reads, by its own list of supported operators."""

    opsets: range
    operators: frozenset[str]


_LATER = frozenset({"Gelu", "GroupNormalization", "HardSwish", "LayerNormalization", "Mish"})
TARGETS = {
    "8.5": Target(OPSETS, OPERATORS),
    "8.6": Target(OPSETS, OPERATORS | {"LayerNormalization"}),
    "10": Target(range(13, 25), OPERATORS | _LATER),
    "11": Target(range(13, 26), OPERATORS | _LATER),
}
"""By version; ``10`` is 10.15. A file for every Jetson keeps to the first, which the others include."""
OLDEST = "8.5"


@dataclass(frozen=True, slots=True)
class Finding:
    """One breach: the rule's name, the node or tensor, what is wrong there, and what to do about it."""

    rule: str
    where: str
    fault: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.where}: {self.fault}; {self.remedy}"


@dataclass(frozen=True, slots=True)
class Rule:
    name: str
    remedy: str
    check: Callable[[_View], Iterator[Fault]]


def lint(model: onnx.ModelProto | Path | bytes, tensorrt: str = OLDEST) -> list[Finding]:
    """Every breach of ``RULES`` in ``model``, in the order of the rules. Empty for a file that keeps them all.

    ``tensorrt`` is a key of ``TARGETS``: which opsets and operators are allowed.

    Raises:
        ExportError: ``model`` is not an ONNX file.
    """
    view = _View(load_network(model), TARGETS[tensorrt])
    return [Finding(rule.name, where, fault, rule.remedy) for rule in RULES for where, fault in rule.check(view)]


def load_network(model: onnx.ModelProto | Path | bytes) -> onnx.ModelProto:
    """The network of an ONNX file.

    Raises:
        ExportError: it is none.
    """
    if isinstance(model, onnx.ModelProto):
        return model
    try:
        loaded = onnx.load_from_string(model if isinstance(model, bytes) else model.read_bytes())
    except (OSError, DecodeError) as error:
        raise ExportError(
            f"{'the network' if isinstance(model, bytes) else model}: {error}", "give an ONNX file"
        ) from None
    if not loaded.graph.node:
        raise ExportError("the ONNX file holds no network", "give a file that `python -m quantize bundle` wrote")
    return loaded


class _View:
    """The graph with its makers, readers and constants by tensor name."""

    def __init__(self, model: onnx.ModelProto, target: Target) -> None:
        self.model = model
        self.target = target
        self.graph = model.graph
        self.constants: dict[str, NDArray[Any]] = {
            w.name: numpy_helper.to_array(w)
            for w in self.graph.initializer
            if w.data_location != onnx.TensorProto.EXTERNAL
        }
        self.maker = {name: node for node in self.graph.node for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.graph.node:
            for name in node.input:
                self.readers[name].append(node)

    def of(self, *operators: str) -> Iterator[onnx.NodeProto]:
        return (node for node in self.graph.node if node.op_type in operators)

    def made_by(self, name: str, operator: str) -> onnx.NodeProto | None:
        maker = self.maker.get(name)
        return maker if maker is not None and maker.op_type == operator else None

    def weight(self, conv: onnx.NodeProto) -> tuple[NDArray[Any] | None, list[onnx.NodeProto]]:
        """The constant at the root of ``conv``'s weight, and the Q and DQ nodes between."""
        name, chain = conv.input[1], []
        while (maker := self.maker.get(name)) is not None and maker.op_type in ("QuantizeLinear", "DequantizeLinear"):
            chain.append(maker)
            name = maker.input[0]
        return self.constants.get(name), chain

    def zero_point(self, node: onnx.NodeProto) -> NDArray[Any] | None:
        return self.constants.get(node.input[2]) if len(node.input) > 2 else None

    def is_weight(self, node: onnx.NodeProto) -> bool:
        """Whether a Q or DQ works on a constant."""
        name = node.input[0]
        while name in self.maker and self.maker[name].op_type == "QuantizeLinear":
            name = self.maker[name].input[0]
        return name in self.constants


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    found = [helper.get_attribute_value(a) for a in node.attribute if a.name == name]
    return found[0] if found else default


def _valid(view: _View) -> Iterator[Fault]:
    try:
        onnx.checker.check_model(view.model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        yield "model", str(error).strip().splitlines()[0]


def _opset(view: _View) -> Iterator[Fault]:
    for entry in view.model.opset_import:
        if entry.domain not in ("", "ai.onnx"):
            yield "model", f"imports the operator set {entry.domain!r}"
        elif entry.version not in view.target.opsets:
            yield "model", f"opset {entry.version}"


def _operator(view: _View) -> Iterator[Fault]:
    for node in view.graph.node:
        if node.op_type not in view.target.operators or node.domain not in ("", "ai.onnx"):
            yield node.name, f"operator {node.domain}{'.' if node.domain else ''}{node.op_type}"


def _self_contained(view: _View) -> Iterator[Fault]:
    for weight in view.graph.initializer:
        if weight.data_location == onnx.TensorProto.EXTERNAL:
            yield weight.name, "its values are in another file"
    for node in view.graph.node:
        if any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute):
            yield node.name, "holds a graph of its own"
    for function in view.model.functions:
        yield function.name, "is a function of the model"


def _data_type(view: _View) -> Iterator[Fault]:
    for weight in view.graph.initializer:
        if weight.data_type not in TYPES:
            yield weight.name, f"is {onnx.TensorProto.DataType.Name(weight.data_type).lower()}"
    for tensor in (*view.graph.input, *view.graph.output):
        if tensor.type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
            yield tensor.name, "is not float32"


def _finite(view: _View) -> Iterator[Fault]:
    for name, values in view.constants.items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            yield name, "holds a value that is no number"


def _gemm(view: _View) -> Iterator[Fault]:
    for gemm in view.of("Gemm"):
        quantised = [view.made_by(name, "DequantizeLinear") is not None for name in gemm.input[:2]]
        if len(set(quantised)) > 1:
            yield gemm.name, f"its {'input' if quantised[0] else 'weight'} alone is quantised"


def _fixed_shape(view: _View) -> Iterator[Fault]:
    for tensor in (*view.graph.input, *view.graph.output):
        shape = [d.dim_value if d.HasField("dim_value") else 0 for d in tensor.type.tensor_type.shape.dim]
        if not shape or min(shape) < 1:
            yield tensor.name, "a dimension is open"
    for tensor in view.graph.input:
        if len(tensor.type.tensor_type.shape.dim) != 4:
            yield tensor.name, f"{len(tensor.type.tensor_type.shape.dim)} dimensions"


def _signed_type(view: _View) -> Iterator[Fault]:
    for node in view.of("QuantizeLinear", "DequantizeLinear"):
        zero = view.zero_point(node)
        if zero is None:
            yield node.name, "no constant zero point, which means uint8"
        elif zero.dtype != np.int8:
            yield node.name, f"{zero.dtype}"


def _zero_point(view: _View) -> Iterator[Fault]:
    for node in view.of("QuantizeLinear", "DequantizeLinear"):
        zero = view.zero_point(node)
        if zero is not None and zero.any():
            yield node.name, f"zero point {zero.flat[np.flatnonzero(zero)[0]]}"


def _scale(view: _View) -> Iterator[Fault]:
    for node in view.of("QuantizeLinear", "DequantizeLinear"):
        scale = view.constants.get(node.input[1])
        if scale is None:
            yield node.name, "the scale is computed"
        elif not (np.isfinite(scale).all() and (scale > 0).all()):
            yield node.name, "a scale is not above zero"


def _activation(view: _View) -> Iterator[Fault]:
    for node in view.of("QuantizeLinear", "DequantizeLinear"):
        scale = view.constants.get(node.input[1])
        if not view.is_weight(node) and scale is not None and scale.size != 1:
            yield node.name, f"{scale.size} scales on an activation"


def _pairs(view: _View) -> Iterator[Fault]:
    for node in view.of("QuantizeLinear"):
        for reader in view.readers[node.output[0]]:
            if reader.op_type != "DequantizeLinear":
                yield node.name, f"feeds {reader.op_type}"
            elif not _same_scale(view, node, reader):
                yield node.name, "its DequantizeLinear has another scale"
    for node in view.of("DequantizeLinear"):
        if node.input[0] not in view.constants and view.made_by(node.input[0], "QuantizeLinear") is None:
            yield node.name, "reads neither a QuantizeLinear nor a constant"


def _same_scale(view: _View, first: onnx.NodeProto, second: onnx.NodeProto) -> bool:
    scales = view.constants.get(first.input[1]), view.constants.get(second.input[1])
    return scales[0] is not None and scales[1] is not None and np.array_equal(scales[0], scales[1])


def _conv_input(view: _View) -> Iterator[Fault]:
    for conv in view.of("Conv"):
        if view.made_by(conv.input[0], "DequantizeLinear") is None:
            yield conv.name, "its input does not come straight from a DequantizeLinear"


def _conv_weight(view: _View) -> Iterator[Fault]:
    for conv in view.of("Conv"):
        values, chain = view.weight(conv)
        if not chain or values is None:
            yield conv.name, "its weight does not come straight from a DequantizeLinear on a constant"
            continue
        for node in chain:
            scale = view.constants.get(node.input[1])
            axis = _attribute(node, "axis", 1)
            if scale is None or scale.ndim != 1 or axis != 0:
                yield conv.name, f"its weight is not quantised per output channel (axis {axis})"
            elif len(scale) != values.shape[0]:
                yield conv.name, f"{len(scale)} scales for {values.shape[0]} output channels"


def _bias(view: _View) -> Iterator[Fault]:
    for conv in view.of("Conv"):
        if len(conv.input) < 3 or not conv.input[2]:
            continue
        bias = view.constants.get(conv.input[2])
        if bias is None or bias.dtype != np.float32:
            yield conv.name, "its bias is not a float constant"


def _conv_relu(view: _View) -> Iterator[Fault]:
    for conv in view.of("Conv"):
        for reader in view.readers[conv.output[0]]:
            if reader.op_type == "QuantizeLinear" and not _is_shortcut(view, reader):
                yield conv.name, "its output is quantised before the Relu"


def _is_shortcut(view: _View, quantize: onnx.NodeProto) -> bool:
    """Whether the pair that begins at ``quantize`` only leads to residual additions."""
    after = [last for pair in view.readers[quantize.output[0]] for last in view.readers[pair.output[0]]]
    return bool(after) and all(node.op_type == "Add" for node in after)


def _residual(view: _View) -> Iterator[Fault]:
    for add in view.of("Add"):
        quantised = [view.made_by(name, "DequantizeLinear") is not None for name in add.input]
        plain = [view.made_by(name, "Conv") is not None for name in add.input]
        if sum(quantised) != 1 or sum(plain) != 1:
            yield add.name, f"{sum(quantised)} of its inputs are quantised, {sum(plain)} come straight from a Conv"


def _dense(view: _View) -> Iterator[Fault]:
    for conv in view.of("Conv"):
        groups = _attribute(conv, "group", 1)
        if groups != 1:
            yield conv.name, f"{groups} groups"


def _kernel(view: _View) -> Iterator[Fault]:
    for conv in view.of("Conv"):
        values, _ = view.weight(conv)
        if values is not None and (values.ndim != 4 or values.shape[2] != 1):
            yield conv.name, f"kernel {values.shape[2:]}"


def _channels(view: _View) -> Iterator[Fault]:
    inputs = {tensor.name for tensor in view.graph.input}
    for conv in view.of("Conv"):
        values, _ = view.weight(conv)
        if values is None or values.ndim < 2:
            continue
        pair = view.made_by(conv.input[0], "DequantizeLinear")
        quantize = view.made_by(pair.input[0], "QuantizeLinear") if pair is not None else None
        first = conv.input[0] in inputs or (quantize is not None and quantize.input[0] in inputs)
        for count in values.shape[:1] if first else values.shape[:2]:
            if count % CHANNEL_MULTIPLE or count < MIN_CHANNELS:
                yield conv.name, f"{count} channels"


RULES = (
    Rule("onnx", "export again: ONNX's own checker refuses the file", _valid),
    Rule("opset", f"write opset {OPSETS.stop - 1} of the standard operators only", _opset),
    Rule("operator", "fold batch norm, and keep to " + ", ".join(sorted(OPERATORS)), _operator),
    Rule("self-contained", "export into one file, without functions, loops or branches", _self_contained),
    Rule("data-type", "keep to float32, and int8 for what is quantised", _data_type),
    Rule("finite", "train again: a weight, bias or scale has overflowed", _finite),
    Rule("fixed-shape", "export with batch 1 and four fixed dimensions", _fixed_shape),
    Rule("signed-int8", "quantise to int8: TensorRT knows no uint8, and no int32 in a DequantizeLinear", _signed_type),
    Rule("zero-point", "calibrate symmetrically, with every zero point 0", _zero_point),
    Rule("scale", "write constant scales above zero; a dead channel gets a tiny one", _scale),
    Rule("per-tensor-activation", "give an activation one scale", _activation),
    Rule("pair", "keep QuantizeLinear and DequantizeLinear together, with one scale", _pairs),
    Rule("conv-input", "put a Q/DQ pair directly before the Conv", _conv_input),
    Rule("conv-weight", "store int8 weights behind a DequantizeLinear with axis 0, one scale a channel", _conv_weight),
    Rule("float-bias", "leave biases in float32 (ONNX Runtime's tools: QuantizeBias=False)", _bias),
    Rule("gemm", "quantise both inputs of a Gemm, or neither", _gemm),
    Rule(
        "conv-relu", "quantise inputs of convolutions, not their outputs: nothing may stand before the Relu", _conv_relu
    ),
    Rule("residual", "at an Add quantise the identity branch, and leave the Conv's output as it is", _residual),
    Rule("dense", "use group 1: INT8 depthwise has no implementation on some devices", _dense),
    Rule("kernel", "use Conv2d with kernels (1, k)", _kernel),
    Rule("channels", f"use multiples of {CHANNEL_MULTIPLE}, at least {MIN_CHANNELS}", _channels),
)
