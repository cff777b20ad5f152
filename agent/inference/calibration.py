"""From logits to probabilities that mean what they say.

A network trained on hard labels is surer than it is right, and surer still of a window that has hardly begun. Dividing
the logits by a temperature, fitted on held-out windows of each length, corrects that and never changes the order
(Guo et al. 2017, "On Calibration of Modern Neural Networks").
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from agent.inference.bundle import TemperatureAt


def softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Probabilities over the last axis."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))


class Calibration:
    """A temperature for every window length: linear in log seconds, constant beyond the shortest and longest fitted."""

    def __init__(self, points: Sequence[TemperatureAt]) -> None:
        self._log_seconds = np.log([point.seconds for point in points])
        self._temperatures = np.array([point.temperature for point in points])

    def temperature(self, seconds: float) -> float:
        return float(np.interp(np.log(max(seconds, 1e-3)), self._log_seconds, self._temperatures))

    def probabilities(self, logits: NDArray[np.float32], seconds: float) -> NDArray[np.float64]:
        """Calibrated probabilities ``[5]`` of ``logits`` ``[5]`` for a window of ``seconds`` after the onset."""
        return softmax(logits / self.temperature(seconds))
