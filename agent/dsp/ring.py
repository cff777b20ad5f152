"""The last seconds of one channel as recorded: what windows, measurements and evidence are cut from."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agent.dsp.timeline import SAME_RATE
from agent.errors import DataError
from agent.types import NS, Samples, Segment

_SAME_LINE_NS = 100_000
"""A block whose times are this close to those that the ones before it give needs none of its own."""


class _Line(NamedTuple):
    """Sample ``first`` was taken at ``start_ns``, those after it in steps of ``step_ns``."""

    first: int
    start_ns: int
    step_ns: float
    begins_run: bool

    def time_ns(self, number: int) -> int:
        return self.start_ns + round((number - self.first) * self.step_ns)

    def before(self, time_ns: int) -> int:
        """Number of the first sample at or after a time; not before ``first``."""
        return self.first + max(0, math.ceil((time_ns - self.start_ns - 0.5) / self.step_ns))


class RingBuffer:
    """Fixed memory for ``seconds`` of samples, in the channel's own dtype. Not thread-safe.

    Blocks come as ``Continuity`` hands them on: in order, without overlap, finite. A block that starts half a sample or
    more off the time at which it is due begins a new run, unless it says that it continues the last one: then the
    estimate of the time has changed from its first sample on. A block from before the newest sample that does not
    continue it means that the time was set back: the buffer is emptied.
    """

    def __init__(self, rate_hz: float, seconds: float) -> None:
        if not (0 < rate_hz < math.inf and 0 < seconds < math.inf):
            raise DataError(
                f"no buffer holds {seconds:g} s at {rate_hz:g} samples a second", "both must be positive numbers"
            )
        self.rate_hz = rate_hz
        self._step_ns = NS / rate_hz
        self._capacity = max(1, math.ceil(rate_hz * seconds))
        self._half_ns = self._step_ns / 2
        self._data: NDArray[Any] = np.empty(0)
        self._dtype: np.dtype[Any] | None = None
        self._written = 0
        """Samples ever written: their numbers, from which the runs count."""
        self._due_ns: float = -math.inf
        """Time of the next sample of the newest run."""
        self._line_hz = 0.0
        """Rate of the newest line."""
        self._lines: deque[_Line] = deque()
        """The times of the samples, oldest first; a run has one or more."""

    @property
    def newest_ns(self) -> int | None:
        """Time of the newest sample, None while there is none."""
        return self._lines[-1].time_ns(self._written - 1) if self._lines else None

    def is_set_back(self, start_ns: int) -> bool:
        """Whether a block that begins then, and does not continue the last one, would empty the buffer. Not yet a whole
        sample early is a clock that drifts."""
        return self._due_ns - start_ns >= self._step_ns

    def write(self, start_ns: int, samples: Samples, *, rate_hz: float | None = None, continues: bool = False) -> None:
        """Append the samples ``[n]``, the first at ``start_ns``; the oldest make room.

        Args:
            start_ns: time of the first sample.
            samples: counts as recorded.
            rate_hz: the rate that the channel's times show, None for the nominal one.
            continues: the first sample is the neighbour of the newest one, whatever the times say.
        """
        n = len(samples)
        if n == 0:
            return
        if samples.dtype is not self._dtype:
            self._adopt(samples.dtype)
        hz = self.rate_hz if rate_hz is None else rate_hz
        if hz != self._line_hz or not -_SAME_LINE_NS < self._due_ns - start_ns < _SAME_LINE_NS:
            self._turn(start_ns, hz, n, continues=continues)
        at = self._written % self._capacity
        if at + n <= self._capacity:
            self._data[at : at + n] = samples
        else:
            self._wrap(samples)
        self._written += n
        line = self._lines[-1]
        self._due_ns = line.start_ns + round((self._written - line.first) * line.step_ns)
        oldest = self._written - self._capacity
        while len(self._lines) > 1 and self._lines[1].first <= oldest:
            self._lines.popleft()

    def _turn(self, start_ns: int, rate_hz: float, n: int, *, continues: bool) -> None:
        """Begin another line of times, or another run, with the next ``n`` samples, where they need one."""
        early_ns, step_ns = self._due_ns - start_ns, NS / rate_hz
        if self._lines and (continues or -self._half_ns < early_ns < self._half_ns):
            bends = abs(step_ns - self._lines[-1].step_ns) * n >= _SAME_LINE_NS
            if not bends and not (continues and abs(early_ns) >= _SAME_LINE_NS):
                return
            begins_run = False
        else:
            begins_run = True
            if self.is_set_back(start_ns):
                self._lines.clear()
        self._line_hz = rate_hz
        self._lines.append(_Line(self._written, start_ns, step_ns, begins_run))

    def segments(self, from_ns: int, to_ns: int, *, lasting: bool = True) -> list[Segment]:
        """The gap-free runs of samples whose time ``t`` is in ``from_ns <= t < to_ns``, in order. Copies, unless they
        need not be ``lasting``: then they are good until the next ``write``, and not to be changed.

        A segment has the nominal rate, unless its last sample would be half a sample or more off its time by that: then
        it has the rate that the times show, if the two differ as clocks do.
        """
        found: list[Segment] = []
        span: tuple[int, int] | None = None
        times_ns = (0, 0)
        for line, end in self._ends():
            if line.begins_run:
                found += self._segment(span, times_ns, lasting=lasting)
                span = None
            first = max(line.first, self._written - self._capacity, line.before(from_ns))
            last = min(end, line.before(to_ns))
            if first < last:
                times_ns = line.time_ns(first) if span is None else times_ns[0], line.time_ns(last - 1)
                span = first if span is None else span[0], last
        return found + self._segment(span, times_ns, lasting=lasting)

    def _ends(self) -> Iterator[tuple[_Line, int]]:
        """Each line with the number after its last sample."""
        following = None
        for line in self._lines:
            if following is not None:
                yield following, line.first
            following = line
        if following is not None:
            yield following, self._written

    def _segment(self, span: tuple[int, int] | None, times_ns: tuple[int, int], *, lasting: bool) -> list[Segment]:
        """The samples of a span of numbers, if there is one, with the times of the first and the last."""
        if span is None:
            return []
        (begin, end), (start_ns, last_ns) = span, times_ns
        steps, rate_hz = end - 1 - begin, self.rate_hz
        off_ns = abs(last_ns - start_ns - steps * self._step_ns)
        if self._half_ns <= off_ns <= SAME_RATE * steps * self._step_ns:
            rate_hz = steps * NS / (last_ns - start_ns)
        return [Segment(start_ns, rate_hz, self._samples(begin, end, lasting=lasting))]

    def _adopt(self, dtype: np.dtype[Any]) -> None:
        """The first block fixes the dtype; a channel that changes it later gets one that holds both."""
        if len(self._data):
            self._data = self._data.astype(np.result_type(self._data, dtype), copy=False)
        else:
            self._data = np.zeros(self._capacity, dtype)
        self._dtype = self._data.dtype

    def _wrap(self, samples: Samples) -> None:
        """Store samples that pass the end of the memory."""
        kept = samples[-self._capacity :]
        at = (self._written + len(samples) - len(kept)) % self._capacity
        head = min(len(kept), self._capacity - at)
        self._data[at : at + head] = kept[:head]
        self._data[: len(kept) - head] = kept[head:]

    def _samples(self, begin: int, end: int, *, lasting: bool) -> Samples:
        first, last = begin % self._capacity, (end - 1) % self._capacity + 1
        if first < last:
            samples: Samples = self._data[first:last]
            return samples.copy() if lasting else samples
        return np.concatenate([self._data[first:], self._data[:last]])
