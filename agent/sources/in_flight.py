"""Packets that a source handed on and that are not done with yet: how far each place may be stored as read.

A *place* is whatever has a position of its own: a station of a SeedLink server, a file. Places do not wait for each
other, and neither do sources: one channel that is held back holds back the position of its own place only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from agent.types import SampleBlock, StreamId

K = TypeVar("K", bound=Hashable)
P = TypeVar("P")

MAX_IN_FLIGHT = 32_768
"""Packets remembered for one source or server: more than the queues on the way and ``PendingPackets`` keep."""


@dataclass(frozen=True, slots=True)
class Origin(Generic[K]):
    """Where a block came from (``SampleBlock.origin``): the source or server, the place, and a number that grows with
    every packet of ``owner``."""

    owner: object
    place: K
    serial: int


@dataclass(frozen=True, slots=True)
class _Packet(Generic[P]):
    serial: int
    stream: StreamId | None
    """The channel; None for a packet without samples."""
    position: P


class _Place(Generic[P]):
    def __init__(self) -> None:
        self.packets: deque[_Packet[P]] = deque()
        self.done: dict[StreamId, int] = {}
        """Serial number of the newest packet of each channel that is done with."""


class InFlight(Generic[K, P]):
    """The packets of one source or server. Not thread-safe: the owner holds its own lock around each call.

    Args:
        owner: goes into each ``Origin``; says whose packet a block is.
        reached: called with a place and a position, in order, once all packets of the place up to there are done with.
        limit: number of packets to remember. When there are more, the oldest of the place that has most are
            forgotten: its position waits for them no longer, and moves on with the next packet that is done with.
    """

    def __init__(self, owner: object, reached: Callable[[K, P], None], limit: int = MAX_IN_FLIGHT) -> None:
        self._owner, self._reached, self._limit = owner, reached, limit
        self._places: dict[K, _Place[P]] = {}
        self._serial = self._size = 0

    def __len__(self) -> int:
        return self._size

    def send(self, place: K, position: P, stream: StreamId | None) -> Origin[K]:
        """Note a packet that is about to be handed on.

        Args:
            place: where it came from.
            position: the position behind the packet.
            stream: its channel; None if it has no samples, so that it is done with as soon as those before it are.

        Returns:
            The origin to put into the last block of the packet.
        """
        self._serial += 1
        found = self._places.setdefault(place, _Place())
        found.packets.append(_Packet(self._serial, stream, position))
        self._size += 1
        self._advance(place, found)
        while self._size > self._limit:
            most = max(self._places, key=lambda name: len(self._places[name].packets))
            self._places[most].packets.popleft()
            self._size -= 1
            self._advance(most, self._places[most])
        return Origin(self._owner, place, self._serial)

    def acknowledge(self, block: SampleBlock) -> None:
        """Note that a block is done with, and all earlier ones of its channel at the same place."""
        origin = block.origin
        if not isinstance(origin, Origin) or origin.owner is not self._owner:
            return
        found = self._places.get(origin.place)
        if found is not None:
            found.done[block.stream] = max(origin.serial, found.done.get(block.stream, 0))
            self._advance(origin.place, found)

    def oldest(self) -> P | None:
        """The position of the oldest packet of all that is not done with; None if there is none."""
        heads = [place.packets[0] for place in self._places.values()]
        return min(heads, key=lambda packet: packet.serial).position if heads else None

    def _advance(self, name: K, place: _Place[P]) -> None:
        while place.packets and self._is_done(place):
            self._size -= 1
            self._reached(name, place.packets.popleft().position)
        if not place.packets:
            del self._places[name]

    @staticmethod
    def _is_done(place: _Place[P]) -> bool:
        head = place.packets[0]
        return head.stream is None or head.serial <= place.done.get(head.stream, 0)
