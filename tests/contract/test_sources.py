"""What every source that can resume must hold: nothing lost, nothing asked for twice in full, memory bounded.

A new source needs one more ``Rig``. Each has several places (servers, stations, files), which must not wait for each
other. Second ``k`` of every channel is one packet, whose samples are ``100 k`` to ``100 k + 99``.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
from broker_support import wait_for
from seedlink_server import SeedLinkServer, made
from seedlink_support import START_NS, request, source_of, streaming

from agent.sources import Resumable
from agent.sources.folder import FolderSource
from agent.sources.in_flight import InFlight
from agent.types import NS, SampleBlock, StreamId

STATIONS, COMPONENTS = ("XX_A", "XX_B"), "NZ"
CHANNELS = [f"{station.replace('_', '.')}.00.HH{component}" for station in STATIONS for component in COMPONENTS]
TWICE = 4
"""Packets of a channel that may come a second time, where only a time can be asked for."""


def record(channel: str, k: int) -> bytes:
    network, station, location, code = channel.split(".")
    name = f"FDSN:{network}_{station}_{location}_{'_'.join(code)}"
    (one,) = made(name, START_NS + k * NS, np.arange(100 * k, 100 * k + 100))
    return one


class Rig(Protocol):
    """One implementation with its outside: ``channels`` says what it gives, grouped by place."""

    channels: Sequence[Sequence[str]]

    def feed(self, first: int, last: int) -> None:
        """Make these seconds of all channels available."""
        ...

    def source(self) -> Any:
        """A new source on the same state; it is both ``Source`` and ``Resumable``."""
        ...

    def started(self, runs: int) -> None:
        """Wait until the source of this run is ready for data."""
        ...


class SeedLinkRig:
    """Two servers with two stations each, of the same names: four places. As ringserver, a server reads from one place
    for all of its stations, so that it is one place."""

    def __init__(self, folder: Path, stack: ExitStack, protocol: str, *, ringserver: bool = False) -> None:
        self.protocol, self.state = protocol, folder / "state"
        self.servers = [stack.enter_context(SeedLinkServer(ringserver=ringserver)) for _ in range(2)]
        self.channels = [
            [f"{server}/{station.replace('_', '.')}.00.HH{c}" for c in COMPONENTS]
            for server in range(2)
            for station in STATIONS
        ]
        for server in self.servers:
            server.feed(record(channel, 0) for channel in CHANNELS)

    def feed(self, first: int, last: int) -> None:
        for server in self.servers:
            for k in range(first, last):
                server.feed(record(channel, k) for channel in CHANNELS)

    def source(self) -> Any:
        requests = tuple(request(station) for station in STATIONS)
        return source_of(*self.servers, requests=requests, state=self.state, protocol=self.protocol)

    def started(self, runs: int) -> None:
        for server in self.servers:
            streaming(server, runs)

    def name(self, block: SampleBlock) -> str:
        ports = {str(server.port): number for number, server in enumerate(self.servers)}
        origin: Any = block.origin
        return f"{ports[origin.owner._name.rpartition(':')[2]]}/{block.stream.seed}"


class FolderRig:
    """A file for each station, with its channels mixed, in two folders."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "state.sqlite3"
        self.files = {station: folder / station / "data" for station in STATIONS}
        for file in self.files.values():
            file.parent.mkdir()
        self.channels = [[channel for channel in CHANNELS if channel[3] == station[3]] for station in STATIONS]

    def feed(self, first: int, last: int) -> None:
        for k in range(first, last):
            for station, channels in zip(STATIONS, self.channels, strict=True):
                with self.files[station].open("ab") as file:
                    file.write(b"".join(record(channel, k) for channel in channels))

    def source(self) -> Any:
        folders = [file.parent for file in self.files.values()]
        return FolderSource(folders, self.state, backlog_s=1e18, rescan_s=30.0, on_problem=print)

    def started(self, runs: int) -> None:
        pass

    def name(self, block: SampleBlock) -> str:
        return block.stream.seed


