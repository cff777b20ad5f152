"""The last seconds of one channel as recorded: what windows, measurements and evidence are cut from."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.errors import DataError
from agent.types import NS, Samples, Segment


class RingBuffer:
    """Fixed memory for ``seconds`` of samples, in the channel's own dtype. Not thread-safe.

    Blocks come as ``Continuity`` hands them on: in order, without overlap, finite. Sample times follow from the start
    of their gap-free run; a block that begins half a sample or more off that grid begins a new run. A block from before
    the newest sample means that the time was set back: the buffer is emptied.
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
        self._runs: deque[tuple[int, int]] = deque()
        """Number and time of each run's first sample, oldest first."""

    @property
    def newest_ns(self) -> int | None:
        """Time of the newest sample, None while there is none."""
        if not self._runs:
            return None
        first, start_ns = self._runs[-1]
        return start_ns + round((self._written - 1 - first) * self._step_ns)

    def is_set_back(self, start_ns: int) -> bool:
        """Whether a block that begins then would empty the buffer. Not yet a whole sample early is a clock that
        drifts."""
        return self._due_ns - start_ns >= self._step_ns

    def write(self, start_ns: int, samples: Samples) -> None:
        """Append the samples ``[n]``, the first at ``start_ns``; the oldest make room."""
        n = len(samples)
        if n == 0:
            return
        if samples.dtype is not self._dtype:
            self._adopt(samples.dtype)
        early_ns = self._due_ns - start_ns
        if not -self._half_ns < early_ns < self._half_ns:
            if self.is_set_back(start_ns):
                self._runs.clear()
            self._runs.append((self._written, start_ns))
        at = self._written % self._capacity
        if at + n <= self._capacity:
            self._data[at : at + n] = samples
        else:
            self._wrap(samples)
        self._written += n
        first, run_ns = self._runs[-1]
        self._due_ns = run_ns + round((self._written - first) * self._step_ns)
        oldest = self._written - self._capacity
        while len(self._runs) > 1 and self._runs[1][0] <= oldest:
            self._runs.popleft()

    def segments(self, from_ns: int, to_ns: int) -> list[Segment]:
        """Copies of the gap-free runs of samples whose time ``t`` is in ``from_ns <= t < to_ns``, in order."""
        found = []
        oldest = self._written - self._capacity
        for i, (first, start_ns) in enumerate(self._runs):
            end = self._runs[i + 1][0] if i + 1 < len(self._runs) else self._written
            begin = max(first, oldest, first + self._samples_before(from_ns - start_ns))
            end = min(end, first + self._samples_before(to_ns - start_ns))
            if begin < end:
                time_ns = start_ns + round((begin - first) * self._step_ns)
                found.append(Segment(time_ns, self.rate_hz, self._copy(begin, end)))
        return found

    def _samples_before(self, span_ns: int) -> int:
        """Samples of a run whose rounded time is less than ``span_ns`` after the run's start."""
        return max(0, math.ceil((span_ns - 0.5) / self._step_ns))

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

    def _copy(self, begin: int, end: int) -> Samples:
        first, last = begin % self._capacity, (end - 1) % self._capacity + 1
        pieces = [self._data[first:last]] if first < last else [self._data[first:], self._data[:last]]
        samples: Samples = np.concatenate(pieces)
        return samples
