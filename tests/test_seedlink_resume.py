"""Going on after a lost connection, a restart, or a server that lost its buffer: nothing that is held is lost.

The servers are of two kinds: one that numbers each station's packets apart, as SeisComP does, and one that behaves as
ringserver 4.5.3 (``SeedLinkServer(ringserver=True)``). A real ringserver is used where there is one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from broker_support import wait_for
from ringserver_support import RingServer, needs_ringserver
from seedlink_server import SeedLinkServer, authority, made
from seedlink_support import (
    START_NS,
    Heard,
    Reception,
    configured,
    packets,
    receiving,
    request,
    server_at,
    source_of,
    streaming,
)

from agent.sources.in_flight import Origin
from agent.sources.seedlink.protocol import Beginning, Holding
from agent.sources.seedlink.resume import Cursor, Numbering, Past, Position, Progress, Reached, plan
from agent.sources.seedlink.source import SeedLinkSource
from agent.types import NS

both = pytest.mark.parametrize("protocol", ["3", "4"])
COMPONENTS = "ENZ"
REQUESTS = (request("XX_A"), request("XX_B"))


def site(number: int, first: int = 0, stations: str = "A", components: str = COMPONENTS) -> list[bytes]:
    """Packets of one second of every channel, in turn."""
    channels = [
        packets(number, first, station=f"XX_{station}", component=c) for station in stations for c in components
    ]
    return [packet for second in zip(*channels, strict=True) for packet in second]


def seconds(got: Reception) -> dict[str, list[int]]:
    """The packets of each channel in the order in which they came, by their second."""
    return {name: (samples[::100] // 100).tolist() for name, samples in got.samples().items()}


def in_order(got: Reception, begin: int, end: int) -> None:
    """Every channel has every second from ``begin`` to ``end``, each for the first time in order."""
    for name, found in seconds(got).items():
        first = list(dict.fromkeys(found))
        assert [second for second in first if second >= begin] == list(range(begin, end)), name


# A server that lost its buffer.


@both
@pytest.mark.parametrize("secured", [False, True])
def test_a_ringserver_that_lost_its_ring_is_asked_by_time(tmp_path: Path, protocol: str, secured: bool) -> None:
    """It does not announce TIME, and begins with its next packet if it is asked for a number that it does not have."""
    ca, context = authority(tmp_path)
    heard = Heard()
    with SeedLinkServer(ringserver=True, tls=context if secured else None) as server:
        server.feed(site(1))
        asked = server_at(server.port, protocol=protocol, ca=ca if secured else None)
        source = SeedLinkSource(configured(asked), tmp_path, on_problem=heard.append)
        with receiving(source) as got:
            streaming(server)
            server.feed(site(10, 1))
            got.wait(30)
            server.stop()
            server.number_from(1, forget=True)
            server.feed(site(8, 10))  # the feed sends once more what it had not been told of, then goes on
            server.start()
            wait_for(lambda: server.commands.count("END") == 2)
            server.feed(site(2, 18))
            wait_for(lambda: all(found[-1] == 19 for found in seconds(got).values()))
    in_order(got, 1, 20)
    assert heard.said("asking by time for XX_A", "the server holds its packets 1 to 25, not 33")


@both
@pytest.mark.parametrize("stations", ["A", "AB"])
@pytest.mark.parametrize("restart", [False, True])
def test_new_numbers_that_have_reached_the_old_ones_are_noticed(
    tmp_path: Path, protocol: str, stations: str, restart: bool
) -> None:
    """Then the number that follows ours is held and is another packet. Nothing is passed on before that is known: what
    is older would be dropped as late."""
    heard = Heard()
    requests = REQUESTS[: len(stations)]
    with SeedLinkServer(ringserver=True) as server:
        server.feed(site(1, stations=stations))
        source = source_of(server, requests=requests, state=tmp_path, heard=heard, protocol=protocol)
        got = Reception(source)
        try:
            streaming(server)
            server.feed(site(9, 1, stations=stations))
            got.wait(27 * len(stations))
            if restart:
                got.end()
            server.stop()
            server.number_from(1, forget=True)
            server.feed([*site(1, 9, stations=stations), *site(40, 10, stations=stations)])
            server.start()
            if restart:
                earlier, source = (
                    got,
                    source_of(server, requests=requests, state=tmp_path, heard=heard, protocol=protocol),
                )
                got = Reception(source)
                got.blocks[:0] = earlier.blocks
            wait_for(lambda: all(found[-1] == 49 for found in seconds(got).values()))
        finally:
            got.end()
    in_order(got, 1, 50)
    assert heard.said("goes on", "later than it was left") or heard.said("asking by time")


def test_a_gap_that_the_server_cannot_fill_is_told_with_its_length() -> None:
    heard = Heard()
    with SeedLinkServer(ringserver=True) as server:
        server.feed(site(1, components="Z"))
        with receiving(source_of(server, heard=heard)) as got:
            streaming(server)
            server.feed(site(10, 1, components="Z"))
            got.wait(10)
            server.stop()
            server.number_from(1, forget=True)
            server.feed(site(2, 21, components="Z"))
            server.start()
            wait_for(lambda: got.blocks[-1].samples[0] == 2200)
    assert heard.said("XX.A.00.HHZ: 11.00 s from 2023-11-14T22:13:31", "lost"), "10, and the first packet of the ring"


def test_a_server_that_begins_elsewhere_than_asked_for_is_not_asked_for_ever() -> None:
    """A true gap after a reconnection: asked once more by time, then taken as it is."""
    heard = Heard()
    with SeedLinkServer() as server:
        server.feed(packets(1))
        with receiving(source_of(server, heard=heard)) as got:
            streaming(server)
            server.feed(packets(5, 1))
            got.wait(5)
            server.drop()
            server.feed(packets(5, 20))
            got.wait(10)
            time.sleep(0.2)
            assert server.commands.count("END") == 3
    assert list(dict.fromkeys(seconds(got)["XX.A.00.HHZ"])) == [1, 2, 3, 4, 5, 20, 21, 22, 23, 24]
    assert heard.said("14.00 s from", "lost")


# Several stations on one connection.


@both
def test_stations_numbered_together_go_on_from_one_number(tmp_path: Path, protocol: str) -> None:
    """Of several numbers ringserver begins at the newest. One station is done with further than the other: both are
    asked for from where everything was done with, and what the other has repeated is not passed on."""
    with SeedLinkServer(ringserver=True) as server:
        server.feed(site(1, stations="AB"))
        with receiving(source_of(server, requests=REQUESTS, state=tmp_path, protocol=protocol), take=False) as got:
            streaming(server)
            server.feed(site(20, 1, stations="AB"))
            got.wait(120)
            for block in got.blocks:
                if block.stream.station.station == "B" or block.samples[0] < 1000:
                    got.source.acknowledge(block)
        server.feed(site(5, 21, stations="AB"))
        with receiving(source_of(server, requests=REQUESTS, state=tmp_path, protocol=protocol)) as again:
            again.wait(3 * 16 + 3 * 5)
            numbers = {command for command in server.commands if command.startswith("DATA ")}
    assert len(numbers) == 1
    assert {name: found[0] for name, found in seconds(again).items() if ".A." in name} == dict.fromkeys(
        (f"XX.A.00.HH{c}" for c in COMPONENTS), 10
    )
    assert all(found == list(range(21, 26)) for name, found in seconds(again).items() if ".B." in name)
    in_order(again, 21, 26)
    assert again.source.counters()["repeated"] == 3 * 11


@both
def test_before_the_numbering_is_known_several_stations_are_asked_for_by_time(tmp_path: Path, protocol: str) -> None:
    heard = Heard()
    with SeedLinkServer(ringserver=True) as server:
        server.feed(site(1, stations="AB"))
        with receiving(source_of(server, requests=REQUESTS, state=tmp_path, protocol=protocol, heard=heard)) as got:
            streaming(server)
            server.feed(packets(5, 1, "XX_A"))
            server.feed(packets(2, 1, "XX_B"))
            got.wait(7)
            server.stop()
            server.feed(packets(3, 3, "XX_B") + packets(3, 6, "XX_A"))
            server.start()
            wait_for(lambda: [found[-1] for found in seconds(got).values()] == [8, 5])
    assert [list(dict.fromkeys(found)) for found in seconds(got).values()] == [list(range(1, 9)), list(range(1, 6))]
    assert heard.said("asking by time for XX_A", "newest of their numbers")


@both
def test_stations_numbered_apart_go_on_from_their_own_numbers(tmp_path: Path, protocol: str) -> None:
    """As SeisComP numbers them: exact for each, also after a restart in which one had come further than the other."""
    with SeedLinkServer() as server:
        server.feed(site(1, stations="AB"))
        server.number_from(500)
        with receiving(source_of(server, requests=REQUESTS, state=tmp_path, protocol=protocol), take=False) as got:
            streaming(server)
            server.feed(site(10, 1, stations="AB"))
            got.wait(60)
            for block in got.blocks:
                if block.stream.station.station == "B" or block.samples[0] < 500:
                    got.source.acknowledge(block)
        server.feed(site(2, 11, stations="AB"))
        with receiving(source_of(server, requests=REQUESTS, state=tmp_path, protocol=protocol)) as again:
            again.wait(3 * 8 + 3 * 2)
    assert all(found == list(range(5, 13)) for name, found in seconds(again).items() if ".A." in name)
    assert all(found == [11, 12] for name, found in seconds(again).items() if ".B." in name)


def test_the_numbering_is_seen_by_the_numbers() -> None:
    """One that falls from one station to the next: apart. Twenty that never do: together."""
    together, apart = Numbering(), Numbering()
    for k in range(30):
        together.see("XX_A" if k % 2 else "XX_B", Position(100 + k, None, 4))
        apart.see("XX_A" if k % 2 else "XX_B", Position(100 + k // 2 if k % 2 else 900 + k // 2, None, 4))
    assert (together.kind, apart.kind) == ("together", "apart")
    alone = Numbering()
    for k in range(100):
        alone.see("XX_A", Position(k, None, 4))
    assert alone.kind == "unknown"
    wrapped = Numbering()
    for k in range(30):
        wrapped.see(f"XX_{k % 3}", Position(((1 << 24) - 10 + k) % (1 << 24), None, 3))
    assert wrapped.kind == "together"


# What is planned.


def reached(sequence: int, version: int = 4, **ends_s: float) -> Reached:
    """Ends by channel, in seconds after the start."""
    ends = {name: START_NS + round(end_s * NS) for name, end_s in ends_s.items()}
    return Reached(Position(sequence, START_NS, version), ends)


NOW_NS = START_NS + 1000 * NS
BEGIN_S = START_NS // NS


def first(
    past: Past, held: dict[str, Holding] | None, version: int = 4, distrusted: set[str] | None = None
) -> dict[str, Beginning]:
    made = plan(version, past, held, distrusted or set(), NOW_NS)
    assert made.reasons.keys() == {name for name, tries in made.attempts.items() if tries[0].kind != "number"}
    return {name: tries[0] for name, tries in made.attempts.items()}


def test_a_station_is_asked_for_by_number_only_where_the_number_is_held() -> None:
    past = Past({"XX_A": reached(50, Z=20.4, N=19.9)})
    number, by_time = Beginning("number", sequence=50), Beginning("time", time_s=BEGIN_S + 18)
    assert first(past, {"XX_A": Holding(10, 60)}) == {"XX_A": number}
    assert first(past, {"XX_A": Holding(10, 50)}) == {"XX_A": number}
    for held in ({"XX_A": Holding(1, 40)}, {"XX_A": Holding(51, 60)}, {}, None):
        assert first(past, held) == {"XX_A": by_time}, held
    assert first(past, {"XX_A": Holding(10, 60)}, version=3) == {"XX_A": by_time}
    assert first(past, {"XX_A": Holding(10, 60)}, distrusted=("XX_A",)) == {"XX_A": by_time}


def test_a_channel_that_is_silent_or_from_the_future_does_not_decide_from_when_on() -> None:
    dead, ahead = reached(50, Z=900, N=100), reached(50, Z=900, N=4e8)
    assert first(Past({"XX_A": dead}), {}) == {"XX_A": Beginning("time", time_s=BEGIN_S + 899)}
    assert first(Past({"XX_A": ahead}), {}) == {"XX_A": Beginning("time", time_s=BEGIN_S + 899)}
    assert first(Past({"XX_A": reached(50)}), {}) == {"XX_A": Beginning("time", time_s=BEGIN_S - 10)}


def test_a_station_that_was_silent_for_days_does_not_bring_days_of_the_others() -> None:
    """Where the earliest time decides for all, and the server holds nothing of that station."""
    past = Past({"XX_A": reached(50, Z=900), "XX_OLD": reached(7, Z=-500_000)})
    assert {beginning.time_s for beginning in first(past, {"XX_A": Holding(1, 9)}).values()} == {BEGIN_S + 899}
    together = Past(past.stations, "together", Cursor("XX_A", Position(50, START_NS, 4)))
    assert {b.sequence for b in first(together, {"XX_A": Holding(1, 60)}).values()} == {50}


def test_numbers_apart_are_judged_each_on_its_own() -> None:
    past = Past({"XX_A": reached(50, Z=900), "XX_B": reached(70, Z=900)}, "apart")
    got = first(past, {"XX_A": Holding(1, 60), "XX_B": Holding(1, 60)})
    assert got == {"XX_A": Beginning("number", sequence=50), "XX_B": Beginning("time", time_s=BEGIN_S + 899)}


def test_numbers_together_are_out_of_date_together() -> None:
    stations = {"XX_A": reached(50, Z=900), "XX_B": reached(70, Z=800)}
    past = Past(stations, "together", Cursor("XX_B", Position(70, START_NS, 4)))
    held = {"XX_A": Holding(1, 60), "XX_B": Holding(1, 61)}
    assert {b.kind for b in first(past, held).values()} == {"time"}
    assert {b.kind for b in first(past, {**held, "XX_B": Holding(1, 99)}, distrusted=("XX_A",)).values()} == {"time"}


def test_a_position_of_the_first_run_is_before_its_first_packet(tmp_path: Path) -> None:
    """A restart in the first minutes, when nothing was done with, goes on from there."""
    (record,) = packets(1, 5)
    from agent.sources.miniseed import RecordReader

    read = RecordReader().read(record)
    progress = Progress(tmp_path / "state.json", "host:18000")
    origin = progress.send("XX_A", Position(9, read.start_ns, 4), read.blocks[0])
    assert isinstance(origin, Origin)
    progress.save()
    again = Progress(tmp_path / "state.json", "host:18000").received()["XX_A"]
    assert again == Reached(Position(8, START_NS + 5 * NS, 4), {"XX.A.00.HHZ": START_NS + 5 * NS})


def test_positions_that_cannot_be_kept_are_a_problem_until_they_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.sources.seedlink.source.SAVE_S", 0.05)
    state = tmp_path / "state"
    state.write_text("no folder")
    with SeedLinkServer() as server:
        server.feed(packets(1))
        source = source_of(server, state=state)
        with receiving(source) as reception:
            streaming(server)
            server.feed(packets(2, first=1))
            reception.wait(2)
            wait_for(lambda: any("positions cannot be kept" in problem for problem in source.problems()))
            state.unlink()
            wait_for(lambda: source.problems() == [])


# The real one.


@pytest.fixture
def real(tmp_path: Path) -> Iterator[RingServer]:
    server = RingServer(tmp_path)
    server.start(empty=True)
    try:
        yield server
    finally:
        server.end()


def recent(number: int, first_second: int, stations: str = "AB") -> list[bytes]:
    """Like ``site``, of the last minutes: ringserver takes no time in the future, and Talus none that is long ago."""
    begin_ns = (time.time_ns() // NS // 1000 * 1000 - 1000) * NS
    return [
        record
        for k in range(first_second, first_second + number)
        for station in stations
        for c in COMPONENTS
        for record in made(f"FDSN:XX_{station}_00_H_H_{c}", begin_ns + k * NS, range(100 * k, 100 * k + 100))
    ]


@needs_ringserver
@pytest.mark.parametrize(("protocol", "secured"), [("3", False), ("4", False), ("auto", True)])
@pytest.mark.parametrize("overlap", [False, True])
def test_a_real_ringserver_that_lost_its_ring(
    tmp_path: Path, real: RingServer, protocol: str, secured: bool, overlap: bool
) -> None:
    """kill -9, ring folder emptied, numbers that have or have not reached the old ones: all that it holds comes."""
    port, ca = (real.tls_port, real.ca) if secured else (real.port, None)
    heard = Heard()
    asked = configured(server_at(port, *REQUESTS, protocol=protocol, ca=ca))
    source = SeedLinkSource(asked, tmp_path / "state", on_problem=heard.append)
    real.feed(recent(1, 0))
    with receiving(source) as got:
        wait_for(lambda: source.problems() == [])
        time.sleep(0.3)
        real.feed(recent(10, 1))
        got.wait(60)
        real.end()
        real.start(empty=True)
        real.feed(recent(30 if overlap else 5, 10))
        last = 39 if overlap else 14
        wait_for(lambda: all(found[-1] == last for found in seconds(got).values()))
    in_order(got, 1, last + 1)
    assert heard.said("by time")


@needs_ringserver
@both
def test_a_real_ringserver_sends_nothing_twice_after_a_restart(tmp_path: Path, real: RingServer, protocol: str) -> None:
    asked = configured(server_at(real.port, *REQUESTS, protocol=protocol))
    real.feed(recent(1, 0))

    def source() -> SeedLinkSource:
        return SeedLinkSource(asked, tmp_path / "state", on_problem=Heard().append)

    with receiving(source()) as got:
        wait_for(lambda: got.source.problems() == [])
        time.sleep(0.3)
        real.feed(recent(20, 1))
        got.wait(120)
    real.feed(recent(5, 21))
    with receiving(source()) as again:
        wait_for(lambda: len(again.blocks) >= 30)
    assert seconds(again) == {name: list(range(21, 26)) for name in seconds(got)}
