"""A ``tensorrt`` whose engines run under ONNX Runtime, and which fails as it is told.

The environment variable FAKE_TENSORRT names a JSON file: ``version``, and where to misbehave and how. At ``import``,
``runtime``, ``builder``, ``parse``, ``build``, ``load``, ``run``: ``segv``, ``hang``, ``raise``, or ``none`` (the
failure value of that call). ``build_s`` is how long a build takes, ``burn`` whether it computes meanwhile; ``corrupt``
makes builds write garbage, ``wrong`` (a list of ``int8``, ``float``) makes networks of that kind answer nonsense,
``run_after`` lets ``run`` misbehave only after so many runs.
"""

from __future__ import annotations

import ctypes
import enum
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

_told: dict[str, Any] = json.loads(Path(os.environ["FAKE_TENSORRT"]).read_text())
__version__ = str(_told.get("version", "10.3.0"))
_major = int(__version__.split(".", maxsplit=1)[0])
_MAGIC = b"FAKE-ENGINE " + __version__.encode() + b"\n"


def _misbehave(place: str) -> bool:
    """True when the call is to return its failure value."""
    how = _told.get(place)
    if how == "segv":
        print("TensorRT: about to crash", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)
    elif how == "hang":
        time.sleep(3600)
    elif how == "raise":
        raise TypeError("pybind11::init(): factory function returned nullptr")
    return how == "none"


_misbehave("import")
print("noise on standard output, as libraries make it", flush=True)


class DataType(enum.Enum):
    FLOAT = 0
    HALF = 1


class TensorIOMode(enum.Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class MemoryPoolType(enum.Enum):
    WORKSPACE = 0


BuilderFlag = enum.IntEnum(  # type: ignore[misc]
    "BuilderFlag", {"TF32": 7} if _major >= 11 else {"FP16": 0, "INT8": 1, "TF32": 7}
)
NetworkDefinitionCreationFlag = enum.IntEnum(  # type: ignore[misc]
    "NetworkDefinitionCreationFlag",
    {**({"EXPLICIT_BATCH": 0} if _major < 11 else {}), **({"STRONGLY_TYPED": 1} if _major >= 10 else {})},
)


class Logger:
    WARNING = 2

    def __init__(self, min_severity: object) -> None:
        pass


class HostMemory(bytes):
    @property
    def nbytes(self) -> int:
        return len(self)


class TimingCache:
    def __init__(self, raw: bytes) -> None:
        self.raw = raw

    def serialize(self) -> HostMemory:
        return HostMemory(self.raw + b"t")


class Config:
    def __init__(self) -> None:
        self.flags: set[object] = set()
        self.cache: TimingCache | None = None

    def set_flag(self, flag: object) -> None:
        self.flags.add(flag)

    def clear_flag(self, flag: object) -> None:
        self.flags.discard(flag)

    def set_memory_pool_limit(self, pool: object, pool_size: int) -> None:
        assert isinstance(pool, MemoryPoolType)
        assert pool_size > 0

    def create_timing_cache(self, serialized_timing_cache: bytes) -> TimingCache:
        return TimingCache(serialized_timing_cache)

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        self.cache = cache
        return True

    def get_timing_cache(self) -> TimingCache | None:
        return self.cache


class Network:
    def __init__(self, flags: int) -> None:
        self.flags = flags
        self.onnx = b""
        self.num_layers = 0


class Builder:
    def __init__(self, logger: object) -> None:
        _misbehave("builder")

    def create_network(self, flags: int) -> Network:
        return Network(flags)

    def create_builder_config(self) -> Config:
        return Config()

    def build_serialized_network(self, network: Network, config: Config) -> HostMemory | None:
        end = time.monotonic() + float(_told.get("build_s", 0))
        go = Path(_told.get("build_until", "/"))
        while time.monotonic() < end or not go.exists():
            if not _told.get("burn"):
                time.sleep(0.05)
        if _misbehave("build"):
            return None
        typed = _major >= 10 and bool(network.flags & 2)
        if b"QuantizeLinear" in network.onnx and not typed and BuilderFlag["INT8"] not in config.flags:
            print("Q/DQ layers need the INT8 flag", file=sys.stderr)
            return None
        if typed and config.flags & {BuilderFlag.__members__.get("INT8"), BuilderFlag.__members__.get("FP16")}:
            print("a strongly typed network takes no precision flags", file=sys.stderr)
            return None
        return HostMemory(b"garbage" * 100 if _told.get("corrupt") else _MAGIC + network.onnx)


class ParserError:
    def desc(self) -> str:
        return "only activation types allowed as input to this layer."


class OnnxParser:
    num_errors = 1

    def __init__(self, network: Network, logger: object) -> None:
        self._network = network

    def parse(self, model: bytes) -> bool:
        self._network.onnx = bytes(model)
        return not _misbehave("parse")

    def get_error(self, index: int) -> ParserError:
        return ParserError()


class Runtime:
    def __init__(self, logger: object) -> None:
        _misbehave("runtime")

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Engine | None:
        if _misbehave("load") or not serialized_engine.startswith(_MAGIC):
            print("[01/02/2026-03:04:05] [TRT] [E] IRuntime: the engine cannot run on this GPU", file=sys.stderr)
            print("[01/02/2026-03:04:05] [TRT] [W] something else", file=sys.stderr, flush=True)
            return None
        return Engine(serialized_engine[len(_MAGIC) :])


class Engine:
    num_io_tensors = 2

    def __init__(self, onnx: bytes) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        self.session = ort.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
        kind = "int8" if b"QuantizeLinear" in onnx else "float"
        self.wrong = kind in _told.get("wrong", ())

    def get_tensor_name(self, index: int) -> str:
        return ("window", "logits")[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name == "window" else TensorIOMode.OUTPUT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (1, 3, 1, 10240) if name == "window" else (1, 5)

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType.FLOAT

    def create_execution_context(self) -> Context:
        return Context(self)


class Context:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._addresses: dict[str, int] = {}
        self._runs = 0
        self._kernel = ctypes.CFUNCTYPE(None)(self._compute)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        self._runs += 1
        if self._runs > int(_told.get("run_after", 0)) and _misbehave("run"):
            return False
        return int(ctypes.CDLL("libcuda.so.1").fake_enqueue(self._kernel)) == 0

    def _compute(self) -> None:
        import numpy as np

        window = np.frombuffer(ctypes.string_at(self._addresses["window"], 4 * 3 * 10240), np.float32)
        logits = self._engine.session.run(["logits"], {"window": window.reshape(1, 3, 1, 10240)})[0]
        if self._engine.wrong:
            logits = logits[:, ::-1] * 3
        raw = np.ascontiguousarray(logits, np.float32).tobytes()
        ctypes.memmove(self._addresses["logits"], raw, len(raw))
