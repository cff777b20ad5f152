"""What the packets of a channel claim, against each other: their sampling rate, and that they are one recorder's."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from agent.types import NS, SampleBlock, Samples, Segment

_JUDGED = 25
"""Packets judged at a time, so that time stamps which jitter or are rounded hide nothing."""
_LONG = 1.7
"""Steps that are so many times longer than most are losses."""
_OFF = 0.02
"""Relative difference of two rates from which on they are not the same."""
_REMEMBERED, _MANY = 200, 10
"""Packets that are remembered, and how many of them may contradict others: clocks are set back now and then."""
_COMPARED = 16
"""Samples that are looked for among those of the same time."""
SLACK_NS = NS // 2
"""How far from its time a repeated packet may lie: time stamps are estimated anew."""


class StatedRate:
    """One channel's time stamps against the rate that its packets state. Any thread may ask."""

    def __init__(self) -> None:
        self.found: tuple[float, float] | None = None
        """Rate as stated and as the stamps say it (Hz), where these have differed for twice 25 packets."""
        self._start_ns: int | None = None
        self._count = 0
        self._seconds = 0.0
        self._steps: list[tuple[float, int, float]] = []
        """Seconds from stamp to stamp, samples between them, and how long these last by the stated rate."""
        self._before_hz = 0.0

    def see(self, start_ns: int | None, count: int, rate_hz: float) -> None:
        """A packet came in its turn; ``start_ns`` is None where it goes on with the record of the last one."""
        if start_ns is not None:
            step_ns = 0 if self._start_ns is None else start_ns - self._start_ns
            if step_ns > 0:
                self._steps.append((step_ns / NS, self._count, self._seconds))
                if len(self._steps) >= _JUDGED:
                    self._judge()
            self._start_ns, self._count, self._seconds = start_ns, 0, 0.0
        self._count += count
        self._seconds += count / rate_hz

    def _judge(self) -> None:
        steps, self._steps = self._steps, []
        typical_s = sorted(seconds / count for seconds, count, _ in steps)[_JUDGED // 2]
        usual = [step for step in steps if step[0] <= _LONG * typical_s * step[1]]
        samples = sum(count for _, count, _ in usual)
        found_hz, stated_hz = samples / sum(s for s, _, _ in usual), samples / sum(s for _, _, s in usual)
        before_hz, self._before_hz = self._before_hz, found_hz
        is_off = abs(found_hz / stated_hz - 1) >= _OFF and abs(before_hz / found_hz - 1) <= _OFF
        self.found = (stated_hz, found_hz) if is_off else None


class Contradictions:
    """One channel's packets that were dropped because their time was known already: repetitions, or other samples, as
    where two recorders send under one name. Any thread may ask for ``found``."""

    def __init__(self) -> None:
        self._packets: deque[bool] = deque(maxlen=_REMEMBERED)

    @property
    def found(self) -> tuple[int, int] | None:
        """Of how many of the newest packets the samples contradict others, and how many these are; None while they are
        few."""
        packets = self._packets.copy()
        wrong = sum(packets)
        return (wrong, len(packets)) if wrong > _MANY else None

    def see(self, block: SampleBlock, known: Sequence[Segment] | None) -> None:
        """A packet came; ``known`` is what was recorded at its time where it was dropped, else None."""
        self._packets.append(known is not None and _contradicts(block.samples, known))


def _contradicts(samples: Samples, known: Sequence[Segment]) -> bool:
    """Whether the middle of the samples is nowhere in what is known, which must be long enough to tell."""
    width = min(_COMPARED, len(samples))
    middle = samples[(len(samples) - width) // 2 :][:width]
    long = [run.samples for run in known if len(run.samples) >= len(samples)]
    return bool(long) and not any(
        np.any(np.all(np.lib.stride_tricks.sliding_window_view(run, width) == middle, axis=1)) for run in long
    )
