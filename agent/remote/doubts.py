"""Settings that are allowed and yet hardly meant, as most of them make a station deaf or mute: whoever signs a change,
or checks a file, is warned of them."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterator, Sequence

from agent.config.outputs import OutputsConfig
from agent.config.policy import PolicyConfig, RuleConfig, RulesConfig
from agent.config.station import HIGHEST_CORNER, Config, TriggerConfig, TunablesConfig, named, stations_of
from agent.config.yaml import Loc
from agent.dsp.reference import FREQUENCY_HZ, LARGEST, least_energy
from agent.types import POST_ONSET_S

MOST_ON, LEAST_ON = 20.0, 1.5
LEAST_OFF = 0.5
LEAST_RATIO = 5.0
"""Long over short average."""
MOST_MIN_DURATION_S = 30.0
MOST_MERGE_S = 30.0
MOST_LAG_S = 60.0
MOST_PROBABILITY = 0.98
MOST_LTA_S = 300.0
MOST_DELAY_S = 30.0
"""From the onset to the first verdict that may alert."""
MOST_REFRACTORY_S = 3600.0
LEAST_AGE_S = 60.0
LEAST_EXPIRY_S = 600
LEAST_OCTAVES = 1.0
LEAST_COINCIDENCE_S = 0.5
MOST_SILENCE_S = 600.0
"""Silence that is to be told of."""
_COMPONENTS = frozenset("ENZ123?*")
SLOPE = ("landslide", "collapse")
"""Labels of slope failures."""
_RATE_HZ = 100.0
"""For which it is asked whether anything would trigger; at other rates the answer is nearly the same."""


def doubts(before: TunablesConfig, after: TunablesConfig) -> list[tuple[Loc, str]]:
    """What is doubtful about ``after``, as place and words, and was not so before."""
    known = set(_doubts(before))
    return [doubt for doubt in _doubts(after) if doubt not in known]


def _doubts(tunables: TunablesConfig) -> Iterator[tuple[Loc, str]]:
    yield from _about_trigger(tunables.trigger)
    yield from _about_policy(tunables.policy)
    for label in RulesConfig.model_fields:
        if (rule := tunables.policy.rules.of(label)).severity != "none":
            yield from _about_rule(("policy", "rules", label), rule, tunables)
    if tunables.reporting.alert_expiry_s < LEAST_EXPIRY_S:
        words = f"a subscriber that is away for {tunables.reporting.alert_expiry_s} s never gets the alert"
        yield ("reporting", "alert_expiry_s"), words


def raises_nothing(tunables: TunablesConfig) -> bool:
    """Whether no event whatever, nor any rate of events, raises an alert."""
    policy = tunables.policy
    rules = [policy.rules.of(label) for label in RulesConfig.model_fields]
    return (
        all((rule.severity == "none" or rule.min_probability == 1) and rule.acceleration is None for rule in rules)
        and (policy.slow.severity == "none" or not tunables.trigger.slow.enabled)
        and policy.on_classifier_failure != "alert"
    )


def _about_trigger(t: TriggerConfig) -> Iterator[tuple[Loc, str]]:
    high_hz = min(t.high_hz, HIGHEST_CORNER * _RATE_HZ / 2)
    band = f"from {t.low_hz:g} to {t.high_hz:g} Hz"
    if t.low_hz < high_hz and math.isinf(least_energy(t, _RATE_HZ, high_hz)):
        yield ("trigger",), f"with these settings no event below {LARGEST:g} times the noise would trigger"
    if t.on > MOST_ON:
        yield ("trigger", "on"), f"{t.on:g} is beyond what events reach; 3 to 10 are usual"
    if t.on < LEAST_ON:
        yield ("trigger", "on"), f"{t.on:g} is reached by noise; 3 to 10 are usual"
    if t.off < LEAST_OFF:
        words = f"the ratio rarely falls below {t.off:g}, so triggers would not end; 1 to 2 are usual"
        yield ("trigger", "off"), words
    if t.lta_s < LEAST_RATIO * t.sta_s:
        yield ("trigger", "lta_s"), f"{t.lta_s:g} s is too close to sta_s ({t.sta_s:g} s) for the ratio to rise"
    if t.lta_s > MOST_LTA_S:
        words = f"after each start, and each gap that is longer, nothing is heard for {t.lta_s:g} s"
        yield ("trigger", "lta_s"), words
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
    elif all(rules.of(label).severity == "none" and rules.of(label).acceleration is None for label in SLOPE):
        yield ("policy", "rules"), f"none of {' and '.join(SLOPE)} raises an alert"
    if policy.max_age_s < LEAST_AGE_S:
        effect = "would not be sent" if policy.late == "withhold" else "would wake nobody"
        words = f"data are often older than {policy.max_age_s:g} s when they are decided on: alerts {effect}"
        yield ("policy", "max_age_s"), words


def _about_rule(place: Loc, rule: RuleConfig, tunables: TunablesConfig) -> Iterator[tuple[Loc, str]]:
    """What keeps a rule that is there to alert from alerting, or from doing so in time."""
    if rule.min_probability > MOST_PROBABILITY:
        words = f"the network is hardly ever so sure ({rule.min_probability:g}): it would raise no alert"
        yield (*place, "min_probability"), words
    if rule.min_duration_s > MOST_MIN_DURATION_S:
        yield (*place, "min_duration_s"), f"no trigger of less than {rule.min_duration_s:g} s would raise an alert"
    verdicts = [*tunables.verdict.at_s, POST_ONSET_S]
    agreed_s = 0.0 if rule.sure <= MOST_PROBABILITY else verdicts[rule.confirm.k - 1]
    first_s = next(at_s for at_s in verdicts if at_s >= max(agreed_s, rule.min_window_s))
    if first_s > MOST_DELAY_S:
        at = "min_window_s" if rule.min_window_s > MOST_DELAY_S else "confirm"
        yield (*place, at), f"no alert would come earlier than {first_s:g} s after the onset"
    if rule.refractory_s > MOST_REFRACTORY_S:
        words = f"after an alert, no other that is not larger for {rule.refractory_s / 3600:g} h"
        yield (*place, "refractory_s"), words
    together = rule.confirm_events
    if together is not None and place[-1] in SLOPE:
        words = f"the first {together.k - 1} events would raise no alert"
        yield (*place, "confirm_events"), words


def about_file(config: Config) -> Iterator[tuple[Loc, str]]:
    """What is doubtful about a whole file: its tunables, and what they make of its source and of its ways out."""
    for place, words in _doubts(config.tunables):
        yield ("tunables", *place), words
    yield from _about_source(config)
    yield from _about_site(config)
    backend = config.classifier.backends[0]
    if backend.startswith("constant"):
        yield ("classifier", "backends"), f"{backend} gives every event the same label, whatever it is: for drills"
    if config.source.kind in ("simulator", "archive"):
        return
    if config.mqtt is None and config.outputs == OutputsConfig():
        yield (), "without a section mqtt or outputs nobody is told of an event: they are printed"
    if config.mqtt is not None and config.mqtt.keepalive_s > MOST_SILENCE_S:
        words = f"the broker says only after {1.5 * config.mqtt.keepalive_s / 60:.0f} min that the station is gone"
        yield ("mqtt", "keepalive_s"), words
    if (file := config.outputs.file) is not None and file.path.exists() and not file.path.is_file():
        yield ("outputs", "file", "path"), "is there and is no file"


def _about_source(config: Config) -> Iterator[tuple[Loc, str]]:
    source, low_hz = config.source, config.tunables.trigger.low_hz
    rate_hz = getattr(source, "rate_hz", None)
    if rate_hz is not None and HIGHEST_CORNER * rate_hz / 2 <= low_hz:
        yield ("source", "rate_hz"), f"{rate_hz:g} samples a second are too few for a trigger from {low_hz:g} Hz on"
    for i, server in enumerate(source.servers if source.kind == "seedlink" else ()):
        for j, station in enumerate(server.stations):
            for words in _about_selectors(station.selectors):
                yield ("source", "servers", i, "stations", j, "selectors"), words
    for name in ("stalled_s", "timeout_s"):
        if (after_s := getattr(source, name, 0.0)) > MOST_SILENCE_S:
            yield ("source", name), f"for {after_s / 60:.0f} min nobody is told that nothing comes"


def _about_selectors(selectors: Sequence[str]) -> Iterator[str]:
    wanted = [_codes(one) for one in selectors if one[0] != "!"]
    unwanted = [_codes(one[1:]) for one in selectors if one[0] == "!" and "." not in one]
    if any(fnmatch.fnmatchcase(one, no) for one in wanted or ["*.HHZ"] for no in unwanted):
        yield "excludes what it asks for"
    if wanted and not {name[-1] for name in wanted} & _COMPONENTS:
        yield "has no component of ground motion (E, N, Z, 1, 2, 3): nothing would trigger"


def _codes(selector: str) -> str:
    """``LOCATION.CHANNEL`` of a selector of SeedLink 3 or 4."""
    name = selector.partition(".")[0]
    location, *channel = name.split("_") if "_" in name else (name[:-3], *name[-3:])
    return f"{location or '*'}.{''.join(code or '?' for code in channel)}"


def _about_site(config: Config) -> Iterator[tuple[Loc, str]]:
    stations, together = stations_of(config), config.site.coincidence
    brought = set(named(config).values())
    if together is not None and stations.complete:
        absent = [name for name in together.stations if name not in brought]
        if absent:
            alone = len(together.stations) - len(absent) < together.required
            effect = ": too few are left, and stations alert alone" if alone else ""
            yield ("site", "coincidence", "stations"), f"the source does not bring {', '.join(absent)}{effect}"
    if together is not None and together.window_s < LEAST_COINCIDENCE_S:
        words = (
            f"onsets of one event are rarely within {together.window_s:g} s of each other: alerts would be held back"
        )
        yield ("site", "coincidence", "window_s"), words
    needed = config.tunables.policy.slow.stations
    if stations.complete and needed > len(brought):
        words = f"asks for {needed} stations, and the source brings {len(brought)}: slow events raise no alert"
        yield ("tunables", "policy", "slow", "stations"), words
