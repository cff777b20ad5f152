"""Proof of a bundle, step by step: teacher, student in FP32, INT8 for CPUs, INT8 for TensorRT (computed by ONNX
Runtime). What each step changes in the answers is held against the tolerances that the manifest states.

Besides: every hash (on opening), the weights of all files against each other, the golden answers recomputed as each
file is written, the rules of TensorRT, and that every convolution of the CPU file runs in INT8. Where hashes were made
to fit a change, one step of one INT8 weight in one file still shows; a change made in all files alike shows once it
moves an answer to a golden window by ``AS_WRITTEN``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from pydantic import JsonValue

from agent.errors import ModelError
from agent.inference import open_classifier
from agent.inference.bundle import CPU_MODEL, FP16_MODEL, TRT_MODEL, Bundle, Calibration, open_bundle
from agent.inference.selftest import golden_drift, read_golden
from quantize.data.records import LENGTHS_S, Record
from quantize.data.views import VIEWS, view_windows
from quantize.quantise import infer
from quantize.quantise.agreement import disagreements
from quantize.quantise.int8 import unfused_convolutions
from quantize.quantise.qdq import widen
from quantize.quantise.rules import RULES, lint
from quantize.study.evaluate import Logits
from quantize.study.tables import table

AS_WRITTEN = 1e-3
"""Golden answers computed anew, step by step in float: what another processor's order of sums may change."""
NETWORKS = (CPU_MODEL, TRT_MODEL, FP16_MODEL)
Probabilities = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What a step may change: mean difference in probability, share of windows with the same answer (at least), and
    share of windows right that is lost (at most)."""

    mean: float
    same: float
    lost: float


STEPS: Mapping[tuple[str, str], Tolerance] = {
    ("teacher", "student"): Tolerance(mean=0.12, same=0.70, lost=0.02),
    ("student", "CPU INT8"): Tolerance(mean=0.01, same=0.97, lost=0.005),
    ("CPU INT8", "TensorRT file"): Tolerance(mean=0.01, same=0.97, lost=0.005),
}
"""Default tolerances, which a build states in its manifest under ``metrics.tolerances``."""


@dataclass(frozen=True, slots=True)
class Line:
    """One check: what, its result in words, whether it holds."""

    name: str
    result: str
    holds: bool


def stated_tolerances() -> dict[str, JsonValue]:
    """``STEPS`` as a manifest states them."""
    return {f"{a} -> {b}": {"mean": t.mean, "same": t.same, "lost": t.lost} for (a, b), t in STEPS.items()}


def verify(path: Path, records: Sequence[Record], teacher: Logits | None = None) -> list[Line]:
    """Every check of the bundle at ``path`` on ``records`` (validation data; without any, on its golden windows).

    Raises:
        BundleError: a file is not the one whose hash the manifest states, or the bundle is not for this agent.
    """
    bundle = open_bundle(path)
    models = {name: onnx.load_from_string(bundle.file(name)) for name in NETWORKS if name in bundle.files}
    lines = [Line("SHA-256 of every file", f"{len(bundle.files)} files as the manifest says", True)]
    lines += _same_network(models)
    lines += _golden(bundle, models)
    lines += _runtimes(models)
    lines += _drift(bundle, models, records, teacher)
    return lines


def text(lines: Sequence[Line]) -> str:
    """The lines as a table, and the verdict."""
    rows = [(line.name, line.result, "holds" if line.holds else "BREACH") for line in lines]
    breaches = sum(not line.holds for line in lines)
    verdict = f"{breaches} of {len(lines)} checks are breached" if breaches else f"all {len(lines)} checks hold"
    return "\n".join([*table(("check", "result", ""), rows), "", verdict])


def _same_network(models: Mapping[str, onnx.ModelProto]) -> Iterator[Line]:
    found = disagreements(models)
    result = "; ".join(map(str, found[:3])) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
    yield Line("one network in every file", result or "no weight beyond its rounding", not found)


def _golden(bundle: Bundle, models: Mapping[str, onnx.ModelProto]) -> Iterator[Line]:
    golden = read_golden(bundle)
    windows = np.stack([window.data for window in golden.windows])
    calibration = Calibration(bundle.manifest.temperature)
    for name, model in models.items():
        if name not in golden.answers:
            yield Line(f"golden answers of {name}, as written", "there are none, so no backend may serve it", False)
            continue
        logits = infer.logits(model, windows, optimise=False)
        pairs = zip(logits, golden.windows, strict=True)
        anew = np.stack([calibration.probabilities(row, window.seconds) for row, window in pairs])
        drift = float(np.abs(anew - golden.answers[name]).max())
        holds = drift <= AS_WRITTEN  # false for NaN too
        yield Line(f"golden answers of {name}, as written", f"{drift:.5f} of at most {AS_WRITTEN:g}", holds)
    try:
        drift = golden_drift(open_classifier(bundle, "onnxruntime"), golden, CPU_MODEL)
        allowed = bundle.manifest.golden.files[CPU_MODEL].tolerance
        yield Line("golden answers through the agent", f"{drift:.4f} of at most {allowed:g}", drift <= allowed)
    except ModelError as error:
        yield Line("golden answers through the agent", error.message, False)


def _runtimes(models: Mapping[str, onnx.ModelProto]) -> Iterator[Line]:
    if TRT_MODEL in models:
        findings = lint(models[TRT_MODEL])
        result = "; ".join(map(str, findings[:2])) or f"keeps all {len(RULES)}"
        yield Line("rules of TensorRT", result, not findings)
    if CPU_MODEL not in models:
        yield Line("convolutions in INT8 on a CPU", f"there is no {CPU_MODEL}", False)
        return
    floats = unfused_convolutions(models[CPU_MODEL])
    yield Line("convolutions in INT8 on a CPU", f"in float: {', '.join(floats)}" if floats else "all", not floats)


def _drift(
    bundle: Bundle, models: Mapping[str, onnx.ModelProto], records: Sequence[Record], teacher: Logits | None
) -> Iterator[Line]:
    """What each step changes, on the windows of every record, view and length."""
    windows, seconds, labels = _windows(bundle, records)
    where = f"{len(records)} records, {len(windows)} windows" if records else f"{len(windows)} golden windows only"
    runs: dict[str, Logits] = {"teacher": teacher} if teacher is not None else {}
    if FP16_MODEL in models:
        runs["student"] = _function(widen(models[FP16_MODEL]))
    if CPU_MODEL in models:
        runs["CPU INT8"] = _function(models[CPU_MODEL])
    if TRT_MODEL in models:
        runs["TensorRT file"] = _function(models[TRT_MODEL])
    calibration = Calibration(bundle.manifest.temperature)
    answers = {name: _answers(run, windows, seconds, calibration) for name, run in runs.items()}
    tolerances = _tolerances(bundle)
    for first, second in pairwise(answers):
        limit = tolerances.get((first, second), STEPS.get((first, second)))
        if limit is not None:
            yield _step(f"{first} -> {second} ({where})", answers[first], answers[second], labels, limit)


def _step(
    name: str, first: Probabilities, second: Probabilities, labels: NDArray[np.int64] | None, limit: Tolerance
) -> Line:
    apart = np.abs(first - second)
    mean, same = float(apart.mean()), float((first.argmax(1) == second.argmax(1)).mean())
    result = f"mean {mean:.4f} (at most {limit.mean:g}), largest {apart.max():.3f}, "
    result += f"same answer {100 * same:.1f} % (at least {100 * limit.same:g})"
    holds = mean <= limit.mean and same >= limit.same
    if labels is not None:
        right = [float((p.argmax(1) == labels).mean()) for p in (first, second)]
        result += f", right {100 * right[0]:.1f} -> {100 * right[1]:.1f} % (may lose {100 * limit.lost:g})"
        holds = holds and right[0] - right[1] <= limit.lost
    return Line(name, result, holds)


def _windows(
    bundle: Bundle, records: Sequence[Record]
) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.int64] | None]:
    """Windows, their seconds, their labels (None: golden windows)."""
    if not records:
        golden = read_golden(bundle).windows
        return np.stack([w.data for w in golden]), np.array([w.seconds for w in golden]), None
    made = np.concatenate(
        [view_windows(view, record, LENGTHS_S, bundle.preparation) for record in records for view in VIEWS]
    )
    seconds = np.tile(np.array(LENGTHS_S), len(records) * len(VIEWS))
    return made, seconds, np.repeat([record.row.index for record in records], len(LENGTHS_S) * len(VIEWS))


def _function(model: onnx.ModelProto) -> Logits:
    run = infer.runner(model)
    return lambda windows: run(windows).astype(np.float64)


def _answers(
    run: Logits, windows: NDArray[np.float32], seconds: NDArray[np.float64], calibration: Calibration
) -> Probabilities:
    rows = zip(run(windows), seconds, strict=True)
    return np.stack([calibration.probabilities(row, float(s)) for row, s in rows])


def _tolerances(bundle: Bundle) -> dict[tuple[str, str], Tolerance]:
    stated: Any = bundle.manifest.metrics.get("tolerances", {})
    made = {}
    for name, limits in stated.items():
        first, _, second = name.partition(" -> ")
        made[first, second] = Tolerance(**limits)
    return made
