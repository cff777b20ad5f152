"""Ways to go deaf, by severity: how many events are heard, what the agent says it could hear, and what its status is.

    python bench/hearing.py [--only WORD] [--seed N]

Every row is a station of three components at 100 samples a second in white noise of 200 counts: twenty minutes as it
should be, then an impairment that lasts while 50 events come, one in about a minute. An event is the reference event
(agent/dsp/reference.py), 15 times as large as the smallest that would have triggered before: that such an event is
heard in nine cases of ten is what OK stands for. It is heard when an event of the station begins within 1.5 s of it, in
the time that the packets claim.

By data time, through the same line and the same health report as at a station, without waiting. No row may have fewer
than 90 % heard and OK: the status is looked at every minute from ten minutes after the impairment began, and a row in
which it is OK for more than a tenth of that time, or at its end, must have 45 heard. Exit status 1 if one has not.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
# Rows share the cores, so the libraries must not.
os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

import numpy as np
from by_data_time import T0, Station
from numpy.typing import NDArray

from agent.config.station import TriggerConfig
from agent.dsp.reference import wavelet
from agent.types import NS

RATE_HZ = 100.0
SIZE = 100
RMS = 200.0
BEFORE_S = 1200
EVENTS, EVERY_S = 50, 61
AFTER_S = EVENTS * EVERY_S
LARGER = 15.0
NEAR_NS = round(1.5 * NS)
NEEDED = 0.9
SETTLED_S = 600
Counts: TypeAlias = NDArray[np.float64]
Packet: TypeAlias = "tuple[str, int, float, NDArray[np.generic]]"
"""Component, start, rate, samples."""


@dataclass
class Second:
    """One second of the impaired station: ``ground`` is what each component should record, in counts."""

    number: int
    ground: dict[str, Counts]
    rng: np.random.Generator

    @property
    def start_ns(self) -> int:
        return T0 + self.number * NS


Spoil: TypeAlias = "Callable[[Second], Iterator[Packet]]"


@dataclass(frozen=True)
class Row:
    kind: str
    severity: str
    spoil: Spoil
    trigger: dict[str, object] = field(default_factory=dict)


def plain(second: Second) -> Iterator[Packet]:
    for name, samples in second.ground.items():
        yield name, second.start_ns, RATE_HZ, whole(samples)


def whole(samples: Counts) -> NDArray[np.int32]:
    return np.rint(np.clip(samples, -8_388_608, 8_388_607)).astype(np.int32)


def changed(change: Callable[[str, Counts, Second], Counts | None]) -> Spoil:
    """Samples that are not as they should be; None: no packet."""

    def spoil(second: Second) -> Iterator[Packet]:
        for name, samples in second.ground.items():
            made = change(name, samples, second)
            if made is not None:
                yield name, second.start_ns, RATE_HZ, whole(made)

    return spoil


def stamped(stamp: Callable[[int, Second], int], pieces: int = 4) -> Spoil:
    """Packets of 1 / ``pieces`` s whose times are not what they should be."""

    def spoil(second: Second) -> Iterator[Packet]:
        size = SIZE // pieces
        for k in range(pieces):
            for name, samples in second.ground.items():
                start_ns = stamp(second.start_ns + k * NS // pieces, second)
                yield name, start_ns, RATE_HZ, whole(samples[k * size : (k + 1) * size])

    return spoil


def jitter(sigma_ms: float) -> Spoil:
    return stamped(lambda at_ns, second: at_ns + round(second.rng.normal(0, sigma_ms * 1e6)))


def rounded(step_ms: float) -> Spoil:
    step_ns = round(step_ms * 1e6)
    return stamped(lambda at_ns, second: (at_ns + step_ns // 2) // step_ns * step_ns)


def wobble(percent: float) -> Spoil:
    """A recorder that measures its own rate, packet by packet."""

    def spoil(second: Second) -> Iterator[Packet]:
        rate_hz = RATE_HZ * (1 + second.rng.normal(0, percent / 100))
        for name, samples in second.ground.items():
            yield name, second.start_ns, rate_hz, whole(samples)

    return spoil


def drift(ppm: float) -> Spoil:
    return stamped(lambda at_ns, second: at_ns + round((at_ns - T0 - BEFORE_S * NS) * ppm * 1e-6), pieces=1)


def gaps(every_s: float, length: int = 1, *, together: bool = True) -> Spoil:
    """``length`` seconds are missing, ``every_s`` on average; of each component by itself unless ``together``."""
    missing: dict[str, int] = {}

    def change(name: str, samples: Counts, second: Second) -> Counts | None:
        key = "all" if together else name
        if second.number >= missing.get(key, 0) and (name == "E" or not together) and second.rng.random() < 1 / every_s:
            missing[key] = second.number + length
        return None if second.number < missing.get(key, 0) else samples

    return changed(change)


def lost_samples(share: float) -> Spoil:
    """Packets that lack their last samples."""
    return changed(lambda name, x, second: x[: SIZE - int(SIZE * share)])


def bursts(every_s: int, factor: float = 300.0, length: int = 8) -> Spoil:
    return changed(lambda name, x, second: x * factor if second.number % every_s < length else x)


def spikes(every_s: int) -> Spoil:
    def change(name: str, samples: Counts, second: Second) -> Counts:
        made = samples.copy()
        if second.number % every_s == 0:
            made[50] = 8_388_607
        return made

    return changed(change)


def dead(components: str, value: float = 0.0) -> Spoil:
    return changed(lambda name, x, second: 0 * x + value if name in components else x)


def filled(seconds: int, every_s: int) -> Spoil:
    return changed(lambda name, x, second: 0 * x if second.number % every_s < seconds else x)


def disconnected(counts: float, components: str = "ENZ") -> Spoil:
    """The recorder's own noise alone."""
    return changed(lambda name, x, second: second.rng.normal(0, counts, len(x)) if name in components else x)