RIGS: dict[str, Callable[[Path, ExitStack], Any]] = {
    "seedlink 3": lambda folder, stack: SeedLinkRig(folder, stack, "3"),
    "seedlink 4": lambda folder, stack: SeedLinkRig(folder, stack, "4"),
    "ringserver 3": lambda folder, stack: SeedLinkRig(folder, stack, "3", ringserver=True),
    "ringserver 4": lambda folder, stack: SeedLinkRig(folder, stack, "4", ringserver=True),
    "folder": lambda folder, _: FolderRig(folder),
}


@pytest.fixture(params=RIGS)
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    with ExitStack() as stack:
        yield RIGS[request.param](tmp_path, stack)


class Run:
    """A source at work: what it gave, by channel, and by place."""

    def __init__(self, rig: Any) -> None:
        self.rig, self.source = rig, rig.source()
        self.blocks: list[SampleBlock] = []
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        self.blocks.extend(self.source.blocks())

    def by_channel(self) -> dict[str, list[SampleBlock]]:
        found = defaultdict(list)
        for block in self.blocks:
            found[self.rig.name(block)].append(block)
        return found

    def seconds(self) -> dict[str, list[int]]:
        """The packets of each channel, by their second, in the order in which they came."""
        return {name: [int(b.samples[0]) // 100 for b in blocks] for name, blocks in self.by_channel().items()}

    def wait(self, last: int) -> None:
        """Until every channel has come to second ``last - 1``."""
        channels = [channel for place in self.rig.channels for channel in place]
        wait_for(lambda: all(last - 1 in self.seconds().get(channel, ()) for channel in channels))

    def end(self) -> None:
        self.source.close()
        self._thread.join(60)
        assert not self._thread.is_alive(), "close() did not end blocks()"


@contextmanager
def run(rig: Any, last: int, first: int | None = None, runs: int = 1) -> Iterator[Run]:
    """A source that has come to second ``last - 1``; with ``first``, those from there on are fed while it runs."""
    it = Run(rig)
    try:
        rig.started(runs)
        if first is not None:
            rig.feed(first, last)
        it.wait(last)
        yield it
    finally:
        it.end()


def test_it_is_a_resumable_source(rig: Any) -> None:
    source = rig.source()
    assert isinstance(source, Resumable)
    assert callable(source.blocks)
    assert source.in_flight == 0


def test_what_is_done_with_does_not_come_again(rig: Any) -> None:
    """After a restart every channel goes on with what was not done with, without a gap."""
    with run(rig, 11, first=1) as first:
        for block in list(first.blocks):
            first.source.acknowledge(block)
        assert first.source.in_flight == 0
    rig.feed(11, 16)
    with run(rig, 16, runs=2) as second:
        pass
    for channel, seconds in second.seconds().items():
        assert seconds == list(range(seconds[0], 16)), channel
        assert 11 - TWICE <= seconds[0] <= 11, channel


def test_places_do_not_wait_for_each_other(rig: Any) -> None:
    """One channel of the first place is not done with: its place comes again from there on, no other does."""
    with run(rig, 31, first=1) as first:
        blocks = first.by_channel()
        stuck = rig.channels[0][0]
        for channel, its in blocks.items():
            for block in its[:5] if channel == stuck else its:
                first.source.acknowledge(block)
        assert 0 < first.source.in_flight <= len(rig.channels[0]) * 26
    rig.feed(31, 33)
    with run(rig, 33, runs=2) as second:
        pass
    seconds = second.seconds()
    assert seconds[stuck][0] <= 6
    assert set(seconds[stuck]) >= set(range(6, 33))
    for place in rig.channels[1:]:
        for channel in place:
            assert 31 - TWICE <= seconds[channel][0] <= 31, f"{channel} was asked for again because of {stuck}"


def test_the_order_in_which_channels_are_done_with_does_not_matter(rig: Any) -> None:
    """One channel of each place runs ahead of the other, then the other follows."""
    with run(rig, 11, first=1) as first:
        blocks = first.by_channel()
        for place in rig.channels:
            for block in blocks[place[1]]:
                first.source.acknowledge(block)
            for block in blocks[place[0]][:7]:
                first.source.acknowledge(block)
    with run(rig, 11, runs=2) as second:
        got = second.seconds()
        for place in rig.channels:
            assert got[place[0]][0] <= 8, "what was not done with is lost"
            assert got[place[0]][0] >= 8 - TWICE, "what was done with comes again"
            assert set(got[place[0]]) >= {8, 9, 10}
        for block in list(second.blocks):
            second.source.acknowledge(block)
    rig.feed(11, 13)
    with run(rig, 13, runs=3) as third:
        assert all(11 - TWICE <= seconds[0] <= 11 for seconds in third.seconds().values())


def test_what_was_not_done_with_comes_again(rig: Any) -> None:
    """Also that of the very first minutes, of which nothing was done with before the restart."""
    with run(rig, 6, first=1) as first:
        pass
    with run(rig, 6, runs=2) as second:
        pass
    for channel, seconds in first.seconds().items():
        assert set(second.seconds()[channel]) >= set(seconds)


def test_a_packet_stands_for_the_earlier_ones_of_its_channel(rig: Any) -> None:
    with run(rig, 11, first=1) as first:
        for blocks in first.by_channel().values():
            first.source.acknowledge(blocks[-1])
        assert first.source.in_flight == 0
    rig.feed(11, 12)
    with run(rig, 12, runs=2) as second:
        assert all(11 - TWICE <= seconds[0] <= 11 for seconds in second.seconds().values())


def test_what_is_done_with_after_the_end_counts(rig: Any) -> None:
    """The pipeline works on for a while after the source has ended."""
    with run(rig, 11, first=1) as first:
        pass
    for block in first.blocks:
        first.source.acknowledge(block)
    rig.feed(11, 12)
    with run(rig, 12, runs=2) as second:
        assert all(11 - TWICE <= seconds[0] <= 11 for seconds in second.seconds().values())


def test_blocks_of_others_are_ignored(rig: Any) -> None:
    foreign = SampleBlock(StreamId.parse("XX.A.00.HHZ"), START_NS + 100 * NS, 100.0, np.zeros(1, np.int32))
    with run(rig, 4, first=1) as first, run(rig, 4) if isinstance(rig, FolderRig) else ExitStack() as other:
        before = first.source.in_flight
        first.source.acknowledge(foreign)
        if isinstance(other, Run):
            first.source.acknowledge(other.blocks[-1])
        assert first.source.in_flight == before


# The part that they share.


def test_memory_of_packets_in_flight_is_bounded() -> None:
    """A disk that refuses for days: the oldest are forgotten, of the place that has most, and the rest goes on."""
    reached: list[tuple[str, int]] = []
    flight: InFlight[str, int] = InFlight("me", lambda place, at: reached.append((place, at)), limit=100)
    stream, samples = StreamId.parse("XX.A.00.HHZ"), np.zeros(1, np.int32)

    def send(place: str, position: int) -> SampleBlock:
        origin = flight.send(place, position, stream)
        return SampleBlock(stream, position, 100.0, samples, origin=origin)

    quiet = send("quiet", 7)
    blocks = [send("busy", k) for k in range(1000)]
    assert len(flight) == 100
    flight.acknowledge(blocks[10])
    assert reached == []
    flight.acknowledge(blocks[950])
    assert reached == [("busy", k) for k in range(901, 951)]
    flight.acknowledge(quiet)
    flight.acknowledge(blocks[999])
    assert reached[-1] == ("busy", 999)
    assert ("quiet", 7) in reached
    assert len(flight) == 0


def test_packets_without_samples_do_not_hold_up_a_place() -> None:
    reached: list[int] = []
    flight: InFlight[str, int] = InFlight("me", lambda _, at: reached.append(at))
    flight.send("file", 1, None)
    assert reached == [1]
    stream = StreamId.parse("XX.A.00.HHZ")
    origin = flight.send("file", 2, stream)
    flight.send("file", 3, None)
    assert reached == [1]
    flight.acknowledge(SampleBlock(stream, 0, 100.0, np.zeros(1, np.int32), origin=origin))
    assert reached == [1, 2, 3]
