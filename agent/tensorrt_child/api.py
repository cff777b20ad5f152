"""The part of TensorRT's Python API that Talus uses, from 8.5 to 11 and for RTX, as types: the bindings ship none.

What differs between the versions is asked of the module by attribute, never looked up by version. ``make
test-tensorrt-api`` compares every name and parameter here with the real bindings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol


class HostMemory(Protocol):
    """A buffer of TensorRT's; ``to_bytes`` copies it."""

    @property
    def nbytes(self) -> int: ...


class TimingCache(Protocol):
    def serialize(self) -> HostMemory: ...


class BuilderConfig(Protocol):
    def set_flag(self, flag: object) -> None: ...
    def clear_flag(self, flag: object) -> None: ...
    def set_memory_pool_limit(self, pool: object, pool_size: int) -> None: ...
    def create_timing_cache(self, serialized_timing_cache: bytes) -> TimingCache: ...
    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool: ...
    def get_timing_cache(self) -> TimingCache | None: ...


class Network(Protocol):
    @property
    def num_layers(self) -> int: ...


class BuilderApi(Protocol):
    def create_network(self, flags: int) -> Network: ...
    def create_builder_config(self) -> BuilderConfig: ...
    def build_serialized_network(self, network: Network, config: BuilderConfig) -> HostMemory | None: ...


class ParserError(Protocol):
    def desc(self) -> str: ...


class Parser(Protocol):
    @property
    def num_errors(self) -> int: ...

    def parse(self, model: bytes) -> bool: ...
    def get_error(self, index: int) -> ParserError: ...


class Context(Protocol):
    def set_tensor_address(self, name: str, memory: int) -> bool: ...
    def execute_async_v3(self, stream_handle: int) -> bool: ...


class Engine(Protocol):
    @property
    def num_io_tensors(self) -> int: ...

    def get_tensor_name(self, index: int) -> str: ...
    def get_tensor_mode(self, name: str) -> object: ...
    def get_tensor_shape(self, name: str) -> Iterable[int]: ...
    def get_tensor_dtype(self, name: str) -> object: ...
    def create_execution_context(self) -> Context | None: ...


class RuntimeApi(Protocol):
    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Engine | None: ...


class LoggerType(Protocol):
    WARNING: object

    def __call__(self, min_severity: object) -> object: ...


class PoolTypes(Protocol):
    WORKSPACE: object


class IoModes(Protocol):
    INPUT: object
    OUTPUT: object


class DataTypes(Protocol):
    FLOAT: object


class Module(Protocol):
    """``import tensorrt``."""

    __name__: str
    __version__: str
    Logger: LoggerType
    Builder: Callable[[object], BuilderApi | None]
    OnnxParser: Callable[[Network, object], Parser]
    Runtime: Callable[[object], RuntimeApi | None]
    MemoryPoolType: PoolTypes
    TensorIOMode: IoModes
    DataType: DataTypes
    BuilderFlag: object
    NetworkDefinitionCreationFlag: object


CLASSES = {
    "Builder": BuilderApi,
    "IBuilderConfig": BuilderConfig,
    "INetworkDefinition": Network,
    "OnnxParser": Parser,
    "ParserError": ParserError,
    "ITimingCache": TimingCache,
    "IHostMemory": HostMemory,
    "Runtime": RuntimeApi,
    "ICudaEngine": Engine,
    "IExecutionContext": Context,
}
"""Name of the class in the bindings to the part of it that is used."""

MEMBERS = {
    "Logger": LoggerType,
    "MemoryPoolType": PoolTypes,
    "TensorIOMode": IoModes,
    "DataType": DataTypes,
}
"""Name of the enumeration in the bindings to the members that every version must have."""

OPTIONAL_MEMBERS = {
    "BuilderFlag": ("INT8", "FP16", "TF32"),
    "NetworkDefinitionCreationFlag": ("EXPLICIT_BATCH", "STRONGLY_TYPED"),
}
"""Members that some versions lack, each asked for with ``getattr``."""


RTX = "tensorrt_rtx"
"""TensorRT for RTX: the same API for GPUs of PCs, one `pip install` away where JetPack is not."""


def load() -> Module:
    """Import the bindings, TensorRT's before those for RTX. Only ever in a child process: without a usable GPU what
    follows may end in SIGSEGV.

    Raises:
        ImportError: neither is there, or its libraries are not.
    """
    module: Module
    try:
        import tensorrt

        module = tensorrt
    except ModuleNotFoundError as error:
        if error.name != "tensorrt":
            raise
        try:
            import tensorrt_rtx
        except ModuleNotFoundError:
            raise error from None
        module = tensorrt_rtx
    return module


def version(trt: Module) -> str:
    """Tells engines of the two apart, too."""
    return f"RTX {trt.__version__}" if trt.__name__ == RTX else trt.__version__


def to_bytes(memory: HostMemory) -> bytes:
    """A copy, through the buffer protocol."""
    copy: bytes = bytes(memory)  # type: ignore[call-overload]
    return copy


def strongly_typed(trt: Module) -> bool:
    """Whether networks follow the types in the file (10 and newer), or builder flags."""
    return hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")


def network_flags(trt: Module) -> int:
    """EXPLICIT_BATCH where it exists (8; without meaning in 10, gone in 11), STRONGLY_TYPED where it exists."""
    names = OPTIONAL_MEMBERS["NetworkDefinitionCreationFlag"]
    found = (getattr(trt.NetworkDefinitionCreationFlag, name, None) for name in names)
    return sum(1 << int(flag) for flag in found if flag is not None)


def precision_flag(trt: Module, precision: str) -> object:
    """The builder flag that ``int8`` or ``fp16`` needs, None where the file's own types decide."""
    if strongly_typed(trt) or precision not in ("int8", "fp16"):
        return None
    return getattr(trt.BuilderFlag, precision.upper(), None)
