"""The SeedLink source against a server: what comes in is what was sent, whatever happens on the way."""

from __future__ import annotations

import io
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import obspy
import pytest
from broker_support import wait_for
from seedlink_server import SeedLinkServer, authority, made, records_of
from seedlink_support import (
    REQUEST,
    START_NS,
    Heard,
    configured,
    packets,
    receiving,
    request,
    server_at,
    source_of,
    streaming,
)

from agent.sources.seedlink.resume import Progress
from agent.sources.seedlink.source import SeedLinkSource
from agent.types import MAX_BLOCK_S, NS, BlockQuality

both = pytest.mark.parametrize("protocol", ["3", "4"])


@pytest.fixture
def real(obspy_data: Path) -> list[bytes]:
    """Ten records of 512 bytes of a station in Bavaria, 200 Hz, as the recorder wrote them."""
    return records_of(obspy_data / "io" / "mseed" / "tests" / "data" / "BW.BGLD.__.EHE.D.2008.001.first_10_records")


# The test server itself, by clients that Talus has no part in.


def test_server_is_understood_by_seedlink_client(real: list[bytes]) -> None:
    client = pytest.importorskip("seedlink_client")
    for version in (3, 4):
        with SeedLinkServer(versions=(version,)) as server:
            server.feed(real[:4])
            with client.SeedLink("127.0.0.1", server.port, timeout=60) as link:
                link.add_stream("BW_BGLD", "EH?", seqnum=1)
                found = []
                for packet in link.collect():
                    found.append((packet.station_id, packet.seqnum, packet.payload))
                    if len(found) == 3:
                        break
        assert found == [("BW_BGLD", k + 1, real[k]) for k in (1, 2, 3)]


def test_server_is_understood_by_obspy(real: list[bytes]) -> None:
    from obspy.clients.seedlink.basic_client import Client

    with SeedLinkServer(versions=(3,)) as server:
        server.feed(real)
        client = Client("127.0.0.1", server.port, timeout=60)
        assert client.get_info(level="station") == [("BW", "BGLD")]


# What comes in.


@both
def test_blocks_are_the_records_as_obspy_decodes_them(real: list[bytes], protocol: str) -> None:
    """Samples, times and rate of real records, time corrections included."""
    with SeedLinkServer() as server:
        server.feed(real[:1])
        with receiving(source_of(server, requests=(request("BW_BGLD"),), protocol=protocol)) as got:
            streaming(server)
            server.feed(real[1:])
            got.wait(9)
    for block, record in zip(got.blocks, real[1:], strict=True):
        trace = obspy.read(io.BytesIO(record))[0]
        assert np.array_equal(block.samples, trace.data)
        assert block.samples.dtype == np.int32
        assert not block.samples.flags.writeable
        assert (block.start_ns, block.rate_hz, block.stream.seed) == (
            trace.stats.starttime.ns, trace.stats.sampling_rate, trace.id,
        )  # fmt: skip


@both
@pytest.mark.parametrize(
    ("version", "reclen", "encoding"),
    [(2, 256, 11), (2, 512, 10), (2, 4096, 11), (2, 512, 1), (2, 512, 3), (2, 4096, 4), (2, 4096, 5), (3, 4096, 11)],
)
def test_records_of_any_version_length_and_encoding(protocol: str, version: int, reclen: int, encoding: int) -> None:
    samples = np.arange(900) % 7000
    records = made("FDSN:XX_A_00_H_H_N", START_NS, samples, version=version, reclen=reclen, encoding=encoding)
    with SeedLinkServer() as server:
        server.feed(records[:1])
        server.number_from(1, forget=True)
        with receiving(source_of(server, protocol=protocol)) as got:
            streaming(server)
            server.feed(records)
            got.wait(len(records))
    assert np.array_equal(got.samples()["XX.A.00.HHN"], samples)
    assert set(got.source.counters()) == {"packets", "samples"}


