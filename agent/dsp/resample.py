"""Band-limited interpolation onto another time grid: no aliasing going down, no images going up.

Each output is a windowed-sinc sum over the input samples around it (Smith & Gossett 1984, "A flexible sampling-rate
conversion method"), evaluated at that output's own time, so any ratio and any sub-sample offset is served.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_LOBES = 12
"""Zero crossings on each side of the kernel."""
_BETA = 8.0
"""Kaiser window: about 80 dB of stop-band rejection."""
_ROLL_OFF = 0.9
"""Pass-band edge as a share of the lower Nyquist frequency; with 12 lobes the stop band begins near that frequency."""
_PHASES = 256
"""Sub-sample positions that kernels are tabulated for; half a step is 1/512 of a sample."""


def interpolate(x: Array, rate_hz: float, first_s: float, count: int, out_rate_hz: float) -> Array:
    """Values of ``x`` (``[n]``, its first sample at time 0) at times ``first_s + k / out_rate_hz``, ``k < count``."""
    kernels = _kernels(min(1.0, out_rate_hz / rate_hz) * _ROLL_OFF)
    taps = kernels.shape[1]
    half = taps // 2
    position = (first_s + np.arange(count) / out_rate_hz) * rate_hz
    step = np.rint(position * _PHASES).astype(np.int64)
    whole, phase = np.divmod(step, _PHASES)
    # Kernel tap j of output k falls on input sample whole[k] - half + 1 + j.
    low = int(whole[0]) - half + 1
    high = int(whole[-1]) + half + 1
    padded = _extended(x, low, high)
    spans = np.lib.stride_tricks.sliding_window_view(padded, taps)
    out = np.empty(count)
    rows = whole - whole[0]
    for p in np.unique(phase):
        chosen = phase == p
        out[chosen] = spans[rows[chosen]] @ kernels[p]
    return out


def _extended(x: Array, low: int, high: int) -> Array:
    """``x[low:high]`` where the ends stick out: point reflections of the signal about its end samples.

    A kernel that overhangs the record would otherwise see a step there, and its ringing could be the window's maximum.
    """
    n = len(x)
    index = np.arange(low, high)
    before, after = index < 0, index >= n
    mirrored = np.clip(np.where(before, -index, np.where(after, 2 * (n - 1) - index, index)), 0, n - 1)
    out: Array = x[mirrored]
    out[before] = 2 * x[0] - out[before]
    out[after] = 2 * x[-1] - out[after]
    return out


@lru_cache(maxsize=16)
def _kernels(cutoff: float) -> Array:
    """Table ``[phases, taps]``; ``cutoff`` is the pass-band edge as a share of the input's Nyquist frequency."""
    half = int(np.ceil(_LOBES / cutoff))
    offset = np.arange(-half + 1, half + 1)[None, :] - np.arange(_PHASES)[:, None] / _PHASES
    inside = np.clip(1 - (offset / half) ** 2, 0, None)
    kernel = np.sinc(offset * cutoff) * np.i0(_BETA * np.sqrt(inside)) * (np.abs(offset) <= half)
    # Unit gain at 0 Hz for every phase: a constant stays a constant, without ripple.
    return np.ascontiguousarray(kernel / kernel.sum(axis=1, keepdims=True))
