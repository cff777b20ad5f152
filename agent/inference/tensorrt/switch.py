"""The station is never blind while the GPU is made ready: ONNX Runtime serves from the first second, and between two
windows TensorRT takes over, once its engine has passed the golden windows. If TensorRT fails later, the same window
goes to ONNX Runtime, and so does every one after it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

from agent.errors import BackendError, ModelError
from agent.inference import NetworkClassifier
from agent.inference.bundle import Bundle
from agent.inference.tensorrt.fallback import EngineSettings, Served, best_engine
from agent.types import Classification, Window

_log = logging.getLogger(__name__)
STOP_S = 2.0


@dataclass(frozen=True, slots=True)
class BackendStatus:
    """What serves, why nothing better does, and what is being done about it (None: nothing any more)."""

    backend: str
    precision: str
    reasons: tuple[str, ...]
    activity: str | None = None

    def same(self, other: BackendStatus) -> bool:
        """Whether there is nothing to tell but how far the activity is."""
        return replace(self, activity=None) == replace(other, activity=None) and (
            (self.activity is None) == (other.activity is None)
        )

    def reason(self) -> str:
        """The status in words, for the station's state."""
        waits = [f"{self.backend} serves while TensorRT is made ready"] if self.activity else []
        return "; ".join((*self.reasons, *waits))


class SwitchingClassifier:
    """Classifies on ONNX Runtime until TensorRT is ready, which a thread of its own looks for and builds.

    ``classify`` is for one thread; ``backend_status`` and ``close`` are for any."""

    def __init__(
        self, standby: NetworkClassifier, bundle: Bundle, engine_settings: EngineSettings, reasons: Sequence[str] = ()
    ) -> None:
        """``standby`` serves ``bundle`` at once; ``reasons`` say why no backend before it does."""
        self.model, self.sha256, self.preparation = standby.model, standby.sha256, standby.preparation
        self._standby, self._bundle, self._engine_settings = standby, bundle, engine_settings
        self._active = standby
        self._next: Served | None = None
        self._serving: Served | None = None
        self._lock = threading.Lock()
        self._reasons = tuple(reasons)
        self._activity: str | None = "looking for a GPU"
        self._thread = threading.Thread(target=self._prepare, name="tensorrt", daemon=True)
        self._thread.start()

    @property
    def backend(self) -> str:
        return self._active.backend

    @property
    def precision(self) -> str:
        return self._active.precision

    def backend_status(self) -> BackendStatus:
        """At this moment."""
        with self._lock:
            return BackendStatus(self._active.backend, self._active.precision, self._reasons, self._activity)

    def classify(self, window: Window) -> Classification:
        """See ``Classifier.classify``."""
        if self._next is not None:
            self._switch()
        active = self._active
        try:
            return active.classify(window)
        except ModelError as error:
            if active is self._standby:
                raise
            verdict = self._standby.classify(window)  # raises as well when the window is at fault
            self._retire(error)
            return verdict

    def close(self) -> None:
        """End what runs beside: a build, or the process that serves."""
        self._engine_settings.stop.set()
        self._thread.join(timeout=STOP_S)
        with self._lock:
            for served in (self._next, self._serving):
                if served is not None:
                    served.backend.close()

    def _switch(self) -> None:
        with self._lock:
            served, self._next = self._next, None
            if served is None:
                return
            self._serving, self._active = served, served.classifier
            self._reasons, self._activity = tuple(f"tensorrt {reason}" for reason in served.reasons), None
        _log.info("TensorRT serves now, %s: %s", served.classifier.precision, served.platform)

    def _retire(self, error: ModelError) -> None:
        with self._lock:
            served, self._serving, self._active = self._serving, None, self._standby
            self._reasons = (*self._reasons, f"tensorrt served and failed: {error.message}")
        _log.error("TensorRT failed, ONNX Runtime serves again: %s", error.message)
        if served is not None:
            served.backend.close()

    def _set_activity(self, text: str) -> None:
        with self._lock:
            self._activity = text

    def _prepare(self) -> None:
        """The thread: from the probe to an engine that has passed, or to the reason why there is none."""
        try:
            served = best_engine(self._bundle, self._engine_settings, self._set_activity)
        except BackendError as error:
            reason = f"tensorrt: {error.message}"
            with self._lock:
                self._reasons, self._activity = (*self._reasons, reason), None
            _log.info("%s", reason)
            return
        except Exception as error:  # noqa: BLE001 - nobody waits for this thread: what ends it must be told by the state
            _log.exception("TensorRT could not be made ready")
            with self._lock:
                self._reasons, self._activity = (*self._reasons, f"tensorrt: {type(error).__name__}: {error}"), None
            return
        with self._lock:
            self._next, self._activity = served, "TensorRT is ready and takes the next window"
        if self._engine_settings.stop.is_set():
            served.backend.close()
