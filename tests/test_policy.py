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


def test_a_sure_verdict_needs_no_other() -> None:
    """Two seconds are two seconds: what is plain after three alerts then."""
    assert actions(Policy(PolicyConfig()), revision(0, verdict("landslide", 0.8, 3.0))) == [
        ("raise", "landslide", "severe")
    ]
    asks_more = PolicyConfig.model_validate({"rules": {"landslide": {"min_probability": 0.9}}})
    assert actions(Policy(asks_more), revision(0, verdict("landslide", 0.95, 3.0))) == []


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
    ],
)  # fmt: skip
def test_silence_has_its_reason(rule: dict[str, Any], event: Event, code: str, reason: str) -> None:
    """Each unmet condition is named with the value seen and the value needed, and has a code for programs."""
    decision = Policy(rules(landslide=rule)).decide(event)
    assert decision.alerts == ()
    assert (decision.code, decision.reason) == (code, reason)


def test_every_alert_has_its_reason_and_a_code() -> None:
    policy = Policy(rules(landslide={"escalate": [{"severity": "extreme", "min_duration_s": 30}]}))
    story = [
        revision(0, verdict("landslide", 0.9, 3.0)),
        revision(1, verdict("landslide", 0.9, 10.0)),
        revision(2, verdict("landslide", 0.9, 40.0), duration_s=40.0),
        revision(3, verdict("noise", 0.9, 80.0)),
        revision(4, verdict("landslide", 0.8, 81.0)),
        revision(4, verdict("landslide", 0.8, 81.0)),
    ]
    assert [policy.decide(event).code for event in story] == [
        "raised", "stands", "escalated", "retracted", "withdrawn", "stale"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "event"),
    [
        ({}, revision(0, verdict("landslide", 0.7))),
        ({"min_window_s": 10}, revision(0, verdict("landslide", 0.9))),
        ({}, revision(0, verdict("landslide", 0.9), duration_s=2.0)),
    ],
)
def test_conditions_hold_at_their_very_value(rule: dict[str, Any], event: Event) -> None:
    """'At least' includes the value itself."""
    assert actions(Policy(rules(landslide=rule)), event) == [("raise", "landslide", "severe")]


def test_confirmation_looks_at_the_newest_n_verdicts_only() -> None:
    """Two of the last three: an agreement with a gap of one counts, one that is longer ago does not."""
    policy = Policy(rules(landslide={"confirm": {"k": 2, "n": 3}}))

    def said(name: str, onset_s: float, *labels: str) -> list[Event]:
        verdicts = [verdict(label, 0.9, 3.0 + 5 * index) for index, label in enumerate(labels)]
        return [revision(index, v, name=name, onset_s=onset_s) for index, v in enumerate(verdicts)]

    assert actions(policy, *said("a", 0, "landslide", "noise", "landslide")) != []
    assert actions(policy, *said("b", 5000, "landslide", "noise", "noise", "landslide")) == []


def test_an_end_that_repeats_the_last_verdict_has_no_second_vote() -> None:
    """The same look at the data, sent again when the trigger goes off, must not confirm itself."""
    policy = Policy(rules(landslide={"confirm": {"k": 2, "n": 3}}))
    same = verdict("landslide", 0.9, 3.0)
    assert actions(policy, revision(0, same), revision(1, same, "end")) == []


def test_confirm_events_wants_several_events_in_time() -> None:
    """A label that errs often alerts on the third event within a minute, not on three that are spread out."""
    policy = Policy(rules(blast={"severity": "minor", "confirm_events": {"k": 3, "within_s": 60}}))

    def shot(name: str, onset_s: float) -> Event:
        return revision(0, verdict("blast", 0.9), "end", name=name, onset_s=onset_s)

    spread = [shot("a", 0), shot("b", 50), shot("c", 100)]
    assert actions(policy, *spread) == []
    assert actions(policy, shot("d", 110)) == [("raise", "blast", "minor")]


def test_confirm_events_counts_each_event_once_and_each_station_apart() -> None:
    policy = Policy(rules(blast={"severity": "minor", "confirm_events": {"k": 2, "within_s": 60}}))
    assert actions(policy, *(revision(i, verdict("blast", 0.9, 3.0 + i)) for i in range(5))) == []
    assert actions(policy, revision(0, verdict("blast", 0.9), name="b", station=OTHER)) == []
    assert actions(policy, revision(0, verdict("blast", 0.9), name="c")) == [("raise", "blast", "minor")]


