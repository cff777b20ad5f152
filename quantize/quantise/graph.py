"""What every ONNX file of the project has in common."""

from __future__ import annotations

from agent.errors import ModelError

OPSET = 17
IR_VERSION = 8
"""Opset and file format of onnx 1.12: what the TensorRT of JetPack 5 still reads."""
INPUT = "window"
"""Float32 ``[1, 3, 1, 10240]``."""
OUTPUT = "logits"
"""Float32 ``[1, 5]``."""


class ExportError(ModelError):
    """A network that cannot be exported or quantised."""
