"""The golden windows: proof that this backend, on this machine, computes the network as its file says.

Quantised arithmetic is not the same everywhere (saturation on CPUs without a dot product, a runtime's own fusions, an
engine built on another device), and what a wrong kernel answers looks like any other verdict. So the bundle carries
windows with the answers of each file computed step by step in float as it is written, and no backend serves before it
has reproduced them. How far INT8 may be from FP32 is judged where the bundle is made; held against FP32 here, a
tolerance wide enough for the rounding of eight bits would let wrong kernels through.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from agent.errors import BackendError, BundleError
from agent.inference.bundle import GOLDEN, Bundle
from agent.types import LABELS, WINDOW_SAMPLES, Window

if TYPE_CHECKING:
    from agent.inference import Classifier

MAX_GOLDEN = 64
MAX_GOLDEN_BYTES = 4 << 20
"""Unpacked: twice what so many windows take."""
SCALE = 127
"""Golden windows are stored as int8; divided by this they are the network's input, exactly."""


@dataclass(frozen=True, slots=True, eq=False)
class GoldenSet:
    """Windows, and for each network file its calibrated probabilities of them, float32 ``[n, 5]``."""

    windows: tuple[Window, ...]
    answers: Mapping[str, NDArray[np.float32]]


def read_golden(bundle: Bundle) -> GoldenSet:
    """The golden windows of ``bundle``.

    Raises:
        BundleError: ``golden.npz`` does not hold what the manifest promises.
    """
    try:
        with np.load(io.BytesIO(bundle.file(GOLDEN)), allow_pickle=False) as arrays:
            unpacked = sum(entry.file_size for entry in arrays.zip.infolist())
            if unpacked > MAX_GOLDEN_BYTES:
                raise ValueError(f"it would unpack to {unpacked} bytes, at most {MAX_GOLDEN_BYTES} are read")
            spec = bundle.manifest.golden
            answers = {name: arrays[name] for name in spec.files}
            return _golden(arrays["windows"], arrays["seconds"], answers, spec.windows)
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise BundleError(f"{bundle.origin}: {GOLDEN} cannot be read: {error}", "fetch the bundle again") from error


def _golden(
    windows: NDArray[np.int8], seconds: NDArray[np.float32], answers: dict[str, NDArray[np.float32]], count: int
) -> GoldenSet:
    floats = {"seconds": (seconds, (count,)), **{name: (rows, (count, len(LABELS))) for name, rows in answers.items()}}
    if count > MAX_GOLDEN or windows.dtype != np.int8 or windows.shape != (count, 3, WINDOW_SAMPLES):
        raise ValueError(f"windows are {windows.dtype} {windows.shape}, not {count} (at most {MAX_GOLDEN}) of int8")
    for name, (values, shape) in floats.items():
        if values.dtype != np.float32 or values.shape != shape or not np.isfinite(values).all():
            raise ValueError(f"{name} is {values.dtype} {values.shape}, not finite float32 {shape}")
    made = (
        Window(data.astype(np.float32) / SCALE, 0, float(s), (1.0, 1.0, 1.0), 0.0)
        for data, s in zip(windows, seconds, strict=True)
    )
    return GoldenSet(tuple(made), answers)


def golden_drift(classifier: Classifier, golden: GoldenSet, file: str) -> float:
    """Largest difference of any probability from those of ``file`` as it is written.

    Raises:
        ModelError: the backend failed on a window.
    """
    answers = [classifier.classify(window).probabilities for window in golden.windows]
    return float(np.abs(np.array(answers) - golden.answers[file]).max())


def check_golden(classifier: Classifier, bundle: Bundle, file: str) -> float:
    """Run the golden windows (which also warms the backend up) and return the drift.

    Raises:
        BundleError: the bundle's golden windows cannot be read, or say nothing about ``file``.
        BackendError: the backend fails on them, or answers outside the manifest's tolerance.
    """
    spec = bundle.manifest.golden.files.get(file)
    if spec is None:
        raise BundleError(f"{bundle.origin} has no golden answers for {file}", "fetch the bundle again")
    drift = golden_drift(classifier, read_golden(bundle), file)
    if drift > spec.tolerance:
        raise BackendError(
            f"golden windows are off by {drift:.3f}, more than {spec.tolerance:.3f}",
            "this machine or runtime computes the network wrongly: use another backend, and report its version",
        )
    return drift
