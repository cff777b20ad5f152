"""What happens in a crisis, and when: drawn from a seed. Faults and strikes begin and end on whole minutes."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from agent.errors import TalusError, UsageError
from agent.sources.records import read_records
from agent.sources.simulator import Certain, Fault, FaultKind, Planned, Scenario, crisis, failure
from agent.sources.synthesis import Array
from agent.types import NS, parse_ns

Trouble: TypeAlias = Literal[
    "gap", "clock step", "dead channel", "dead sensor", "link cut", "broker restart", "disk full", "power cut"
]
LONGEST: Mapping[Trouble, int] = {
    "gap": 5,
    "clock step": 5,
    "dead channel": 10,
    "dead sensor": 30,
    "link cut": 60,
    "broker restart": 10,
    "disk full": 30,
    "power cut": 10,
}
"""Minutes."""
DEAF: frozenset[Trouble] = frozenset(("dead sensor", "power cut"))
"""With these nothing could be heard."""
START = "2026-03-02T00:00:00Z"
"""A Monday: the score of a seed must not depend on the day."""
SLOT_MINUTES = 5
"""Shortest time for one trouble and the quiet after it."""
_CALM = 0.08
_BEFORE_FAILURE = 0.86
"""Shares of the crisis between which there is trouble: the averages have filled, and the slope fails in peace."""
_PEAK = 200.0
"""Of the rockfalls that come with each strike, in multiples of the noise's RMS."""
_BEFORE_POWER_CUT_S = 8.0
_IN_STRIKE_S = 20.0
_BLASTS_H = (11.5, 16.0)
"""Hours of the day of the quarry's blasts."""
_RATE_HZ = 100.0


