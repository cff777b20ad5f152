"""The ONNX graph computes what the torch module computes, for every construction that a student may use."""

from __future__ import annotations

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
from quantize.quantise.graph import ExportError
from quantize.train.student import StudentConfig, build_student

pytestmark = learning_support.TRAIN


class Residual(nn.Module):
    """Residual blocks with plain and convolutional shortcuts, 'same' padding, dilation, functional poolings."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, (1, 16), stride=(1, 8), padding=(0, 4))
        self.norm = nn.BatchNorm2d(16)
        self.a = nn.Conv2d(16, 32, (1, 5), stride=(1, 4), padding=(0, 2), bias=False)
        self.a_norm = nn.BatchNorm2d(32)
        self.b = nn.Conv2d(32, 32, (1, 4), padding="same", dilation=(1, 2))
        self.short = nn.Conv2d(16, 32, 1, stride=(1, 4))
        self.c = nn.Conv2d(32, 32, (1, 3), padding=(0, 1))
        self.c_norm = nn.BatchNorm2d(32)
        self.drop = nn.Dropout(0.5)
        self.hidden = nn.Linear(64, 24, bias=False)
        self.head = nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        y = self.b(torch.relu(self.a_norm(self.a(x)))) + self.short(x)
        y = torch.nn.functional.relu(y)
        y = (self.c_norm(self.c(y)) + y).relu_()
        pooled = self.drop(torch.cat([y.mean((2, 3)), y.amax(dim=(-2, -1))], 1))
        logits: torch.Tensor = self.head(torch.relu(self.hidden(pooled)))
        return logits


def trained_a_little(module: nn.Module) -> nn.Module:
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


@pytest.mark.parametrize("make", [Residual, lambda: build_student(StudentConfig())], ids=["residual", "student"])
def test_graph_computes_what_the_module_does(make: type[nn.Module]) -> None:
    torch.manual_seed(1)
    module = trained_a_little(make())
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


@pytest.mark.parametrize(
    ("layers", "named"),
    [
        ([nn.Conv2d(3, 16, (1, 8), (1, 8)), nn.GELU()], "gelu"),
        ([nn.BatchNorm2d(3), nn.Conv2d(3, 16, (1, 8), (1, 8))], "batch norm must follow"),
        ([nn.Conv2d(3, 16, (1, 8), (1, 8)), nn.AdaptiveAvgPool2d((1, 4))], "only to 1"),
    ],
    ids=["gelu", "norm first", "pooling"],
)
def test_what_cannot_be_exported_is_named(layers: list[nn.Module], named: str) -> None:
    with pytest.raises(ExportError, match=named) as caught:
        export_fp32(nn.Sequential(*layers).eval())
    assert caught.value.hint


@pytest.mark.parametrize("make", [Residual, lambda: build_student(StudentConfig())], ids=["residual", "student"])
def test_module_to_bundle_to_verdict(make: type[nn.Module], tmp_path_factory: pytest.TempPathFactory) -> None:
    """The whole way: INT8 that fuses and keeps TensorRT's rules, a bundle, and the agent's own loader."""
    torch.manual_seed(2)
    module = trained_a_little(make())
    windows, _ = stored_windows()
    folder = tmp_path_factory.mktemp("made") / "bundle"
    write_bundle(folder, export_int8(module, windows[::2], windows[1::2], ("minmax", "p99.99")), spec())
    classifier, reasons = load(folder, ["onnxruntime"])
    assert (reasons, classifier.precision) == ([], "int8")
