"""One component of a detector: its packets in line, its band-pass and its averages."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from enum import Enum, auto
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from agent.dsp.sos import LONG, SosFilter
from agent.dsp.stalta import RecursiveStaLta
from agent.types import Samples

Array = NDArray[np.float64]
Meter: TypeAlias = Callable[[Array, int], None]
_SETTLED = 0.01
"""Share of a filter's start-up transient that may be left when its output is believed again."""


class Phase(Enum):
    """What a component contributes at a sample."""

    ABSENT = auto()
    """Nothing was recorded, or has not arrived."""
    SETTLING = auto()
    """The band-pass rings after a short gap; its output is not used."""
    WARMING = auto()
    """The long average is filling."""
    LIVE = auto()


def settling_samples(sos: Array) -> int:
    """Samples until the slowest mode of a filter ``[n, 6]`` has decayed to a hundredth."""
    slowest = max(float(np.abs(np.roots(section[3:])).max()) for section in sos)
    return math.ceil(math.log(_SETTLED) / math.log(slowest))


class Gathered:
    """Consecutive samples on their way to where they are kept. They are handed on joined, some seconds of them, as a
    call costs more than the samples of a packet."""

    def __init__(self, hand_on: Meter, most: int) -> None:
        """``hand_on`` takes samples ``[n]`` and the number of the first; ``most`` of them are gathered."""
        self._hand_on, self._most = hand_on, most
        self._parts: list[NDArray[Any]] = []
        self._first = self._end = 0

    def add(self, samples: NDArray[Any], first: int) -> None:
        """Take the next samples, which are not changed any more."""
        if first != self._end:
            self.flush()
        if not self._parts:
            self._first = first
        self._parts.append(samples)
        self._end = first + len(samples)
        if self._end - self._first >= self._most:
            self.flush()

    def flush(self) -> None:
        """Hand on what is there."""
        parts, self._parts = self._parts, []
        if parts:
            self._hand_on(parts[0] if len(parts) == 1 else np.concatenate(parts), self._first)


