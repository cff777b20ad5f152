"""What one station's packets are to each other in time, so that later stages see clean runs of samples only.

This is the one place where overlaps, repeats, packets out of order, invalid samples and changes of rate are dealt with.
Everything behind it (ring buffer, detector) takes what ``accept`` returns: finite, in order, without overlap, with the
channel's own estimate of time and rate (``Timeline``). A jump between two such blocks is a gap, unless the second one
continues the first (``SampleBlock.continues``): then only the estimate of the time has changed.

``Recorded`` is the time axis without the gaps, on which the rates of events can be compared.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from agent.dsp.timeline import TOLERANCE_NS, Timeline, same_rate
from agent.errors import DataError
from agent.types import NS, SampleBlock, Samples

_SET_BACK_NS = 600 * NS
_TEAR_NS = NS // 8
"""What is missing is shorter: the components' times jitter, each on its own."""
_RECORDED_GAPS = 64


class Recorded:
    """The union of what a station's components have. Owned by the pipeline's thread."""

    def __init__(self) -> None:
        self._total_ns = 0
        self._newest_ns = 0
        self._gaps: deque[tuple[int, int]] = deque(maxlen=_RECORDED_GAPS)

    def add(self, start_ns: int, end_ns: int) -> None:
        """Samples from ``start_ns`` to before ``end_ns``. What comes late does not count; a clock that was set back
        goes on from where the total was."""
        if self._newest_ns == 0 or end_ns < self._newest_ns - _SET_BACK_NS:
            self._newest_ns = start_ns
            self._gaps.clear()
        if start_ns - self._newest_ns > _TEAR_NS:
            self._gaps.append((self._newest_ns, start_ns))
            self._newest_ns = start_ns
        if end_ns > self._newest_ns:
            self._total_ns += end_ns - self._newest_ns
            self._newest_ns = end_ns

    def until(self, time_ns: int) -> float:
        """Seconds recorded up to a time of the last minutes."""
        after = max(0, self._newest_ns - time_ns)
        absent = sum(max(0, end - max(begin, time_ns)) for begin, end in self._gaps)
        return max(0, self._total_ns - max(0, after - absent)) / NS


LARGEST = 1e18
"""No recorder counts higher; a larger float is a broken one, as NaN is, and its square would leave the number range."""

_TRUSTED = 3
"""Packets in a row from a time before all others, after which the clock counts as set back."""
_REMEMBERED_GAPS = 32
_ALIKE, _ALIKE_LEAST = 16, 4
"""Samples compared to find what of a packet is known, and so many at least: a few may be alike by chance."""