def test_confirm_events_leaves_out_what_was_contradicted_and_what_is_dated_later() -> None:
    """An event that turned out to be something else is no witness, nor is one from a clock that ran ahead."""
    policy = Policy(rules(landslide={"confirm_events": {"k": 2, "within_s": 100}}, blast={}))
    policy.consider(revision(0, verdict("landslide", 0.9), name="ahead", onset_s=1e8))
    assert actions(policy, revision(0, verdict("landslide", 0.9), "end", name="a")) == []
    (raised,) = policy.consider(revision(0, verdict("landslide", 0.9), name="b", onset_s=50))
    assert policy.consider(revision(1, verdict("noise", 0.9, 20.0), name="b", onset_s=50))[0].action == "retract"
    third = revision(0, verdict("landslide", 0.9), name="c", onset_s=120)
    assert raised.action == "raise"
    assert policy.decide(third).reason == "1 of 2 landslide events within 100 s"


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


def test_the_refractory_time_holds_per_station_and_label() -> None:
    """One sensor's alert does not silence its neighbour, nor one label another."""
    policy = Policy(rules(landslide={}, collapse={}))
    assert actions(policy, revision(0, verdict("landslide", 0.9)))
    assert actions(policy, revision(0, verdict("landslide", 0.9), station=OTHER))
    assert actions(policy, revision(0, verdict("collapse", 0.9), name="b"))


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


def test_an_event_that_was_held_back_and_contradicted_stays_silent_however_large() -> None:
    policy = Policy(ONE_VERDICT)
    policy.consider(revision(0, verdict("landslide", 0.9), "end", name="rockfall"))
    policy.consider(revision(0, verdict("landslide", 0.9), onset_s=60, duration_s=5.0))
    assert policy.decide(revision(1, verdict("blast", 0.9, 20.0), onset_s=60)).code == "no_rule"
    assert actions(policy, revision(2, verdict("landslide", 0.5, 40.0), onset_s=60, duration_s=40.0)) == []


def test_a_failure_of_the_network_rings_again_for_a_larger_event() -> None:
    policy = Policy(failing())
    assert actions(policy, revision(0, None))
    assert actions(policy, revision(0, None, name="b", onset_s=60)) == []
    assert actions(policy, revision(0, None, name="c", onset_s=90, duration_s=30.0)) == [
        ("raise", UNCLASSIFIED, "moderate")
    ]


def test_a_withdrawn_alert_holds_nothing_back() -> None:
    """After a false alarm that was taken back, the true one a minute later rings."""
    policy = Policy(ONE_VERDICT)
    false_alarm = [revision(0, verdict("landslide", 0.9)), revision(1, verdict("noise", 0.9, 20.0), "end")]
    assert [a for a, _, _ in actions(policy, *false_alarm)] == ["raise", "retract"]
    assert actions(policy, revision(0, verdict("landslide", 0.9), name="b", onset_s=60))


def test_a_data_clock_that_jumped_ahead_does_not_silence_the_site_for_years() -> None:
    """An alert dated 2038 by a receiver's glitch holds back as long as its refractory time, no more."""
    policy = Policy(ONE_VERDICT)
    assert actions(policy, revision(0, verdict("landslide", 0.9), onset_s=4e8))
    assert actions(policy, revision(0, verdict("landslide", 0.9), name="b", onset_s=0))


def test_a_drill_carries_its_mark_and_silences_nothing() -> None:
    policy = Policy(ONE_VERDICT)
    (drill,) = policy.consider(revision(0, verdict("landslide", 0.9), name="drill", exercise=True))
    assert drill.event.exercise
    (real,) = policy.consider(revision(0, verdict("landslide", 0.9), name="real", onset_s=10))
    assert not real.event.exercise
    assert policy.consider(revision(0, verdict("landslide", 0.9), name="drill", onset_s=1000))


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


def test_a_rule_that_sets_only_its_severity_keeps_the_default_steps_above_it() -> None:
    rule = {"severity": "severe", "confirm": {"k": 1, "n": 1}}
    policy = Policy(PolicyConfig.model_validate({"rules": {"landslide": rule}}))
    small, large = (revision(0, verdict("landslide", 0.9), name=str(n), peak_counts=n) for n in (100.0, 15000.0))
    assert actions(policy, small, large) == [("raise", "landslide", "severe"), ("raise", "landslide", "extreme")]


