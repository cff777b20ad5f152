"""From a window to a verdict; one file a backend, imported only when chosen.

    bundle.py       the manifest, files that are what it says, from logits to probabilities
    onnxruntime.py  the INT8 network on a CPU
    tensorrt/       the network on an NVIDIA GPU, in a process of its own
    live.py         the model that counts, and the exchange of it
    constant.py     always the same answer, for tests and drills
    selftest.py     the golden windows: does this backend, here, compute the file as it is written?

A backend is a module of this package with ``open_backend(bundle, threads, argument) -> Backend``.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from pathlib import Path
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
        if window.data.shape != (3, WINDOW_SAMPLES) or not np.isfinite(window.data).all():
            # a quantised input layer would turn NaN into a number, and that into a confident verdict
            raise BackendError(
                "the window is not 3 x 10240 finite numbers", "report this: the preparation let it through"
            )
        logits = self._runtime.logits(window.data)
        if logits.shape != (len(LABELS),) or not np.isfinite(logits).all():
            raise BackendError(f"{self.backend} answered {logits}, not five numbers", "run `talus doctor`")
        probabilities = self._calibration.probabilities(logits, window.seconds)
        best = int(np.argmax(probabilities))
        return Classification(
            label=LABELS[best],
            probability=float(probabilities[best]),
            probabilities=tuple(float(p) for p in probabilities),
            abstained=bool(probabilities[best] < self._thresholds[best]),
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
