"""A synthetic site as a source: noise, events and faults at given rates, seeded; for drills and load."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from agent.config.sources import station_ids
from agent.sources import Pacer
from agent.sources.synthesis import Array, Kind, Noise, motion
from agent.types import COMPONENTS, NS, BlockQuality, SampleBlock, StationId, StreamId, parse_ns

if TYPE_CHECKING:
    from agent.config.sources import SimulatorConfig

FaultKind: TypeAlias = Literal["gap", "clock_step", "spike", "dead_channel", "stall"]
KINDS: tuple[Kind, ...] = ("slopequake", "rockfall", "slide", "blast", "earthquake")
FAULTS: tuple[FaultKind, ...] = ("gap", "clock_step", "spike", "dead_channel", "stall")
Rates: TypeAlias = Callable[[float], Mapping[str, float]]
"""Events per hour of each kind (of ``KINDS`` or ``FAULTS``) at a time in seconds since the start."""
CELL_S = 60.0
"""Rates are taken as constant for so long."""
QUIET_S = 60.0
"""Nothing happens at first: the trigger's long average has to fill."""
FAILURE = 0.9
"""Share of a crisis after which the slope fails."""
ROCKFALLS = 8
"""Rockfalls of the script of that name."""
_FAULT_S: Mapping[FaultKind, tuple[float, float]] = {
    "gap": (1, 20),
    "clock_step": (60, 300),
    "spike": (0, 0),
    "dead_channel": (60, 600),
    "stall": (5, 60),
}
LIMIT = 2**23 - 1
"""Largest count of a 24-bit converter; the signal is cut there."""
_GOOD = BlockQuality(timing_percent=100, clock_locked=True)
_BAD = BlockQuality(timing_percent=10, clock_locked=False, time_questionable=True)
_SPREAD_S = 0.3
"""Largest delay between two stations of the site."""


@dataclass(frozen=True, slots=True)
class Planned:
    """An event: ``at_s`` after the start; ``peak`` in multiples of the noise's RMS at the nearest station."""

    index: int
    kind: Kind
    at_s: float
    peak: float


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that goes wrong at ``station`` (a number) from ``at_s`` on.

    ``row`` is the component, for a fault that concerns one; ``step_s`` is how far a clock is off.
    """

    kind: FaultKind
    at_s: float
    seconds: float
    station: int
    row: int
    step_s: float

    def __str__(self) -> str:
        where = f" {'ENZ'[self.row]}" if self.kind in ("gap", "spike", "dead_channel") else ""
        what = f" by {self.step_s:+.1f} s" if self.kind == "clock_step" else ""
        return f"{self.kind.replace('_', ' ')}{where}{what}" + (f", {self.seconds:.0f} s" if self.seconds else "")


def steady(per_hour: Mapping[str, float]) -> Rates:
    """Rates that are the same at all times."""
    return lambda at_s: per_hour


def crisis(seconds: float) -> Rates:
    """A slope that fails: the rates of its own events grow as the inverse of the time that is left (Fukuzono 1985,
    Voight 1988), and fall off after the failure at nine tenths of ``seconds``."""
    failure_s = FAILURE * seconds

    def rates(at_s: float) -> Mapping[str, float]:
        left = max(failure_s - at_s, 0.02 * seconds) / seconds if at_s < failure_s else 0.2 + at_s / seconds
        scale = 3600 / seconds
        return {
            "slopequake": scale * 12 / left,
            "rockfall": scale * 4 / left,
            "blast": scale,
            "earthquake": 2 * scale,
            "slide": 0.0,
        }

    return rates


@dataclass(frozen=True, slots=True)
class Certain:
    """An event that the script holds whatever is drawn: ``peak`` in multiples of the noise's RMS."""

    kind: Kind
    at_s: float
    peak: float


def failure(seconds: float) -> tuple[Certain, ...]:
    """Return the slide with which a crisis of this length ends."""
    return (Certain("slide", FAILURE * seconds, 900.0),)


