"""A sensor's slow events: what the level trigger finds, worded as events, with the spectrum of the last minute."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from agent.config.station import TriggerConfig
from agent.dsp.hearing import HOUR, STEP_NS, Hearing, band_of
from agent.dsp.measure import SETTLE_NS, measure
from agent.dsp.slow import SlowTrigger, Swelling
from agent.types import (
    COMPONENTS,
    NS,
    BlockQuality,
    Detection,
    Event,
    EventPhase,
    Quality,
    Segment,
    StationId,
    Swell,
    event_id,
)

Segments = Callable[[int, int], Mapping[int, Sequence[Segment]]]
"""What was recorded in a span (ns), by row."""

AT_FIRST, EVERY = 6, 3
"""Revisions come with every step in the first minute, then every half minute."""
_MINUTE_NS = 60 * NS
_MEAN_OF_RMS = math.sqrt(2 / math.pi)
"""Mean absolute amplitude of noise over its root mean square."""


@dataclass(slots=True)
class _Running:
    """A slow event that has been told of."""

    measured_ns: int
    revision: int = 0
    steps: int = 0
    peak_counts: float = 0.0
    dominant_hz: float | None = None
    centroid: tuple[int, float] | None = None
    """Time and value of the first one."""


class SlowEvents:
    """Owned by one thread."""

    def __init__(self, station: StationId, trigger: TriggerConfig, segments: Segments, *, exercise: bool) -> None:
        self._station, self._trigger, self._segments, self._exercise = station, trigger, segments, exercise
        self._level = SlowTrigger(trigger.slow, band_of(trigger))
        self._seen: int | None = None
        """Number of the last step that was looked at."""
        self._running: _Running | None = None

    def retune(self, trigger: TriggerConfig, now_ns: int) -> None:
        """Go on with other settings, after ``flush``. What the background is in another band is not known yet."""
        before, self._trigger = self._trigger, trigger
        if band_of(before) != band_of(trigger) or before.slow != trigger.slow:
            self._level = SlowTrigger(trigger.slow, band_of(trigger))

    def advance(self, now_ns: int, hearing: Hearing, clock: Callable[[], BlockQuality]) -> Iterator[Event]:
        """The revisions that are due, now that the data are decided up to ``now_ns``."""
        newest = now_ns // STEP_NS - 2
        if self._seen is None:
            self._seen = newest
        if newest < self._seen - 1:
            self._seen = newest  # the clock was set back
        if newest <= self._seen or not self._trigger.slow.enabled:
            return
        steps, slots = hearing.newest(min(newest - self._seen, HOUR))
        for step in steps:
            if self._seen < step.number <= newest:
                found = self._level.feed(step, slots)
                if found is not None:
                    yield from self._tell(found, (step.number + 2) * STEP_NS, clock())
        self._seen = newest

    def flush(self, now_ns: int, clock: BlockQuality) -> Iterator[Event]:
        """The data end here: the last word on the event that runs."""
        found = self._level.flush()
        if found is not None:
            yield from self._tell(found, max(now_ns, found.now_ns), clock)

    def _tell(self, found: Swelling, now_ns: int, clock: BlockQuality) -> Iterator[Event]:
        running = self._running
        if running is None:
            if found.ended:
                return
            running = self._running = _Running(found.begin_ns)
        elif not found.ended:
            running.steps += 1
            if running.steps > AT_FIRST and running.steps % EVERY:
                return
        phase: EventPhase = "end" if found.ended else "update" if running.revision else "new"
        self._measure(found, running)
        yield self._event(found, running, phase, now_ns, clock)
        running.revision += 1
        if found.ended:
            self._running = None

    def _measure(self, found: Swelling, running: _Running) -> None:
        """The peak, of what has come since the last revision."""
        t = self._trigger
        recorded = self._segments(running.measured_ns - SETTLE_NS, found.now_ns)
        runs = [run for row in recorded.values() for run in row]
        peak, dominant = measure(runs, (t.low_hz, t.high_hz), t.order, (running.measured_ns, found.now_ns))
        running.measured_ns = found.now_ns
        if peak > running.peak_counts:
            running.peak_counts, running.dominant_hz = peak, dominant

    def _event(self, found: Swelling, running: _Running, phase: EventPhase, now_ns: int, clock: BlockQuality) -> Event:
        minute = self._segments(found.now_ns - _MINUTE_NS, found.now_ns)
        runs = (run for row in minute.values() for run in row)
        centroid = spectral_centroid(runs, self._trigger.low_hz, self._trigger.high_hz)
        growth = None
        if centroid is not None:
            running.centroid = running.centroid or (found.now_ns, centroid)
            minutes = (found.now_ns - running.centroid[0]) / _MINUTE_NS
            growth = (centroid - running.centroid[1]) / minutes if minutes else 0.0
        noise = _MEAN_OF_RMS * found.noise_counts
        return Event(
            id=event_id(self._station, found.begin_ns, "slow"),
            revision=running.revision,
            phase=phase,
            station=self._station,
            onset_ns=found.begin_ns,
            detection=Detection(found.ratio, found.duration_s, running.peak_counts, running.dominant_hz, noise),
            classification=None,
            quality=Quality(0.0, "".join(name for row, name in enumerate(COMPONENTS) if minute.get(row)), clock),
            data_ns=now_ns,
            exercise=self._exercise,
            swell=Swell(
                found.ratio,
                found.peak,
                found.rise_s,
                found.held_s,
                found.growth_db_min,
                found.envelope_db,
                centroid,
                growth,
            ),
        )


def spectral_centroid(runs: Iterable[Segment], low_hz: float, high_hz: float) -> float | None:
    """Mean frequency (Hz) of the power between the corners, of all runs together; None where all are shorter than five
    seconds."""
    weighted = total = 0.0
    for run in runs:
        if len(run.samples) < 5 * run.rate_hz:
            continue
        x = np.asarray(run.samples, dtype=np.float64)
        power = np.abs(np.fft.rfft((x - x.mean()) * np.hanning(len(x)))) ** 2
        frequency = np.fft.rfftfreq(len(x), 1 / run.rate_hz)
        inside = (frequency >= low_hz) & (frequency <= high_hz)
        weighted += float((frequency * power)[inside].sum())
        total += float(power[inside].sum())
    return weighted / total if total > 0 else None
