"""Write a model bundle: both INT8 files from one calibration, FP16, golden windows with answers, manifest, card.

The same module, windows and texts give the same bytes. Nothing appears at the target before the agent's own loader has
opened the result and its golden windows have passed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from pydantic import JsonValue

import agent
from agent.dsp.window import Preparation
from agent.inference import open_classifier
from agent.inference.bundle import (
    CPU_MODEL,
    FP16_MODEL,
    GOLDEN,
    MANIFEST,
    TRT_MODEL,
    FileEntry,
    GoldenFile,
    GoldenSpec,
    Manifest,
    PreparationSpec,
    Quantization,
    TemperatureAt,
    open_bundle,
    pack,
)
from agent.inference.calibration import Calibration
from agent.inference.selftest import SCALE
from agent.types import COMPONENTS, LABELS, WINDOW_ONSET, WINDOW_RATE_HZ, WINDOW_SAMPLES
from quantize import infer
from quantize.golden import golden_windows, write_golden
from quantize.graph import ExportError
from quantize.half import half
from quantize.int8 import Int8Files

CARD = "MODEL_CARD.md"
MAX_BYTES = 1_500_000
TOLERANCE = {CPU_MODEL: 0.02, TRT_MODEL: 0.05, FP16_MODEL: 0.02}
"""Least tolerance, in probability. TensorRT rounds and fuses in ways of its own, which cannot be measured here."""
MOST_LOST = 0.2
"""Golden windows that differ by more between FP32 and INT8 mean that the network does not survive quantisation."""


@dataclass(frozen=True, slots=True)
class BundleSpec:
    """What the manifest says beside the files. ``temperature``: seconds after the onset to temperature; ``thresholds``:
    label to the probability below which the verdict abstains; ``card``: Markdown that follows the card's facts."""

    name: str
    version: str
    preparation: Preparation
    temperature: Mapping[float, float]
    thresholds: Mapping[str, float]
    training: Mapping[str, JsonValue]
    metrics: Mapping[str, JsonValue]
    card: str


def write_bundle(target: Path, files: Int8Files, spec: BundleSpec) -> Manifest:
    """Write the bundle folder ``target``, replacing one that is there, and return its manifest.

    Raises:
        ExportError: INT8 strays too far from FP32 on the golden windows, or the bundle is too large.
        BundleError, BackendError: the agent refuses the result.
    """
    points = tuple(TemperatureAt(seconds=s, temperature=t) for s, t in sorted(spec.temperature.items()))
    networks = {CPU_MODEL: files.cpu, TRT_MODEL: files.trt, FP16_MODEL: half(files.fp32)}
    golden, golden_spec = _golden(files.fp32, networks, Calibration(points))
    contents = {name: model.SerializeToString(deterministic=True) for name, model in networks.items()}
    contents[GOLDEN] = golden
    contents[CARD] = _card(files, spec, contents, golden_spec).encode()
    manifest = Manifest(
        format="talus/bundle/1",
        name=spec.name,
        version=spec.version,
        labels=LABELS,
        rate_hz=WINDOW_RATE_HZ,
        samples=WINDOW_SAMPLES,
        onset_sample=WINDOW_ONSET,
        components=COMPONENTS,
        preparation=PreparationSpec(
            highpass_hz=spec.preparation.highpass_hz, highpass_order=spec.preparation.highpass_order
        ),
        temperature=points,
        thresholds=dict(spec.thresholds),
        files={name: FileEntry(sha256=_sha256(raw), bytes=len(raw)) for name, raw in contents.items()},
        golden=golden_spec,
        quantization=Quantization(
            ranges=files.choice.method,
            cpu_weight_bits=7,
            trt_weight_bits=8,
            calibration_windows=files.calibration_windows,
        ),
        training=dict(spec.training),
        metrics=dict(spec.metrics),
        tools=_tools(),
    )
    # Indented, its figures would take more bytes than the network.
    contents[MANIFEST] = (manifest.model_dump_json() + "\n").encode()
    size = sum(map(len, contents.values()))
    if size > MAX_BYTES:
        raise ExportError(f"the bundle has {size} bytes, more than {MAX_BYTES}", "use a smaller network")
    _place(target, contents)
    return manifest


