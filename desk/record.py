"""A record of an event made ready to be seen: traces on one time axis, STA/LTA, and a spectrogram."""

from __future__ import annotations

import itertools
import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.config.station import HIGHEST_CORNER, TriggerConfig
from agent.dsp.sos import SosFilter, butterworth
from agent.errors import DataError
from agent.sources.records import StationRecord, read_records
from agent.types import COMPONENTS, NS, Segment

Floats = NDArray[np.float64]

USUAL = TriggerConfig()
"""The trigger of a station whose file changes nothing of it."""

LONGEST_S = 600.0
"""Of a record that is drawn."""
_COLUMNS, _ROWS = 600, 96
_RANGE_DB = 45.0
"""Below the strongest, what is black."""


@dataclass(frozen=True, slots=True)
class Trace:
    """One component, counts without their mean; NaN where nothing was recorded. ``start_s`` is after the onset."""

    name: str
    rate_hz: float
    start_s: float
    samples: Floats

    @property
    def times_s(self) -> Floats:
        """Seconds after the onset, one a sample."""
        times: Floats = self.start_s + np.arange(len(self.samples)) / self.rate_hz
        return times


@dataclass(frozen=True, slots=True)
class Spectrogram:
    """``decibels[row, column]``: power, row 0 the lowest frequency; columns from ``start_s`` to ``end_s``."""

    component: str
    start_s: float
    end_s: float
    top_hz: float
    decibels: Floats


def traces(path: Path, sensor: str, onset_ns: int) -> list[Trace]:
    """The components of a sensor in a file, Z first.

    Raises:
        DataError: the file holds nothing of the sensor.
    """
    records = read_records(path)
    chosen = next((record for record in records if str(record.station).startswith(sensor)), None)
    if chosen is None and len(records) == 1:
        chosen = records[0]
    if chosen is None:
        raise DataError(f"the record holds nothing of {sensor}", "fetch it again")
    return traces_of(chosen, onset_ns)


def traces_of(record: StationRecord, onset_ns: int) -> list[Trace]:
    """The components of a record, Z first."""
    return [_trace(record, row, onset_ns) for row in sorted(record.rows, reverse=True)]


def _trace(record: StationRecord, row: int, onset_ns: int) -> Trace:
    segments: Sequence[Segment] = record.rows[row]
    rate = segments[0].rate_hz
    begin_ns = segments[0].start_ns
    longest = round(LONGEST_S * rate)
    last = segments[-1]
    count = min(longest, round((last.start_ns - begin_ns) / NS * rate) + len(last.samples))
    samples = np.full(count, np.nan)
    for segment in segments:
        at = round((segment.start_ns - begin_ns) / NS * rate)
        part = segment.samples[: max(0, count - at)]
        samples[at : at + len(part)] = part
    samples -= np.nanmean(samples)
    return Trace(COMPONENTS[row], rate, (begin_ns - onset_ns) / NS, samples)


def band_passed(trace: Trace, trigger: TriggerConfig = USUAL) -> Trace:
    """The trace in the trigger's band; gaps are bridged by zeros and stay gaps.

    Raises:
        DataError: the trace has too few samples a second for the band.
    """
    high_hz = min(trigger.high_hz, HIGHEST_CORNER * trace.rate_hz / 2)
    sos = butterworth(trigger.low_hz, high_hz, trace.rate_hz, trigger.order)
    missing = np.isnan(trace.samples)
    filtered = SosFilter(sos).process(np.where(missing, 0.0, trace.samples))
    filtered = np.where(missing, np.nan, filtered)
    return Trace(trace.name, trace.rate_hz, trace.start_s, filtered)


def ratio(trace: Trace, sta_s: float = 1.0, lta_s: float = 30.0) -> Floats:
    """STA/LTA of the band-passed trace by two exponential averages; NaN until the long one has half of its length."""
    energy = np.nan_to_num(band_passed(trace).samples) ** 2
    short, long = (_average(energy, round(length * trace.rate_hz)) for length in (sta_s, lta_s))
    found: Floats = short / np.maximum(long, 1e-12)
    found[: round(lta_s / 2 * trace.rate_hz)] = np.nan
    return found


