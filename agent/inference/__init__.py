"""From a window to a verdict; one file a backend, imported only when chosen.

    bundle.py       the manifest, files that are what it says, from logits to probabilities
    onnxruntime.py  the INT8 network on a CPU
    tensorrt/       the network on an NVIDIA GPU, in a process of its own
    constant.py     always the same answer, for tests and drills
    selftest.py     the golden windows: does this backend, here, compute the file as it is written?

A backend is a module of this package with ``open_backend(bundle, threads, argument) -> Backend``.

``LiveClassifier`` is the model that counts, and the exchange of it: between two windows, with the one before it still
at hand. While a new model is on probation, a failure of it is answered by the one before, on the same window: there is
no window without a verdict because of an update. A candidate answers the same windows beside it, as its shadow, in a
thread of its own, and nobody acts on that.
"""

from __future__ import annotations

import importlib
import logging
import math
import queue
import re
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from agent.dsp.window import Preparation
from agent.errors import BackendError, ModelError
from agent.inference.bundle import Bundle, Calibration, open_bundle
from agent.inference.selftest import check_golden
from agent.types import LABELS, WINDOW_SAMPLES, Classification, Window

__all__ = ["Backend", "Bundle", "Classifier", "NetworkClassifier", "load", "open_bundle", "open_classifier"]

_BACKEND = re.compile(r"^([a-z]+)(?::(\S+))?$")


class Backend(Protocol):
    """A runtime with the network loaded. Not safe for several threads at once: one thread owns it."""

    name: str
    precision: str

    @property
    def model_file(self) -> str | None:
        """The bundle's file that it runs; None if it runs none, and golden windows say nothing about it."""

    def logits(self, data: NDArray[np.float32]) -> NDArray[np.float32]:
        """The network's output, ``[5]`` in the order of ``LABELS``, for one window ``[3, 10240]``.

        Raises:
            BackendError: the runtime failed.
        """


class Classifier(Protocol):
    """Turns windows into verdicts. Not safe for several threads at once: one thread owns it."""

    preparation: Preparation
    """How the windows must be prepared."""

    @property
    def model(self) -> str:
        """Name and version of the bundle that answers at this moment."""

    @property
    def sha256(self) -> str:
        """SHA-256 of its manifest."""

    @property
    def backend(self) -> str:
        """The runtime that answers at this moment."""

    @property
    def precision(self) -> str:
        """What it computes in."""

    def classify(self, window: Window) -> Classification:
        """The verdict on one window.

        Raises:
            ModelError: no verdict can be had; the next window may fare better.
        """


class NetworkClassifier:
    """A backend, with the calibration and the thresholds of the bundle's manifest."""

    def __init__(self, backend: Backend, bundle: Bundle) -> None:
        manifest = bundle.manifest
        self.backend = backend.name
        self.precision = backend.precision
        self.model = f"{manifest.name} {manifest.version}"
        self.sha256 = bundle.sha256
        self.preparation = bundle.preparation
        self._runtime = backend
        self._thresholds = tuple(manifest.thresholds[label] for label in LABELS)
        self._calibration = Calibration(manifest.temperature)

    def classify(self, window: Window) -> Classification:
        # The sum of squares is finite where all samples are, which are scaled to 1.
        if window.data.shape != (3, WINDOW_SAMPLES) or not math.isfinite(np.vdot(window.data, window.data)):
            # a quantised input layer would turn NaN into a number, and that into a confident verdict
            raise BackendError(
                "the window is not 3 x 10240 finite numbers", "report this: the preparation let it through"
            )
        logits = self._runtime.logits(window.data)
        if logits.shape != (len(LABELS),) or not all(map(math.isfinite, logits.tolist())):
            raise BackendError(f"{self.backend} answered {logits}, not five numbers", "run `talus doctor`")
        probabilities: list[float] = self._calibration.probabilities(logits, window.seconds).tolist()
        probability = max(probabilities)
        best = probabilities.index(probability)
        return Classification(
            label=LABELS[best],
            probability=probability,
            probabilities=tuple(probabilities),
            abstained=probability < self._thresholds[best],
            window_s=window.seconds,
            model=self.model,
            model_sha256=self.sha256,
            backend=self.backend,
            precision=self.precision,
        )


def open_classifier(bundle: Bundle, backend: str, threads: int = 1) -> NetworkClassifier:
    """One backend serving ``bundle``, warmed up and checked against the golden windows.

    ``backend`` is a module of this package, with an argument after a colon where the backend takes one.

    Raises:
        ModelError: there is no such backend here, it fails, or it disagrees with the golden windows.
    """
    match = _BACKEND.match(backend)
    try:
        if match is None:
            raise ModuleNotFoundError(backend)
        opener = importlib.import_module(f"{__name__}.{match[1]}").open_backend
    except (ModuleNotFoundError, AttributeError) as error:
        raise BackendError(f"{backend!r} is not a backend ({error})", "use onnxruntime") from None
    runtime: Backend = opener(bundle, threads, match[2] or "")
    classifier = NetworkClassifier(runtime, bundle)
    if runtime.model_file is not None:
        check_golden(classifier, bundle, runtime.model_file)
    return classifier


def load(bundle_path: Path, backends: Sequence[str], threads: int = 1) -> tuple[Classifier, list[str]]:
    """The first of ``backends`` that serves the bundle, and why each one before it does not.

    Raises:
        BundleError: the bundle itself must not be used.
        BackendError: no backend passes; the message holds each reason.
    """
    bundle = open_bundle(bundle_path)
    reasons: list[str] = []
    for name in backends:
        try:
            return open_classifier(bundle, name, threads), reasons
        except ModelError as error:
            reasons.append(f"{name}: {error.message}")
    raise BackendError(
        f"no backend serves {bundle.origin}: {'; '.join(reasons) or 'none is configured'}",
        "run `talus doctor`, or use another bundle",
    )


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
        self._recent: deque[tuple[Window, Classification]] = deque(maxlen=0)
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

    def remember(self) -> None:
        """Keep the newest windows from now on: candidates may come."""
        self._recent = deque(self._recent, maxlen=RECENT)

    def recent(self) -> list[tuple[Window, Classification]]:
        """The newest windows that were kept and what was said of them, the oldest first."""
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
