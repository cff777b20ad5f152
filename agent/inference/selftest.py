"""The golden windows: proof that this backend, on this machine, answers as the FP32 network did where it was made.

Quantised arithmetic is not the same everywhere (saturation on CPUs without a dot product, a runtime's own fusions, an
engine built on another device), and what a wrong kernel answers looks like any other verdict. So the bundle carries
windows with their answers, and no backend serves before it has reproduced them.
"""

from __future__ import annotations

import io
import zipfile
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
SCALE = 127
"""Golden windows are stored as int8; divided by this they are the network's input, exactly."""


@dataclass(frozen=True, slots=True, eq=False)
class GoldenSet:
    """Windows, and what the FP32 network says of them: calibrated ``probabilities``, float32 ``[n, 5]``."""

    windows: tuple[Window, ...]
    probabilities: NDArray[np.float32]


def read_golden(bundle: Bundle) -> GoldenSet:
    """The golden windows of ``bundle``.

    Raises:
        BundleError: ``golden.npz`` does not hold what the manifest promises.
    """
    try:
        with np.load(io.BytesIO(bundle.file(GOLDEN)), allow_pickle=False) as arrays:
            return _golden(
                arrays["windows"], arrays["seconds"], arrays["probabilities"], bundle.manifest.golden.windows
            )
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise BundleError(f"{bundle.origin}: {GOLDEN} cannot be read: {error}", "fetch the bundle again") from error


def _golden(
    windows: NDArray[np.int8], seconds: NDArray[np.float32], probabilities: NDArray[np.float32], count: int
) -> GoldenSet:
    shapes = (windows.shape, seconds.shape, probabilities.shape)
    if not 0 < count <= MAX_GOLDEN or shapes != ((count, 3, WINDOW_SAMPLES), (count,), (count, len(LABELS))):
        raise ValueError(f"shapes {shapes} are not those of {count} windows, at most {MAX_GOLDEN}")
    dtypes = [str(array.dtype) for array in (windows, seconds, probabilities)]
    if dtypes != ["int8", "float32", "float32"]:
        raise ValueError(f"dtypes are {dtypes}")
    if not (np.isfinite(seconds).all() and np.isfinite(probabilities).all()):
        raise ValueError("it holds NaN")
    made = (
        Window(data.astype(np.float32) / SCALE, 0, float(s), (1.0, 1.0, 1.0), 0.0)
        for data, s in zip(windows, seconds, strict=True)
    )
    return GoldenSet(tuple(made), probabilities)


def golden_drift(classifier: Classifier, golden: GoldenSet) -> float:
    """Largest difference of any probability from the FP32 network's.

    Raises:
        ModelError: the backend failed on a window.
    """
    answers = [classifier.classify(window).probabilities for window in golden.windows]
    return float(np.abs(np.array(answers) - golden.probabilities).max())


def check_golden(classifier: Classifier, bundle: Bundle) -> float:
    """Run the golden windows (which also warms the backend up) and return the drift.

    Raises:
        BundleError: the bundle's golden windows cannot be read.
        BackendError: the backend fails on them, or answers outside the manifest's tolerance.
    """
    drift = golden_drift(classifier, read_golden(bundle))
    tolerance = bundle.manifest.golden.tolerance
    if drift > tolerance:
        raise BackendError(
            f"golden windows are off by {drift:.3f}, more than {tolerance:.3f}",
            "this machine or runtime computes the network wrongly: use another backend, and report its version",
        )
    return drift
