"""Every rule that TensorRT's parser imposes finds its breach, and only a file without breaches passes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from inference_support import NetworkBuilder, small_bundle, small_files, small_network, stored_windows
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from agent.inference import open_bundle
from agent.inference.bundle import DEFAULT_BUNDLE, TRT_MODEL
from agent.types import LABELS
from quantize.cli import main
from quantize.quantise.infer import INPUT, OUTPUT
from quantize.quantise.int8 import calibrate
from quantize.quantise.qdq import TENSORRT, quantise
from quantize.quantise.rules import OLDEST, RULES, TARGETS, lint


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    found: onnx.NodeProto = next(n for n in model.graph.node if n.name == name)
    return found


def set_constant(model: onnx.ModelProto, name: str, values: NDArray[Any]) -> None:
    for weight in model.graph.initializer:
        if weight.name == name:
            weight.CopyFrom(numpy_helper.from_array(values, name))
            return
    model.graph.initializer.append(numpy_helper.from_array(values, name))


def constant(model: onnx.ModelProto, name: str) -> NDArray[Any]:
    return numpy_helper.to_array(next(w for w in model.graph.initializer if w.name == name))


def read(model: onnx.ModelProto, name: str, position: int, value: str) -> None:
    """Let this node read another value."""
    node(model, name).input[position] = value


def read_before_made(model: onnx.ModelProto) -> None:
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(nodes))


def newer_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 21


def unknown_operator(model: onnx.ModelProto) -> None:
    node(model, "last.relu").op_type = "Gelu"


def batch_norm(model: onnx.ModelProto) -> None:
    relu = node(model, "last.relu")
    for name in ("gamma", "beta", "mean", "variance"):
        set_constant(model, name, np.ones(32, np.float32))
    bn = helper.make_node("BatchNormalization", [relu.input[0], "gamma", "beta", "mean", "variance"], ["bn"], name="bn")
    relu.input[0] = "bn"
    model.graph.node.insert(list(model.graph.node).index(relu), bn)


def external_weight(model: onnx.ModelProto) -> None:
    weight = next(w for w in model.graph.initializer if w.name == "last.bias")
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="weights.bin")


def branch(model: onnx.ModelProto) -> None:
    inner = helper.make_graph([], "inner", [], [])
    node(model, "last.relu").attribute.append(helper.make_attribute("body", inner))


def half_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16


def infinite_weight(model: onnx.ModelProto) -> None:
    values = constant(model, "head.weight").copy()
    values[2, 3] = np.inf
    set_constant(model, "head.weight", values)


def open_batch(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"


def zero_scale(model: onnx.ModelProto) -> None:
    scale = constant(model, "last.weight.scale").copy()
    scale[7] = 0
    set_constant(model, "last.weight.scale", scale)


def unequal_pair(model: onnx.ModelProto) -> None:
    set_constant(model, "other", np.array(0.5, np.float32))
    node(model, "stem.relu.dq").input[1] = "other"


def relu_between(model: onnx.ModelProto) -> None:
    last = node(model, "last")
    extra = helper.make_node("Relu", [last.input[0]], ["extra"], name="extra")
    last.input[0] = "extra"
    model.graph.node.insert(list(model.graph.node).index(last), extra)


def float_weight(model: onnx.ModelProto) -> None:
    set_constant(model, "plain", np.ones((32, 32, 1, 3), np.float32))
    node(model, "last").input[1] = "plain"


def weight_axis(model: onnx.ModelProto) -> None:
    node(model, "block.a.weight.dq").attribute[0].i = 1


def quantised_bias(model: onnx.ModelProto) -> None:
    last = node(model, "last")
    dequantize = helper.make_node(
        "DequantizeLinear", ["b.q", "last.weight.scale", "last.weight.zero"], ["b"], name="b", axis=0
    )
    set_constant(model, "b.q", np.zeros(32, np.int8))
    last.input[2] = "b"
    model.graph.node.insert(list(model.graph.node).index(last), dequantize)


def pair_before(model: onnx.ModelProto, reader: str, position: int) -> None:
    target = node(model, reader)
    source = target.input[position]
    place = list(model.graph.node).index(target)
    constants = ["out.relu.scale", "out.relu.zero"]
    model.graph.node.insert(place, helper.make_node("DequantizeLinear", ["p.q", *constants], ["p.dq"], name="p.dq"))
    model.graph.node.insert(place, helper.make_node("QuantizeLinear", [source, *constants], ["p.q"], name="p.q"))
    target.input[position] = "p.dq"


def depthwise(model: onnx.ModelProto) -> None:
    next(a for a in node(model, "block.a").attribute if a.name == "group").i = 32


def twenty_channels(model: onnx.ModelProto) -> None:
    set_constant(model, "stem.weight.q", np.ones((20, 3, 1, 15), np.int8))
    set_constant(model, "stem.weight.scale", np.ones(20, np.float32))


BREACHES: dict[str, tuple[str, Callable[[onnx.ModelProto], object]]] = {
    "no opset": ("onnx", lambda m: m.ClearField("opset_import")),
    "read before made": ("onnx", read_before_made),
    "made twice": ("onnx", lambda m: m.graph.node.append(node(m, "last.relu"))),
    "reads nothing": ("onnx", lambda m: read(m, "last.relu", 0, "nowhere")),
    "newer opset": ("opset", newer_opset),
    "foreign domain": ("opset", lambda m: m.opset_import.append(helper.make_opsetid("com.microsoft", 1))),
    "unknown operator": ("operator", unknown_operator),
    "batch norm": ("operator", batch_norm),
    "external weight": ("self-contained", external_weight),
    "branch": ("self-contained", branch),
    "function": (
        "self-contained",
        lambda m: m.functions.append(helper.make_function("own", "Twice", ["x"], ["y"], [], m.opset_import)),
    ),
    "double bias": ("data-type", lambda m: set_constant(m, "head.bias", np.zeros(5, np.float64))),
    "half input": ("data-type", half_input),
    "infinite weight": ("finite", infinite_weight),
    "half quantised gemm": ("gemm", lambda m: pair_before(m, "logits", 0)),
    "open batch": ("fixed-shape", open_batch),
    "three dimensions": ("fixed-shape", lambda m: m.graph.input[0].type.tensor_type.shape.dim.pop(2)),
    "unsigned": ("signed-int8", lambda m: set_constant(m, "stem.relu.zero", np.array(0, np.uint8))),
    "no zero point": ("signed-int8", lambda m: node(m, "stem.relu.q").input.pop(2)),
    "shifted zero": ("zero-point", lambda m: set_constant(m, "stem.relu.zero", np.array(-3, np.int8))),
    "zero scale": ("scale", zero_scale),
    "per channel activation": (
        "per-tensor-activation",
        lambda m: set_constant(m, "stem.relu.scale", np.full(16, 0.1, np.float32)),
    ),
    "lonely quantize": ("pair", lambda m: read(m, "last.relu", 0, "out.relu.q")),
    "unequal pair": ("pair", unequal_pair),
    "float conv input": ("conv-input", lambda m: read(m, "last", 0, "out.relu")),
    "relu between": ("conv-input", relu_between),
    "float weight": ("conv-weight", float_weight),
    "weight axis": ("conv-weight", weight_axis),
    "weight per tensor": ("conv-weight", lambda m: set_constant(m, "last.weight.scale", np.array(0.01, np.float32))),
    "too few scales": ("conv-weight", lambda m: set_constant(m, "last.weight.scale", np.full(31, 0.01, np.float32))),
    "integer bias": ("float-bias", lambda m: set_constant(m, "last.bias", np.zeros(32, np.int32))),
    "quantised bias": ("float-bias", quantised_bias),
    "quantised before relu": ("conv-relu", lambda m: pair_before(m, "last.relu", 0)),
    "both branches": ("residual", lambda m: pair_before(m, "block.add", 0)),
    "float identity": ("residual", lambda m: read(m, "block.add", 1, "down.relu")),
    "depthwise": ("dense", depthwise),
    "column kernel": (
        "kernel",
        lambda m: set_constant(m, "last.weight.q", constant(m, "last.weight.q").transpose(0, 1, 3, 2)),
    ),
    "twenty channels": ("channels", twenty_channels),
    "eight channels": ("channels", lambda m: set_constant(m, "down.weight.q", np.ones((32, 8, 1, 5), np.int8))),
}


def test_our_own_file_keeps_every_rule(tmp_path: Path) -> None:
    onnx.save(small_files().trt, tmp_path / "model.trt.onnx")
    assert lint(tmp_path / "model.trt.onnx") == []


@pytest.mark.parametrize(("rule", "breach"), BREACHES.values(), ids=BREACHES)
def test_breach_is_found(rule: str, breach: Callable[[onnx.ModelProto], object]) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(small_files().trt)
    breach(model)
    found = lint(model)
    assert rule in {finding.rule for finding in found}
    assert all(finding.where and finding.fault and finding.remedy for finding in found)


def test_every_rule_has_a_breach_here() -> None:
    assert {rule for rule, _ in BREACHES.values()} == {rule.name for rule in RULES}


def test_shortcut_convolution_is_quantised_at_its_end_and_kept() -> None:
    """Where the identity branch is itself a convolution, a pair behind it is right, and no breach of conv-relu."""
    build = NetworkBuilder(3)
    x = build.node("Relu", [build.conv(INPUT, "stem", (16, 3, 15), 8)], "stem.relu")
    y = build.node("Relu", [build.conv(x, "a", (32, 16, 5), 2)], "a.relu")
    y = build.node("Add", [build.conv(y, "b", (32, 32, 5), 1), build.conv(x, "short", (32, 16, 1), 2)], "add")
    x = build.node("Flatten", [build.node("GlobalAveragePool", [build.node("Relu", [y], "out")], "mean")], "flat")
    head = build.constant("head.weight", np.ones((len(LABELS), 32)))
    build.node("Gemm", [x, head, build.constant("head.bias", np.zeros(5))], OUTPUT, transB=1)
    model = build.model()
    quantised = quantise(model, calibrate(model, stored_windows()[0][:4]), TENSORRT)
    assert node(quantised, "add").input[:] == ["b", "short.dq"]
    assert lint(quantised) == []


def test_what_onnx_runtimes_own_quantiser_writes_is_refused(tmp_path: Path) -> None:
    """The reason why Q/DQ is placed here by hand: the tool's int32 biases and its pairs between Conv and Relu."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Windows(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._feeds = iter([{INPUT: window[None, :, None]} for window in stored_windows()[0][:3]])

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            return next(self._feeds, None)

    onnx.save(small_network(), tmp_path / "fp32.onnx")
    quantize_static(
        tmp_path / "fp32.onnx",
        tmp_path / "tool.onnx",
        Windows(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True},
    )
    assert {"float-bias", "conv-relu"} <= {finding.rule for finding in lint(tmp_path / "tool.onnx")}


