"""What every ONNX file of the project has in common, and how one is run over many windows: as the agent's CPU backend
would (one thread, every optimisation)."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from agent.errors import ModelError

if TYPE_CHECKING:
    import onnx

    Network = onnx.ModelProto | bytes
    """A network, or the content of its file."""

FloatArray = NDArray[np.float32]

OPSET = 17
IR_VERSION = 8
"""Opset and file format of onnx 1.12: what the TensorRT of JetPack 5 still reads."""
INPUT = "window"
"""Float32 ``[1, 3, 1, 10240]``."""
OUTPUT = "logits"
"""Float32 ``[1, 5]``."""


class ExportError(ModelError):
    """A network that cannot be exported or quantised."""


def session(model: Network, optimise: bool = True) -> ort.InferenceSession:
    """A session with one thread; without ``optimise`` each node is computed as written, Q/DQ in float."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    content = model if isinstance(model, bytes) else model.SerializeToString()
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def optimised(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph that ONNX Runtime makes of ``model`` before it chooses memory layouts: what has fused, what has not."""
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimised.onnx"
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(path)
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnx.load(path)


def logits(model: Network, windows: FloatArray, optimise: bool = True) -> FloatArray:
    """The outputs ``[n, 5]`` for ``windows`` ``[n, 3, 10240]``."""
    return runner(model, optimise)(windows)


def runner(model: Network, optimise: bool = True) -> Callable[[FloatArray], FloatArray]:
    """``logits`` of one network as a function of windows: its session is made once."""
    opened = session(model, optimise)

    def run(windows: FloatArray) -> FloatArray:
        return np.concatenate([opened.run([OUTPUT], {INPUT: feed})[0] for feed in _feeds(windows)])

    return run


def activations(model: onnx.ModelProto, windows: FloatArray, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """For each window the values of the tensors ``names``, inner ones included."""
    import onnx

    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    known = {INPUT, OUTPUT}
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    runner = session(probe)
    inner = [name for name in names if name != INPUT]
    for feed in _feeds(windows):
        values = dict(zip(inner, runner.run(inner, {INPUT: feed}), strict=True)) if inner else {}
        if INPUT in names:
            values[INPUT] = feed
        yield values


def _feeds(windows: FloatArray) -> Iterator[FloatArray]:
    if windows.ndim != 3:
        raise ValueError(f"windows of shape {windows.shape}, not [n, 3, samples]")
    for window in windows:
        yield np.ascontiguousarray(window, np.float32)[None, :, None, :]