def test_long_records_are_cut_with_exact_times() -> None:
    (record,) = made("FDSN:XX_A_00_B_H_Z", START_NS, np.zeros(3000), rate_hz=20.0, reclen=4096)
    with SeedLinkServer() as server:
        server.feed(packets(1))
        with receiving(source_of(server)) as got:
            streaming(server)
            server.feed([record])
            got.wait(3)
            wait_for(lambda: got.source._links[0]._progress.received()["XX_A"].position.sequence == 2)
    assert [(b.start_ns - START_NS) // NS for b in got.blocks] == [0, 60, 120]
    assert all(len(b.samples) <= MAX_BLOCK_S * 20 for b in got.blocks)


def test_clock_quality_of_both_formats() -> None:
    """Timing quality and flags reach the blocks; a lock flag that a recorder never sets says nothing."""
    quality = '{"FDSN":{"Time":{"Quality":88}}}'
    records = [
        *packets(1, 0),
        *packets(1, 1, version=3, flags=0x04, extra=quality),
        *packets(1, 2, flags=0x02),
        *packets(1, 3, flags=0x04),
    ]
    with SeedLinkServer() as server:
        server.feed(records[:1])
        with receiving(source_of(server)) as got:
            streaming(server)
            server.feed(packets(1, 0) + records[1:])
            got.wait(4)
    assert [block.quality for block in got.blocks] == [
        BlockQuality(None, None, False), BlockQuality(88, True, False), BlockQuality(None, False, True),
        BlockQuality(None, True, False),
    ]  # fmt: skip


@both
def test_selectors_and_wildcards(protocol: str) -> None:
    """Either notation with either version; '!' excludes; what is not asked for does not come."""
    requests = (
        request("XX_A", "00HH?", "!00_H_H_N"),
        request("XX_B", "*_H_H_Z"),
        request("YY_*", "HHZ"),
    )
    channels = [(s, c) for s in ("XX_A", "XX_B", "YY_C", "YY_D", "ZZ_E") for c in "ENZ"]
    with SeedLinkServer() as server:
        server.feed(record for s, c in channels for record in packets(1, 0, s, c))
        with receiving(source_of(server, requests=requests, protocol=protocol)) as got:
            streaming(server)
            server.feed(record for s, c in channels for record in packets(1, 1, s, c))
            got.wait(5)
            time.sleep(0.2)
    assert sorted(b.stream.seed for b in got.blocks) == [
        "XX.A.00.HHE", "XX.A.00.HHZ", "XX.B.00.HHZ", "YY.C.00.HHZ", "YY.D.00.HHZ",
    ]  # fmt: skip


# Interruptions.


@both
def test_no_gap_when_the_server_goes_and_returns(protocol: str) -> None:
    """Cut off, killed and restarted, stalled without closing: each time it goes on with the very next sample."""
    heard = Heard()
    with SeedLinkServer() as server:
        server.feed(packets(1))
        with receiving(source_of(server, heard=heard, protocol=protocol, receive_timeout_s=3.0)) as got:
            streaming(server)
            server.feed(packets(10, 1))
            got.wait(10)
            server.drop()
            server.feed(packets(10, 11))
            got.wait(20)
            server.stop()
            server.feed(packets(10, 21))
            wait_for(lambda: got.source.problems() and "refuses" in got.source.problems()[0])
            server.start()
            got.wait(30)
            assert got.source.problems() == []
            server.stalled.set()
            server.feed(packets(10, 31))
            wait_for(lambda: heard.said("silent"))
            server.stalled.clear()
            got.wait(40)
    assert np.array_equal(got.samples()["XX.A.00.HHZ"], np.arange(100, 4100))
    assert heard.said("closed the connection")


@both
def test_what_is_on_its_way_is_not_asked_for_again(protocol: str) -> None:
    """A connection lost while the pipeline is behind, to a server that begins with the last packet once more."""
    with SeedLinkServer() as server:
        server.resends_last = True
        server.feed(packets(1))
        with receiving(source_of(server, protocol=protocol), take=False) as got:
            streaming(server)
            server.feed(packets(10, 1))
            got.wait(10)
            server.drop()
            server.feed(packets(10, 11))
            got.wait(20)
    assert np.array_equal(got.samples()["XX.A.00.HHZ"], np.arange(100, 2100))


def stored(folder: Path, server: SeedLinkServer) -> int:
    """The number of the last packet that was done with, as it is kept on disk."""
    name = f"127.0.0.1_{server.port}"
    reached = Progress(folder / f"seedlink-{name}.json", f"127.0.0.1:{server.port}").received().get("XX_A")
    return 0 if reached is None else reached.position.sequence


def test_stored_state_never_runs_ahead_of_what_was_done_with(tmp_path: Path) -> None:
    """A consumer killed at any moment: the next run begins at or before the first packet that it was not done with."""
    child = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
import agent.sources.seedlink.source as seedlink
from agent.config.sources import SeedLinkConfig
seedlink.SAVE_S = 0.01
server = {"host": "127.0.0.1", "port": int(sys.argv[1]), "stations": [{"station": "XX_A"}]}
config = SeedLinkConfig.model_validate({"kind": "seedlink", "servers": [server]})
source = seedlink.SeedLinkSource(config, Path(sys.argv[2]), on_problem=print)
for block in source.blocks():
    source.acknowledge(block)
    print(int(block.samples[0]), flush=True)
"""
    with SeedLinkServer() as server:
        server.feed(packets(1))
        after = 0
        for turn in range(2):
            command = [sys.executable, "-c", child, str(server.port), str(tmp_path), str(Path(__file__).parents[1])]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            streaming(server, turn + 1)
            for k in range(30):
                server.feed(packets(1, 1 + 30 * turn + k))
                time.sleep(0.01)
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(20)]
            wait_for(lambda: stored(tmp_path, server) > 1)
            process.send_signal(signal.SIGKILL)
            lines += process.stdout.read().splitlines()
            process.wait()
            numbers = [int(line) for line in lines]
            assert numbers == list(range(numbers[0], numbers[0] + 100 * len(numbers), 100))
            if turn:
                assert numbers[0] <= after
                assert numbers[0] > 100, "nothing was stored"
            after = numbers[-1] + 100


@both
@pytest.mark.parametrize(("info", "waits"), [(True, True), (False, True), (False, False)])
def test_server_that_numbers_anew(protocol: str, info: bool, waits: bool) -> None:
    """A server that lost its count: what it still holds is asked for by time, whether it tells its range or not."""
    timing = {} if info else {"receive_timeout_s": 1.0, "stalled_s": 1.0}
    with SeedLinkServer() as server:
        server.refuse_info, server.waits_for_future = not info, waits
        server.feed(packets(1))
        server.number_from(5000)
        with receiving(source_of(server, **timing, protocol=protocol)) as got:
            streaming(server)
            server.feed(packets(10, 1))
            got.wait(10)
            server.stop()
            server.number_from(7)
            server.feed(packets(10, 11))
            server.start()
            if not waits:
                streaming(server, 2)
                server.feed(packets(1, 21))
            wait_for(lambda: got.blocks[-1].samples[0] >= 2000)
            if info:
                assert server.commands.count("END") == 2, "its range of numbers tells at once"
    seen = np.unique(got.samples()["XX.A.00.HHZ"])
    assert np.array_equal(seen[seen >= 100][:2000], np.arange(100, 2100))


def test_server_upgraded_to_version_4_keeps_the_place(tmp_path: Path) -> None:
    """Numbers of version 3 mean nothing in version 4; the time does."""
    with SeedLinkServer(versions=(3,)) as server:
        server.feed(packets(1))
        with receiving(source_of(server, state=tmp_path)) as got:
            streaming(server)
            server.feed(packets(10, 1))
            got.wait(10)
        server.versions = (3, 4)
        server.feed(packets(10, 11))
        server.number_from(1, keep=16)  # what was to come next, 12, is now another packet than it was
        with receiving(source_of(server, state=tmp_path)) as again:
            wait_for(lambda: again.blocks and again.blocks[-1].samples[0] == 2000)
    assert set(range(1100, 2100)) <= set(again.samples()["XX.A.00.HHZ"])
    assert "DATA ALL 2023-11-14T22:13:30Z" in server.commands, "one second before the end of what is known"


def test_sequence_numbers_of_version_3_begin_anew_after_24_bits() -> None:
    with SeedLinkServer(versions=(3,)) as server:
        server.feed(packets(1))
        server.number_from((1 << 24) - 4)
        with receiving(source_of(server)) as got:
            streaming(server)
            for entry in packets(3, 1):
                server.feed([entry])
            got.wait(3)
            server.number_from((1 << 24) - 4)
            server.drop()
            wait_for(lambda: "DATA 000000" in server.commands)
            server.feed(packets(2, 4))
            got.wait(5)
            assert server.commands.count("END") == 2
    assert np.array_equal(got.samples()["XX.A.00.HHZ"], np.arange(100, 600))


def test_state_that_cannot_be_read_is_told_and_borne(tmp_path: Path) -> None:
    heard = Heard()
    with SeedLinkServer() as server:
        server.feed(packets(1))
        (tmp_path / f"seedlink-127.0.0.1_{server.port}.json").write_text('{"schema": "talus/seedlink-state/1", "ser')
        with receiving(source_of(server, state=tmp_path, heard=heard)) as got:
            streaming(server)
            server.feed(packets(2, 1))
            got.wait(2)
    assert heard.said("cannot be used")


# Silence.


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """By which silence is measured; a test sets its ``now``, in seconds."""
    clock = SimpleNamespace(now=1000.0, monotonic=lambda: clock.now, time_ns=time.time_ns)
    for module in ("agent.sources.seedlink.source", "agent.backoff"):
        monkeypatch.setattr(f"{module}.time", clock)
    return clock


def test_silent_station_is_asked_for_again_and_named(clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of two stations stops: it is asked for again without a loss for the other, and less and less often."""
    monkeypatch.setattr("agent.sources.seedlink.source.TICK_S", 0.05)
    heard = Heard()
    with SeedLinkServer() as server:
        server.feed([*packets(1), *packets(1, station="XX_B")])
        with receiving(source_of(server, requests=(REQUEST, request("XX_B")), heard=heard, stalled_s=0.3)) as got:
            streaming(server)
            server.feed(packets(1, 1, "XX_B", rate_hz=1000.0))
            for k in range(1, 71):
                server.feed(packets(1, k))
                wait_for(lambda: 100 * k in [block.samples[0] for block in got.blocks])  # noqa: B023
                clock.now += 0.08
                time.sleep(0.02)
            hand_shakes = server.commands.count("END")
    assert heard.said("no samples from", "XX.B.00.HHZ", "asking again")
    assert not heard.said("no samples from XX_A")
    assert 3 <= hand_shakes <= 6
    assert np.array_equal(got.samples()["XX.A.00.HHZ"], np.arange(100, 7100))


def test_a_connection_that_is_lost_again_and_again_is_a_trouble() -> None:
    """Also in the moments in which it is there."""
    with SeedLinkServer() as server:
        server.feed(packets(1))
        with receiving(source_of(server)) as got:
            for times in range(1, 6):
                streaming(server, times)
                server.feed(packets(1, times))
                got.wait(times)
                assert got.source.problems() == []
                server.drop()
            streaming(server, 6)
            wait_for(lambda: "the connection was lost 5 times in the last 10 minutes" in str(got.source.problems()))


def test_station_that_never_sent_is_a_trouble(clock: SimpleNamespace) -> None:
    with SeedLinkServer() as server:
        server.feed([*packets(1), *packets(1, station="XX_B")])
        with receiving(source_of(server, requests=(REQUEST, request("XX_B")), stalled_s=0.3)) as got:
            streaming(server)
            server.feed(packets(1, 1))
            got.wait(1)
            assert got.source.problems() == []
            clock.now += 0.4
            (trouble,) = got.source.problems()
    assert "XX_B yet" in trouble
    assert "XX_A" not in trouble


def test_keep_alive_holds_an_idle_connection() -> None:
    """A server that has nothing to send answers INFO, and is left alone."""
    with SeedLinkServer(versions=(3,)) as old, SeedLinkServer() as new:
        for server in (old, new):
            server.feed(packets(1))
        with receiving(source_of(old, new, receive_timeout_s=5.0)) as got:
            streaming(old)
            streaming(new)
            time.sleep(5.5)
            for server in (old, new):
                server.feed(packets(1, 1))
            got.wait(2)
            for server in (old, new):
                assert server.commands.count("END") == 1
                assert server.commands.count("INFO ID") >= 1


def test_time_outs_are_obeyed_and_close_is_prompt() -> None:
    """A port that accepts and says nothing: given up after the time-out; and closing does not wait for it."""
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        heard = Heard()
        server = server_at(deaf.getsockname()[1])
        quick = SeedLinkSource(configured(server, connect_timeout_s=0.5), None, on_problem=heard.append)
        began = time.monotonic()
        with receiving(quick):
            wait_for(lambda: heard.said("does not answer HELLO"))
            assert time.monotonic() - began > 0.4
        patient = SeedLinkSource(configured(server, connect_timeout_s=60.0), None, on_problem=heard.append)
        with receiving(patient):
            time.sleep(0.2)
            began = time.monotonic()
        assert time.monotonic() - began < 40


# Refusals and bad input.


@both
def test_refused_stations_and_selectors_do_not_hold_the_others(protocol: str) -> None:
    heard = Heard()
    requests = (
        request("XX_NONE"),
        request("XX_B").model_copy(update={"selectors": ("0_H_H_Z" if protocol == "3" else "H_H_Z",)}),
        REQUEST,
    )
    with SeedLinkServer() as server:
        server.feed([*packets(1), *packets(1, station="XX_B")])
        with receiving(source_of(server, requests=requests, heard=heard, protocol=protocol)) as got:
            streaming(server)
            server.feed([*packets(1, 1, "XX_B"), *packets(3, 1)])
            got.wait(3)
    assert {block.stream.station.station for block in got.blocks} == {"A"}
    assert heard.said("STATION", "NONE")
    assert heard.said("SELECT" if protocol == "4" else "cannot be said")


@both
def test_a_number_that_the_server_refuses_costs_a_station_nothing(protocol: str) -> None:
    """It is asked by time instead. A server that refused the number each time would otherwise never be heard again."""
    heard = Heard()
    with SeedLinkServer() as server:
        server.refuses_numbers = True
        server.feed(packets(3))
        with receiving(source_of(server, heard=heard, protocol=protocol)) as got:
            streaming(server)
            server.feed(packets(2, 3))
            got.wait(2)
            server.drop()
            server.feed(packets(2, 5))
            wait_for(lambda: got.samples()["XX.A.00.HHZ"][-1] == 699)
    assert set(range(300, 700)) <= set(got.samples()["XX.A.00.HHZ"].tolist())
    assert heard.said("refused 'DATA")


def test_records_that_were_not_asked_for_are_counted() -> None:
    """Version 3 names stations in the records alone, where a damaged header would bring a station that is none."""
    heard = Heard()
    with SeedLinkServer() as server:
        server.feed(packets(1))
        with receiving(source_of(server, heard=heard, protocol="3")) as got:
            streaming(server)
            (second, third) = packets(2, 1)
            other = bytearray(second)
            other[8:9] = b"Q"
            server.feed_raw(bytes(other), second)
            server.feed([third])
            got.wait(1)
        counters = got.source.counters()
    assert got.samples()["XX.A.00.HHZ"].tolist() == list(range(200, 300))
    assert (counters["not_asked_for"], counters["not_asked_for_bytes"]) == (1, 512)
    assert heard.said("XX_Q was not asked for")


def test_packets_that_a_lost_connection_cuts_off_are_counted_and_come_again() -> None:
    with SeedLinkServer() as server:
        server.feed(packets(1))
        with receiving(source_of(server, protocol="4")) as got:
            streaming(server)
            server.feed(packets(1, 1))
            got.wait(1)
            server.cut_at = 100
            server.feed(packets(1, 2))
            got.wait(2)
            assert got.source.counters()["cut_off_bytes"] == 100
    assert got.samples()["XX.A.00.HHZ"].tolist() == list(range(100, 300))


@both
def test_damaged_records_are_counted_and_survived(protocol: str) -> None:
    """A flipped bit in the samples, a header that is gone, one that lies of its length, text, another channel."""
    heard = Heard()
    good = packets(4, 1)
    flipped = bytearray(good[0])
    flipped[-1] ^= 0x01
    flipped[70] ^= 0x20
    liar = bytearray(good[1])
    liar[54] = 12
    (log,) = made("FDSN:XX_A__L_O_G", START_NS, [72, 101], rate_hz=0.0, encoding=3)
    (weather,) = made("FDSN:XX_A__L_K_1", START_NS, [1, 2, 3], rate_hz=20.0)
    with SeedLinkServer() as server:
        server.feed(packets(1))
        with receiving(source_of(server, heard=heard, protocol=protocol)) as got:
            streaming(server)
            server.feed_raw(bytes(flipped), good[0])
            server.feed_raw(bytes(512), good[0])
            server.feed_raw(bytes(liar), good[0])
            server.feed([log, weather, *good])
            got.wait(4)
    assert np.array_equal(got.samples()["XX.A.00.HHZ"][-400:], np.arange(100, 500))
    dropped = got.source.counters()
    assert dropped["damaged"] >= 2
    assert dropped["not_motion"] == 2
    assert dropped["not_motion_bytes"] == len(log) + len(weather)
    assert heard.said("its own last value")


def test_stray_bytes_between_packets_of_version_3_are_counted() -> None:
    with SeedLinkServer() as server:
        server.feed(packets(1))
        with receiving(source_of(server, protocol="3")) as got:
            streaming(server)
            (first, second) = packets(2, 1)
            server.feed_raw(first + b"\x00stray\xff" * 5, first)
            server.feed([second])
            got.wait(2)
            server.drop()
            wait_for(lambda: got.source.counters().get("stray_bytes") == 35)
    assert np.array_equal(got.samples()["XX.A.00.HHZ"], [*range(100, 200), *range(200, 300)])


def test_death_of_a_thread_ends_the_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of Talus itself is not taken for a lost connection: it ends ``blocks()``."""
    with SeedLinkServer() as server:
        server.feed(packets(1))
        source = source_of(server)
        monkeypatch.setattr(source._links[0]._reader, "read", lambda payload: 1 / 0)
        with receiving(source) as got:
            streaming(server)
            server.feed(packets(1, 1))
            wait_for(lambda: got.failed)
        assert isinstance(got.failed, ZeroDivisionError)


# TLS.


def test_tls_with_an_authority_of_ones_own(tmp_path: Path) -> None:
    ca, context = authority(tmp_path)
    (tmp_path / "other").mkdir()
    other_ca, other = authority(tmp_path / "other", "digitizer.example")
    said = {}
    for name, served, trusted in (
        ("sound", context, ca), ("another host", other, other_ca), ("another authority", context, other_ca),
    ):  # fmt: skip
        heard = Heard()
        with SeedLinkServer(tls=served) as server:
            server.feed(packets(1))
            source = SeedLinkSource(configured(server_at(server.port, ca=trusted)), None, on_problem=heard.append)
            with receiving(source) as got:
                if name == "sound":
                    streaming(server)
                    server.feed(packets(50, 1))
                    got.wait(50)
                    server.drop()
                    server.feed(packets(50, 51))
                    got.wait(100)
                    assert np.array_equal(got.samples()["XX.A.00.HHZ"], np.arange(100, 10_100))
                else:
                    wait_for(heard.__len__)
                    said[name] = str(heard[0])
    assert "another host" in said["another host"]
    assert "ca_file" in said["another authority"]


# What is written about it.


def test_the_documented_example_is_a_configuration(tmp_path: Path) -> None:
    from agent.config.file import check

    page = (Path(__file__).parents[1] / "docs" / "sources.md").read_text("utf-8")
    example = page.split("```yaml\n")[1].split("```")[0]
    (tmp_path / "example.yaml").write_text(example)
    problems = check(tmp_path / "example.yaml")
    errors = [problem.field for problem in problems if problem.level == "error"]
    assert errors == ["source.servers[1].tls.ca_file"], "only a file that is not here"


def test_a_server_is_given_once(tmp_path: Path) -> None:
    """Two entries for one server would keep their positions in one file."""
    from agent.config.file import check

    server = "{host: digitizer, stations: [{station: XX_A}]}"
    text = f"station: {{network: XX, station: A}}\nsource: {{kind: seedlink, servers: [{server}, {server}]}}\n"
    (tmp_path / "twice.yaml").write_text(text)
    (problem,) = check(tmp_path / "twice.yaml")
    assert (problem.field, problem.reason) == (
        "source.servers[1]", "is listed already as servers[0]; list its stations there",
    )  # fmt: skip


def test_positions_stay_behind_when_nothing_is_done_with(tmp_path: Path) -> None:
    """The stored position stays before the first packet, while that of a new connection goes on."""
    from agent.sources.in_flight import MAX_IN_FLIGHT
    from agent.sources.seedlink.resume import Position
    from agent.types import SampleBlock, StreamId

    stream, samples, path = StreamId.parse("XX.A.00.HHZ"), np.zeros(1, np.int32), tmp_path / "state.json"
    progress = Progress(path, "server:18000", object())
    blocks = []
    for k in range(1, MAX_IN_FLIGHT + 10):
        block = SampleBlock(stream, k * NS, 100.0, samples)
        blocks.append(replace(block, origin=progress.send("XX_A", Position(k, k * NS, 4), block)))
    progress.save()
    assert Progress(path, "server:18000").received()["XX_A"].position == Position(0, NS, 4)
    assert progress.in_flight == MAX_IN_FLIGHT
    assert progress.received()["XX_A"].position.sequence == MAX_IN_FLIGHT + 9
    progress.acknowledge(replace(blocks[20], origin=replace(blocks[20].origin, owner=object())))
    progress.save()
    assert Progress(path, "server:18000").received()["XX_A"].position.sequence == 0, "a block of another server"
    progress.acknowledge(blocks[20])
    progress.save()
    stored = Progress(path, "server:18000").received()["XX_A"]
    assert stored.position == Position(21, 21 * NS, 4)
    assert stored.ends == {"XX.A.00.HHZ": 21 * NS + NS // 100}
    assert Progress(path, "another:18000").received() == {}
