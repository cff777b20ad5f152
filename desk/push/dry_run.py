"""What a change of the tunables would have made of recorded data, before it is sent anywhere.

Both settings see the same packets, each in a line of its own, which is driven as ``talus replay`` and the station drive
theirs: the alerts are those of a replay.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from agent.config.broker import DEFAULT_PREFIX
from agent.config.file import ClassifierConfig, Config, TunablesConfig
from agent.errors import DataError
from agent.messages.payloads import Priority
from agent.messages.schema import AlertMessage, parse
from agent.remote.trigger_watch import matches
from agent.service.assemble import Fed, Line, build_line, open_site
from agent.types import Event, SampleBlock, StationId, StreamId


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
    onsets: dict[str, tuple[StationId, int]] = field(default_factory=dict)
    """Sensor and onset of each event."""


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """The same data under both settings; ``seconds`` is the length of the longest channel, ``lost`` names the events
    that are there before the change and not after it."""

    before: Tally
    after: Tally
    seconds: float
    lost: tuple[str, ...]


def rehearse(
    blocks: Iterable[SampleBlock], before: TunablesConfig, after: TunablesConfig, config: Config | None
) -> Rehearsal:
    """Feed everything to two lines, each with its settings; ``config`` has the network and the site.

    Raises:
        ModelError: no backend serves the bundle.
    """
    sides = [(_line(tunables, config), Tally()) for tunables in (before, after)]
    lengths: dict[StreamId, float] = {}
    for block in blocks:
        lengths[block.stream] = lengths.get(block.stream, 0.0) + len(block.samples) / block.rate_hz
        for line, tally in sides:
            try:
                _count(tally, line.feed(block, time.time_ns()))
            except DataError as error:
                tally.refused.add(error.message)
    for line, tally in sides:
        _count(tally, line.finish(time.time_ns()))
        line.close()
    known, found = sides[0][1].onsets, sides[1][1].onsets.values()
    lost = tuple(
        name
        for name, (station, onset_ns) in known.items()
        if not any(other == station and matches(onset_ns, at_ns) for other, at_ns in found)
    )
    return Rehearsal(sides[0][1], sides[1][1], max(lengths.values(), default=0.0), lost)


def _line(tunables: TunablesConfig, config: Config | None) -> Line:
    if config is None:
        return build_line(tunables, ClassifierConfig(), DEFAULT_PREFIX)
    site = open_site(config.model_copy(update={"tunables": tunables}))
    return build_line(tunables, config.classifier, DEFAULT_PREFIX, site=site)


def _count(tally: Tally, fed: Fed) -> None:
    for output in fed.outputs:
        if not isinstance(output, Event):
            tally.triggers += 1
            tally.discarded += 1
            continue
        tally.onsets[output.id] = output.station, output.onset_ns
        if output.phase == "end":
            tally.triggers += 1
            tally.events[output.called] += 1
    for message in fed.messages:
        if message.priority is Priority.ALERT:
            alert = parse(AlertMessage, message.payload)
            tally.alerts[alert.label] += alert.action == "raise"
