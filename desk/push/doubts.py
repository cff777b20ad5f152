"""Tunables that are allowed and yet hardly meant: whoever signs a change is warned of them."""

from __future__ import annotations

import math
from collections.abc import Iterator

from agent.config.policy import RulesConfig
from agent.config.station import HIGHEST_CORNER, TunablesConfig
from agent.dsp.reference import least_energy

MOST_ON, LEAST_ON = 20.0, 1.5
LEAST_OFF = 0.5
LEAST_RATIO = 5.0
"""Long over short average."""
MOST_MIN_DURATION_S = 30.0
MOST_MERGE_S = 30.0
LEAST_OCTAVES = 1.0
_RATE_HZ = 100.0
"""For which it is asked whether anything would trigger; at other rates the answer is nearly the same."""


def doubts(before: TunablesConfig, after: TunablesConfig) -> list[str]:
    """What is doubtful about ``after``, in words, and was not so before."""
    known = set(_doubts(before))
    return [doubt for doubt in _doubts(after) if doubt not in known]


def _doubts(tunables: TunablesConfig) -> Iterator[str]:
    t = tunables.trigger
    high_hz = min(t.high_hz, HIGHEST_CORNER * _RATE_HZ / 2)
    if t.low_hz < high_hz and math.isinf(least_energy(t, _RATE_HZ, high_hz)):
        yield "trigger: with these settings no event would trigger, however large"
    if t.on > MOST_ON:
        yield f"trigger.on: {t.on:g} is beyond what events reach; 3 to 10 are usual"
    if t.on < LEAST_ON:
        yield f"trigger.on: {t.on:g} is reached by noise; 3 to 10 are usual"
    if t.off < LEAST_OFF:
        yield f"trigger.off: the ratio rarely falls below {t.off:g}, so triggers would not end; 1 to 2 are usual"
    if t.lta_s < LEAST_RATIO * t.sta_s:
        yield f"trigger.lta_s: {t.lta_s:g} s is too close to sta_s ({t.sta_s:g} s) for the ratio to rise"
    if t.high_hz < 2**LEAST_OCTAVES * t.low_hz:
        yield f"trigger: the band from {t.low_hz:g} to {t.high_hz:g} Hz is narrower than an octave"
    if t.min_duration_s > MOST_MIN_DURATION_S:
        yield f"trigger.min_duration_s: {t.min_duration_s:g} s discards all but the longest slides"
    if t.merge_s > MOST_MERGE_S:
        yield f"trigger.merge_s: events within {t.merge_s:g} s would become one"
    rules = tunables.policy.rules
    if all(rules.of(label).severity == "none" for label in RulesConfig.model_fields):
        yield "policy.rules: no label raises an alert"
