"""A verdict comes from a backend that has proved itself on this machine, or there is none and a reason is given."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from inference_support import (
    NetworkBuilder,
    edit_manifest,
    replace_file,
    small_bundle,
    small_files,
    small_network,
    stored_windows,
    window,
)
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from agent.errors import BackendError, BundleError, ModelError
from agent.inference import NetworkClassifier, load, open_bundle, open_classifier
from agent.inference.bundle import CPU_MODEL, DEFAULT_BUNDLE, Calibration
from agent.inference.constant import ConstantBackend
from agent.inference.onnxruntime import OnnxRuntimeBackend
from agent.inference.selftest import check_golden, golden_drift, read_golden
from agent.types import LABELS, WINDOW_SAMPLES
from quantize.quantise import infer
from quantize.quantise.golden import MOTIONS, golden_windows
from quantize.quantise.infer import INPUT, OUTPUT


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def own_bundle(tmp_path: Path) -> Path:
    return small_bundle(tmp_path)


def test_verdict_is_the_softmax_of_the_logits_at_the_windows_temperature(bundle: Path) -> None:
    """The manifest has 2.0 at 3 s and 1.0 at 30 s; half-way between them in log time it is 1.5."""
    classifier, reasons = load(bundle, ["onnxruntime"])
    assert reasons == []
    data = stored_windows()[0][0]
    logits = infer.logits(small_files().cpu, data[None])[0].astype(float)
    for seconds, temperature in ((1.0, 2.0), (3.0, 2.0), (math.sqrt(90), 1.5), (30.0, 1.0), (81.92, 1.0)):
        verdict = classifier.classify(window(data, seconds))
        exponentials = [math.exp(value / temperature) for value in logits]
        expected = [value / sum(exponentials) for value in exponentials]
        assert verdict.probabilities == pytest.approx(expected, abs=1e-6)
        assert verdict.label == LABELS[int(np.argmax(logits))]
        assert verdict.probability == max(verdict.probabilities)
        assert verdict.window_s == seconds
    assert (verdict.backend, verdict.precision, verdict.model) == ("onnxruntime", "int8", "small 1.2.3")
    assert verdict.model_sha256 == open_bundle(bundle).sha256


def test_every_label_can_win(bundle: Path) -> None:
    """Guards the tests that rest on the golden windows: answers that hardly differ would prove nothing."""
    classifier, _ = load(bundle, ["onnxruntime"])
    windows, seconds = stored_windows()
    verdicts = [classifier.classify(window(data, float(s))) for data, s in zip(windows, seconds, strict=True)]
    assert len({verdict.label for verdict in verdicts}) >= 4
    assert max(verdict.probability for verdict in verdicts) > 0.8


def test_verdict_abstains_below_its_own_labels_threshold(tmp_path: Path) -> None:
    data = stored_windows()[0][0]
    plain = load(small_bundle(tmp_path / "a"), ["onnxruntime"])[0].classify(window(data))
    assert not plain.abstained
    above = dict.fromkeys(LABELS, 0.0) | {plain.label: plain.probability + 1e-6}
    verdict = load(small_bundle(tmp_path / "b", thresholds=above), ["onnxruntime"])[0].classify(window(data))
    assert verdict.abstained
    assert verdict.label == plain.label
    others = dict.fromkeys(LABELS, 1.0) | {plain.label: plain.probability - 1e-6}
    verdict = load(small_bundle(tmp_path / "c", thresholds=others), ["onnxruntime"])[0].classify(window(data))
    assert not verdict.abstained


def test_same_window_same_verdict_in_every_session(bundle: Path) -> None:
    first, second = load(bundle, ["onnxruntime"])[0], load(bundle, ["onnxruntime"])[0]
    windows = stored_windows()[0]
    forwards = [first.classify(window(data)).probabilities for data in windows]
    backwards = [second.classify(window(data)).probabilities for data in windows[::-1]]
    assert forwards == backwards[::-1]


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_window_that_is_not_finite_gets_no_verdict(bundle: Path, poison: float) -> None:
    """The INT8 network would answer it with confidence."""
    classifier, _ = load(bundle, ["onnxruntime"])
    data = stored_windows()[0][0].copy()
    data[1, 5000] = poison
    with pytest.raises(ModelError, match="finite"):
        classifier.classify(window(data))
    with pytest.raises(ModelError, match="finite"):
        classifier.classify(window(data[:, :-1]))


def changed(model: onnx.ModelProto, name: str, factor: float) -> bytes:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    weight = next(w for w in copy.graph.initializer if w.name == name)
    weight.CopyFrom(numpy_helper.from_array((numpy_helper.to_array(weight) * np.float32(factor)), name))
    return bytes(copy.SerializeToString())


def test_network_that_answers_nan_gives_no_verdict(bundle: Path) -> None:
    backend = OnnxRuntimeBackend(changed(small_network(), "head.weight", np.nan), "fp32")
    with pytest.raises(BackendError, match="not five numbers"):
        NetworkClassifier(backend, open_bundle(bundle)).classify(window(stored_windows()[0][0]))


def test_failure_inside_the_runtime_is_a_model_error(bundle: Path) -> None:
    """A graph that looks up a row by the input's maximum: fine for an empty window, out of bounds for a loud one."""
    nodes = [
        helper.make_node("ReduceMax", [INPUT], ["loudest"], keepdims=0),
        helper.make_node("Mul", ["loudest", "hundred"], ["scaled"]),
        helper.make_node("Cast", ["scaled"], ["row"], to=TensorProto.INT64),
        helper.make_node("Reshape", ["row", "one"], ["rows"]),
        helper.make_node("Gather", ["table", "rows"], [OUTPUT], axis=0),
    ]
    build = NetworkBuilder(0)
    build.nodes = nodes
    build.constant("hundred", np.array(100.0))
    build.constant("table", np.zeros((1, 5)))
    build.initializers.append(numpy_helper.from_array(np.array([1]), "one"))
    classifier = NetworkClassifier(OnnxRuntimeBackend(build.model().SerializeToString(), "fp32"), open_bundle(bundle))
    silent = np.zeros((3, WINDOW_SAMPLES), np.float32)
    assert classifier.classify(window(silent)).probability == pytest.approx(0.2)
    with pytest.raises(BackendError, match="ONNX Runtime failed"):
        classifier.classify(window(silent + np.float32(1)))
    assert classifier.classify(window(silent)).probability == pytest.approx(0.2)


