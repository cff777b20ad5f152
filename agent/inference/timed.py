"""How long verdicts take: a classifier that looks at the clock, so that the pipeline need not."""

from __future__ import annotations

import time
from collections import deque
from statistics import median

from agent.inference import Classifier
from agent.types import Classification, Window

REMEMBERED = 101


class Timed:
    """Passes windows on to another classifier. One thread classifies; any may ask for the median."""

    def __init__(self, classifier: Classifier) -> None:
        self.preparation = classifier.preparation
        self._classifier = classifier
        self._seconds: deque[float] = deque(maxlen=REMEMBERED)

    def classify(self, window: Window) -> Classification:
        """As ``Classifier.classify``; a verdict that fails is not counted."""
        began = time.perf_counter()
        verdict = self._classifier.classify(window)
        self._seconds.append(time.perf_counter() - began)
        return verdict

    def median_ms(self) -> float | None:
        """Of the newest verdicts, milliseconds; None before the first."""
        seconds = tuple(self._seconds.copy())
        return round(1000 * median(seconds), 3) if seconds else None
