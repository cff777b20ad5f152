"""What recorded data cost from the file to the message, on one core, each part beside ObsPy on the same samples.

    python bench/processing.py [reading] [detector] [line] [--hours 24] [--turns 5] [--folder DIR]

``reading``: the archive source, records as they are and packets of a second, beside ``read`` and ``Stream.slice``.
``detector``: continuity, ring buffers, band-pass, STA/LTA and triggers of samples in memory, beside ObsPy's batch
functions on all of it and a loop of scipy's filter with its state and ``recursive_sta_lta`` on packets; its triggers
are ObsPy's, sample for sample. ``line``: from the file to the messages, with windows, network and policy, beside
ObsPy's batch without any of these; the share of the slow trigger; and live packets whose components end at different
times.

Processor time, in turns and in an order that changes; medians, with least and most. Goals: at most 40 us a packet of
1 s and 25,000 x real time in the whole line; whole records at half the speed of ObsPy's batch.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from support import Spread, in_turns, make_day, on_one_core, ratio_of, row

on_one_core()

import numpy as np  # noqa: E402
import obspy  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from obspy.signal.filter import bandpass  # noqa: E402
from obspy.signal.trigger import recursive_sta_lta, trigger_onset  # noqa: E402
from scipy.signal import sosfilt  # noqa: E402

from agent.config.file import ClassifierConfig, TunablesConfig  # noqa: E402
from agent.config.station import SlowTriggerConfig, TriggerConfig  # noqa: E402
from agent.detect.look import INSPECTED_NS  # noqa: E402
from agent.dsp.continuity import Continuity  # noqa: E402
from agent.dsp.detector import Detector  # noqa: E402
from agent.dsp.hearing import Hearing  # noqa: E402
from agent.dsp.plausible import inspect  # noqa: E402
from agent.dsp.ring import RingBuffer  # noqa: E402
from agent.dsp.sos import SosFilter, butterworth  # noqa: E402
from agent.dsp.stalta import RecursiveStaLta  # noqa: E402
from agent.service.assemble import build_line  # noqa: E402
from agent.sources.archive import ArchiveSource  # noqa: E402
from agent.types import NS, Event, SampleBlock, StationId, StreamId, TriggerOff, TriggerOn  # noqa: E402

RATE_HZ = 100.0
T0 = 1_772_323_200 * NS
STATION = StationId("XX", "DAY", "00", "HH")
PARTS = ("reading", "detector", "line")
PEER_S = 600
"""Of the data that the peers that go packet by packet are given: they take long."""
Channels = dict[str, NDArray[np.int32]]
cpu = time.process_time


def against(name: str, ours: Spread, theirs: Spread, seconds: float, goal: float | None = None) -> None:
    """Our speed in times real time, and what it is of theirs."""
    share = theirs.median / ours.median
    met = None if goal is None else share >= goal
    row(name, f"{seconds / ours.median:,.0f} x, {share:.2f}", "" if goal is None else f">= {goal:g} of it", met)


# Reading


def reading(files: list[Path], hours: float, turns: int) -> None:
    def source(packet_s: float | None) -> None:
        for _ in ArchiveSource(files, packet_s, on_problem=print).blocks():
            pass

    def slices() -> None:
        stream = obspy.Stream([obspy.read(str(file))[0] for file in files])
        start = stream[0].stats.starttime
        for i in range(PEER_S):
            stream.slice(start + i, start + i + 1 - 1 / RATE_HZ)

    calls = {
        "records": partial(source, None),
        "packets": partial(source, 1.0),
        "read": lambda: [obspy.read(str(file)) for file in files],
    }
    t = in_turns(turns, cpu, **calls)
    [sliced] = in_turns(1, cpu, slices=slices).values()
    packets = 3 * 3600 * hours
    against("reading, records as they are, of ObsPy's read", t["records"], t["read"], hours * 3600)
    row(
        "reading, packets of 1 s",
        t["packets"].words(1e6 / packets, "us"),
        "<= 8 us",
        t["packets"].median * 1e6 <= 8 * packets,
    )
    each = (sliced.median - t["read"].median) / (3 * PEER_S) + t["read"].median / packets
    row("  ObsPy: read, and Stream.slice a second", f"{1e6 * each:,.0f} us a packet")


# Detector


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
    rings = {name: RingBuffer(RATE_HZ, 240.0) for name in "ENZ"}

    def look(until_ns: int) -> None:
        ends = {c: ring.segments(until_ns - INSPECTED_NS, until_ns) for c, ring in rings.items()}
        detector.hearing.inspected(inspect({c: runs[0].samples for c, runs in ends.items() if runs}))

    detector.hearing.look = look
    changes: list[TriggerOn | TriggerOff] = []
    for block in blocks:
        for piece in continuity.accept(block):
            rings[piece.stream.component].write(piece.start_ns, piece.samples)
            changes += detector.feed(piece, at_once=False)
    return changes + detector.flush()


def obspy_batch(trigger: TriggerConfig, channels: Channels) -> None:
    for samples in channels.values():
        filtered = bandpass(samples, trigger.low_hz, trigger.high_hz, RATE_HZ, corners=trigger.order)
        recursive_sta_lta(filtered, round(trigger.sta_s * RATE_HZ), round(trigger.lta_s * RATE_HZ))


def packet_loop(trigger: TriggerConfig, blocks: list[SampleBlock]) -> None:
    """What one writes with scipy and ObsPy for live packets: a filter that keeps its state, and STA/LTA of the last ten
    long averages anew with each packet, as ObsPy's keeps none."""
    sos = butterworth(trigger.low_hz, trigger.high_hz, RATE_HZ, trigger.order)
    sos, state = np.array(sos), {name: np.zeros((len(sos), 2)) for name in "ENZ"}
    kept = {name: np.zeros(0) for name in "ENZ"}
    length = round(10 * trigger.lta_s * RATE_HZ)
    for block in blocks:
        name = block.stream.component
        filtered, state[name] = sosfilt(sos, block.samples.astype(np.float64), zi=state[name])
        kept[name] = np.concatenate([kept[name], filtered])[-length:]
        if len(kept[name]) > trigger.lta_s * RATE_HZ:
            recursive_sta_lta(kept[name], round(trigger.sta_s * RATE_HZ), round(trigger.lta_s * RATE_HZ))


