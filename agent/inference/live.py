"""The model that counts, and the exchange of it: between two windows, with the one before it still at hand.

While a new model is on probation, a failure of it is answered by the one before, on the same window: there is no window
without a verdict because of an update.

A candidate answers the same windows beside it, as its shadow, in a thread of its own, and nobody acts on that.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from agent.dsp.window import Preparation
from agent.errors import ModelError
from agent.inference import Classifier
from agent.types import Classification, Window

WAITING = 64
"""Windows between the live model and its shadow (8 MB); beyond that they are passed over, and counted."""
REMEMBERED = 101
_log = logging.getLogger(__name__)
RECENT = 32
"""Windows with their verdicts that are kept (4 MB): a candidate is tried on them at once."""


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
        """Share of the same answers among the windows answered by both."""
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
        """The agreement so far."""
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


class Timed:
    """Passes windows on to another classifier. One thread classifies; any may ask for the median."""

    def __init__(self, classifier: Classifier) -> None:
        self.preparation = classifier.preparation
        self._classifier = classifier
        self._seconds: deque[float] = deque(maxlen=REMEMBERED)

    def classify(self, window: Window) -> Classification:
        """See ``Classifier.classify``; a verdict that fails is not counted."""
        began = time.perf_counter()
        verdict = self._classifier.classify(window)
        self._seconds.append(time.perf_counter() - began)
        return verdict

    def median_ms(self) -> float | None:
        """Median time of the newest verdicts, milliseconds; None before the first."""
        seconds = tuple(self._seconds.copy())
        return round(1000 * median(seconds), 3) if seconds else None


class LiveClassifier:
    """``classify`` is for one thread; the rest for any."""

    def __init__(self, classifier: Classifier) -> None:
        self.active = classifier
        self.preparation: Preparation = classifier.preparation
        self.failed: str | None = None
        """Why the newest model was taken back; None as long as it serves."""
        self._before: Classifier | None = None
        self._shadow: Shadow | None = None
        self._recent: deque[tuple[Window, Classification]] = deque(maxlen=RECENT)
        self._lock = threading.Lock()

    @property
    def model(self) -> str:
        return self.active.model

    @property
    def sha256(self) -> str:
        return self.active.sha256

    @property
    def backend(self) -> str:
        return self.active.backend

    @property
    def precision(self) -> str:
        return self.active.precision

    def classify(self, window: Window) -> Classification:
        """See ``Classifier.classify``."""
        active = self.active
        try:
            verdict = active.classify(window)
        except ModelError as error:
            with self._lock:
                # Taken back meanwhile, and its process closed under this window: the one before it serves already.
                before = self._before if active is self.active else self.active
            if before is None:
                raise
            verdict = before.classify(window)  # raises as well when the window is at fault
            self.revert(f"{active.model} failed: {error.message}")
        self._recent.append((window, verdict))
        shadow = self._shadow
        if shadow is not None:
            shadow.see(window, verdict)
        return verdict

    def recent(self) -> list[tuple[Window, Classification]]:
        """The newest windows and what was said of them, the oldest first."""
        return list(self._recent.copy())

    def set_shadow(self, shadow: Shadow | None) -> None:
        """Let ``shadow`` see every window from now on, or none."""
        self._shadow = shadow

    def promote(self, candidate: Classifier) -> None:
        """``candidate`` takes the next window; the model so far stays at hand until ``confirm`` or ``revert``."""
        with self._lock:
            self._before, self.active, self.failed = self.active, candidate, None

    def confirm(self) -> None:
        """The newest model has proved itself: let go of the one before."""
        with self._lock:
            before, self._before = self._before, None
        _let_go(before)

    def revert(self, reason: str) -> None:
        """The model before the newest one serves again."""
        with self._lock:
            if self._before is None:
                return
            failed, self.active, self._before, self.failed = self.active, self._before, None, reason
        _log.error("%s serves again: %s", self.active.model, reason)
        _let_go(failed)

    def close(self) -> None:
        """End what runs beside."""
        with self._lock:
            both = (self.active, self._before)
        for classifier in both:
            if classifier is not None and (close := getattr(classifier, "close", None)) is not None:
                close()


def _let_go(classifier: Classifier | None) -> None:
    close = getattr(classifier, "close", None)
    if close is not None:
        # It may have to wait for a process to end; the next window does not wait for it.
        threading.Thread(target=close, name="close", daemon=True).start()
