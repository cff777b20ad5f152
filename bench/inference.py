"""Classification of one window on one thread: <= 0.6 ms where the CPU has VNNI (1 ms elsewhere), INT8 faster than its
own FP32, and 30 and 150 times as fast as its teachers PRIME-DP tinny and middle on their event path.

The peers run in each round in a new order, so whatever else the machine does disturbs all of them alike: the agent's
whole ``classify``, the network alone as CPU INT8, the same file on OpenVINO where it is installed, the TensorRT file on
the same CPU, and the float graph of the same layout and weights. One more line is for information: ``classify`` with
cold caches, as after minutes without a trigger. The teachers (random weights, which cost as much as any) take turns
with the student in rounds of their own: they would drive it out of the caches. Needs ``onnx``; ``torch`` for the
teachers.

    OMP_NUM_THREADS=1 python bench/inference.py [--bundle PATH] [--rounds 500] [--teacher-rounds 20]
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import random
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from support import Spread, in_turns, ratio_of, row

from agent.inference import Backend, open_bundle, open_classifier
from agent.inference.bundle import CPU_MODEL, DEFAULT_BUNDLE, TRT_MODEL
from agent.inference.onnxruntime import OnnxRuntimeBackend, open_backend
from agent.inference.selftest import golden_drift, read_golden
from agent.types import WINDOW_SAMPLES, Window
from quantize.quantise.qdq import dequantise

LIMIT_MS, LIMIT_VNNI_MS = 1.0, 0.6
FASTER = {"tinny": 30.0, "middle": 150.0}
"""How many times as fast as each teacher the student must be."""
WARM_UP = 30
CACHE_BYTES = 64 << 20


def measure(runs: dict[str, Callable[[int], object]], rounds: int) -> dict[str, np.ndarray]:
    """Milliseconds of every call, the runs interleaved in an order that changes."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    order = random.Random(0)  # a fixed order would leave each run the caches of the same predecessor
    for turn in range(-WARM_UP, rounds):
        for name in order.sample(sorted(runs), len(runs)):
            begin = time.perf_counter()
            runs[name](turn)
            if turn >= 0:
                times[name].append((time.perf_counter() - begin) * 1e3)
    return {name: np.array(values) for name, values in times.items()}


def cold(run: Callable[[int], object], rounds: int) -> np.ndarray:
    """Milliseconds of every call, with more than any cache holds rewritten before each."""
    other = np.zeros(CACHE_BYTES, np.uint8)
    times = []
    for turn in range(rounds):
        other += 1
        begin = time.perf_counter()
        run(turn)
        times.append((time.perf_counter() - begin) * 1e3)
    return np.array(times)


def teachers(student: Callable[[int], object], rounds: int) -> dict[str, Spread]:
    """Seconds of the student, and of each teacher's event path and of all its outputs on one thread, in turns."""
    import torch

    from quantize.train.prime_dp import PrimeDP
    from quantize.train.teacher_check import reference_input

    torch.set_num_threads(1)
    window = torch.from_numpy(reference_input()[:1].copy())
    calls: dict[str, Callable[[], object]] = {"student": lambda: student(0)}
    for name in FASTER:
        model = PrimeDP(name).eval()
        calls[name] = partial(model.event_logits, window)
        calls[f"{name}, all outputs"] = partial(model, window)
    with torch.inference_mode():
        in_turns(1, time.perf_counter, **calls)
        return in_turns(rounds, time.perf_counter, **calls)