def test_escalation_by_probability_duration_and_rate() -> None:
    """Each kind of condition escalates, only upwards, only once a step."""
    steps = [
        {"severity": "moderate", "min_probability": 0.95},
        {"severity": "severe", "min_duration_s": 30},
        {"severity": "extreme", "min_events": 3, "within_s": 3600},
    ]
    policy = Policy(rules(landslide={"severity": "minor", "refractory_s": 0, "escalate": steps}))
    events = [
        revision(0, verdict("landslide", 0.8, 3.0)),
        revision(1, verdict("landslide", 0.96, 5.0)),
        revision(2, verdict("landslide", 0.96, 10.0)),
        revision(3, verdict("landslide", 0.8, 40.0), duration_s=40),
        revision(4, verdict("landslide", 0.96, 80.0), "end"),
    ]
    assert actions(policy, *events) == [
        ("raise", "landslide", "minor"),
        ("escalate", "landslide", "moderate"),
        ("escalate", "landslide", "severe"),
    ]
    more = [revision(0, verdict("landslide", 0.8), name=n, onset_s=t) for n, t in (("b", 100), ("c", 200))]
    assert actions(policy, *more) == [("raise", "landslide", "minor"), ("raise", "landslide", "extreme")]


def test_a_step_needs_all_of_its_conditions() -> None:
    step = {"severity": "extreme", "min_probability": 0.9, "min_duration_s": 30}
    policy = Policy(rules(landslide={"escalate": [step]}))
    assert actions(policy, revision(0, verdict("landslide", 0.95))) == [("raise", "landslide", "severe")]
    assert actions(policy, revision(1, verdict("landslide", 0.8, 40.0), duration_s=40)) == []
    long_and_sure = revision(2, verdict("landslide", 0.9, 41.0), duration_s=41)
    assert actions(policy, long_and_sure) == [("escalate", "landslide", "extreme")]


def test_the_highest_of_the_steps_counts_in_any_order() -> None:
    steps = [{"severity": "extreme", "min_probability": 0.8}, {"severity": "moderate", "min_probability": 0.7}]
    policy = Policy(rules(landslide={"severity": "minor", "escalate": steps}))
    assert actions(policy, revision(0, verdict("landslide", 0.9))) == [("raise", "landslide", "extreme")]


def test_a_weak_verdict_of_the_same_label_does_not_escalate() -> None:
    """Duration alone is no escalation while the network has come to doubt the label."""
    policy = Policy(rules(landslide={"escalate": [{"severity": "extreme", "min_duration_s": 30}]}))
    assert actions(policy, revision(0, verdict("landslide", 0.9)))
    assert actions(policy, revision(1, verdict("landslide", 0.5, 40.0), duration_s=40)) == []


# Retraction


def test_a_contradiction_retracts_once() -> None:
    policy = Policy(ONE_VERDICT)
    events = [
        revision(0, verdict("landslide", 0.9)),
        revision(1, verdict("blast", 0.9, 20.0)),
        revision(2, verdict("blast", 0.9, 40.0)),
    ]
    assert actions(policy, *events) == [("raise", "landslide", "severe"), ("retract", "landslide", "severe")]


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


def test_retract_false_keeps_the_alert() -> None:
    policy = Policy(rules(landslide={"retract": False}))
    assert actions(policy, revision(0, verdict("landslide", 0.9)))
    assert actions(policy, revision(1, verdict("noise", 0.99, 20.0), "end")) == []


def test_a_withdrawn_alert_returns_on_stronger_evidence_only() -> None:
    policy = Policy(ONE_VERDICT)
    events = [
        revision(0, verdict("landslide", 0.8, 3.0)),
        revision(1, verdict("noise", 0.9, 5.0)),
        revision(2, verdict("landslide", 0.8, 10.0)),
        revision(3, verdict("landslide", 0.81, 20.0)),
    ]
    assert [len(policy.consider(event)) for event in events] == [1, 1, 0, 1]


def test_the_strongest_verdict_behind_an_alert_is_the_mark_to_beat() -> None:
    """An escalation for duration, on a weaker verdict, does not lower it."""
    policy = Policy(rules(landslide={"escalate": [{"severity": "extreme", "min_duration_s": 30}]}))
    events = [
        revision(0, verdict("landslide", 0.9, 3.0)),
        revision(1, verdict("landslide", 0.75, 40.0), duration_s=40),
        revision(2, verdict("noise", 0.9, 50.0), duration_s=40),
        revision(3, verdict("landslide", 0.85, 60.0), duration_s=40),
    ]
    assert [a for a, _, _ in actions(policy, *events)] == ["raise", "escalate", "retract"]


