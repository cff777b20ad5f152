"""Numbers about a signal that an operator reads: how strong, and at which frequency."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from agent.dsp.sos import SosFilter, butterworth
from agent.types import NS, Segment

SETTLE_NS = 5 * NS
"""Signal before the measured span that lets the band-pass settle."""


def measure(
    runs: Iterable[Segment], band_hz: tuple[float, float], order: int, span_ns: tuple[int, int]
) -> tuple[float, float | None]:
    """Peak amplitude (counts) and frequency of the spectral maximum (Hz) in ``span_ns``, band-passed.

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


def _dominant_hz(signal: np.ndarray[tuple[int], np.dtype[np.float64]], rate_hz: float) -> float:
    spectrum = np.abs(np.fft.rfft(signal * np.hanning(len(signal))))
    return float(np.argmax(spectrum[1:]) + 1) * rate_hz / len(signal)
