"""What INT8 does to each layer: its output against FP32, so that one sees where the error comes from."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from pydantic import JsonValue

from quantize.quantise import infer
from quantize.quantise.graph import OUTPUT
from quantize.quantise.int8 import Int8Files


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
