"""Bringing up TensorRT on a device: what ``talus doctor`` says of the GPU, and the report of ``doctor --jetson``.

The report answers from the device what no other machine can: does the engine build, is it right, how fast is it beside
ONNX Runtime, what do memory, temperature and power say. It is one JSON file, to be sent back.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from agent import __version__
from agent.atomic import ANYONE, replace_file
from agent.errors import ModelError
from agent.host import machine as host
from agent.inference import Backend, open_classifier
from agent.inference.onnxruntime import OnnxRuntimeBackend, open_backend
from agent.inference.selftest import read_golden
from agent.inference.tensorrt.backend import TensorRtBackend
from agent.inference.tensorrt.child import jetpack_release, probe
from agent.inference.tensorrt.fallback import PRECISIONS, EngineSettings, PrecisionFallback, PrecisionStep, best_engine
from agent.types import format_ns

if TYPE_CHECKING:
    from agent.inference.bundle import Bundle

SCHEMA = "talus/jetson-report/1"
ROUNDS = 300
WARM_UP = 20
_ROOT = Path("/")
Windows: TypeAlias = Sequence[NDArray[np.float32]]


def serving(bundle: Bundle, engine_settings: EngineSettings) -> str:
    """What TensorRT does here with the engines that are there; golden windows run again.

    Raises:
        ModelError: no GPU, no TensorRT, no engine, or a wrong one.
    """
    served = best_engine(bundle, engine_settings)
    served.backend.close()
    higher = f" ({'; '.join(served.reasons)})" if served.reasons else ""
    return f"{served.platform}, {served.classifier.precision}: golden windows agree within {served.drift:.4f}{higher}"


def bring_up(
    bundle: Bundle,
    engine_settings: EngineSettings,
    say: Callable[[str], None],
    *,
    fp32: bytes | None = None,
    rounds: int = ROUNDS,
) -> dict[str, Any]:
    """Build and measure everything anew, and return the report; what fails is part of it.

    ``fp32`` is the float network as an ONNX file, for comparison only: it is timed on both runtimes.
    """
    root = engine_settings.places.root
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "time": format_ns(time.time_ns()),
        "talus": __version__,
        "model": {"name": bundle.manifest.name, "version": bundle.manifest.version, "sha256": bundle.sha256},
        "machine": machine(root),
        "before": sensors(root),
        "runs": [],
    }
    say(f"{report['machine']['board'] or platform.machine()}, L4T {report['machine']['l4t']}")

    def add(backend: str, precision: str, measure: Callable[[dict[str, Any]], None]) -> None:
        run: dict[str, Any] = {"backend": backend, "precision": precision}
        try:
            measure(run)
        except (ModelError, OSError) as error:
            run["error"] = error.message if isinstance(error, ModelError) else str(error)
        report["runs"].append(run)
        say(_line(run))

    golden = read_golden(bundle).windows
    windows = [window.data for window in golden]
    add("onnxruntime", "int8", lambda run: run.update(latency(open_backend(bundle, 1, ""), windows, rounds)))
    if fp32 is not None:
        add("onnxruntime", "fp32", lambda run: run.update(latency(OnnxRuntimeBackend(fp32, "fp32"), windows, rounds)))
    try:
        found = probe(engine_settings.places)
    except ModelError as error:
        report["tensorrt"] = {"error": error.message}
        say(f"tensorrt: {error.message}")
        return report
    report["tensorrt"] = {name: getattr(found, name) for name in found.__slots__}
    say(str(found))
    fallback = PrecisionFallback(bundle, engine_settings, found, say)
    baseline = open_classifier(bundle, "onnxruntime")

    def climbed(step: PrecisionStep, run: dict[str, Any]) -> None:
        begin = time.monotonic()
        served = fallback.open(step)
        run["ready_s"] = round(time.monotonic() - begin, 1)
        run["golden_drift"] = served.drift
        run["tolerance"] = bundle.manifest.golden.files[step.file].tolerance
        labels = [(served.classifier.classify(w).label, baseline.classify(w).label) for w in golden]
        run["labels_agree"] = sum(first == second for first, second in labels) / len(labels)
        _measure(served.backend, run, windows, rounds, root)

    for step in PRECISIONS:
        add("tensorrt", step.precision, partial(climbed, step))
    if fp32 is not None:
        add("tensorrt", "fp32", lambda run: _measure(fallback.load(fp32, "fp32"), run, windows, rounds, root))
    report["after"] = sensors(root)
    return report


def _measure(backend: TensorRtBackend, run: dict[str, Any], windows: Windows, rounds: int, root: Path) -> None:
    """Latency through the socket, as the agent sees it, and in the child alone; then the backend is closed."""
    try:
        run["child"] = backend.timing
        run.update(latency(backend, windows, rounds))
        run["child_rss_mb"] = round(backend.rss_mb(), 1)
        run["sensors"] = sensors(root)
    finally:
        backend.close()


def latency(backend: Backend, windows: Windows, rounds: int) -> dict[str, float]:
    """Milliseconds of one window after the other: median, 99th percentile, largest."""
    times = []
    for turn in range(-WARM_UP, rounds):
        begin = time.perf_counter()
        backend.logits(windows[turn % len(windows)])
        if turn >= 0:
            times.append((time.perf_counter() - begin) * 1e3)
    median, high = np.percentile(times, [50, 99])
    return {"median_ms": round(float(median), 4), "p99_ms": round(float(high), 4), "max_ms": round(max(times), 4)}


def machine(root: Path = _ROOT) -> dict[str, Any]:
    """What the kernel and NVIDIA's tools say of the board."""
    return {
        "board": host.text_of(root / "proc/device-tree/model").rstrip("\0") or None,
        "l4t": jetpack_release(root),
        "kernel": platform.release(),
        "arch": platform.machine(),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "memory_mb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20,
        "power_mode": _output("nvpmodel", "-q"),
    }


def sensors(root: Path = _ROOT) -> dict[str, Any]:
    """Temperatures (degrees Celsius), power rails (W) and free memory (MB), as far as the kernel shows them."""
    memory = host.memory_mb(root / "proc")
    return {
        "temperatures_c": host.temperatures_c(root / "sys/class/thermal"),
        "power_w": host.power_w(root / "sys/class/hwmon"),
        "memory_available_mb": None if memory is None else memory[0],
    }


def write_report(path: Path, report: dict[str, Any]) -> None:
    """
    Raises:
        OSError: it cannot be written.
    """
    replace_file(path, json.dumps(report, indent=2).encode() + b"\n", mode=ANYONE)


def _line(run: dict[str, Any]) -> str:
    name = f"{run['backend']} {run['precision']}"
    if "error" in run:
        return f"{name}: {run['error']}"
    right = f", golden windows off by {run['golden_drift']:.4f}" if "golden_drift" in run else ""
    return f"{name}: median {run['median_ms']} ms, 99 % {run['p99_ms']} ms{right}"


def _output(*command: str) -> str | None:
    """What a tool prints; None where it is not installed or fails."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip()[:500] or None
