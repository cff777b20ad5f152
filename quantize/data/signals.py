"""Operations on 100 Hz records that the evaluation views and the augmentation share.

All spectra are those of a zero-padded record of ``SPAN`` samples, so that filters are tabulated once for one length.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import fft, signal

from agent.dsp.window import Preparation, prepare
from agent.types import NS, WINDOW_RATE_HZ, Segment

Signal = NDArray[np.float32]
Spectrum = NDArray[np.complex64]

SPAN = 16384
"""Length of every transform, samples (163.84 s): a window and a margin that keeps circular wrap-around out of it."""

_FREQUENCIES = fft.rfftfreq(SPAN, 1 / WINDOW_RATE_HZ)


def transform(x: Signal) -> Spectrum:
    """Spectrum of a record of at most ``SPAN`` samples."""
    spectrum: Spectrum = fft.rfft(x, SPAN)
    return spectrum


def inverse(spectrum: Spectrum, count: int) -> Signal:
    """The first ``count`` samples of a spectrum's signal."""
    back: Signal = fft.irfft(spectrum, SPAN)[..., :count]
    return back


def butterworth_response(
    low_hz: float | None, high_hz: float | None, order: int, zero_phase: bool
) -> NDArray[np.complex64]:
    """Frequency response of a high-pass at ``low_hz`` followed by a low-pass at ``high_hz`` (analogue prototypes).

    ``zero_phase`` gives the response of the forward-backward filter.
    """
    response = np.ones(len(_FREQUENCIES), dtype=np.complex128)
    denominator = _butterworth_polynomial(order)
    if low_hz is not None:
        with np.errstate(divide="ignore"):
            inverted = np.minimum(low_hz / np.maximum(_FREQUENCIES, 1e-6), 1e3)
        response /= np.polyval(denominator, -1j * inverted)
    if high_hz is not None:
        response /= np.polyval(denominator, 1j * _FREQUENCIES / high_hz)
    if zero_phase:
        response = np.abs(response) ** 2 + 0j
    return response.astype(np.complex64)


@lru_cache(maxsize=16)
def _butterworth_polynomial(order: int) -> NDArray[np.float64]:
    k = np.arange(1, order + 1)
    coefficients: NDArray[np.float64] = np.poly(np.exp(1j * np.pi * (2 * k + order - 1) / (2 * order))).real
    return coefficients


_LEAD = 100
"""Samples between what counts as background and the onset."""


def background(x: Signal, onset: int | None) -> Signal:
    """The stretch of a record that holds its background: what precedes the onset by one second or more, at most 20 s,
    where that is at least 3 s; otherwise the quietest 5 s."""
    if onset is not None and onset - _LEAD >= 300:
        return x[max(0, onset - _LEAD - 2000) : onset - _LEAD]
    width = min(500, len(x))
    energy = np.concatenate([[0.0], np.cumsum(x.astype(np.float64) ** 2)])
    start = int(np.argmin(energy[width:] - energy[:-width]))
    return x[start : start + width]


def random_phase_noise(quiet: Signal, count: int, rng: np.random.Generator) -> Signal:
    """Gaussian noise of ``count`` samples with the power spectrum and the root-mean-square of ``quiet``."""
    level = float(np.sqrt(np.mean(quiet.astype(np.float64) ** 2)))
    if level == 0.0:
        return np.zeros(count, dtype=np.float32)
    shape = np.abs(transform((quiet - quiet.mean()) * np.hanning(len(quiet)).astype(np.float32)))
    phases = rng.standard_normal(2 * len(shape), dtype=np.float32).view(np.complex64)
    noise = inverse(shape * phases, count)
    return (noise * (level / max(float(np.sqrt(np.mean(noise**2))), 1e-30))).astype(np.float32)


def fill(x: Signal, start: int, count: int, quiet: Signal, rng: np.random.Generator) -> Signal:
    """Samples ``start`` to ``start + count`` of a record; where it has none, noise made from its own background."""
    out = random_phase_noise(quiet, count, rng)
    low, high = max(start, 0), min(start + count, len(x))
    if low < high:
        out[low - start : high - start] = x[low:high]
    return out


def window(
    components: dict[int, tuple[int, Signal]], onset: int, seconds: float, preparation: Preparation, shift: int = 0
) -> NDArray[np.float32]:
    """The network's input ``[3, 10240]`` by the agent's own preparation.

    ``components`` maps an input row to (first sample, samples at 100 Hz). The onset stands at sample ``2048 + shift``
    of the window, and nothing later than ``seconds`` after it enters.
    """
    step = NS // WINDOW_RATE_HZ
    runs = {row: [Segment(first * step, float(WINDOW_RATE_HZ), x)] for row, (first, x) in components.items()}
    centre = (onset - shift) * step
    return prepare(runs, centre, seconds + shift / WINDOW_RATE_HZ, preparation).data


def strongest_onset(x: Signal) -> int:
    """Sample of the largest ratio of short-term to long-term power, 1-15 Hz: the onset where nobody picked one."""
    band = signal.butter(4, [1.0, 15.0], "bandpass", fs=WINDOW_RATE_HZ, output="sos")
    power = signal.sosfilt(band, x - x.mean()) ** 2
    short, long = WINDOW_RATE_HZ, round(min(20.0, len(x) / 400) * WINDOW_RATE_HZ)
    total = np.concatenate([[0.0], np.cumsum(power)])
    centre = np.arange(long, len(x) - short)
    before = (total[centre] - total[centre - long]) / long
    after = (total[centre + short] - total[centre]) / short
    return int(centre[np.argmax(after / (before + 1e-12 * power.max() + 1e-300))])
