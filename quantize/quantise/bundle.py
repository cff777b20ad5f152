"""Write a model bundle: both INT8 files from one calibration, FP16, golden windows with answers, manifest, card.

The same module, windows and texts give the same bytes. Nothing appears at the target before the agent's own loader has
opened the result and its golden windows have passed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import JsonValue

from agent.dsp.window import Preparation
from agent.inference.bundle import (
    CPU_MODEL,
    FP16_MODEL,
    GOLDEN,
    MANIFEST,
    TRT_MODEL,
    Calibration,
    FileEntry,
    GoldenSpec,
    Manifest,
    PreparationSpec,
    Quantization,
    TemperatureAt,
)
from agent.types import COMPONENTS, LABELS, WINDOW_ONSET, WINDOW_RATE_HZ, WINDOW_SAMPLES
from quantize.quantise.golden import golden_file
from quantize.quantise.infer import ExportError
from quantize.quantise.int8 import Int8Files
from quantize.quantise.place import place, sha256, tools
from quantize.quantise.qdq import half

CARD = "MODEL_CARD.md"
MAX_BYTES = 2_000_000


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
    golden, golden_spec = golden_file(files.fp32, networks, Calibration(points))
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
        files={name: FileEntry(sha256=sha256(raw), bytes=len(raw)) for name, raw in contents.items()},
        golden=golden_spec,
        quantization=Quantization(
            ranges=files.choice.method,
            cpu_weight_bits=7,
            trt_weight_bits=8,
            calibration_windows=files.calibration_windows,
        ),
        training=dict(spec.training),
        metrics=dict(spec.metrics),
        tools=tools(),
    )
    # Indented, its figures would take more bytes than the network.
    contents[MANIFEST] = (manifest.model_dump_json() + "\n").encode()
    size = sum(map(len, contents.values()))
    if size > MAX_BYTES:
        raise ExportError(f"the bundle has {size} bytes, more than {MAX_BYTES}", "use a smaller network")
    place(target, contents)
    return manifest


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
        *(f"| {name} | {len(raw)} bytes, SHA-256 `{sha256(raw)}` |" for name, raw in contents.items()),
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
