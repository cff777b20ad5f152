"""The two INT8 files: right ranges, INT8 in the runtime and not only in the file, and the same answers on every CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from inference_support import NetworkBuilder, small_files, small_network, stored_windows
from numpy.typing import NDArray
from onnx import numpy_helper

from agent.inference.bundle import softmax
from agent.types import LABELS, WINDOW_SAMPLES
from quantize.quantise import infer, int8
from quantize.quantise.infer import INPUT, OUTPUT, ExportError
from quantize.quantise.int8 import int8_files, unfused_convolutions
from quantize.quantise.qdq import CPU, TENSORRT, Range, dequantise, quantise


def constants(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    return {w.name: numpy_helper.to_array(w) for w in model.graph.initializer}


def operators(model: onnx.ModelProto) -> dict[str, int]:
    names = [node.op_type for node in model.graph.node]
    return {name: names.count(name) for name in names}


def test_every_convolution_of_the_cpu_file_runs_as_int8() -> None:
    counts = operators(infer.optimised(small_files().cpu))
    assert counts["QLinearConv"] == 5
    assert "Conv" not in counts
    assert unfused_convolutions(small_files().cpu) == []
    assert unfused_convolutions(small_files().trt) == ["stem", "down", "block.a", "block.b", "last"]


def test_both_files_answer_as_fp32_within_the_noise_of_eight_bits() -> None:
    windows, _ = stored_windows()
    exact = softmax(infer.logits(small_network(), windows))
    for model in (small_files().cpu, small_files().trt):
        answers = softmax(infer.logits(model, windows))
        assert np.abs(answers - exact).mean() < 0.02, "random weights are harsher than trained ones"
        assert (answers.argmax(1) == exact.argmax(1)).mean() > 0.9


def test_one_calibration_two_dialects() -> None:
    """Signed tensors have one scale in both files, ReLU outputs twice the steps in the CPU file, weights no offset."""
    cpu, trt = constants(small_files().cpu), constants(small_files().trt)
    assert cpu["window.scale"] == trt["window.scale"]
    assert [int(cpu["window.zero"]), int(trt["window.zero"])] == [128, 0]
    assert cpu["stem.relu.scale"] * 255 == pytest.approx(trt["stem.relu.scale"] * 127, rel=1e-6)
    assert int(cpu["stem.relu.zero"]) == 0
    assert cpu["stem.relu.zero"].dtype == np.uint8
    for values, limit in ((cpu, 64), (trt, 127)):
        weight = values["stem.weight.q"]
        assert np.abs(weight.astype(int)).max(axis=(1, 2, 3)).tolist() == [limit] * 16
        assert not values["stem.weight.zero"].any()
    assert cpu["stem.bias.q"].dtype == np.int32
    assert trt["stem.bias"].dtype == np.float32
    scale = cpu["window.scale"] * cpu["stem.weight.scale"]
    assert cpu["stem.bias.q"] * scale == pytest.approx(trt["stem.bias"], abs=float(scale.max()))


def loud_network() -> onnx.ModelProto:
    """Large weights of one sign behind full-scale activations: the case that overflows 16-bit sums of two products."""
    build = NetworkBuilder(1)
    x = build.node("Relu", [build.conv(INPUT, "stem", (32, 3, 16), 8)], "stem.relu")
    x = build.node("Relu", [build.conv(x, "next", (32, 32, 16), 8)], "next.relu")
    x = build.node("Flatten", [build.node("GlobalAveragePool", [x], "mean")], "flat", axis=1)
    head = build.constant("head.weight", build.rng.standard_normal((len(LABELS), 32)))
    build.node("Gemm", [x, head, build.constant("head.bias", np.zeros(len(LABELS)))], OUTPUT, transB=1)
    for weight in build.initializers:
        if weight.name in ("stem.weight", "next.weight"):
            weight.CopyFrom(numpy_helper.from_array(np.abs(numpy_helper.to_array(weight)) + 1, weight.name))
    return build.model()


def test_integer_kernels_do_not_saturate_on_this_cpu() -> None:
    """The optimised file against its own float arithmetic. With eight-bit weights this fails on AVX2 without VNNI."""
    model = loud_network()
    loud = np.ones((2, 3, WINDOW_SAMPLES), np.float32)
    loud[1, :, ::2] = 0.97
    ranges = int8.calibrate(model, loud)
    quantised = quantise(model, ranges, CPU)
    integer, written = infer.logits(quantised, loud), infer.logits(quantised, loud, optimise=False)
    assert integer == pytest.approx(written, rel=2e-2)
    worst = max(np.abs(constants(quantised)[f"{name}.weight.q"].astype(int)).max() for name in ("stem", "next"))
    assert 2 * 255 * worst <= 32767


def test_dead_and_tiny_channels_keep_their_bias() -> None:
    """A channel of zeros behind a bias has no scale of its own; its bias must neither overflow nor vanish."""
    model = small_network()
    weights = {w.name: w for w in model.graph.initializer}
    values = numpy_helper.to_array(weights["last.weight"]).copy()
    values[3] = 0
    values[4] *= 1e-12
    weights["last.weight"].CopyFrom(numpy_helper.from_array(values, "last.weight"))
    bias = numpy_helper.to_array(weights["last.bias"]).copy()
    bias[3:5] = 1.5
    weights["last.bias"].CopyFrom(numpy_helper.from_array(bias, "last.bias"))
    windows, _ = stored_windows()
    ranges = int8.calibrate(model, windows)
    exact = infer.logits(model, windows)
    for dialect in (CPU, TENSORRT):
        assert infer.logits(quantise(model, ranges, dialect), windows) == pytest.approx(exact, abs=0.6)


def test_network_that_tensorrt_would_refuse_is_refused() -> None:
    model = small_network()
    next(node for node in model.graph.node if node.name == "peak").op_type = "GlobalLpPool"
    windows, _ = stored_windows()
    with pytest.raises(ExportError, match="operator: peak: operator GlobalLpPool"):
        int8_files(model, windows[:2], windows[2:4], methods=("minmax",))


def test_missing_range_is_named() -> None:
    with pytest.raises(ExportError, match="window"):
        quantise(small_network(), {"stem.relu": Range(0, 1)}, TENSORRT)


def test_dequantised_file_is_the_float_network_of_the_rounded_weights() -> None:
    """What bench compares INT8 with: no Q/DQ left, the FP32 layout, answers close to the original's."""
    model = dequantise(small_files().trt)
    assert operators(model) == operators(small_network())
    windows, _ = stored_windows()
    assert softmax(infer.logits(model, windows)) == pytest.approx(
        softmax(infer.logits(small_network(), windows)), abs=0.05
    )


