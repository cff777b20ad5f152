"""Alerts on a rising rate of events: they come in the ramp of a crisis, not at a steady site, and go with the rate."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
import pytest
from broker_support import STATION, make_event
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from agent.alert.policy import Policy
from agent.alert.rate_alerts import MAX_ONSETS, MAX_SITES, RateWatch, binomial_tail, compare
from agent.config.file import ClassifierConfig, PolicyConfig, TunablesConfig
from agent.config.policy import AccelerationConfig, LandslideRule, RateStepConfig, RulesConfig
from agent.dsp.continuity import Recorded
from agent.messages.payloads import Stamp, alert_message, summary_message
from agent.messages.schema import AlertMessage, SummaryMessage, parse
from agent.service.assemble import build_line
from agent.sources.simulator import (
    Planned,
    Rates,
    Scenario,
    SimulatedSite,
    SimulatorSource,
    crisis,
    station_ids,
    steady,
)
from agent.types import NS, Alert, Event, event_id

HOUR = 3600.0
DAY = 24 * HOUR
T0 = 1_700_000_000 * NS
DEFAULTS = AccelerationConfig()
STEPPED = AccelerationConfig(escalate=(RateStepConfig(severity="severe", min_ratio=10.0),))


def rules(rate: AccelerationConfig | None = DEFAULTS) -> RulesConfig:
    return RulesConfig(landslide=LandslideRule(acceleration=rate))


@cache
def last_revision(label: str, probability: float) -> Event:
    made = make_event(0, 3, "end", probability)
    assert made.classification is not None
    return dataclasses.replace(made, classification=dataclasses.replace(made.classification, label=label))


def ended(at_s: float, label: str = "landslide", *, recorded_s: float | None = None, probability: float = 0.9) -> Event:
    """The last revision of an event that began ``at_s`` after ``T0``."""
    onset_ns = T0 + round(at_s * NS)
    return dataclasses.replace(
        last_revision(label, probability),
        id=event_id(STATION, onset_ns),
        onset_ns=onset_ns,
        data_ns=onset_ns + 90 * NS,
        recorded_s=at_s if recorded_s is None else recorded_s,
    )


def run(times_s: Sequence[float], rate: AccelerationConfig = DEFAULTS) -> list[Alert]:
    watch = RateWatch(rules(rate))
    return [alert for at_s in times_s for alert in watch.consider(ended(at_s))]


def actions(alerts: Sequence[Alert]) -> list[tuple[str, str]]:
    return [(alert.action, alert.severity) for alert in alerts]


def planned(seed: int, rates: Rates, seconds: float) -> Iterator[float]:
    """Onsets of the slope's own events in a simulated scenario."""
    scenario = Scenario(seed, rates, 1)
    for number in range(int(seconds // 60)):
        for what in scenario.cell(number):
            if isinstance(what, Planned) and what.kind in ("slopequake", "rockfall"):
                yield what.at_s


@given(st.integers(0, 300), st.integers(0, 300), st.floats(0.01, 0.99))
def test_the_chance_is_scipys_binomial_tail(least: int, others: int, p: float) -> None:
    trials = least + others
    assert binomial_tail(least, trials, p) == pytest.approx(float(stats.binom.sf(least - 1, trials, p)), rel=1e-8)


def test_the_comparison_by_hand() -> None:
    rate = compare(4, HOUR, 0, 9 * HOUR)
    assert rate.chance == pytest.approx(0.1**4)
    assert rate.ratio == pytest.approx(4 * 9), "a background without events counts as one"
    assert compare(0, HOUR, 5, 9 * HOUR).chance == 1.0


def test_a_few_events_after_none_are_no_alert() -> None:
    """The first events ever, and two after a quiet day: neither is an acceleration."""
    assert run([10, 20, 30, 40, 50, 60]) == [], "there is no background yet"
    assert run([2 * DAY, 2 * DAY + 60]) == []
    assert run([2 * DAY + 60 * k for k in range(4)]) == [], "min_events"
    (alert,) = run([2 * DAY + 60 * k for k in range(5)])
    assert "5 landslide events in 1.0 h of data, against 0 in the 24.0 h before" in alert.reason


def test_raise_escalate_retract_and_again() -> None:
    hourly = [k * HOUR for k in range(48)]
    burst = [48 * HOUR + 300 * k for k in range(24)]
    alerts = run([*hourly, *burst, *(51 * HOUR + k * HOUR for k in range(40)),
                  *(92 * HOUR + 300 * k for k in range(12))], STEPPED)  # fmt: skip
    assert actions(alerts) == [
        ("raise", "moderate"),
        ("escalate", "severe"),
        ("retract", "severe"),
        ("raise", "moderate"),
        ("escalate", "severe"),
    ]
    first, second = [alert.about_rate for alert in alerts[:3]], [alert.about_rate for alert in alerts[3:]]
    assert [about.revision for about in first if about] == [0, 1, 2]
    assert len({about.id for about in first if about}) == 1
    assert [about.revision for about in second if about] == [0, 1]
    assert first[0]
    assert second[0]
    assert first[0].id != second[0].id
    assert "fallen back" in alerts[2].reason


def test_an_alarm_of_old_data_is_raised_again_when_new_data_bear_it_out() -> None:
    """Raised while a backlog was made up for, it woke nobody; the next event that is not late must."""
    watch = RateWatch(rules())
    for k in range(24):
        watch.consider(ended(k * HOUR))
    events = [dataclasses.replace(ended(DAY + 60 * k), late=k < 12) for k in range(14)]
    found = [alert for event in events for alert in watch.consider(event)]
    assert [(alert.action, alert.late) for alert in found] == [("raise", True), ("raise", False)]
    first, second = (alert.about_rate for alert in found)
    assert first and second
    assert (second.id, second.revision) == (first.id, 1)


def test_a_rate_that_stays_high_for_a_day_becomes_the_usual_one() -> None:
    alerts = run([*(k * HOUR for k in range(30)), *(30 * HOUR + 360 * k for k in range(10 * 40))])
    assert [alert.action for alert in alerts] == ["raise", "retract"]
    stood_s = (alerts[1].event.onset_ns - alerts[0].event.onset_ns) / NS
    assert DAY <= stood_s < DAY + HOUR


def test_events_of_other_labels_only_let_time_pass() -> None:
    watch = RateWatch(rules())
    for k in range(24):
        assert watch.consider(ended(k * HOUR, "earthquake")) == ()
    raised = [alert for k in range(6) for alert in watch.consider(ended(DAY + 60 * k))]
    assert [alert.action for alert in raised] == ["raise"]
    (retracted,) = watch.consider(ended(DAY + 3 * HOUR, "noise"))
    assert retracted.action == "retract"
    assert watch.consider(ended(DAY + 4 * HOUR, "noise")) == ()


def test_weak_undecided_and_unfinished_events_do_not_count() -> None:
    watch = RateWatch(rules())
    watch.consider(ended(0))
    for k in range(40):
        event = ended(2 * DAY + 30 * k)
        assert event.classification is not None
        undecided = dataclasses.replace(event.classification, abstained=True)
        failed = dataclasses.replace(event, classification=None, reason="the network failed")
        for other in (
            dataclasses.replace(event, phase="update"),
            dataclasses.replace(event, classification=undecided),
            ended(2 * DAY + 30 * k, probability=0.4),
            failed,
        ):
            assert watch.consider(other) == ()


def test_an_outage_is_not_mistaken_for_quiet() -> None:
    """The station recorded the same rate before and after a day without data."""
    before = [ended(360 * k, recorded_s=360 * k) for k in range(100)]
    after = [ended(DAY + 36_000 + 360 * k, recorded_s=36_000 + 360 * k) for k in range(50)]
    watch = RateWatch(rules())
    assert [alert for event in (*before, *after) for alert in watch.consider(event)] == []
    by_the_clock = RateWatch(rules())
    blind = [dataclasses.replace(event, recorded_s=None) for event in (*before, *after)]
    assert [alert for event in blind for alert in by_the_clock.consider(event)], "else this test shows nothing"


def test_stations_and_drills_are_apart_and_memory_is_bounded() -> None:
    watch = RateWatch(rules())
    for k in range(30):
        event = ended(2 * DAY + 10 * k)
        station = dataclasses.replace(STATION, station=f"S{k}")
        for other in (dataclasses.replace(event, station=station), ended(k * HOUR)):
            assert watch.consider(other) == ()
    for k in range(3 * MAX_SITES):
        watch.consider(dataclasses.replace(ended(k), station=dataclasses.replace(STATION, location=str(k))))
    for k in range(3 * MAX_ONSETS):
        watch.consider(ended(3 * DAY + k))
    assert len(watch._sites) == MAX_SITES
    assert max(len(place.onsets) for site in watch._sites.values() for place in site.places.values()) == MAX_ONSETS


@pytest.mark.parametrize("seed", range(10))
def test_it_fires_in_the_ramp_of_a_crisis_and_before_the_failure(seed: int) -> None:
    """Three quiet days at the rate at which the crisis begins, then a crisis of two days."""
    length_s, quiet_s = 2 * DAY, 3 * DAY
    ramp = crisis(length_s)
    calm = list(planned(seed, steady(ramp(0.0)), quiet_s))
    rising = [quiet_s + at_s for at_s in planned(seed + 100, ramp, 0.9 * length_s)]
    alerts = run([*calm, *rising], STEPPED)
    raised_s = [(alert.event.onset_ns - T0) / NS for alert in alerts if alert.action == "raise"]
    assert raised_s, "it fires"
    assert min(raised_s) > quiet_s, "not in the steady phase"
    standing = {"raise": 1, "retract": 0}
    assert [standing[a.action] for a in alerts if a.action in standing][-1] == 1, "it stands when the slope fails"
    assert max(raised_s) < quiet_s + 0.9 * length_s - 0.5 * HOUR, "before the failure"


@pytest.mark.parametrize("per_hour", [0.2, 2.0, 18.0])
def test_a_steady_site_is_left_alone(per_hour: float) -> None:
    """Ten months of Poisson events with the defaults. The bound is what docs/operations.md promises: one in a year."""
    count = 0
    for seed in range(10):
        rng = np.random.default_rng([seed, round(per_hour * 10)])
        times = np.sort(rng.uniform(0, 30 * DAY, rng.poisson(per_hour * 24 * 30)))
        count += sum(alert.action == "raise" for alert in run(times.tolist()))
    assert count <= 1


def simulated(
    seed: int, rates: Rates, seconds: float, packet_s: float = 10.0, window_s: float = 900
) -> list[tuple[float, AlertMessage]]:
    """Data of a simulated site through trigger, a network that calls everything a landslide, policy, messages. Hours
    stand for days; there are fewer events in them, and the chance that is allowed is larger for it."""
    rate = AccelerationConfig(window_s=window_s, background_s=6 * window_s, max_chance=1e-3)
    policy = PolicyConfig(rules=rules(rate))
    line = build_line(
        TunablesConfig(policy=policy), ClassifierConfig(backends=("constant:landslide",)), "talus/v1", exercise=True
    )
    site = SimulatedSite(station_ids("XX", "SIM", 1, 50.0), 50.0, packet_s=packet_s)
    source = SimulatorSource(site, Scenario(seed, rates, 1), seed, start_ns=T0, seconds=seconds, speed=0)
    found = []
    outputs = [output for block in source.blocks() for output in line.pipeline.feed(block)] + line.pipeline.flush()
    for output in outputs:
        if isinstance(output, Event):
            for message in line.reporter.report(output, 0):
                if message.topic.endswith("/alert"):
                    body = parse(AlertMessage, message.payload)
                    if body.rate is not None:
                        found.append(((output.data_ns - T0) / NS, body))
    return found


def then(*phases: tuple[float, Rates]) -> Rates:
    """One script after the other, each with its length in seconds."""

    def rates(at_s: float) -> dict[str, float]:
        begin_s = 0.0
        for length_s, script in phases:
            if at_s < begin_s + length_s:
                return dict(script(at_s - begin_s))
            begin_s += length_s
        return {}

    return rates


@pytest.mark.parametrize("seed", [1, 2])
def test_the_whole_line_fires_in_the_ramp_of_a_simulated_crisis_only(seed: int) -> None:
    calm_s, ramp_s = 1.5 * HOUR, 2.7 * HOUR
    ramp = crisis(3 * HOUR)
    found = simulated(seed, then((calm_s, steady(ramp(0.0))), (ramp_s, ramp)), calm_s + ramp_s)
    raised = [(at_s, body) for at_s, body in found if body.action == "raise"]
    assert raised
    assert raised[0][0] > calm_s + 600
    assert all(body.id.endswith("-rate-landslide") for _, body in found)
    assert all(body.exercise for _, body in found)


def test_a_replay_in_other_packets_says_the_same() -> None:
    ramp = then((0.5 * HOUR, steady({"slopequake": 6.0})), (0.3 * HOUR, steady({"slopequake": 120.0})))
    one, other = (simulated(5, ramp, 0.8 * HOUR, packet_s, window_s=300) for packet_s in (1.0, 7.3))
    volatile = {"timing", "boot_id", "seq", "expires"}
    said = [[(at, body.model_dump(exclude=volatile)) for at, body in found] for found in (one, other)]
    assert said[0] == said[1]
    assert said[0]


def test_the_policy_sends_it_beside_the_events_own_alerts() -> None:
    policy = Policy(PolicyConfig(rules=rules()))
    policy.consider(ended(0, "earthquake"))
    for k in range(5):
        last = ended(2 * DAY + 60 * k)
        decision = policy.decide(last)
    assert [alert.id for alert in decision.alerts] == [last.id, f"{last.id}-rate-landslide"]
    rate = decision.alerts[-1]
    assert decision.reason.endswith(rate.reason)
    assert policy.consider(last) == (), "the same revision twice counts once"
    stamp = Stamp("0123456789abcdef", 1, 1, 2)
    body = json.loads(alert_message(rate, stamp).payload)
    assert (body["revision"], body["quakeml_type"], body["rate"]["events"]) == (0, None, 5)
    summary = parse(SummaryMessage, summary_message(rate, stamp).payload)
    assert (summary.id, summary.label) == (body["id"], "landslide")


def test_recorded_time_leaves_out_gaps_and_knows_the_last_minutes() -> None:
    recorded = Recorded()
    recorded.add(100 * NS, 110 * NS)
    recorded.add(100 * NS, 110 * NS)
    recorded.add(105 * NS, 112 * NS)
    assert recorded.until(112 * NS) == 12
    recorded.add(1000 * NS, 1010 * NS)
    assert [recorded.until(at * NS) for at in (1010, 1005, 1000, 500, 112, 110)] == [22, 17, 12, 12, 12, 10]
    recorded.add(50 * NS, 60 * NS)
    assert recorded.until(60 * NS) == 32, "a clock set back"
