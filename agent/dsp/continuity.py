"""What one station's packets are to each other in time, so that later stages see clean runs of samples only.

This is the one place where overlaps, repeats, packets out of order, invalid samples and changes of rate are dealt with.
Everything behind it (ring buffer, detector) takes what ``accept`` returns: finite, in order, without overlap, with the
channel's own estimate of time and rate (``Timeline``). A jump between two such blocks is a gap, unless the second one
continues the first (``SampleBlock.continues``): then only the estimate of the time has changed.

The estimate (``Timeline``) is a smooth clock behind time stamps that are noisy, rounded, or seconds apart. A recorder
samples evenly; what it writes down about it jitters (software time stamps), is rounded (milliseconds, tenths of a
second), or drifts against the nominal rate. It is a Kalman filter of two states, the time of the newest stamp and the
relative error of the period, which forgets what is older than some packets (time) or minutes (period).

``Recorded`` is the time axis without the gaps, on which the rates of events can be compared.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from agent.errors import DataError
from agent.types import NS, SampleBlock, Samples, Segment

SAME_RATE = 1.2e-2
"""Rates that differ by no more are one nominal rate: headers with a measured rate wobble by half a per cent."""
TOLERANCE_NS = 120_000_000
"""A stamp may be this much off: a computer's clock jitters, times have one decimal, clocks are set by a step."""
CALM_NS = 1_000_000
"""Stamps this close to where they are expected confirm the clock as it is: it stays exactly where it was."""
_JITTER_S, _LEAST_S, _MOST_S = 0.010, 0.001, 0.040
"""Standard deviation of the stamps: assumed at first, and the bounds of what is learned from them."""
_PERIOD, _MOST_PERIOD = 5e-4, 6e-3
"""Standard deviation of the period's relative error before anything is known of it, and when the stamps contradict what
is: headers hold rates that were measured, or meant."""
_MOST_ERROR = SAME_RATE / (1 + SAME_RATE)
"""Of the period, so that the rate that is shown is the same as the nominal one."""
_WANDER = 1e-14
"""Variance that the period's error gains in a second: crystals change by some ppm in an hour."""
_FORGET = 0.05
"""Variance that the time gains from stamp to stamp, as a share of the stamps': the last five or so decide."""
_LEARN = 1 / 32
_OUTLIER = 4.0
"""A stamp that is off by so many standard deviations counts only if the next one agrees ..."""
_CLIPPED = 3.0
"""... and until then for so many."""
_ONE_BY_ONE = 8
_LEAST_SLACK, _MOST_SLACK = 1e-3, 6e-3
_FEW = 4
"""Stamps before which nothing is known of the period."""
_SET_BACK_NS = 600 * NS
_TEAR_NS = NS // 8
"""What is missing is shorter: the components' times jitter, each on its own."""
_RECORDED_GAPS = 64


def same_rate(one_hz: float, other_hz: float) -> bool:
    """Whether two rates are one nominal rate."""
    return one_hz == other_hz or abs(one_hz - other_hz) <= SAME_RATE * other_hz


