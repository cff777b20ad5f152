"""The look at a sensor's raw samples, every minute: whether they can be ground motion at all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from agent.dsp.hearing import LOOK_NS, Hearing
from agent.dsp.plausible import Flaw, inspect, is_filled, repeats, unevenness
from agent.dsp.ring import RingBuffer
from agent.types import NS, Samples, Segment

INSPECTED_NS = 10 * NS
"""Raw samples that are inspected, now and then."""
LOOKED_BACK_NS = 120 * NS
"""How far back their like is looked for, and where the recorder has filled gaps."""
_WHITE, _MOVED = 2.0, 4.0
"""Unevenness of a minute below which it is what electronics record, and above which it is something else."""
_STILL_S = 1.0
"""Motion that stands still for so long was filled in."""


def look(hearing: Hearing, rings: Mapping[str, RingBuffer], until_ns: int) -> None:
    """Tell ``hearing`` what the raw samples before a time look like; ``rings`` by component code."""
    samples: dict[str, Samples] = {}
    longer: set[Flaw] = set()
    minutes: dict[tuple[int, float], dict[str, Samples]] = {}
    doubtful = hearing.doubtful(rings, until_ns)
    for letter, ring in rings.items():
        runs = ring.segments(until_ns - LOOKED_BACK_NS, until_ns, lasting=False)
        recent = sum([run.since(until_ns - INSPECTED_NS) for run in runs])
        if not recent:
            continue
        before = _joined(runs)
        samples[letter] = before[-recent:]
        if repeats(before):
            longer.add(("repeats", letter))
        if is_filled(before, math.ceil(_STILL_S * ring.rate_hz)):
            longer.add(("filled", letter))
        if letter in doubtful:
            minute = before[-round(LOOK_NS / NS * ring.rate_hz) :]
            minutes.setdefault((len(minute), ring.rate_hz), {})[letter] = minute
    if not samples:
        return
    flat: set[str] = set()
    felt: set[str] = set()
    for (_, rate_hz), alike in minutes.items():
        for letter, uneven in zip(alike, unevenness(np.stack(list(alike.values())), rate_hz).tolist(), strict=True):
            if uneven < _WHITE:
                flat.add(letter)
            elif uneven > _MOVED:
                felt.add(letter)
    hearing.inspected(inspect(samples) | longer, until_ns, flat, felt)


def _joined(runs: Sequence[Segment]) -> Samples:
    return runs[0].samples if len(runs) == 1 else np.concatenate([run.samples for run in runs])
