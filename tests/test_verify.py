"""``verify`` finds a changed weight in any file, also where the manifest's hash was made to fit the change."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from inference_support import edit_manifest, replace_file, small_bundle, small_network
from onnx import numpy_helper
from quantize_support import write_folder

from agent.inference import open_bundle
from agent.inference.bundle import CPU_MODEL, FP16_MODEL, TRT_MODEL
from quantize.cli import BUNDLE, main
from quantize.quantise import infer
from quantize.quantise.agreement import disagreements
from quantize.quantise.golden import golden_windows
from quantize.quantise.qdq import half, widen
from quantize.quantise.verify import NETWORKS, STEPS, Line, text, verify

LOOSE = {f"{a} -> {b}": {"mean": 0.05, "same": 0.7, "lost": 0.2} for a, b in STEPS}
"""Random weights lose more to INT8 than a trained network does."""


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_bundle(tmp_path_factory.mktemp("original"), metrics={"tolerances": LOOSE})


@pytest.fixture
def bundle(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "bundle"))


def breaches(lines: list[Line]) -> list[str]:
    return [line.name for line in lines if not line.holds]


def change(bundle: Path, name: str, kind: str, amount: float, place: int = 7) -> None:
    """Change one number of the first constant whose name holds ``kind``; the manifest's hash is made to fit."""
    model = onnx.load(bundle / name)
    weight = next(w for w in model.graph.initializer if kind in w.name and w.dims)
    values = numpy_helper.to_array(weight).copy()
    flat = values.reshape(-1)
    if values.dtype == np.int8:
        flat[place] = flat[place] + 1 if flat[place] < 60 else flat[place] - 1
    else:
        flat[place] = flat[place] * (1 + amount)
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    replace_file(bundle, name, model.SerializeToString(deterministic=True))


def test_an_untouched_bundle_holds(bundle: Path) -> None:
    lines = verify(bundle, [])
    assert breaches(lines) == []
    assert any("golden windows only" in line.name for line in lines)
    assert "all" in text(lines).splitlines()[-1]


@pytest.mark.parametrize("name", NETWORKS)
def test_one_changed_byte_is_refused(bundle: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    raw = bytearray((bundle / name).read_bytes())
    raw[len(raw) // 2] ^= 1
    (bundle / name).write_bytes(raw)
    assert main(["verify", str(bundle), "--golden"]) == 1
    assert name in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "kind", "amount"),
    [
        (CPU_MODEL, "block.a.weight.q", 0),
        (CPU_MODEL, "head.weight", 1e-3),
        (CPU_MODEL, "block.a.weight.scale", 1e-2),
        (TRT_MODEL, "block.a.weight.q", 0),
        (TRT_MODEL, "block.a.bias", 1e-2),
        (FP16_MODEL, "head.weight", 2e-3),
        (FP16_MODEL, "block.a.weight", 2.0),
    ],
)
def test_one_weight_changed_by_one_step_is_found_though_the_hash_fits(
    bundle: Path, name: str, kind: str, amount: float, capsys: pytest.CaptureFixture[str]
) -> None:
    change(bundle, name, kind, amount)
    lines = verify(bundle, [])
    assert "one network in every file" in breaches(lines)
    assert name in next(line.result for line in lines if line.name == "one network in every file")
    assert main(["verify", str(bundle), "--golden"]) == 1
    assert "BREACH" in capsys.readouterr().out


def test_a_change_made_in_every_file_alike_shows_in_the_golden_answers(bundle: Path) -> None:
    """A weight of the last layer, by a quarter: the files still agree with each other, but not with their answers."""
    for name in NETWORKS:
        model = onnx.load(bundle / name)
        weight = next(w for w in model.graph.initializer if w.name == "head.weight")
        values = numpy_helper.to_array(weight).copy()
        largest = np.unravel_index(np.abs(values).argmax(), values.shape)
        values[largest] *= 1.25
        weight.CopyFrom(numpy_helper.from_array(values, weight.name))
        replace_file(bundle, name, model.SerializeToString(deterministic=True))
    found = breaches(verify(bundle, []))
    assert "one network in every file" not in found
    assert {f"golden answers of {name}, as written" for name in NETWORKS} <= set(found)


def test_a_network_without_golden_answers_is_a_breach(bundle: Path) -> None:
    """No backend would serve it; that it was passed over here looked like a check that holds."""

    def forget(manifest: dict[str, Any]) -> None:
        del manifest["golden"]["files"][TRT_MODEL]

    edit_manifest(bundle, forget)
    assert breaches(verify(bundle, [])) == [f"golden answers of {TRT_MODEL}, as written"]


def test_a_bundle_without_a_network_for_cpus_is_a_breach(bundle: Path) -> None:
    def forget(manifest: dict[str, Any]) -> None:
        del manifest["golden"]["files"][CPU_MODEL], manifest["files"][CPU_MODEL]

    edit_manifest(bundle, forget)
    assert "convolutions in INT8 on a CPU" in breaches(verify(bundle, []))


def test_tolerances_are_those_that_the_manifest_states(bundle: Path) -> None:
    def tighten(manifest: dict[str, Any]) -> None:
        manifest["metrics"]["tolerances"]["student -> CPU INT8"] = {"mean": 1e-7, "same": 1.0, "lost": 0.0}

    edit_manifest(bundle, tighten)
    count = open_bundle(bundle).manifest.golden.windows
    assert breaches(verify(bundle, [])) == [f"student -> CPU INT8 ({count} golden windows only)"]


def test_a_teacher_that_answers_otherwise_is_a_breach(bundle: Path) -> None:
    student = infer.runner(small_network())
    same = verify(bundle, [], lambda windows: student(windows).astype(np.float64))
    other = verify(bundle, [], lambda windows: -student(windows).astype(np.float64))
    assert breaches(same) == []
    assert len(breaches(other)) == 1 and breaches(other)[0].startswith("teacher -> student")


def test_data_are_used_where_they_are(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_folder(tmp_path / "data", events=3)
    main(["verify", str(bundle), "--data", str(data)])
    shown = capsys.readouterr().out
    assert "8 records, 112 windows" in shown
    assert "right" in shown


def test_widened_half_precision_is_the_network_again() -> None:
    windows = golden_windows()[0].astype(np.float32) / np.float32(127)
    fp32 = small_network()
    there_and_back = widen(half(fp32))
    assert np.abs(infer.logits(there_and_back, windows) - infer.logits(fp32, windows)).max() < 0.02
    assert disagreements({"fp32": fp32, "fp16": half(fp32)}) == []


def test_the_committed_bundle_verifies(capsys: pytest.CaptureFixture[str]) -> None:
    """The golden windows alone, so that the test needs no data."""
    assert main(["verify", str(BUNDLE), "--golden"]) == 0, capsys.readouterr().out
    assert set(STEPS) == {("teacher", "student"), ("student", "CPU INT8"), ("CPU INT8", "TensorRT file")}
