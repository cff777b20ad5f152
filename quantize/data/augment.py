"""Training windows: every way of telling a class by its recording instead of its ground motion is taken away.

The classes of the training sources differ in component count, sampling rate, length, place of the onset and filling.
The counter-measures, each a function below, apply to all classes with the same probabilities:

==================  ===================================================================================================
artefact            counter-measure
==================  ===================================================================================================
component count     ``_components``: vertical copied to all inputs, vertical alone, one component missing, and
                    three-component versions made of verticals, so that neither one nor three components tell a class
sampling rate,      ``_band``: random high-pass and low-pass corners (down to 14 Hz, below every source's Nyquist
instrument          frequency), causal or zero-phase; the band of the neutral view among them, and the 2-8 Hz that one
                    source was filtered to by its makers
station, site       ``_colour``: a random smooth response over frequency
place of the onset  ``_place``: anywhere from 10 to 35 s into the window, or near the agent's own 20.48 s
record length       ``_cover``: the record is cut at random before and after the onset; one of a few seconds stands in
                    another record's quiet noise (``_embed``)
filling             the uncovered part is filled with noise made from the record's own background or left empty
amplitude           every component is scaled to its own maximum by the preparation
polarity            random sign
duration            mild stretching in time
noise level         ``_add_noise``: real noise of other records at a random level
window length       random end of the data, so that early verdicts are learned too
source              ``Sampler``: classes in fixed shares; sources by the root of their number of events, doubtful labels
                    less (``quantize.data.trust``)
==================  ===================================================================================================
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agent.dsp.window import Preparation
from agent.types import LABELS, WINDOW_ONSET, WINDOW_RATE_HZ, WINDOW_SAMPLES
from quantize.data.records import FULL_S, LENGTHS_S, Record
from quantize.data.signals import (
    SPAN,
    Signal,
    background,
    butterworth_response,
    inverse,
    random_phase_noise,
    transform,
    window,
)
from quantize.data.trust import trust
from quantize.data.views import NEUTRAL_BAND_HZ, evaluation_onset, main_component

SHARES = {"earthquake": 0.31, "blast": 0.18, "collapse": 0.01, "landslide": 0.26, "noise": 0.24}
"""Share of each class among the training windows. Collapse has one record: nothing can be learned from it, and a larger
share would only teach that record and raise the class everywhere."""

_BEFORE, _AFTER = 5000, 9500
"""Samples of a record before and after its onset that training uses; their sum stays below ``SPAN``."""
_MARGIN = 600
"""Samples of filling before the window, which settle the high-pass."""
_SHORT = 1500
"""Samples below which a record would be known by its length alone."""
_MAKERS_BAND_HZ = (2.0, 8.0)
_GRID_HZ = np.fft.rfftfreq(SPAN, 1 / WINDOW_RATE_HZ)
_KNOTS_HZ = (0.5, 1.0, 2.0, 3.5, 6.0, 10.0, 16.0, 25.0, 45.0)


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How often each counter-measure is applied (probabilities) and how strongly."""

    copy_vertical: float = 0.50
    only_vertical: float = 0.15
    drop_component: float = 0.15
    made_components: float = 0.35
    neutral_band: float = 0.35
    random_band: float = 0.50
    makers_band: float = 0.0
    colour: float = 0.0
    colour_db: float = 5.0
    """Standard deviation of the random response at each of its knots."""
    random_place: float = 0.60
    cut: float = 0.50
    fill_noise: float = 0.65
    truncate: float = 0.50
    add_noise: float = 0.45
    stretch: float = 0.30
    burst: float = 0.10