class Timeline:
    """Samples are numbered without gaps from 0. Not thread-safe."""

    __slots__ = (
        "_anchor_ns", "_anchored", "_calm", "_calm_from", "_calm_ns", "_cross", "_error", "_noise", "_nominal_ns",
        "_phase", "_rate", "_stamped", "_stamps", "_suspect", "rate_hz", "step_ns",
    )  # fmt: skip

    def __init__(self, start_ns: int, rate_hz: float) -> None:
        self.rate_hz = rate_hz
        """The rate that the times show; the nominal one as long as they do not contradict it."""
        self._nominal_ns = self.step_ns = NS / rate_hz
        """``step_ns``: the estimated time from sample to sample."""
        self._calm_ns = min(CALM_NS, 0.49 * self.step_ns)
        self._error = 0.0
        self._noise = _JITTER_S**2
        self._rate = _PERIOD**2
        self._stamps = 0
        self.jump(start_ns)

    def jump(self, start_ns: int) -> None:
        """Begin a new run with sample 0 at a time stamp; what is known of the period stays."""
        self._anchored, self._anchor_ns = 0, start_ns
        self._stamped = self._calm = self._calm_from = 0
        self._phase, self._cross = self._noise, 0.0
        self._suspect = 0

    def doubt(self, error: float) -> None:
        """Take nothing for known of the period to within a relative error: the headers contradict each other."""
        self._absorb()
        self._rate = max(self._rate, min(_MOST_PERIOD, error) ** 2)

    def put(self, number: int, time_ns: int) -> None:
        """Have the time of a sample known better; what is known of the period stays."""
        self._anchored, self._anchor_ns = number, time_ns

    def time_ns(self, number: int) -> int:
        """Estimated time of a sample."""
        return self._anchor_ns + round((number - self._anchored) * self.step_ns)

    def confirms(self, number: int, off_ns: float) -> bool:
        """Whether a stamp of sample ``number``, ``off_ns`` later than estimated, leaves everything as it is."""
        if -self._calm_ns <= off_ns <= self._calm_ns:
            self._calm += 1
            self._stamped = number
            return True
        return False

    def confirms_all(self, number: int, stamps: tuple[tuple[int, int], ...]) -> bool:
        """Whether all of some stamps (sample, counted from ``number``, and time) leave everything as it is."""
        calm_ns = self._calm_ns
        if any(not -calm_ns <= stamp_ns - self.time_ns(number + at) <= calm_ns for at, stamp_ns in stamps):
            return False
        self._calm += len(stamps)
        self._stamped = number + stamps[-1][0]
        return True

    def tolerance_ns(self, number: int) -> float:
        """How far the stamp of sample ``number`` may be off for it to be the next one all the same.

        ``TOLERANCE_NS``, or half the time since the last stamp where that is less; and what the period is not known to,
        1 per mille of that time at least, 6 per mille as long as nothing is known.
        """
        self._absorb()
        span_ns = (number - self._stamped) * self.step_ns
        known = _LEAST_SLACK if self._stamps >= _FEW else _MOST_SLACK
        share = min(_MOST_SLACK, max(known, 3 * math.sqrt(self._rate)))
        return min(TOLERANCE_NS, span_ns / 2) + share * span_ns

    def follow(self, number: int, off_ns: float) -> None:
        """Take account of a stamp of sample ``number`` that is ``off_ns`` later than estimated."""
        self._absorb()
        off_s, span_s = off_ns / NS, (number - self._stamped) * self.step_ns / NS
        self._stamps += 1
        self._predict(span_s)
        spread = self._phase + self._noise
        if off_s * off_s > _OUTLIER**2 * spread:
            side = 1 if off_s > 0 else -1
            if self._suspect == side:
                # The clock was set: the new time counts. Or the period is another one, which the next stamps will say.
                self._phase, self._cross, self._suspect = self._phase + off_s * off_s, 0.0, 0
                self._rate = max(self._rate, min(_MOST_PERIOD, abs(off_s) / span_s) ** 2) if span_s else self._rate
                spread = self._phase + self._noise
            else:
                self._suspect = side
                off_s = side * _CLIPPED * math.sqrt(spread)
        else:
            self._suspect = 0
            noise = self._noise + _LEARN * (off_s * off_s * self._noise / spread - self._noise)
            self._noise = min(_MOST_S**2, max(_LEAST_S**2, noise))
        gain, period_gain = self._phase / spread, self._cross / spread
        self._correct(spread)
        self._anchor_ns = self.time_ns(number) + round(gain * off_s * NS)
        self._anchored = self._stamped = self._calm_from = number
        self._error = min(_MOST_ERROR, max(-_MOST_ERROR, self._error + period_gain * off_s))
        self.step_ns = self._nominal_ns * (1 + self._error)
        self.rate_hz = NS / self.step_ns

    def _predict(self, span_s: float) -> None:
        self._phase += span_s * (2 * self._cross + span_s * self._rate) + _FORGET * self._noise
        self._cross += span_s * self._rate
        self._rate += _WANDER * span_s

    def _correct(self, spread: float) -> None:
        self._rate -= self._cross * self._cross / spread
        self._cross *= 1 - self._phase / spread
        self._phase *= 1 - self._phase / spread

    def _absorb(self) -> None:
        """Take account of the stamps that confirmed the clock since the last time: they said more about it."""
        count, self._calm = self._calm, 0
        span_s = (self._stamped - self._calm_from) * self.step_ns / NS
        if not span_s:
            return
        self._calm_from = self._stamped
        self._stamps += count
        self._suspect = 0
        self._noise = max(_LEAST_S**2, self._noise * (1 - _LEARN) ** count)
        for _ in range(min(count, _ONE_BY_ONE)):
            self._predict(span_s / count)
            self._correct(self._phase + self._noise)
        if count > _ONE_BY_ONE:
            # As a straight line through so many stamps is known.
            self._rate = min(self._rate, 12 * self._noise / (count * span_s * span_s))
            self._cross = 0.0


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


# What the packets of a channel claim, against each other: their sampling rate, and that they are one recorder's.

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
