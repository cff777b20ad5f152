"""Puts the stages together from a configuration: the one place that knows which class serves which setting."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from agent.inference import Classifier, load
from agent.pipeline import Pipeline
from agent.policy import Policy
from agent.reporting import Reporter

if TYPE_CHECKING:
    from agent.config import ClassifierConfig, Config, TunablesConfig
    from agent.sources import ProblemSink, Source

DEFAULT_BUNDLE = Path(__file__).parent / "models" / "default"


@dataclass(frozen=True, slots=True)
class Line:
    """The station's work from packet to message. ``fallbacks`` says why no earlier backend serves."""

    pipeline: Pipeline
    reporter: Reporter
    classifier: Classifier
    fallbacks: list[str]


def open_classifier(settings: ClassifierConfig) -> tuple[Classifier, list[str]]:
    """The configured bundle on the first configured backend that passes its golden windows.

    Raises:
        ModelError: there is none.
    """
    return load(settings.bundle or DEFAULT_BUNDLE, settings.backends, settings.threads)


def build_line(tunables: TunablesConfig, settings: ClassifierConfig, prefix: str, *, exercise: bool = False) -> Line:
    """Everything between the source and the outbox.

    Raises:
        ModelError: no backend serves the bundle.
    """
    classifier, fallbacks = open_classifier(settings)
    pipeline = Pipeline(tunables.trigger.settings(), tunables.verdict.at_s, classifier, exercise=exercise)
    reporter = Reporter(Policy(tunables.policy), prefix, tunables.reporting.alert_expiry_s)
    return Line(pipeline, reporter, classifier, fallbacks)


def open_source(config: Config, on_problem: ProblemSink) -> Source:
    """The configured source; it is opened when its blocks are asked for."""
    from agent.sources.archive import ArchiveSource

    source = config.source
    return ArchiveSource(source.paths, source.packet_s, source.speed, on_problem=on_problem)
