"""What a change of the tunables would have made of recorded data, before it is sent anywhere."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from agent.assemble import Line, build_line
from agent.config import ClassifierConfig, TunablesConfig
from agent.errors import DataError
from agent.messages import DEFAULT_PREFIX, Priority
from agent.schema import AlertMessage, parse
from agent.types import Discard, Event, SampleBlock, StreamId


@dataclass(slots=True)
class Tally:
    """``triggers`` are events and discarded ones; ``alerts`` counts raised alerts, by label."""

    triggers: int = 0
    discarded: int = 0
    events: Counter[str] = field(default_factory=Counter)
    """By the label of their last verdict."""
    alerts: Counter[str] = field(default_factory=Counter)
    refused: set[str] = field(default_factory=set)
    """Why packets could not be used."""


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """The same data under both settings; ``seconds`` is the length of the longest channel."""

    before: Tally
    after: Tally
    seconds: float


def rehearse(
    blocks: Iterable[SampleBlock], before: TunablesConfig, after: TunablesConfig, classifier: ClassifierConfig
) -> Rehearsal:
    """Feed everything to two lines, each with its settings.

    Raises:
        ModelError: no backend serves the bundle.
    """
    sides = [(build_line(tunables, classifier, DEFAULT_PREFIX), Tally()) for tunables in (before, after)]
    lengths: dict[StreamId, float] = {}
    for block in blocks:
        lengths[block.stream] = lengths.get(block.stream, 0.0) + len(block.samples) / block.rate_hz
        for line, tally in sides:
            try:
                _count(line, tally, line.pipeline.feed(block))
            except DataError as error:
                tally.refused.add(error.message)
    for line, tally in sides:
        _count(line, tally, line.pipeline.flush())
        line.close()
    return Rehearsal(sides[0][1], sides[1][1], max(lengths.values(), default=0.0))


def _count(line: Line, tally: Tally, outputs: Sequence[Event | Discard]) -> None:
    for output in outputs:
        if isinstance(output, Discard):
            tally.triggers += 1
            tally.discarded += 1
            continue
        if output.phase == "end":
            verdict = output.classification
            tally.triggers += 1
            tally.events[
                "unclassified" if verdict is None else "undecided" if verdict.abstained else verdict.label
            ] += 1
        for message in line.reporter.report(output, time.time_ns()):
            if message.priority is Priority.ALERT:
                alert = parse(AlertMessage, message.payload)
                tally.alerts[alert.label] += alert.action == "raise"