def rockfalls(seconds: float) -> tuple[Certain, ...]:
    """Return eight rockfalls at equal intervals, each almost twice as large as the one before: 10 to 600 times the
    noise."""
    step_s = (seconds - QUIET_S) / ROCKFALLS
    return tuple(Certain("rockfall", QUIET_S + k * step_s, 10 * 1.8**k) for k in range(ROCKFALLS))


class Scenario:
    """Events and faults in the order of time: drawn from ``rates``, those that are ``certain``, and ``faults``."""

    def __init__(
        self,
        seed: int,
        rates: Rates,
        stations: int,
        certain: Sequence[Certain] = (),
        faults: Sequence[Fault] = (),
    ) -> None:
        self._seed, self._rates, self._stations = seed, rates, stations
        self._certain, self._faults = tuple(certain), tuple(faults)

    def cell(self, number: int) -> Iterator[Planned | Fault]:
        """What begins in one stretch of ``CELL_S`` seconds."""
        begin_s = number * CELL_S
        rng = np.random.default_rng([self._seed, 2, number])
        per_hour = self._rates(begin_s + CELL_S / 2)
        found: list[Planned | Fault] = []
        for i, kind in enumerate(KINDS):
            for k in range(rng.poisson(per_hour.get(kind, 0.0) * CELL_S / 3600)):
                # Many small ones and few large: the number above a size falls off as its inverse.
                peak = 15.0 / rng.uniform(0.02, 1.0)
                found.append(Planned((number * len(KINDS) + i) * 1000 + k, kind, begin_s + CELL_S * rng.random(), peak))
        for wrong in FAULTS:
            times = rng.poisson(per_hour.get(wrong, 0.0) * CELL_S / 3600)
            found += [self._fault(wrong, begin_s, rng) for _ in range(times)]
        here = [one for one in self._certain if begin_s <= one.at_s < begin_s + CELL_S]
        last = (number + 1) * len(KINDS) * 1000 - 1
        found += [Planned(last - k, one.kind, one.at_s, one.peak) for k, one in enumerate(here)]
        found += [one for one in self._faults if begin_s <= one.at_s < begin_s + CELL_S]
        return iter(sorted((what for what in found if what.at_s >= QUIET_S), key=lambda what: what.at_s))

    def _fault(self, kind: FaultKind, begin_s: float, rng: np.random.Generator) -> Fault:
        low, high = _FAULT_S[kind]
        step_s = float(rng.uniform(0.2, 5.0) * rng.choice((-1, 1)))
        at_s, seconds = begin_s + CELL_S * rng.random(), rng.uniform(low, high)
        return Fault(kind, at_s, seconds, int(rng.integers(self._stations)), int(rng.integers(3)), step_s)


@dataclass(frozen=True, slots=True)
class Sent:
    """An event that was put into the data: its onset at ``station``, the length of its signal and its peak (counts)."""

    planned: Planned
    station: StationId
    onset_ns: int
    seconds: float
    peak_counts: float


@dataclass(frozen=True, slots=True)
class SentFault:
    """A fault that begins."""

    fault: Fault
    station: StationId
    time_ns: int


Told = Callable[[Sent | SentFault], None]


@dataclass(frozen=True, slots=True)
class SimulatedSite:
    """``stations`` at ``rate_hz`` with three components each; ``noise_counts`` is the RMS of the ground noise."""

    stations: tuple[StationId, ...]
    rate_hz: float = 100.0
    noise_counts: float = 100.0
    packet_s: float = 1.0


