"""The two views in which figures are given.

*As recorded* is what ``talus classify`` makes of a file: its components, its own sampling rate, the onset at sample
2048. Such a figure proves little, because in the training sources the class can be told from the way of recording.

*Neutral* takes that away: the vertical alone, copied to the three inputs; 1-16 Hz at 100 Hz; the onset at a random
place 10-35 s into the window; uncovered parts filled with noise made from the record's own background. Claims are made
here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import signal

from agent.dsp.window import Preparation, prepare
from agent.types import NS, WINDOW_ONSET, WINDOW_RATE_HZ, WINDOW_SAMPLES
from quantize.data.records import Record, read_segments
from quantize.data.signals import Signal, background, fill, strongest_onset, window

ViewName: TypeAlias = Literal["neutral", "recorded"]
VIEWS: tuple[ViewName, ...] = ("neutral", "recorded")

NEUTRAL_BAND_HZ = (1.0, 16.0)
NEUTRAL_ONSET_S = (10.0, 35.0)
_MARGIN = 1000
"""Samples before and after the window that are prepared with it and settle the high-pass."""
_LONGEST = 15000
"""Samples of a record that can matter to a window."""


def main_component(record: Record) -> int:
    """The vertical, or the component that stands in for it where none was recorded."""
    return 2 if record.present[2] else record.present.index(True)


def evaluation_onset(record: Record) -> int:
    """The table's onset; for noise without one the middle of the record; else that of the strongest STA/LTA ratio."""
    if record.onset is not None:
        return record.onset
    if record.row.label == "noise":
        return int(record.data.shape[1] // 2)
    return strongest_onset(record.data[main_component(record)])


def neutral_windows(
    record: Record, lengths_s: Sequence[float], preparation: Preparation, seed: int
) -> NDArray[np.float32]:
    """Neutral view at each window length, ``[len(lengths_s), 3, 10240]``; place and filling depend on name and seed."""
    digest = hashlib.sha256(f"{seed}/{record.row.name}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    band = signal.butter(4, NEUTRAL_BAND_HZ, "bandpass", fs=WINDOW_RATE_HZ, output="sos")
    onset = evaluation_onset(record)
    first = max(0, onset - _LONGEST // 2)
    raw = record.data[main_component(record), first : onset + _LONGEST]
    x: Signal = signal.sosfiltfilt(band, raw - raw.mean()).astype(np.float32)
    place = round(rng.uniform(*NEUTRAL_ONSET_S) * WINDOW_RATE_HZ)
    start = onset - first - place - _MARGIN
    quiet = background(x, onset - first if record.row.onset_ns is not None else None)
    filled = fill(x, start, WINDOW_SAMPLES + 2 * _MARGIN, quiet, rng)
    vertical = {2: (0, filled)}
    windows = [window(vertical, place + _MARGIN, s, preparation, place - WINDOW_ONSET)[2] for s in lengths_s]
    return np.repeat(np.stack(windows)[:, None], 3, axis=1)


def recorded_windows(record: Record, lengths_s: Sequence[float], preparation: Preparation) -> NDArray[np.float32]:
    """What the agent would classify, from the file's own samples, at each window length: ``[len(lengths_s), 3,
    10240]``."""
    segments = read_segments(record.row)
    onset_ns = record.row.onset_ns
    if onset_ns is None:
        onset_ns = record.start_ns + evaluation_onset(record) * NS // WINDOW_RATE_HZ
    return np.stack([prepare(segments, onset_ns, s, preparation).data for s in lengths_s])


def view_windows(
    view: ViewName, record: Record, lengths_s: Sequence[float], preparation: Preparation, seed: int = 0
) -> NDArray[np.float32]:
    """``[len(lengths_s), 3, 10240]`` of either view."""
    if view == "neutral":
        return neutral_windows(record, lengths_s, preparation, seed)
    return recorded_windows(record, lengths_s, preparation)
