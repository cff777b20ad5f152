"""Other settings in mid-stream: no sample is lost, what goes on goes on, and nothing is seen twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from detector_support import T0, block, changed, ground, packets

from agent.alert.policy import Policy
from agent.config.file import PolicyConfig
from agent.config.station import TriggerConfig
from agent.detect.pipeline import Pipeline
from agent.detect.station import Output
from agent.dsp.stalta import RecursiveStaLta
from agent.errors import DataError
from agent.inference import load
from agent.inference.bundle import DEFAULT_BUNDLE
from agent.types import NS, Discard, Event, SampleBlock

RATE = 100
SECONDS = 420
AT_S = (3.0, 10.0, 40.0)
TRIGGER = TriggerConfig()
NOISE = load(DEFAULT_BUNDLE, ["constant:noise"])[0]
EVENTS = ((9000, 400, 12.0), (20_000, 3000, 9.0), (34_000, 500, 15.0))
"""A short one at 90 s, one of half a minute at 200 s, a short one at 340 s."""


def station(seed: int = 3) -> list[SampleBlock]:
    channels = {c: ground(SECONDS * RATE, EVENTS, seed + row) for row, c in enumerate("ENZ")}
    return packets(channels, [100])


BLOCKS = station()


def onset_s(output: Output) -> float:
    return (output.onset_ns - T0) / NS


def run(
    changes: Sequence[tuple[float, TriggerConfig]],
    blocks: Sequence[SampleBlock] = BLOCKS,
    at_s: Sequence[float] = AT_S,
    heard: Callable[[Pipeline], None] = lambda _: None,
) -> list[Output]:
    """The whole record, with other trigger settings from the given seconds on."""
    pipeline = Pipeline(TRIGGER, at_s, NOISE)
    left = list(changes)
    outputs: list[Output] = []
    for packet in blocks:
        if left and (packet.start_ns - T0) / NS >= left[0][0]:
            outputs += pipeline.retune(left.pop(0)[1], at_s)
            heard(pipeline)
        outputs += pipeline.feed(packet)
    return outputs + pipeline.flush()


def events(outputs: Sequence[Output]) -> dict[str, list[Event]]:
    """Revisions by event; they must be in order and without a hole."""
    found: dict[str, list[Event]] = {}
    for output in outputs:
        if isinstance(output, Event):
            found.setdefault(output.id, []).append(output)
    for revisions in found.values():
        assert [event.revision for event in revisions] == list(range(len(revisions)))
        assert [event.phase for event in revisions[:1]] == ["new"] or len(revisions) == 1
        assert [event.phase for event in revisions].count("end") == 1
        assert revisions[-1].phase == "end"
        assert all(a.data_ns <= b.data_ns for a, b in pairwise(revisions))
    return found


def said(outputs: Sequence[Output]) -> list[object]:
    return [
        (o.id, o.revision, o.phase, o.data_ns, o.detection, o.classification) if isinstance(o, Event) else o.onset_ns
        for o in outputs
    ]


PLAIN = run([])


@pytest.mark.parametrize("second", [0.5, 10, 89, 91, 93.7, 100, 201, 215, 229, 231, 340.5, 400])
def test_the_same_settings_again_change_nothing(second: float) -> None:
    assert said(run([(second, TRIGGER)])) == said(PLAIN)


@pytest.mark.parametrize("second", [75, 91, 93.7, 100, 201, 215, 229, 231, 300, 340.5, 400])
def test_a_new_detector_finds_what_the_old_one_would_have_found(second: float) -> None:
    """Settings that make no difference to these data, but another detector: the same onsets, phases and figures."""
    other = changed(TRIGGER, max_duration_s=301.0)
    wanted, got = events(PLAIN), events(run([(second, other)]))
    assert got.keys() == wanted.keys()
    for name, revisions in got.items():
        assert [(e.phase, e.data_ns) for e in revisions] == [(e.phase, e.data_ns) for e in wanted[name]]
        for mine, plain in zip(revisions, wanted[name], strict=True):
            assert mine.detection.duration_s == pytest.approx(plain.detection.duration_s, abs=0.02)
            assert mine.detection.ratio == pytest.approx(plain.detection.ratio, rel=0.01)
            assert mine.detection.peak_counts == plain.detection.peak_counts


def test_back_and_forth_within_an_event_keeps_its_name() -> None:
    """As a trial that is rolled back in mid-event does."""
    other = changed(TRIGGER, on=5.0, off=1.3, high_hz=15.0, max_component_lag_s=2.0)
    got = events(run([(205, other), (212, TRIGGER), (214, other), (220, TRIGGER)]))
    assert got.keys() == events(PLAIN).keys()


@pytest.mark.parametrize("lta_s", [20.0, 60.0, 300.0, 3600.0])
def test_no_average_is_blind_after_the_change(lta_s: float) -> None:
    """Even where the new one is longer than what is kept: the event 12 s later is found."""
    got = [onset_s(e[0]) for e in events(run([(188, changed(TRIGGER, lta_s=lta_s))])).values()]
    assert [round(onset) for onset in got] == [90, 200, 340]


def test_an_event_that_the_new_settings_do_not_see_ends_with_them() -> None:
    got = events(run([(215, changed(TRIGGER, on=900.0, off=800.0))]))
    assert [round(onset_s(e[0])) for e in got.values()] == [90, 200]
    long = list(got.values())[1]
    assert long[-1].detection.duration_s == pytest.approx(15, abs=1.1)


def test_what_goes_on_unnoticed_is_reported_when_the_threshold_falls_below_it() -> None:
    """A slide that the old threshold did not see becomes an event at once, with the onset that it had."""
    deaf = changed(TRIGGER, on=900.0, off=1.5)
    got = events(run([(0, deaf), (204, TRIGGER)]))
    onsets = [onset_s(e[0]) for e in got.values()]
    assert [round(onset) for onset in onsets] == [200, 340]
    assert next(iter(got.values()))[0].data_ns <= T0 + 206 * NS


def test_the_tail_of_a_reported_event_is_not_reported_again() -> None:
    """The event at 200 s ended early by the old settings; by the new ones it still goes on."""
    hasty = changed(TRIGGER, off=3.9, max_duration_s=5.0)
    got = events(run([(0, hasty), (215, TRIGGER)]))
    assert [round(onset_s(e[0])) for e in got.values() if 195 < onset_s(e[0]) < 330] == [200]


@pytest.mark.parametrize("second", [110, 180, 290])
def test_settings_that_trigger_on_everything_are_not_overlooked(second: float) -> None:
    """Their trigger began before what was reported last; whether that is still open or not, the station is triggered
    from the switch on, and the event that comes then is not swallowed."""
    states: list[bool] = []

    def note(pipeline: Pipeline) -> None:
        (one,) = pipeline.stations.values()
        states.append(one.is_triggered)

    got = events(run([(second, changed(TRIGGER, on=1.1, off=0.001))], heard=note))
    assert states == [True]
    assert any(onset_s(e[0]) <= second + 1 and (e[-1].data_ns - T0) / NS > second + 15 for e in got.values())


def test_no_sample_of_the_minutes_of_rsam_is_lost_or_counted_twice() -> None:
    minutes: list[tuple[tuple[int, float], ...]] = []

    def note(pipeline: Pipeline) -> None:
        (one,) = pipeline.stations.values()
        minutes.append(tuple((m.start_ns, m.coverage) for m in one.rsam))

    plain = Pipeline(TRIGGER, AT_S, NOISE)
    for packet in BLOCKS:
        plain.feed(packet)
    run([(100, changed(TRIGGER, order=3)), (419, changed(TRIGGER, order=4, merge_s=1.0))], heard=note)
    (one,) = plain.stations.values()
    assert minutes[-1] == tuple((m.start_ns, m.coverage) for m in one.rsam)


def test_verdicts_come_at_the_new_times_and_none_is_made_up_for() -> None:
    pipeline = Pipeline(TRIGGER, (3.0, 5.0, 40.0), NOISE)
    found: list[Output] = []
    for packet in BLOCKS:
        if packet.start_ns == T0 + 210 * NS:
            found += pipeline.retune(TRIGGER, (2.0, 8.0, 20.0, 30.0))
        found += pipeline.feed(packet)
    long = list(events(found + pipeline.flush()).values())[1]
    assert [round((e.data_ns - e.onset_ns) / NS) for e in long] == [3, 5, 20, 30, 82]


def test_a_component_that_lags_is_not_lost_at_the_change() -> None:
    """The vertical comes four seconds late; what is queued of the others is decided by the new detector."""
    late = sorted(BLOCKS, key=lambda b: b.start_ns + (4 * NS if b.stream.component == "Z" else 0))
    got = events(run([(202, changed(TRIGGER, max_duration_s=301.0))], late))
    assert got.keys() == events(run([], late)).keys()


def test_settings_that_do_not_go_with_the_data_change_nothing() -> None:
    pipeline = Pipeline(TRIGGER, AT_S, NOISE)
    outputs: list[Output] = []
    for number, packet in enumerate(BLOCKS):
        if number == 500:
            with pytest.raises(DataError, match="too few"):
                pipeline.retune(changed(TRIGGER, low_hz=45.0, high_hz=60.0), AT_S)
        outputs += pipeline.feed(packet)
    assert said(outputs + pipeline.flush()) == said(PLAIN)


def test_before_the_first_packet_there_is_nothing_to_warm() -> None:
    pipeline = Pipeline(TRIGGER, AT_S, NOISE)
    assert pipeline.retune(changed(TRIGGER, on=900.0), AT_S) == []
    assert [o for b in BLOCKS for o in pipeline.feed(b)] + pipeline.flush() == []


def test_a_station_that_has_just_begun_warms_up_as_it_should() -> None:
    got = [o for o in run([(5, changed(TRIGGER, on=3.9))]) if not isinstance(o, Discard)]
    assert min(onset_s(o) for o in got) > 80


def test_a_clock_set_back_at_the_change_leaves_no_event_open() -> None:
    pipeline = Pipeline(TRIGGER, AT_S, NOISE)
    outputs: list[Output] = []
    for packet in BLOCKS[: 3 * 205]:
        outputs += pipeline.feed(packet)
    outputs += pipeline.retune(changed(TRIGGER, max_component_lag_s=60.0), AT_S)
    quiet = ground(200 * RATE, (), 9)
    for at in range(0, len(quiet), 100):
        outputs += pipeline.feed(block("Z", quiet[at : at + 100], at - 1_000_000))
    (one,) = pipeline.stations.values()
    assert not one.is_triggered


def test_a_shortened_average_is_scaled_for_what_is_missing() -> None:
    energy = np.random.default_rng(1).exponential(7.0, 5000)
    short = RecursiveStaLta(50, 100_000)
    short.shorten(4000)
    for part in np.array_split(energy, [13, 1000, 1001, 3990, 4100]):
        short.follow(part)
    assert short.warming == 0
    assert short.averages[1] == pytest.approx(7.0, rel=0.1)
    whole = RecursiveStaLta(50, 100_000)
    whole.shorten(4000)
    whole.follow(energy)
    assert short.averages == pytest.approx(whole.averages, rel=1e-12)


def test_rules_change_without_forgetting_what_stands() -> None:
    from broker_support import make_event

    strict = PolicyConfig.model_validate({"rules": {"landslide": {"min_probability": 0.99}}})
    policy = Policy(PolicyConfig.model_validate({"rules": {"landslide": {"confirm": {"k": 1, "n": 1}}}}))
    assert [alert.action for alert in policy.consider(make_event(0))] == ["raise"]
    policy.retune(strict)
    assert policy.consider(make_event(0, 1, "update")) == ()
    assert policy.consider(make_event(1)) == ()
    back = make_event(0, 2, "end")
    assert back.classification is not None
    noise = replace(
        back.classification, label="noise", probability=0.97, probabilities=(0.01, 0.01, 0.005, 0.005, 0.97)
    )
    assert [a.action for a in policy.consider(replace(back, classification=noise))] == ["retract"]
