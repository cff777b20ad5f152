"""From a bundle to an engine that has proved itself: INT8, else FP16, else the reasons why neither serves.

A precision has an engine of its own file of the bundle: found in the cache or built in a child process, loaded by the
child that will serve it, and held against the golden answers of that file. Nothing serves that has not passed on this
machine in this run of the agent.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

from agent.errors import BackendError, ModelError
from agent.host.machine import memory_mb
from agent.inference import NetworkClassifier
from agent.inference.bundle import FP16_MODEL, TRT_MODEL, Bundle
from agent.inference.selftest import check_golden
from agent.inference.tensorrt.backend import ANSWER_S, TensorRtBackend
from agent.inference.tensorrt.cache import EngineCache, EngineKey, Stored, key_of
from agent.inference.tensorrt.child import HINT, Child, Places, Platform, probe

_log = logging.getLogger(__name__)
BUILD_S = 45 * 60.0
BUILD_MB = 3000.0
"""A build whose process has more than this in memory is ended."""
SPARE_MB = 200.0
"""Memory that a build must leave to the rest of the machine."""
MAX_FAILURES = 2
Report: TypeAlias = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class PrecisionStep:
    """A precision, and the file of the bundle that is written in it."""

    precision: str
    file: str


PRECISIONS = (PrecisionStep("int8", TRT_MODEL), PrecisionStep("fp16", FP16_MODEL))


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Where engines are kept and how they may be built. ``stop`` ends a build that nobody waits for any more;
    ``again`` builds even what is in the cache, or failed before."""

    folder: Path
    places: Places = field(default_factory=Places)
    build_s: float = BUILD_S
    build_mb: float = BUILD_MB
    answer_s: float = ANSWER_S
    niceness: int = 19
    build: bool = True
    again: bool = False
    stop: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True, slots=True)
class Served:
    """A classifier on the GPU, why no better precision serves, and how far it is from the golden answers."""

    classifier: NetworkClassifier
    backend: TensorRtBackend
    reasons: tuple[str, ...]
    drift: float
    platform: Platform


def best_engine(bundle: Bundle, engine_settings: EngineSettings, report: Report = lambda text: None) -> Served:
    """The best precision that serves ``bundle`` here. ``report`` hears what is going on, for health and the log.

    Raises:
        BackendError: none does; the text holds the reason of each.
    """
    report("looking for a GPU")
    fallback = PrecisionFallback(bundle, engine_settings, probe(engine_settings.places), report)
    reasons: list[str] = []
    for step in PRECISIONS:
        try:
            served = fallback.open(step)
        except ModelError as error:
            if engine_settings.stop.is_set():
                raise
            reasons.append(f"{step.precision}: {error.message}")
            continue
        return replace(served, reasons=tuple(reasons))
    raise BackendError("; ".join(reasons), HINT)


class PrecisionFallback:
    """The engines of one bundle on one machine, by precision."""

    def __init__(
        self, bundle: Bundle, engine_settings: EngineSettings, platform: Platform, report: Report = lambda text: None
    ) -> None:
        self.platform = platform
        self._bundle, self._engine_settings, self._report = bundle, engine_settings, report

    def open(self, step: PrecisionStep) -> Served:
        """The engine of ``step``, loaded, with its golden windows passed.

        Raises:
            ModelError: the bundle has no such file, no engine can be had, or it does not compute what the file says.
        """
        onnx = self._bundle.file(step.file)
        key = key_of(self.platform, onnx, step.precision)
        folder = self._engine_settings.folder
        try:
            cache = EngineCache(folder)
            stored = None if self._engine_settings.again else cache.find(key)
            if stored is not None:
                try:
                    return self._verify(step, stored)
                except _LoadError as error:
                    _log.warning("the kept %s engine is built anew: %s", step.precision, error.message)
                    cache.drop(key)
            try:
                return self._verify(step, self._build(cache, key, onnx))
            except _LoadError as error:
                cache.drop(key)
                cache.note_failure(key, error.message)
                raise
        except OSError as error:
            raise BackendError(
                f"engines cannot be kept in {folder}: {error}", "make room there, or make it writable"
            ) from error

    def load(self, onnx: bytes, precision: str) -> TensorRtBackend:
        """Build any network of the same input and output, and load it unproven: for measurements, not for service.

        Raises:
            BackendError: no engine can be had, or it cannot be loaded.
            OSError: the engine cannot be kept.
        """
        cache = EngineCache(self._engine_settings.folder)
        stored = self._build(cache, key_of(self.platform, onnx, precision), onnx)
        return TensorRtBackend(self.platform, stored, precision, None, self._engine_settings.answer_s)

    def _verify(self, step: PrecisionStep, stored: Stored) -> Served:
        self._report(f"checking the {step.precision} engine")
        try:
            backend = TensorRtBackend(self.platform, stored, step.precision, step.file, self._engine_settings.answer_s)
        except BackendError as error:
            raise _LoadError(error.message, error.hint) from error
        classifier = NetworkClassifier(backend, self._bundle)
        try:
            drift = check_golden(classifier, self._bundle, step.file)
        except BaseException:
            backend.close()
            raise
        return Served(classifier, backend, (), drift, self.platform)

    def _build(self, cache: EngineCache, key: EngineKey, onnx: bytes) -> Stored:
        engine_settings = self._engine_settings
        if not engine_settings.build:
            raise BackendError("there is no engine yet", "the service builds it, or `talus doctor --jetson`")
        count, last = cache.failures(key)
        if count >= MAX_FAILURES and not engine_settings.again:
            raise BackendError(
                f"the build failed {count} times, last: {last}",
                "`talus doctor --jetson` tries again; so does a new model, TensorRT or JetPack",
            )
        label = f"building the {key.precision} engine for {self.platform}"
        _log.info("%s", label)
        self._report(label)
        with cache.scratch(".onnx") as model, cache.scratch(".out") as engine, cache.scratch(".cache") as timing:
            model.write_bytes(onnx)
            timing.write_bytes(cache.timing(key))
            paths = (str(model), str(engine), str(timing))
            try:
                with Child(
                    self.platform.python, "build", *paths, key.precision, niceness=engine_settings.niceness
                ) as child:
                    made = child.result(
                        engine_settings.build_s, lambda elapsed_s: self._supervise(child, label, elapsed_s)
                    )
            except BackendError as error:
                if not engine_settings.stop.is_set():
                    cache.note_failure(key, error.message)
                raise
            cache.put_timing(key, timing)
            stored = cache.put(key, engine)
        cache.forget_failures(key)
        _log.info("built the %s engine in %s s, %s bytes", key.precision, made["seconds"], made["bytes"])
        return stored

    def _supervise(self, child: Child, label: str, elapsed_s: float) -> None:
        """Called about twice a second while a build goes on."""
        if self._engine_settings.stop.is_set():
            raise BackendError("stopped", "start the agent again")
        used_mb, memory = child.rss_mb(), memory_mb()
        left_mb = float("inf") if memory is None else memory[0]
        if used_mb > self._engine_settings.build_mb or left_mb < SPARE_MB:
            raise BackendError(
                f"the build was ended for want of memory: it had {used_mb:.0f} MB, and {left_mb:.0f} MB were left",
                "stop what else needs memory, or add swap",
            )
        self._report(f"{label}: {elapsed_s:.0f} s, {child.stage}")


class _LoadError(BackendError):
    """The engine, not its answers, is at fault."""