def test_ranges_are_the_extremes_of_every_quantised_tensor() -> None:
    windows, _ = stored_windows()
    ranges = int8.calibrate(small_network(), windows, "minmax")
    assert (ranges["window"].low, ranges["window"].high) == (-1.0, 1.0)
    assert ranges["stem.relu"].low == 0.0
    assert ranges["block.b"].low < 0 < ranges["block.b"].high
    assert set(ranges) == {
        *("window", "stem.relu", "down.relu", "block.relu", "block.b", "out.relu", "last.relu"),
    }


def observation(values: NDArray[Any]) -> int8.Observation:
    counts = np.histogram(np.abs(values[values != 0]), int8.BINS, (0, np.abs(values).max()))[0]
    return int8.Observation(float(values.min()), float(values.max()), counts)


def test_percentile_counts_signal_not_zeros() -> None:
    values = np.concatenate([np.zeros(1_000_000), np.linspace(0.001, 1, 9_990), np.full(10, 50.0)])
    limit = int8.ranges({"x": observation(values)}, "p99.8")["x"].high
    assert 0.95 < limit < 1.1


def test_dead_tensor_gets_a_usable_scale() -> None:
    dead = int8.Observation(0.0, 0.0, np.zeros(int8.BINS, np.int64))
    for method in int8.METHODS:
        assert int8.ranges({"x": dead}, method)["x"].magnitude > 0


def test_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match="minmax"):
        int8.ranges({"x": observation(np.array([1.0, 2.0]))}, "magic")


def test_choice_is_the_method_that_agrees_best_on_windows_of_its_own() -> None:
    windows, _ = stored_windows()
    choice = int8.choose(small_network(), windows[::2], windows[1::2], ("p50", "minmax"))
    assert choice.method == "minmax"
    assert choice.differences["minmax"] < choice.differences["p50"]
    assert choice.ranges == int8.calibrate(small_network(), windows[::2], "minmax")