def test_network_of_another_shape_or_no_network_is_refused() -> None:
    renamed = small_network()
    renamed.graph.output[0].name = renamed.graph.node[-1].output[0] = "scores"
    four = small_network()
    for weight in four.graph.initializer:
        if weight.name.startswith("head."):
            weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight)[:4], weight.name))
    four.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 4
    for model in (renamed, four):
        with pytest.raises(BackendError, match="inputs and outputs"):
            OnnxRuntimeBackend(model.SerializeToString(), "fp32")
    for raw in (b"no network", b""):
        with pytest.raises(BackendError, match="cannot load"):
            OnnxRuntimeBackend(raw, "fp32")


def test_backend_that_fails_its_golden_windows_is_passed_over_with_the_reason(own_bundle: Path) -> None:
    wrong = changed(small_files().cpu, "block.a.weight.scale", 1.1)
    replace_file(own_bundle, "model.cpu.onnx", wrong)
    classifier, reasons = load(own_bundle, ["onnxruntime", "constant:landslide"])
    assert classifier.backend == "constant"
    assert len(reasons) == 1
    assert reasons[0].startswith("onnxruntime: golden windows are off by")
    with pytest.raises(BackendError, match="golden windows are off by"):
        load(own_bundle, ["onnxruntime"])


def test_golden_windows_pass_with_the_measured_drift(bundle: Path) -> None:
    opened = open_bundle(bundle)
    classifier = open_classifier(opened, "onnxruntime")
    spec = opened.manifest.golden.files[CPU_MODEL]
    assert check_golden(classifier, opened, CPU_MODEL) <= spec.tolerance
    exact = NetworkClassifier(OnnxRuntimeBackend(small_network().SerializeToString(), "fp32"), opened)
    assert golden_drift(exact, read_golden(opened), CPU_MODEL) == pytest.approx(spec.from_fp32, abs=1e-4)
    assert spec.from_fp32 > spec.tolerance
    with pytest.raises(BackendError, match="off by"):
        check_golden(exact, opened, CPU_MODEL)
    with pytest.raises(BundleError, match="no golden answers"):
        check_golden(classifier, opened, "model.other.onnx")


def test_golden_answers_altered_in_the_file_do_not_pass(own_bundle: Path) -> None:
    arrays = dict(np.load(own_bundle / "golden.npz"))
    arrays[CPU_MODEL] = np.roll(arrays[CPU_MODEL], 1, axis=1)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    replace_file(own_bundle, "golden.npz", buffer.getvalue())
    with pytest.raises(BackendError, match="golden windows are off by"):
        load(own_bundle, ["onnxruntime"])


