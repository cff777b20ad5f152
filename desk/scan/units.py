"""What is judged on its own: a sensor's UTC day, read from before midnight until after the next one.

**The catalogue is that of one unbroken pass.** What a detector remembers at midnight has to be the same, whether it ran
all year or began some time before. Everything it remembers fades or ends:

- the averages forget exponentially: after ``FORGOTTEN`` lengths of the long one, exp(-60) = 9e-27 of what was before is
  left, less than the rounding of a sum whose terms differ by a factor of 1e10;
- the band-pass forgets within seconds;
- a trigger ends after ``max_duration_s``, and what follows within ``merge_s`` belongs to it: after ``CHAINS`` of them a
  chain of triggers that began differently has met a moment of quiet;
- a window and the noise before an onset reach back over the ring buffer;
- the background of slow events is what was usual of ``background_s``, and one of them may run for ``max_duration_s``,
  after which the next waits for quiet: twice that is read.

So a unit is read from ``before_ns`` ahead. That it is enough is not taken on trust: each unit also writes down the
events that it finds in the last part of its run-up, which the unit before it has as its own, and merging compares them
(``folder.seams``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone

from agent.config.station import TriggerConfig
from agent.detect.station import RING_S
from agent.dsp.window import AFTER_NS
from agent.types import MAX_BLOCK_S, NS, StationId

DAY_NS = 86_400 * NS
FORGOTTEN = 60
CHAINS = 5


def before_ns(trigger: TriggerConfig) -> int:
    """How long before a unit's first onset its data are read."""
    slow = trigger.slow
    usual_s = slow.background_s + 2 * slow.max_duration_s if slow.enabled else 0.0
    return _settled_ns(trigger) + _whole_minutes(usual_s)


def _settled_ns(trigger: TriggerConfig) -> int:
    """How long the trigger remembers, leaving aside slow events."""
    settles_s = max(FORGOTTEN * trigger.lta_s, CHAINS * (trigger.max_duration_s + trigger.merge_s))
    return _whole_minutes(settles_s + RING_S)


def seam_ns(trigger: TriggerConfig) -> int:
    """The end of that time in which what is found is compared with the unit before."""
    return _settled_ns(trigger) // 3


def after_ns(trigger: TriggerConfig) -> int:
    """How long after a unit's last onset its data are read: until the last verdict, whatever is late."""
    slow_s = trigger.slow.max_duration_s + 60.0 if trigger.slow.enabled else 0.0
    last_s = max(AFTER_NS / NS, trigger.max_duration_s + trigger.merge_s, slow_s)
    return _whole_minutes(last_s + trigger.max_component_lag_s + 2 * MAX_BLOCK_S)


def span(unit: Unit, trigger: TriggerConfig) -> tuple[int, int]:
    """From when to before when a unit is read: whole minutes of UTC, on which packets are cut."""
    minute = 60 * NS
    begin, end = unit.from_ns - before_ns(trigger), unit.to_ns + after_ns(trigger)
    return begin // minute * minute, -(-end // minute) * minute


def _whole_minutes(seconds: float) -> int:
    return -int(-seconds // 60) * 60 * NS


@dataclass(frozen=True, slots=True, order=True)
class Unit:
    """Onsets of one sensor from ``from_ns`` to before ``to_ns``, in one UTC day. ``files`` may hold what it reads."""

    station: StationId
    from_ns: int
    to_ns: int
    files: tuple[str, ...] = ()

    @property
    def day(self) -> str:
        """``2026-03-01``."""
        return day_of(self.from_ns)

    def __str__(self) -> str:
        return f"{self.station} {self.day}"


def day_of(time_ns: int) -> str:
    """The UTC day of a time, as ISO 8601."""
    return datetime.fromtimestamp(time_ns // NS, timezone.utc).strftime("%Y-%m-%d")


def days(from_ns: int, to_ns: int) -> Iterator[int]:
    """The beginning of each UTC day that a span touches."""
    day = from_ns // DAY_NS * DAY_NS
    while day < to_ns:
        yield day
        day += DAY_NS
