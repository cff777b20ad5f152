"""The network in half precision: what TensorRT serves where a device gets INT8 wrong.

TensorRT 11 computes in the types of the file and has no flag for FP16, so the types are written into it.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from quantize.quantise.graph import INPUT, OUTPUT


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
