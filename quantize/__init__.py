"""The workstation side: data, training, calibration, export and the proof of what each step costs."""

import agent  # noqa: F401 - before ONNX Runtime, which reports to its maker otherwise
