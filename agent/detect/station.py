"""Packets in, events out: a pure function of the data, with no clock, no I/O and no threads.

A ``Station`` is one sensor's share of the ``Pipeline``: its detector, its ring buffers, its events from first verdict
to last.

Every revision of an event is decided *as of* a time in the data (the onset plus the configured seconds) from what was
recorded up to then. The same record therefore gives the same revisions, whatever the packets, the speed or the machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from agent.config.station import TriggerConfig
from agent.detect.look import look
from agent.detect.retune import RetuneTransition, warmed
from agent.detect.slow import SlowEvents
from agent.dsp.claims import SLACK_NS, Contradictions, StatedRate
from agent.dsp.continuity import Continuity, Counts, Recorded
from agent.dsp.detector import Detector
from agent.dsp.hearing import STEP_NS, Hearing
from agent.dsp.measure import NOISE_S, SETTLE_NS, Minute, measure, quiet_level
from agent.dsp.ring import RingBuffer
from agent.dsp.timeline import same_rate
from agent.dsp.window import AFTER_NS, BEFORE_NS, WARM_UP_NS, HighPassed, Preparation, prepare
from agent.errors import DataError, ModelError
from agent.reasons import Reason
from agent.types import (
    COMPONENTS,
    MAX_BLOCK_S,
    NS,
    UNKNOWN_QUALITY,
    BlockQuality,
    Classification,
    Detection,
    Discard,
    Event,
    EventPhase,
    Quality,
    SampleBlock,
    Segment,
    StationId,
    StreamId,
    TriggerOff,
    TriggerOn,
    Window,
    event_id,
)

Output: TypeAlias = Event | Discard

MAX_OPEN = 256
"""Events open at once; a trigger beyond that is discarded with the reason, so that memory stays bounded."""
_NEVER = 1 << 63
_LEAST_MEASURED_NS = NS
_NEAR_NS = NS // 10
_RENAMED_NS = 60 * NS
"""A component that is silent for so long may go on under another name."""
RING_S = 240.0
"""A window (102 s), its warm-up, a packet (60 s) and the longest wait for a late component, with room to spare."""


class Classify(Protocol):
    """What the pipeline needs of a classifier."""

    preparation: Preparation

    def classify(self, window: Window) -> Classification:
        """The verdict on one window, or a ``ModelError``."""


@dataclass(slots=True)
class _Open:
    """An event in the making."""

    onset_ns: int
    ratio: float
    due: int = 0
    """Index of the next verdict."""
    revision: int = 0
    off_ns: int | None = None
    off_known_ns: int = 0
    """When the detector knew that the trigger is off: a verdict as of an earlier time must not know it."""
    last: Classification | None = None
    recorded_s: float = 0.0
    """Data recorded up to the onset."""
    noise_counts: float | None = None
    """The sensor's noise before the onset, once it is known."""

    def is_off(self, now_ns: int) -> bool:
        return self.off_ns is not None and self.off_known_ns <= now_ns

    def duration_ns(self, now_ns: int) -> int:
        """Length of the trigger, as known at ``now_ns``."""
        return (self.off_ns if self.off_ns is not None and self.is_off(now_ns) else now_ns) - self.onset_ns


@dataclass(frozen=True, slots=True)
class Retune:
    """Other settings for a station; without a detector where the present one serves them as well."""

    trigger: TriggerConfig
    detector: Detector | None = None
    triggers: tuple[TriggerOn | TriggerOff, ...] = ()
    """What it found in what is recorded."""


