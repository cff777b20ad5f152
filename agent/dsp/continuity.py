"""What one station's packets are to each other in time, so that later stages see clean runs of samples only.

This is the one place where overlaps, repeats, packets out of order, invalid samples and changes of rate are dealt with.
Everything behind it (ring buffer, detector) takes what ``accept`` returns: finite, in order, without overlap, and with
start times on the channel's own sample grid. A jump between two such blocks is a gap.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import numpy as np

from agent.errors import DataError
from agent.types import NS, SampleBlock, Samples

LARGEST = 1e18
"""No recorder counts higher; a larger float is a broken one, as NaN is, and its square would leave the number range."""

_SAME_RATE = 1e-4
_TRUSTED = 3
"""So many packets in a row from a time that was never heard mean that the clock was set back."""
_REMEMBERED_GAPS = 32


@dataclass(slots=True)
class Counts:
    """What happened on one channel since the start."""

    blocks: int = 0
    samples: int = 0
    """Samples handed on."""
    gaps: int = 0
    gap_s: float = 0.0
    overlaps: int = 0
    """Blocks of which the beginning was known already and was cut off."""
    duplicates: int = 0
    """Blocks dropped because all of it was known already."""
    late: int = 0
    """Blocks dropped because they came after younger ones."""
    invalid_samples: int = 0
    """NaN, infinite, or beyond ``LARGEST``: treated as not recorded."""
    restarts: int = 0
    """Changes of rate, and clocks set back."""


@dataclass(slots=True)
class _Channel:
    rate_hz: float
    step_ns: float
    counts: Counts
    origin_ns: int
    """Time of sample 0 of the run's grid."""
    first_ns: int
    count: int = 0
    due_ns: int = 0
    """Time at which the next sample is due."""
    strangers: int = 0
    """Late blocks in a row."""


class Continuity:
    """Judges the packets of one station, each component on its own. Not thread-safe."""

    def __init__(self) -> None:
        self.counts: dict[str, Counts] = {}
        """Per component."""
        self._channels: dict[str, _Channel] = {}
        self._gaps: dict[str, deque[tuple[int, int]]] = {}

    def accept(self, block: SampleBlock) -> list[SampleBlock]:
        """The new, valid samples of ``block``, as gap-free blocks in order; none when it brings nothing new.

        A block continues the channel when it starts less than half a sample from where it is due. A clock that drifts
        is followed; a packet that starts later leaves a gap; one that starts earlier is cut to what is new.

        Raises:
            DataError: the sampling rate is not a positive number.
        """
        component = block.stream.component
        channel = self._channels.get(component)
        samples = block.samples
        n = len(samples)
        if n == 0:
            return []
        rate_hz = block.rate_hz
        if channel is None or (
            rate_hz != channel.rate_hz and abs(rate_hz - channel.rate_hz) > _SAME_RATE * channel.rate_hz
        ):
            channel = self._restart(component, block)
        counts = channel.counts
        counts.blocks += 1
        off_ns = block.start_ns - channel.due_ns
        if -channel.step_ns < 2 * off_ns < channel.step_ns:
            if abs(off_ns) > channel.step_ns / 4:
                channel.origin_ns += off_ns // 8
                channel.due_ns += off_ns // 8
        elif off_ns > 0:
            counts.gaps += 1
            counts.gap_s += off_ns / NS
            self._gaps[component].append((channel.due_ns, block.start_ns))
            channel.origin_ns = channel.due_ns = block.start_ns
            channel.count = 0
        else:
            known = max(1, round(-off_ns / channel.step_ns))
            if known < n:
                counts.overlaps += 1
                samples = samples[known:]
                n -= known
            elif not self._is_stranger(component, block):
                counts.duplicates += 1
                channel.strangers = 0
                return []
            elif channel.strangers + 1 < _TRUSTED:
                counts.late += 1
                channel.strangers += 1
                return []
            else:
                channel = self._restart(component, block)
        channel.strangers = 0
        start_ns = channel.due_ns
        channel.count += n
        channel.due_ns = channel.origin_ns + round(channel.count * channel.step_ns)
        if samples.dtype.kind == "f" and not float(np.abs(samples).max()) <= LARGEST:
            return self._split(block, start_ns, samples, channel)
        counts.samples += n
        return [_cut(block, start_ns, channel.rate_hz, samples)]

    def forget(self, component: str) -> None:
        """What was heard of a component had wrong times: its next block is a new beginning."""
        self._channels.pop(component, None)

    def _restart(self, component: str, block: SampleBlock) -> _Channel:
        rate = block.rate_hz
        if not 0 < rate < math.inf:
            raise DataError(
                f"{block.stream} claims {rate:g} samples a second", "see the channel's settings in the recorder"
            )
        if component in self.counts:
            self.counts[component].restarts += 1
        else:
            self.counts[component] = Counts()
        self._gaps[component] = deque(maxlen=_REMEMBERED_GAPS)
        start = block.start_ns
        channel = _Channel(rate, NS / rate, self.counts[component], start, start, due_ns=start)
        self._channels[component] = channel
        return channel

    def _is_stranger(self, component: str, block: SampleBlock) -> bool:
        """Whether an old block lies where nothing was heard: before the beginning, or inside a gap."""
        first_ns = self._channels[component].first_ns
        middle_ns = (block.start_ns + block.end_ns) // 2
        return middle_ns < first_ns or any(begin <= middle_ns < end for begin, end in self._gaps[component])

    def _split(self, block: SampleBlock, start_ns: int, samples: Samples, channel: _Channel) -> list[SampleBlock]:
        """The finite runs of a block that may hold NaN or infinite samples."""
        valid = np.abs(samples) <= LARGEST
        channel.counts.samples += int(np.count_nonzero(valid))
        channel.counts.invalid_samples += len(samples) - int(np.count_nonzero(valid))
        edges = np.flatnonzero(np.diff(valid.astype(np.int8), prepend=0, append=0)).tolist()
        return [
            _cut(block, start_ns + round(begin * channel.step_ns), channel.rate_hz, samples[begin:end])
            for begin, end in zip(edges[::2], edges[1::2], strict=True)
        ]


def _cut(block: SampleBlock, start_ns: int, rate_hz: float, samples: Samples) -> SampleBlock:
    """The block itself where nothing of it changed, which is the rule."""
    if start_ns == block.start_ns and rate_hz == block.rate_hz and samples is block.samples:
        return block
    return SampleBlock(block.stream, start_ns, rate_hz, samples, block.quality)
