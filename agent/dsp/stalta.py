"""Recursive STA/LTA, the ratio of a short to a long exponential average of the signal's energy; triggers from it.

``sta += (energy - sta) / nsta`` and likewise ``lta``, sample by sample: Withers et al. (1998), *A comparison of select
trigger algorithms for automated global seismic phase and event detection*, BSSA 88, 95-106; the first ``nlta`` ratios
are 0 while the long average fills. Equal to ``obspy.signal.trigger.recursive_sta_lta`` up to rounding (tested), except
where the long average is zero: there the ratio is 0 instead of NaN.

Both averages are weighted running sums. Divided by the decay since the start of a chunk, the weights no longer depend
on the sample asked for, so that a plain cumulative sum gives a whole chunk. Chunks are aligned to the last restart and
the sum runs in the order of the samples, so no result depends, to the bit, on how the stream was cut into packets.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from agent.errors import DataError

Array = NDArray[np.float64]
_SPAN = 32
"""Chunks taken at once: with 1000 samples a chunk the work fits a second-level cache."""
_MAX_CHUNK = 1000
_MAX_SCALE = 1e60
"""Largest weight inside a chunk: with energies up to 1e200 no sum overflows."""
_FLOOR = 1e-200
"""Least long average. It keeps a dead channel at ratio 0, and no decay within a chunk makes it a denormal number."""


@lru_cache(maxsize=32)
def _tables(nsta: int, nlta: int, chunk: int) -> tuple[Array, Array, Array, Array]:
    """Of a chunk, for all averages of these lengths: the decay after each sample, the weights, the decay of the ratio,
    and what each sample leaves of itself at the chunk's end."""
    share = 1 / np.array([[nsta], [nlta]], dtype=np.float64)
    decay = (1 - share) ** np.arange(1, chunk + 1)
    remains = np.ascontiguousarray(share * (1 - share) ** np.arange(chunk - 1, -1, -1))
    return decay, share / decay, decay[0] / decay[1], remains


