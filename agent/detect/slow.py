"""A sensor's slow events: what the level trigger finds, worded as events, with the spectrum of the last minute.

The trigger is for what STA/LTA cannot see: ground motion that swells over minutes, slow slides and debris flows. It
looks at hearing's steps of ten seconds (``agent.dsp.hearing``): the ratio is the median power of the last minute over
the median power of the last thirty minutes to six hours, of which hearing keeps a median for every ten minutes. A short
burst does not move the median of a minute, and what lasts for hours becomes the background.

An event begins once the ratio has stayed above ``on`` for long enough and the loudest ten seconds came late enough
after the begin: an earthquake or a blast is loudest at once, and then only fades.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np

from agent.config.station import SlowTriggerConfig, TriggerConfig
from agent.dsp.hearing import HOUR, SLOT, STEP_NS, STEP_S, Band, Hearing, Slot, Step, band_of
from agent.dsp.measure import measure
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

MINUTE = 60 // STEP_S
"""Steps of which the median is taken."""
_SLOT_S = SLOT * STEP_S
_LEAST_SLOTS = 3
"""Ten minutes each that must be known of the background: half an hour."""
_BEGIN = 0.5
"""An event begins with the steps above this share of ``on`` that lead up to the trigger without a break ..."""
_BACK = 5 * MINUTE
"""... at most so many."""
_HELD = 0.25
"""Share of the loudest step's power: 6 dB."""
_TINY = 1e-12
MOST_MINUTES = 30
"""Minutes of the envelope that are kept."""


@dataclass(frozen=True, slots=True)
class Swelling:
    """An event at the end of a step: ``ratio`` of the last minute's median power to the background's, ``peak`` the
    loudest step's, ``rise_s`` from the begin to that step, ``held_s`` the time within 6 dB of it. ``growth_db_min``:
    slope of the level up to the loudest step; ``envelope_db``: mean power of each minute over the background, the
    newest last. ``noise_counts``: the background, RMS."""

    begin_ns: int
    now_ns: int
    ratio: float
    peak: float
    rise_s: float
    held_s: float
    growth_db_min: float
    envelope_db: tuple[float, ...]
    noise_counts: float
    ended: bool = False

    @property
    def duration_s(self) -> float:
        """Since the begin."""
        return (self.now_ns - self.begin_ns) / NS