def openvino(model: bytes) -> Callable[[Window], object] | None:
    """The same file on OpenVINO, on one thread; None where it is not installed."""
    if importlib.util.find_spec("openvino") is None:
        print("openvino is not installed: pip install openvino")
        return None
    from openvino import Core

    core = Core()
    compiled = core.compile_model(
        core.read_model(model), "CPU", {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"}
    )
    request, given = compiled.create_infer_request(), np.zeros((1, 3, 1, WINDOW_SAMPLES), np.float32)

    def run(window: Window) -> object:
        given[0, :, 0] = window.data
        return request.infer({0: given})

    return run


def alone(network: Backend, windows: Sequence[Window]) -> Callable[[int], object]:
    return lambda turn: network.logits(windows[turn % len(windows)].data)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=DEFAULT_BUNDLE)
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--teacher-rounds", type=int, default=20, help="0: leave the teachers out")
    options = parser.parse_args()

    bundle = open_bundle(options.bundle)
    trt = bundle.file(TRT_MODEL)
    classifier = open_classifier(bundle, "onnxruntime")
    networks = {
        "CPU INT8 file": open_backend(bundle, 1, ""),
        "FP32, same layout": OnnxRuntimeBackend(dequantise(onnx.load_from_string(trt)).SerializeToString(), "fp32"),
        "TensorRT file on ONNX Runtime": OnnxRuntimeBackend(trt, "int8"),
    }
    golden = read_golden(bundle)
    windows = golden.windows
    runs: dict[str, Callable[[int], object]] = {
        "classify(), CPU INT8": lambda turn: classifier.classify(windows[turn % len(windows)])
    }
    for name, network in networks.items():
        runs[name] = alone(network, windows)
    peer = openvino(bundle.file(CPU_MODEL))
    if peer is not None:
        runs["the same file on OpenVINO (peer)"] = lambda turn: peer(windows[turn % len(windows)])
    times = measure(runs, options.rounds)
    times["classify(), cold caches"] = cold(runs["classify(), CPU INT8"], max(20, options.rounds // 10))

    print(f"{classifier.model} ({classifier.sha256[:12]}) on {processor()}, one thread, {options.rounds} rounds")
    print("median / 99th percentile / least")
    for name, values in times.items():
        figures = f"{np.median(values):.3f} / {np.quantile(values, 0.99):.3f} / {values.min():.3f} ms"
        row(f"  {name}", figures)
    medians = {name: float(np.median(values)) for name, values in times.items()}
    ratio = medians["FP32, same layout"] / medians["CPU INT8 file"]
    whole = medians["classify(), CPU INT8"]
    limit = LIMIT_VNNI_MS if "vnni" in processor() else LIMIT_MS
    row("one window, median", f"{whole:.3f} ms", f"<= {limit} ms", whole <= limit)
    row("INT8 beside FP32", f"{ratio:.2f} times as fast", "> 1", ratio > 1)
    if peer is not None:
        beside = medians["the same file on OpenVINO (peer)"] / medians["CPU INT8 file"]
        row("ONNX Runtime beside OpenVINO, the same file", f"{beside:.2f} times as fast")
    row("golden windows drift by", f"{golden_drift(classifier, golden, CPU_MODEL):.4f}")
    met = whole <= limit and ratio > 1
    return 0 if beside_teachers(runs["CPU INT8 file"], options.teacher_rounds) and met else 1


def beside_teachers(student: Callable[[int], object], rounds: int) -> bool:
    """The teachers' rows; whether the student is as many times as fast as it must be."""
    if not rounds:
        return True
    if importlib.util.find_spec("torch") is None:
        print("torch is not installed (extra `train`): no comparison with the teachers")
        return True
    times = teachers(student, rounds)
    for name, spread in times.items():
        row(f"  in turns: {name}", spread.words(1e3, "ms", 3))
    met = True
    for name, factor in FASTER.items():
        ratio = ratio_of(times, name, "student")
        met &= ratio >= factor
        row(f"student beside {name}, event path", f"{ratio:.0f} times as fast", f">= {factor:g}", ratio >= factor)
    return met


def processor() -> str:
    """The CPU and which of the instructions that matter for INT8 it has."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    names = {key.strip(): value.strip() for key, value in fields.items()}
    flags = set(names.get("flags", names.get("Features", "")).split())
    known = [f for f in ("avx2", "avx512_vnni", "avx_vnni", "asimddp", "i8mm") if f in flags]
    return f"{names.get('model name', platform.processor() or platform.machine())} ({', '.join(known) or 'none known'})"


if __name__ == "__main__":
    sys.exit(main())
