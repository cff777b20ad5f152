"""Events and RSAM as rates, for the health report: what landslide operators watch besides the events themselves."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping

from agent.dsp.measure import Minute
from agent.messages.schema import RateHealth, RsamHealth
from agent.types import NS, Event, StationId, format_ns

HOUR_NS = 3600 * NS
DAY_NS = 24 * HOUR_NS
MOST = 64
"""Rates and stations that are reported."""
_KEPT = 100_000


class Rates:
    """Counts events at their end, by station and label, in the time of the data. Not thread-safe."""

    def __init__(self) -> None:
        self._events: deque[tuple[int, StationId, str]] = deque(maxlen=_KEPT)

    def add(self, event: Event) -> None:
        """An event has ended."""
        self._events.append((event.onset_ns, event.station, event.called))

    def report(self, newest_ns: Mapping[StationId, int]) -> list[RateHealth]:
        """Rates as of each station's newest sample; the inverse rate is that of Fukuzono (1985) and Voight (1988)."""
        hour: Counter[tuple[StationId, str]] = Counter()
        day: Counter[tuple[StationId, str]] = Counter()
        for onset_ns, station, label in self._events:
            age_ns = newest_ns.get(station, onset_ns) - onset_ns
            hour[station, label] += -HOUR_NS < age_ns <= HOUR_NS
            day[station, label] += -HOUR_NS < age_ns <= DAY_NS
        return [
            RateHealth(
                station=str(station),
                label=label,
                per_hour=float(hour[station, label]),
                per_day=float(count),
                inverse_rate_h=round(1 / hour[station, label], 4) if hour[station, label] else None,
            )
            for (station, label), count in day.most_common(MOST)
            if count
        ]


def rsam_health(station: StationId, minutes: tuple[Minute, ...]) -> RsamHealth | None:
    """The newest complete minute and the mean of the hour up to it; None before there is one."""
    if not minutes:
        return None
    newest = minutes[-1]
    recent = [minute for minute in minutes if 0 <= newest.start_ns - minute.start_ns < HOUR_NS]
    weight = sum(minute.coverage for minute in recent)
    mean = sum(minute.mean_counts * minute.coverage for minute in recent) / weight if weight else newest.mean_counts
    return RsamHealth(
        station=str(station),
        minute=format_ns(newest.start_ns),
        counts=newest.mean_counts,
        coverage=newest.coverage,
        hour_counts=float(f"{mean:.6g}"),
    )
