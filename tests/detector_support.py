"""Driving a detector: packets of any sizes from arrays, and triggers as sample numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
from numpy.typing import NDArray

from agent.config.station import HIGHEST_CORNER, TriggerConfig
from agent.dsp.detector import Detector
from agent.dsp.sos import CHUNK, SosFilter, butterworth
from agent.types import NS, SampleBlock, Samples, StationId, StreamId, TriggerOff, TriggerOn

STATION = StationId("XX", "SLP", "00", "HH")
T0 = 1_700_000_000 * NS
Array = NDArray[np.float64]


def time_of(number: int, rate_hz: float) -> int:
    return T0 + round(number * NS / rate_hz)


def block(component: str, samples: Samples, first: int = 0, rate_hz: float = 100.0) -> SampleBlock:
    """Samples of a component, the first with number ``first`` after ``T0``."""
    return SampleBlock(StreamId(STATION, component), time_of(first, rate_hz), rate_hz, samples)


def packets(
    channels: Mapping[str, Samples], sizes: Sequence[int], rate_hz: float = 100.0, first: int = 0
) -> list[SampleBlock]:
    """The channels in packets, each taking the sizes in turn from a place of its own, in order of their start."""
    found = []
    for place, (component, samples) in enumerate(channels.items()):
        turn = cycle([*sizes[place % len(sizes) :], *sizes[: place % len(sizes)]])
        at = 0
        while at < len(samples):
            size = next(turn)
            found.append(block(component, samples[at : at + size], first + at, rate_hz))
            at += size
    return sorted(found, key=lambda packet: packet.start_ns)


def changed(trigger: TriggerConfig, **values: object) -> TriggerConfig:
    """The settings with other values, which may be some that no file could give."""
    return trigger.model_copy(update=values)


def detect(
    settings: TriggerConfig, blocks: Sequence[SampleBlock], *, at_once: bool = True
) -> list[TriggerOn | TriggerOff]:
    """Everything a new detector says about these blocks, to the flush."""
    detector = Detector(STATION, settings)
    changes = [change for packet in blocks for change in detector.feed(packet, at_once=at_once)]
    return changes + detector.flush()


def spans(changes: Sequence[TriggerOn | TriggerOff], rate_hz: float = 100.0) -> list[list[int]]:
    """First and last sample of each trigger; checks that on and off alternate and belong together."""
    ons, offs = changes[::2], changes[1::2]
    assert all(isinstance(change, TriggerOn) for change in ons)
    assert [change.onset_ns for change in ons] == [change.onset_ns for change in offs]
    return [
        [round((change.onset_ns - T0) * rate_hz / NS), round((change.off_ns - T0) * rate_hz / NS)]
        for change in offs
        if isinstance(change, TriggerOff)
    ]


def band_passed(settings: TriggerConfig, samples: Samples, rate_hz: float) -> Array:
    """One channel through the detector's filter in one go."""
    high = min(settings.high_hz, HIGHEST_CORNER * rate_hz / 2)
    return SosFilter(butterworth(settings.low_hz, high, rate_hz, settings.order)).process(samples)


def filter_rounding(low_hz: float, rate_hz: float, order: int) -> float:
    """Return how far two forms of a Butterworth filter may differ by rounding alone, relative to the largest output.

    From the arithmetic, so that it holds on any processor: the poles of a corner at ``low_hz`` lie about
    ``d = 2 pi low_hz / rate_hz`` from 1, where a section's denominator has the size d**2. A rounding error there is
    amplified by 1 / d**2 in each of the ``order`` sections. A chunk's product has CHUNK samples and two states a
    section as terms, each rounded once as a matrix entry and once in the sum.
    """
    nearest = min(1.0, 2 * np.pi * low_hz / rate_hz)
    terms = CHUNK + 2 * order
    return float(2 * terms * np.finfo(np.float64).eps * order / nearest**2)


def ground(
    n: int, events: Sequence[tuple[int, int, float]], seed: int = 0, rate_hz: float = 100.0
) -> NDArray[np.int32]:
    """Noise of 100 counts on slow swell and an offset, with bursts ``(first, count, factor)``, as a recorder has it."""
    rng = np.random.default_rng(seed)
    signal = rng.standard_normal(n) * 100
    for first, count, factor in events:
        signal[first : first + count] *= factor
    swell = 2000 * np.sin(2 * np.pi * 0.15 * np.arange(n) / rate_hz + seed)
    return np.asarray(np.round(signal + swell + 12_345), dtype=np.int32)
