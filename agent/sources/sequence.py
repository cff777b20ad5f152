"""Packets of one channel put back in order by their times, for transports that lose, repeat and overtake.

Such a packet carries nothing but a time, which may jitter or be rounded. One that comes within half a packet of where
the channel is due continues it and is passed on at once: no loss is inferred from less. One from elsewhere is kept
back: the missing one may still come, and a single wrong time must not carry the channel into the future, where all that
follows would be too late. What is kept back is believed when packets that continue each other agree on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from typing import Literal, TypeAlias

import numpy as np

from agent.types import NS, Samples

Loss: TypeAlias = Literal["repeated", "late", "unconfirmed"]

_TOLERANCE_NS = 120_000_000
"""A packet continues the channel if it is no more than this, and than half a packet, off its time."""
_JITTERS = 5
"""... or, where most distances between times are off by more than a fifth of a packet, so many times what they are
off."""
_FIRST_ARRIVALS, _ARRIVALS = 16, 64
"""Packets from which the jitter follows, at first and then."""
_WRONG_NS = NS
"""A packet that came in its turn is used although its time is wrong, by this at most."""
_FOLLOW = 8
"""The time at which the next packet is due follows the stamps with an eighth of their differences."""
_FOLLOW_JITTER = 32
"""... where times jitter much, with a 32nd; it is then the better time, and the one that is passed on."""
MAX_WAITING = 64
"""Packets kept back at most."""
_AGREE = 2
"""Packets that continue each other, for a gap or a beginning to be believed ..."""
_AGREE_BACKWARD = 4
"""... and for a clock that was set back, which late packets look like."""
_FORGET_S = 5.0
"""Packets are kept back so much longer than the patience, then dropped."""
_REMEMBERED = 64
"""Packets passed on that are remembered, to tell a repeated one from a late one."""


@dataclass(frozen=True, slots=True, eq=False)
class Packet:
    """``samples`` from ``start_ns`` on; ``arrived_s`` on the monotonic clock, ``size`` in bytes as received."""

    start_ns: int
    samples: Samples
    arrived_s: float
    size: int


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """Samples in order, and their time: as the packet says it, or, where times jitter by a good part of a packet, as
    the samples before it count. ``missing`` samples are lost before them. ``step_ns`` is how far the clock was set
    back, 0 where it was not."""

    start_ns: int
    samples: Samples
    missing: int = 0
    step_ns: int = 0


class ChannelSequence:
    """One channel. ``dropped`` is told each packet that is not passed on, and why. Not thread-safe."""

    def __init__(self, rate_hz: float, patience_s: float, dropped: Callable[[Packet, Loss], None]) -> None:
        self._rate_hz = rate_hz
        self._patience_s = patience_s
        self._dropped = dropped
        self._due_ns: int | None = None
        self._tolerance_ns = 0
        """How far from there the next packet may be."""
        self._placed = 0
        """Packets passed on since the last gap."""
        self._continued_s = float("-inf")
        """When the channel last went on where it was."""
        self._starts: list[int] = []
        """Times of the newest packets."""
        self._arrivals = _FIRST_ARRIVALS
        self._jitter_ns = 0
        self._waiting: list[Packet] = []
        self._passed: dict[int, Samples] = {}

    @property
    def waiting(self) -> int:
        """How many packets are kept back."""
        return len(self._waiting)

    def push(self, packet: Packet) -> Iterator[Placed]:
        """Take a packet; yields what can be passed on now."""
        if self._is_repeated(packet):
            self._dropped(packet, "repeated")
            return
        self._follow_jitter(packet)
        if self._due_ns is not None and abs(packet.start_ns - self._due_ns) < self._tolerance_ns:
            # The channel goes on where it was, so what lies behind it is late and not a clock that was set back.
            self._continued_s = packet.arrived_s
            yield self._place(packet)
            if self._waiting:
                yield from self._drain()
                self._drop_before(self._due_ns or 0)
            return
        self._waiting.append(packet)
        self._waiting.sort(key=lambda waiting: waiting.start_ns)
        yield from self.release(packet.arrived_s)

    def _follow_jitter(self, packet: Packet) -> None:
        """See how far apart times are that should be a packet apart, whatever the order in which they came."""
        self._starts.append(packet.start_ns)
        if len(self._starts) == self._arrivals:
            self._arrivals = _ARRIVALS
            starts, length_ns = sorted(self._starts), self._length_ns(packet)
            off_ns = sorted(abs(after - before - length_ns) for before, after in pairwise(starts))
            median_ns = off_ns[len(off_ns) // 2]
            self._jitter_ns = median_ns if median_ns > length_ns // 5 else 0
            self._starts.clear()

    def _tolerance_of(self, length_ns: int) -> int:
        return max(min(_TOLERANCE_NS, length_ns // 2), min(_JITTERS * self._jitter_ns, _WRONG_NS // 2))

    def release(self, now_s: float) -> Iterator[Placed]:
        """Give up waiting where that has lasted long enough; ``now_s`` on the monotonic clock."""
        while (chain := self._believable(now_s)) is not None:
            self._waiting = [waiting for waiting in self._waiting if waiting not in chain]
            first, missing, step_ns = chain[0], 0, 0
            if self._due_ns is not None:
                step_ns = max(0, self._due_ns - first.start_ns)
                if not step_ns:
                    yield from self._fill(self._due_ns, first)
                    missing = self._missing(first.start_ns)
            if step_ns:
                self._passed.clear()
            else:
                self._drop_before(first.start_ns)
            self._due_ns, self._placed = first.start_ns, 0
            for packet in chain:
                placed = self._place(packet)
                yield Placed(placed.start_ns, placed.samples, missing, step_ns) if packet is first else placed
            yield from self._drain()
        for packet in [w for w in self._waiting if now_s - w.arrived_s > self._patience_s + _FORGET_S]:
            self._drop(packet, "unconfirmed")
        if len(self._waiting) >= MAX_WAITING:
            self._drop(min(self._waiting, key=lambda waiting: waiting.arrived_s), "unconfirmed")

    def flush(self) -> None:
        """The channel ends: nothing will confirm what is still kept back."""
        for packet in [*self._waiting]:
            self._drop(packet, "unconfirmed")

    def _believable(self, now_s: float) -> list[Packet] | None:
        """The earliest packets that continue each other, once they are enough and have waited long enough."""
        due_ns, full = self._due_ns, len(self._waiting) >= MAX_WAITING
        for chain in self._chains():
            backward = due_ns is not None and chain[0].start_ns < due_ns
            # While the channel goes on where it was, packets from elsewhere are not its future.
            waited_s = now_s - max(self._continued_s, min(packet.arrived_s for packet in chain))
            patient = full or due_ns is None or waited_s >= self._patience_s
            if len(chain) >= (_AGREE_BACKWARD if backward else _AGREE) and patient:
                return chain
        return None

    def _chains(self) -> Iterator[list[Packet]]:
        """The waiting packets as runs in each of which one continues the other. Of two that might, the better one."""
        chain: list[Packet] = []
        for packet, following in zip_longest(self._waiting, self._waiting[1:]):
            if chain:
                length_ns = self._length_ns(chain[-1])
                end_ns = chain[-1].start_ns + length_ns
                off_ns = abs(packet.start_ns - end_ns)
                if following is not None:
                    after_ns = abs(following.start_ns - packet.start_ns - self._length_ns(packet))
                    if abs(following.start_ns - end_ns) < min(off_ns, after_ns, length_ns):
                        yield [packet]
                        continue
                if off_ns >= self._tolerance_of(length_ns):
                    yield chain
                    chain = []
            chain.append(packet)
        if chain:
            yield chain

    def _is_repeated(self, packet: Packet) -> bool:
        """Whether the same time came with the same samples before."""
        passed = self._passed.get(packet.start_ns)
        known = [] if passed is None else [passed]
        known += [other.samples for other in self._waiting if other.start_ns == packet.start_ns]
        return any(np.array_equal(samples, packet.samples) for samples in known)

    def _fill(self, begin_ns: int, first: Packet) -> Iterator[Placed]:
        """Pass on what came of the gap before a packet: packets that came before it and just fill the gap, in the order
        in which they came and whatever their times; else those whose times lie in it."""
        arrived = sorted((w for w in self._waiting if w.arrived_s < first.arrived_s), key=lambda w: w.arrived_s)
        came = [w for w in arrived if w.arrived_s >= self._continued_s and abs(w.start_ns - begin_ns) < _WRONG_NS]
        if came and abs(sum(map(self._length_ns, came)) - (first.start_ns - begin_ns)) < self._tolerance_ns:
            for packet in came:
                self._waiting.remove(packet)
                yield self._place(packet, self._due_ns)
            return
        for packet in [*self._waiting]:
            late_ns = packet.start_ns - (self._due_ns or 0)
            before_ns = first.start_ns - packet.start_ns - self._length_ns(packet)
            if min(late_ns, before_ns) > -self._tolerance_ns:
                self._waiting.remove(packet)
                missing, self._due_ns, self._placed = self._missing(packet.start_ns), packet.start_ns, 0
                placed = self._place(packet)
                yield Placed(placed.start_ns, placed.samples, missing)

    def _missing(self, start_ns: int) -> int:
        """Samples that are lost where the channel goes on then."""
        return 0 if self._due_ns is None else max(0, round((start_ns - self._due_ns) * self._rate_hz / NS))

    def _length_ns(self, packet: Packet) -> int:
        return round(len(packet.samples) * NS / self._rate_hz)

    def _place(self, packet: Packet, start_ns: int | None = None) -> Placed:
        """The packet as the channel's next one; ``start_ns`` where its own time is wrong."""
        assert self._due_ns is not None  # noqa: S101 - the callers have seen to it
        self._placed += 1
        length_ns = self._length_ns(packet)
        start_ns = packet.start_ns if start_ns is None else start_ns
        counted_ns, follow = self._due_ns, _FOLLOW_JITTER if self._jitter_ns else _FOLLOW
        self._due_ns += (start_ns - self._due_ns) // min(follow, self._placed) + length_ns
        self._tolerance_ns = self._tolerance_of(length_ns)
        self._passed[packet.start_ns] = packet.samples
        if len(self._passed) > _REMEMBERED:
            del self._passed[next(iter(self._passed))]
        return Placed(counted_ns if self._jitter_ns else start_ns, packet.samples)

    def _drain(self) -> Iterator[Placed]:
        """Packets that were kept back and have now become due, the nearest first."""
        while self._waiting:
            due_ns = self._due_ns or 0
            packet = min(self._waiting, key=lambda waiting: abs(waiting.start_ns - due_ns))
            if abs(packet.start_ns - due_ns) >= self._tolerance_ns:
                return
            self._waiting.remove(packet)
            yield self._place(packet)

    def _drop_before(self, time_ns: int) -> None:
        for packet in [waiting for waiting in self._waiting if waiting.start_ns < time_ns]:
            self._drop(packet, "late")

    def _drop(self, packet: Packet, reason: Loss) -> None:
        self._waiting.remove(packet)
        self._dropped(packet, reason)
