"""What `hearing` promises is what triggers: reference events in streams that are impaired at random."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from hearing_support import RMS, SENSOR, T0, Sensor
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.config.station import TriggerConfig
from agent.dsp.hearing import STEP_NS, Step
from agent.dsp.reference import wavelet
from agent.types import NS

QUIET_S, SECONDS, EVERY_S = 200, 800, 40
SIZE = 100
NEAR_NS = round(1.5 * NS)
SURELY, HARDLY = 1.6, 0.5
"""Times the threshold: an event so large triggers, one so small does not."""


@dataclass(frozen=True)
class Impairments:
    jitter_ms: float
    wobble: float
    gap: float
    """Chance of each second to be missing on all components."""
    hole: float
    """The same on one of them."""
    burst: float
    dead: frozenset[str]
    factor: float
    combine: str


def chances(most: float) -> st.SearchStrategy[float]:
    return st.one_of(st.just(0.0), st.floats(most / 20, most))


IMPAIRMENTS = st.builds(
    Impairments,
    jitter_ms=chances(10.0),
    wobble=chances(0.0005),
    gap=chances(0.08),
    hole=chances(0.2),
    burst=chances(0.02),
    dead=st.frozensets(st.sampled_from("ENZ")),
    factor=st.sampled_from([0.3, 1.0, 5.0]),
    combine=st.sampled_from(["vector", "coincidence"]),
)


@given(case=IMPAIRMENTS, seed=st.integers(0, 2**32 - 1))
@settings(max_examples=8)
def test_what_was_promised_triggers_and_what_was_not_does_not(case: Impairments, seed: int) -> None:
    rng = np.random.default_rng(seed)
    sensor = Sensor({"combine": case.combine}).play(QUIET_S)
    shape = wavelet(TriggerConfig(), 100.0, 20.0)
    amplitudes: dict[int, float] = {}
    burst_until, bursts = 0, []
    for second in range(QUIET_S, QUIET_S + SECONDS):
        if (second - QUIET_S) % EVERY_S == EVERY_S // 2:
            amplitudes[second] = case.factor * RMS * 10 ** rng.uniform(-0.3, 1.7)
        onset = max(amplitudes, default=-10)
        if rng.random() < case.burst:
            burst_until = second + 3
            bursts.append(second)
        missing = rng.random() < case.gap
        for component in "ENZ":
            samples = rng.normal(0, case.factor * RMS * (30 if second < burst_until else 1), SIZE)
            piece = shape[(second - onset) * SIZE : (second - onset + 1) * SIZE]
            samples[: len(piece)] += amplitudes.get(onset, 0.0) * piece
            if missing or rng.random() < case.hole:
                continue
            if component in case.dead:
                samples[:] = 7
            start_ns = T0 + second * NS + round(rng.normal(0, case.jitter_ms * 1e6))
            rate_hz = 100.0 * (1 + rng.normal(0, case.wobble))
            sensor.feed(component, np.rint(samples).astype(np.int32), start_ns, rate_hz)
    sensor.play(30)
    hearing = sensor.line.pipeline.stations[SENSOR].hearing
    steps = {step.number: step for step in hearing.steps}
    spans = [(one.onset_ns, one.onset_ns + round(one.detection.duration_s * NS)) for one in sensor.last.values()]
    score: Counter[tuple[str, bool]] = Counter()
    for second, amplitude in amplitudes.items():
        if any(abs(burst - second) < 6 for burst in bursts):
            continue  # it triggers by itself, or hides what comes with it
        at_ns = T0 + second * NS
        promise = promised([steps.get(at_ns // STEP_NS + k) for k in (-1, 0, 1)], amplitude)
        begins = any(abs(begin - at_ns) <= NEAR_NS for begin, _ in spans)
        goes_on = any(begin < at_ns <= end + NS for begin, end in spans)
        if promise and not (goes_on and not begins):
            score[promise, begins] += 1
    # The noise adds to an event or takes from it, and triggers by itself now and then.
    assert score["heard", False] <= 1 + 0.05 * score["heard", True], (score, case)
    assert score["deaf", True] == 0, (score, case)
    assert score["too small", True] <= 1 + 0.1 * score["too small", False], (score, case)


def promised(around: list[Step | None], amplitude: float) -> str:
    """What the steps before, at and after an event say of it; nothing where they are of two minds."""
    if all(step is None or step.armed == 0 for step in around):
        return "deaf"
    if any(step is None or step.armed < 1 or step.threshold is None for step in around):
        return ""
    thresholds = [step.threshold or 0.0 for step in around if step is not None]
    if amplitude > SURELY * max(thresholds):
        return "heard"
    return "too small" if amplitude < HARDLY * min(thresholds) else ""


def test_the_cases_are_not_all_of_one_kind() -> None:
    """What is drawn above leads to each of the three promises."""
    threshold = Step(0, 1.0, 100.0, {}, frozenset())
    assert promised([threshold] * 3, 200.0) == "heard"
    assert promised([threshold] * 3, 40.0) == "too small"
    assert promised([threshold] * 3, 100.0) == ""
    assert promised([None] * 3, 1e9) == "deaf"
