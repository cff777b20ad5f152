"""A level trigger for what STA/LTA cannot see: ground motion that swells over minutes, slow slides and debris flows.

It looks at hearing's steps of ten seconds (``agent.dsp.hearing``): the ratio is the median power of the last minute
over the median power of the last thirty minutes to six hours, of which hearing keeps a median for every ten minutes. A
short burst does not move the median of a minute, and what lasts for hours becomes the background.

An event begins once the ratio has stayed above ``on`` for long enough and the loudest ten seconds came late enough
after the begin: an earthquake or a blast is loudest at once, and then only fades.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from agent.config.station import SlowTriggerConfig
from agent.dsp.hearing import SLOT, STEP_NS, STEP_S, Band, Slot, Step
from agent.types import NS

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