@dataclass(slots=True)
class Counts:
    """What happened on one channel since the start."""

    blocks: int = 0
    samples: int = 0
    """Samples handed on."""
    gaps: int = 0
    """Counted with the second record after them, which says that the first one's stamp was right."""
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
    """The nominal rate: that of the first packet."""
    counts: Counts
    timeline: Timeline
    first_ns: int
    header_hz: float
    """The rate by the last record's header."""
    count: int = 0
    """Samples of the run so far, which is the number of the next one."""
    stamp_ns: int | None = None
    """The last time stamp that was used; None if the last record was dropped."""
    stamped: int = 0
    """Number of its sample."""
    tail: Samples | None = None
    """The last samples handed on."""
    is_open: bool = False
    """Whether the sample before the next one was handed on."""
    moved: bool = False
    """Whether the estimate of the time has just changed."""
    wobble: float = 0.0
    """Largest relative difference of a header's rate from the nominal one."""
    former_due_ns: int | None = None
    """When the first sample of the run was due, by the time before the gap; None once the gap is beyond doubt."""
    strangers: int = 0
    """Late records in a row."""
    gaps: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=_REMEMBERED_GAPS))

    def admits(self, rate_hz: float) -> bool:
        """Whether a header's rate is the nominal one, as far as recorders agree with themselves."""
        if not same_rate(rate_hz, self.rate_hz):
            return False
        wobble = abs(rate_hz / self.rate_hz - 1)
        if wobble > self.wobble:
            self.wobble = wobble
            self.timeline.doubt(wobble)
        return True

    def stamp(self, number: int, stamp_ns: int, rate_hz: float) -> None:
        """A time stamp is used."""
        self.stamped, self.stamp_ns, self.header_hz = number, stamp_ns, rate_hz

    def confirms(self, number: int, stamp_ns: int, rate_hz: float) -> bool:
        """Whether a record that begins with sample ``number`` changes nothing; then its stamp is used."""
        if self.timeline.confirms(number, stamp_ns - self.timeline.time_ns(number)):
            self.stamped, self.stamp_ns, self.header_hz = number, stamp_ns, rate_hz
            return True
        return False

    def confirms_all(self, number: int, stamps: tuple[tuple[int, int], ...]) -> bool:
        """Do the same for all records that begin in a block, whose first sample has this number."""
        if not stamps:
            return True
        if not self.timeline.confirms_all(number, stamps):
            return False
        self.stamped, self.stamp_ns = number + stamps[-1][0], stamps[-1][1]
        return True

    def drop(self, strangers: int) -> None:
        """A record is not used."""
        self.stamp_ns, self.strangers = None, strangers

    def header_due_ns(self) -> float:
        """When the next sample is due by the last record's own stamp and rate; infinite if that was not used."""
        if self.stamp_ns is None:
            return math.inf
        return self.stamp_ns + round((self.count - self.stamped) * NS / self.header_hz)

    def continues(self, stamp_ns: int, off_ns: int) -> bool:
        """Whether a record whose stamp is ``off_ns`` later than estimated is the channel's next."""
        tolerance_ns = self.timeline.tolerance_ns(self.count)
        return abs(off_ns) < tolerance_ns or abs(stamp_ns - self.header_due_ns()) < tolerance_ns

    def count_gap(self) -> None:
        """The gap before the present run, if there is one that was not counted, is beyond doubt."""
        if self.former_due_ns is not None:
            begin_ns, end_ns = self.gaps[-1]
            self.counts.gaps += 1
            self.counts.gap_s += (end_ns - begin_ns) / NS
            self.former_due_ns = None

    def repeats(self, samples: Samples) -> bool:
        """Whether the first of the samples are among the last that were handed on."""
        if self.tail is None or min(len(self.tail), len(samples)) < _ALIKE_LEAST:
            return False
        width = min(_ALIKE, len(self.tail), len(samples))
        spans = np.lib.stride_tricks.sliding_window_view(self.tail, width)
        return bool((spans == samples[:width]).all(axis=1).any())

    def takes_back_gap(self, stamp_ns: int, samples: Samples) -> bool:
        """Whether a record that is not the next one after the first of a run continues what was before that run: the
        stamp of the first was wrong, and nothing was lost. (Not where the gap is longer than that first record, which
        may have overtaken this one, nor where this one repeats what is in it.)"""
        former_ns, timeline = self.former_due_ns, self.timeline
        if former_ns is None or self.stamp_ns is None or self.stamped != 0:
            return False
        begin_ns, length_ns = timeline.time_ns(0), timeline.time_ns(self.count) - timeline.time_ns(0)
        gap_ns, due_ns = begin_ns - former_ns, former_ns + length_ns
        if gap_ns >= length_ns or abs(stamp_ns - due_ns) >= timeline.tolerance_ns(self.count):
            return False
        if self.repeats(samples):
            return False
        self.gaps.pop()
        self.former_due_ns = None
        timeline.put(self.count, due_ns)
        return True

    def known(self, samples: Samples, off_ns: int) -> tuple[int, bool]:
        """How many samples at the beginning of a record that starts ``-off_ns`` early are known, and whether they are
        the same as before. The stamp says the number to within the tolerance; the samples themselves say it exactly."""
        step_ns, n = self.timeline.step_ns, len(samples)
        by_time = max(1, round(-off_ns / step_ns))
        slack = math.ceil(TOLERANCE_NS / step_ns)
        low, high = max(1, by_time - slack), min(n, by_time + slack)
        if self.tail is None or low > high:
            return by_time, False
        width = min(_ALIKE, low, len(self.tail))
        spans = np.lib.stride_tricks.sliding_window_view(samples[low - width : high], width)
        alike = np.flatnonzero((spans == self.tail[-width:]).all(axis=1)) + low
        if len(alike) == 0:
            return by_time, False
        return int(alike[np.abs(alike - by_time).argmin()]), True

    def is_stranger(self, stamp_ns: int, n: int) -> bool:
        """Whether an old record lies where nothing was heard: before the beginning, or inside a gap."""
        middle_ns = stamp_ns + round(n * self.timeline.step_ns / 2)
        return middle_ns < self.first_ns or any(begin <= middle_ns < end for begin, end in self.gaps)


