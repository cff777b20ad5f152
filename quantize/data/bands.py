"""The same window a second time, band-limited: two views of one event, whose answers are averaged."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import signal

from agent.types import WINDOW_RATE_HZ
from quantize.study.evaluate import Array, Logits, softmax

BAND_HZ = (1.0, 16.0)
_ORDER = 4


def limited(windows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Windows ``[n, 3, 10240]`` band-passed (causal), each component scaled anew; what was zero stays zero."""
    band = signal.butter(_ORDER, BAND_HZ, "bandpass", fs=WINDOW_RATE_HZ, output="sos")
    made = np.where(windows == 0, 0, signal.sosfilt(band, windows, axis=-1))
    peak = np.abs(made).max(axis=-1, keepdims=True)
    return np.asarray(made / np.where(peak > 0, peak, 1), dtype=np.float32)


def both_bands(logits: Logits) -> Logits:
    """Logarithm of the mean of the probabilities of a window and of itself band-limited."""

    def answer(windows: NDArray[np.float32]) -> Array:
        p = (softmax(logits(windows)) + softmax(logits(limited(windows)))) / 2
        return np.asarray(np.log(np.maximum(p, 1e-12)))

    return answer
