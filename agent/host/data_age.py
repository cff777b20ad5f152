"""How old the data are, as far as this machine's clock can tell: for alerts, and for the station's health.

The age is this machine's time less the time of the newest sample. It is known only where the clock is set
(``agent.host.clock``), and two things make it misleading:

- A recorder whose GPS receiver has rolled over counts from 1024 weeks ago (19.6 years), or from a multiple of that.
  Data that are a whole number of times 1024 weeks old, to a day, are taken to be such: the rest is their age.
- A machine's clock that nothing synchronises drifts by minutes a year. Data that keep the same distance from it, of
  less than a day, while they come as they are recorded, are of an unknown age: one of the two clocks is wrong.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field

from agent.host.clock import EARLIEST_NS, MachineClock, Moment
from agent.reasons import Code, Reason
from agent.types import NS, SampleBlock, StationId

ROLLOVER_WEEKS = 1024
ROLLOVER_S = ROLLOVER_WEEKS * 7 * 86_400.0
DAY_S = 86_400.0
EARLY_S = 60.0
"""Data further ahead of the clock than this are a reason; ``agent.detect.lag`` judges smaller differences."""
STEADY_S = 60.0
"""Data that have kept the same age, to ``SPREAD_S``, for so long come as they are recorded."""
SPREAD_S = 20.0
HEARD_S = 120.0
"""A sensor without packets for so long is silent, or its data come in bursts, as files of an hour do."""
GROWN_S = 60.0
"""Data that keep coming so much later than the best of the last day come late, however old that makes them."""
BEST_S, REMEMBERED = 3600.0, 24
"""The smallest age is kept for so long at a time, and so often."""
BURST_S, BURSTS_S = 600.0, 7200.0
"""Longest burst, and longest time between two. Such a sensor is judged by the oldest data of the last burst."""
MAX_SENSORS = 256
NAMED = 5
AHEAD_S = 0.5
LATE_S = 4.0
"""An alarm that is later than this is late; and no clock is five seconds off without being told."""


@dataclass(frozen=True, slots=True)
class Age:
    """How old data are: ``seconds`` is negative for data of the future, None where it is not known; then ``unknown``
    says what can be said instead, as a clause for an alert. With ``at_least`` they may be older."""

    seconds: float | None
    unknown: str = ""
    at_least: bool = False

    def exceeds(self, seconds: float) -> bool:
        """Whether the data are known to be older."""
        return self.seconds is not None and self.seconds > seconds


@dataclass(slots=True)
class _Sensor:
    """``lags``: age of the newest sample when it came, with the monotonic time, some seconds apart. ``worst_s``: the
    largest of them since ``begun_s``, when packets came again after a silence; ``spread_s`` how far ``lags`` differ."""

    heard_s: float
    lag_s: float
    begun_s: float
    worst_s: float
    lags: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=32))
    spread_s: float = 0.0
    best: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    """Smallest age of each hour, and when the hour began."""

    def note(self, now_s: float, lag_s: float) -> None:
        """Add to ``lags`` and to ``best``."""
        self.lags.append((now_s, lag_s))
        possible_s = max(0.0, lag_s)
        if self.best and now_s - self.best[-1][0] < BEST_S:
            began_s, least_s = self.best[-1]
            self.best[-1] = began_s, min(least_s, possible_s)
        else:
            self.best.append((now_s, possible_s))
        known = [lag_s for _, lag_s in self.lags]
        self.spread_s = max(known) - min(known)

    def keeps(self, now_s: float) -> bool:
        """Whether the ages that are known span long enough, and the recent ones differ little enough."""
        if now_s - self.lags[0][0] < STEADY_S:
            return False
        if self.spread_s <= SPREAD_S:
            return True
        recent = [lag_s for at_s, lag_s in self.lags if now_s - at_s <= 2 * STEADY_S]
        return max(recent, default=0.0) - min(recent, default=0.0) <= SPREAD_S


class DataAges:
    """One for all sensors. The pipeline's thread shows it the packets; any thread may ask."""

    def __init__(self, clock: MachineClock) -> None:
        self.clock = clock
        self._sensors: dict[StationId, _Sensor] = {}
        self._lock = threading.Lock()

    def saw(self, block: SampleBlock, received_ns: int, now_s: float) -> None:
        """A packet came in at ``received_ns`` (this machine's clock), ``now_s`` by the monotonic clock."""
        lag_s = (received_ns - block.end_ns) / NS
        with self._lock:
            sensor = self._sensors.get(block.stream.station)
            if sensor is None:
                if len(self._sensors) >= MAX_SENSORS:
                    return
                sensor = self._sensors[block.stream.station] = _Sensor(now_s, lag_s, now_s, lag_s)
            if now_s - sensor.heard_s > HEARD_S:
                sensor.begun_s, sensor.worst_s = now_s, lag_s
            sensor.worst_s = max(sensor.worst_s, lag_s)
            sensor.heard_s, sensor.lag_s = now_s, lag_s
            if not sensor.lags or now_s - sensor.lags[-1][0] >= STEADY_S / 16:
                sensor.note(now_s, lag_s)

    def forget(self) -> None:
        """This machine's clock was set: earlier ages cannot be compared with later ones."""
        with self._lock:
            self._sensors.clear()

    def age(self, data_ns: int) -> Age:
        """The age of data whose newest sample is of ``data_ns``."""
        moment = self.clock.now()
        if not moment.is_set:
            # That these data are older than this software needs no clock.
            if data_ns < EARLIEST_NS:
                return Age((EARLIEST_NS - data_ns) / NS, at_least=True)
            return Age(None, "the age of the data is not known: this machine's clock is not set")
        lag_s = (moment.ns - data_ns) / NS
        age_s = lag_s - rollovers(lag_s) * ROLLOVER_S
        if moment.trust == "unsynchronised" and abs(age_s) < DAY_S and self._is_steady():
            side = "old" if lag_s >= 0 else "early"
            return Age(None, f"data {span(lag_s)} {side} by this machine's clock, which nothing synchronises")
        return Age(age_s)

    def reasons(self, max_age_s: float) -> list[Reason]:
        """What is wrong with the age of what comes now; alerts on data older than ``max_age_s`` are late."""
        moment, now_s = self.clock.now(), time.monotonic()
        if not moment.is_set:
            return []
        with self._lock:
            judged = {name: _present_lag(one, now_s) for name, one in self._sensors.items()}
            grown = {name: _grown_s(one, now_s) for name, one in self._sensors.items()}
        lags = {name: lag_s for name, lag_s in judged.items() if lag_s is not None}
        found: dict[tuple[Code, str], list[StationId]] = {}
        for name, lag_s in sorted(lags.items()):
            if lag_s > max_age_s or lag_s < -EARLY_S:
                found.setdefault(_judge(lag_s, max_age_s, moment), []).append(name)
            elif (grown_s := grown[name]) > GROWN_S:
                found.setdefault(("data_late", f"samples come {span(grown_s)} later than before"), []).append(name)
        return [
            Reason(code, f"{words}: {_named(names)}", str(names[0]) if len(names) == 1 else None)
            for (code, words), names in found.items()
        ]

    def _is_steady(self) -> bool:
        """Whether all that comes keeps its distance from this machine's clock, as data do that come as recorded."""
        now_s = time.monotonic()
        with self._lock:
            alive = [one for one in self._sensors.values() if now_s - one.heard_s < HEARD_S]
            return bool(alive) and all(one.keeps(now_s) for one in alive)


