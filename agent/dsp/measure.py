"""Numbers about a signal that an operator reads: how strong, at which frequency, and above which noise."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from agent.dsp.sos import SosFilter, butterworth
from agent.types import NS, Segment

SETTLE_NS = 5 * NS
"""Signal before the measured span that lets the band-pass settle."""
NOISE_S = 120.0
"""Signal before an onset in which the sensor's noise is looked for, seconds."""
LEAST_S = 10
QUIET_SHARE = 0.2


def measure(
    runs: Iterable[Segment], band_hz: tuple[float, float], order: int, span_ns: tuple[int, int]
) -> tuple[float, float | None]:
    """Return peak amplitude (counts) and frequency of the spectral maximum (Hz) in ``span_ns``, band-passed.

    ``runs`` are gap-free pieces of any components; ``band_hz`` the corners, the upper one kept below the Nyquist
    frequency. The frequency is that of the strongest piece, None where it has fewer than eight samples.
    """
    peak, dominant = 0.0, None
    for run in runs:
        rate = run.rate_hz
        first = max(0, round((span_ns[0] - SETTLE_NS - run.start_ns) * rate / NS))
        last = min(len(run.samples), round((span_ns[1] - run.start_ns) * rate / NS))
        inside = max(0, round((span_ns[0] - run.start_ns) * rate / NS) - first)
        if last - first <= inside:
            continue
        sos = butterworth(band_hz[0], min(band_hz[1], 0.4 * rate), rate, order)
        signal = SosFilter(sos).process(run.samples[first:last])[inside:]
        largest = float(np.abs(signal).max())
        if largest > peak:
            peak = largest
            dominant = _dominant_hz(signal, rate) if len(signal) >= 8 else None
    return peak, dominant


def quiet_level(
    components: Iterable[Iterable[Segment]], band_hz: tuple[float, float], order: int, onset_ns: int
) -> float | None:
    """Return the sensor's own noise before an onset, counts: of the largest component, band-passed.

    The mean absolute amplitude of each second of the ``NOISE_S`` before the onset is taken; a fifth of the seconds are
    quieter than the result, so that earlier events in that span do not count as noise. None where fewer than
    ``LEAST_S`` seconds were recorded.
    """
    levels = []
    for runs in components:
        seconds = [level for run in runs for level in _seconds(run, band_hz, order, onset_ns)]
        if len(seconds) >= LEAST_S:
            levels.append(float(np.quantile(seconds, QUIET_SHARE)))
    return max(levels, default=None)


def _seconds(run: Segment, band_hz: tuple[float, float], order: int, onset_ns: int) -> list[float]:
    """Mean absolute amplitudes of the run's whole seconds, counted back from a second before the onset."""
    rate = run.rate_hz
    first = max(0, round((onset_ns - NOISE_S * NS - SETTLE_NS - run.start_ns) * rate / NS))
    last = min(len(run.samples), round((onset_ns - NS - run.start_ns) * rate / NS))
    size, settle = max(1, round(rate)), round(SETTLE_NS * rate / NS)
    count = (last - first - settle) // size
    if count <= 0:
        return []
    sos = butterworth(band_hz[0], min(band_hz[1], 0.4 * rate), rate, order)
    signal = SosFilter(sos).process(run.samples[first:last])
    means = np.abs(signal[len(signal) - count * size :]).reshape(count, size).mean(axis=1)
    return [float(mean) for mean in means]


def _dominant_hz(signal: np.ndarray[tuple[int], np.dtype[np.float64]], rate_hz: float) -> float:
    spectrum = np.abs(np.fft.rfft(signal * np.hanning(len(signal))))
    return float(np.argmax(spectrum[1:]) + 1) * rate_hz / len(signal)
