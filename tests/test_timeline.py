"""What continues in time is one channel: no sample is lost, none invented, and every onset is within 20 ms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from stamps_support import STATION, T0, Stamping, records

from agent.config.station import TriggerConfig
from agent.dsp.continuity import Continuity
from agent.dsp.detector import Detector
from agent.types import NS, SampleBlock, TriggerOn

TRIGGER = TriggerConfig(lta_s=10.0)
EVENTS_S = (25.0, 40.5, 56.25)


def shaken(rate_hz: float, seconds: float, events_s: Sequence[float], seed: int = 0) -> NDArray[np.int32]:
    """Noise of 100 counts, and at each time four seconds of a decaying wave that begins at once."""
    signal = np.random.default_rng(seed).normal(0, 100, round(seconds * rate_hz))
    t = np.arange(round(4 * rate_hz)) / rate_hz
    wave = 6000 * np.cos(2 * np.pi * min(6.0, rate_hz / 5) * t) * np.exp(-t)
    for event_s in events_s:
        first = round(event_s * rate_hz)
        signal[first : first + len(wave)] += wave[: len(signal) - first]
    return signal.astype(np.int32)


def onsets_s(blocks: Sequence[SampleBlock]) -> tuple[list[float], Continuity]:
    """Seconds after ``T0`` at which a station triggers, and what its packets were to each other."""
    continuity, detector = Continuity(), Detector(STATION, TRIGGER)
    changes = [change for block in blocks for piece in continuity.accept(block) for change in detector.feed(piece)]
    ons = [change for change in changes + detector.flush() if isinstance(change, TriggerOn)]
    return [(on.onset_ns - T0) / NS for on in ons], continuity


def assert_all_heard(
    rate_hz: float, size: int, stamping: Stamping, *, names: str = "Z", within_s: float = 0.02
) -> None:
    """All samples are used, in one run, and the triggers are those of a recorder with an ideal clock."""
    channels = {name: shaken(rate_hz, 64, EVENTS_S, seed) for seed, name in enumerate(names)}
    clean, got = (
        onsets_s(
            sorted(
                (b for i, n in enumerate(names) for b in records(channels[n], rate_hz, size, s, component=n, seed=i)),
                key=lambda block: (block.start_ns, block.stream),
            )
        )
        for s in (Stamping(), stamping)
    )
    assert len(clean[0]) == len(EVENTS_S)
    wanted = [stamping.true_s(onset_s) for onset_s in clean[0]]
    assert got[0] == pytest.approx(wanted, abs=within_s)
    for name, counts in got[1].counts.items():
        assert counts.samples == len(channels[name])
        assert counts.gaps == counts.overlaps == counts.duplicates == counts.late == counts.restarts == 0


stampings = st.builds(
    Stamping,
    jitter_s=st.sampled_from([0.0, 0.001, 0.003, 0.005, 0.01]),
    round_s=st.sampled_from([0.0, 0.0001, 0.001, 0.01]),
    ppm=st.sampled_from([0.0, 20.0, -100.0, 500.0, -500.0]),
    wobble=st.sampled_from([0.0, 0.0, 2e-4, 5e-3]),
).filter(lambda stamping: stamping.jitter_s < 0.01 or stamping.wobble < 1e-3)
"""(Both at their worst take longer to tell from each other than the first event gives them.)"""


@settings(max_examples=60)
@given(
    rate_hz=st.sampled_from([20.0, 31.25, 50.0, 100.0, 200.0, 500.0, 1000.0]),
    length_s=st.floats(0.25, 8),
    stamping=stampings,
    names=st.sampled_from(["Z", "ENZ"]),
)
def test_whatever_the_stamps_all_samples_are_heard_and_onsets_are_right(
    rate_hz: float, length_s: float, stamping: Stamping, names: str
) -> None:
    """Protects a station from its recorder's clock: nothing that the band-pass cannot see makes it deaf."""
    assert_all_heard(rate_hz, max(1, round(length_s * rate_hz)), stamping, names=names)


@pytest.mark.parametrize("size", [25, 50, 100])
def test_times_with_one_decimal_lose_no_sample(size: int) -> None:
    """Protects senders that write tenths of a second: the times are as good as they allow, and nothing is torn."""
    assert_all_heard(100.0, size, Stamping(round_s=0.1, jitter_s=0.005), within_s=0.035)