class SimulatorSource:
    """Packets of all stations in the order of time, as a data logger would send them.

    The same scenario, seed and start give the same packets. ``told`` hears of each event and fault when the packet with
    its onset is handed on.

    Args:
        site: the stations and their instruments.
        scenario: what happens.
        seed: of noise and signals.
        start_ns: time of the first sample; None for now.
        seconds: how much to play; None for no end.
        speed: seconds of data per second, 0 for as fast as it goes.
        recorded: real ground motion to be used for events of a kind, ``[3, n]`` from the onset on, at the site's rate,
            its largest sample 1.
    """

    def __init__(
        self,
        site: SimulatedSite,
        scenario: Scenario,
        seed: int,
        *,
        start_ns: int | None = None,
        seconds: float | None = None,
        speed: float = 1.0,
        told: Told | None = None,
        recorded: Mapping[Kind, Sequence[Array]] | None = None,
    ) -> None:
        self._site, self._scenario, self._seed = site, scenario, seed
        self._start_ns, self._seconds, self._told = start_ns, seconds, told
        self._stop = threading.Event()
        self._pacer = Pacer(speed, self._stop)
        self._loggers = [
            _Logger(site, number, station, seed, recorded or {}) for number, station in enumerate(site.stations)
        ]

    def close(self) -> None:
        """Make ``blocks()`` end after the current block, also from another thread or while it waits."""
        self._stop.set()

    def blocks(self) -> Iterator[SampleBlock]:
        """Packets as they come, until ``close`` or the end of what is to be played."""
        for packets in self.rounds():
            for block in packets:
                if self._stop.is_set():
                    return
                yield block

    def rounds(self) -> Iterator[list[SampleBlock]]:
        """The same packets, those of all channels that are due at the same time together; last what was held up."""
        site, rate = self._site, self._site.rate_hz
        start_ns = time.time_ns() if self._start_ns is None else self._start_ns
        self._pacer.wait(start_ns)  # what is counted from: a packet comes when its last sample has been recorded
        size = max(1, round(site.packet_s * rate))
        total = None if self._seconds is None else round(self._seconds * rate)
        first = cell = 0
        while (total is None or first < total) and not self._stop.is_set():
            n = size if total is None else min(size, total - first)
            while cell * CELL_S < (first + n) / rate + 2 * _SPREAD_S:
                for what in self._scenario.cell(cell):
                    self._plan(what, start_ns)
                cell += 1
            end_ns = start_ns + round((first + n) * NS / rate)
            self._pacer.wait(end_ns)
            yield [block for logger in self._loggers for block in logger.packets(first, n, start_ns)]
            if self._told:
                for logger in self._loggers:
                    logger.tell(end_ns, self._told)
            first += n
        yield [block for logger in self._loggers for block in logger.release()]

    def _plan(self, what: Planned | Fault, start_ns: int) -> None:
        if isinstance(what, Fault):
            self._loggers[what.station].fail(what, start_ns)
            return
        for logger in self._loggers:
            logger.shake(what, start_ns)


@dataclass(slots=True)
class _Shaking:
    first: int
    data: Array