class Station:
    """Owned by one thread. See ``Pipeline`` for the calls."""

    def __init__(
        self,
        station: StationId,
        trigger: TriggerConfig,
        verdict_at_s: Sequence[float],
        classifier: Classify,
        *,
        exercise: bool = False,
        last_of: tuple[int, int] | None = None,
        longest_s: float = MAX_BLOCK_S,
    ) -> None:
        self.id = station
        self._trigger = trigger
        self._at_ns = _verdict_times(verdict_at_s)
        self._classifier = classifier
        self._exercise = exercise
        self._last_of = last_of
        self._ring_s = RING_S + longest_s - MAX_BLOCK_S
        self._continuity = Continuity()
        self._recorded = Recorded()
        self._detector = Detector(station, trigger, kept_s=self._ring_s)
        self._detector.hearing.look = self._inspect
        self._slow = SlowEvents(station, trigger, self._segments, self._band_passed, exercise=exercise)
        self._step_ns = 0
        """When hearing's next step is complete."""
        self._transition: RetuneTransition | None = None
        self._rings: dict[int, RingBuffer] = {}
        self._former: dict[int, RingBuffer] = {}
        """What was recorded at another rate before."""
        self._streams: dict[int, StreamId] = {}
        self._claims: dict[int, tuple[StatedRate, Contradictions]] = {}
        self._min_duration_ns = round(trigger.min_duration_s * NS)
        self._merge_ns = round(trigger.merge_s * NS)
        self._settled_ns = _settled_ns(trigger)
        self._clock: dict[int, BlockQuality] = {}
        self._open: list[_Open] = []
        self._passed = HighPassed(0)
        """Of the event that had the newest verdict."""
        self._ended_ns = 0
        """End of the last trigger that is over."""

    @property
    def is_triggered(self) -> bool:
        """Whether a trigger goes on."""
        return any(event.off_ns is None for event in self._open)

    @property
    def max_lag_ns(self) -> int:
        """How long the trigger waits for a component that comes later than the others."""
        return round(self._trigger.max_component_lag_s * NS)

    @property
    def counts(self) -> dict[str, Counts]:
        """What happened on each channel, by component code. Any thread may look."""
        return dict(self._continuity.counts)

    @property
    def rsam(self) -> tuple[Minute, ...]:
        """The vertical's mean absolute amplitude in each complete minute of the last hour. Any thread may look."""
        return self._detector.rsam.minutes

    def doubts(self) -> Iterator[Reason]:
        """What is wrong with what the packets of each channel claim. Any thread may ask."""
        for row, (rate, contradictions) in self._claims.copy().items():
            name = str(self._streams[row])
            if (wrong := contradictions.found) is not None:
                text = (
                    f"{name}: {wrong[0]} of the last {wrong[1]} packets have other samples than are known of their "
                    "time, and are left out: two recorders send under one name"
                )
                yield Reason("mixed", text, name)
            elif (rates := rate.found) is not None:
                why = "two recorders send under one name" if rates[1] > rates[0] else "many of its packets never come"
                text = (
                    f"{name} states {rates[0]:.4g} samples a second, and its time stamps say {rates[1]:.4g}; or {why}"
                )
                yield Reason("rate_wrong", text, name)

    @property
    def has_component(self) -> bool:
        """Whether a channel came that the trigger can use."""
        return bool(self._rings)

    @property
    def hearing(self) -> Hearing:
        """What the sensor could have heard. Any thread may look."""
        return self._detector.hearing

    @property
    def time_ns(self) -> int:
        """Every sample before this time is decided on; 0 before the first packet."""
        return self._detector.time_ns

    @property
    def needed_ns(self) -> int:
        """Data from this time on are needed to go on after a restart as if there had been none: the trigger's averages
        settled, and what is open from before its onset."""
        onsets = (event.onset_ns for event in self._open)
        return min(onsets, default=self.time_ns) - self._settled_ns

    def feed(self, block: SampleBlock) -> list[Output]:
        """Take one packet of at most a minute; what it decided, in the order of data time.

        Raises:
            DataError: a 1, 2 or 3 beside an N, E or Z, which is the same row of the network's input; or the rate is too
                low for the trigger.
        """
        row = block.stream.row
        if row is None:
            return []
        self._keep_letters(row, block)
        self._clock[row] = block.quality
        outputs: list[Output] = []
        triggers: list[TriggerOn | TriggerOff] = []
        for piece in self._accept(row, block):
            ring, continues = self._rings.get(row), piece.continues
            if ring is not None and not continues and ring.is_set_back(piece.start_ns):
                # The times at which open events would be decided may never come now, and their data go.
                outputs += self.flush()
                self._former.pop(row, None)
            if ring is None or not (continues or same_rate(piece.rate_hz, ring.rate_hz)):
                if ring is not None:
                    self._former[row] = ring
                ring = self._rings[row] = RingBuffer(piece.rate_hz, self._ring_s)
            self._streams[row] = piece.stream
            ring.write(piece.start_ns, piece.samples, rate_hz=piece.rate_hz, continues=continues)
            self._recorded.add(piece.start_ns, piece.end_ns)
            # While an event is open, its verdicts do not wait.
            triggers += self._sorted(self._detector.feed(piece, at_once=bool(self._open)))
        if triggers or self._open:
            outputs += self._advance(triggers, self._detector.time_ns)
        now_ns = self._detector.time_ns
        if not 0 < self._step_ns - now_ns <= STEP_NS:
            self._step_ns = (now_ns // STEP_NS + 1) * STEP_NS
            outputs += self._slow.advance(now_ns, self.hearing, self._worst_clock)
        return outputs

    def _accept(self, row: int, block: SampleBlock) -> list[SampleBlock]:
        """What is new in a packet; what it claims is noted."""
        component = block.stream.component
        counts = self._continuity.counts.get(component)
        before = 0 if counts is None else counts.duplicates
        pieces = self._continuity.accept(block)
        claims = self._claims.get(row)
        if claims is None:
            claims = self._claims[row] = StatedRate(), Contradictions()
        rate, contradictions = claims
        if pieces and (block.stamps is None or block.stamps == ()):
            rate.see(block.start_ns if block.stamps is None else None, len(block.samples), block.rate_hz)
        ring, known = self._rings.get(row), None
        if ring is not None and counts is not None and counts.duplicates > before:
            known = ring.segments(block.start_ns - SLACK_NS, block.end_ns + SLACK_NS)
        contradictions.see(block, known)
        return pieces

    def _worst_clock(self) -> BlockQuality:
        """An event is as well timed as its worst component."""
        return min(self._clock.values(), key=lambda clock: clock.trust, default=UNKNOWN_QUALITY)

    def _inspect(self, until_ns: int) -> None:
        """Look at the raw samples of the last seconds."""
        look(self.hearing, {self._streams[row].component: ring for row, ring in self._rings.items()}, until_ns)

    def _keep_letters(self, row: int, block: SampleBlock) -> None:
        """Let a row change its component's name, but not be two components at once: letters are kept."""
        known = self._streams.get(row)
        if known is None or not block.stream.component.isdigit() or not known.component.isalpha():
            return
        newest_ns = self._rings[row].newest_ns or 0
        if abs(block.start_ns - newest_ns) < _RENAMED_NS:
            raise DataError(
                f"{block.stream} is the same direction as {known}",
                "have the source select one of the two for this sensor",
            )

    def forget(self, component: str) -> None:
        """The component's clock was set back over what is known of it, which had wrong times; it begins anew."""
        self._continuity.forget(component)

    def recorded(self, from_ns: int, to_ns: int) -> dict[StreamId, list[Segment]]:
        """The samples of a span as they came, as far as they are still at hand."""
        found = self._segments(from_ns, to_ns, lasting=True)
        return {self._streams[row]: runs for row, runs in found.items()}

    def flush(self) -> list[Output]:
        """The data end here: close every event with what is there."""
        triggers = self._sorted(self._detector.flush(), last=True)
        now = self._detector.time_ns
        outputs = list(self._advance(triggers, now))
        for event in self._open:
            event.off_known_ns = min(event.off_known_ns, now)
            if self._is_told(event):
                outputs.append(self._close(event, now))
        self._open.clear()
        outputs += self._slow.flush(now, self._worst_clock())
        return outputs

    def prepare_retune(self, trigger: TriggerConfig) -> Retune:
        """What `retune` would put in the place of the present detector; nothing has changed yet.

        Raises:
            DataError: these settings do not go with the station's sampling rate.
        """
        # The detector leaves the length of a trigger to the station, and slow events to the hearing.
        own = {"min_duration_s": self._trigger.min_duration_s, "slow": self._trigger.slow}
        if trigger.model_copy(update=own) == self._trigger:
            return Retune(trigger)
        recorded = {self._streams[row]: ring.segments(0, _NEVER) for row, ring in self._rings.items()}
        try:
            detector, found = warmed(self.id, trigger, recorded, self._detector.rsam)
        except DataError:
            if self._detector.has_begun:
                raise
            return Retune(trigger, Detector(self.id, trigger))
        return Retune(trigger, detector, tuple(found))

    def retune(self, retune: Retune, verdict_at_s: Sequence[float]) -> list[Output]:
        """Go on with other settings: no sample is lost, and an event that runs goes on. Returns what the new settings
        have to say about it at once."""
        old, now_ns = self._detector, self._detector.time_ns
        slow = list(self._slow.flush(now_ns, self._worst_clock())) if retune.trigger != self._trigger else []
        self._slow.retune(retune.trigger, now_ns)
        self._trigger, self._at_ns = retune.trigger, _verdict_times(verdict_at_s)
        self._min_duration_ns = round(self._trigger.min_duration_s * NS)
        self._merge_ns = round(self._trigger.merge_s * NS)
        self._settled_ns = _settled_ns(self._trigger)
        for event in self._open:
            # What would have been due before now is not made up for.
            event.due = sum(event.onset_ns + at_ns <= now_ns for at_ns in self._at_ns)
        if retune.detector is None:
            self.hearing.retune(self._trigger)
            return slow + list(self._advance([], now_ns))
        running = [event.onset_ns for event in self._open if event.off_ns is None]
        for event in self._open:
            event.ratio = max(event.ratio, old.peak_ratio(event.onset_ns, now_ns))
        retune.detector.hearing.follow(old.hearing, now_ns)
        retune.detector.hearing.look = self._inspect
        self._detector = retune.detector
        still_open = {event.onset_ns: event.off_ns for event in self._open if event.off_ns is not None}
        self._transition = RetuneTransition(self.id, now_ns, max(running, default=None), self._ended_ns, still_open)
        return slow + list(self._advance(self._sorted(retune.triggers), min(now_ns, self._detector.time_ns)))

    def _sorted(
        self, triggers: Sequence[TriggerOn | TriggerOff], *, last: bool = False
    ) -> list[TriggerOn | TriggerOff]:
        """The detector's changes, sorted for as long as it is new."""
        if self._transition is None:
            return list(triggers)
        heard = self._transition.sort(triggers, self._detector.time_ns, last=last)
        if self._transition.is_over:
            self._transition = None
        return heard

    def _advance(self, triggers: Sequence[TriggerOn | TriggerOff], now_ns: int) -> Iterator[Output]:
        """Register the triggers, then take every decision that is due, the earliest first."""
        for trigger in triggers:
            yield from self._register(trigger)
        while self._open:
            due_ns, _, event = min((self._due_ns(event), event.onset_ns, event) for event in self._open)
            if due_ns > now_ns:
                return
            yield from self._decide(event, due_ns)

    def _register(self, trigger: TriggerOn | TriggerOff) -> Iterator[Output]:
        if isinstance(trigger, TriggerOff):
            for event in self._open:
                if event.onset_ns == trigger.onset_ns:
                    self._ended_ns = max(self._ended_ns, trigger.off_ns)
                    event.off_ns = trigger.off_ns
                    event.off_known_ns = trigger.off_ns + self._merge_ns
            return
        for event in self._open:
            if event.onset_ns == trigger.onset_ns:
                # Other settings say that it goes on after all.
                event.off_ns, event.off_known_ns = None, 0
                return
        if len(self._open) < MAX_OPEN:
            recorded_s = round(self._recorded.until(trigger.onset_ns), 3)
            self._open.append(_Open(trigger.onset_ns, trigger.ratio, recorded_s=recorded_s))
        else:
            reason = f"{MAX_OPEN} events are open at this station already"
            yield Discard(self.id, trigger.onset_ns, "too_many_open", reason)

    def _is_told(self, event: _Open) -> bool:
        return self._last_of is None or self._last_of[0] <= event.onset_ns < self._last_of[1]

    def _is_short(self, event: _Open) -> bool:
        return event.off_ns is not None and event.off_ns - event.onset_ns < self._min_duration_ns

    def _due_ns(self, event: _Open) -> int:
        """Data time of the next decision about ``event``."""
        if event.due < len(self._at_ns):
            due = event.onset_ns + self._at_ns[event.due]
        elif event.off_ns is None:
            due = _NEVER
        else:
            due = max(event.onset_ns + AFTER_NS, event.off_known_ns)
        if event.revision == 0 and self._is_short(event):
            due = min(due, event.off_known_ns)
        return due

    def _decide(self, event: _Open, now_ns: int) -> Iterator[Output]:
        if event.due >= len(self._at_ns) or (event.revision == 0 and self._is_short(event) and event.is_off(now_ns)):
            self._open.remove(event)
            if self._is_told(event):
                yield self._close(event, now_ns)
            return
        event.due += 1
        if event.duration_ns(now_ns) < self._min_duration_ns:
            return
        if self._last_of is not None:
            event.revision += 1
            if self._is_told(event):
                self._measure_noise(event)
        else:
            yield self._revise(event, "update" if event.revision else "new", now_ns)

    def _close(self, event: _Open, now_ns: int) -> Output:
        """The last word on an event; one that was never reported and proves too short is discarded."""
        if event.revision == 0 and event.duration_ns(now_ns) < self._min_duration_ns:
            return Discard(
                self.id,
                event.onset_ns,
                "too_short",
                f"the trigger lasted {event.duration_ns(now_ns) / NS:.2f} s, less than min_duration_s",
                self._detect(event, now_ns),
            )
        ended = self._revise(event, "end", now_ns)
        self._passed = HighPassed(0)
        return ended

    def _revise(self, event: _Open, phase: EventPhase, now_ns: int) -> Event:
        """Classify what was recorded up to ``now_ns`` and word the next revision."""
        until = min(now_ns, event.onset_ns + AFTER_NS, self._next_onset_ns(event, now_ns))
        seconds = (until - event.onset_ns) / NS
        if self._passed.onset_ns != event.onset_ns:
            self._passed = HighPassed(event.onset_ns)
        segments = self._segments(event.onset_ns - BEFORE_NS - WARM_UP_NS, until)
        window = prepare(segments, event.onset_ns, seconds, self._classifier.preparation, self._passed)
        reason = None
        try:
            # Beyond the full window nothing can be added: a slide of minutes keeps the verdict of its first 82 s.
            if event.last is None or event.last.window_s < seconds:
                event.last = self._classifier.classify(window)
        except ModelError as error:
            event.last, reason = None, error.message
        revision, event.revision = event.revision, event.revision + 1
        covered = "".join(name for name, share in zip(COMPONENTS, window.coverage, strict=True) if share)
        return Event(
            id=event_id(self.id, event.onset_ns),
            revision=revision,
            phase=phase,
            station=self.id,
            onset_ns=event.onset_ns,
            detection=self._detect(event, now_ns),
            classification=event.last,
            quality=Quality(window.gap_s, covered, self._worst_clock()),
            data_ns=now_ns,
            reason=reason,
            exercise=self._exercise,
            recorded_s=event.recorded_s,
        )

    def _next_onset_ns(self, event: _Open, now_ns: int) -> int:
        """Onset of the next event as known at ``now_ns``: what it brings must not rename this one."""
        later = (other.onset_ns for other in self._open if event.onset_ns < other.onset_ns < now_ns)
        return min(later, default=_NEVER)

    def _detect(self, event: _Open, now_ns: int) -> Detection:
        """Measured over the trigger alone: what follows is coda or another event."""
        duration_ns = event.duration_ns(now_ns)
        until = event.onset_ns + min(max(duration_ns, _LEAST_MEASURED_NS), now_ns - event.onset_ns, AFTER_NS)
        # A little more on both sides: the samples nearest to the ends count.
        passed = self._detector.band_passed(event.onset_ns - _NEAR_NS, until + _NEAR_NS)
        peak, dominant = measure((run for runs in passed.values() for run in runs), (event.onset_ns, until))
        self._measure_noise(event)
        ratio = max(event.ratio, self._detector.peak_ratio(event.onset_ns, event.onset_ns + duration_ns + 1))
        return Detection(ratio, duration_ns / NS, peak, dominant, event.noise_counts)

    def _measure_noise(self, event: _Open) -> None:
        """Once, while what was before the onset is at hand."""
        if event.noise_counts is None:
            before = self._detector.band_passed(event.onset_ns - round(NOISE_S * NS) - SETTLE_NS, event.onset_ns)
            event.noise_counts = quiet_level(before.values(), event.onset_ns)

    def _band_passed(self, from_ns: int, to_ns: int) -> dict[str, list[Segment]]:
        return self._detector.band_passed(from_ns, to_ns)

    def _segments(self, from_ns: int, to_ns: int, *, lasting: bool = False) -> dict[int, list[Segment]]:
        found = {row: ring.segments(from_ns, to_ns, lasting=lasting) for row, ring in self._rings.items()}
        for row, ring in self._former.items():
            found[row] = ring.segments(from_ns, to_ns, lasting=lasting) + found[row]
        return found


def _settled_ns(trigger: TriggerConfig) -> int:
    """The time after which the long-term average has forgotten how it began, to a part in twenty thousand."""
    return round((10 * trigger.lta_s + trigger.merge_s) * NS) + BEFORE_NS + WARM_UP_NS


def _verdict_times(verdict_at_s: Sequence[float]) -> list[int]:
    return sorted({round(s * NS) for s in verdict_at_s if 0 < s * NS < AFTER_NS})
