"""Which channels of a server have fallen silent, and when to ask for them again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.backoff import Backoff
from agent.sources.seedlink.resume import match
from agent.types import NS, SampleBlock

if TYPE_CHECKING:
    from agent.config.seedlink import SeedLinkStationConfig

LONGEST_S = 3600.0
"""Longest time between two attempts to wake a channel."""
RECORDS_MISSED = 3
"""A channel of long records is not silent before so many of them are missing."""
MAX_CHANNELS = 4096
"""So many are watched."""


@dataclass(frozen=True, slots=True)
class _Sign:
    """Of life: when new samples came (monotonic), how many seconds of them, and up to when."""

    at: float
    span_s: float
    end_ns: int


class Liveness:
    """Of one server. Its thread tells and asks; any thread may ask for ``unheard``.

    Args:
        stalled_s: how long a channel may be silent.
    """

    def __init__(self, stalled_s: float) -> None:
        self._stalled_s = stalled_s
        self._signs: dict[str, _Sign] = {}
        """By station (``NET_STA``) and by channel (``NET.STA.LOC.CHA``)."""
        self._backoff = Backoff[str](stalled_s, LONGEST_S)
        self._requests: Sequence[SeedLinkStationConfig] = ()
        self._asked_at = time.monotonic()

    def asked(self, requests: Sequence[SeedLinkStationConfig]) -> None:
        """All has just been asked for; nobody is silent yet."""
        self._requests, self._asked_at = requests, time.monotonic()

    def note(self, station: str, blocks: Sequence[SampleBlock]) -> bool:
        """Samples of one channel came; whether they are new. Those that are sent once more are no sign of life."""
        sign = _Sign(time.monotonic(), (blocks[-1].end_ns - blocks[0].start_ns) / NS, blocks[-1].end_ns)
        new = False
        for name in (station, blocks[0].stream.seed):
            last = self._signs.get(name)
            if last is None and len(self._signs) >= MAX_CHANNELS:
                new = True
            elif last is None or sign.end_ns > last.end_ns:
                self._signs[name] = sign
                self._backoff.lift(name)
                new = True
        return new

    def due(self) -> list[str]:
        """Channels and stations that are silent and are to be asked for now; each less and less often."""
        now = time.monotonic()
        silent = {
            name for name, last in self._signs.items() if now - max(last.at, self._asked_at) > self._limit_s(last)
        }
        silent.update(self.unheard())
        due = sorted(silent.difference(self._backoff.active())) if silent else []
        for name in due:
            self._backoff.add(name)
        return due

    def unheard(self) -> list[str]:
        """What was asked for and never sent anything, once that is too long ago."""
        if time.monotonic() - self._asked_at <= self._stalled_s:
            return []
        heard = self._signs.copy()
        return [request.station for request in self._requests if not any(map(match(request.station), heard))]

    def _limit_s(self, last: _Sign) -> float:
        return max(self._stalled_s, RECORDS_MISSED * last.span_s)
