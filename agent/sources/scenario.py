"""What happens at a synthetic site, and when: events and faults drawn from rates, the same for the same seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from agent.sources.synthesis import Kind

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
    """The same rates at all times."""
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
