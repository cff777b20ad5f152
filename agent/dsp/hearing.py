"""What a sensor could have heard: measured all the time, in the time of the data, in steps of ten seconds.

For each step

- ``armed``: the share of it in which the detector could trigger: as many components alive (filter settled, averages
  warm) as the combination needs, and their samples plausible. Time without data is not armed.
- ``threshold``: the ``A`` of the smallest reference event (``agent.dsp.reference``) that would have triggered at its
  end, in counts. For ``vector`` it is ``sqrt(least_energy * sum of the long averages / components that work)``, for
  ``coincidence`` the ``components_needed``-th smallest of the components' own.
- the flaws of the components (``agent.dsp.plausible``), by their band-passed amplitude and by their raw samples.

The detector's thread only hands over what the averages were and what was alive; that is worked up when someone asks.
The result depends on the data alone, not on who asks and when.
"""

from __future__ import annotations

import math
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import chain, islice
from statistics import median
from typing import TypeAlias

from agent.config.station import TriggerConfig
from agent.dsp.felt import STEPS_A_DAY, Felt
from agent.dsp.plausible import Fault, Flaw
from agent.dsp.reference import Settings, least_energy
from agent.types import NS

STEP_S = 10
STEP_NS = STEP_S * NS
LOOK_NS = 60 * NS
TEN_MINUTES = 60
"""Steps in ten minutes."""
HALF_HOUR, HOUR = 180, 360
DAY_S = 86_400
SLOT = TEN_MINUTES
"""Steps of which a slot is the median; a day's slots make up what is usual."""
SLOTS = DAY_S // (SLOT * STEP_S)
FAR_ABOVE = 10.0
"""A threshold above so many times its usual does not count as hearing."""
FAR_OFF = 1000.0
"""A component so many times louder or quieter than it should be is broken."""
FALLEN = 5.0
"""A component so many times quieter than it has been for a day, which records what electronics do, has no sensor."""
LAST_BIT = 1.0
"""Band-passed amplitude (RMS, counts) of integer samples below which they are the recorder's rounding alone."""
GRACE_S = 30.0
"""Past the time at which a sensor should have begun to listen, after which it counts as one that does not."""
_REFRESHED = 12
"""Steps after which what is usual is looked at anew before there is a slot."""
_KNOWN = SLOT
"""Steps that must be known before anything is called unusual."""
_USABLE = SLOT // 2
_NO_CHANCE = 3
"""A flaw is there for so many steps, or it is not worth a word."""
_LONG_NS = 60 * NS
"""A trigger that lasts longer hides what comes after."""
_LOOKED = LOOK_NS // STEP_NS
"""Steps between two looks at the raw samples."""
_AS_LOUD = 0.8
"""Share of a level that was motion ten minutes ago at which a component is not asked again. To be called disconnected
it would have to be at a fifth."""
_NOTHING: frozenset[str] = frozenset()
_NO_FLAWS: frozenset[Flaw] = frozenset()


Band: TypeAlias = tuple[float, float, int]
"""Corners (Hz) and order of the trigger's band-pass."""


def band_of(trigger: TriggerConfig) -> Band:
    """In which levels are measured."""
    return trigger.low_hz, trigger.high_hz, trigger.order


@dataclass(frozen=True, slots=True)
class Step:
    """Ten seconds. ``number`` counts them since 1970. ``threshold`` (counts) is None where nothing could trigger, and
    ``masked`` says that it is far above its usual; ``levels`` are the components' band-passed amplitudes (RMS, counts),
    ``stuck`` is the share in a trigger that has lasted for a minute already."""

    number: int
    armed: float
    threshold: float | None
    levels: Mapping[str, float]
    flaws: frozenset[Flaw]
    stuck: float = 0.0
    masked: bool = False


@dataclass(frozen=True, slots=True)
class Slot:
    """Ten minutes, as they go into what is usual: medians of the steps in which all was well, in this band."""

    start_s: int
    threshold: float
    levels: Mapping[str, float]
    band: Band


