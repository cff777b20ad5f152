"""Tunables that are allowed and yet hardly meant: whoever signs a change, or checks a file, is warned of them."""

from __future__ import annotations

import math
from collections.abc import Iterator

from agent.config.policy import PolicyConfig, RulesConfig
from agent.config.station import HIGHEST_CORNER, TriggerConfig, TunablesConfig
from agent.config.yaml import Loc
from agent.dsp.reference import FREQUENCY_HZ, least_energy

MOST_ON, LEAST_ON = 20.0, 1.5
LEAST_OFF = 0.5
LEAST_RATIO = 5.0
"""Long over short average."""
MOST_MIN_DURATION_S = 30.0
MOST_MERGE_S = 30.0
MOST_LAG_S = 60.0
MOST_PROBABILITY = 0.98
LEAST_AGE_S = 60.0
LEAST_OCTAVES = 1.0
_RATE_HZ = 100.0
"""For which it is asked whether anything would trigger; at other rates the answer is nearly the same."""


def doubts(before: TunablesConfig, after: TunablesConfig) -> list[tuple[Loc, str]]:
    """What is doubtful about ``after``, as place and words, and was not so before."""
    known = set(_doubts(before))
    return [doubt for doubt in _doubts(after) if doubt not in known]


def _doubts(tunables: TunablesConfig) -> Iterator[tuple[Loc, str]]:
    yield from _about_trigger(tunables.trigger)
    yield from _about_policy(tunables.policy)


def _about_trigger(t: TriggerConfig) -> Iterator[tuple[Loc, str]]:
    high_hz = min(t.high_hz, HIGHEST_CORNER * _RATE_HZ / 2)
    band = f"from {t.low_hz:g} to {t.high_hz:g} Hz"
    if t.low_hz < high_hz and math.isinf(least_energy(t, _RATE_HZ, high_hz)):
        yield ("trigger",), "with these settings no event would trigger, however large"
    if t.on > MOST_ON:
        yield ("trigger", "on"), f"{t.on:g} is beyond what events reach; 3 to 10 are usual"
    if t.on < LEAST_ON:
        yield ("trigger", "on"), f"{t.on:g} is reached by noise; 3 to 10 are usual"
    if t.off < LEAST_OFF:
        words = f"the ratio rarely falls below {t.off:g}, so triggers would not end; 1 to 2 are usual"
        yield ("trigger", "off"), words
    if t.lta_s < LEAST_RATIO * t.sta_s:
        yield ("trigger", "lta_s"), f"{t.lta_s:g} s is too close to sta_s ({t.sta_s:g} s) for the ratio to rise"
    if t.high_hz < 2**LEAST_OCTAVES * t.low_hz:
        yield ("trigger",), f"the band {band} is narrower than an octave"
    if not t.low_hz <= FREQUENCY_HZ <= t.high_hz:
        yield ("trigger",), f"{FREQUENCY_HZ:g} Hz, where slides are strong, is not in the band {band}"
    if t.min_duration_s > MOST_MIN_DURATION_S:
        yield ("trigger", "min_duration_s"), f"{t.min_duration_s:g} s discards all but the longest slides"
    if t.merge_s > MOST_MERGE_S:
        yield ("trigger", "merge_s"), f"events within {t.merge_s:g} s would become one"
    if t.max_component_lag_s > MOST_LAG_S:
        words = f"a component that falls silent would hold back every alert for {t.max_component_lag_s:g} s"
        yield ("trigger", "max_component_lag_s"), words


def _about_policy(policy: PolicyConfig) -> Iterator[tuple[Loc, str]]:
    rules = policy.rules
    if all(rules.of(label).severity == "none" for label in RulesConfig.model_fields):
        yield ("policy", "rules"), "no label raises an alert"
    for label in RulesConfig.model_fields:
        rule = rules.of(label)
        if rule.severity != "none" and rule.min_probability > MOST_PROBABILITY:
            words = f"the network is hardly ever so sure ({rule.min_probability:g}): it would raise no alert"
            yield ("policy", "rules", label, "min_probability"), words
    if policy.max_age_s < LEAST_AGE_S:
        effect = "would not be sent" if policy.late == "withhold" else "would wake nobody"
        words = f"data are often older than {policy.max_age_s:g} s when they are decided on: alerts {effect}"
        yield ("policy", "max_age_s"), words