def test_votes_from_before_a_retraction_do_not_count_for_the_return() -> None:
    policy = Policy(rules(landslide={"confirm": {"k": 2, "n": 4}}))
    events = [
        revision(0, verdict("landslide", 0.8, 3.0)),
        revision(1, verdict("landslide", 0.8, 5.0)),
        revision(2, verdict("noise", 0.9, 10.0)),
        revision(3, verdict("landslide", 0.9, 20.0)),
        revision(4, verdict("landslide", 0.95, 40.0)),
    ]
    assert [len(policy.consider(event)) for event in events] == [0, 1, 1, 0, 1]


def test_a_change_of_label_withdraws_before_it_raises() -> None:
    policy = Policy(rules(landslide={}, collapse={}))
    assert actions(policy, revision(0, verdict("landslide", 0.9)), revision(1, verdict("collapse", 0.9, 20.0))) == [
        ("raise", "landslide", "severe"),
        ("retract", "landslide", "severe"),
        ("raise", "collapse", "severe"),
    ]
    assert actions(policy, revision(2, verdict("collapse", 0.95, 40.0))) == []
    assert actions(policy, revision(3, verdict("noise", 0.95, 80.0))) == [("retract", "collapse", "severe")]


# A failing network


def failing(**unclassified: Any) -> PolicyConfig:
    given = {"on_classifier_failure": "alert", "rules": {"landslide": {"confirm": {"k": 1, "n": 1}}}}
    return PolicyConfig.model_validate(given | ({"unclassified": unclassified} if unclassified else {}))


def test_a_failure_alerts_if_so_configured_but_not_on_every_trigger() -> None:
    policy = Policy(failing())
    assert actions(policy, revision(0, None, duration_s=4.9)) == []
    assert actions(policy, revision(1, None, duration_s=5.0)) == [("raise", UNCLASSIFIED, "moderate")]
    assert actions(policy, revision(2, None, duration_s=9.0)) == []
    assert actions(policy, revision(0, None, name="b", onset_s=60, duration_s=9.0)) == []
    assert actions(policy, revision(0, None, name="c", onset_s=700)) == [("raise", UNCLASSIFIED, "moderate")]


def test_a_network_that_recovers_settles_the_alert_about_its_failure() -> None:
    """Harmless: withdrawn. Doubtful: stands. A landslide: withdrawn in favour of the landslide alert."""
    policy = Policy(failing(refractory_s=0.0))
    assert actions(policy, revision(0, None), revision(1, verdict("noise", 0.5))) == [
        ("raise", UNCLASSIFIED, "moderate")
    ]
    assert actions(policy, revision(2, verdict("noise", 0.9, 20.0))) == [("retract", UNCLASSIFIED, "moderate")]
    assert actions(policy, revision(3, None)) == []
    slide = [revision(0, None, name="b", onset_s=60), revision(1, verdict("landslide", 0.9), name="b", onset_s=60)]
    assert actions(policy, *slide) == [
        ("raise", UNCLASSIFIED, "moderate"),
        ("retract", UNCLASSIFIED, "moderate"),
        ("raise", "landslide", "severe"),
    ]


def test_an_unconfirmed_landslide_does_not_withdraw_the_alert_about_the_failure() -> None:
    settings_ = PolicyConfig.model_validate({"on_classifier_failure": "alert"})
    policy = Policy(settings_)
    assert actions(policy, revision(0, None))
    assert actions(policy, revision(1, verdict("landslide", 0.75))) == []
    assert [a for a, _, _ in actions(policy, revision(2, verdict("landslide", 0.75, 20.0)))] == ["retract", "raise"]


# Order of revisions, memory


def test_revisions_that_come_twice_or_late_do_nothing() -> None:
    policy = Policy(ONE_VERDICT)
    assert actions(policy, revision(1, verdict("noise", 0.9, 5.0))) == []
    stale = policy.decide(revision(0, verdict("landslide", 0.9, 3.0)))
    assert (stale.alerts, stale.reason) == ((), "revision 0 comes after revision 1")
    assert policy.decide(revision(1, verdict("landslide", 0.9, 5.0))).reason == "revision 1 comes after revision 1"
    policy.consider(revision(2, verdict("noise", 0.9, 10.0), "end"))
    late = policy.decide(revision(3, verdict("landslide", 0.9, 20.0)))
    assert (late.alerts, late.reason) == ((), "the event has ended already")


def test_an_event_whose_beginning_was_not_seen_is_judged() -> None:
    """After a restart in mid-event silence would be the greater error."""
    assert actions(Policy(ONE_VERDICT), revision(4, verdict("landslide", 0.9)))


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