def rollovers(lag_s: float) -> int:
    """How many times 1024 weeks data of this age are behind, to a day; negative: ahead; 0: they are not."""
    times = round(lag_s / ROLLOVER_S)
    return times if abs(lag_s - times * ROLLOVER_S) < DAY_S else 0


def span(seconds: float) -> str:
    """A length of time in the unit that suits it, without a sign."""
    size = abs(seconds)
    for unit_s, name in ((DAY_S, "d"), (3600.0, "h"), (60.0, "min")):
        if size >= 2 * unit_s:
            return f"{size / unit_s:.{1 if size < 10 * unit_s else 0}f} {name}"
    return f"{size:.1f} s" if size < 10 else f"{size:.0f} s"


def _judge(lag_s: float, max_age_s: float, moment: Moment) -> tuple[Code, str]:
    """Code and words for a sensor whose data are so far behind, or, negative, ahead."""
    side, weeks = "behind" if lag_s > 0 else "ahead", abs(rollovers(lag_s)) * ROLLOVER_WEEKS
    if moment.trust == "unsynchronised":
        far = f"{weeks} weeks" if weeks else span(lag_s)
        return "data_age_unknown", (
            f"samples are {far} {side} this machine's clock, which nothing synchronises: which of the two clocks is "
            "wrong cannot be judged"
        )
    if weeks:
        return "gps_rollover", f"the recorder's clock is {weeks} weeks {side} (GPS week rollover)"
    if lag_s < 0:
        return "data_early", f"samples are {span(lag_s)} ahead of this machine's clock"
    return (
        "data_late",
        f"samples come {span(lag_s)} late, and alerts on them are late (policy.max_age_s: {max_age_s:g})",
    )


