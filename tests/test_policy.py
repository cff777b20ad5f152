"""The alert policy: who is woken, when, and when that is taken back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.alert.policy import MAX_ENDED_EVENTS, MAX_OPEN_EVENTS, MAX_PLACES, MAX_RECENT_ALERTS, UNCLASSIFIED, Policy
from agent.config.policy import SEVERITIES, PolicyConfig, rank
from agent.types import LABELS, NS, Alert, Classification, Coincidence, Detection, Event, Quality, StationId, Vote

SITE = StationId("XX", "SLOPE", "00", "HH")
OTHER = StationId("XX", "RIDGE", "00", "HH")
T0 = 1_772_366_400 * NS


def verdict(label: str, probability: float, window_s: float = 10.0, abstained: bool = False) -> Classification:
    """A verdict whose remaining probability is shared by the other labels."""
    rest = (1.0 - probability) / (len(LABELS) - 1)
    shares = tuple(probability if name == label else rest for name in LABELS)
    return Classification(label, probability, shares, abstained, window_s, "m", "0" * 64, "constant", "none")


def revision(
    number: int,
    said: Classification | None,
    phase: str = "update",
    *,
    name: str = "a",
    onset_s: float = 0.0,
    now_s: float | None = None,
    duration_s: float = 10.0,
    peak_counts: float = 1000.0,
    station: StationId = SITE,
    exercise: bool = False,
) -> Event:
    window_s = said.window_s if said is not None else 3.0
    return Event(
        id=name,
        revision=number,
        phase="new" if number == 0 and phase == "update" else phase,  # type: ignore[arg-type]
        station=station,
        onset_ns=T0 + round(onset_s * NS),
        detection=Detection(8.0, duration_s, peak_counts, 5.0, 50.0),
        classification=said,
        quality=Quality(),
        data_ns=T0 + round((onset_s + window_s if now_s is None else now_s) * NS),
        reason=None if said is not None else "the runtime failed",
        exercise=exercise,
    )


def rules(**of_label: Any) -> PolicyConfig:
    """A policy whose labels have the given rules; one verdict is enough and all sizes are severe unless a rule says
    otherwise."""
    plain = {
        "severity": "severe", "confirm": {"k": 1, "n": 1}, "sure_probability": None, "refractory_s": 600, "escalate": []
    }  # fmt: skip
    return PolicyConfig.model_validate({"rules": {label: plain | rule for label, rule in of_label.items()}})


def failing(**unclassified: Any) -> PolicyConfig:
    given = {"on_classifier_failure": "alert", "rules": {"landslide": {"confirm": {"k": 1, "n": 1}}}}
    return PolicyConfig.model_validate(given | ({"unclassified": unclassified} if unclassified else {}))


ONE_VERDICT = rules(landslide={})


def actions(policy: Policy, *events: Event) -> list[tuple[str, str, str]]:
    return [(a.action, a.label, a.severity) for event in events for a in policy.consider(event)]


# What an operator gets out of the box


def test_a_landslide_alerts_by_the_second_verdict_and_once_only() -> None:
    """Two agreeing verdicts wake someone 5 s after the onset, and the later ones do not ring again."""
    policy = Policy(PolicyConfig())
    first = policy.decide(revision(0, verdict("landslide", 0.75, 3.0)))
    assert first.alerts == ()
    assert first.reason == "landslide 0.75; 1 of the 2 verdicts that must name it"
    (alert,) = policy.consider(revision(1, verdict("landslide", 0.75, 5.0)))
    assert (alert.action, alert.label, alert.severity) == ("raise", "landslide", "severe")
    assert alert.reason == "landslide 0.75 after 5 s, 2 of 2 verdicts, trigger of 10.0 s, 20 times the noise"
    assert policy.decide(revision(2, verdict("landslide", 0.99, 10.0))).reason == "the landslide alert stands (severe)"
    assert policy.consider(revision(3, verdict("landslide", 0.99, 20.0), "end")) == ()


@pytest.mark.parametrize("label", ["earthquake", "blast", "noise"])
def test_what_is_no_slope_failure_wakes_nobody_by_default(label: str) -> None:
    policy = Policy(PolicyConfig())
    assert actions(policy, *(revision(i, verdict(label, 0.99, 3.0 + i)) for i in range(5))) == []
    assert policy.decide(revision(5, verdict(label, 0.99, 9.0))).reason == f"{label} raises no alert (severity: none)"


# Each condition of a rule, with its reason


@pytest.mark.parametrize(
    ("rule", "event", "code", "reason"),
    [
        ({}, revision(0, verdict("landslide", 0.69)), "probability", "landslide 0.69, 0.7 is needed"),
        ({}, revision(0, verdict("landslide", 0.9, abstained=True)), "abstained",
         "the network abstains (best: landslide 0.90)"),
        ({"min_window_s": 20}, revision(0, verdict("landslide", 0.9)), "window", "10 s seen, 20 s are needed"),
        ({}, revision(0, verdict("landslide", 0.9), duration_s=1.9), "duration", "trigger of 1.9 s, 2 s are needed"),
        ({"severity": "none"}, revision(0, verdict("landslide", 0.9)), "no_rule",
         "landslide raises no alert (severity: none)"),
        ({"confirm": {"k": 2, "n": 3}}, revision(0, verdict("landslide", 0.9)), "confirm",
         "landslide 0.90; 1 of the 2 verdicts that must name it"),
        ({"confirm_events": {"k": 3, "within_s": 60}}, revision(0, verdict("landslide", 0.9)), "confirm_events",
         "1 of 3 landslide events within 60 s"),
        ({}, revision(0, None), "not_classified", "not classified (the runtime failed); only the event is sent "
         "(on_classifier_failure: event)"),
        ({}, revision(0, verdict("landslide", 0.7)), "raised", ""),
        ({"min_window_s": 10}, revision(0, verdict("landslide", 0.9)), "raised", ""),
        ({}, revision(0, verdict("landslide", 0.9), duration_s=2.0), "raised", ""),
    ],
)  # fmt: skip
def test_silence_has_its_reason(rule: dict[str, Any], event: Event, code: str, reason: str) -> None:
    """Each unmet condition is named with the value seen and the value needed, and has a code for programs; at the very
    value it is met."""
    decision = Policy(rules(landslide=rule)).decide(event)
    assert (decision.code, len(decision.alerts)) == (code, code == "raised")
    assert decision.reason == reason or code == "raised"


# Refractory time


def test_a_second_event_in_the_refractory_time_is_silent_and_one_after_it_is_not() -> None:
    policy = Policy(ONE_VERDICT)
    assert actions(policy, revision(0, verdict("landslide", 0.9), "end"))
    inside = policy.decide(revision(0, verdict("landslide", 0.9), "end", name="b", onset_s=599.9))
    assert inside.alerts == ()
    assert inside.code == "refractory"
    assert inside.reason == (
        "held back: another landslide alert (severe) was raised 600 s before, and this event (severe) is no larger: "
        "10000 count-seconds against 10000"
    )
    assert actions(policy, revision(0, verdict("landslide", 0.9), "end", name="c", onset_s=600.0))


@pytest.mark.parametrize("said", [verdict("landslide", 0.5, 20.0), verdict("blast", 0.5, 20.0, True), None])
def test_an_event_that_was_held_back_rings_once_it_has_become_the_larger_one(said: Classification | None) -> None:
    """A slide begins small. When it is larger than the rockfall that held it back, its rule was met already: doubt of
    the network then does not silence it, as it would not withdraw an alert."""
    policy = Policy(ONE_VERDICT)
    policy.consider(revision(0, verdict("landslide", 0.9), "end", name="rockfall"))
    assert policy.decide(revision(0, verdict("landslide", 0.9), onset_s=60, duration_s=5.0)).code == "refractory"
    raised = policy.decide(revision(1, said, onset_s=60, duration_s=20.0))
    assert [(a.action, a.label, a.severity) for a in raised.alerts] == [("raise", "landslide", "severe")]
    assert (raised.code, raised.reason) == (
        "raised",
        "landslide 0.90 was held back, and is now the larger event (trigger of 20.0 s, 20 times the noise)",
    )


# Escalation


@pytest.mark.parametrize(
    ("peak_counts", "duration_s", "stations", "severity"),
    [
        (400.0, 5.0, 1, "moderate"),
        (1500.0, 5.0, 1, "severe"),
        (400.0, 10.0, 1, "severe"),
        (400.0, 5.0, 3, "severe"),
        (5000.0, 19.9, 1, "severe"),
        (5000.0, 20.0, 1, "extreme"),
        (15000.0, 5.0, 1, "extreme"),
    ],
)
@pytest.mark.parametrize("label", ["landslide", "collapse"])
def test_severity_grows_with_amplitude_duration_and_stations_by_default(
    label: str, peak_counts: float, duration_s: float, stations: int, severity: str
) -> None:
    """The sensor's noise is 50 counts here."""
    event = revision(0, verdict(label, 0.9), peak_counts=peak_counts, duration_s=duration_s)
    vote = Vote(SITE, "a", 0, "new", T0, 1.0, event.classification)
    together = Coincidence(2, 3, 10.0, (vote,) * stations)
    one = {"rules": {label: {"confirm": {"k": 1, "n": 1}}}}
    policy = Policy(PolicyConfig.model_validate(one))
    assert actions(policy, replace(event, coincidence=together)) == [("raise", label, severity)]