def _average(energy: Floats, length: int) -> Floats:
    # An exponential average as a filter of one pole, in blocks, so that it needs no loop over samples.
    keep = 1 - 1 / max(2, length)
    block = 4096
    powers = keep ** np.arange(1, block + 1)
    out = np.empty_like(energy)
    last = float(energy[: max(1, length)].mean())
    for begin in range(0, len(energy), block):
        part = energy[begin : begin + block]
        decay = powers[: len(part)]
        out[begin : begin + len(part)] = decay * (last + (1 - keep) * np.cumsum(part / decay))
        last = float(out[begin + len(part) - 1])
    return out


def spectrogram(trace: Trace, window_s: float = 2.0) -> Spectrogram:
    """Short-time Fourier transform of a trace, Hann windows of ``window_s``."""
    length = max(16, round(window_s * trace.rate_hz))
    samples = np.nan_to_num(trace.samples)
    if len(samples) < length:
        samples = np.pad(samples, (0, length - len(samples)))
    columns = min(_COLUMNS, max(2, len(samples) // max(1, length // 8)))
    starts = np.linspace(0, len(samples) - length, columns).astype(int)
    windows = np.lib.stride_tricks.sliding_window_view(samples, length)[starts]
    power = np.abs(np.fft.rfft(windows * np.hanning(length), axis=1)) ** 2
    top_hz = min(50.0, trace.rate_hz / 2)
    rows = power[:, 1 : 1 + max(2, round(top_hz / (trace.rate_hz / length)))]
    if rows.shape[1] > _ROWS:
        edges = np.linspace(0, rows.shape[1], _ROWS + 1).astype(int)
        rows = np.stack([rows[:, a:b].mean(axis=1) for a, b in itertools.pairwise(edges)], axis=1)
    decibels = 10 * np.log10(np.maximum(rows.T, 1e-12))
    return Spectrogram(trace.name, trace.start_s, trace.start_s + len(samples) / trace.rate_hz, top_hz, decibels)


def png(found: Spectrogram) -> bytes:
    """The spectrogram as a palette image, low frequencies below."""
    top = float(found.decibels.max())
    level = np.clip((found.decibels - top + _RANGE_DB) / _RANGE_DB, 0, 1)
    pixels = np.flipud(np.round(255 * level)).astype(np.uint8)
    height, width = pixels.shape
    lines = np.concatenate([np.zeros((height, 1), np.uint8), pixels], axis=1).tobytes()
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"PLTE", palette().tobytes()), (b"IDAT", zlib.compress(lines, 6)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, body) for kind, body in chunks)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def palette() -> NDArray[np.uint8]:
    """256 colours from dark to light that everybody can tell apart: rising brightness, blue to yellow."""
    stops = ((0, 8, 29), (20, 42, 90), (60, 80, 125), (122, 124, 118), (190, 172, 96), (255, 234, 130))
    place = np.linspace(0, len(stops) - 1, 256)
    parts = [np.interp(place, range(len(stops)), [stop[i] for stop in stops]) for i in range(3)]
    return np.round(np.stack(parts, axis=1)).astype(np.uint8)


def packed(uid: str, found: Sequence[Trace], marks: Sequence[dict[str, Any]], strip: Spectrogram | None) -> bytes:
    """The traces for a page: length of a JSON header, the header, then float32 samples, one component after another;
    the last is the STA/LTA of the first, by the usual lengths: a trigger that looks at all components has another."""
    shown = [(one, "counts") for one in found]
    first = found[0]
    shown.append((Trace(f"STA/LTA of {first.name}", first.rate_hz, first.start_s, ratio(first)), "ratio"))
    header: dict[str, Any] = {
        "id": uid,
        "marks": list(marks),
        "components": [
            {"name": one.name, "unit": unit, "rate": one.rate_hz, "start": one.start_s, "n": len(one.samples)}
            for one, unit in shown
        ],
        "spectrogram": None if strip is None else {"component": strip.component, "top_hz": strip.top_hz},
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    samples = b"".join(one.samples.astype("<f4").tobytes() for one, _ in shown)
    return struct.pack("<I", len(text)) + text + samples
