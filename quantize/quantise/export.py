"""From a torch module to a plain FP32 ONNX graph, batch norm folded, ready for Q/DQ.

The graph is built here from ``torch.export``'s trace: the quantiser must know every node anyway, and this gives the
same small graph (Conv, Relu, Add, pooling, Gemm) for every version of torch, with no further package.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import fx, nn

from agent.types import COMPONENTS, LABELS, WINDOW_SAMPLES
from quantize.quantise.calibrate import METHODS
from quantize.quantise.graph import INPUT, IR_VERSION, OPSET, OUTPUT, ExportError
from quantize.quantise.int8 import FloatArray, Int8Files, int8_files

Array = NDArray[Any]

_HINT = "build the network from what `export_fp32` lists"


def export_int8(
    module: nn.Module, calibration: FloatArray, validation: FloatArray, methods: Sequence[str] = METHODS
) -> Int8Files:
    """Export ``module`` and quantise it: ``export_fp32``, then ``int8_files``, whose arguments and errors these are."""
    return int8_files(export_fp32(module), calibration, validation, methods)


def export_fp32(module: nn.Module, samples: int = WINDOW_SAMPLES) -> onnx.ModelProto:
    """``module`` in evaluation mode as ONNX: ``window`` float32 ``[1, 3, 1, samples]`` to ``logits`` ``[1, 5]``.

    It must read that shape and be made of convolutions (batch norms directly after them are folded in), ReLUs,
    additions, concatenations, global poolings and linear layers.

    Raises:
        ExportError: it holds another operation.
    """
    was_training = module.training
    module.eval()
    try:
        program = torch.export.export(module, (torch.zeros(1, len(COMPONENTS), 1, samples),))
    finally:
        module.train(was_training)
    graph = _Graph(program)
    graph.emit()
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "student",
            [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [1, len(COMPONENTS), 1, samples])],
            [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [1, len(LABELS)])],
            graph.initializers,
        ),
        producer_name="talus",
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def _pair(value: Any) -> tuple[int, int]:
    """Torch writes an argument per axis as one number, as one in a list, or as two."""
    values = [value] if isinstance(value, int) else list(value)
    return (values[0], values[0]) if len(values) == 1 else (values[0], values[1])


class _Graph:
    """The ONNX nodes of one traced program, in its order."""

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        signature = program.graph_signature
        state: dict[str, Any] = {**program.state_dict, **program.constants}
        paths = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self._paths = paths
        self._values: dict[str, Array] = {k: state[v].detach().cpu().numpy() for k, v in paths.items()}
        self._names: dict[fx.Node, str] = {}
        self._program = program

    def emit(self) -> None:
        for node in self._program.graph.nodes:
            if node.op == "placeholder":
                if node.name not in self._paths:
                    self._names[node] = INPUT
            elif node.op == "output":
                self._close(node.args[0][0])
            else:
                operation = getattr(node.target, "__name__", "").split(".")[0]
                if operation not in _OPERATIONS:
                    raise ExportError(f"{node.name}: the exporter does not know {node.target}", _HINT)
                self._names[node] = _OPERATIONS[operation](self, node)

    def _close(self, last: fx.Node) -> None:
        if not self.nodes or self.nodes[-1].output[0] != self._names[last]:
            raise ExportError("the module's output is not its last operation", _HINT)
        self.nodes[-1].output[0] = OUTPUT

    def constant(self, name: str, values: Array) -> str:
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(values, np.float32), name))
        return name

    def add(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, list(inputs), [output], name=output, **attributes))
        return output

    def name(self, argument: Any) -> str:
        return self._names[argument]

    def value(self, argument: Any) -> Array:
        return self._values[argument.name]

    def path(self, weight: Any) -> str:
        return str(self._paths[weight.name]).removesuffix(".weight")


def _argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _conv(graph: _Graph, node: fx.Node) -> str:
    weight = graph.value(node.args[1])
    stride, dilation = _pair(_argument(node, 3, "stride", 1)), _pair(_argument(node, 5, "dilation", 1))
    padding = _argument(node, 4, "padding", 0)
    kernel = weight.shape[2:]
    if padding == "valid":
        padding = 0
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        pads = [t // 2 for t in total] + [t - t // 2 for t in total]
    else:
        pads = [*_pair(padding), *_pair(padding)]
    weight, bias = _fold_norm(graph, node, weight, _bias(graph, node, len(weight)))
    path = graph.path(node.args[1])
    return graph.add(
        "Conv",
        [
            graph.name(node.args[0]),
            graph.constant(f"{path}.weight", weight),
            graph.constant(f"{path}.bias", bias),
        ],
        path,
        kernel_shape=list(kernel),
        strides=list(stride),
        dilations=list(dilation),
        pads=pads,
        group=_argument(node, 6, "groups", 1),
    )


def _fold_norm(graph: _Graph, conv: fx.Node, weight: Array, bias: Array) -> tuple[Array, Array]:
    """Weight and bias of ``conv``, with the batch norm folded in that follows it and alone reads it, if one does."""
    users = list(conv.users)
    if len(users) != 1 or not str(users[0].target).startswith("aten.batch_norm"):
        return weight, bias
    _, gamma, beta, mean, variance, _, _, epsilon, *_ = users[0].args
    scale = graph.value(gamma).astype(np.float64) / np.sqrt(graph.value(variance) + epsilon)
    return weight * scale[:, None, None, None], (bias - graph.value(mean)) * scale + graph.value(beta)


def _bias(graph: _Graph, node: fx.Node, size: int) -> Array:
    bias = _argument(node, 2, "bias")
    return np.zeros(size) if bias is None else graph.value(bias)


def _norm(graph: _Graph, node: fx.Node) -> str:
    conv: Any = node.args[0]
    if not str(conv.target).startswith("aten.conv2d") or len(conv.users) != 1:
        raise ExportError(f"{node.name}: a batch norm must follow a convolution that nothing else reads", _HINT)
    return graph.name(conv)


def _linear(graph: _Graph, node: fx.Node) -> str:
    weight = graph.value(node.args[1])
    path = graph.path(node.args[1])
    inputs = [
        graph.name(node.args[0]),
        graph.constant(f"{path}.weight", weight),
        graph.constant(f"{path}.bias", _bias(graph, node, len(weight))),
    ]
    return graph.add("Gemm", inputs, path, transB=1)


def _add(graph: _Graph, node: fx.Node) -> str:
    return graph.add("Add", [graph.name(node.args[0]), graph.name(node.args[1])], node.name)


def _concat(graph: _Graph, node: fx.Node) -> str:
    parts: Any = node.args[0]
    return graph.add("Concat", [graph.name(part) for part in parts], node.name, axis=_argument(node, 1, "dim", 0))


def _same(graph: _Graph, node: fx.Node) -> str:
    return graph.name(node.args[0])


def _simple(operator: str, **attributes: Any) -> Callable[[_Graph, fx.Node], str]:
    return lambda graph, node: graph.add(operator, [graph.name(node.args[0])], node.name, **attributes)


def _global_pool(operator: str) -> Callable[[_Graph, fx.Node], str]:
    def emit(graph: _Graph, node: fx.Node) -> str:
        if _pair(node.args[1]) != (1, 1):
            raise ExportError(f"{node.name}: adaptive pooling to {node.args[1]}; only to 1", _HINT)
        return graph.add(operator, [graph.name(node.args[0])], node.name)

    return emit


def _reduce(operator: str) -> Callable[[_Graph, fx.Node], str]:
    def emit(graph: _Graph, node: fx.Node) -> str:
        axes = [axis % 4 for axis in _argument(node, 1, "dim")]
        keep = bool(_argument(node, 2, "keepdim", False))
        if sorted(axes) != [2, 3]:
            raise ExportError(f"{node.name}: reduction over {axes}; only over axes 2 and 3", _HINT)
        pooled = graph.add(operator, [graph.name(node.args[0])], f"{node.name}_pool" if not keep else node.name)
        return pooled if keep else graph.add("Flatten", [pooled], node.name, axis=1)

    return emit


_OPERATIONS: dict[str, Callable[[_Graph, fx.Node], str]] = {
    "conv2d": _conv,
    "batch_norm": _norm,
    "relu": _simple("Relu"),
    "relu_": _simple("Relu"),
    "add": _add,
    "add_": _add,
    "cat": _concat,
    "adaptive_avg_pool2d": _global_pool("GlobalAveragePool"),
    "adaptive_max_pool2d": _global_pool("GlobalMaxPool"),
    "mean": _reduce("GlobalAveragePool"),
    "amax": _reduce("GlobalMaxPool"),
    "flatten": _simple("Flatten", axis=1),
    "dropout": _same,
    "linear": _linear,
    "getitem": _same,  # of the max pooling's pair of values and positions
}
