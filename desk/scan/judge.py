"""One unit, from its bytes to its result: what every engine calls, in whichever process."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from agent import __version__
from agent.config.station import ClassifierConfig, TriggerConfig
from agent.detect.pipeline import Pipeline
from agent.detect.station import Output
from agent.dsp.window import Preparation
from agent.errors import DataError, ModelError, SourceError
from agent.inference import Classifier, load, open_bundle
from agent.inference.bundle import DEFAULT_BUNDLE
from agent.sources.archive import ArchiveSource
from agent.types import Classification, Discard, Window
from desk.scan.ledger import Clerk
from desk.scan.packets import PACKET_S, arranged
from desk.scan.reading import Inputs, check_unchanged, inputs, stamp
from desk.scan.result import SCHEMA, Result, row_of
from desk.scan.units import Unit, seam_ns, span

FIRST_S = 3.0
"""Seconds after an onset at which the noise before it is measured, as long as that is at hand."""
_NOT_ASKED = Classification("noise", 0.0, (), False, 0.0, "", "", "", "")
"""On events of the day before or after."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a result depends on beside the data: the trigger, and the network by the hash of its bundle's manifest."""

    trigger: TriggerConfig
    classifier: ClassifierConfig
    bundle_sha256: str
    digest: str

    @classmethod
    def of(cls, trigger: TriggerConfig, classifier: ClassifierConfig) -> Settings:
        """
        Raises:
            BundleError: the network cannot be used.
        """
        sha256 = open_bundle(classifier.bundle or DEFAULT_BUNDLE).sha256
        backends = [name for name in classifier.backends if name != "tensorrt"]
        told = [SCHEMA, __version__, trigger.model_dump(mode="json"), sha256, backends]
        text = json.dumps(told, sort_keys=True, separators=(",", ":"))
        return cls(trigger, classifier, sha256, hashlib.blake2b(text.encode(), digest_size=20).hexdigest())


@dataclass(frozen=True, slots=True)
class Task:
    """A unit to judge. ``results`` is the folder in which its result may be already, under ``KEY`` in its name."""

    unit: Unit
    settings: Settings
    results: str = ""


@dataclass(frozen=True, slots=True)
class Judged:
    """``content`` is None where the result of that key is there already."""

    unit: Unit
    key: str
    content: bytes | None
    stamp: str
    """What its files looked like from outside before they were read."""
    recorded_s: float = 0.0
    """Seconds of data that were judged."""


def result_name(unit: Unit, key: str) -> str:
    """Where a result is, below the folder of results."""
    return f"{unit.station}/{unit.day}-{key}.json"


def judge(task: Task) -> Judged:
    """Judge one unit, unless its result is there.

    Raises:
        ChangedError: a file changed meanwhile; try again.
        ModelError: the network is not the one that was meant, or cannot be used.
    """
    unit, settings = task.unit, task.settings
    outside = stamp(unit.files)
    found = inputs(unit.files, *span(unit, settings.trigger))
    key = _key(unit, settings, found)
    if task.results and Path(task.results, result_name(unit, key)).is_file():
        return Judged(unit, key, None, outside)
    result = _judge(unit, settings, found, key)
    check_unchanged(found.parts)
    return Judged(unit, key, result.content(), outside, result.ledger.recorded_s)


def _key(unit: Unit, settings: Settings, found: Inputs) -> str:
    told = json.dumps([settings.digest, str(unit.station), unit.from_ns, unit.to_ns, found.digest])
    return hashlib.blake2b(told.encode(), digest_size=10).hexdigest()


class _Own:
    """A classifier that looks only at windows of the unit's own onsets."""

    def __init__(self, classifier: Classifier, unit: Unit) -> None:
        self.preparation: Preparation = classifier.preparation
        self._classifier, self._unit = classifier, unit

    def classify(self, window: Window) -> Classification:
        if self._unit.from_ns <= window.onset_ns < self._unit.to_ns:
            return self._classifier.classify(window)
        return _NOT_ASKED


@lru_cache(maxsize=2)
def _classifier(bundle: Path | None, backends: tuple[str, ...], sha256: str) -> Classifier:
    classifier, _ = load(bundle or DEFAULT_BUNDLE, [name for name in backends if name != "tensorrt"], threads=1)
    if classifier.sha256 != sha256:
        raise ModelError(
            f"the bundle here is {classifier.sha256[:12]}, the scan's is {sha256[:12]}",
            "have the same bundle under the same path on every machine",
        )
    return classifier


def _judge(unit: Unit, settings: Settings, found: Inputs, key: str) -> Result:
    since, until = span(unit, settings.trigger)
    seam_begin = unit.from_ns - seam_ns(settings.trigger)
    clerk = Clerk(unit.from_ns, unit.to_ns)
    one = settings.classifier
    classifier = _Own(_classifier(one.bundle, one.backends, settings.bundle_sha256), unit)
    pipeline = Pipeline(settings.trigger, (FIRST_S,), classifier, last_of=(seam_begin, unit.to_ns), longest_s=PACKET_S)
    source = ArchiveSource((), PACKET_S, on_problem=clerk.problem, parts=sorted(found.parts), grid_ns=0)
    rows: list[list[Any]] = []
    seam: list[str] = []

    def take(outputs: Sequence[Output]) -> None:
        for output in outputs:
            own = unit.from_ns <= output.onset_ns < unit.to_ns
            if isinstance(output, Discard):
                clerk.discarded += own
            elif output.phase == "end" and own:
                rows.append(row_of(output))
            elif output.phase == "end" and seam_begin <= output.onset_ns < unit.from_ns:
                seam.append(output.id)

    try:
        own = (b for b in source.blocks() if b.stream.station == unit.station and since <= b.start_ns < until)
        for block in arranged(own):
            clerk.block(block)
            try:
                take(pipeline.feed(block))
            except DataError as error:
                clerk.refuse(block.stream.seed, error.message)
                continue
            hearing = pipeline.stations[unit.station].hearing
            if hearing.told is None:
                for step in hearing.steps:
                    clerk.step(step)
                hearing.told = clerk.step
    except SourceError as error:
        if found.parts and not clerk.refused:
            clerk.refuse(str(unit), error.message)
    take(pipeline.flush())
    if unit.station in pipeline.stations:
        for step in pipeline.stations[unit.station].hearing.steps:
            clerk.step(step)
    rows.sort(key=lambda row: (row[1], row[0]))
    return Result(
        key,
        settings.digest,
        unit.station,
        unit.from_ns,
        unit.to_ns,
        seam_ns(settings.trigger),
        rows,
        clerk.ledger(Counter(str(row[2]) for row in rows)),
        sorted(seam),
    )