class SlowTrigger:
    """Fed with the steps of one sensor in order; one that runs is told of after each of them."""

    def __init__(self, settings: SlowTriggerConfig, band: Band) -> None:
        """``band``: what was measured in another one is no background."""
        self.settings, self._band = settings, band
        self._background: tuple[int, dict[str, float]] = (0, {})
        """When the newest slot began of which the background was taken, and its power by component."""
        self._recent: deque[tuple[int, float]] = deque(maxlen=_BACK + MINUTE)
        """Number and ratio of the newest steps, without a gap between them."""
        self._minute: deque[float] = deque(maxlen=MINUTE)
        """Ratios of the newest six."""
        self._open: list[tuple[int, float]] = []
        """Those of the swelling that runs, from its begin on."""
        self._last: Swelling | None = None
        """What was told of it."""
        self._armed = True

    def feed(self, step: Step, slots: Sequence[Slot]) -> Swelling | None:
        """The event that runs or ends with this step; None while there is none. ``slots``: hearing's, oldest first."""
        if not self._open:
            self._learn(step, slots)
        background = self._background[1]
        product, shared = 1.0, 0
        for name, level in step.levels.items():
            known = background.get(name)
            if known:
                product *= level * level / known
                shared += 1
        recent = self._recent
        if not shared or (recent and step.number != recent[-1][0] + 1):
            ended = self.flush()
            recent.clear()
            self._minute.clear()
            return ended
        power = _rounded(product if shared == 1 else product ** (1 / shared))
        recent.append((step.number, power))
        self._minute.append(power)
        ordered = sorted(self._minute)
        ratio = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
        if self._open:
            self._open.append((step.number, power))
        elif ratio < self.settings.off:
            self._armed = True
        elif self._armed and len(ordered) == MINUTE and ratio >= self.settings.on:
            self._open = self._lead_up()
        if not self._open:
            return None
        noise = max(known for name in step.levels if (known := background.get(name)))
        found = self._swelling(ratio, _rounded(math.sqrt(noise)))
        self._last = found if self._is_event(found) else None
        if found.duration_s >= self.settings.max_duration_s:
            self._armed = False
        elif ratio >= self.settings.off:
            return self._last
        return self.flush()

    def flush(self) -> Swelling | None:
        """Nothing follows: the end of the event that runs, if one does."""
        last, self._last = self._last, None
        self._open = []
        return None if last is None else replace(last, ended=True)

    def _learn(self, step: Step, slots: Sequence[Slot]) -> None:
        """Take the background of the slots before this step."""
        before_s = (step.number + 1) * STEP_S - _SLOT_S
        newest = next((slot for slot in reversed(slots) if slot.start_s <= before_s), None)
        if newest is None or newest.start_s == self._background[0]:
            return
        since_s = newest.start_s + _SLOT_S - self.settings.background_s
        used = [slot for slot in slots if since_s <= slot.start_s <= newest.start_s and slot.band == self._band]
        letters = {name for slot in used for name in slot.levels}
        known = {name: [slot.levels[name] ** 2 for slot in used if name in slot.levels] for name in letters}
        power = {name: median(values) for name, values in known.items() if len(values) >= _LEAST_SLOTS}
        self._background = newest.start_s, power

    def _lead_up(self) -> list[tuple[int, float]]:
        """The newest steps, from the one on with which the power began to rise."""
        lead: list[tuple[int, float]] = []
        for number, power in reversed(self._recent):
            if power < _BEGIN * self.settings.on and len(lead) >= MINUTE:
                break
            lead.append((number, power))
        lead.reverse()
        while lead[0][1] < _BEGIN * self.settings.on:
            lead.pop(0)
        return lead

    def _is_event(self, found: Swelling) -> bool:
        return found.duration_s >= self.settings.min_duration_s and found.rise_s >= self.settings.min_rise_s

    def _swelling(self, ratio: float, noise_counts: float) -> Swelling:
        numbers = [number for number, _ in self._open]
        powers = [power for _, power in self._open]
        peak = max(powers)
        at = powers.index(peak)
        rise_s = at * STEP_S
        growth = 0.0 if at == 0 else 10 * math.log10(peak / max(powers[0], _TINY)) * 60 / rise_s
        minutes = [powers[i : i + MINUTE] for i in range(0, len(powers), MINUTE)][-MOST_MINUTES:]
        return Swelling(
            begin_ns=numbers[0] * STEP_NS,
            now_ns=(numbers[-1] + 1) * STEP_NS,
            ratio=ratio,
            peak=peak,
            rise_s=float(rise_s),
            held_s=float(STEP_S * sum(power >= _HELD * peak for power in powers)),
            growth_db_min=growth,
            envelope_db=tuple(10 * math.log10(max(sum(part) / len(part), _TINY)) for part in minutes),
            noise_counts=noise_counts,
        )


def _rounded(value: float) -> float:
    """To six significant digits: what follows differs between packets."""
    return float(f"{value:.6g}")


Segments = Callable[[int, int], Mapping[int, Sequence[Segment]]]
"""What was recorded in a span (ns), by row."""
BandPassed = Callable[[int, int], Mapping[str, Sequence[Segment]]]
"""What the trigger saw in a span (ns), by component."""

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

    def __init__(
        self,
        station: StationId,
        trigger: TriggerConfig,
        segments: Segments,
        band_passed: BandPassed,
        *,
        exercise: bool,
    ) -> None:
        self._station, self._trigger, self._exercise = station, trigger, exercise
        self._segments, self._band_passed = segments, band_passed
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
        span_ns = running.measured_ns, found.now_ns
        peak, dominant = measure((run for runs in self._band_passed(*span_ns).values() for run in runs), span_ns)
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