def held(samples: int) -> Spoil:
    """Each of so many samples comes as the first of them."""
    return changed(lambda name, x, second: np.repeat(x[::samples], samples)[:SIZE])


def two_recorders(second: Second) -> Iterator[Packet]:
    """Another recorder sends under the same name, and its packets come first."""
    for name, samples in second.ground.items():
        yield name, second.start_ns, RATE_HZ, whole(second.rng.normal(0, RMS, SIZE))
        yield name, second.start_ns, RATE_HZ, whole(samples)


def stated(rate_hz: float) -> Spoil:
    """A recorder that states another rate than it samples at."""

    def spoil(second: Second) -> Iterator[Packet]:
        for name, samples in second.ground.items():
            yield name, second.start_ns, rate_hz, whole(samples)

    return spoil


def absent(components: str) -> Spoil:
    return changed(lambda name, x, second: None if name in components else x)


def late(seconds: int) -> Spoil:
    """Component N comes so much later than the others."""
    waiting: list[Packet] = []

    def spoil(second: Second) -> Iterator[Packet]:
        for packet in plain(second):
            if packet[0] == "N":
                waiting.append(packet)
            else:
                yield packet
        if len(waiting) > seconds:
            yield waiting.pop(0)

    return spoil


def disordered(second: Second) -> Iterator[Packet]:
    """Every tenth second comes after the next one."""
    held = disordered.__dict__.setdefault("held", [])
    if second.number % 10 == 0:
        held += list(plain(second))
        return
    yield from plain(second)
    yield from held
    held.clear()