def test_unknown_absent_and_misspelt_backends_are_reasons_not_crashes(bundle: Path) -> None:
    names = ["abacus", "bundle", "../evil", "constant:avalanche", "onnxruntime:fast", "onnxruntime"]
    classifier, reasons = load(bundle, names)
    assert classifier.backend == "onnxruntime"
    assert [reason.split(": ")[0] for reason in reasons] == names[:-1]
    with pytest.raises(BackendError, match="none is configured"):
        load(bundle, [])


def test_backend_without_its_file_is_passed_over(own_bundle: Path) -> None:
    edit_manifest(own_bundle, lambda m: (m["files"].pop(CPU_MODEL), m["golden"]["files"].pop(CPU_MODEL)))
    _, reasons = load(own_bundle, ["onnxruntime", "constant"])
    assert "holds no model.cpu.onnx" in reasons[0]


def test_bad_bundle_is_refused_whatever_the_backend(own_bundle: Path) -> None:
    (own_bundle / "model.trt.onnx").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"model\.trt\.onnx"):
        load(own_bundle, ["constant"])


def test_constant_backend_says_its_label_whatever_it_hears(bundle: Path) -> None:
    classifier, reasons = load(bundle, ["constant:landslide"])
    assert reasons == []
    verdicts = {classifier.classify(window(data)).label for data in stored_windows()[0]}
    assert verdicts == {"landslide"}
    assert load(bundle, ["constant"])[0].classify(window(stored_windows()[0][0])).label == "noise"
    with pytest.raises(BackendError, match="avalanche"):
        ConstantBackend("avalanche")


def test_golden_windows_are_the_same_everywhere_and_normalised_as_the_preparation_does() -> None:
    windows, seconds = golden_windows()
    assert np.array_equal(windows, golden_windows()[0])
    for motion, data in zip(MOTIONS, windows, strict=True):
        peaks = np.abs(data.astype(int)).max(axis=1)
        assert [int(p) for p in peaks] == [0 if row in motion.silent else 127 for row in range(3)]
        assert not data[:, 2048 + round(motion.seconds * 100) :].any()
    assert {3.0, 5.0, 10.0, 20.0, 40.0} <= {float(s) for s in seconds}


def test_a_dead_channel_or_a_halved_range_does_not_pass_the_golden_windows() -> None:
    """Of the shipped network: the answer to a window of which it is sure hardly moves when one of 128 channels dies, so
    some of the windows lie near the boundary of two labels."""
    bundle = open_bundle(DEFAULT_BUNDLE)
    golden, tolerance = read_golden(bundle), bundle.manifest.golden.files[CPU_MODEL].tolerance
    calibration = Calibration(bundle.manifest.temperature)
    windows = np.stack([one.data for one in golden.windows])
    model = onnx.load_from_string(bundle.file(CPU_MODEL))
    constants = {one.name: one for one in model.graph.initializer}
    scale_of = {node.output[0]: node.input for node in model.graph.node if node.op_type == "DequantizeLinear"}

    def is_refused(name: str, changed: NDArray[Any]) -> bool:
        before = numpy_helper.to_array(constants[name])
        constants[name].CopyFrom(numpy_helper.from_array(changed.astype(before.dtype), name))
        rows = zip(infer.logits(model, windows), golden.windows, strict=True)
        answers = np.stack([calibration.probabilities(row, window.seconds) for row, window in rows])
        constants[name].CopyFrom(numpy_helper.from_array(before, name))
        return bool(np.abs(answers - golden.answers[CPU_MODEL]).max() > tolerance)

    refused = []
    for node in model.graph.node:
        if node.op_type == "Conv":
            weights = numpy_helper.to_array(constants[scale_of[node.input[1]][0]])
            for channel in range(5, len(weights), 40):
                dead = weights.copy()
                dead[channel] = 0
                refused.append(is_refused(scale_of[node.input[1]][0], dead))
    assert len(refused) == 20 and sum(refused) >= 18
    ranges = {node.input[1] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    assert all(is_refused(name, numpy_helper.to_array(constants[name]) / 2) for name in ranges)


def test_only_the_chosen_backend_is_imported(bundle: Path) -> None:
    """On the device torch, onnx and scipy are not installed, and what is not used costs memory."""
    script = (
        "import sys, json; from pathlib import Path; from agent.inference import load\n"
        "heavy = lambda: [m for m in ('onnxruntime','torch','onnx','scipy','obspy','quantize') if m in sys.modules]\n"
        "load(Path(sys.argv[1]), ['constant']); first = heavy()\n"
        "load(Path(sys.argv[1]), ['onnxruntime']); print(json.dumps([first, heavy()]))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(bundle)], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [[], ["onnxruntime"]]