def test_newer_tensorrt_reads_newer_opsets_and_operators() -> None:
    model = onnx.ModelProto()
    model.CopyFrom(small_files().trt)
    newer_opset(model)
    unknown_operator(model)
    assert {finding.rule for finding in lint(model)} == {"opset", "operator"}
    assert {finding.rule for finding in lint(model, "8.6")} == {"opset", "operator"}
    assert lint(model, "10") == []
    assert lint(model, "11") == []
    for name, target in TARGETS.items():
        assert set(TARGETS[OLDEST].opsets) <= set(target.opsets), name
        assert TARGETS[OLDEST].operators <= target.operators, name
        assert lint(small_files().trt, name) == []


def test_command_names_rule_and_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = tmp_path / "good.onnx", tmp_path / "bad.onnx"
    onnx.save(small_files().trt, good)
    onnx.save(small_files().cpu, bad)
    assert main(["lint", str(good)]) == 0
    assert "keeps all 21 rules" in capsys.readouterr().out
    assert main(["lint", str(good), str(bad)]) == 1
    told = capsys.readouterr().out
    assert f"{bad}: float-bias: " in told
    assert "leave biases in float32" in told
    assert main(["lint", str(small_bundle(tmp_path))]) == 0
    (tmp_path / "none.onnx").write_bytes(b"no network")
    assert main(["lint", str(tmp_path / "none.onnx")]) == 1
    assert "give an ONNX file" in capsys.readouterr().err
    assert main(["lint", str(tmp_path / "absent.onnx")]) == 1


def test_the_committed_bundle_keeps_every_rule() -> None:
    assert lint(open_bundle(DEFAULT_BUNDLE).file(TRT_MODEL)) == []