def test_where_the_noise_is_not_known_duration_alone_makes_an_alert_more_severe() -> None:
    policy = Policy(PolicyConfig.model_validate({"rules": {"landslide": {"confirm": {"k": 1, "n": 1}}}}))
    event = revision(0, verdict("landslide", 0.9), duration_s=5.0)
    assert actions(policy, replace(event, detection=Detection(8.0, 5.0, 1e6, 5.0))) == [
        ("raise", "landslide", "moderate")
    ]


def test_doubt_is_not_contradiction() -> None:
    """An abstention, a failure, or another label that wins narrowly leaves the alert standing."""
    policy = Policy(ONE_VERDICT)
    assert actions(policy, revision(0, verdict("landslide", 0.9)))
    assert actions(policy, revision(1, verdict("noise", 0.99, 20.0, abstained=True))) == []
    assert actions(policy, revision(2, None)) == []
    narrow = replace(verdict("blast", 0.6, 40.0), probabilities=(0.02, 0.6, 0.02, 0.35, 0.01))
    decision = policy.decide(revision(3, narrow))
    assert decision.alerts == ()
    assert decision.reason == "landslide still has 0.35 (retract_below: 0.35); its alert stands"
    below = replace(narrow, probabilities=(0.02, 0.6, 0.02, 0.349, 0.01), window_s=80.0)
    assert actions(policy, revision(4, below)) == [("retract", "landslide", "severe")]


