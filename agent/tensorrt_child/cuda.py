"""The CUDA driver through ctypes: memory, one stream, graphs.

``libcuda.so.1`` comes with the driver itself, under that name on every JetPack, and its entry points are versioned by
name; the runtime library's name changes with each CUDA release, and a machine with TensorRT need not have it. TensorRT
works in the same primary context.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_ulonglong, c_void_p
from typing import Any

LIBRARY = "libcuda.so.1"
NON_BLOCKING = 1
RELAXED = 2
SM_MAJOR, SM_MINOR, INTEGRATED = 75, 76, 18
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR and _INTEGRATED."""

SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
    "cuDriverGetVersion": (POINTER(c_int),),
    "cuDeviceGetCount": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDeviceTotalMem_v2": (POINTER(c_size_t), c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuCtxSetCurrent": (c_void_p,),
    "cuMemAlloc_v2": (POINTER(c_uint64), c_size_t),
    "cuMemAllocHost_v2": (POINTER(c_void_p), c_size_t),
    "cuMemcpyHtoDAsync_v2": (c_uint64, c_void_p, c_size_t, c_void_p),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_uint64, c_size_t, c_void_p),
    "cuStreamCreate": (POINTER(c_void_p), c_uint),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamBeginCapture_v2": (c_void_p, c_int),
    "cuStreamEndCapture": (c_void_p, POINTER(c_void_p)),
    "cuGraphInstantiateWithFlags": (POINTER(c_void_p), c_void_p, c_ulonglong),
    "cuGraphLaunch": (c_void_p, c_void_p),
}
"""Entry points (CUDA 11.4 to 13) and their parameters; each returns a CUresult."""


class CudaError(Exception):
    """The driver is absent or refused; the text says which call and why."""


class Driver:
    """The first device, with its primary context current in the thread that makes this."""

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL(LIBRARY)
        except OSError as error:
            raise CudaError(f"no CUDA driver: {error}") from None
        self._call("cuInit", 0)
        count = c_int()
        self._call("cuDeviceGetCount", byref(count))
        if count.value < 1:
            raise CudaError("the CUDA driver knows of no GPU")
        device = c_int()
        self._call("cuDeviceGet", byref(device), 0)
        self._device = device.value
        self._stream = c_void_p()

    def facts(self) -> dict[str, Any]:
        """Name, compute capability, memory and driver of the device."""
        name, version, memory = ctypes.create_string_buffer(256), c_int(), c_size_t()
        self._call("cuDeviceGetName", name, len(name), self._device)
        self._call("cuDriverGetVersion", byref(version))
        self._call("cuDeviceTotalMem_v2", byref(memory), self._device)
        return {
            "gpu": name.value.decode("utf-8", "replace"),
            "sm": f"{self._attribute(SM_MAJOR)}.{self._attribute(SM_MINOR)}",
            "integrated": bool(self._attribute(INTEGRATED)),
            "memory_mb": memory.value >> 20,
            "cuda": f"{version.value // 1000}.{version.value % 1000 // 10}",
        }

    def start(self) -> int:
        """Make the primary context current and open the stream; returns its handle."""
        context = c_void_p()
        self._call("cuDevicePrimaryCtxRetain", byref(context), self._device)
        self._call("cuCtxSetCurrent", context)
        self._call("cuStreamCreate", byref(self._stream), NON_BLOCKING)
        return self._stream.value or 0

    def allocate(self, size: int) -> int:
        """Device memory."""
        address = c_uint64()
        self._call("cuMemAlloc_v2", byref(address), size)
        return address.value

    def allocate_host(self, size: int) -> int:
        """Page-locked memory of the host, which the device reads without a copy in between."""
        address = c_void_p()
        self._call("cuMemAllocHost_v2", byref(address), size)
        return address.value or 0

    def copy_in(self, device: int, host: int, size: int) -> None:
        self._call("cuMemcpyHtoDAsync_v2", device, host, size, self._stream)

    def copy_out(self, host: int, device: int, size: int) -> None:
        self._call("cuMemcpyDtoHAsync_v2", host, device, size, self._stream)

    def wait(self) -> None:
        self._call("cuStreamSynchronize", self._stream)

    def begin_capture(self) -> None:
        self._call("cuStreamBeginCapture_v2", self._stream, RELAXED)

    def end_capture(self) -> int:
        """The captured work as an executable graph."""
        graph, executable = c_void_p(), c_void_p()
        self._call("cuStreamEndCapture", self._stream, byref(graph))
        self._call("cuGraphInstantiateWithFlags", byref(executable), graph, 0)
        return executable.value or 0

    def launch(self, graph: int) -> None:
        self._call("cuGraphLaunch", graph, self._stream)

    def _attribute(self, number: int) -> int:
        value = c_int()
        self._call("cuDeviceGetAttribute", byref(value), number, self._device)
        return value.value

    def _call(self, name: str, *arguments: Any) -> None:
        try:
            function = getattr(self._library, name)
        except AttributeError:
            raise CudaError(f"the CUDA driver is too old: it has no {name}") from None
        function.argtypes, function.restype = SIGNATURES[name], c_int
        status = function(*arguments)
        if status != 0:
            raise CudaError(f"{name}: {self._error_name(status)}")

    def _error_name(self, status: int) -> str:
        text = c_char_p()
        function = self._library.cuGetErrorName
        function.argtypes, function.restype = SIGNATURES["cuGetErrorName"], c_int
        known = function(status, byref(text)) == 0 and text.value is not None
        return (text.value or b"").decode() if known else f"error {status}"
