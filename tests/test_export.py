"""The ONNX graph computes what the torch module computes."""

from __future__ import annotations

from pathlib import Path

import learning_support
import numpy as np
import pytest
import torch
from inference_support import spec, stored_windows
from torch import nn

from agent.inference import load
from quantize.quantise import infer
from quantize.quantise.bundle import write_bundle
from quantize.quantise.export import export_fp32, export_int8
from quantize.train.student import Student, StudentConfig, build_student

pytestmark = learning_support.TRAIN


def trained_a_little(module: Student) -> Student:
    """Batch norms whose statistics and gains are not the initial ones, so that folding them wrongly shows."""
    torch.manual_seed(3)
    module.train()
    windows = torch.from_numpy(stored_windows()[0]).unsqueeze(2)
    with torch.no_grad():
        for _ in range(3):
            module(windows)
        for child in module.modules():
            if isinstance(child, nn.BatchNorm2d):
                child.weight.uniform_(0.5, 2.0)
                child.bias.uniform_(-0.5, 0.5)
    return module


def test_graph_computes_what_the_module_does() -> None:
    torch.manual_seed(1)
    module = trained_a_little(build_student(StudentConfig()))
    model = export_fp32(module)
    assert module.training, "the export leaves the module in the mode it found"
    windows, _ = stored_windows()
    with torch.no_grad():
        expected = module.eval()(torch.from_numpy(windows).unsqueeze(2)).numpy()
    assert np.ptp(expected) > 0.1
    assert infer.logits(model, windows) == pytest.approx(expected, abs=1e-4)
    operators = {node.op_type for node in model.graph.node}
    assert operators <= {"Conv", "Relu", "Add", "GlobalAveragePool", "GlobalMaxPool", "Concat", "Flatten", "Gemm"}


def test_same_weights_same_bytes() -> None:
    module = trained_a_little(build_student(StudentConfig()))
    first, second = export_fp32(module), export_fp32(module)
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)


def test_module_to_bundle_to_verdict(tmp_path: Path) -> None:
    """The whole way: INT8 that fuses and keeps TensorRT's rules, a bundle, and the agent's own loader."""
    torch.manual_seed(2)
    module = trained_a_little(build_student(StudentConfig()))
    windows, _ = stored_windows()
    folder = tmp_path / "bundle"
    write_bundle(folder, export_int8(module, windows[::2], windows[1::2], ("minmax", "p99.99")), spec())
    classifier, reasons = load(folder, ["onnxruntime"])
    assert (reasons, classifier.precision) == ([], "int8")
