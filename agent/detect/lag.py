"""Data time against this machine's time, channel by channel: a recorder's clock that is wrong becomes visible.

The lag of a packet is the age of its newest sample when it came in. It cannot be negative, and its smallest values
change little: network and recorder add to it, nothing takes away from it. So

- samples from the future say that the recorder's clock is ahead, or this machine's behind;
- a lag far below all earlier ones says that the recorder's clock was set forward;
- smallest lags that have grown for good say that it was set back or drifts, or that the way has become longer.

Doubted packets are passed on with a questionable time tag; nothing else about them changes, nor does their order.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from agent.types import NS, SampleBlock, StreamId

if TYPE_CHECKING:
    from agent.config.station import Config

AHEAD_S = 0.5
"""Clocks on the same network agree better than this."""
FORWARD_S = 1.0
GROWN_S = 2.0
BACKLOG_S = 60.0
"""Packets older than this are being made up for: their lag says nothing of clocks."""
SPAN_S = 600.0
"""Smallest lags are taken over so long; a doubt lasts as long after what gave rise to it."""
REMEMBERED = 144
"""Spans that are compared: a day. After that, the way is taken to be longer."""
SET_BACK_S = 60.0
"""A channel whose known samples are still in the future, so long after the newest of them came, was set back."""
MAX_CHANNELS = 1024


@dataclass(slots=True)
class _Channel:
    began: float
    least_s: float = float("inf")
    """Smallest lag of the present span."""
    spans: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    forward_until: float = 0.0
    doubt: str = ""
    end_ns: int = 0
    """The end of the samples ..."""
    grown_s: float = 0.0
    """... and when the newest of them came (monotonic)."""


class DataClocks:
    """One for all channels. The pipeline's thread judges, others may ask at any time."""

    def __init__(self) -> None:
        self._channels: dict[StreamId, _Channel] = {}
        self._lock = threading.Lock()
        self._host_is_wrong = False

    def host(self, *, is_wrong: bool) -> None:
        """What is known of this machine's own clock: one that is wrong judges no other."""
        self._host_is_wrong = is_wrong
        if is_wrong:
            self.forget()

    def forget(self) -> None:
        """This machine's clock was set: earlier lags cannot be compared with later ones."""
        with self._lock:
            self._channels.clear()

    def judge(self, block: SampleBlock, received_ns: int, now_s: float) -> SampleBlock:
        """The block itself, or, if its time is in doubt, the same with a questionable time tag.

        Args:
            block: a packet as the source gave it.
            received_ns: this machine's clock when it came in.
            now_s: the monotonic clock.
        """
        if self._host_is_wrong:
            return block
        lag_s = (received_ns - block.end_ns) / NS
        with self._lock:
            channel = self._channels.get(block.stream)
            if channel is None:
                if len(self._channels) >= MAX_CHANNELS:
                    return block
                channel = self._channels[block.stream] = _Channel(now_s)
            channel.doubt = doubt = _doubt(channel, lag_s, now_s)
        if not doubt or block.quality.time_questionable:
            return block
        return replace(block, quality=replace(block.quality, time_questionable=True))

    def was_set_back(self, block: SampleBlock, received_ns: int, now_s: float) -> bool:
        """Whether the recorder's clock was far ahead and has been put right: samples are known that are yet to be
        recorded. All that comes would pass for a repetition of them until that time is there, and the channel would be
        blind. For blocks that ``judge`` has seen."""
        channel, end_ns = self._channels.get(block.stream), block.end_ns
        if channel is None or self._host_is_wrong:
            return False
        soon_ns = received_ns + round(AHEAD_S * NS)
        found = channel.end_ns > soon_ns >= end_ns and now_s - channel.grown_s > SET_BACK_S
        if found or end_ns > channel.end_ns:
            channel.end_ns, channel.grown_s = end_ns, now_s
        return found

    def doubts(self) -> list[str]:
        """Which clocks are in doubt now, and why; a line each."""
        with self._lock:
            return [
                f"clock of {stream.seed}: {channel.doubt}"
                for stream, channel in self._channels.items()
                if channel.doubt
            ]


def _doubt(channel: _Channel, lag_s: float, now: float) -> str:
    """What is wrong with the channel's clock, in words, as of a packet with this lag; empty if nothing is."""
    if lag_s > BACKLOG_S:
        return ""
    if now - channel.began > SPAN_S:
        if channel.least_s < BACKLOG_S:
            channel.spans.append(channel.least_s)
        channel.began, channel.least_s = now, float("inf")
    channel.least_s = min(channel.least_s, lag_s)
    if channel.spans and lag_s < min(channel.spans) - FORWARD_S:
        channel.forward_until = now + SPAN_S
    if lag_s < -AHEAD_S:
        return f"{-lag_s:.1f} s ahead of this machine's"
    if now < channel.forward_until:
        return "set forward, or this machine's back"
    grown_s = channel.spans[-1] - min(channel.spans) if channel.spans else 0.0
    if grown_s > GROWN_S:
        return f"{grown_s:.1f} s later than before: behind, or the way has become longer"
    return ""


def is_live(config: Config) -> bool:
    """Whether the configured source gives packets as they are recorded, so that their lag means something."""
    return config.source.kind in ("seedlink", "shake_udp")
