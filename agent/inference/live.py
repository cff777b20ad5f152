"""The model that counts, and the exchange of it: between two windows, with the one before it still at hand.

While a new model is on probation, a failure of it is answered by the one before, on the same window: there is no window
without a verdict because of an update.
"""

from __future__ import annotations

import logging
import threading
from collections import deque

from agent.dsp.window import Preparation
from agent.errors import ModelError
from agent.inference import Classifier
from agent.inference.shadow import Shadow
from agent.types import Classification, Window

_log = logging.getLogger(__name__)

RECENT = 32
"""Windows with their verdicts that are kept (4 MB): a candidate is tried on them at once."""


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
        """As ``Classifier.classify``."""
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