class _Logger:
    """One station's instrument: its noise, the signals that reach it, and what is wrong with it."""

    def __init__(
        self,
        site: SimulatedSite,
        number: int,
        station: StationId,
        seed: int,
        recorded: Mapping[Kind, Sequence[Array]],
    ) -> None:
        self._site, self._number, self._station, self._seed, self._recorded = site, number, station, seed, recorded
        self._noise = [Noise(seed, 3 * number + row, site.rate_hz, site.noise_counts) for row in range(3)]
        self._streams = [StreamId(station, component) for component in COMPONENTS]
        self._shaking: list[_Shaking] = []
        self._faults: list[Fault] = []
        self._held: list[SampleBlock] = []
        self._last = [0, 0, 0]
        self._news: deque[tuple[int, Sent | SentFault]] = deque()

    def shake(self, event: Planned, start_ns: int) -> None:
        """An event's waves arrive."""
        rate = self._site.rate_hz
        rng = np.random.default_rng([self._seed, 3, event.index, self._number])
        recorded = self._recorded.get(event.kind)
        data = recorded[int(rng.integers(len(recorded)))] if recorded else motion(event.kind, rng, rate)
        delay_s = rng.uniform(0, _SPREAD_S) if self._number else 0.0
        peak = event.peak * self._site.noise_counts * (rng.uniform(0.4, 1.0) if self._number else 1.0)
        first = round((event.at_s + delay_s) * rate)
        self._shaking.append(_Shaking(first, peak * data))
        onset_ns = start_ns + round(first * NS / rate)
        sent = Sent(event, self._station, onset_ns, data.shape[1] / rate, min(peak, LIMIT))
        self._news.append((onset_ns, sent))

    def fail(self, fault: Fault, start_ns: int) -> None:
        """Something breaks."""
        self._faults.append(fault)
        time_ns = start_ns + round(fault.at_s * NS)
        self._news.append((time_ns, SentFault(fault, self._station, time_ns)))

    def tell(self, until_ns: int, told: Told) -> None:
        """Hand on the news up to a time."""
        for item in sorted((item for item in self._news if item[0] < until_ns), key=lambda item: item[0]):
            self._news.remove(item)
            told(item[1])

    def packets(self, first: int, n: int, start_ns: int) -> list[SampleBlock]:
        """The three components' samples ``first`` to ``first + n``, less and worse where there are faults."""
        rate = self._site.rate_hz
        begin_s, end_s = first / rate, (first + n) / rate
        data = self._ground(first, n)
        self._faults = [fault for fault in self._faults if fault.at_s + fault.seconds >= begin_s]
        now = [fault for fault in self._faults if fault.at_s < end_s]
        lost = {fault.row for fault in now if fault.kind == "gap"}
        step_s = sum(fault.step_s for fault in now if fault.kind == "clock_step")
        for fault in now:
            if fault.kind == "dead_channel":
                data[fault.row] = self._last[fault.row]
            elif fault.kind == "spike" and fault.at_s >= begin_s:
                data[fault.row, min(n - 1, int((fault.at_s - begin_s) * rate))] = LIMIT
        self._last = data[:, -1].tolist()
        time_ns = start_ns + round(first * NS / rate) + round(step_s * NS)
        quality = _BAD if step_s else _GOOD
        data.flags.writeable = False
        self._held += [
            SampleBlock(stream, time_ns, rate, data[row], quality)
            for row, stream in enumerate(self._streams)
            if row not in lost
        ]
        return [] if any(fault.kind == "stall" for fault in now) else self.release()

    def release(self) -> list[SampleBlock]:
        """What was held up."""
        held, self._held = self._held, []
        return held

    def _ground(self, first: int, n: int) -> np.ndarray[tuple[int, int], np.dtype[np.int32]]:
        data = np.stack([noise.samples(first, n) for noise in self._noise])
        for shaking in self._shaking:
            begin = shaking.first - first
            a, b = max(0, begin), min(n, begin + shaking.data.shape[1])
            if a < b:
                data[:, a:b] += shaking.data[:, a - begin : b - begin]
        self._shaking = [s for s in self._shaking if s.first + s.data.shape[1] > first + n]
        return np.rint(np.clip(data, -LIMIT, LIMIT)).astype(np.int32)


def open_simulator(config: SimulatorConfig, network: str, station: str) -> SimulatorSource:
    """The source of a configuration."""
    rates, faults = config.rates, config.faults
    per_hour: dict[str, float] = {kind: getattr(rates, f"{kind}s_per_hour") for kind in KINDS}
    per_hour |= {kind: getattr(faults, f"{kind}s_per_hour") for kind in FAULTS}
    site = SimulatedSite(
        station_ids(network, station, config.stations, config.rate_hz),
        config.rate_hz,
        config.noise_counts,
        config.packet_s,
    )
    return SimulatorSource(
        site,
        Scenario(config.seed, steady(per_hour), config.stations),
        config.seed,
        start_ns=None if config.start is None else parse_ns(config.start),
        seconds=None if config.hours is None else config.hours * 3600,
        speed=config.speed,
    )