class Sampler:
    """Draws records: class by ``SHARES``, source by the root of its events, event evenly, record evenly.

    A source's noise that triggers counts as a source of its own, with twice its weight: it is what a station meets.
    """

    def __init__(self, records: Sequence[Record], *, doubt: bool = True) -> None:
        """``doubt``: doubtful labels count as little as ``quantize.data.trust`` says."""
        believed = [trust(record.row) if doubt else 1.0 for record in records]
        tree: dict[str, dict[tuple[str, bool], dict[str, list[int]]]] = defaultdict(
            lambda: defaultdict(lambda: defaultdict(list))
        )
        for index, record in enumerate(records):
            row = record.row
            tree[row.label][row.dataset, row.transient][row.event].append(index)
        self._members: list[NDArray[np.int64]] = []
        weights: list[float] = []
        total = sum(SHARES[label] for label in tree)
        for label, sources in tree.items():
            weighed = [
                (_source_weight(events, believed) * (2 if noisy else 1), events)
                for (_, noisy), events in sources.items()
            ]
            scale = sum(weight for weight, _ in weighed)
            for weight, events in weighed:
                event_sizes = {
                    event: len(members) ** 0.5 * max(believed[i] for i in members) for event, members in events.items()
                }
                total_size = sum(event_sizes.values())
                for event, members in events.items():
                    self._members.append(np.array(members))
                    share = event_sizes[event] / total_size
                    weights.append(SHARES[label] / total * weight / scale * share)
        self._cumulative = np.cumsum(weights) / np.sum(weights)

    def draw(self, rng: np.random.Generator) -> int:
        """Index of a record."""
        group = min(int(np.searchsorted(self._cumulative, rng.random())), len(self._members) - 1)
        return int(rng.choice(self._members[group]))


def _source_weight(events: dict[str, list[int]], believed: Sequence[float]) -> float:
    """Root of the number of events that are believed."""
    return float(sum(believed[members[0]] for members in events.values()) ** 0.5)