@pytest.mark.parametrize("rate_hz", [20.0, 100.0, 1000.0])
@pytest.mark.parametrize("length_s", [0.25, 1.0, 10.0, 60.0, 300.0])
@pytest.mark.parametrize("ppm", [500.0, -500.0])
def test_a_clock_off_by_500_ppm_makes_no_gap_and_its_times_are_kept(
    rate_hz: float, length_s: float, ppm: float
) -> None:
    """Protects long records: within one of 300 s the clock gains 150 ms, which are 150 samples at 1000 Hz."""
    size, stamping = round(length_s * rate_hz), Stamping(ppm=ppm)
    samples = np.zeros(size * max(4, min(1000, round(1200 / length_s))), np.int32)
    continuity, number = Continuity(), 0
    for block in records(samples, rate_hz, size, stamping):
        (piece,) = continuity.accept(block)
        if number > size:
            true_ns = [T0 + stamping.true_s(n / rate_hz) * NS for n in (number, number + len(piece.samples))]
            assert [piece.start_ns, piece.end_ns] == pytest.approx(true_ns, abs=12e6)
        number += len(piece.samples)
    counts = continuity.counts["Z"]
    assert (counts.samples, counts.gaps, counts.overlaps) == (len(samples), 0, 0)


@settings(max_examples=60)
@given(
    rate_hz=st.sampled_from([20.0, 100.0, 250.0, 1000.0]),
    length_s=st.floats(0.25, 5),
    stamping=stampings,
    lost=st.sets(st.integers(20, 79), min_size=1, max_size=12),
    seed=st.integers(0, 9),
)
def test_every_lost_packet_is_a_gap_of_its_length(
    rate_hz: float, length_s: float, stamping: Stamping, lost: set[int], seed: int
) -> None:
    """Protects what is told of a link: tolerance for stamps hides no packet that was lost."""
    size = round(length_s * rate_hz)
    samples = np.random.default_rng(seed).integers(-1000, 1000, 100 * size).astype(np.int32)
    continuity = Continuity()
    blocks = records(samples, rate_hz, size, stamping, lost=lost, seed=seed)
    used = np.concatenate([piece.samples for block in blocks for piece in continuity.accept(block)])
    np.testing.assert_array_equal(used, np.concatenate([block.samples for block in blocks]))
    runs = sum(number - 1 not in lost for number in lost)
    counts = continuity.counts["Z"]
    assert counts.gaps == runs
    uncertain_s = runs * (6 * stamping.jitter_s + stamping.round_s + 0.002) + len(lost) * 0.006 * length_s
    assert counts.gap_s == pytest.approx(len(lost) * size / rate_hz, abs=uncertain_s)


@settings(max_examples=40)
@given(
    repeated=st.lists(st.tuples(st.integers(0, 99), st.integers(0, 3)), min_size=1, max_size=10),
    jitter_s=st.sampled_from([0.0, 0.003, 0.01]),
    size=st.integers(25, 400),
)
def test_repeated_packets_add_no_sample_whatever_the_jitter(
    repeated: list[tuple[int, int]], jitter_s: float, size: int
) -> None:
    """Protects against a sample invented: a packet that comes again is known by its samples."""
    samples = np.random.default_rng(1).integers(-1000, 1000, 100 * size).astype(np.int32)
    blocks = records(samples, 100.0, size, Stamping(jitter_s=jitter_s))
    again = dict(repeated)
    continuity, used = Continuity(), []
    for number, block in enumerate(blocks):
        for packet in [block, *([blocks[max(0, number - again[number])]] if number in again else [])]:
            used += [piece.samples for piece in continuity.accept(packet)]
    np.testing.assert_array_equal(np.concatenate(used), samples)
    assert continuity.counts["Z"].duplicates == len(again)


@pytest.mark.parametrize("step_s", [0.05, -0.05, 0.03, -0.1])
@pytest.mark.parametrize("jitter_s", [0.0, 0.005])
def test_a_clock_that_is_set_by_a_step_is_followed_without_a_tear(step_s: float, jitter_s: float) -> None:
    """Protects stations whose clock is disciplined by steps: the new time holds within seconds, no sample is lost."""
    assert_all_heard(100.0, 50, Stamping(step_s=step_s, step_at_s=35.0, jitter_s=jitter_s))