def _present_lag(sensor: _Sensor, now_s: float) -> float | None:
    """How old the data of a sensor are that come now; None where none come."""
    silent_s = now_s - sensor.heard_s
    if silent_s < HEARD_S:
        return sensor.lag_s
    burst = sensor.heard_s - sensor.begun_s < BURST_S and silent_s < BURSTS_S
    return sensor.worst_s if burst and sensor.worst_s > 0 else None


def _grown_s(sensor: _Sensor, now_s: float) -> float:
    """By how much the data of two minutes without a pause have come later than the best of the last day."""
    recent = [lag_s for at_s, lag_s in sensor.lags if now_s - at_s <= HEARD_S]
    is_steady = now_s - sensor.heard_s < SPREAD_S and now_s - sensor.begun_s >= HEARD_S
    return min(recent) - min(least_s for _, least_s in sensor.best) if is_steady and recent else 0.0


def _named(names: list[StationId]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(map(str, names[:NAMED])) + more


@dataclass(frozen=True, slots=True)
class Freshness:
    """What was seen: ``hint`` is for the operator where it is not well."""

    well: bool
    detail: str
    hint: str = ""


def assess(what: str, block: SampleBlock, lag_s: float) -> Freshness:
    """Judge a block of ``what``, whose newest sample was so many seconds old when it came (negative: in the future)."""
    if weeks := rollovers(lag_s) * ROLLOVER_WEEKS:
        side = "behind" if weeks > 0 else "ahead"
        return Freshness(
            False,
            f"{what}, but the recorder's clock is {abs(weeks)} weeks {side}",
            "the week number of its GPS receiver has rolled over: update its firmware, or replace it; until then the "
            "times of events are as far off",
        )
    if lag_s < -AHEAD_S:
        return Freshness(
            False,
            f"{what}, but its samples are {span(lag_s)} ahead of this machine's clock",
            "one of the two clocks is wrong: check the recorder's GPS or NTP, and this machine's (line clock)",
        )
    if lag_s > LATE_S:
        return Freshness(
            False,
            f"{what}, but its newest sample is {span(lag_s)} old when it comes",
            "the way is slow, the recorder fills long records, or one of the two clocks is wrong: compare them",
        )
    if block.quality.time_questionable:
        return Freshness(False, f"{what}, but the recorder doubts its own clock", "check the recorder's GPS or NTP")
    percent = block.quality.timing_percent
    said = "" if percent is None else f", timing quality {percent} %"
    return Freshness(True, f"{what}, {max(lag_s, 0.0):.1f} s old when it comes{said}")