def jumps(every_s: int, by_s: float) -> Spoil:
    """The recorder's clock is set, forward and back in turns."""
    return stamped(lambda at_ns, s: at_ns + round(by_s * NS) * ((s.number // every_s) % 2), pieces=1)


def swell(counts: float) -> Spoil:
    t = np.arange(SIZE) / RATE_HZ
    return changed(lambda name, x, s: x + counts * np.sin(2 * np.pi * (s.number % 6 + t) / 6 + "ENZ".index(name)))


def not_finite(every_s: int) -> Spoil:
    def spoil(second: Second) -> Iterator[Packet]:
        for name, samples in second.ground.items():
            made = samples.astype(np.float32)
            if second.number % every_s == 0:
                made[30:60] = np.nan
            yield name, second.start_ns, RATE_HZ, made

    return spoil


def rows() -> Iterator[Row]:
    yield Row("none", "", plain)
    for ms in (1, 5, 10, 20, 50):
        yield Row("jitter of time stamps", f"{ms} ms", jitter(ms))
    for ms in (1, 100, 1000):
        yield Row("time stamps rounded to", f"{ms} ms", rounded(ms))
    for percent in (0.02, 0.5, 2.0):
        yield Row("rate measured anew, off by", f"{percent:g} %", wobble(percent))
    for ppm in (100, 500):
        yield Row("clock drifts", f"{ppm} ppm", drift(ppm))
    for every in (300, 60, 20, 5, 2):
        yield Row("gaps of 1 s, one in", f"{every} s", gaps(every))
    for every in (60, 20, 5):
        yield Row("the same, by component", f"{every} s", gaps(every, together=False))
    for every in (1200, 600, 200):
        yield Row("gaps of 60 s, one in", f"{every} s", gaps(every, 60))
    for share in (0.01, 0.1, 0.5):
        yield Row("packets lack their end", f"{share:.0%}", lost_samples(share))
    yield Row("samples that are not finite, every", "30 s", not_finite(30))
    for every in (1800, 600, 180, 60, 20):
        yield Row("bursts of 8 s, 300 times the noise, every", f"{every} s", bursts(every))
    for every in (600, 60, 10):
        yield Row("spikes to full scale, every", f"{every} s", spikes(every))
    yield Row("constant: zero", "E, N, Z", dead("ENZ"))
    yield Row("constant: full scale", "E, N, Z", dead("ENZ", 8_388_607))
    for components in ("E", "EN"):
        yield Row("constant: zero", ", ".join(components), dead(components))
    yield Row("constant, two components needed", "E", dead("E"), {"combine": "coincidence"})
    yield Row("constant, two components needed", "E, N", dead("EN"), {"combine": "coincidence"})
    for seconds, every in ((3, 10), (5, 20), (2, 30)):
        yield Row(f"gaps of {seconds} s filled with zeros, one in", f"{every} s", filled(seconds, every))
    for components in ("E", "EN", "ENZ"):
        yield Row("nothing comes of", ", ".join(components), absent(components))
    yield Row("copies", "N of E", changed(copied))
    for level in (10.0, 2.0, 0.5):
        yield Row("clipped at, times the noise", f"{level:g}",
                  changed(lambda name, x, s, level=level: np.clip(x, -level * RMS, level * RMS)))  # fmt: skip
    yield Row("gain too high, clips at, times the noise", "1",
              changed(lambda name, x, s: np.clip(x * 40_000, -8_000_000, 8_000_000)))  # fmt: skip
    for divisor in (50, 400, 4000):
        yield Row("gain too low, noise of", f"{RMS / divisor:g} counts", changed(lambda n, x, s, d=divisor: x / d))
    for factor in (3, 8, 12, 40):
        yield Row("noise grows", f"{factor}-fold", changed(louder(factor)))
    yield Row("one component 2000 times louder", "E", changed(lambda n, x, s: x * 2000 if n == "E" else x))
    yield Row("one component 2000 times quieter", "E", changed(lambda n, x, s: x / 2000 if n == "E" else x))
    for counts in (1, 3, 10, 30):
        yield Row("no sensor, the recorder's noise is", f"{counts} counts", disconnected(counts))
    yield Row("no sensor, the recorder's noise is", "3 counts, E", disconnected(3, "E"))
    for samples in (5, 20, 50):
        yield Row("each sample comes", f"{samples} times", held(samples))
    yield Row("two recorders under one name", "", two_recorders)
    for rate_hz in (50.0, 90.0, 200.0):
        yield Row("states another rate than 100 Hz", f"{rate_hz:g} Hz", stated(rate_hz))
    yield Row("swell below the band", "1e6 counts", swell(1e6))
    for seconds in (3, 20):
        yield Row("one component late", f"{seconds} s", late(seconds))
    yield Row("every tenth second out of order", "", disordered)
    for by_s in (0.5, 30.0):
        yield Row("clock set every 300 s, by", f"{by_s:g} s", jumps(300, by_s))
    yield Row("settings: on", "20", plain, {"on": 20.0})
    yield Row("settings: on", "400", plain, {"on": 400.0})
    yield Row("settings: on 1.1, off", "0.1", plain, {"on": 1.1, "off": 0.1})


_kept: dict[int, Counts] = {}


def copied(name: str, samples: Counts, second: Second) -> Counts:
    if name == "E":
        _kept.clear()
        _kept[second.number] = samples
    return _kept[second.number] if name == "N" else samples


def louder(factor: float) -> Callable[[str, Counts, Second], Counts]:
    """More noise, the events as they are."""
    return lambda name, x, s: x + s.rng.normal(0, RMS * np.sqrt(factor**2 - 1), len(x))


@dataclass
class Score:
    heard: int = 0
    looks: int = 0
    ok: int = 0
    status: str = ""
    codes: list[str] = field(default_factory=list)
    armed: float | None = None
    threshold: float | None = None
    usual: float | None = None

    @property
    def breaks(self) -> bool:
        """Whether fewer than promised are heard, and the status is OK all the same."""
        says_ok = self.status == "ok" or self.ok > 0.1 * self.looks
        return says_ok and self.heard < NEEDED * EVENTS


def play(row: Row, seed: int) -> Score:
    station, rng, score = Station(row.trigger), np.random.default_rng(seed), Score()
    settings = TriggerConfig(**row.trigger)  # type: ignore[arg-type]
    shape = wavelet(settings, RATE_HZ, settings.high_hz)
    amplitude = 0.0
    onsets: list[int] = []
    expected: dict[int, int] = {}
    for number in range(BEFORE_S + AFTER_S + 30):
        ground = {name: rng.normal(0, RMS, SIZE) for name in "ENZ"}
        if number == BEFORE_S:
            amplitude = LARGER * (station.figures().threshold or 4 * RMS)
        since = (number - BEFORE_S) % EVERY_S
        if number >= BEFORE_S and since == 0 and len(onsets) < EVENTS:
            onsets.append(number + int(rng.integers(5, EVERY_S - 10)))
        if onsets and 0 <= number - onsets[-1] < len(shape) // SIZE:
            at = (number - onsets[-1]) * SIZE
            ground = {name: samples + amplitude * shape[at : at + SIZE] for name, samples in ground.items()}
        second = Second(number, ground, rng)
        for name, start_ns, rate_hz, samples in (plain if number < BEFORE_S else row.spoil)(second):
            station.feed(name, samples, start_ns, rate_hz)
            if onsets and number == onsets[-1]:
                expected.setdefault(number, start_ns)
        station.wait(second.start_ns + NS)
        if number >= BEFORE_S + SETTLED_S and number % 60 == 0:
            score.looks += 1
            score.ok += station.report().status == "ok"
    found = np.array(sorted(station.onsets))
    times = [expected.get(at, T0 + at * NS) for at in onsets]
    score.heard = sum(bool(np.any(np.abs(found - at_ns) <= NEAR_NS)) for at_ns in times)
    figures, report = station.figures(), station.report()
    score.status, score.codes = report.status, sorted({reason.code for reason in report.reasons})
    one = report.hearing[0] if report.hearing else None
    score.armed = None if one is None else one.armed_10min
    score.threshold, score.usual = figures.threshold, figures.usual
    return score


def show(row: Row, score: Score) -> None:
    armed = "" if score.armed is None else f"{score.armed:.0%}"
    ratio = "" if not (score.threshold and score.usual) else f"{score.threshold / score.usual:.1f} x"
    often = "" if score.ok in (0, score.looks) else f" (OK in {score.ok} of {score.looks} looks)"
    said = f"{score.status:<10} {', '.join(score.codes)}{often}{'   BROKEN' if score.breaks else ''}"
    print(f"{row.kind:<42}{row.severity:<12}{score.heard:>3}/{EVENTS} {armed:>6} {ratio:>10} {said}", flush=True)


def play_row(number: int, seed: int) -> Score:
    """One row, in a process of its own."""
    return play(list(rows())[number], seed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", default="", help="rows whose kind contains this")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    print(f"{'impairment':<42}{'':<12}{'heard':>6} {'armed':>6} {'threshold':>10} {'status at the end':<10} reasons")
    started, broken = time.monotonic(), 0
    chosen = [(number, row) for number, row in enumerate(rows()) if args.only in row.kind]
    with ProcessPoolExecutor() as pool:
        scores = pool.map(play_row, [number for number, _ in chosen], [args.seed] * len(chosen))
        for (_, row), score in zip(chosen, scores, strict=True):
            broken += score.breaks
            show(row, score)
    print(f"{broken} rows have fewer than {NEEDED:.0%} heard and OK; {time.monotonic() - started:.0f} s")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