# Stories: what follows from each revision of one or several events


def said(
    expected: str, label: str = "landslide", probability: float = 0.9, at_s: float = 10.0, **changes: Any
) -> tuple[str, Event]:
    """A revision, and its alerts, or the code of the reason why there is none. Its number is its place in the story."""
    found = None if label == "failure" else verdict(label, probability, at_s, changes.pop("abstained", False))
    return expected, revision(changes.pop("number", -1), found, **changes)


def ended(expected: str, label: str = "landslide", probability: float = 0.9, **changes: Any) -> tuple[str, Event]:
    return said(expected, label, probability, phase="end", **changes)


TWO_OF_THREE = {"landslide": {"confirm": {"k": 2, "n": 3}}}
LONG_IS_EXTREME = {"landslide": {"escalate": [{"severity": "extreme", "min_duration_s": 30}]}}
BLASTS = {"blast": {"severity": "minor", "confirm_events": {"k": 2, "within_s": 60}}}
BY_ANYTHING = [
    {"severity": "moderate", "min_probability": 0.95},
    {"severity": "severe", "min_duration_s": 30},
    {"severity": "extreme", "min_events": 3, "within_s": 3600},
]
RAISE, RETRACT = "raise landslide severe", "retract landslide severe"
FAILED = f"raise {UNCLASSIFIED} moderate"

