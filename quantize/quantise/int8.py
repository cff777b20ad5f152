"""Both INT8 files of a network from one calibration, refused if a runtime would not take them as INT8."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from quantize.quantise import infer
from quantize.quantise.calibrate import METHODS, Choice, choose
from quantize.quantise.graph import ExportError
from quantize.quantise.qdq import CPU, TENSORRT, quantise
from quantize.quantise.rules import lint

FloatArray = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Int8Files:
    """One network in three forms, and how its ranges were chosen."""

    fp32: onnx.ModelProto
    cpu: onnx.ModelProto
    trt: onnx.ModelProto
    choice: Choice
    calibration_windows: int


def int8_files(
    fp32: onnx.ModelProto, calibration: FloatArray, validation: FloatArray, methods: Sequence[str] = METHODS
) -> Int8Files:
    """Calibrate and quantise. Windows are float32 ``[n, 3, 10240]`` as the agent prepares them, of every length that it
    will see; ranges come from ``calibration``, the choice of method from ``validation``.

    Raises:
        ExportError: a convolution does not fuse under ONNX Runtime, or a rule of TensorRT is broken.
    """
    choice = choose(fp32, calibration, validation, methods)
    cpu, trt = (quantise(fp32, choice.ranges, dialect) for dialect in (CPU, TENSORRT))
    unfused = unfused_convolutions(cpu)
    if unfused:
        raise ExportError(
            f"these convolutions stay in float under ONNX Runtime: {', '.join(unfused)}",
            "follow each by a Relu, an addition or another convolution",
        )
    findings = lint(trt)
    if findings:
        raise ExportError(f"TensorRT would refuse the network: {'; '.join(map(str, findings[:3]))}", findings[0].remedy)
    return Int8Files(fp32, cpu, trt, choice, len(calibration))


def unfused_convolutions(cpu: onnx.ModelProto) -> list[str]:
    """Convolutions of the CPU file that ONNX Runtime would still compute in float."""
    return [node.name for node in infer.optimised(cpu).graph.node if node.op_type in ("Conv", "FusedConv")]
