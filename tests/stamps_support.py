"""Records of a channel as recorders stamp them: clocks that jitter, round, drift and wobble; lost packets."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from agent.types import MAX_BLOCK_S, NS, SampleBlock, Samples, StationId, StreamId

STATION = StationId("XX", "SLP", "00", "HH")
T0 = 1_700_000_000 * NS + 137_000_000


@dataclass(frozen=True)
class Stamping:
    """``jitter_s`` is a standard deviation; ``round_s`` the step to which times are rounded; ``ppm`` by how much the
    clock is slow; ``wobble`` the largest relative error of the rate in a header; ``step_s`` what the clock is set by at
    ``step_at_s``."""

    jitter_s: float = 0.0
    round_s: float = 0.0
    ppm: float = 0.0
    wobble: float = 0.0
    step_s: float = 0.0
    step_at_s: float = 0.0

    def true_s(self, seconds: float) -> float:
        """What the time of a sample should be, that an ideal clock has ``seconds`` after the start."""
        return seconds * (1 + self.ppm * 1e-6) + (self.step_s if seconds >= self.step_at_s else 0.0)


def records(
    samples: Samples,
    rate_hz: float,
    size: int,
    stamping: Stamping,
    *,
    component: str = "Z",
    lost: Collection[int] = (),
    seed: int = 0,
) -> list[SampleBlock]:
    """The samples in records of ``size``, those with a number in ``lost`` left out; long ones in blocks of a minute."""
    chance = np.random.default_rng(seed)
    stream, found = StreamId(STATION, component), []
    for number, first in enumerate(range(0, len(samples), size)):
        stamp_s = stamping.true_s(first / rate_hz) + chance.normal(0, 1) * stamping.jitter_s
        if stamping.round_s:
            stamp_s = round(stamp_s / stamping.round_s) * stamping.round_s
        header_hz = rate_hz * (1 + chance.uniform(-1, 1) * stamping.wobble)
        if number in lost:
            continue
        record, most = samples[first : first + size], int(MAX_BLOCK_S * header_hz)
        start_ns = T0 + round(stamp_s * NS)
        for at in range(0, len(record), most):
            part = record[at : at + most]
            when_ns = start_ns + round(at * NS / header_hz)
            found.append(SampleBlock(stream, when_ns, header_hz, part, stamps=() if at else None))
    return found
