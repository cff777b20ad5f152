"""Packets of one channel put back in order by their times, for transports that lose, repeat and overtake.

Such a packet carries nothing but a time. One that continues the channel is passed on at once. One from elsewhere is
kept back: the missing one may still come, and a single wrong time must not carry the channel into the future, where all
that follows would be too late. What is kept back is believed when packets that continue each other agree on it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from agent.types import NS, Samples

Loss: TypeAlias = Literal["repeated", "late", "unconfirmed"]

MAX_WAITING = 64
"""Packets kept back at most."""
_AGREE = 2
"""Packets that continue each other, for a gap or a beginning to be believed ..."""
_AGREE_BACKWARD = 4
"""... and for a clock that was set back, which late packets look like."""
_FORGET_S = 5.0
"""Packets are kept back so much longer than the patience, then dropped."""
_REMEMBERED = 64
"""Packets passed on whose times are remembered, to tell a repeated one from a late one."""


@dataclass(frozen=True, slots=True, eq=False)
class Packet:
    """``samples`` from ``start_ns`` on; ``arrived_s`` on the monotonic clock, ``size`` in bytes as received."""

    start_ns: int
    samples: Samples
    arrived_s: float
    size: int


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """Samples in order, their time on the channel's grid; ``missing`` samples are lost before them. ``step_ns`` is how
    far the clock was set back, 0 where it was not."""

    start_ns: int
    samples: Samples
    missing: int = 0
    step_ns: int = 0


class ChannelSequence:
    """One channel. ``dropped`` is told each packet that is not passed on, and why. Not thread-safe."""

    def __init__(self, rate_hz: float, patience_s: float, dropped: Callable[[Packet, Loss], None]) -> None:
        self._rate_hz, self._half_ns = rate_hz, NS / rate_hz / 2
        self._patience_s = patience_s
        self._dropped = dropped
        self._origin_ns = 0
        self._count = 0
        self._due_ns: int | None = None
        self._continued_s = float("-inf")
        """When the channel last went on where it was."""
        self._waiting: list[Packet] = []
        self._passed: deque[int] = deque(maxlen=_REMEMBERED)

    @property
    def waiting(self) -> int:
        """How many packets are kept back."""
        return len(self._waiting)

    def push(self, packet: Packet) -> Iterator[Placed]:
        """Take a packet; yields what can be passed on now."""
        due_ns = self._due_ns
        if due_ns is not None and abs(packet.start_ns - due_ns) < self._half_ns:
            # The channel goes on where it was, so what lies behind it is late and not a clock that was set back.
            self._continued_s = packet.arrived_s
            yield self._place(packet)
            if self._waiting:
                yield from self._drain()
                self._drop_before(self._due_ns or 0)
            return
        known = [*self._passed, *(other.start_ns for other in self._waiting)]
        if any(abs(packet.start_ns - start_ns) < self._half_ns for start_ns in known):
            self._dropped(packet, "repeated")
            return
        self._waiting.append(packet)
        self._waiting.sort(key=lambda waiting: waiting.start_ns)
        yield from self.settle(packet.arrived_s)

    def settle(self, now_s: float) -> Iterator[Placed]:
        """Give up waiting where that has lasted long enough; ``now_s`` on the monotonic clock."""
        while (chain := self._believable(now_s)) is not None:
            first, due_ns = chain[0], self._due_ns
            missing = step_ns = 0
            if due_ns is not None:
                missing = max(0, round((first.start_ns - due_ns) * self._rate_hz / NS))
                step_ns = max(0, due_ns - first.start_ns)
            if step_ns:
                self._passed.clear()
            else:
                self._drop_before(first.start_ns)
            self._origin_ns = self._due_ns = first.start_ns
            self._count = 0
            self._waiting = [waiting for waiting in self._waiting if waiting not in chain]
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
        chain: list[Packet] = []
        for packet in self._waiting:
            if chain:
                end_ns = chain[-1].start_ns + round(len(chain[-1].samples) * NS / self._rate_hz)
                if abs(packet.start_ns - end_ns) >= self._half_ns:
                    yield chain
                    chain = []
            chain.append(packet)
        if chain:
            yield chain

    def _place(self, packet: Packet) -> Placed:
        """The packet where it is due, on the grid. A clock that drifts is followed slowly."""
        assert self._due_ns is not None  # noqa: S101 - the callers have seen to it
        start_ns = self._due_ns
        off_ns = packet.start_ns - start_ns
        if abs(off_ns) > self._half_ns / 2:
            self._origin_ns += off_ns // 8
        self._count += len(packet.samples)
        self._due_ns = self._origin_ns + round(self._count * NS / self._rate_hz)
        self._passed.append(packet.start_ns)
        return Placed(start_ns, packet.samples)

    def _drain(self) -> Iterator[Placed]:
        """Packets that were kept back and have now become due."""
        while True:
            due_ns = self._due_ns or 0
            packet = next((w for w in self._waiting if abs(w.start_ns - due_ns) < self._half_ns), None)
            if packet is None:
                return
            self._waiting.remove(packet)
            yield self._place(packet)

    def _drop_before(self, time_ns: int) -> None:
        for packet in [waiting for waiting in self._waiting if waiting.start_ns < time_ns]:
            self._drop(packet, "late")

    def _drop(self, packet: Packet, reason: Loss) -> None:
        self._waiting.remove(packet)
        self._dropped(packet, reason)
