"""What the streaming signal processing costs, against ObsPy's batch functions on the same day of data.

    python bench/dsp.py [--hours 24] [--folder /tmp/talus-bench]

Samples are in memory on both sides: this is continuity, ring buffers, band-pass, STA/LTA and triggers, without files,
windows and messages (bench/replay.py has those). Goals: at most 40 us a packet of 1 s; long packets at half the speed
of ObsPy's batch band-pass and ``recursive_sta_lta`` or more; the same triggers, sample for sample. One core, processor
time, the two sides in turns and the best of each, so that what else the machine does counts for neither.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from support import make_day, on_one_core, row

on_one_core()

import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from agent.config.station import TriggerConfig  # noqa: E402
from agent.detect.station import INSPECTED_NS  # noqa: E402
from agent.dsp.continuity import Continuity  # noqa: E402
from agent.dsp.detector import Detector  # noqa: E402
from agent.dsp.hearing import Hearing  # noqa: E402
from agent.dsp.plausible import inspect  # noqa: E402
from agent.dsp.ring import RingBuffer  # noqa: E402
from agent.dsp.sos import SosFilter, butterworth  # noqa: E402
from agent.dsp.stalta import RecursiveStaLta  # noqa: E402
from agent.types import NS, SampleBlock, StationId, StreamId, TriggerOff, TriggerOn  # noqa: E402

RATE_HZ = 100.0
RING_S = 240.0
T0 = 1_772_323_200 * NS
STATION = StationId("XX", "DAY", "00", "HH")
Channels = dict[str, NDArray[np.int32]]


def in_packets(channels: Channels, size: int) -> list[SampleBlock]:
    n = len(channels["Z"])
    streams = {name: StreamId(STATION, name) for name in channels}
    return [
        SampleBlock(streams[name], T0 + first * 10_000_000, RATE_HZ, samples[first : first + size])
        for first in range(0, n, size)
        for name, samples in channels.items()
    ]


class Unheard(Hearing):
    """Takes no note of anything."""

    def begin(self, time_ns: int, rate_hz: float, high_hz: float, *, whole: bool = False) -> None:
        pass

    def alive(self, time_ns: int, letters: frozenset[str]) -> None:
        pass

    def triggered(self, time_ns: int, *, on: bool) -> None:
        pass

    def levels(self, letter: str, start_ns: int, levels: object) -> None:
        pass

    def close(self, time_ns: int) -> None:
        pass


def stream(trigger: TriggerConfig, blocks: list[SampleBlock], *, hearing: bool = True) -> list[TriggerOn | TriggerOff]:
    """What a station does with its packets before any event; ``hearing``: it also notes what it could have heard, and
    looks at the raw samples now and then."""
    continuity, detector = Continuity(), Detector(STATION, trigger)
    if not hearing:
        detector.hearing = Unheard(trigger)
    rings = {name: RingBuffer(RATE_HZ, RING_S) for name in "ENZ"}

    def look(until_ns: int) -> None:
        ends = {c: ring.segments(until_ns - INSPECTED_NS, until_ns) for c, ring in rings.items()}
        detector.hearing.inspected(inspect({c: runs[0].samples for c, runs in ends.items() if runs}))

    detector.hearing.look = look
    changes: list[TriggerOn | TriggerOff] = []
    for block in blocks:
        for piece in continuity.accept(block):
            rings[piece.stream.component].write(piece.start_ns, piece.samples)
            changes += detector.feed(piece)
    return changes + detector.flush()


def obspy_batch(trigger: TriggerConfig, channels: Channels) -> None:
    """Band-pass and STA/LTA of each component: the peer."""
    from obspy.signal.filter import bandpass
    from obspy.signal.trigger import recursive_sta_lta

    for samples in channels.values():
        filtered = bandpass(samples, trigger.low_hz, trigger.high_hz, RATE_HZ, corners=trigger.order)
        recursive_sta_lta(filtered, round(trigger.sta_s * RATE_HZ), round(trigger.lta_s * RATE_HZ))


def obspy_triggers(trigger: TriggerConfig, channels: Channels) -> list[tuple[int, int]]:
    """ObsPy's triggers on the vector sum of the components as the detector filters them."""
    from obspy.signal.trigger import recursive_sta_lta, trigger_onset

    sos = butterworth(trigger.low_hz, trigger.high_hz, RATE_HZ, trigger.order)
    energy = sum(SosFilter(sos).process(samples) ** 2 for samples in channels.values())
    ratio = recursive_sta_lta(np.sqrt(energy), round(trigger.sta_s * RATE_HZ), round(trigger.lta_s * RATE_HZ))
    longest = round(trigger.max_duration_s * RATE_HZ)
    return [(int(a), int(b)) for a, b in trigger_onset(ratio, trigger.on, trigger.off, max_len=longest)]


