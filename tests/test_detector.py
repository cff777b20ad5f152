"""What a station's data do to its detector when they are not what they should be."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from detector_support import (
    STATION,
    T0,
    band_passed,
    block,
    changed,
    detect,
    ground,
    packets,
    spans,
    time_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.config.station import TriggerConfig
from agent.dsp.continuity import Continuity
from agent.dsp.detector import Detector
from agent.errors import DataError
from agent.types import NS, SampleBlock, Samples, TriggerOff, TriggerOn

TRIGGER = TriggerConfig(sta_s=0.5, lta_s=10.0, on=4.0, off=1.5, merge_s=0.0)
LONG, LATE = 6000, 8000
"""A minute of data, and an event in what follows."""


def station(n: int, events: Sequence[tuple[int, int, float]], names: str = "ENZ") -> dict[str, Samples]:
    return {name: ground(n, events, seed) for seed, name in enumerate(names)}


def without(channels: dict[str, Samples], first: int, last: int, names: str = "ENZ") -> list[SampleBlock]:
    """Packets of a second, those components' samples ``first`` to ``last - 1`` lost."""
    found = []
    for name, samples in channels.items():
        cuts = [(0, first), (last, len(samples))] if name in names else [(0, len(samples))]
        for begin, end in cuts:
            found += packets({name: samples[begin:end]}, [100], first=begin)
    return sorted(found, key=lambda packet: packet.start_ns)


# Gaps


@pytest.mark.parametrize("gap", [1, 25, 100, 900])
@pytest.mark.parametrize("names", ["ENZ", "EN", "Z"])
def test_a_short_gap_neither_triggers_nor_blinds(gap: int, names: str) -> None:
    """Protects the gap rule: an event five seconds after a lost packet is caught, and the packet makes none."""
    channels = station(12_000, [(LONG + gap + 500, 300, 20)])
    ((on, off),) = spans(detect(TRIGGER, without(channels, LONG, LONG + gap, names)))
    assert LONG + gap + 500 <= on < LONG + gap + 530
    assert off < LONG + gap + 1000


def test_a_long_gap_starts_anew() -> None:
    """Protects the averages from a past that says nothing about now: blind for the long average, then seeing."""
    gap = 1100
    early = station(14_000, [(LONG + gap + 500, 300, 20)])
    assert spans(detect(TRIGGER, without(early, LONG, LONG + gap))) == []
    late = station(14_000, [(LONG + gap + 1500, 300, 20)])
    ((on, _),) = spans(detect(TRIGGER, without(late, LONG, LONG + gap)))
    assert LONG + gap + 1500 <= on < LONG + gap + 1530


def test_long_gap_s_sets_the_border() -> None:
    """Protects the setting: the same gap is short under one value and long under another."""
    channels = station(12_000, [(LONG + 300 + 500, 300, 20)])
    lost = without(channels, LONG, LONG + 300)
    assert len(spans(detect(changed(TRIGGER, long_gap_s=3.0), lost))) == 1
    assert spans(detect(changed(TRIGGER, long_gap_s=2.9), lost)) == []


