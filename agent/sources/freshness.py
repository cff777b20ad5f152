"""What ``talus doctor`` makes of samples that have just come: on time, or one of two clocks is wrong."""

from __future__ import annotations

from dataclasses import dataclass

from agent.host.data_age import ROLLOVER_WEEKS, rollovers, span
from agent.types import SampleBlock

AHEAD_S = 0.5
LATE_S = 4.0
"""An alarm that is later than this is late; and no clock is five seconds off without being told."""


@dataclass(frozen=True, slots=True)
class Freshness:
    """What was seen: ``hint`` is for the operator where it is not well."""

    well: bool
    detail: str
    hint: str = ""


def assess(what: str, block: SampleBlock, lag_s: float) -> Freshness:
    """Judge a block of ``what``, whose newest sample was so many seconds old when it came (negative: in the future)."""
    if weeks := rollovers(lag_s) * ROLLOVER_WEEKS:
        side = "behind" if weeks > 0 else "ahead"
        return Freshness(
            False,
            f"{what}, but the recorder's clock is {abs(weeks)} weeks {side}",
            "the week number of its GPS receiver has rolled over: update its firmware, or replace it; until then the "
            "times of events are as far off",
        )
    if lag_s < -AHEAD_S:
        return Freshness(
            False,
            f"{what}, but its samples are {span(lag_s)} ahead of this machine's clock",
            "one of the two clocks is wrong: check the recorder's GPS or NTP, and this machine's (line clock)",
        )
    if lag_s > LATE_S:
        return Freshness(
            False,
            f"{what}, but its newest sample is {span(lag_s)} old when it comes",
            "the way is slow, the recorder fills long records, or one of the two clocks is wrong: compare them",
        )
    if block.quality.time_questionable:
        return Freshness(False, f"{what}, but the recorder doubts its own clock", "check the recorder's GPS or NTP")
    percent = block.quality.timing_percent
    said = "" if percent is None else f", timing quality {percent} %"
    return Freshness(True, f"{what}, {max(lag_s, 0.0):.1f} s old when it comes{said}")
