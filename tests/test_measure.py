"""What is measured of an event's signal: its peak, and the noise of the sensor before it."""

from __future__ import annotations

import numpy as np
import pytest

from agent.dsp.measure import LEAST_S, quiet_level
from agent.dsp.sos import SosFilter, butterworth
from agent.types import NS, Segment

RATE_HZ = 100.0
BAND = butterworth(1.0, 20.0, RATE_HZ, 4)
ONSET_NS = 1_000 * NS


def before_onset(seconds: float, bursts: int = 0, rms: float = 100.0) -> Segment:
    """White noise up to the onset, with bursts of five seconds that are a hundred times stronger."""
    rng = np.random.default_rng(1)
    samples = rng.normal(0.0, rms, round(seconds * RATE_HZ))
    for number in range(bursts):
        samples[number * 1500 : number * 1500 + 500] *= 100.0
    return Segment(ONSET_NS - round(seconds * NS), RATE_HZ, samples)


def level(*components: list[Segment]) -> float | None:
    return quiet_level([[passed(run) for run in runs] for runs in components], ONSET_NS)


def passed(run: Segment) -> Segment:
    return Segment(run.start_ns, RATE_HZ, SosFilter(BAND).process(run.samples))


def test_the_noise_is_that_of_the_band_and_of_the_loudest_component() -> None:
    """Of white noise the band of 19 Hz holds the share 19 / 50 of the power; the mean amplitude of Gaussian noise is
    0.8 times its RMS, and a fifth of the seconds are a little below the mean."""
    quiet, loud = before_onset(200, rms=50.0), before_onset(200)
    found = level([quiet], [loud])
    assert found is not None
    assert found == pytest.approx(100.0 * np.sqrt(19 / 50) * np.sqrt(2 / np.pi), rel=0.12)
    assert level([loud], [quiet]) == found


def test_earlier_events_are_not_noise() -> None:
    """Eight strong events in the two minutes before: the pauses between them are what counts."""
    calm, busy = level([before_onset(130)]), level([before_onset(130, bursts=8)])
    assert calm is not None
    assert busy is not None
    assert busy < 2.0 * calm


def test_the_noise_is_measured_across_gaps_and_is_unknown_where_too_little_was_recorded() -> None:
    whole = before_onset(125)
    first, second = whole.samples[:4_000], whole.samples[6_000:]
    torn = [Segment(whole.start_ns, RATE_HZ, first), Segment(whole.start_ns + 60 * NS, RATE_HZ, second)]
    assert level(torn) == pytest.approx(level([whole]), rel=0.1)
    assert level([before_onset(LEAST_S + 4)]) is None, "five seconds for the filter, and one before the onset"
    assert level([before_onset(LEAST_S + 7)]) is not None
    assert level([]) is None