def test_a_gap_on_strong_swell_makes_no_trigger() -> None:
    """Protects coasts: ocean swell a hundred times the noise meets a band-pass that begins anew in mid-wave."""
    rng = np.random.default_rng(2)
    n = 20_000
    swell = 50_000 * np.sin(2 * np.pi * 0.2 * np.arange(n) / 100)
    samples = np.asarray(swell + rng.standard_normal(n) * 50, dtype=np.int32)
    blocks = [b for b in packets({"Z": samples}, [100]) if (b.start_ns - T0) // NS % 17 or b.start_ns < T0 + 30 * NS]
    assert len(blocks) < 200
    assert spans(detect(TRIGGER, blocks)) == []


@pytest.mark.parametrize("rate", [20.0, 100.0, 1000.0])
def test_a_tear_that_the_band_cannot_see_restarts_nothing(rate: float) -> None:
    """Protects recorders that drop a sample now and then: on strong swell too it makes no trigger, ends none, and hides
    no event that follows at once."""
    n, tear = round(60 * rate), max(1, round(0.04 * rate))
    swell = 20_000 * np.sin(2 * np.pi * 0.2 * np.arange(n) / rate)
    samples = (ground(n, [(round(40 * rate), round(3 * rate), 20)], rate_hz=rate) + swell).astype(np.int32)
    whole = packets({"Z": samples}, [n], rate)
    edges = sorted({0, n, *(round((second + 0.7) * rate) for second in range(20, 60))})
    torn = [
        block("Z", samples[begin + tear * (begin > 0) : end], begin + tear * (begin > 0), rate)
        for begin, end in pairwise(edges)
    ]
    (one,), (other,) = spans(detect(TRIGGER, whole), rate), spans(detect(TRIGGER, torn), rate)
    assert other == pytest.approx(one, abs=0.1 * rate)


@pytest.mark.parametrize(("length", "gap", "goes_on"), [(2000, 300, True), (100, 200, False)])
def test_a_gap_ends_a_trigger_at_its_last_sample(length: int, gap: int, goes_on: bool) -> None:
    """Protects the duration: no signal is assumed where none was recorded. What the short average held before the gap
    is not what follows it, and begins no trigger."""
    channels = station(12_000, [(LONG, length, 20)])
    first, *others = spans(detect(TRIGGER, without(channels, LONG + 100, LONG + 100 + gap)))
    assert first[1] == LONG + 99
    assert bool(others) == goes_on


def test_a_long_gap_ends_a_trigger_with_the_first_packet_after_it() -> None:
    """Protects the end of an event from waiting for a long average to fill."""
    channels = station(14_000, [(LONG, 100, 20)], "Z")
    detector = Detector(STATION, TRIGGER)
    for packet in without(channels, LONG + 100, LONG + 2000):
        ended = [change for change in detector.feed(packet) if isinstance(change, TriggerOff)]
        if packet.start_ns >= time_of(LONG + 2000, 100.0):
            assert [change.off_ns for change in ended] == [time_of(LONG + 99, 100.0)]
            return
    pytest.fail("no packet after the gap")


def test_merge_bridges_a_gap_in_a_trigger() -> None:
    """Protects a slide over which a packet is lost from becoming two."""
    channels = station(12_000, [(LONG, 2000, 20)])
    merged = spans(detect(changed(TRIGGER, merge_s=15.0), without(channels, LONG + 100, LONG + 150)))
    assert len(merged) == 1


def test_days_without_data_cost_nothing() -> None:
    """Protects a replay over a year with holes: a gap is one step, not a loop over samples."""
    detector = Detector(STATION, TRIGGER)
    day = 24 * 3600 * 100
    for number in range(300):
        detector.feed(block("Z", ground(3000, [], number), first=number * day))
    assert detector.time_ns >= time_of(298 * day, 100.0)


# Components


def test_a_missing_component_holds_the_others_for_the_lag_only() -> None:
    """Protects the alert's delay: two components go on without the third, at most the lag behind the newest packet."""
    channels = station(20_000, [(15_000, 300, 20)])
    detector = Detector(STATION, TRIGGER)
    behind = []
    seen_s = None
    for packet in without(channels, 7000, 20_000, "E"):
        changes = detector.feed(packet)
        behind.append(packet.end_ns - detector.time_ns)
        if changes and seen_s is None:
            seen_s = (packet.end_ns - time_of(15_000, 100.0)) / NS
    assert max(behind[30:]) <= 7 * NS
    assert max(behind[-100:]) <= 1 * NS, "a component that is gone is still waited for"
    assert seen_s is not None
    assert seen_s <= 1.0


@pytest.mark.parametrize("combine", ["vector", "coincidence"])
@pytest.mark.parametrize("loudness", [0.02, 1, 50])
@pytest.mark.parametrize(("gone", "back"), [(6000, 6300), (6000, 9000), (6000, 14_000)])
def test_a_component_may_leave_and_return_unnoticed(combine: str, loudness: float, gone: int, back: int) -> None:
    """Protects the vector sum: with a component much louder than the others, its return must not look like an event,
    nor its leaving like the end of one, however long it was away. An event afterwards is found as ever."""
    channels = station(30_000, [(25_000, 300, 20)])
    channels["E"] = np.asarray(channels["E"] * loudness, dtype=np.int32)
    trigger = changed(TRIGGER, combine="vector" if combine == "vector" else "coincidence", on=2.5, lta_s=20.0)
    ((on, _),) = spans(detect(trigger, without(channels, gone, back, "E")))
    assert 25_000 <= on < 25_050


@pytest.mark.parametrize("late_s", [3, 7, 60])
def test_a_component_that_comes_late_all_the_time(late_s: int) -> None:
    """Protects against a digitiser with a slow channel: within the lag it counts, beyond it the station does without,
    and the event is found in any case."""
    channels = station(20_000, [(15_000, 300, 20)])
    blocks = sorted(packets(channels, [100]), key=lambda b: b.start_ns + late_s * NS * (b.stream.component == "N"))
    ((on, off),) = spans(detect(TRIGGER, blocks))
    assert 15_000 <= on < 15_030
    assert off < 15_500
    if late_s * NS < TRIGGER.max_component_lag_s * NS:
        assert [[on, off]] == spans(detect(TRIGGER, packets(channels, [100])))


def test_one_component_is_a_station() -> None:
    """Protects vertical-only stations, coincidence of two included."""
    channels = station(12_000, [(LATE, 300, 20)], "Z")
    for trigger in (TRIGGER, changed(TRIGGER, combine="coincidence", components_needed=2)):
        ((on, _),) = spans(detect(trigger, packets(channels, [100])))
        assert LATE <= on < LATE + 30


def test_coincidence_needs_its_number() -> None:
    """Protects against a spike on one component."""
    quiet = station(12_000, [])
    loud = station(12_000, [(LATE, 300, 20)])
    trigger = changed(TRIGGER, combine="coincidence", components_needed=2)
    one = {**quiet, "N": loud["N"]}
    two = {**loud, "N": quiet["N"]}
    assert spans(detect(trigger, packets(one, [100]))) == []
    assert len(spans(detect(trigger, packets(two, [100])))) == 1
    assert len(spans(detect(changed(trigger, components_needed=1), packets(one, [100])))) == 1


def test_the_first_decision_waits_for_the_components() -> None:
    """Protects the beginning of a record: no component is too late for its own first packet."""
    channels = station(3000, [])
    detector = Detector(STATION, TRIGGER)
    assert detector.time_ns == 0
    times = []
    for packet in packets(channels, [100])[:6]:
        detector.feed(packet)
        times.append(detector.time_ns - T0)
    assert times == [0, 0, NS, NS, NS, 2 * NS]


# Signals


@pytest.mark.parametrize("level", [0, 1_000_000, -(2**31)])
def test_a_dead_channel_is_silent(level: int) -> None:
    """Protects against NaN and against rounding that is taken for a signal."""
    samples = np.full(20_000, level, dtype=np.int32)
    assert detect(TRIGGER, packets({"Z": samples}, [100])) == []


def test_a_dead_component_does_not_hide_an_event() -> None:
    """Protects the other two components."""
    channels = {**station(12_000, [(LATE, 300, 20)]), "N": np.zeros(12_000, dtype=np.int32)}
    assert len(spans(detect(TRIGGER, packets(channels, [100])))) == 1


def test_an_offset_of_a_million_counts_makes_no_transient() -> None:
    """Protects the long average: a filter that rang at the start would leave it deaf for a minute."""
    plain = station(12_000, [(1500, 100, 8)], "Z")
    shifted = {"Z": plain["Z"] + 1_000_000}
    trigger = changed(TRIGGER, lta_s=10.0)
    found = spans(detect(trigger, packets(plain, [100])))
    assert len(found) == 1
    assert spans(detect(trigger, packets(shifted, [100]))) == found


def test_a_clipped_event_is_an_event() -> None:
    """Protects near and strong slides."""
    samples = np.clip(ground(12_000, [(LATE, 1000, 1e6)]), -(2**23), 2**23).astype(np.int32)
    ((on, _),) = spans(detect(TRIGGER, packets({"Z": samples}, [100])))
    assert LATE <= on < LATE + 10


@settings(max_examples=30)
@given(st.lists(st.integers(0, 11_999), max_size=30), st.sampled_from([np.nan, np.inf, -np.inf, 1e30]))
def test_invalid_samples_never_trigger_and_never_stick(at: list[int], value: float) -> None:
    """Protects float channels: one NaN must not poison the filter, and the event after it is found."""
    samples = ground(16_000, [(15_000, 300, 20)]).astype(np.float32)
    samples[at] = value
    continuity, detector = Continuity(), Detector(STATION, TRIGGER)
    changes: list[TriggerOn | TriggerOff] = []
    for packet in packets({"Z": samples}, [100]):
        for piece in continuity.accept(packet):
            changes += detector.feed(piece)
    changes += detector.flush()
    ((on, _),) = spans(changes)
    assert 15_000 <= on < 15_030


@pytest.mark.parametrize("rate", [20.0, 31.25, 50.0, 100.0, 200.0, 500.0, 1000.0])
def test_every_rate_finds_the_event_at_its_time(rate: float) -> None:
    """Protects 20 to 1000 Hz: the corner above Nyquist is lowered, lengths in seconds stay."""
    n, at = round(60 * rate), round(40 * rate)
    channels: dict[str, Samples] = {c: ground(n, [(at, round(3 * rate), 20)], i, rate) for i, c in enumerate("ENZ")}
    (on, off) = detect(TRIGGER, packets(channels, [round(rate)], rate))
    assert isinstance(on, TriggerOn)
    assert isinstance(off, TriggerOff)
    assert 0 <= on.onset_ns - T0 - 40 * NS < 0.3 * NS
    assert 2.5 * NS < off.off_ns - on.onset_ns < 6 * NS


# Time


def test_overlaps_and_repeats_change_nothing() -> None:
    """Protects equality with the clean record when a server sends twice."""
    channels = station(12_000, [(LATE, 300, 20)])
    clean = packets(channels, [100])
    messy: list[SampleBlock] = []
    for packet in clean:
        messy += [packet, packet]
        if packet.start_ns > T0:
            first = round((packet.start_ns - T0) * 100 / NS)
            messy.append(
                block(packet.stream.component, channels[packet.stream.component][first - 50 : first + 50], first - 50)
            )
    continuity, detector = Continuity(), Detector(STATION, TRIGGER)
    changes = [c for packet in messy for piece in continuity.accept(packet) for c in detector.feed(piece)]
    assert changes + detector.flush() == detect(TRIGGER, clean)
    assert continuity.counts["Z"].duplicates > 100


def test_a_drifting_clock_keeps_the_averages() -> None:
    """Protects stations without GPS: over three samples of drift no gap is made, and the onset has the real time."""
    samples = ground(120_000, [(110_000, 300, 20)])
    drift = 30e-6
    blocks = [
        SampleBlock(b.stream, b.start_ns + round((b.start_ns - T0) * drift), 100.0, b.samples)
        for b in packets({"Z": samples}, [100])
    ]
    continuity, detector = Continuity(), Detector(STATION, TRIGGER)
    changes: list[TriggerOn | TriggerOff] = []
    times = []
    for packet in blocks:
        for piece in continuity.accept(packet):
            changes += detector.feed(piece)
        times.append(detector.time_ns)
    assert np.abs(np.diff(times[10:]) - NS).max() < 0.6 * NS / 100, "the time jumps"
    on, _ = changes + detector.flush()
    plain, _ = detect(TRIGGER, packets({"Z": samples}, [100]))
    assert on.onset_ns == pytest.approx(plain.onset_ns + (plain.onset_ns - T0) * drift, abs=NS / 100)
    assert continuity.counts["Z"].gaps == 0
    assert detector.peak_ratio(on.onset_ns - NS, on.onset_ns + NS) > 4


def test_a_clock_that_runs_fast_takes_back_nothing_that_is_decided() -> None:
    """A site takes decided time that goes back for a clock set back, and the station for blind."""
    channels = {component: ground(30_000, [], seed) for seed, component in enumerate("ENZ")}
    continuity, detector, times = Continuity(), Detector(STATION, TRIGGER), [0]
    for b in packets(channels, [100]):
        early_ns = round((b.start_ns - T0) * 200e-6)
        for piece in continuity.accept(SampleBlock(b.stream, b.start_ns - early_ns, 100.0, b.samples)):
            detector.feed(piece)
            times.append(detector.time_ns)
    assert times == sorted(times)
    assert times[-1] == pytest.approx(time_of(30_000, 100.0) - early_ns, abs=2 * NS / 100)


def test_components_half_a_sample_apart_stay_in_step() -> None:
    """Protects digitisers that sample one channel after the other: no restart, no flapping of the time."""
    channels = station(12_000, [(LATE, 300, 20)])
    blocks = [
        SampleBlock(b.stream, b.start_ns + (5_000_000 if b.stream.component == "N" else 0), 100.0, b.samples)
        for b in packets(channels, [100])
    ]
    assert len(spans(detect(TRIGGER, blocks))) == 1
    detector = Detector(STATION, TRIGGER)
    times = []
    for packet in blocks:
        detector.feed(packet)
        times.append(detector.time_ns)
    assert set(np.diff(times[3:]).tolist()) <= {0, NS}


def test_packets_that_end_at_different_times_cost_one_decision_a_second() -> None:
    """Protects the processor: a live station's components end each at a time of its own. Once a trigger goes on,
    nothing waits."""
    channels = station(12_000, [(LATE, 300, 20)])
    blocks = [
        packet
        for number, (name, samples) in enumerate(channels.items())
        for packet in packets({name: samples}, [97 + 5 * number])
    ]
    detector = Detector(STATION, TRIGGER)
    times, triggered = [0], [False]
    for packet in sorted(blocks, key=lambda packet: packet.end_ns):
        changes = detector.feed(packet, at_once=False)
        if detector.time_ns > times[-1]:
            times.append(detector.time_ns)
            triggered.append(isinstance(changes[-1], TriggerOn) if changes else triggered[-1])
    steps = np.diff(times[1:]) / NS
    waits = np.array(triggered[1:-1])
    assert steps[~waits].min() >= 1.0
    assert steps[waits].max() < 0.98


def test_a_clock_set_back_starts_anew() -> None:
    """Protects a station whose clock jumps: the running trigger is ended and the new time is followed."""
    channels = station(12_000, [(11_700, 300, 20)], "Z")
    detector = Detector(STATION, TRIGGER)
    changes = [c for packet in packets(channels, [100]) for c in detector.feed(packet)]
    assert [type(c) for c in changes] == [TriggerOn]
    again = [c for packet in packets(channels, [100], first=-100_000) for c in detector.feed(packet)]
    assert [type(c) for c in again] == [TriggerOff, TriggerOn]
    assert again[1].onset_ns - changes[0].onset_ns == -1000 * NS


def test_a_change_of_rate_on_all_components_starts_anew() -> None:
    """Protects a recorder switched from 100 to 200 Hz."""
    slow = station(6000, [])
    fast: dict[str, Samples] = {c: ground(12_000, [(8000, 600, 20)], i, 200.0) for i, c in enumerate("ENZ")}
    blocks = packets(slow, [100]) + packets(fast, [200], 200.0, first=12_000)
    ((on, _),) = spans(detect(TRIGGER, blocks), 200.0)
    assert 20_000 <= on < 20_060


@pytest.mark.parametrize(
    ("first", "rate_hz", "kept"), [(6000, 100.0, True), (12_000, 200.0, True), (-100_000, 100.0, False)]
)
def test_what_was_band_passed_is_at_hand_until_the_clock_is_set_back(first: int, rate_hz: float, kept: bool) -> None:
    """Protects the peak and the noise of an event when there is a gap, a change of rate, a clock set back."""
    channels = station(6000, [])
    detector = Detector(STATION, TRIGGER)
    later = {c: ground(6000, [], 7, rate_hz) for c in "ENZ"}
    for packet in packets(channels, [100]) + packets(later, [100], rate_hz, first=first):
        detector.feed(packet)
    found = detector.band_passed(T0, time_of(6000, 100.0))
    lengths = {name: sum(len(run.samples) for run in runs) for name, runs in found.items()}
    assert lengths == dict.fromkeys("ENZ", 6000 * kept)
    for name, runs in found.items():
        for run in runs:
            whole = band_passed(TRIGGER, channels[name], 100.0)
            np.testing.assert_allclose(run.samples, whole, rtol=0, atol=np.finfo(np.float32).eps * np.abs(whole).max())


def test_a_component_with_a_rate_of_its_own_is_left_out() -> None:
    """Protects the other two from starting anew with every packet."""
    channels = station(12_000, [(LATE, 300, 20)], "EN")
    fast = packets({"Z": ground(24_000, [], 9, 200.0)}, [200], 200.0)
    blocks = sorted(packets(channels, [100]) + fast, key=lambda b: b.start_ns)
    ((on, _),) = spans(detect(TRIGGER, blocks))
    assert LATE <= on < LATE + 30


@pytest.mark.parametrize("rate", [1.0, 2.0])
def test_too_low_a_rate_is_an_error(rate: float) -> None:
    """Protects the operator from a station that never triggers: the message says why."""
    with pytest.raises(DataError, match="too few"):
        Detector(STATION, TRIGGER).feed(block("Z", ground(100, []), rate_hz=rate))


def test_a_wrong_rate_for_a_moment_leaves_the_station_alone() -> None:
    """Protects a running trigger from one packet with a damaged header."""
    channels = station(12_000, [(LATE, 300, 20)])
    detector = Detector(STATION, TRIGGER)
    changes: list[TriggerOn | TriggerOff] = []
    for packet in packets(channels, [100]):
        if packet.start_ns == T0 + 70 * NS and packet.stream.component == "N":
            assert detector.feed(SampleBlock(packet.stream, packet.start_ns, 1.0, packet.samples)) == []
        else:
            changes += detector.feed(packet)
    assert len(spans(changes + detector.flush())) == 1


# Settings and calls


def test_merge_joins_and_announces_later() -> None:
    """Protects one event from being two, and the promise that the end is known ``merge_s`` after it."""
    channels = station(14_000, [(LATE, 100, 20), (LATE + 400, 100, 20)])
    apart = spans(detect(TRIGGER, packets(channels, [100])))
    joined = spans(detect(changed(TRIGGER, merge_s=4.0), packets(channels, [100])))
    assert len(apart) == 2
    assert joined == [[apart[0][0], apart[1][1]]]


def test_the_longest_trigger() -> None:
    """Protects against a trigger that a new machine on the slope keeps on for ever."""
    samples = ground(20_000, [(LATE, 12_000, 20)])
    trigger = changed(TRIGGER, max_duration_s=5.0, lta_s=60.0)
    ((on, off), *_) = spans(detect(trigger, packets({"Z": samples}, [100])))
    assert off - on == 500


def test_a_trigger_is_announced_with_the_packet_that_holds_it() -> None:
    """Protects the delay of the first verdict: no packet is waited for that is not needed."""
    detector = Detector(STATION, TRIGGER)
    for packet in packets(station(12_000, [(LATE, 300, 20)]), [100]):
        for change in detector.feed(packet):
            if isinstance(change, TriggerOn):
                assert packet.start_ns <= change.onset_ns < packet.end_ns == detector.time_ns
                return
    pytest.fail("no trigger")


def test_flush_decides_what_waits() -> None:
    """Protects short files: less than the lag of one component, and an event that the end cuts off."""
    assert detect(TRIGGER, [block("Z", ground(1, []))]) == []
    assert Detector(STATION, TRIGGER).flush() == []
    samples = ground(3000, [(2900, 100, 20)])
    ((on, off),) = spans(detect(TRIGGER, [block("Z", samples)]))
    assert on >= 2900
    assert off == 2999


def test_an_empty_packet_is_nothing() -> None:
    """Protects against keep-alive packets."""
    detector = Detector(STATION, TRIGGER)
    assert detector.feed(block("Z", np.zeros(0, dtype=np.int32))) == []
    assert detector.time_ns == 0
    assert detector.peak_ratio(0, 2 * T0) == 0.0
