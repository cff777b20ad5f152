"""The backend that hears nothing: one fixed answer, for tests, drills and measurements of everything around it.

``constant`` answers ``noise``; ``constant:landslide`` answers that label.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from agent.errors import BackendError
from agent.inference.bundle import Bundle
from agent.types import LABELS

PROBABILITY = 0.95
"""Probability of the fixed answer at temperature 1; the other labels share the rest."""


class ConstantBackend:
    """Answers ``label`` to every window."""

    name = "constant"
    precision = "none"
    model_file = None

    def __init__(self, label: str = "noise") -> None:
        if label not in LABELS:
            raise BackendError(f"constant: {label!r} is not a label", f"use one of {', '.join(LABELS)}")
        rest = (1 - PROBABILITY) / (len(LABELS) - 1)
        self._logits = np.log([PROBABILITY if name == label else rest for name in LABELS]).astype(np.float32)

    def logits(self, data: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._logits


def open_backend(bundle: Bundle, threads: int, argument: str) -> ConstantBackend:
    """Needs nothing of ``bundle`` or ``threads``; ``argument`` is the label, ``noise`` if empty."""
    return ConstantBackend(argument or "noise")