def cost(call: Callable[[], object]) -> float:
    started = time.process_time()
    call()
    return time.process_time() - started


def in_turns(turns: int, *calls: Callable[[], object]) -> list[float]:
    """The best processor seconds of each call."""
    return [min(times) for times in zip(*([cost(call) for call in calls] for _ in range(turns)), strict=True)]


def parts(channels: Channels) -> None:
    """A packet of 1 s through each part alone."""
    cuts = [channels["Z"][first : first + 100] for first in range(0, 200_000, 100)]
    energies = [cut.astype(np.float64) ** 2 for cut in cuts]
    band_pass, stalta, ring = (
        SosFilter(butterworth(1, 20, RATE_HZ, 4)),
        RecursiveStaLta(100, 3000),
        RingBuffer(100.0, 240.0),
    )
    calls: dict[str, Callable[[], object]] = {
        "band-pass": lambda: [band_pass.process(cut) for cut in cuts],
        "STA/LTA, with the ratio": lambda: [stalta.process(energy) for energy in energies],
        "STA/LTA, averages only": lambda: [stalta.follow(energy) for energy in energies],
        "ring buffer": lambda: [ring.write(T0 + i * NS, cut) for i, cut in enumerate(cuts)],
    }
    for name, seconds in zip(calls, in_turns(10, *calls.values()), strict=True):
        row(f"  a packet of 1 s: {name}", f"{seconds / len(cuts) * 1e6:.1f} us")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "talus-bench")
    args = parser.parse_args()
    import obspy

    files = make_day(args.folder / f"day-{args.hours:g}h", args.hours)
    channels = {c: obspy.read(str(file))[0].data.astype(np.int32) for c, file in zip("ENZ", files, strict=True)}
    seconds = len(channels["Z"]) / RATE_HZ
    vector = TriggerConfig(merge_s=0.0)
    coincidence = vector.model_copy(update={"combine": "coincidence"})

    found = [change for change in stream(vector, in_packets(channels, 100)) if isinstance(change, TriggerOff)]
    spans = [(round((f.onset_ns - T0) / 10_000_000), round((f.off_ns - T0) / 10_000_000)) for f in found]
    expected = obspy_triggers(vector, channels)
    row("triggers, packets of 1 s / ObsPy's on the same filtered data", f"{len(spans)} / {len(expected)}",
        "equal", spans == expected)  # fmt: skip

    for name, trigger in (("vector", vector), ("coincidence", coincidence)):
        small = in_packets(channels, 100)
        (best,) = in_turns(2, lambda trigger=trigger, small=small: stream(trigger, small))
        each = best / len(small) * 1e6
        row(f"{name}, packets of 1 s", f"{each:.1f} us a packet", "<= 40 us", each <= 40)
        row("", f"{seconds / best:,.0f} x real time")
    parts(channels)
    hour = {name: samples[:360_000] for name, samples in channels.items()}
    for length_s in (1, 60):
        blocks = in_packets(hour, length_s * 100)
        with_it, without = in_turns(
            15,
            lambda blocks=blocks: stream(vector, blocks),
            lambda blocks=blocks: stream(vector, blocks, hearing=False),
        )
        share = with_it / without - 1
        row(f"noting what could be heard adds, packets of {length_s} s", f"{share:.1%}", "<= 5 %", share <= 0.05)
    detector = Detector(STATION, vector)
    for block in in_packets(hour, 100):
        detector.feed(block)
    (worked,) = in_turns(1, lambda: detector.hearing.steps)
    (asked,) = in_turns(5, lambda: [detector.hearing.figures() for _ in range(100)])
    row("  worked up in the report's thread, 10 s of data", f"{worked / 360 * 1e6:.0f} us")
    row("  and put into a report, one in 10 s of real time", f"{asked / 100 * 1e6:.0f} us")

    for name, trigger in (("vector", vector), ("coincidence", coincidence)):
        for length_s in (60, 3600, round(seconds)):
            blocks = in_packets(channels, length_s * 100)
            ours, batch = in_turns(
                5, lambda trigger=trigger, blocks=blocks: stream(trigger, blocks), lambda: obspy_batch(vector, channels)
            )
            row(f"{name}, packets of {length_s} s against ObsPy's batch ({seconds / batch:,.0f} x)",
                f"{seconds / ours:,.0f} x, {batch / ours:.2f}", ">= 0.5", batch / ours >= 0.5)  # fmt: skip


if __name__ == "__main__":
    main()