@pytest.mark.parametrize("wrong_s", [0.09, -0.09, 0.2, -0.2, 0.7, -0.7])
@pytest.mark.parametrize("size", [25, 100, 400])
def test_one_wrong_stamp_costs_no_sample_and_moves_no_other_time(wrong_s: float, size: int) -> None:
    """Protects data from a single stamp that is off by less than its record: the next says that nothing was lost."""
    if abs(wrong_s) >= size / 100:
        pytest.skip("a packet from elsewhere")
    blocks = records(shaken(100.0, 64, EVENTS_S), 100.0, size, Stamping(jitter_s=0.001))
    number = len(blocks) // 2 + 1
    wrong = blocks[number]
    blocks[number] = SampleBlock(wrong.stream, wrong.start_ns + round(wrong_s * NS), 100.0, wrong.samples)
    continuity, gaps = Continuity(), 0
    for k, block in enumerate(blocks):
        (piece,) = continuity.accept(block)
        assert continuity.counts["Z"].gaps >= gaps, "a counter goes back"
        gaps = continuity.counts["Z"].gaps
        assert len(piece.samples) == len(block.samples)
        if k != number:
            assert piece.start_ns == pytest.approx(T0 + k * size * NS // 100, abs=15_000_000)
    counts = continuity.counts["Z"]
    assert (counts.gaps, counts.overlaps, counts.late) == (0, 0, 0)
    assert counts.gap_s == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("loser", ["E", "N"])
def test_a_component_that_loses_samples_unseen_holds_up_no_other(loser: str) -> None:
    """Protects the alert's delay: losses below the tolerance add up to seconds, and the components stay on one grid by
    their times, the leader (E) too."""
    channels = {name: shaken(100.0, 600, (570.0,), seed) for seed, name in enumerate("ENZ")}
    blocks: list[SampleBlock] = []
    for seed, (name, samples) in enumerate(channels.items()):
        for number, block in enumerate(
            records(samples, 100.0, 100, Stamping(jitter_s=0.005), component=name, seed=seed)
        ):
            if name == loser and number % 10 == 5:
                late_ns = block.start_ns + 8 * 10_000_000
                blocks.append(SampleBlock(block.stream, late_ns, 100.0, block.samples[8:]))
            else:
                blocks.append(block)
    blocks.sort(key=lambda block: block.start_ns)
    continuity, detector = Continuity(), Detector(STATION, TRIGGER)
    onsets_ns, behind_s = [], []
    for block in blocks:
        for piece in continuity.accept(block):
            onsets_ns += [c.onset_ns for c in detector.feed(piece) if isinstance(c, TriggerOn)]
            behind_s.append((piece.end_ns - detector.time_ns) / NS)
    assert max(behind_s[60:]) < 1.5
    (onset_ns,) = onsets_ns
    assert (onset_ns - T0) / NS == pytest.approx(570.0, abs=0.4)


def test_pieces_of_long_records_and_blocks_of_many_records_are_the_same_to_it() -> None:
    """Protects a replay, which cuts records and puts them together as it likes: the estimate depends on the records."""
    samples, size = shaken(100.0, 64, EVENTS_S), 110
    one_by_one = records(samples, 100.0, size, Stamping(jitter_s=0.006, ppm=200))
    stamps = [(number * size, block.start_ns) for number, block in enumerate(one_by_one)]
    wanted, _ = onsets_s(one_by_one)
    for length in (37, 100, 1000, len(samples)):
        blocks = []
        for begin in range(0, len(samples), length):
            inside = tuple((at - begin, when) for at, when in stamps if begin <= at < begin + length)
            at, when = max(stamp for stamp in stamps if stamp[0] <= begin)
            start_ns = when + (begin - at) * 10_000_000
            blocks.append(
                SampleBlock(one_by_one[0].stream, start_ns, 100.0, samples[begin : begin + length], stamps=inside)
            )
        got, continuity = onsets_s(blocks)
        assert got == wanted
        assert continuity.counts["Z"].samples == len(samples)
