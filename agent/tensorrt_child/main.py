"""``probe``, ``build`` and ``serve``: the three things a child process does. Each speaks JSON lines on descriptor 1.

    {"stage": "..."}        what is about to happen: the parent names it if this process dies there
    {"result": {...}}       done (probe, build), or ready (serve)
    {"error": "..."}        it cannot be done

``serve`` then answers windows: 122,880 bytes in (float32 ``[3, 10240]``, the machine's byte order), and out one byte,
0 followed by 20 bytes (float32 ``[5]``), or 1 followed by a JSON line with the error.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import os
import resource
import signal
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from agent.tensorrt_child import api
from agent.tensorrt_child.cuda import CudaError, Driver

INPUT_SHAPE, OUTPUT_SHAPE = [1, 3, 1, 10240], [1, 5]
INPUT_BYTES, OUTPUT_BYTES = 4 * 3 * 10240, 4 * 5
TRIALS = 20
WORKSPACE_MB = 256
"""Scratch memory that TensorRT may use to try its kernels; the network needs a tenth."""
PR_SET_PDEATHSIG = 1


class RefusedError(Exception):
    """It cannot be done; the text is for the operator."""


class Channel:
    """The parent's end is a socket; whatever a library prints goes to standard error instead."""

    def __init__(self) -> None:
        self._out = io.FileIO(os.dup(1), "wb")
        os.dup2(2, 1)
        self.input = io.FileIO(0, "rb", closefd=False)

    def say(self, **message: Any) -> None:
        self.write(json.dumps(message).encode() + b"\n")

    def stage(self, text: str) -> None:
        self.say(stage=text)

    def write(self, raw: bytes) -> None:
        self._out.write(raw)


def main(arguments: Sequence[str]) -> int:
    """``arguments``: the parent's process id, the niceness to take, then the command and its own arguments."""
    channel = Channel()
    parent, niceness, command, rest = int(arguments[0]), int(arguments[1]), arguments[2], arguments[3:]
    commands: dict[str, Callable[..., None]] = {"probe": probe, "build": build, "serve": serve}
    _yield_to_the_agent(parent, niceness)
    try:
        commands[command](channel, *rest)
    except (RefusedError, CudaError, OSError) as error:
        channel.say(error=str(error))
        return 1
    except ImportError as error:
        channel.say(error=f"the bindings cannot be imported: {error}")
        return 1
    except Exception as error:  # noqa: BLE001 - pybind11 raises what it likes; the parent must hear of it
        channel.say(error=f"{type(error).__name__}: {error}")
        return 1
    return 0