class RecursiveStaLta:
    """One pair of averages, carried over calls. Not thread-safe."""

    def __init__(self, nsta: int, nlta: int, *, report: int | None = None) -> None:
        """``nsta`` and ``nlta``: lengths of the averages in samples. ``report``: write down in ``levels`` what they
        were, at least every so many samples; whoever asked for it empties the list.

        Raises:
            DataError: not ``2 <= nsta < nlta``.
        """
        if not 2 <= nsta < nlta:
            raise DataError(
                f"STA/LTA averages of {nsta} and {nlta} samples are not usable",
                "the short one needs two samples or more, the long one more than that",
            )
        self._chunk = min(_MAX_CHUNK, int(math.log(_MAX_SCALE) / -math.log1p(-1 / nsta)), report or _MAX_CHUNK)
        self.levels: list[tuple[int, float, float]] | None = None if report is None else []
        """What was written down, oldest first: samples of a run, and the long average before and after it."""
        self._before, self._known = 0.0, 0
        """Long average at the beginning of the run that is not written down yet, and its samples."""
        self._decay, self._weight, self._ratio_decay, self._remains = _tables(nsta, nlta, self._chunk)
        self._whole_decay = (float(self._decay[0, -1]), float(self._decay[1, -1]))
        self._sums: Array | None = None
        """Weighted sums of the chunk's energies before each sample, as far as ``process`` took them: most averages are
        only followed, and need none."""
        # Energies that ``follow`` took and that no average has been asked for yet.
        self._waiting = np.empty(self._chunk)
        self._waits = 0
        self._nlta = nlta
        self._start = np.empty((2, 1))
        self.warming = nlta
        """Samples still to come before the ratio means something."""
        self._short = 0
        self.reset()

    @property
    def averages(self) -> tuple[float, float]:
        """The short and the long average after the last sample. To ask changes nothing."""
        return self._after(self._waiting[: self._waits])

    def _after(self, energy: Array) -> tuple[float, float]:
        """The averages after up to a chunk of energies that follow what was absorbed."""
        now, filled, n = self._start, self._filled, len(energy)
        if filled and self._sums is not None:
            now = (now + self._sums[:, filled : filled + 1]) * self._decay[:, filled - 1 : filled]
        sta, lta = now[:, 0].tolist()
        if n:
            sta_decay, lta_decay = self._decay[:, n - 1].tolist()
            sta_added, lta_added = (self._remains[:, self._chunk - n :] @ energy).tolist()
            sta, lta = sta * sta_decay + sta_added, lta * lta_decay + lta_added
        return sta, lta

    def cut(self) -> None:
        """End the run that is written down here."""
        self._catch_up()

    def reset(self) -> None:
        """Forget everything: the next sample is a new beginning and ``nlta`` ratios will be 0."""
        self._waits = 0
        self._restart(0.0, 0.0)
        self._before, self._known = 0.0, 0
        self.warming = self._nlta
        self._short = 0
        self._fresh = True

    def shorten(self, samples: int) -> None:
        """Let the ratio count after so many samples, once: an average that has filled in part is then scaled for the
        part that is missing. For a new average, before its first sample."""
        if 0 < samples < self.warming:
            self.warming = self._short = samples

    def bridge(self) -> None:
        """Go on after a short gap: the long average is kept and the short one restarts at its level, ratio 1."""
        self._catch_up()
        _, lta = self.averages
        if self._known:
            self._write_down(0, lta)
        self._restart(lta, lta)
        self._before, self._known = lta, 0

    def resume(self, sta: float, lta: float) -> None:
        """Go on from given averages, as filled ones: the next ratio counts."""
        self._waits = 0
        self._restart(sta, lta)
        self._before, self._known = lta, 0
        self.warming = 0
        self._fresh = False

    def process(self, energy: Array) -> Array:
        """Ratio ``[n]`` after each of the next samples' energies ``[n]`` (>= 0, finite)."""
        self._catch_up()
        n = len(energy)
        ratio = np.empty(n)
        energy = self._begin(energy)
        done = 0
        while done < n:
            if self._filled == 0 and n - done >= self._chunk:
                count = min(_SPAN, (n - done) // self._chunk)
                stop = done + count * self._chunk
                self._whole_chunks(energy[done:stop].reshape(count, -1), ratio[done:stop].reshape(count, -1))
            else:
                stop = min(n, done + self._chunk - self._filled)
                self._part_of_chunk(energy[done:stop], ratio[done:stop])
            done = stop
        if self.warming:
            cold = min(n, self.warming)
            ratio[:cold] = 0.0
            self.warming -= cold
        return ratio

    def follow(self, energy: Array) -> None:
        """Take the next samples' energies without computing ratios: far less work than ``process``."""
        if self._short and len(energy) >= self.warming:
            first, energy = energy[: self.warming], energy[self.warming :]
            short, self._short = self._short, 0
            self.follow(first)
            self._catch_up()
            sta, lta = self.averages
            self.resume(sta / self._filled_share(0, short), lta / self._filled_share(1, short))
        energy = self._begin(energy)
        n, chunk = len(energy), self._chunk
        self.warming = max(0, self.warming - n)
        done = 0
        while done < n:
            if self._waits == 0 and n - done >= chunk:
                stop = done + (n - done) // chunk * chunk
                self._absorb_chunks(energy[done:stop])
            else:
                stop = min(n, done + chunk - self._waits)
                self._waiting[self._waits : self._waits + stop - done] = energy[done:stop]
                self._waits += stop - done
                if self._waits == chunk:
                    self._catch_up()
            done = stop

    def _filled_share(self, row: int, samples: int) -> float:
        return -math.expm1(samples * math.log(float(self._decay[row, 0])))

    def _catch_up(self) -> None:
        waits, self._waits = self._waits, 0
        if waits:
            self._absorb(self._waiting[:waits])

    def _absorb(self, energy: Array) -> None:
        """Add up to a chunk of energies to the averages, without ratios."""
        sta, lta = self._after(energy)
        self._restart(sta, lta)
        self._write_down(len(energy), lta)

    def _absorb_chunks(self, energy: Array) -> None:
        """Do the same for whole chunks, by the same product stacked."""
        added = np.matmul(self._remains, energy.reshape(-1, self._chunk, 1))[:, :, 0].tolist()
        sta, lta = self.averages
        sta_decay, lta_decay = self._whole_decay
        after = []
        for sta_added, lta_added in added:
            sta, lta = _sound(sta * sta_decay + sta_added, lta * lta_decay + lta_added)
            after.append(lta)
        self._restart(sta, lta)
        self._write_down_chunks(after)

    def _write_down(self, samples: int, lta: float) -> None:
        """The long average after so many more samples, where the list is wanted."""
        if self.levels is None:
            return
        self.levels.append((samples + self._known, self._before, lta))
        self._before, self._known = lta, 0

    def _write_down_chunks(self, after: list[float]) -> None:
        """Compute the same after each of several whole chunks."""
        if self.levels is None:
            return
        self._write_down(self._chunk, after[0])
        self.levels += [(self._chunk, before, lta) for before, lta in itertools.pairwise(after)]
        self._before = after[-1]

    def _begin(self, energy: Array) -> Array:
        """The very first sample only sets the scene, as in ObsPy."""
        if self._fresh and len(energy):
            self._fresh = False
            energy = energy.copy()
            energy[0] = 0.0
        return energy

    def _restart(self, sta: float, lta: float) -> None:
        """Begin a chunk."""
        self._start[:, 0] = _sound(sta, lta)
        self._filled = 0

    def _part_of_chunk(self, energy: Array, ratio: Array) -> None:
        filled = self._filled
        until = filled + len(energy)
        if self._sums is None:
            self._sums = np.zeros((2, self._chunk + 1))
        sums = self._sums[:, filled : until + 1]
        np.multiply(energy, self._weight[:, filled:until], out=sums[:, 1:])
        np.add.accumulate(sums, axis=1, out=sums)
        sta, lta = sums[:, 1:] + self._start
        np.divide(sta, lta, out=ratio)
        ratio *= self._ratio_decay[filled:until]
        self._filled = until
        if self.levels is not None:
            self._known += len(energy)
        if self._filled == self._chunk:
            sta, lta = self.averages
            self._restart(sta, lta)
            self._write_down(0, lta)

    def _whole_chunks(self, energy: Array, ratio: Array) -> None:
        """``energy`` and ``ratio`` are ``[chunks, samples]``."""
        sums = np.multiply(energy, self._weight[:, None, :])
        np.add.accumulate(sums, axis=2, out=sums)
        sta, lta = self.averages
        sta_decay, lta_decay = self._whole_decay
        starts = []
        for sta_sum, lta_sum in zip(*sums[:, :, -1].tolist(), strict=True):
            starts.append((sta, lta))
            sta, lta = _sound((sta + sta_sum) * sta_decay, (lta + lta_sum) * lta_decay)
        self._restart(sta, lta)
        self._write_down_chunks([lta for _, lta in starts[1:]] + [lta])
        sums += np.array(starts).T[:, :, None]
        np.divide(sums[0], sums[1], out=ratio)
        ratio *= self._ratio_decay


def _sound(sta: float, lta: float) -> tuple[float, float]:
    """A short average decayed to nothing is nothing, as denormal numbers are slow; for the long one see ``_FLOOR``."""
    return sta if sta > _FLOOR else 0.0, lta if lta > _FLOOR else _FLOOR


class Bounds:
    """What the averages are at most and at least, by the energy of some samples at a time: tells where the ratio cannot
    reach a threshold, for far less work than the ratio itself."""

    def __init__(self, nsta: int, nlta: int, block: int, averages: tuple[float, float]) -> None:
        """``averages``: the short and the long one at the beginning."""
        self._shares = 1 / nsta, 1 / nlta
        self._block = block, (1 - 1 / nsta) ** block, (1 - 1 / nlta) ** block
        self._most, self._least = averages

    def reach(self, on: float, energies: list[float], count: int) -> list[bool]:
        """Whether the ratio could reach ``on`` in each of the next blocks with these energies, of ``count`` samples
        together; the last may be shorter."""
        found = []
        most, least = self._most, self._least
        short, long = self._shares
        block, short_decay, long_decay = self._block
        on *= 1 - 1e-9  # rounding
        for energy in energies:
            if count < block:
                short_decay, long_decay = (1 - short) ** count, (1 - long) ** count
            count -= block
            added = energy * short
            found.append(0 < most + added >= on * least * long_decay)
            most = most * short_decay + added
            least = (least + energy * long) * long_decay
        self._most, self._least = most, least
        return found


@dataclass(frozen=True, slots=True)
class Rise:
    """A trigger began at sample ``onset`` with this ratio."""

    onset: int
    ratio: float


@dataclass(frozen=True, slots=True)
class Fall:
    """The trigger that began at ``onset`` ended; ``last`` is its last sample at or above the off threshold."""

    onset: int
    last: int
    peak: float


Change: TypeAlias = Rise | Fall


class _State(Enum):
    IDLE = auto()
    ON = auto()
    FALLING = auto()
    """Below off, but a new rise would still be part of the same trigger."""
    SPENT = auto()
    """Ended by its length: the ratio has to fall below the on threshold before it can rise again."""


class OnOff:
    """Thresholds with hysteresis over a numbered series that comes in pieces.

    On at the first ratio ``>= on``, over at the last one ``>= off``, as ``obspy.signal.trigger.trigger_onset``; with
    ``merge`` = 0 and ``longest`` as its ``max_len``, the results are the same (tested).
    """

    def __init__(self, on: float, off: float, merge: int, longest: int) -> None:
        """``merge``: samples after the end within which a rise continues the trigger; ``longest``: samples after the
        onset at which it ends in any case."""
        self._on, self._off = on, off
        self._merge, self._longest = merge, longest
        self._state = _State.IDLE
        self._onset = self._last = 0
        self._peak = self._newest = 0.0

    @property
    def is_idle(self) -> bool:
        """Whether no trigger goes on."""
        return self._state is _State.IDLE

    def feed(self, first: int, ratio: Array) -> Sequence[Change]:
        """Take the next ratios ``[n]``, the first with number ``first``. Numbers must rise; those left out are no
        data, see ``absent``. A ratio that is not finite is taken for 0."""
        largest = ratio[ratio.argmax()]
        if self._state is _State.IDLE and largest < self._on:
            return ()
        if not largest < np.inf:
            ratio = np.nan_to_num(ratio, nan=0.0, posinf=0.0, neginf=0.0)
        found: list[Change] = []
        at = 0
        while at < len(ratio):
            if self._state is _State.IDLE:
                at += self._idle(first + at, ratio[at:], found)
            elif self._state is _State.ON:
                at += self._triggered(first + at, ratio[at:], found)
            elif self._state is _State.FALLING:
                at += self._falling(first + at, ratio[at:], found)
            else:
                at += _leading(ratio[at:] >= self._on)
                if at < len(ratio):
                    self._state = _State.IDLE
        return found

    def absent(self, first: int, count: int) -> Sequence[Change]:
        """There are no ratios for these samples; the same as ratios of zero."""
        found: list[Change] = []
        if self._state is _State.ON:
            self._state = _State.FALLING
        elif self._state is _State.SPENT:
            self._state = _State.IDLE
        if self._state is _State.FALLING and first + count > self._last_rise() + 1:
            self._end(found)
        return found

    def flush(self) -> Sequence[Change]:
        """The series ends: so does a trigger."""
        found: list[Change] = []
        if self._state in {_State.ON, _State.FALLING}:
            self._end(found)
        self._state = _State.IDLE
        return found

    def _idle(self, first: int, ratio: Array, found: list[Change]) -> int:
        quiet = _leading(ratio < self._on)
        if quiet < len(ratio):
            self._state = _State.ON
            self._onset = first + quiet
            self._peak = float(ratio[quiet])
            found.append(Rise(self._onset, self._peak))
        return quiet

    def _triggered(self, first: int, ratio: Array, found: list[Change]) -> int:
        high = _leading(ratio >= self._off)
        allowed = self._onset + self._longest + 1 - first
        inside = min(high, allowed)
        if inside:
            self._peak = max(self._peak, float(ratio[:inside].max()))
            self._newest = float(ratio[inside - 1])
            self._last = first + inside - 1
        if high > allowed:
            self._end(found)
            if self._newest >= self._on:
                self._state = _State.SPENT
        elif high < len(ratio):
            self._state = _State.FALLING
        return inside

    def _falling(self, first: int, ratio: Array, found: list[Change]) -> int:
        open_for = max(0, self._last_rise() + 1 - first)
        quiet = _leading(ratio[:open_for] < self._on)
        if quiet < min(open_for, len(ratio)):
            self._state = _State.ON
        elif open_for < len(ratio):
            self._end(found)
        return quiet

    def _last_rise(self) -> int:
        """Number of the last sample at which a rise continues the trigger."""
        return min(self._last + self._merge, self._onset + self._longest)

    def _end(self, found: list[Change]) -> None:
        found.append(Fall(self._onset, self._last, self._peak))
        self._state = _State.IDLE


def _leading(condition: NDArray[np.bool_]) -> int:
    """How many values at the beginning are true."""
    if len(condition) == 0:
        return 0
    first_false = int(condition.argmin())
    return first_false if not condition[first_false] else len(condition)
