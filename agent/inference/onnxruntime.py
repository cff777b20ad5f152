"""The INT8 network on a CPU through ONNX Runtime: one thread that does not spin, because the agent shares its cores."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from agent.errors import BackendError
from agent.inference.bundle import CPU_MODEL, Bundle
from agent.types import LABELS, WINDOW_SAMPLES

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

INPUT = "window"
OUTPUT = "logits"
_LOG_ERRORS = 3


class OnnxRuntimeBackend:
    """An ONNX file at work: it reads ``window`` float32 ``[1, 3, 1, 10240]`` and writes ``logits`` ``[1, 5]``."""

    name = "onnxruntime"
    model_file = CPU_MODEL

    def __init__(self, model: bytes, precision: str, threads: int = 1) -> None:
        self.precision = precision
        self._session = _session(model, threads)
        self._input = np.zeros((1, len("ENZ"), 1, WINDOW_SAMPLES), np.float32)
        self._feed = {INPUT: self._input}
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        found = [(tensor.name, tensor.type, list(tensor.shape)) for tensor in (*inputs, *outputs)]
        needed = [(INPUT, "tensor(float)", [1, 3, 1, WINDOW_SAMPLES]), (OUTPUT, "tensor(float)", [1, len(LABELS)])]
        if found != needed:
            raise BackendError(f"the ONNX file's inputs and outputs are {found}, not {needed}", "use another bundle")

    def logits(self, data: NDArray[np.float32]) -> NDArray[np.float32]:
        self._input[0, :, 0] = data
        try:
            answer: NDArray[np.float32] = self._session.run((OUTPUT,), self._feed)[0]
        except Exception as error:  # ONNX Runtime's own exceptions have no other base
            raise BackendError(f"ONNX Runtime failed: {_first_line(error)}", "run `talus doctor`") from error
        return answer.reshape(-1)


def _session(model: bytes, threads: int) -> InferenceSession:
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise BackendError(f"ONNX Runtime cannot be imported: {error}", "pip install onnxruntime") from error
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = _LOG_ERRORS
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # as above
        raise BackendError(
            f"ONNX Runtime cannot load the network: {_first_line(error)}", "use another bundle"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


def open_backend(bundle: Bundle, threads: int, argument: str) -> OnnxRuntimeBackend:
    """The bundle's CPU file; takes no ``argument``.

    Raises:
        BundleError: the bundle has no CPU file.
        BackendError: ONNX Runtime is absent or cannot load it.
    """
    if argument:
        raise BackendError(f"onnxruntime takes no argument, not {argument!r}", "write just onnxruntime")
    return OnnxRuntimeBackend(bundle.file(CPU_MODEL), "int8", threads)