def _yield_to_the_agent(parent: int, niceness: int) -> None:
    """Leave no core dump, be the first to go when memory is short, and, to build, take only time that is left over."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123
        file.write("1000")
    if niceness:
        os.setpriority(os.PRIO_PROCESS, 0, niceness)
        # A server ends when its socket closes; a builder would go on for minutes. The signal comes when the thread
        # that started this process ends, and that thread waits for it.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            raise SystemExit(1)


def probe(channel: Channel) -> None:
    """Which GPU and which TensorRT there are, and whether its builder and runtime come up."""
    channel.stage("looking for a GPU")
    driver = Driver()
    facts = driver.facts()
    channel.stage("importing TensorRT")
    trt = api.load()
    facts["tensorrt"] = api.version(trt)
    facts["python"] = "{}.{}".format(*sys.version_info[:2])
    facts["strongly_typed"] = api.strongly_typed(trt)
    driver.start()
    channel.stage("opening TensorRT's runtime")
    logger = _logger(trt)
    if trt.Runtime(logger) is None:
        raise RefusedError("TensorRT has no runtime for this GPU")
    channel.stage("opening TensorRT's builder")
    if trt.Builder(logger) is None:
        raise RefusedError("TensorRT has no builder for this GPU")
    channel.say(result=facts)


def build(channel: Channel, model: str, engine: str, timing: str, precision: str) -> None:
    """Build ``engine`` from the ONNX file ``model``; read the timing cache ``timing`` and write it anew."""
    channel.stage("importing TensorRT")
    trt = api.load()
    Driver().start()
    logger = _logger(trt)
    builder = trt.Builder(logger)
    if builder is None:
        raise RefusedError("TensorRT has no builder for this GPU")
    network = builder.create_network(api.network_flags(trt))
    parser = trt.OnnxParser(network, logger)
    channel.stage("reading the network")
    if not parser.parse(_read(model)):
        errors = [parser.get_error(index).desc() for index in range(parser.num_errors)]
        raise RefusedError(
            "TensorRT's parser refuses the network: {}".format("; ".join(errors[:3]) or "no reason given")
        )
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_MB << 20)
    flag = api.precision_flag(trt, precision)
    if flag is not None:
        config.set_flag(flag)
    tf32 = getattr(trt.BuilderFlag, "TF32", None)
    if tf32 is not None:
        # rounding to ten bits would make what stays in float differ more from the golden answers than INT8 does
        config.clear_flag(tf32)
    config.set_timing_cache(config.create_timing_cache(_read_if_there(timing)), False)
    channel.stage("building the engine")
    begin = time.monotonic()
    made = builder.build_serialized_network(network, config)
    if made is None:
        raise RefusedError("TensorRT built no engine; its last words are in the log")
    raw = api.to_bytes(made)
    with open(engine, "wb") as file:  # noqa: PTH123
        file.write(raw)
    cache = config.get_timing_cache()
    if cache is not None:
        with open(timing, "wb") as file:  # noqa: PTH123
            file.write(api.to_bytes(cache.serialize()))
    channel.say(result={"seconds": round(time.monotonic() - begin, 1), "bytes": len(raw)})


def serve(channel: Channel, engine: str, offset: str) -> None:
    """Load the engine that begins at byte ``offset`` of the file, then answer windows until the socket closes."""
    channel.stage("importing TensorRT")
    trt = api.load()
    driver = Driver()
    stream = driver.start()
    channel.stage("loading the engine")
    runner = EngineRunner(trt, driver, stream, _read(engine)[int(offset) :])
    channel.stage("running the engine for the first time")
    runner.choose()
    channel.say(result={"graph": runner.graph is not None, "direct_ms": runner.direct_ms, "graph_ms": runner.graph_ms})
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    while _fill(channel.input, runner.window):
        try:
            runner.run()
        except (RefusedError, CudaError) as error:
            channel.write(b"\1")
            channel.say(error=str(error))
            return
        channel.write(b"\0" + bytes(runner.logits))


class EngineRunner:
    """One engine with its buffers. ``window`` is written and ``logits`` read in place: page-locked memory."""

    def __init__(self, trt: api.Module, driver: Driver, stream: int, raw: bytes) -> None:
        self._driver, self._stream = driver, stream
        runtime = trt.Runtime(_logger(trt))
        engine = None if runtime is None else runtime.deserialize_cuda_engine(raw)
        context = None if engine is None else engine.create_execution_context()
        if engine is None or context is None:
            raise RefusedError("TensorRT cannot load the engine: made by another version or for another GPU")
        self._keep = (runtime, engine)  # the context refers to them
        self._context = context
        source, target = _tensors(trt, engine)
        self._device_in, self._device_out = driver.allocate(INPUT_BYTES), driver.allocate(OUTPUT_BYTES)
        self._host_in, self._host_out = driver.allocate_host(INPUT_BYTES), driver.allocate_host(OUTPUT_BYTES)
        self.window = memoryview((ctypes.c_char * INPUT_BYTES).from_address(self._host_in)).cast("B")
        self.logits = memoryview((ctypes.c_char * OUTPUT_BYTES).from_address(self._host_out)).cast("B")
        self.window[:] = bytes(INPUT_BYTES)
        for name, address in ((source, self._device_in), (target, self._device_out)):
            if not context.set_tensor_address(name, address):
                raise RefusedError(f"TensorRT refuses the buffer of {name}")
        self.graph: int | None = None
        self.direct_ms: float | None = None
        self.graph_ms: float | None = None

    def run(self) -> None:
        """From ``window`` to ``logits``."""
        if self.graph is not None:
            self._driver.launch(self.graph)
        else:
            self._enqueue()
        self._driver.wait()

    def choose(self) -> None:
        """Warm up, then keep to whichever is faster here: a CUDA graph, or one call after the other."""
        self.run()
        self.direct_ms = self._time()
        try:
            self._driver.begin_capture()
            try:
                self._enqueue()
            finally:
                graph = self._driver.end_capture()
            self.graph = graph
            self.run()
            self.graph_ms = self._time()
        except (CudaError, RefusedError):
            self.graph = None
            self.run()
        if self.graph_ms is not None and self.graph_ms > self.direct_ms:
            self.graph = None

    def _enqueue(self) -> None:
        self._driver.copy_in(self._device_in, self._host_in, INPUT_BYTES)
        if not self._context.execute_async_v3(self._stream):
            raise RefusedError("TensorRT could not start the network")
        self._driver.copy_out(self._host_out, self._device_out, OUTPUT_BYTES)

    def _time(self) -> float:
        times = []
        for _ in range(TRIALS):
            begin = time.perf_counter()
            self.run()
            times.append(time.perf_counter() - begin)
        return round(statistics.median(times) * 1e3, 4)


def _tensors(trt: api.Module, engine: api.Engine) -> tuple[str, str]:
    """The names of the input and the output, if they are what Talus sends and expects."""
    names: list[str] = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    found = []
    for mode, shape in ((trt.TensorIOMode.INPUT, INPUT_SHAPE), (trt.TensorIOMode.OUTPUT, OUTPUT_SHAPE)):
        fitting = [
            name
            for name in names
            if engine.get_tensor_mode(name) == mode
            and list(engine.get_tensor_shape(name)) == shape
            and engine.get_tensor_dtype(name) == trt.DataType.FLOAT
        ]
        found += fitting
    if len(found) != 2 or len(names) != 2:
        shapes = [f"{name} {list(engine.get_tensor_shape(name))}" for name in names]
        raise RefusedError("the engine's tensors are not one window and its logits: {}".format(", ".join(shapes)))
    return found[0], found[1]


def _logger(trt: api.Module) -> object:
    return trt.Logger(trt.Logger.WARNING)


def _fill(source: io.FileIO, target: memoryview) -> bool:
    """Read exactly one window; False at the end."""
    have = 0
    while have < len(target):
        count = source.readinto(target[have:])
        if not count:
            return False
        have += count
    return True


def _read(path: str) -> bytes:
    with open(path, "rb") as file:  # noqa: PTH123
        return file.read()


def _read_if_there(path: str) -> bytes:
    try:
        return _read(path)
    except FileNotFoundError:
        return b""
