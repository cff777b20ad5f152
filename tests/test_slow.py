"""Slow slides and debris flows: found by the level of minutes, told apart from what is loudest at once, alerted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from agent.alert.policy import Policy
from agent.alert.reporter import Reporter
from agent.config.file import ClassifierConfig, PolicyConfig, TunablesConfig
from agent.config.policy import SlowRuleConfig
from agent.config.station import SlowTriggerConfig, TriggerConfig
from agent.detect.resume import EventResume, JournalEntry, decode, encode
from agent.detect.slow import SlowTrigger
from agent.dsp.hearing import Slot, Step, band_of
from agent.messages.schema import AlertMessage, EventMessage, parse
from agent.service.assemble import build_line
from agent.sources.archive import ArchiveSource
from agent.sources.synthesis import Noise, motion
from agent.sources.synthesis.events import debris_flow
from agent.sources.synthesis.medium import ONSET
from agent.types import NS, Alert, Event, SampleBlock, StationId, StreamId

RATE_HZ = 100
T0 = 1_772_366_400 * NS
NOISE = 100.0
BAND = band_of(TriggerConfig())
AT_S = 2_700
"""Of what happens: forty-five minutes after the begin, when the background is known."""


def ground(seconds: int, signals: Sequence[tuple[float, NDArray[np.float64]]] = ()) -> NDArray[np.int32]:
    """One vertical of noise with signals that begin so many seconds after its begin."""
    data = Noise(1, 0, float(RATE_HZ), NOISE).samples(0, seconds * RATE_HZ)
    for at_s, signal in signals:
        first = round(at_s * RATE_HZ)
        end = min(len(data), first + len(signal))
        data[first:end] += signal[: end - first]
    return np.rint(data).astype(np.int32)


def flow(seed: int, peak: float = 50.0) -> NDArray[np.float64]:
    """The vertical of a debris flow of the generator, its peak in multiples of the noise."""
    row = debris_flow(np.random.default_rng(seed)).data[2, ONSET:]
    return peak * NOISE * row / float(np.abs(row).max())


def short(kind: str, seed: int, peak: float) -> NDArray[np.float64]:
    """The vertical of an earthquake or a blast."""
    row = motion(kind, np.random.default_rng(seed), float(RATE_HZ))[2]  # type: ignore[arg-type]
    return peak * NOISE * row / float(np.abs(row).max())


SLOPE = StationId("XX", "SLOPE", "", "HH")


def watch(
    data: NDArray[np.int32],
    packet_s: float = 10.0,
    *,
    trigger: TriggerConfig | None = None,
    first_s: int = 0,
    slots: Sequence[Slot] = (),
) -> tuple[list[Event], Sequence[Slot]]:
    """The slow events of a station that records one component, and what it then knows of the background; started
    ``first_s`` after the begin of the data with what an earlier run knew."""
    line = build_line(
        TunablesConfig(trigger=trigger or TriggerConfig()), ClassifierConfig(backends=("constant:noise",)), "talus/v1"
    )
    line.pipeline.remembered = {SLOPE: slots}
    step = round(packet_s * RATE_HZ)
    stream = StreamId(SLOPE, "Z")
    outputs = [
        output
        for first in range(first_s * RATE_HZ, len(data), step)
        for output in line.pipeline.feed(
            SampleBlock(stream, T0 + first * NS // RATE_HZ, float(RATE_HZ), data[first : first + step])
        )
    ]
    outputs += line.pipeline.flush()
    found = [output for output in outputs if isinstance(output, Event) and output.kind == "slow"]
    return found, line.pipeline.stations[SLOPE].hearing.slots


def events(data: NDArray[np.int32], packet_s: float = 10.0, *, trigger: TriggerConfig | None = None) -> list[Event]:
    return watch(data, packet_s, trigger=trigger)[0]


def alerts(found: Sequence[Event], rule: SlowRuleConfig | None = None) -> list[Alert]:
    policy = Policy(PolicyConfig(slow=rule or SlowRuleConfig(severity="moderate")))
    return [alert for event in found for alert in policy.decide(event).alerts]


@pytest.fixture(scope="module")
def flowing() -> list[Event]:
    return events(ground(3_300, [(AT_S, flow(1))]))


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_a_debris_flow_of_the_generator_is_a_slow_event_and_alerts(seed: int) -> None:
    """It swells over tens of seconds, which STA/LTA follows and does not see."""
    found = events(ground(3_000, [(AT_S, flow(seed))]))
    assert len({event.id for event in found}) == 1
    assert abs(found[0].onset_ns - T0 - AT_S * NS) <= 60 * NS
    raised = [alert for alert in alerts(found) if alert.action == "raise"]
    assert [alert.label for alert in raised] == ["slow"]
    assert raised[0].event.data_ns <= T0 + (AT_S + 150) * NS


def test_a_slow_event_tells_its_envelope_and_spectrum(flowing: list[Event]) -> None:
    first, last = flowing[0], flowing[-1]
    assert [event.phase for event in flowing[:1]] + [last.phase] == ["new", "end"]
    assert [event.revision for event in flowing] == list(range(len(flowing)))
    assert first.id.endswith("-slow") and first.classification is None and first.reason is None
    swell = last.swell
    assert swell is not None
    assert swell.rise_s >= 20 and swell.held_s >= 30 and swell.growth_db_min > 0
    assert len(swell.envelope_db) == math.ceil(last.detection.duration_s / 60)
    assert swell.peak_ratio > 50
    assert first.swell is not None and first.swell.centroid_hz is not None
    assert 1 < first.swell.centroid_hz < 20
    assert last.detection.peak_counts > 5 * (last.detection.noise_counts or math.inf)


def test_slow_events_do_not_depend_on_packets(flowing: list[Event]) -> None:
    """As with all events: else a replay would not show what the station did."""
    data = ground(3_300, [(AT_S, flow(1))])
    for packet_s in (1.0, 7.31, 60.0):
        assert events(data, packet_s) == flowing


@pytest.mark.parametrize("kind", ["earthquake", "blast", "rockfall", "slopequake"])
def test_what_is_loudest_at_once_is_no_slow_event(kind: str) -> None:
    """A large earthquake stays above the background for minutes, but it only fades."""
    peaks = (20.0, 300.0)
    signals = [
        (AT_S + 600.0 * k, short(kind, seed, peak)) for k, (seed, peak) in enumerate(zip((1, 2), peaks, strict=True))
    ]
    assert alerts(events(ground(AT_S + 1_300, signals))) == []


def test_noise_alone_makes_none() -> None:
    assert events(ground(4 * 3_600)) == []


def test_what_stays_is_one_event_and_then_the_background() -> None:
    """A river that has risen, or rain for hours, must not alert again and again."""
    level = np.interp(np.arange(2 * 3_600 * RATE_HZ), (0, 300 * RATE_HZ), (0, 4))
    loud = level * Noise(2, 1, float(RATE_HZ), NOISE).samples(0, len(level))
    trigger = TriggerConfig(slow=SlowTriggerConfig(max_duration_s=1_800.0))
    found = events(ground(AT_S + 2 * 3_600, [(AT_S, loud)]), trigger=trigger)
    assert len({event.id for event in found}) == 1
    assert max(event.detection.duration_s for event in found) <= 1_810


def test_before_half_an_hour_nothing_is_known_and_nothing_said() -> None:
    assert events(ground(1_800, [(1_200.0, flow(1))])) == []


def test_switched_off_it_says_nothing() -> None:
    trigger = TriggerConfig(slow=SlowTriggerConfig(enabled=False))
    assert events(ground(3_000, [(AT_S, flow(1))]), trigger=trigger) == []


def test_several_stations_must_agree_where_the_rule_says_so(flowing: list[Event]) -> None:
    rule = SlowRuleConfig(severity="moderate", stations=2)
    assert alerts(flowing, rule) == []
    other = [
        replace(event, id=event.id.replace("SLOPE", "UPPER"), station=StationId("XX", "UPPER", "", "HH"))
        for event in flowing
    ]
    both = sorted([*flowing, *other], key=lambda event: event.data_ns)
    raised = [alert for alert in alerts(both, rule) if alert.action == "raise"]
    assert {alert.event.station.station for alert in raised} >= {"UPPER"}
    assert "at 2 stations" in raised[0].reason
    far = [replace(event, onset_ns=event.onset_ns + 3_600 * NS, data_ns=event.data_ns + 3_600 * NS) for event in other]
    assert alerts([*flowing, *far], rule) == []


def test_each_event_alerts_once_and_grows(flowing: list[Event]) -> None:
    """Revisions come every half minute; a higher severity is told, the same one is not."""
    said = alerts(flowing)
    assert [alert.action for alert in said].count("raise") == 1
    ranks = ["moderate", "severe", "extreme"]
    assert all(ranks.index(a.severity) < ranks.index(b.severity) for a, b in pairwise(said))


def test_messages_and_journal_hold_a_slow_event(flowing: list[Event]) -> None:
    """Consumers read ``kind`` and ``swell``; after a restart the agent knows what it said."""
    assert decode(encode(flowing[-1], cut=True)).event == flowing[-1]
    reporter = Reporter(Policy(PolicyConfig(slow=SlowRuleConfig(severity="moderate"))), "talus/v1", 86_400)
    said = [message for event in flowing for message in reporter.report(event, 0)]
    bodies = [parse(EventMessage, m.payload) for m in said if m.name == "event"]
    assert {body.kind for body in bodies} == {"slow"}
    assert all(body.swell is not None and body.classification is None for body in bodies)
    raised = next(parse(AlertMessage, m.payload) for m in said if m.name == "alert")
    assert (raised.label, raised.kind, raised.action) == ("slow", "slow", "raise")


def test_a_gap_ends_what_runs() -> None:
    trigger, number = SlowTrigger(SlowTriggerConfig(), BAND), 100_000
    slots = [Slot((number - 360 + 60 * k) * 10, 100.0, {"Z": 10.0}, BAND) for k in range(6)]

    def feed(at: int, level: float) -> object:
        return trigger.feed(Step(at, 1.0, 100.0, {"Z": level}, frozenset()), slots)

    for k in range(20):
        found = feed(number + k, 10.0 * (1 + k))
    assert found is not None and not getattr(found, "ended")  # noqa: B009
    ended = feed(number + 25, 300.0)
    assert getattr(ended, "ended")  # noqa: B009
    assert feed(number + 26, 300.0) is None


def test_a_restart_knows_the_background_of_the_run_before() -> None:
    """Else a station would be deaf to a slow slide for half an hour after each power cut."""
    data = ground(3_000, [(AT_S, flow(1))])
    _, slots = watch(data[: 2_400 * RATE_HZ])
    assert len(slots) >= 3
    found, _ = watch(data, first_s=2_300, slots=slots)
    assert abs(found[0].onset_ns - T0 - AT_S * NS) <= 60 * NS
    assert watch(data, first_s=2_300)[0] == []
    other = [replace(slot, band=(1.0, 5.0, 4)) for slot in slots]
    assert watch(data, first_s=2_300, slots=other)[0] == []


def test_a_slow_event_goes_on_after_a_restart_under_its_name(flowing: list[Event]) -> None:
    """What comes again may begin only in the midst of it; what had ended is not told twice."""
    told, rest = flowing[:3], flowing[3:]
    late = [
        replace(event, id="XX.SLOPE..HH-later-slow", onset_ns=event.onset_ns + 30 * NS, revision=k)
        for k, event in enumerate(rest)
    ]
    recall = EventResume([JournalEntry(event) for event in told])
    assert recall.overdue(SLOPE, told[-1].data_ns + 10 * NS) == []
    again = [event for one in late if (event := recall.go_on(one)) is not None]
    assert [(event.id, event.revision) for event in again] == [(event.id, event.revision) for event in rest]
    assert again[-1].phase == "end"
    ended = EventResume([JournalEntry(event) for event in flowing])
    assert [ended.go_on(one) for one in late] == [None] * len(late)
    alone = EventResume([JournalEntry(event) for event in told])
    [end] = alone.overdue(SLOPE, told[-1].data_ns + 121 * NS)
    assert end.phase == "end" and "restarted" in str(end.reason)


@pytest.mark.parametrize(("folder", "most"), [("nuugaatsiaq_20170617", None), ("msnoise_20100901_00_06", 0)])
def test_the_karrat_slide_is_found_and_a_volcano_s_night_is_quiet(
    folder: str, most: int | None, data_dir: Path
) -> None:
    line = build_line(TunablesConfig(), ClassifierConfig(backends=("constant:noise",)), "talus/v1")
    source = ArchiveSource([data_dir / "streams" / folder], 10.0, on_problem=lambda problem: None)
    outputs = [output for block in source.blocks() for output in line.pipeline.feed(block)]
    found = [one for one in [*outputs, *line.pipeline.flush()] if isinstance(one, Event) and one.kind == "slow"]
    raised = [alert for alert in alerts(found) if alert.action == "raise"]
    if most is not None:
        assert len(raised) <= most
        return
    slide_ns = 1_497_742_740 * NS  # 23:39:00, when the list has it
    assert [abs(alert.event.onset_ns - slide_ns) < 120 * NS for alert in raised] == [True]
    assert raised[0].event.data_ns < slide_ns + 120 * NS
