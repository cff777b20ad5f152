"""The network on an NVIDIA GPU through TensorRT, in a process of its own (``agent.tensorrt_child``).

child.py     one child process and the socket to it; is there a GPU that TensorRT can use, and which
backend.py   a child that serves
cache.py     engines on disk, each good for one machine, version and network
fallback.py  INT8, else FP16, else the reason why neither serves
switch.py    ONNX Runtime serves, until TensorRT is ready
bring_up.py  what ``talus doctor`` says of the GPU, and the report of a new device

This opens what is ready: an engine that was built before, on this machine. Building takes minutes, and is done by the
service beside its work (``switch.py``) or by ``talus doctor --jetson``.
"""

from __future__ import annotations

from pathlib import Path

from agent.errors import BackendError
from agent.inference.bundle import Bundle
from agent.inference.tensorrt.backend import TensorRtBackend
from agent.inference.tensorrt.fallback import EngineSettings, best_engine


def engine_folder(state_dir: Path) -> Path:
    """Where engines are kept."""
    return state_dir / "tensorrt"


def open_backend(bundle: Bundle, threads: int, argument: str) -> TensorRtBackend:
    """``argument`` is the folder with the engines; ``threads`` mean nothing to a GPU.

    Raises:
        BundleError: the bundle has no file for TensorRT.
        BackendError: no GPU, no TensorRT, no engine yet, or one that fails its golden windows.
    """
    if not argument:
        raise BackendError(
            "tensorrt needs the folder of its engines", "use `talus run`, or `talus doctor --config FILE`"
        )
    return best_engine(bundle, EngineSettings(Path(argument), build=False)).backend