@dataclass(frozen=True, slots=True)
class Span:
    """A trouble, from minute ``begin`` to before minute ``end``."""

    kind: Trouble
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Plan:
    """``minutes`` of data from ``start_ns`` on. From minute ``muffled`` on, to before the second, the sensor hears its
    own noise as ever and nothing of the ground, which no station can notice: what the scorecard must find."""

    seed: int
    start_ns: int
    minutes: int
    troubles: tuple[Span, ...]
    muffled: tuple[int, int] | None = None

    @property
    def deaf(self) -> list[tuple[int, int]]:
        """Minutes in which nothing could be heard, as (begin, end)."""
        spans = [(span.begin, span.end) for span in self.troubles if span.kind in DEAF]
        return spans if self.muffled is None else [*spans, self.muffled]

    def scenario(self) -> Scenario:
        """What the simulator is to play."""
        seconds = 60.0 * self.minutes
        slope = crisis(seconds)
        scale = max(1.0, seconds / 3600 / 8)
        rest = {"earthquake": max(6.0, seconds / 3600 / 4) / (seconds / 3600), "spike": 0.5, "blast": 0.0}

        def rates(at_s: float) -> Mapping[str, float]:
            return {kind: scale * rate for kind, rate in slope(at_s).items()} | rest

        certain = [*failure(seconds), *self._blasts(), *self._in_strikes()]
        return _Scenario(self, Scenario(self.seed, rates, 1, certain, [*self._faults()]))

    def _blasts(self) -> Iterator[Certain]:
        hours = self.minutes / 60
        times = (24 * day + hour for day in range(1 + int(hours // 24)) for hour in _BLASTS_H)
        scheduled = [at for at in times if at < hours] or [0.3 * hours, 0.6 * hours]
        return (Certain("blast", 3600 * at, 60.0 + 40 * k) for k, at in enumerate(scheduled))

    def _in_strikes(self) -> Iterator[Certain]:
        for span in self.troubles:
            if span.kind == "power cut":
                yield Certain("rockfall", 60 * span.begin - _BEFORE_POWER_CUT_S, _PEAK)
            elif span.kind in ("link cut", "broker restart", "disk full"):
                yield Certain("rockfall", 60 * span.begin + _IN_STRIKE_S, _PEAK)

    def _faults(self) -> Iterator[Fault]:
        rng = np.random.default_rng([self.seed, 8])
        of: dict[Trouble, tuple[FaultKind, int]] = {
            "gap": ("gap", 1),
            "clock step": ("clock_step", 1),
            "dead channel": ("dead_channel", 1),
            "dead sensor": ("dead_channel", 3),
            "power cut": ("gap", 3),
        }
        for span in self.troubles:
            if span.kind not in of:
                continue
            kind, rows = of[span.kind]
            first, step_s = int(rng.integers(3)), float(rng.uniform(0.2, 5.0) * rng.choice((-1, 1)))
            # A moment less, as a packet that begins at the very end would be hit too.
            seconds = 60.0 * (span.end - span.begin) - 0.001
            for k in range(rows):
                yield Fault(kind, 60.0 * span.begin, seconds, 0, (first + k) % 3, step_s)

    def clock_step_s(self, at_ns: int) -> float:
        """How far the recorder's clock is off at a true time."""
        minute = (at_ns - self.start_ns) / NS / 60
        steps = (fault for fault in self._faults() if fault.kind == "clock_step")
        return sum(one.step_s for one in steps if one.at_s <= 60 * minute < one.at_s + one.seconds)


class _Scenario(Scenario):
    """Without the events that a muffled sensor does not hear: the waves do not come through."""

    def __init__(self, plan: Plan, whole: Scenario) -> None:
        self._plan, self._whole = plan, whole

    def cell(self, number: int) -> Iterator[Planned | Fault]:
        muffled = self._plan.muffled
        found = self._whole.cell(number)
        if muffled is None or not muffled[0] <= number < muffled[1]:
            return found
        return (one for one in found if isinstance(one, Fault))


def make_plan(
    seed: int,
    hours: float,
    start: str = START,
    kinds: Sequence[Trouble] = tuple(LONGEST),
    muffled: tuple[int, int] | None = None,
) -> Plan:
    """Draw a plan: each kind of trouble once in twelve hours, at least once, one after the other.

    Raises:
        UsageError: too short for all of them.
    """
    rng = np.random.default_rng([seed, 7])
    minutes = round(60 * hours)
    begin, end = round(_CALM * minutes), round(_BEFORE_FAILURE * minutes)
    order = [kinds[k] for _ in range(max(1, round(hours / 12))) for k in rng.permutation(len(kinds))]
    slot = (end - begin) // max(1, len(order))
    if slot < SLOT_MINUTES:
        raise UsageError(f"{hours:g} hours are too short for {len(order)} kinds of faults", "give --hours 1 or more")
    spans = []
    for number, kind in enumerate(order):
        first = begin + slot * number + int(rng.integers(1, max(2, slot // 3)))
        spans.append(Span(kind, first, first + int(rng.integers(2, 1 + max(2, min(LONGEST[kind], slot // 2))))))
    return Plan(seed, parse_ns(start), minutes, tuple(spans), muffled)


def recorded_earthquakes(folder: Path) -> list[Array]:
    """Real earthquakes at 100 Hz on three components that the network has not learned from (``split`` is not
    ``train``), each from its onset on, largest sample 1, from a folder with ``metadata.csv`` (SeisBench's columns).

    Raises:
        UsageError: there are none.
    """
    found = []
    try:
        with (folder / "metadata.csv").open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if _is_wanted(row)]
        for row in rows:
            motion = _motion(folder / row["trace_name"], parse_ns(row["trace_onset_time"]))
            if motion is not None:
                found.append(motion)
    except (OSError, KeyError, TalusError) as error:
        raise UsageError(f"{folder}: no records can be read: {error}", "see docs/training.md for the layout") from None
    if not found:
        raise UsageError(f"{folder} holds no earthquake of three components at 100 Hz", "leave --records out")
    return found


def _is_wanted(row: Mapping[str, str]) -> bool:
    return (
        row["source_type"] == "earthquake"
        and row["split"] != "train"
        and row["trace_n_components"] == "3"
        and float(row["trace_sampling_rate_hz"]) == _RATE_HZ
        and bool(row["trace_onset_time"])
    )


def _motion(file: Path, onset_ns: int) -> Array | None:
    """The record from its onset on; None if a component is missing or in pieces."""
    [record, *_] = read_records(file)
    rows = []
    for number in range(3):
        segments = record.rows.get(number, [])
        if len(segments) != 1:
            return None
        first = round((onset_ns - segments[0].start_ns) / NS * _RATE_HZ)
        samples = np.asarray(segments[0].samples, np.float64)
        if not 0 <= first < len(samples) - 500:
            return None
        rows.append(samples[first:] - samples[:first].mean() if first else samples - samples.mean())
    data = np.stack([row[: min(map(len, rows))] for row in rows])
    fade = round(_RATE_HZ)
    data[:, -fade:] *= np.linspace(1, 0, fade)
    return np.asarray(data / np.abs(data).max())