class Continuity:
    """Judges the packets of one station, each component on its own. Not thread-safe."""

    def __init__(self) -> None:
        self.counts: dict[str, Counts] = {}
        """Per component."""
        self._channels: dict[str, _Channel] = {}

    def accept(self, block: SampleBlock) -> list[SampleBlock]:
        """The new, valid samples of ``block``, as gap-free blocks in order; none when it brings nothing new.

        A record continues the channel when it starts within a tolerance of where it is due (``Timeline.tolerance_ns``),
        or of where the last one ended by its own stamp and rate. All its samples are then used, and the clock follows
        its stamp. One that starts later leaves a gap; one that starts earlier is cut to what is new.

        Raises:
            DataError: the sampling rate is not a positive number.
        """
        n = len(block.samples)
        if n == 0:
            return []
        component, rate_hz = block.stream.component, block.rate_hz
        channel = self._channels.get(component)
        if channel is None or (rate_hz != channel.rate_hz and not channel.admits(rate_hz)):
            channel = self._begin(component, block, block.start_ns)
        counts, count, start_ns = channel.counts, channel.count, block.start_ns
        counts.blocks += 1
        stamps, timeline = block.stamps, channel.timeline
        if start_ns == timeline.time_ns(count) and rate_hz == timeline.rate_hz and block.samples.dtype.kind == "i":
            # The rule, and the quick way: nothing about the packet is new.
            if stamps is None:
                timeline.confirms(count, 0)
                channel.stamp(count, start_ns, rate_hz)
            if stamps is None or (channel.is_open and channel.confirms_all(count, stamps)):
                channel.tail, channel.count, channel.is_open = block.samples, count + n, True
                channel.strangers = 0
                counts.samples += n
                if channel.former_due_ns is not None and stamps != ():
                    channel.count_gap()
                return [block]
        if stamps is not None:
            return self._records(component, block, stamps)
        channel, known = self._judge(channel, block, 0, n, start_ns)
        return [] if known is None else self._hand_on(channel, block, known, n)

    def forget(self, component: str) -> None:
        """What was heard of a component had wrong times: its next block is a new beginning."""
        channel = self._channels.pop(component, None)
        if channel is not None:
            channel.count_gap()

    def _begin(self, component: str, block: SampleBlock, start_ns: int) -> _Channel:
        rate = block.rate_hz
        if not 0 < rate < math.inf:
            raise DataError(
                f"{block.stream} claims {rate:g} samples a second", "see the channel's settings in the recorder"
            )
        counts = self.counts.get(component)
        if counts is None:
            counts = self.counts[component] = Counts()
        else:
            counts.restarts += 1
            self.forget(component)
        channel = self._channels[component] = _Channel(rate, counts, Timeline(start_ns, rate), start_ns, rate)
        return channel

    def _records(self, component: str, block: SampleBlock, stamps: tuple[tuple[int, int], ...]) -> list[SampleBlock]:
        """The pieces of a block that holds parts of a record, or several."""
        found: list[SampleBlock] = []
        n, begin, following = len(block.samples), 0, 0
        while begin < n:
            channel, stamp_ns = self._channels[component], None
            if following < len(stamps) and stamps[following][0] == begin:
                stamp_ns, following = stamps[following][1], following + 1
            elif begin == 0 and abs(channel.header_due_ns() - block.start_ns) > channel.timeline.step_ns / 2:
                stamp_ns = block.start_ns  # what it continues is not known
            end = stamps[following][0] if following < len(stamps) else n
            channel, known = self._judge(channel, block, begin, end, stamp_ns)
            if known is not None:
                first = begin + known
                while following < len(stamps):
                    at, stamp_ns = stamps[following]
                    if not channel.confirms(channel.count + at - first, stamp_ns, block.rate_hz):
                        break
                    following += 1
                end = stamps[following][0] if following < len(stamps) else n
                found += self._hand_on(channel, block, first, end)
            begin = end
        return found

    def _judge(
        self, channel: _Channel, block: SampleBlock, begin: int, end: int, stamp_ns: int | None
    ) -> tuple[_Channel, int | None]:
        """The channel, and how many samples of a record are known already; None where it is to be dropped. ``stamp_ns``
        is its time stamp, None for the rest of a record that was begun."""
        timeline, count, n = channel.timeline, channel.count, end - begin
        if stamp_ns is None or channel.confirms(count, stamp_ns, block.rate_hz):
            channel.strangers = 0
            if stamp_ns is not None:
                channel.count_gap()
            return channel, 0
        off_ns, known = stamp_ns - timeline.time_ns(count), 0
        # What is repeated may be early by less than the tolerance, if it is short.
        is_old = -off_ns > (n - 0.5) * timeline.step_ns and channel.repeats(block.samples[begin:end])
        if not is_old and channel.continues(stamp_ns, off_ns):
            timeline.follow(count, off_ns)
            channel.moved = True
            channel.count_gap()
        elif off_ns > 0:
            channel.count_gap()
            channel.gaps.append((stamp_ns - off_ns, stamp_ns))
            channel.former_due_ns = stamp_ns - off_ns
            timeline.jump(stamp_ns)
            channel.count, channel.is_open = 0, False
        else:
            known, alike = channel.known(block.samples[begin:end], off_ns)
            if not alike and (channel.takes_back_gap(stamp_ns, block.samples[begin:end]) or known < n):
                # These are other samples than those that are known: a stamp is wrong.
                timeline.follow(count, stamp_ns - timeline.time_ns(count))
                channel.moved, known = True, 0
            elif known < n:
                channel.counts.overlaps += 1
                channel.count_gap()
            elif not channel.is_stranger(stamp_ns, n):
                channel.counts.duplicates += 1
                channel.drop(strangers=0)
                return channel, None
            elif channel.strangers + 1 < _TRUSTED:
                channel.counts.late += 1
                channel.drop(strangers=channel.strangers + 1)
                return channel, None
            else:
                channel, known = self._begin(block.stream.component, block, stamp_ns), 0
        channel.strangers = 0
        channel.stamp(channel.count - known, stamp_ns, block.rate_hz)
        return channel, known

    def _hand_on(self, channel: _Channel, block: SampleBlock, begin: int, end: int) -> list[SampleBlock]:
        """Samples ``begin`` to ``end - 1`` of a block, the channel's next ones, as far as they are valid."""
        whole = end - begin == len(block.samples)
        samples = block.samples if whole else block.samples[begin:end]
        timeline, n = channel.timeline, end - begin
        first, continues, moved = channel.count, channel.is_open, channel.moved
        channel.tail, channel.count = samples, first + n
        channel.moved, channel.is_open = False, True
        start_ns, rate_hz = timeline.time_ns(first), timeline.rate_hz
        if samples.dtype.kind == "f" and not float(np.abs(samples).max()) <= LARGEST:
            return _valid(channel, block, samples, first, continues=continues)
        channel.counts.samples += n
        as_it_came = whole and not moved and start_ns == block.start_ns and rate_hz == block.rate_hz
        if as_it_came and (continues or block.stamps is None or not block.continues):
            return [block]
        return [SampleBlock(block.stream, start_ns, rate_hz, samples, block.quality, () if continues else None)]


def _valid(
    channel: _Channel, block: SampleBlock, samples: Samples, first: int, *, continues: bool
) -> list[SampleBlock]:
    """The finite runs of samples that may be NaN or infinite, the first with number ``first``."""
    valid = np.abs(samples) <= LARGEST
    count, timeline = int(np.count_nonzero(valid)), channel.timeline
    channel.counts.samples += count
    channel.counts.invalid_samples += len(samples) - count
    channel.is_open = bool(valid[-1])
    edges = np.flatnonzero(np.diff(valid.astype(np.int8), prepend=0, append=0)).tolist()
    return [
        SampleBlock(
            block.stream,
            timeline.time_ns(first + begin),
            timeline.rate_hz,
            samples[begin:end],
            block.quality,
            () if continues and begin == 0 else None,
        )
        for begin, end in zip(edges[::2], edges[1::2], strict=True)
    ]
