"""RSAM: equal to the mean of what was band-passed, whatever the packets; gaps and late components are no amplitude."""

from __future__ import annotations

import numpy as np
import pytest
from detector_support import STATION, T0, band_passed, block, packets, time_of

from agent.config.station import TriggerConfig
from agent.dsp.detector import Detector
from agent.dsp.measure import HOUR_MINUTES, MINUTE_NS, Minute, Rsam
from agent.types import NS

RATE_HZ = 100.0
FIRST_MINUTE_NS = (T0 // MINUTE_NS + 1) * MINUTE_NS
SETTINGS = TriggerConfig()


def minutes(channels: dict[str, np.ndarray], sizes: list[int]) -> tuple[Minute, ...]:
    detector = Detector(STATION, SETTINGS)
    for packet in packets(channels, sizes):
        detector.feed(packet)
    detector.flush()
    return detector.rsam.minutes


def noise(seconds: float, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1000, round(seconds * RATE_HZ)).astype(np.int32)


def test_it_is_the_mean_of_the_band_passed_vertical_in_each_minute() -> None:
    vertical = noise(400)
    found = minutes({"Z": vertical, "N": noise(400, 2) * 50, "E": noise(400, 3) * 50}, [100])
    filtered = band_passed(SETTINGS, vertical, RATE_HZ)
    at_ns = np.array([time_of(number, RATE_HZ) for number in range(len(vertical))])
    complete = [minute for minute in found if minute.coverage == 1.0]
    assert len(complete) == 5
    for minute in complete:
        inside = (at_ns >= minute.start_ns) & (at_ns < minute.start_ns + MINUTE_NS)
        assert minute.mean_counts == pytest.approx(np.abs(filtered[inside]).mean(), rel=1e-5)
    assert found[0].coverage == pytest.approx((FIRST_MINUTE_NS - T0) / MINUTE_NS, abs=0.001), "the begun minute"


def test_packets_make_no_difference() -> None:
    vertical = noise(300)
    assert minutes({"Z": vertical}, [100]) == minutes({"Z": vertical}, [37, 512, 3, 6000])


def test_a_gap_lowers_the_coverage_and_not_the_amplitude() -> None:
    whole, gap = noise(300), slice(13_000, 15_000)
    detector = Detector(STATION, SETTINGS)
    for begin in range(0, len(whole), 500):
        if not gap.start <= begin < gap.stop:
            detector.feed(block("Z", whole[begin : begin + 500], begin))
    detector.flush()
    holed = min(detector.rsam.minutes[1:], key=lambda minute: minute.coverage)
    assert 0.5 < holed.coverage < 0.7
    others = [minute.mean_counts for minute in detector.rsam.minutes if minute is not holed]
    assert holed.mean_counts == pytest.approx(np.mean(others), rel=0.1), "the filter's ringing is left out"


def test_without_a_vertical_there_is_none_and_three_stands_for_z() -> None:
    assert minutes({"N": noise(200), "E": noise(200)}, [100]) == ()
    assert minutes({"3": noise(200)}, [100]) != ()


def test_an_hour_is_kept_and_a_clock_set_back_begins_a_new_minute() -> None:
    rsam = Rsam()
    for minute in (*range(80), 3, 4):
        rsam.feed(np.full(60, float(minute)), 0, lambda number, m=minute: m * MINUTE_NS + number * NS, 1.0)
    assert len(rsam.minutes) == HOUR_MINUTES
    assert [minute.mean_counts for minute in rsam.minutes[-2:]] == [79.0, 3.0]
    assert rsam.minutes[-1].start_ns == 3 * MINUTE_NS