def obspy_triggers(trigger: TriggerConfig, channels: Channels) -> list[tuple[int, int]]:
    """ObsPy's triggers on the vector sum of the components as the detector filters them."""
    sos = butterworth(trigger.low_hz, trigger.high_hz, RATE_HZ, trigger.order)
    energy = sum(SosFilter(sos).process(samples) ** 2 for samples in channels.values())
    ratio = recursive_sta_lta(np.sqrt(energy), round(trigger.sta_s * RATE_HZ), round(trigger.lta_s * RATE_HZ))
    longest = round(trigger.max_duration_s * RATE_HZ)
    return [(int(a), int(b)) for a, b in trigger_onset(ratio, trigger.on, trigger.off, max_len=longest)]


def detector(files: list[Path], hours: float, turns: int) -> None:
    channels = {c: obspy.read(str(file))[0].data.astype(np.int32) for c, file in zip("ENZ", files, strict=True)}
    seconds = len(channels["Z"]) / RATE_HZ
    vector = TriggerConfig(merge_s=0.0)
    small = in_packets(channels, 100)
    found = [change for change in stream(vector, small) if isinstance(change, TriggerOff)]
    spans = [(round((f.onset_ns - T0) / 10_000_000), round((f.off_ns - T0) / 10_000_000)) for f in found]
    expected = obspy_triggers(vector, channels)
    row("triggers, packets of 1 s / ObsPy's on the same filtered data", f"{len(spans)} / {len(expected)}",
        "equal", spans == expected)  # fmt: skip
    few = small[: 3 * PEER_S]
    t = in_turns(max(1, turns // 2), cpu, ours=lambda: stream(vector, few), peer=lambda: packet_loop(vector, few))
    row("packets of 1 s: scipy's filter, ObsPy's STA/LTA", t["peer"].words(1e6 / len(few), "us"))
    row("  as fast as that is Talus", f"{ratio_of(t, 'peer', 'ours'):.1f} times")
    for name in ("vector", "coincidence"):
        trigger = vector.model_copy(update={"combine": name})
        t = in_turns(turns, cpu, ours=partial(stream, trigger, small))
        each = t["ours"].words(1e6 / len(small), "us")
        row(f"{name}, a packet of 1 s", each, "<= 40 us", t["ours"].median * 1e6 / len(small) <= 40)
        for length_s in (60, 3600):
            blocks = in_packets(channels, length_s * 100)
            t = in_turns(
                turns, cpu, ours=partial(stream, trigger, blocks), batch=partial(obspy_batch, vector, channels)
            )
            against(f"{name}, packets of {length_s} s, of ObsPy's batch", t["ours"], t["batch"], seconds, 0.5)
    of_parts(channels, turns)
    hour = {name: samples[:360_000] for name, samples in channels.items()}
    for length_s in (1, 60):
        blocks = in_packets(hour, length_s * 100)
        t = in_turns(
            3 * turns,
            cpu,
            heard=partial(stream, vector, blocks),
            unheard=partial(stream, vector, blocks, hearing=False),
        )
        share = t["heard"].median / t["unheard"].median - 1
        row(f"noting what could be heard adds, packets of {length_s} s", f"{share:.1%}", "<= 5 %", share <= 0.05)


def of_parts(channels: Channels, turns: int) -> None:
    """A packet of 1 s through each part alone."""
    cuts = [channels["Z"][first : first + 100] for first in range(0, 200_000, 100)]
    energies = [cut.astype(np.float64) ** 2 for cut in cuts]
    band_pass, stalta = SosFilter(butterworth(1, 20, RATE_HZ, 4)), RecursiveStaLta(100, 3000)
    ring = RingBuffer(100.0, 240.0)
    calls: dict[str, Callable[[], object]] = {
        "band-pass": lambda: [band_pass.process(cut) for cut in cuts],
        "STA/LTA, with the ratio": lambda: [stalta.process(energy) for energy in energies],
        "STA/LTA, averages only": lambda: [stalta.follow(energy) for energy in energies],
        "ring buffer": lambda: [ring.write(T0 + i * NS, cut) for i, cut in enumerate(cuts)],
    }
    for name, spread in in_turns(2 * turns, cpu, **calls).items():
        row(f"  a packet of 1 s: {name}", spread.words(1e6 / len(cuts), "us"))


# Line


def replay(files: list[Path], packet_s: float | None, found: dict[object, int], *, slow: bool = True) -> float:
    """Seconds from opening the files to the last message; ``found`` gets the number of events."""
    trigger = TriggerConfig(slow=SlowTriggerConfig(enabled=slow))
    line = build_line(TunablesConfig(trigger=trigger), ClassifierConfig(), "talus/v1")
    began = cpu()
    events = {
        output.id
        for block in ArchiveSource(files, packet_s, on_problem=print).blocks()
        for output in line.feed(block, 0).outputs
        if isinstance(output, Event)
    }
    events |= {output.id for output in line.finish(0).outputs if isinstance(output, Event)}
    found[packet_s, slow] = len(events)
    return cpu() - began


def obspy_files(files: list[Path]) -> None:
    """Reading, band-pass, STA/LTA and triggers of the whole day."""
    trigger = TunablesConfig().trigger
    for file in files:
        trace = obspy.read(str(file))[0]
        filtered = bandpass(trace.data, trigger.low_hz, trigger.high_hz, 100.0, corners=trigger.order)
        ratio = recursive_sta_lta(filtered, round(100 * trigger.sta_s), round(100 * trigger.lta_s))
        trigger_onset(ratio, trigger.on, trigger.off)


def staggered(files: list[Path], seconds: int) -> Iterator[SampleBlock]:
    """Live packets of a second or so, as a digitizer makes them: each component's end at times of its own."""
    for number, file in enumerate(files):
        trace = obspy.read(str(file))[0]
        stream = StreamId(STATION, "ENZ"[number])
        size, first = 97 + 5 * number, 0
        samples = trace.data[: seconds * 100].astype(np.int32)
        while first < len(samples):
            yield SampleBlock(stream, T0 + first * 10_000_000, RATE_HZ, samples[first : first + size])
            first += size


def line(files: list[Path], hours: float, turns: int) -> None:
    seconds, found = hours * 3600, dict[object, int]()
    calls: dict[str, Callable[[], object]] = {
        "second": partial(replay, files, 1.0, found),
        "without slow": partial(replay, files, 1.0, found, slow=False),
        "records": partial(replay, files, None, found),
        "minute": partial(replay, files, 60.0, found),
        "minute without slow": partial(replay, files, 60.0, found, slow=False),
        "obspy": partial(obspy_files, files),
    }
    t = in_turns(turns, cpu, **calls)
    events = found[1.0, True]
    speed = seconds / t["second"].median
    row(
        f"whole line, packets of 1 s ({events} events in {hours:g} h)",
        f"{speed:,.0f} x",
        ">= 25,000 x",
        speed >= 25_000,
    )
    row("  least and most", f"{seconds / t['second'].most:,.0f} to {seconds / t['second'].least:,.0f} x")
    row("ObsPy: read, band-pass, STA/LTA (peer)", f"{seconds / t['obspy'].median:,.0f} x")
    against("whole line, records as they are, of ObsPy's", t["records"], t["obspy"], seconds, 0.5)
    against("whole line, packets of 60 s, of ObsPy's", t["minute"], t["obspy"], seconds, 0.5)
    row("the slow trigger adds, packets of 1 s", f"{t['second'].median / t['without slow'].median - 1:.1%}", "<= 3 %",
        t["second"].median <= 1.03 * t["without slow"].median)  # fmt: skip
    row("  packets of 60 s", f"{t['minute'].median / t['minute without slow'].median - 1:.1%}")
    assert events == found[None, True] == found[60.0, True], "the packets changed the events"
    length = min(3600, int(seconds))
    live = sorted(staggered(files, length), key=lambda block: block.end_ns)
    level = in_packets(
        {b: obspy.read(str(f))[0].data[: length * 100].astype(np.int32) for b, f in zip("ENZ", files, strict=True)}, 100
    )
    trigger = TriggerConfig()
    t = in_turns(turns, cpu, live=partial(stream, trigger, live), level=partial(stream, trigger, level))
    each = t["live"].words(1e6 / len(live), "us")
    more = t["live"].median / len(live) / (t["level"].median / len(level))
    row("live packets that end at different times", each, "", None)
    row("  against packets that end together", f"{more:.2f} times a packet")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all)")
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "talus-bench")
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"no part is called {', '.join(sorted(unknown))}")
    files = make_day(args.folder / f"day-{args.hours:g}h", args.hours)
    for part in args.parts or PARTS:
        {"reading": reading, "detector": detector, "line": line}[part](files, args.hours, args.turns)


if __name__ == "__main__":
    main()