STORIES: dict[str, tuple[PolicyConfig, list[tuple[str, Event]]]] = {
    "a sure verdict needs no other": (PolicyConfig(), [said(RAISE, probability=0.8, at_s=3.0)]),
    "unless the rule asks for more than what is sure": (
        PolicyConfig.model_validate({"rules": {"landslide": {"min_probability": 0.9}}}),
        [said("confirm", probability=0.95, at_s=3.0)],
    ),
    "an agreement with a gap of one verdict counts": (
        rules(**TWO_OF_THREE),
        [said("confirm", at_s=3.0), said("no_rule", "noise", at_s=8.0), said(RAISE, at_s=13.0)],
    ),
    "one that is longer ago than n verdicts does not": (
        rules(**TWO_OF_THREE),
        [
            said("confirm", at_s=3.0),
            said("no_rule", "noise", at_s=8.0),
            said("no_rule", "noise", at_s=13.0),
            said("confirm", at_s=18.0),
        ],
    ),
    "the same look at the data, sent again at the end, does not confirm itself": (
        rules(**TWO_OF_THREE),
        [said("confirm", at_s=3.0), ended("confirm", at_s=3.0)],
    ),
    "nor when a restart has moved the onset by less than a sample": (
        rules(**TWO_OF_THREE),
        [said("confirm", at_s=4.1), ended("confirm", at_s=4.10007)],
    ),
    "several events count that lie close together, not those that are spread out": (
        rules(blast={"severity": "minor", "confirm_events": {"k": 3, "within_s": 60}}),
        [
            ended("confirm_events", "blast", name="a"),
            ended("confirm_events", "blast", name="b", onset_s=50),
            ended("confirm_events", "blast", name="c", onset_s=100),
            ended("raise blast minor", "blast", name="d", onset_s=110),
        ],
    ),
    "each event counts once, and each station for itself": (
        rules(**BLASTS),
        [
            said("confirm_events", "blast", at_s=3.0),
            said("confirm_events", "blast", at_s=4.0),
            said("confirm_events", "blast", name="b", station=OTHER),
            said("raise blast minor", "blast", name="c"),
        ],
    ),
    "what was contradicted and what is dated later is no witness": (
        rules(landslide={"confirm_events": {"k": 2, "within_s": 100}}, blast={}),
        [
            said("confirm_events", name="ahead", onset_s=1e8),
            ended("confirm_events"),
            said(RAISE, name="b", onset_s=50),
            said(RETRACT, "noise", at_s=20.0, name="b", onset_s=50),
            said("confirm_events", name="c", onset_s=120),
        ],
    ),
    "one sensor's alert does not silence its neighbour, nor one label another": (
        rules(landslide={}, collapse={}),
        [said(RAISE), said(RAISE, station=OTHER), said("raise collapse severe", "collapse", name="b")],
    ),
    "what was held back and contradicted stays silent however large": (
        ONE_VERDICT,
        [
            ended(RAISE, name="rockfall"),
            said("refractory", onset_s=60, duration_s=5.0),
            said("no_rule", "blast", at_s=20.0, onset_s=60),
            said("probability", probability=0.5, at_s=40.0, onset_s=60, duration_s=40.0),
        ],
    ),
    "after a false alarm that was taken back the true one a minute later rings": (
        ONE_VERDICT,
        [said(RAISE), ended(RETRACT, "noise", at_s=20.0), said(RAISE, name="b", onset_s=60)],
    ),
    "an alert dated 2038 by a receiver's glitch does not silence the site until then": (
        ONE_VERDICT,
        [said(RAISE, onset_s=4e8), said(RAISE, name="b")],
    ),
    "a drill silences nothing": (
        ONE_VERDICT,
        [said(RAISE, name="drill", exercise=True), said(RAISE, name="real", onset_s=10)],
    ),
    "a rule that sets only its severity keeps the default steps above it": (
        PolicyConfig.model_validate({"rules": {"landslide": {"severity": "severe", "confirm": {"k": 1, "n": 1}}}}),
        [said(RAISE, peak_counts=100.0), said("raise landslide extreme", name="b", peak_counts=15000.0)],
    ),
    "probability, duration and rate escalate, upwards only and once a step": (
        rules(landslide={"severity": "minor", "refractory_s": 0, "escalate": BY_ANYTHING}),
        [
            said("raise landslide minor", probability=0.8, at_s=3.0),
            said("escalate landslide moderate", probability=0.96, at_s=5.0),
            said("stands", probability=0.96, at_s=10.0),
            said("escalate landslide severe", probability=0.8, at_s=40.0, duration_s=40),
            ended("stands", probability=0.96, at_s=80.0),
            said("raise landslide minor", probability=0.8, name="b", onset_s=100),
            said("raise landslide extreme", probability=0.8, name="c", onset_s=200),
        ],
    ),
    "a step needs all of its conditions": (
        rules(landslide={"escalate": [{"severity": "extreme", "min_probability": 0.9, "min_duration_s": 30}]}),
        [
            said(RAISE, probability=0.95),
            said("stands", probability=0.8, at_s=40.0, duration_s=40),
            said("escalate landslide extreme", at_s=41.0, duration_s=41),
        ],
    ),
    "the highest of the steps counts in any order": (
        rules(landslide={"severity": "minor", "escalate": [
            {"severity": "extreme", "min_probability": 0.8}, {"severity": "moderate", "min_probability": 0.7}
        ]}),
        [said("raise landslide extreme")],
    ),
    "duration alone does not escalate what the network has come to doubt": (
        rules(**LONG_IS_EXTREME),
        [said(RAISE), said("stands", probability=0.5, at_s=40.0, duration_s=40)],
    ),
    "a contradiction retracts once": (
        ONE_VERDICT,
        [said(RAISE), said(RETRACT, "blast", at_s=20.0), said("no_rule", "blast", at_s=40.0)],
    ),
    "with retract: false the alert stays": (
        rules(landslide={"retract": False}),
        [said(RAISE), ended("stands", "noise", 0.99, at_s=20.0)],
    ),
    "a withdrawn alert returns on stronger evidence only": (
        ONE_VERDICT,
        [
            said(RAISE, probability=0.8, at_s=3.0),
            said(RETRACT, "noise", at_s=5.0),
            said("withdrawn", probability=0.8, at_s=10.0),
            said(RAISE, probability=0.81, at_s=20.0),
        ],
    ),
    "an escalation on a weaker verdict does not lower that mark": (
        rules(**LONG_IS_EXTREME),
        [
            said(RAISE, at_s=3.0),
            said("escalate landslide extreme", probability=0.75, at_s=40.0, duration_s=40),
            said("retract landslide extreme", "noise", at_s=50.0, duration_s=40),
            said("withdrawn", probability=0.85, at_s=60.0, duration_s=40),
        ],
    ),
    "votes from before a retraction do not count for the return": (
        rules(landslide={"confirm": {"k": 2, "n": 4}}),
        [
            said("confirm", probability=0.8, at_s=3.0),
            said(RAISE, probability=0.8, at_s=5.0),
            said(RETRACT, "noise", at_s=10.0),
            said("confirm", at_s=20.0),
            said(RAISE, probability=0.95, at_s=40.0),
        ],
    ),
    "a change of label withdraws before it raises": (
        rules(landslide={}, collapse={}),
        [
            said(RAISE),
            said(f"{RETRACT}, raise collapse severe", "collapse", at_s=20.0),
            said("stands", "collapse", 0.95, at_s=40.0),
            said("retract collapse severe", "noise", 0.95, at_s=80.0),
        ],
    ),
    "a failure of the network alerts if so configured, not on every trigger, and again for a larger event": (
        failing(),
        [
            said("duration", "failure", duration_s=4.9),
            said(FAILED, "failure", duration_s=5.0),
            said("stands", "failure", duration_s=9.0),
            said("refractory", "failure", name="b", onset_s=60, duration_s=9.0),
            said(FAILED, "failure", name="c", onset_s=90, duration_s=30.0),
            said(FAILED, "failure", name="d", onset_s=700),
        ],
    ),
    "a network that recovers withdraws the alert about its failure unless it doubts": (
        failing(refractory_s=0.0),
        [
            said(FAILED, "failure"),
            said("stands", "noise", 0.5),
            said(f"retract {UNCLASSIFIED} moderate", "noise", at_s=20.0),
            said("withdrawn", "failure"),
            said(FAILED, "failure", name="b", onset_s=60),
            said(f"retract {UNCLASSIFIED} moderate, {RAISE}", name="b", onset_s=60, duration_s=12.0),
        ],
    ),
    "a landslide that is not confirmed yet does not withdraw it": (
        PolicyConfig.model_validate({"on_classifier_failure": "alert"}),
        [
            said(FAILED, "failure"),
            said("stands", probability=0.75),
            said(f"retract {UNCLASSIFIED} moderate, {RAISE}", probability=0.75, at_s=20.0),
        ],
    ),
    "revisions that come twice or late do nothing": (
        ONE_VERDICT,
        [
            said("no_rule", "noise", at_s=5.0, number=1),
            said("stale", at_s=3.0, number=0),
            said("stale", at_s=5.0, number=1),
            ended("no_rule", "noise", number=2),
            said("stale", at_s=20.0, number=3),
        ],
    ),
    "an event whose beginning was not seen is judged: silence would be the greater error": (
        ONE_VERDICT,
        [said(RAISE, number=4)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("title", STORIES)
def test_story(title: str) -> None:
    config, steps = STORIES[title]
    policy = Policy(config)
    codes = {"raise": "raised", "escalate": "escalated", "retract": "retracted"}
    for place, (expected, event) in enumerate(steps):
        decision = policy.decide(event if event.revision >= 0 else replace(event, revision=place))
        alerts = [f"{alert.action} {alert.label} {alert.severity}" for alert in decision.alerts]
        assert (", ".join(alerts) or decision.code) == expected, f"step {place}: {decision.reason}"
        assert not alerts or decision.code == codes[decision.alerts[-1].action]


# Memory


def test_memory_is_bounded_whatever_comes() -> None:
    """Events that never end, stations that never return: what is kept stays within the stated bounds."""
    policy = Policy(rules(landslide={"refractory_s": 0}))
    for index in range(MAX_OPEN_EVENTS + 100):
        station = StationId("XX", f"S{index % (MAX_PLACES + 50)}", "", "HH")
        policy.consider(revision(0, verdict("landslide", 0.9), name=f"e{index}", onset_s=index, station=station))
    assert len(policy._open) == MAX_OPEN_EVENTS
    assert len(policy._ended) == 100
    assert len(policy._pasts) == MAX_PLACES
    for index in range(MAX_ENDED_EVENTS + 100):
        policy.consider(revision(0, verdict("landslide", 0.9), "end", name=f"f{index}", onset_s=index))
    assert len(policy._ended) == MAX_ENDED_EVENTS
    assert all(len(past.onsets) <= 100 and len(past.alerts) <= MAX_RECENT_ALERTS for past in policy._pasts.values())


def test_what_is_heard_of_again_is_not_forgotten_first() -> None:
    """A long event with an alert keeps it through a flood of others, and so does its station's refractory time."""
    policy = Policy(ONE_VERDICT)
    policy.consider(revision(0, verdict("landslide", 0.9)))
    for index in range(MAX_OPEN_EVENTS):
        station = StationId("XX", f"S{index % MAX_PLACES}", "", "HH")
        policy.consider(revision(0, verdict("landslide", 0.9), name=f"e{index}", station=station))
        if index % 1000 == 0:
            assert policy.consider(revision(index + 1, verdict("landslide", 0.9))) == ()
            assert policy.consider(revision(0, verdict("landslide", 0.9), "end", name=f"other{index}")) == ()
    assert actions(policy, revision(9999, verdict("noise", 0.9))) == [("retract", "landslide", "severe")]


# Invariants over random histories

PROBABILITY = st.sampled_from([0.3, 0.5, 0.7, 0.72, 0.8, 0.9, 0.99])
STEP = st.tuples(
    st.sampled_from(["landslide", "landslide", "landslide", *LABELS, "failure", "abstain"]),
    PROBABILITY,
    st.sampled_from([1.0, 6.0, 40.0]),
    st.sampled_from([300.0, 2000.0, 20000.0]),
    st.booleans(),  # ends the event
    st.integers(0, 2),  # which of the open events
    st.sampled_from([0.5, 5.0, 120.0]),  # data time that passes
)
POLICY = st.fixed_dictionaries(
    {
        "on_classifier_failure": st.sampled_from(["event", "alert"]),
        "rules": st.fixed_dictionaries(
            {
                label: st.fixed_dictionaries(
                    {
                        "escalate": st.just([]),
                        "severity": st.sampled_from(["none", "minor", "severe"]),
                        "min_probability": st.sampled_from([0.5, 0.7]),
                        "refractory_s": st.sampled_from([0, 30, 600]),
                        "confirm": st.sampled_from([{"k": 1, "n": 1}, {"k": 2, "n": 3}]),
                        "retract": st.booleans(),
                    },
                    optional={"confirm_events": st.just({"k": 2, "within_s": 100})},
                )
                for label in ("landslide", "collapse", "blast")
            }
        ),
    }
)


def with_steps(policy: dict[str, Any]) -> PolicyConfig:
    for rule in policy["rules"].values():
        if rule["severity"] != "none":
            rule["escalate"] = [{"severity": "extreme", "min_duration_s": 30}]
    return PolicyConfig.model_validate(policy)


def history(steps: list[Any]) -> list[Event]:
    """Three interleaved events at a time; one that ends is followed by a new one."""
    events: list[Event] = []
    numbers, names, now = [0, 0, 0], ["e0", "e1", "e2"], 0.0
    onsets = [0.0, 0.0, 0.0]
    for count, (kind, probability, duration, peak, ends, slot, passed) in enumerate(steps):
        now += passed
        if numbers[slot] == 0:
            onsets[slot] = now
        window = 3.0 + now - onsets[slot]
        said = (
            None
            if kind == "failure"
            else verdict("landslide", probability, window, abstained=True)
            if kind == "abstain"
            else verdict(kind, probability, window)
        )
        events.append(
            revision(
                numbers[slot], said, "end" if ends else "update", name=names[slot], onset_s=onsets[slot], now_s=now,
                duration_s=duration, peak_counts=peak,
            )
        )  # fmt: skip
        numbers[slot] += 1
        if ends:
            numbers[slot], names[slot] = 0, f"e{count}-{slot}"
    return events


@settings(max_examples=200)
@given(POLICY, st.lists(STEP, min_size=10, max_size=60))
def test_invariants(policy: dict[str, Any], steps: list[Any]) -> None:
    """For any policy and history: an event's alerts run raise, escalate*, retract, raise ...; severities rise; each
    label is raised again only on more probability; nothing within a refractory time unless it is more severe."""
    settings_ = with_steps(policy)
    engine = Policy(settings_)
    standing: dict[str, Alert] = {}
    raised_at: dict[tuple[str, str], float] = {}
    all_raised: dict[tuple[str, str], Larger] = {}
    for event in history(steps):
        decision = engine.decide(event)
        assert decision.reason
        if event.id in standing:
            all_raised[event.id, standing[event.id].label].grow(event)
        for alert in decision.alerts:
            assert alert.event is event
            assert alert.severity in SEVERITIES[1:]
            current = standing.get(event.id)
            if alert.action == "raise":
                assert current is None
                probability = event.classification.probability if event.classification else 0.0
                if "was held back" in alert.reason:
                    probability = float(alert.reason.split()[1])
                assert probability > raised_at.get((event.id, alert.label), -1.0)
                raised_at[event.id, alert.label] = probability
                rule = settings_.unclassified if alert.label == UNCLASSIFIED else settings_.rules.of(alert.label)
                for (other, label), earlier in all_raised.items():
                    if label == alert.label and other != event.id:
                        assert not earlier.holds_back(event, alert.severity, rule.refractory_s)
                all_raised[event.id, alert.label] = Larger(event.data_ns, rank(alert.severity), event.detection.size)
                standing[event.id] = alert
            elif alert.action == "escalate":
                assert current is not None
                assert current.label == alert.label
                assert rank(alert.severity) > rank(current.severity)
                assert event.classification is not None
                raised_at[event.id, alert.label] = max(
                    raised_at[event.id, alert.label], event.classification.probability
                )
                all_raised[event.id, alert.label].rank = rank(alert.severity)
                standing[event.id] = alert
            else:
                assert current is not None
                assert (current.label, current.severity) == (alert.label, alert.severity)
                assert alert.label == UNCLASSIFIED or settings_.rules.of(alert.label).retract
                del standing[event.id]
                del all_raised[event.id, alert.label]
        assert len(decision.alerts) <= 2


@dataclass
class Larger:
    """What this test remembers of an alert."""

    raised_ns: int
    rank: int
    size: float

    def grow(self, event: Event) -> None:
        self.size = max(self.size, event.detection.peak_counts * event.detection.duration_s)

    def holds_back(self, event: Event, severity: str, refractory_s: float) -> bool:
        size = event.detection.peak_counts * event.detection.duration_s
        recent = abs(event.data_ns - self.raised_ns) < refractory_s * NS
        return recent and rank(severity) <= self.rank and size <= self.size


def severity_by_size(event: Event) -> str:
    """The default steps, written out; the noise is 50 counts."""
    amplitude, duration_s = event.detection.peak_counts / 50.0, event.detection.duration_s
    if amplitude >= 300 or (amplitude >= 100 and duration_s >= 20):
        return "extreme"
    return "severe" if amplitude >= 30 or duration_s >= 10 else "moderate"


@settings(max_examples=300)
@given(st.lists(STEP, min_size=10, max_size=60), st.sampled_from([30.0, 600.0, 86400.0]))
def test_an_event_larger_than_all_that_alerted_within_its_refractory_always_rings(
    steps: list[Any], refractory_s: float
) -> None:
    """Whatever came before: an event that meets the default rule, and is more severe or larger than each event that
    alerted less than a refractory time before, is raised, or stands at no less than its severity."""
    rule = {"confirm": {"k": 1, "n": 1}, "refractory_s": refractory_s, "retract": False}
    policy = Policy(PolicyConfig.model_validate({"rules": {"landslide": rule}}))
    alerted: dict[str, Larger] = {}
    for event in history(steps):
        said, severity = event.classification, severity_by_size(event)
        meets = said is not None and not said.abstained and said.label == "landslide" and said.probability >= 0.7
        meets = meets and event.detection.duration_s >= 2.0
        held = any(
            earlier.holds_back(event, severity, refractory_s) for name, earlier in alerted.items() if name != event.id
        )
        decision = policy.decide(event)
        is_known = event.id in alerted
        if is_known:
            alerted[event.id].grow(event)
        for alert in decision.alerts:
            earlier = alerted.setdefault(event.id, Larger(event.data_ns, 0, event.detection.size))
            earlier.rank = rank(alert.severity)
        if meets and not held:
            assert alerted[event.id].rank >= rank(severity)
        elif held and not is_known:
            assert decision.alerts == ()
            assert not meets or decision.code == "refractory"


@settings(max_examples=100)
@given(POLICY, st.lists(STEP, max_size=40), st.data())
def test_repeated_and_stale_revisions_change_nothing(
    policy: dict[str, Any], steps: list[Any], data: st.DataObject
) -> None:
    """A history with copies of earlier revisions mixed in gives the same alerts as without them."""
    events = history(steps)
    mixed: list[Event] = []
    for index, event in enumerate(events):
        mixed.append(event)
        if data.draw(st.booleans()):
            mixed.append(events[data.draw(st.integers(0, index))])
    plain, disturbed = Policy(with_steps(policy)), Policy(with_steps(policy))
    assert [a for e in mixed for a in disturbed.consider(e)] == [a for e in events for a in plain.consider(e)]