def zip_bundle(folder: Path, target: Path) -> None:
    """Pack the bundle ``folder`` as a zip whose bytes depend on its contents only; atomic.

    Raises:
        BundleError: the folder is not a bundle that the agent accepts.
    """
    scratch = target.with_name(target.name + ".tmp")
    scratch.write_bytes(pack(folder))
    scratch.replace(target)


def _golden(
    fp32: onnx.ModelProto, networks: Mapping[str, onnx.ModelProto], calibration: Calibration
) -> tuple[bytes, GoldenSpec]:
    """``golden.npz``, and what the manifest says of it.

    The tolerance is twice what ONNX Runtime's own optimisations change, and at least ``TOLERANCE``.
    """
    stored, seconds = golden_windows()
    windows = stored.astype(np.float32) / np.float32(SCALE)

    def answers(model: onnx.ModelProto, optimise: bool) -> NDArray[np.float64]:
        rows = zip(infer.logits(model, windows, optimise), seconds, strict=True)
        return np.stack([calibration.probabilities(row, float(s)) for row, s in rows])

    exact = answers(fp32, optimise=False)
    written, judged = {}, {}
    for name, model in networks.items():
        written[name] = answers(model, optimise=False)
        drift = float(np.abs(answers(model, optimise=True) - written[name]).max())
        lost = float(np.abs(written[name] - exact).max())
        if lost > MOST_LOST:
            raise ExportError(
                f"{name} differs from FP32 by {lost:.2f} in probability on a golden window",
                "calibrate with more windows, or train with less extreme weights",
            )
        tolerance = max(TOLERANCE[name], float(np.ceil(2 * drift * 1000) / 1000))
        judged[name] = GoldenFile(tolerance=tolerance, from_fp32=round(lost, 4))
    return write_golden(stored, seconds, written), GoldenSpec(windows=len(stored), files=judged)


def _card(files: Int8Files, spec: BundleSpec, contents: Mapping[str, bytes], golden: GoldenSpec) -> str:
    parameters = sum(int(np.prod(weight.dims)) for weight in files.fp32.graph.initializer)
    differences = ", ".join(f"{method} {value:.5f}" for method, value in files.choice.differences.items())
    highpass = spec.preparation.highpass_hz
    filtered = f"high-pass {highpass} Hz (order {spec.preparation.highpass_order})" if highpass else "no filter"
    lines = [
        f"# {spec.name} {spec.version}",
        "",
        "| | |",
        "|---|---|",
        f"| Labels | {', '.join(LABELS)} |",
        f"| Input | {len(COMPONENTS)} x {WINDOW_SAMPLES} samples ({', '.join(COMPONENTS)}) at {WINDOW_RATE_HZ} Hz, "
        f"onset at sample {WINDOW_ONSET}, {filtered} |",
        f"| Parameters | {parameters} |",
        *(f"| {name} | {len(raw)} bytes, SHA-256 `{_sha256(raw)}` |" for name, raw in contents.items()),
        f"| INT8 ranges | {files.choice.method}, from {files.calibration_windows} windows |",
        f"| Mean difference in probability between INT8 and FP32, by method | {differences} |",
        *(
            f"| {name} on the golden windows | at most {entry.from_fp32} from FP32 in probability; "
            f"a backend may differ by {entry.tolerance} from the file as written |"
            for name, entry in golden.files.items()
        ),
        "",
        "Weights in the CPU file have seven bits: with eight, uint8 by int8 products saturate on x86 processors",
        "without VNNI. The TensorRT file has eight. Activations have eight in both.",
        "",
        spec.card.strip(),
        "",
    ]
    return "\n".join(lines)


def _place(target: Path, contents: Mapping[str, bytes]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        new, old = scratch / "new", scratch / "old"
        new.mkdir()
        for name, raw in contents.items():
            with (new / name).open("wb") as file:
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
        open_classifier(open_bundle(new), "onnxruntime")
        if target.exists():
            target.rename(old)
        try:
            new.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
    finally:
        shutil.rmtree(scratch)


def _tools() -> dict[str, str]:
    """Return the versions of Talus and of the packages that may have made the files, of those that are installed."""
    found = {"talus": agent.__version__}
    for name in ("numpy", "onnx", "onnxruntime", "torch"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()
