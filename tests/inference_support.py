"""A small network and its bundle, made without torch, for the tests of inference, bundles and quantisation."""

from __future__ import annotations

import json
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from agent.dsp.window import Preparation
from agent.types import LABELS, WINDOW_SAMPLES, Window
from quantize.quantise import infer
from quantize.quantise.bundle import BundleSpec, write_bundle
from quantize.quantise.golden import golden_windows
from quantize.quantise.infer import INPUT, IR_VERSION, OPSET, OUTPUT
from quantize.quantise.int8 import Int8Files, int8_files


class NetworkBuilder:
    """A Conv/Relu/Add stack of random weights, in the exporter's form."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def constant(self, name: str, values: NDArray[Any]) -> str:
        self.initializers.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def node(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def conv(self, source: str, name: str, shape: tuple[int, int, int], stride: int) -> str:
        outputs, inputs, kernel = shape
        weight = self.rng.standard_normal((outputs, inputs, 1, kernel)) * np.sqrt(2 / (inputs * kernel))
        return self.node(
            "Conv",
            [
                source,
                self.constant(f"{name}.weight", weight),
                self.constant(f"{name}.bias", self.rng.standard_normal(outputs) * 0.05),
            ],
            name,
            kernel_shape=[1, kernel],
            strides=[1, stride],
            pads=[0, kernel // 2, 0, kernel // 2],
            dilations=[1, 1],
            group=1,
        )

    def model(self) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "small",
            [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [1, 3, 1, WINDOW_SAMPLES])],
            [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [1, len(LABELS)])],
            self.initializers,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        onnx.checker.check_model(model, full_check=True)
        return model


@lru_cache(maxsize=1)
def _small_network() -> bytes:
    build = NetworkBuilder(seed=5)
    x = build.node("Relu", [build.conv(INPUT, "stem", (16, 3, 15), 8)], "stem.relu")
    x = build.node("Relu", [build.conv(x, "down", (32, 16, 5), 8)], "down.relu")
    y = build.node("Relu", [build.conv(x, "block.a", (32, 32, 5), 1)], "block.relu")
    y = build.node("Add", [build.conv(y, "block.b", (32, 32, 5), 1), x], "block.add")
    x = build.node("Relu", [y], "out.relu")
    x = build.node("Relu", [build.conv(x, "last", (32, 32, 3), 2)], "last.relu")
    mean, peak = build.node("GlobalAveragePool", [x], "mean"), build.node("GlobalMaxPool", [x], "peak")
    x = build.node("Flatten", [build.node("Concat", [mean, peak], "pooled", axis=1)], "flat", axis=1)
    head = build.constant("head.weight", build.rng.standard_normal((len(LABELS), 64)) / 8)
    build.node("Gemm", [x, head, build.constant("head.bias", np.zeros(len(LABELS)))], OUTPUT, transB=1)
    model = build.model()
    # random features hardly tell windows apart: centre and stretch the logits so that every label wins somewhere
    raw = infer.logits(model, stored_windows()[0])
    gain = 2 / raw.std(axis=0)
    weight, bias = (next(w for w in model.graph.initializer if w.name == f"head.{n}") for n in ("weight", "bias"))
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * gain[:, None], weight.name))
    bias.CopyFrom(numpy_helper.from_array((-raw.mean(axis=0) * gain).astype(np.float32), bias.name))
    return bytes(model.SerializeToString())


def small_network() -> onnx.ModelProto:
    """FP32, with a residual block; its answers to the golden windows differ widely."""
    return onnx.load_from_string(_small_network())


def stored_windows() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The golden windows as the network reads them, and their seconds."""
    stored, seconds = golden_windows()
    return stored.astype(np.float32) / np.float32(127), seconds


@lru_cache(maxsize=1)
def small_files() -> Int8Files:
    windows, _ = stored_windows()
    return int8_files(small_network(), windows[::2], windows[1::2], methods=("minmax",))


def spec(**changes: Any) -> BundleSpec:
    fields: dict[str, Any] = {
        "name": "small",
        "version": "1.2.3",
        "preparation": Preparation(highpass_hz=0.5),
        "temperature": {3.0: 2.0, 30.0: 1.0},
        "thresholds": dict.fromkeys(LABELS, 0.0),
        "training": {"records": 12},
        "metrics": {"accuracy": 0.5},
        "card": "## Origin\n\nRandom weights.",
    }
    return BundleSpec(**{**fields, **changes})


def small_bundle(folder: Path, **changes: Any) -> Path:
    """Write the small network's bundle into ``folder``/bundle."""
    write_bundle(folder / "bundle", small_files(), spec(**changes))
    return folder / "bundle"


def edit_manifest(bundle: Path, edit: Any) -> None:
    """Apply ``edit`` to the parsed manifest and write it back."""
    path = bundle / "manifest.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def replace_file(bundle: Path, name: str, raw: bytes) -> None:
    """Put other bytes in the place of a file, with the manifest made to agree."""
    (bundle / name).write_bytes(raw)

    def edit(manifest: Any) -> None:
        manifest["files"][name] = {"sha256": sha256(raw).hexdigest(), "bytes": len(raw)}

    edit_manifest(bundle, edit)


def window(data: NDArray[np.float32], seconds: float = 40.0) -> Window:
    return Window(data, 0, seconds, (1.0, 1.0, 1.0), 0.0)