class Augmenter:
    """Makes training windows of the records it is given; noise to add comes from the same records."""

    def __init__(
        self, records: Sequence[Record], preparation: Preparation, augmentation: Augmentation | None = None
    ) -> None:
        self._records = records
        self._preparation = preparation
        self._p = augmentation or Augmentation()
        self._onsets = [evaluation_onset(record) for record in records]
        self._noise = [
            i
            for i, record in enumerate(records)
            if record.row.label == "noise" and not record.row.transient and record.data.shape[1] >= _SHORT
        ]

    def window(self, index: int, rng: np.random.Generator) -> NDArray[np.float32]:
        """One random window ``[3, 10240]`` of record ``index``."""
        p, record = self._p, self._records[index]
        onset = self._onsets[index]
        if record.row.label == "noise" and not record.row.transient:
            onset = int(rng.integers(record.data.shape[1] // 5, record.data.shape[1] * 4 // 5 + 1))
        first = max(0, onset - _BEFORE)
        x = record.data[:, first : onset + _AFTER]
        onset -= first
        rows, x = self._components(record, x, rng)
        if x.shape[1] < _SHORT and self._noise:
            x, onset = self._embed(x, rng)
        if rng.random() < p.stretch:
            x, onset = _stretch(x, onset, float(np.exp(rng.uniform(-0.18, 0.18))))
        spectra = transform(x)
        if rng.random() < p.add_noise and self._noise:
            spectra = self._add_noise(x, spectra, onset, rng)
        if p.colour and rng.random() < p.colour:
            spectra = spectra * _colour(p.colour_db, rng)
        response = self._band(rng)
        y = inverse(spectra if response is None else spectra * response, x.shape[1])
        if record.row.label == "noise" and rng.random() < p.burst:
            y = _add_burst(y, onset, rng)
        start, stop = self._cover(y.shape[1], onset, rng)
        place = self._place(rng)
        seconds = self._seconds(rng)
        with_noise = rng.random() < p.fill_noise
        sign = rng.choice((-1.0, 1.0))
        made: dict[int, tuple[int, Signal]] = {}
        first = onset - place - _MARGIN
        for channel in range(len(y)):
            covered = y[channel, start:stop]
            if with_noise:
                quiet = background(covered, onset - start if record.row.onset_ns is not None else None)
                full = random_phase_noise(quiet, WINDOW_SAMPLES + _MARGIN + 50, rng)
                low, high = max(start, first), min(stop, first + len(full))
                full[low - first : high - first] = y[channel, low:high]
                made[channel] = (first, sign * full)
            else:
                made[channel] = (start, sign * covered)
        ready = window(made, onset, seconds, self._preparation, place - WINDOW_ONSET)
        out = np.zeros((3, WINDOW_SAMPLES), dtype=np.float32)
        for row, source in enumerate(rows):
            if source is not None:
                out[row] = ready[source]
        return out

    def _components(
        self, record: Record, x: Signal, rng: np.random.Generator
    ) -> tuple[tuple[int | None, int | None, int | None], Signal]:
        """Which of the returned signals ``[1..3, n]`` feeds each input (None: zero), whatever the file holds."""
        p = self._p
        vertical = x[main_component(record)]
        choice = rng.random()
        if choice < p.copy_vertical:
            return (0, 0, 0), vertical[None]
        if choice < p.copy_vertical + p.only_vertical:
            return (None, None, 0), vertical[None]
        if all(record.present) and rng.random() >= p.made_components:
            three = x
        else:
            three = np.stack([_made_horizontal(vertical, rng), _made_horizontal(vertical, rng), vertical])
        rows: list[int | None] = [0, 1, 2]
        if rng.random() < p.drop_component:
            rows[rng.integers(3)] = None
        return (rows[0], rows[1], rows[2]), three

    def _band(self, rng: np.random.Generator) -> NDArray[np.complex64] | None:
        p, choice = self._p, rng.random()
        if choice < p.neutral_band:
            return butterworth_response(*NEUTRAL_BAND_HZ, int(rng.integers(2, 5)), bool(rng.random() < 0.5))
        if choice < p.neutral_band + p.random_band:
            low, high = (float(np.exp(rng.uniform(np.log(a), np.log(b)))) for a, b in ((0.4, 2.5), (14.0, 48.0)))
            return butterworth_response(low, high, int(rng.integers(2, 5)), bool(rng.random() < 0.5))
        if choice < p.neutral_band + p.random_band + p.makers_band:
            return butterworth_response(*_MAKERS_BAND_HZ, int(rng.integers(2, 5)), bool(rng.random() < 0.5))
        return None

    def _embed(self, x: Signal, rng: np.random.Generator) -> tuple[Signal, int]:
        """A record of a few seconds with soft ends in 100 s of another record's quiet noise, 6 to 30 dB below it; and
        where it begins."""
        other = self._records[int(rng.choice(self._noise))]
        quiet = other.data[main_component(other)][:2000]
        count, begin = x.shape[1], int(rng.uniform(2000, 4000))
        soft = np.minimum(1.0, np.minimum(np.arange(count), np.arange(count)[::-1]) / (0.15 * count))
        level = float(np.exp(rng.uniform(np.log(0.03), np.log(0.5))))
        long = np.stack([random_phase_noise(quiet - quiet.mean(), 10_000, rng) for _ in x])
        scale = np.std(x, axis=1, keepdims=True) / np.maximum(np.std(long, axis=1, keepdims=True), 1e-30)
        long *= (level * scale).astype(np.float32)
        long[:, begin : begin + count] += x * soft.astype(np.float32)
        return long, begin

    def _add_noise(
        self, x: Signal, spectra: NDArray[np.complex64], onset: int, rng: np.random.Generator
    ) -> NDArray[np.complex64]:
        """Add another record's quiet noise, continued to any length, at -26 to 0 dB of a third of the loudest second.

        Both levels are taken above 1 Hz: below it is microseism, which the preparation removes.
        """
        other = self._records[int(rng.choice(self._noise))]
        quiet = other.data[main_component(other)]
        begin = int(rng.integers(max(1, len(quiet) - 2000)))
        quiet = quiet[begin : begin + 2000]
        relative = float(np.exp(rng.uniform(np.log(0.05), np.log(1.0)))) / 3
        high_pass = butterworth_response(1.0, None, 4, True)
        for channel in range(len(x)):
            power = inverse(spectra[channel] * high_pass, x.shape[1]) ** 2
            loud = _root_of_loudest_second(power[onset : onset + 2000] if onset < len(power) - 200 else power)
            noise = random_phase_noise(quiet - quiet.mean(), x.shape[1], rng)
            spectrum = transform(noise)
            power_above = 2 * float(np.sum(np.abs(spectrum * high_pass) ** 2)) / (SPAN * len(noise))
            if power_above > 0:
                spectra[channel] += spectrum * np.float32(relative * loud / np.sqrt(power_above))
        return spectra

    def _cover(self, count: int, onset: int, rng: np.random.Generator) -> tuple[int, int]:
        if rng.random() >= self._p.cut:
            return 0, count
        before, after = int(rng.uniform(300, 3500)), int(rng.uniform(1000, 9000))
        start = int(np.clip(onset - before, 0, max(0, count - 1000)))
        return start, min(count, max(onset + after, start + 1000))

    def _place(self, rng: np.random.Generator) -> int:
        if rng.random() < self._p.random_place:
            return int(rng.uniform(1000, 3500))
        return WINDOW_ONSET + int(np.clip(rng.normal(0, 80), -300, 300))

    def _seconds(self, rng: np.random.Generator) -> float:
        if rng.random() >= self._p.truncate:
            return FULL_S
        if rng.random() < 0.5:
            return float(rng.choice(LENGTHS_S))
        return float(np.exp(rng.uniform(np.log(2.5), np.log(80.0))))


def _colour(db: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """A smooth random response over the frequencies of ``transform``, ``db`` decibels of standard deviation at each
    knot: another ground, another sensor."""
    gains = rng.normal(0, db, len(_KNOTS_HZ))
    smooth = np.interp(np.log(np.maximum(_GRID_HZ, 1e-3)), np.log(_KNOTS_HZ), gains)
    response: NDArray[np.float32] = (10 ** (smooth / 20)).astype(np.float32)
    return response


def _root_of_loudest_second(power: Signal) -> float:
    total = np.concatenate([[0.0], np.cumsum(power, dtype=np.float64)])
    return float(np.sqrt(max(0.0, float(np.max(total[100:] - total[:-100]))) / 100))


def _made_horizontal(vertical: Signal, rng: np.random.Generator) -> Signal:
    """A stand-in for a horizontal: the vertical through a random scattering response of up to a second."""
    decay = float(np.exp(rng.uniform(np.log(3), np.log(40))))
    response = rng.standard_normal(100).astype(np.float32) * np.exp(-np.arange(100) / decay).astype(np.float32)
    response[0] += np.float32(rng.normal(0, 2))
    made: Signal = inverse(transform(vertical) * transform(response), len(vertical))
    return made


def _stretch(x: Signal, onset: int, factor: float) -> tuple[Signal, int]:
    """Longer (``factor`` > 1) or shorter in time, the onset kept on its ground motion."""
    count = min(int(x.shape[1] * factor), _BEFORE + _AFTER + 1000)
    at = np.arange(count) / factor
    grid = np.arange(x.shape[1])
    stretched = np.stack([np.interp(at, grid, row) for row in x])
    return stretched.astype(np.float32), round(onset * factor)


def _add_burst(y: Signal, onset: int, rng: np.random.Generator) -> Signal:
    """A spike, step or short ringing pulse at the onset of a noise record: what a bad connector or a footstep makes."""
    count = int(rng.uniform(1, 60))
    t = np.arange(count)
    frequency = rng.uniform(2, 45) / 100
    pulse = np.exp(-t / max(1.0, count / 4)) * np.cos(2 * np.pi * frequency * t + rng.uniform(0, 2 * np.pi))
    amplitude = np.exp(rng.uniform(np.log(3), np.log(100))) * y.std(axis=1, keepdims=True)
    stop = min(onset + count, y.shape[1])
    out: Signal = y.copy()
    out[:, onset:stop] += (amplitude * pulse)[:, : stop - onset]
    return out


def batch(
    augmenter: Augmenter, sampler: Sampler, records: Sequence[Record], size: int, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """``size`` windows ``[size, 3, 10240]`` and their label indices."""
    drawn = [sampler.draw(rng) for _ in range(size)]
    return (
        np.stack([augmenter.window(index, rng) for index in drawn]),
        np.array([LABELS.index(records[index].row.label) for index in drawn], dtype=np.int64),
    )


def calibration_windows(
    records: Sequence[Record], preparation: Preparation, count: int, seed: int
) -> NDArray[np.float32]:
    """Windows ``[count, 3, 10240]`` of ``records`` (training split) to observe activation ranges on.

    Drawn as in training, partial windows and every class among them, but half of them as the station would see them:
    onset at its place, no filling, no added noise.
    """
    sampler, rng = Sampler(records), np.random.default_rng(seed)
    plain = Augmentation(
        copy_vertical=0.3,
        only_vertical=0.2,
        made_components=0.0,
        neutral_band=0.0,
        random_band=0.0,
        random_place=0.0,
        cut=0.0,
        fill_noise=0.0,
        add_noise=0.0,
        stretch=0.0,
        burst=0.0,
    )
    makers = (Augmenter(records, preparation), Augmenter(records, preparation, plain))
    return np.stack([makers[i % 2].window(sampler.draw(rng), rng) for i in range(count)])
