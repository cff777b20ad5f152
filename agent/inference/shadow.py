"""A candidate beside the live model: it answers the same windows, in a thread of its own, and nobody acts on it."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from agent.errors import ModelError
from agent.inference import Classifier
from agent.types import Classification, Window

WAITING = 64
"""Windows between the live model and its shadow (8 MB); beyond that they are passed over, and counted."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How a candidate answered beside the live model. ``same``: windows with the same label, or withheld by both.
    ``difference``: mean over windows of the largest difference in any probability. ``passed_over``: never looked at."""

    windows: int = 0
    same: int = 0
    failures: int = 0
    passed_over: int = 0
    difference: float = 0.0
    median_ms: float | None = None

    @property
    def share(self) -> float:
        """Of the windows answered by both, those with the same answer."""
        return self.same / self.windows if self.windows else 0.0


class Shadow:
    """``see`` is for the thread of the live model and never waits; the rest for one other thread."""

    def __init__(self, candidate: Classifier, known: Iterable[tuple[Window, Classification]] = ()) -> None:
        """``known``: windows that the live model has answered before."""
        self._candidate = candidate
        self._queue: queue.Queue[tuple[Window, Classification] | None] = queue.Queue(WAITING)
        self._seconds: list[float] = []
        self._windows = self._same = self._failures = self._passed_over = 0
        self._difference = 0.0
        for window, verdict in known:
            self.see(window, verdict)
        self._thread = threading.Thread(target=self._work, name="shadow", daemon=True)
        self._thread.start()

    def see(self, window: Window, verdict: Classification) -> None:
        """A window that the live model has just answered."""
        try:
            self._queue.put_nowait((window, verdict))
        except queue.Full:
            self._passed_over += 1

    def agreement(self) -> Agreement:
        """So far."""
        seconds = tuple(self._seconds)
        return Agreement(
            self._windows,
            self._same,
            self._failures,
            self._passed_over,
            round(self._difference / self._windows, 4) if self._windows else 0.0,
            round(1000 * median(seconds), 3) if seconds else None,
        )

    def close(self) -> None:
        """Stop looking; what waits is passed over."""
        while True:
            try:
                self._queue.get_nowait()
            except queue.Empty:
                break
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            window, live = item
            began = time.perf_counter()
            try:
                mine = self._candidate.classify(window)
            except ModelError:
                self._failures += 1
                continue
            self._seconds = [*self._seconds[-100:], time.perf_counter() - began]
            pairs = zip(mine.probabilities, live.probabilities, strict=True)
            self._difference += max(abs(a - b) for a, b in pairs)
            self._same += mine.abstained == live.abstained and (mine.abstained or mine.label == live.label)
            self._windows += 1