@dataclass(frozen=True, slots=True)
class Figures:
    """How a sensor hears, as of the end of its data or of the silence after it.

    ``armed_10min`` and ``armed_hour`` are shares, counted from when the sensor began to listen, ``unarmed_s`` what is
    missing of the ten minutes; ``listening_in_s`` says when it will listen, and is None from then on. ``threshold`` is
    the median of the last ten minutes, ``usual`` that of the last day, of which ``usual_s`` seconds are known; both in
    counts. ``masked_10min`` and ``masked_30min``: share of the armed time in which the threshold was more than ten
    times its usual; ``stuck_10min`` and ``stuck_30min``: share in a trigger that had lasted for a minute. ``flaws``:
    share of the last ten minutes in which each was there. ``can_trigger`` is False where the settings make an event of
    no amplitude."""

    listening_in_s: float | None = None
    armed_10min: float | None = None
    armed_hour: float | None = None
    threshold: float | None = None
    usual: float | None = None
    usual_s: int = 0
    masked_10min: float = 0.0
    masked_30min: float = 0.0
    flaws: Mapping[Flaw, float] = field(default_factory=dict)
    stuck_10min: float = 0.0
    stuck_30min: float = 0.0
    unarmed_s: float = 0.0
    can_trigger: bool = True


@dataclass(slots=True)
class _Levels:
    letter: str
    start_ns: int
    levels: Sequence[tuple[int, float, float]]


_Level: TypeAlias = tuple[int, int, float, float]
"""Begin and end (ns) of a span, a component's mean energy in it, and its long average at the end."""


@dataclass(slots=True)
class _Begin:
    time_ns: int
    rate_hz: float
    high_hz: float
    whole: bool


@dataclass(slots=True)
class _Alive:
    time_ns: int
    letters: frozenset[str]


@dataclass(slots=True)
class _Trigger:
    time_ns: int
    on: bool


@dataclass(slots=True)
class _Raw:
    flaws: frozenset[Flaw]
    flat: frozenset[str]
    felt: frozenset[str]
    time_ns: int


@dataclass(slots=True)
class _Closed:
    time_ns: int