class Component:
    """Samples are numbered on the station's grid. ``queued`` ones wait for the other components; not thread-safe.

    A tear of a few samples, shorter than the band-pass can see, is bridged by a straight line. After a gap the
    band-pass begins anew from the first sample's level. A short gap keeps the long average and restarts the short one
    at its level once the band-pass has settled; a long one starts both from nothing.
    """

    def __init__(
        self,
        sos: Array,
        nsta: int,
        nlta: int,
        long_gap: int,
        joins_at: int,
        *,
        tear: int = 0,
        meter: Meter,
        warm_up: int | None = None,
        report: int,
    ) -> None:
        """``long_gap`` and ``tear``: samples that may be missing for the long average to be kept, for the gap to be
        bridged. ``meter`` is shown the band-passed samples, with the number of their first, once the filter has
        settled, at the latest with ``flush``. ``warm_up``: samples after which the averages count for the first
        time (None: ``nlta``). ``report``: as for ``RecursiveStaLta``; see ``levels``."""
        self._meter = meter
        self._averages = RecursiveStaLta(nsta, nlta, report=report)
        if warm_up is not None:
            self._averages.shorten(warm_up)
        self._report = report
        self._gathered = Gathered(self._hand_on, report)
        self._taken: tuple[Array, Array | None, int] = np.empty(0), None, 0
        """Band-passed samples, their energy if it is known, and the number of the first."""
        self.end = joins_at
        """Number of the sample after the newest queued one."""
        self.due_ns = 0
        """Time at which the next packet is due."""
        self.newest: Samples | None = None
        """The newest packet."""
        self.astray = 0
        """Packets in a row whose numbers and times did not agree."""
        self._filter = SosFilter(sos)
        self._settle = min(settling_samples(sos), nlta)
        self._settling = 0
        self._tear, self._long_gap = tear, long_gap
        self._queue: deque[tuple[int, Samples]] = deque()
        self._done = joins_at
        """Number of the sample after the last processed one."""
        self._averaged_from = joins_at
        """Number of the first sample of what the averages write down next."""
        self._levels: list[tuple[int, list[tuple[int, float, float]]]] = []

    def join(self, first: int, samples: Samples) -> tuple[int, Samples]:
        """Number and samples of a packet that does not begin with sample ``end``, as they are to be processed: what was
        had already is cut off, a tear before it is bridged."""
        missing = first - self.end
        if missing < 0:
            first, samples = self.end, samples[-missing:]
        elif missing <= self._tear and self.newest is not None:
            first, samples = self.end, np.concatenate([self._bridge(self.newest, samples, missing), samples])
        return first, samples

    def _bridge(self, before: Samples, after: Samples, missing: int) -> Array:
        """Missing samples on a straight line through the means on both sides."""
        before, after = before[-self._tear :], after[: self._tear]
        places = -(len(before) + 1) / 2, missing + (len(after) - 1) / 2
        bridge: Array = np.interp(np.arange(missing), places, (before.mean(), after.mean()))
        return bridge

    def queue(self, first: int, samples: Samples) -> None:
        """Keep a packet, not older than ``end``, until it is its turn; short ones are joined, as each costs calls."""
        if self._queue and first == self.end and len(self._queue[-1][1]) + len(samples) < LONG:
            first, before = self._queue.pop()
            samples = np.concatenate([before, samples])
        self._queue.append((first, samples))
        self.end = first + len(samples)

    def phase(self, number: int) -> tuple[Phase, int]:
        """What the component contributes at sample ``number``, and for how many samples that is certain.

        ``number`` is at or after the last sample taken, and not inside the queue's first packet.
        """
        if not self._queue:
            return Phase.ABSENT, 1 << 62
        first, samples = self._queue[0]
        if first > number:
            return Phase.ABSENT, first - number
        if first > self._done:
            self._restart(first - self._done)
            self._done = first
        if self._settling:
            return Phase.SETTLING, min(len(samples), self._settling)
        if self._averages.warming:
            return Phase.WARMING, min(len(samples), self._averages.warming)
        return Phase.LIVE, len(samples)

    def take(self, count: int, blocks: NDArray[np.int64]) -> list[float]:
        """Band-pass the next ``count`` samples while they are live for ``energy`` and ``keep``; returns the energy of
        each block of them, which begin with these numbers."""
        filtered, first = self._band_pass(count)
        if len(blocks) == 1:
            self._taken = filtered, None, first
            return [float(filtered.dot(filtered))]
        energy = filtered * filtered
        self._taken = filtered, energy, first
        found: list[float] = np.add.reduceat(energy, blocks).tolist()
        return found

    def energy(self) -> Array:
        """Energy of what was taken, sample by sample."""
        filtered, energy, _ = self._taken
        return filtered * filtered if energy is None else energy

    def keep(self) -> None:
        """Keep what was taken."""
        filtered, _, first = self._taken
        if len(filtered) < self._report:
            self._gathered.add(filtered, first)
        else:
            self.flush()
            self._meter(filtered, first)
            self._averages.follow(self.energy())

    def pass_by(self, phase: Phase, count: int) -> None:
        """Take the next ``count`` queued samples for the sake of filter and averages only."""
        self.flush()
        filtered, first = self._band_pass(count)
        if phase is Phase.SETTLING:
            self._settling -= count
        else:
            self._hand_on(filtered, first)

    def _band_pass(self, count: int) -> tuple[Array, int]:
        """The next ``count`` queued samples, at most as many as ``phase`` said, band-passed, and the first's number."""
        first, samples = self._queue.popleft()
        if count < len(samples):
            self._queue.appendleft((first + count, samples[count:]))
            samples = samples[:count]
        self._done = first + count
        return self._filter.process(samples), first

    def _hand_on(self, filtered: Array, first: int) -> None:
        self._meter(filtered, first)
        self._averages.follow(filtered * filtered)

    def flush(self) -> None:
        """Bring everything up to date with the samples that were taken before the last ones."""
        self._gathered.flush()

    def cut(self) -> None:
        """Have the levels before and after the last sample written down apart."""
        self.flush()
        self._averages.cut()

    @property
    def averages(self) -> tuple[float, float]:
        """The short and the long average after the last sample that was kept."""
        self.flush()
        return self._averages.averages

    def catch_up(self, first: int, samples: Samples) -> None:
        """Take samples from a time that is decided already: they keep filter and averages up to date."""
        self.queue(first, samples)
        while self._queue:
            phase, count = self.phase(self._queue[0][0])
            self.pass_by(phase, count)

    def levels(self) -> list[tuple[int, list[tuple[int, float, float]]]]:
        """What the averages wrote down since the last call, with the number of the first sample of each list."""
        self.flush()
        self._number_levels()
        found, self._levels = self._levels, []
        return found

    def _number_levels(self) -> None:
        levels = self._averages.levels
        if levels:
            self._levels.append((self._averaged_from, levels))
            self._averaged_from += sum([samples for samples, _, _ in levels])
            self._averages.levels = []

    def _restart(self, gap: int) -> None:
        self.flush()
        self._filter.reset()
        if gap > self._long_gap:
            self._averages.reset()
            self._settling = 0
        else:
            self._averages.bridge()
            # A new average has nothing to lose from the start-up transient: it has to warm up first.
            self._settling = self._settle
        self._number_levels()
        self._averaged_from = self._done + gap + self._settling
