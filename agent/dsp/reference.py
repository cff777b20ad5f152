"""The reference event, in which a sensor's hearing is measured: a short wavelet in the trigger's band.

It is ``A sin(2 pi f t)`` on every component, which rises for 1 s as the square of a sine and falls as it rose. It is
2 s long, or 1.5 times ``min_duration_s`` where that is longer, and f = 6 Hz, or the centre of the band where 6 Hz is
not in it. ``least_energy`` says how large its ``A^2`` must be, against the mean energy of the band-passed background,
for these settings to make an event of it.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from agent.config.station import TriggerConfig
from agent.dsp.sos import SosFilter, butterworth
from agent.dsp.stalta import Fall, OnOff, RecursiveStaLta, Rise

Array = NDArray[np.float64]
Settings: TypeAlias = tuple[TriggerConfig, float, float]
"""A trigger with the sampling rate and the upper corner of its band as used, Hz."""

LENGTH_S = 2.0
LONGER = 1.5
RISE_S = 1.0
FREQUENCY_HZ = 6.0
_MARGIN = 1.5
"""Factor from the corners of the band at which its gain is near 1."""
_QUIET_S = 1.0
_AFTER_S = 20.0
"""Background after the wavelet, in lengths of the short average: until the ratio is far below any ``off``."""
LARGEST = 50.0
"""Amplitude in multiples of the background's, beyond which no event is counted on: half of 123 recorded landslides and
rockfalls reach 42 (``bench/alerts.py sizes``)."""
_STEPS = 40


def frequency(trigger: TriggerConfig, high_hz: float) -> float:
    """That of the reference event, Hz; ``high_hz`` is the band's upper corner as used."""
    if trigger.low_hz * _MARGIN <= FREQUENCY_HZ <= high_hz / _MARGIN:
        return FREQUENCY_HZ
    return math.sqrt(trigger.low_hz * high_hz)


def wavelet(trigger: TriggerConfig, rate_hz: float, high_hz: float, frequency_hz: float | None = None) -> Array:
    """The reference event ``[n]`` with ``A`` = 1, at ``rate_hz``; ``high_hz`` is the band's upper corner as used,
    ``frequency_hz`` another frequency than the settings' own."""
    f = frequency(trigger, high_hz) if frequency_hz is None else frequency_hz
    length_s = max(LENGTH_S, LONGER * trigger.min_duration_s)
    t = np.arange(round(length_s * rate_hz)) / rate_hz
    to_the_end = np.minimum(np.minimum(t, length_s - t) / RISE_S, 1.0)
    shape: Array = np.sin(np.pi / 2 * to_the_end) ** 2 * np.sin(2 * np.pi * f * t)
    return shape


@lru_cache(maxsize=64)
def least_energy(trigger: TriggerConfig, rate_hz: float, high_hz: float, frequency_hz: float | None = None) -> float:
    """The least ``A^2`` of a reference event that becomes an event of one component whose band-passed background has
    the mean energy 1; infinite where an amplitude of ``LARGEST`` is not enough.

    ``high_hz``: upper corner of the band, as used at this rate; ``frequency_hz`` as for ``wavelet``.
    """
    shape = wavelet(trigger, rate_hz, high_hz, frequency_hz)
    before, after = round(_QUIET_S * rate_hz), round(_AFTER_S * trigger.sta_s * rate_hz)
    samples = np.concatenate([np.zeros(before), shape, np.zeros(after)])
    unit = SosFilter(butterworth(trigger.low_hz, high_hz, rate_hz, trigger.order)).process(samples) ** 2
    if not _is_event(trigger, rate_hz, unit, LARGEST**2):
        return math.inf
    low, high = 1e-3, LARGEST**2
    for _ in range(_STEPS):
        middle = math.sqrt(low * high)
        if _is_event(trigger, rate_hz, unit, middle):
            high = middle
        else:
            low = middle
        if high < 1.01 * low:
            break
    return high


def _is_event(trigger: TriggerConfig, rate_hz: float, unit: Array, energy: float) -> bool:
    """Whether a wavelet of this ``A^2`` raises the ratio to ``on`` and keeps it above ``off`` for long enough."""
    nsta, nlta = round(trigger.sta_s * rate_hz), round(trigger.lta_s * rate_hz)
    averages = RecursiveStaLta(nsta, nlta)
    averages.resume(1.0, 1.0)
    ratio = averages.process(1.0 + energy * unit)
    onoff = OnOff(trigger.on, trigger.off, round(trigger.merge_s * rate_hz), round(trigger.max_duration_s * rate_hz))
    changes = [*onoff.feed(0, ratio), *onoff.flush()]
    if not any(isinstance(change, Rise) for change in changes):
        return False
    longest = max(change.last - change.onset for change in changes if isinstance(change, Fall))
    return longest >= trigger.min_duration_s * rate_hz
