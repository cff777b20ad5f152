"""From a student to a plain FP32 ONNX graph, batch norms folded, ready for Q/DQ.

The graph is built node by node from the student's own structure: the quantiser must know every node anyway, and this
gives the same small graph (Conv, Relu, pooling, Gemm) for every version of torch, with no further package.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from agent.types import COMPONENTS, LABELS, WINDOW_SAMPLES
from quantize.quantise.infer import INPUT, IR_VERSION, OPSET, OUTPUT
from quantize.quantise.int8 import METHODS, FloatArray, Int8Files, int8_files
from quantize.train.student import Student


def export_int8(
    student: Student, calibration: FloatArray, validation: FloatArray, methods: Sequence[str] = METHODS
) -> Int8Files:
    """``export_fp32``, then ``int8_files``, whose arguments and errors these are."""
    return int8_files(export_fp32(student), calibration, validation, methods)


def folded(student: Student) -> Student:
    """A copy with every batch norm folded into its convolution; the same function in evaluation mode."""
    made = copy.deepcopy(student).eval()
    for number, stage in enumerate(made.stages):
        parts: list[nn.Module] = []
        for part in stage.children():
            if isinstance(part, nn.BatchNorm2d) and isinstance(parts[-1], nn.Conv2d):
                parts[-1] = fuse_conv_bn_eval(parts[-1], part)
            else:
                parts.append(part)
        made.stages[number] = nn.Sequential(*parts)
    for parameter in made.parameters():
        parameter.requires_grad_(True)
    return made


def export_fp32(student: Student) -> onnx.ModelProto:
    """``student`` in evaluation mode as ONNX: ``window`` float32 ``[1, 3, 1, 10240]`` to ``logits`` ``[1, 5]``."""
    network, graph = folded(student), _Graph()
    x, pooled = INPUT, []
    for number, stage in enumerate(network.stages):
        for place, part in enumerate(stage.children()):
            if isinstance(part, nn.Conv2d):
                x = graph.conv(f"stages.{number}.{place}", x, part)
            else:
                x = graph.node("Relu", f"{x}.relu", [x])
        pooled.append(graph.node("GlobalAveragePool", f"stages.{number}.mean", [x]))
        pooled.append(graph.node("GlobalMaxPool", f"stages.{number}.peak", [x]))
    features = graph.node("Flatten", "features", [graph.node("Concat", "pooled", pooled, axis=1)], axis=1)
    head = [graph.constant(f"head.{name}", value) for name, value in network.head.named_parameters()]
    graph.node("Gemm", "head", [features, *head], output=OUTPUT, transB=1)
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "student",
            [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [1, len(COMPONENTS), 1, WINDOW_SAMPLES])],
            [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [1, len(LABELS)])],
            graph.constants,
        ),
        producer_name="talus",
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    onnx.checker.check_model(model, full_check=True)
    return model


class _Graph:
    """Nodes and constants as they are added; each call returns the name of the tensor made."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, values: torch.Tensor) -> str:
        array = np.ascontiguousarray(values.detach().cpu().numpy(), np.float32)
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def node(
        self, operator: str, name: str, inputs: Sequence[str], output: str | None = None, **attributes: Any
    ) -> str:
        made = output or name
        self.nodes.append(helper.make_node(operator, list(inputs), [made], name=name, **attributes))
        return made

    def conv(self, name: str, x: str, part: nn.Conv2d) -> str:
        constants = [self.constant(f"{name}.{kind}", value) for kind, value in part.named_parameters()]
        high, wide = (int(pad) for pad in part.padding)
        return self.node(
            "Conv",
            name,
            [x, *constants],
            kernel_shape=list(part.kernel_size),
            strides=list(part.stride),
            dilations=list(part.dilation),
            pads=[high, wide, high, wide],
            group=part.groups,
        )