class Hearing:
    """One sensor's. The detector's thread writes, any thread may ask."""

    def __init__(self, trigger: TriggerConfig) -> None:
        self._trigger = trigger
        self.look: Callable[[int], None] | None = None
        """Looks at the raw samples before a time and tells ``inspected``; called every minute of data."""
        self.told: Callable[[Step], None] | None = None
        """Told every step once it is complete: what is kept here begins anew after a gap of an hour."""
        self._look_at_ns = 0
        self._lock = threading.Lock()
        self._news: deque[_Begin | _Levels | _Alive | _Trigger | _Raw | _Closed] = deque()
        # What follows is worked up from the news, under the lock.
        self._rate_hz = self._high_hz = 0.0
        self._least_of: tuple[Settings | None, float] = (None, 0.0)
        self._usual_now: tuple[float | None, Mapping[str, float]] | None = None
        self._steps: deque[Step] = deque(maxlen=HOUR)
        self._slots: deque[Slot] = deque(maxlen=SLOTS)
        self._levels: defaultdict[str, deque[_Level]] = defaultdict(deque)
        """Levels by component, from the one that reaches into the incomplete step."""
        self._alive: deque[_Alive] = deque()
        """Changes since the end of the last step, the first of them before it."""
        self._on: deque[_Trigger] = deque()
        self._raw: frozenset[Flaw] = frozenset()
        self._flat: frozenset[str] = frozenset()
        """Components that record what electronics do."""
        self._felt: deque[tuple[int, frozenset[str]]] = deque()
        """Steps of which the last minute is not complete yet, and the components that recorded anything else in it."""
        self._felt_levels = Felt()
        self._whole = False
        self._now_ns = self._begun_ns = self._armed_ns = 0
        self._next: int | None = None
        """Number of the step that is not complete yet."""

    # The detector's thread

    def begin(self, time_ns: int, rate_hz: float, high_hz: float, *, whole: bool = False) -> None:
        """The detector begins (anew), at this rate, with this upper corner of its band; ``whole``: the samples are
        integers."""
        self._news.append(_Begin(time_ns, rate_hz, high_hz, whole))
        self._look_at_ns = time_ns + LOOK_NS

    def alive(self, time_ns: int, letters: frozenset[str]) -> None:
        """From now on these components count."""
        self._news.append(_Alive(time_ns, letters))

    def triggered(self, time_ns: int, *, on: bool) -> None:
        """A trigger begins or ends."""
        self._news.append(_Trigger(time_ns, on))

    def levels(self, letter: str, start_ns: int, levels: Sequence[tuple[int, float, float]]) -> None:
        """A component's long average of its band-passed energy, from ``start_ns`` on: samples of a run of at most
        ``STEP_S``, and the average before and after it."""
        self._news.append(_Levels(letter, start_ns, levels))

    def inspected(
        self, flaws: frozenset[Flaw], time_ns: int = 0, flat: Iterable[str] = (), felt: Iterable[str] = ()
    ) -> None:
        """What the raw samples look like from now on. ``flat`` are the components that have recorded what electronics
        do for the minute before ``time_ns``, ``felt`` those that have recorded anything else; both of what was
        ``doubtful``."""
        self._news.append(_Raw(flaws, frozenset(flat), frozenset(felt), time_ns))

    def close(self, time_ns: int) -> None:
        """All before this time is handed over."""
        self._news.append(_Closed(time_ns))
        if not 0 < self._look_at_ns - time_ns <= LOOK_NS:
            at_ns, self._look_at_ns = self._look_at_ns, (time_ns // LOOK_NS + 1) * LOOK_NS
            if self.look is not None:
                self.look(min(at_ns, time_ns))
        if len(self._news) > 5000:
            self._work()

    def retune(self, trigger: TriggerConfig) -> None:
        """Go on with other settings that are the detector's too."""
        with self._lock:
            self._work_up()
            self._trigger = trigger

    def follow(self, earlier: Hearing, switch_ns: int) -> None:
        """Go on from another one's history: what was before ``switch_ns`` is as that one had it."""
        with earlier._lock:
            earlier._work_up()
            steps, slots, begun_ns, armed_ns = (
                tuple(earlier._steps), tuple(earlier._slots), earlier._begun_ns, earlier._armed_ns
            )  # fmt: skip
        with self._lock:
            self._work_up()
            switch = switch_ns // STEP_NS
            later = [step for step in self._steps if step.number >= switch]
            self._steps.clear()
            self._steps.extend([*(step for step in steps if step.number < switch), *later])
            self._slots.clear()
            self._slots.extend(slots)
            self._usual_now = None
            self._begun_ns, self._armed_ns = begun_ns or self._begun_ns, armed_ns or self._armed_ns

    # Any thread

    def doubtful(self, letters: Iterable[str], time_ns: int) -> set[str]:
        """The components of which the spectrum of the minute before a time has yet to show whether they have a sensor.
        Of the others it is known: nothing was far below the usual, and as much in the last ten minutes was motion."""
        self._work()
        with self._lock:
            _, usual = self._usual()
            number = time_ns // STEP_NS
            recent = self._last(_LOOKED + 1, number - 1)  # the last step before this one is not complete yet
            return {letter for letter in letters if self._is_doubtful(letter, usual, number, recent)}

    @property
    def slots(self) -> tuple[Slot, ...]:
        """What is known of the last day, oldest first."""
        self._work()
        with self._lock:
            return tuple(self._slots)

    @property
    def steps(self) -> tuple[Step, ...]:
        """The complete steps of the last hour, oldest first."""
        self._work()
        with self._lock:
            return tuple(self._steps)

    def newest(self, count: int) -> tuple[list[Step], Sequence[Slot]]:
        """The last ``count`` complete steps, oldest first, and what is known of the last day. For the detector's
        thread: a slot is not changed by others."""
        self._work()
        with self._lock:
            steps = self._steps
            return [steps[-k] for k in range(min(count, len(steps)), 0, -1)], self._slots

    def remember(self, slots: Iterable[Slot]) -> None:
        """What an earlier run knew; before the first data."""
        with self._lock:
            self._slots.extend(slots)
            self._usual_now = None

    def could_hear(self, begin_ns: int, end_ns: int, as_of_ns: int | None = None) -> bool | None:
        """Whether an event in this span would have triggered: armed throughout, with as many plausible components as
        the combination needs, and the threshold not far above its usual.

        None: the span is not complete ``as_of_ns`` (None: as of the newest data), and there is nothing against it. That
        the sensor was dead just before the span is against it.
        """
        self._work()
        with self._lock:
            first, last = begin_ns // STEP_NS, (end_ns - 1) // STEP_NS
            until = self._next if self._next is not None else first
            if as_of_ns is not None:
                until = min(until, as_of_ns // STEP_NS - 1)
            found = {step.number: step for step in self._steps if step.number < until}
            for number in range(first, min(last + 1, until)):
                step = found.get(number)
                if step is None or not _hears(step):
                    return False
            before = found.get(until - 1) if until <= first else None
            if before is not None and not before.armed:
                return False
            return True if last < until else None

    def armed_since(self, begin_ns: int) -> float:
        """Share of the complete steps since then in which it was armed."""
        self._work()
        with self._lock:
            steps = [step.armed for step in self._steps if step.number * STEP_NS >= begin_ns]
        return sum(steps) / len(steps) if steps else 1.0

    @property
    def settings(self) -> Settings | None:
        """The trigger with the rate and the upper corner of its band as used, Hz; None before the first packet."""
        self._work()
        with self._lock:
            return (self._trigger, self._rate_hz, self._high_hz) if self._rate_hz else None

    def is_deaf(self) -> bool:
        """Whether the sensor has begun to listen, and could hear nothing in the newest complete step."""
        self._work()
        with self._lock:
            newest = self._steps[-1] if self._steps else None
            if newest is None or (newest.number + 1) * STEP_NS <= (self._armed_ns or self._due_ns()):
                return False
            return not newest.armed

    def figures(self, silent_s: float = 0.0) -> Figures:
        """As of the newest data, or ``silent_s`` later where nothing has come since."""
        self._work()
        with self._lock:
            return self._figures(silent_s)

    # Working up, under the lock

    def _work(self) -> None:
        with self._lock:
            self._work_up()

    def _work_up(self) -> None:
        while self._news:
            news = self._news.popleft()
            if isinstance(news, _Levels):
                self._add_levels(news)
            elif isinstance(news, _Begin):
                self._rate_hz, self._high_hz, self._whole = news.rate_hz, news.high_hz, news.whole
                self._add_alive(_Alive(news.time_ns, _NOTHING))
            elif isinstance(news, _Alive):
                self._add_alive(news)
            elif isinstance(news, _Trigger):
                self._on.append(news)
            elif isinstance(news, _Raw):
                self._raw, self._flat = news.flaws or _NO_FLAWS, news.flat
                if news.felt:
                    self._felt.append((news.time_ns // STEP_NS, news.felt))
            else:
                self._advance(news.time_ns)

    def _add_levels(self, news: _Levels) -> None:
        known, nlta = self._levels[news.letter], round(self._trigger.lta_s * self._rate_hz)
        done, end_ns = 0, news.start_ns
        for samples, before, after in news.levels:
            kept = _kept(samples, nlta)
            done += samples
            begin_ns, end_ns = end_ns, news.start_ns + round(done * NS / self._rate_hz)
            mean = (after - before * kept) / (1 - kept)
            known.append((begin_ns, end_ns, mean if mean > 0 else 0.0, after))

    def _add_alive(self, news: _Alive) -> None:
        if not self._begun_ns:
            self._begun_ns = news.time_ns
        if not self._armed_ns and news.letters and self._can_trigger():
            self._armed_ns = news.time_ns
        if news.time_ns < self._now_ns - STEP_NS:
            self._set_back(news.time_ns)
        if self._next is None:
            self._next = news.time_ns // STEP_NS
        self._alive.append(news)

    def _set_back(self, time_ns: int) -> None:
        """The clock was set back: what was heard moves along, so that it lies before what comes."""
        shift = self._now_ns // STEP_NS - time_ns // STEP_NS
        steps = [replace(step, number=step.number - shift) for step in self._steps]
        self._steps.clear()
        self._steps.extend(steps)
        self._levels.clear()
        self._alive.clear()
        self._on.clear()
        self._felt.clear()
        self._felt_levels.clear()
        self._begun_ns = min(self._begun_ns, time_ns)
        self._armed_ns -= shift * STEP_NS if self._armed_ns else 0
        self._now_ns, self._next = time_ns, time_ns // STEP_NS

    def _advance(self, time_ns: int) -> None:
        self._now_ns = max(self._now_ns, time_ns)
        # What the averages wrote down last may end a step later than the step itself.
        until = time_ns // STEP_NS - 1
        if self._next is None or until <= self._next:
            return
        # Of a gap, however long, nothing need be said between its beginning and what is kept.
        begun = min(self._next + _LOOKED, until)
        for number in chain(range(self._next, begun), range(max(begun, until - HOUR), until)):
            self._complete(number)
            if self.told is not None:
                self.told(self._steps[-1])
        self._next = until

    def _complete(self, number: int) -> None:
        begin_ns, end_ns = number * STEP_NS, (number + 1) * STEP_NS
        levels: dict[str, float] = {}
        long: dict[str, float] = {}
        for letter, runs in self._levels.items():
            while len(runs) > 1 and runs[0][1] <= begin_ns and runs[1][1] <= end_ns:
                runs.popleft()
            total, span = 0.0, 0
            for first_ns, last_ns, mean, _ in runs:
                if first_ns >= end_ns:
                    break
                inside = (last_ns if last_ns < end_ns else end_ns) - (first_ns if first_ns > begin_ns else begin_ns)
                if inside > 0:
                    total += inside * mean
                    span += inside
            if span:
                levels[letter] = math.sqrt(total / span)
            if runs:
                long[letter] = runs[0][3]
        usual, usual_levels = self._usual()
        by_level = _by_level(levels, usual_levels, whole=self._whole)
        flaws = self._raw.union(by_level) if by_level else self._raw  # an hour of empty sets of their own takes memory
        if self._flat:
            flaws |= self._without_sensor(number, levels)
        broken = frozenset([letter for fault, letter in flaws if fault not in _LOUD]) if flaws else _NOTHING
        armed_ns, alive = self._armed(begin_ns, end_ns, broken)
        threshold = self._threshold({name: long[name] for name in alive if name in long}, broken) if armed_ns else None
        if threshold is not None and math.isinf(threshold):
            armed_ns, threshold = 0, None
        if not levels:
            flaws = _NO_FLAWS  # nothing came, of which anything could be said
        stuck = _share(self._on, begin_ns, end_ns)
        masked = threshold is not None and usual is not None and threshold > FAR_ABOVE * usual
        self._steps.append(Step(number, armed_ns / STEP_NS, threshold, levels, flaws, stuck, masked))
        while self._felt and self._felt[0][0] <= number:
            self._feel(number, self._felt.popleft()[1])
        if (number + 1) % SLOT == 0:
            self._end_slot(number + 1)

    def _feel(self, number: int, letters: frozenset[str]) -> None:
        """Note that the components were moved in the last minute, and how little is enough to tell."""
        recent = self._last(_LOOKED + 1, number + 1)
        for letter in letters:
            level = max((step.levels[letter] for step in recent if letter in step.levels), default=0.0)
            self._felt_levels.note(letter, number, level)

    def _is_doubtful(self, letter: str, usual: Mapping[str, float], number: int, steps: Sequence[Step]) -> bool:
        recent = [step.levels.get(letter, 0.0) for step in steps]
        if len(recent) <= _LOOKED or letter not in usual or FALLEN * min(recent) < usual[letter]:
            return True
        return max(recent[2:]) < _AS_LOUD * self._felt_levels.least(letter, number - TEN_MINUTES)

    def _without_sensor(self, number: int, levels: Mapping[str, float]) -> frozenset[Flaw]:
        """Components that record what electronics do, at a level far below any at which they were moved, and below the
        quietest ten minutes of the last day."""
        band = band_of(self._trigger)
        slots = [slot for slot in self._slots or self._first_slot() if slot.band == band]
        found: set[Flaw] = set()
        for letter in self._flat & levels.keys():
            known = [slot.levels[letter] for slot in slots if letter in slot.levels]
            felt = self._felt_levels.least(letter, number - STEPS_A_DAY)
            if known and FALLEN * levels[letter] < min(*known, felt):
                found.add(("disconnected", letter))
        return frozenset(found)

    def _armed(self, begin_ns: int, end_ns: int, broken: frozenset[str]) -> tuple[int, frozenset[str]]:
        """Nanoseconds of the step in which enough components lived, and those that did at its end."""
        changes, total = self._alive, 0
        while len(changes) > 1 and changes[1].time_ns <= begin_ns:
            changes.popleft()
        now = _NOTHING
        for i, change in enumerate(changes):
            if change.time_ns >= end_ns:
                break
            until = changes[i + 1].time_ns if i + 1 < len(changes) else end_ns
            now = change.letters
            working = now - broken if broken else now
            if len(working) >= max(1, self._needed(now)):
                total += max(0, min(until, end_ns) - max(change.time_ns, begin_ns))
        return total, now

    def _needed(self, alive: frozenset[str]) -> int:
        t = self._trigger
        return 1 if t.combine == "vector" else min(t.components_needed, len(alive))

    def _can_trigger(self) -> bool:
        return not self._rate_hz or not math.isinf(self._least())

    def _least(self) -> float:
        """``least_energy`` of the settings as they are: to look it up costs more than a step."""
        known, least = self._least_of
        if known is None or known[0] is not self._trigger or known[1:] != (self._rate_hz, self._high_hz):
            least = least_energy(self._trigger, self._rate_hz, self._high_hz)
            self._least_of = (self._trigger, self._rate_hz, self._high_hz), least
        return least

    def _threshold(self, energies: Mapping[str, float], broken: frozenset[str]) -> float | None:
        """Counts, from the long averages of what is alive; infinite where no event would trigger, None where nothing is
        known of the background."""
        working = [letter for letter in energies if letter not in broken] if broken else energies
        if not working:
            return None
        least = self._least()
        if math.isinf(least):
            return least
        if self._trigger.combine == "vector":
            return math.sqrt(least * sum(energies.values()) / len(working))
        needed = self._needed(frozenset(energies))
        each = sorted(math.sqrt(least * energies[letter]) for letter in working)
        return each[needed - 1] if len(each) >= needed else math.inf

    def _end_slot(self, until: int) -> None:
        # What is far above the usual does not become usual before all that was is a day old.
        steps = [step for step in self._last(SLOT, until) if _is_usable(step)]
        start_s = (until - SLOT) * STEP_S
        if any(fault == "disconnected" for step in self._last(SLOT, until) for fault, _ in step.flaws):
            return  # what was usual with a sensor stays known for as long as there is none
        while self._slots and not start_s - DAY_S < self._slots[0].start_s < start_s:
            self._slots.popleft()
            self._usual_now = None
        if len(steps) < _USABLE:
            return
        if self._slots and self._slots[-1].start_s >= start_s:
            self._slots.clear()  # they are of another time
        self._slots.append(_slot(start_s, steps, band_of(self._trigger)))
        self._usual_now = None

    def _usual(self) -> tuple[float | None, Mapping[str, float]]:
        """Threshold and levels of the last day; nothing before ten minutes of it are known."""
        if self._usual_now is None or not (self._slots or self._next is None or self._next % _REFRESHED):
            self._usual_now = self._find_usual()
        return self._usual_now

    def _find_usual(self) -> tuple[float | None, Mapping[str, float]]:
        slots: Sequence[Slot] = self._slots or self._first_slot()
        if not slots:
            return None, {}
        levels: dict[str, list[float]] = {}
        for slot in slots:
            for letter, level in slot.levels.items():
                levels.setdefault(letter, []).append(level)
        return median(slot.threshold for slot in slots), {letter: median(found) for letter, found in levels.items()}

    def _first_slot(self) -> list[Slot]:
        """What is known before there is a slot."""
        steps = [step for step in self._steps if _is_usable(step)]
        return [_slot(0, steps, band_of(self._trigger))] if len(steps) >= _KNOWN else []

    def _due_ns(self) -> int:
        """When the sensor should have begun to listen."""
        return self._begun_ns + round(self._trigger.lta_s * NS)

    def _figures(self, silent_s: float) -> Figures:
        if self._next is None:
            return Figures()
        now = max(self._next, (self._now_ns + round(silent_s * NS)) // STEP_NS - 1)
        usual, _ = self._usual()
        usual_s = STEP_S * (len(self._slots) * SLOT or sum(map(_is_usable, self._steps)))
        due_ns = self._due_ns()
        listening_in_s = None
        if not self._armed_ns:
            left_s = (due_ns - max(self._now_ns, self._begun_ns)) / NS - silent_s
            listening_in_s = max(1.0, left_s) if left_s > -GRACE_S and self._can_trigger() else None
        if listening_in_s is not None:
            return Figures(listening_in_s, usual=usual, usual_s=usual_s)
        since = math.ceil((self._armed_ns or due_ns) / STEP_NS)
        hour = self._last(min(HOUR, now - since), now)
        half = self._last(min(HALF_HOUR, now - since), now)
        recent = self._last(min(TEN_MINUTES, now - since), now)
        armed = sum([step.armed for step in recent])
        came = [step for step in recent if step.levels]
        thresholds = [step.threshold for step in recent if step.threshold is not None]
        flaws = Counter(flaw for step in came for flaw in step.flaws)
        return Figures(
            None,
            _over(armed, min(TEN_MINUTES, now - since)),
            _over(sum([step.armed for step in hour]), min(HOUR, now - since)),
            median(thresholds) if thresholds else None,
            usual,
            usual_s,
            _masked(recent),
            _masked(half),
            {flaw: count / len(came) for flaw, count in flaws.items() if count >= _NO_CHANCE},
            sum([step.stuck for step in recent]) / TEN_MINUTES,
            sum([step.stuck for step in half]) / max(TEN_MINUTES, len(half)),
            STEP_S * max(0.0, min(TEN_MINUTES, now - since) - armed),
            self._can_trigger(),
        )

    def _last(self, count: int, until: int) -> list[Step]:
        """The steps of the last ``count`` before number ``until``, as far as they are complete and known."""
        if not self._steps:
            return []
        count -= until - 1 - self._steps[-1].number
        return list(islice(self._steps, max(0, len(self._steps) - max(0, count)), None))


_LOUD: tuple[Fault, ...] = ("copies", "filled", "clipped", "louder_than_neighbours", "louder_than_usual")
"""With these a component still moves."""


@lru_cache(maxsize=256)
def _kept(samples: int, nlta: int) -> float:
    """What a long average keeps of itself over so many samples."""
    return math.exp(samples * math.log1p(-1 / nlta))


def _over(total: float, steps: int) -> float | None:
    return min(1.0, total / steps) if steps > 0 else None


def _hears(step: Step) -> bool:
    return step.armed > 0.999 and not step.masked


def _masked(steps: Sequence[Step]) -> float:
    armed = sum([step.armed for step in steps])
    return sum([step.armed for step in steps if step.masked]) / armed if armed else 0.0


def _is_usable(step: Step) -> bool:
    return step.armed >= 0.5 and step.threshold is not None and not (step.flaws or step.masked)


def _slot(start_s: int, steps: Sequence[Step], band: Band) -> Slot:
    letters = {letter for step in steps for letter in step.levels}
    levels = {letter: median(s.levels[letter] for s in steps if letter in s.levels) for letter in sorted(letters)}
    return Slot(start_s, median(step.threshold or 0.0 for step in steps), levels, band)


def _share(changes: deque[_Trigger], begin_ns: int, end_ns: int) -> float:
    """Share of a span in which a trigger had been on for a minute; forgets what lies before it."""
    while len(changes) > 1 and changes[1].time_ns <= begin_ns:
        changes.popleft()
    total = 0
    for i, change in enumerate(changes):
        until = changes[i + 1].time_ns if i + 1 < len(changes) else end_ns
        if change.on:
            total += max(0, min(until, end_ns) - max(change.time_ns + _LONG_NS, begin_ns))
    return total / (end_ns - begin_ns)


def _by_level(levels: Mapping[str, float], usual: Mapping[str, float], *, whole: bool) -> set[Flaw]:
    """What is wrong with components of such band-passed amplitudes."""
    flaws: set[Flaw] = set()
    for letter, level in levels.items():
        if whole and level < LAST_BIT:
            flaws.add(("last_bit", letter))
        known = usual.get(letter, 0.0)
        if known and not known < FAR_OFF * level < FAR_OFF * FAR_OFF * known:
            flaws.add(("louder_than_usual" if level > known else "quieter_than_usual", letter))
    if levels and max(levels.values()) > FAR_OFF * min(levels.values()):
        ranked = sorted(levels, key=lambda letter: levels[letter])
        if levels[ranked[-1]] > FAR_OFF * levels[ranked[-2]] > 0:
            flaws.add(("louder_than_neighbours", ranked[-1]))
        if levels[ranked[0]] < levels[ranked[1]] / FAR_OFF:
            flaws.add(("quieter_than_neighbours", ranked[0]))
    return flaws
