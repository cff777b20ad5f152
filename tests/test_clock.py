"""Clocks: what keeps this machine's, how far it is off, and which recorder's time is in doubt."""

from __future__ import annotations

import shutil
import socket
import stat
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from agent_support import write_records
from broker_support import wait_for
from seedlink_server import made

from agent.config.file import ClassifierConfig, TunablesConfig
from agent.detect.lag import BACKLOG_S, SPAN_S, DataClocks
from agent.host.clock import HostClock, StepWatch, host_clock
from agent.service.assemble import build_line
from agent.sources.archive import ArchiveSource
from agent.sources.miniseed import RecordReader
from agent.types import NS, UNKNOWN_QUALITY, BlockQuality, Event, SampleBlock, StreamId, parse_ns

NOBODY = ("no-such-program-here",)
STREAM = StreamId.parse("XX.A.00.HHZ")
START_NS = 1_700_000_000 * NS
EPOCH_1900_S = 2_208_988_800


# The host.


class TimeServer:
    """An NTP server whose time is off by a fixed amount."""

    def __init__(self, ahead_s: float) -> None:
        self._ahead_s = ahead_s
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _now(self) -> bytes:
        seconds, rest = divmod(time.time() + self._ahead_s + EPOCH_1900_S, 1)
        return struct.pack(">II", int(seconds), int(rest * 2**32))

    def _serve(self) -> None:
        while True:
            try:
                asked, client = self._socket.recvfrom(1024)
            except OSError:
                return
            now = self._now()
            head = struct.pack(">BBbbII", 4 << 3 | 4, 1, 6, -20, 0, 0) + b"GPS\0"
            self._socket.sendto(head + now + asked[40:48] + now + self._now(), client)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def chrony(tmp_path: Path) -> Iterator[tuple[str, ...]]:
    """A real chronyd that follows a server five seconds ahead, without touching the clock; the command to ask it."""
    program = shutil.which("chronyd") or shutil.which("chronyd", path="/usr/sbin")
    if program is None or shutil.which("chronyc") is None:
        pytest.skip("chrony is not installed")
    server = TimeServer(5.0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = tmp_path / "chrony.conf"
    settings.write_text(
        f"server 127.0.0.1 port {server.port} iburst minpoll -4 maxpoll 0\ncmdport {port}\nport 0\n"
        f"bindcmdaddress 127.0.0.1\nbindcmdaddress /\npidfile {tmp_path}/pid\ndriftfile {tmp_path}/drift\n"
    )
    command = [program, "-x", "-d", "-U", "-f", str(settings)]
    daemon = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    yield ("chronyc", "-h", "127.0.0.1", "-p", str(port), "-n", "-c", "tracking")
    daemon.terminate()
    daemon.wait()
    server.close()


def test_chrony_tells_how_far_the_clock_is_off(chrony: tuple[str, ...]) -> None:
    """A clock five seconds behind its server; the sign is what decides which way an operator turns."""
    wait_for(lambda: host_clock(chrony, NOBODY).synchronised, what="chrony to synchronise")
    clock = host_clock(chrony, NOBODY)
    assert clock.source == "chrony"
    assert clock.offset_s == pytest.approx(-5.0, abs=0.1)
    assert clock.is_wrong
    assert str(clock).endswith("s behind")


def stand_in(folder: Path, text: str, status: int = 0) -> tuple[str]:
    """A program that prints a text, as the real one does on a machine that runs systemd-timesyncd."""
    program = folder / "program"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\nexit {status}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return (str(program),)


@pytest.mark.parametrize(
    ("offset", "expected_s"),
    [("+5.123ms", -0.005123), ("-813us", 0.000813), ("+5.002s", -5.002), ("-1min 2.500s", 62.5), ("0", None)],
)
def test_timesyncd_status(tmp_path: Path, offset: str, expected_s: float | None) -> None:
    """The report's layout is that of systemd 252; it counts the server's lead, we count the machine's."""
    text = (
        "       Server: 162.159.200.1 (time.cloudflare.com)\nPoll interval: 34min 8s (min: 32s; max 34min 8s)\n"
        f"         Leap: normal\n      Version: 4\n      Stratum: 3\n       Offset: {offset}\n        Delay: 12.1ms"
    )
    clock = host_clock(NOBODY, stand_in(tmp_path, text))
    assert clock.source == "systemd-timesyncd"
    assert clock.synchronised
    assert clock.offset_s == (None if expected_s is None else pytest.approx(expected_s))


def test_programs_that_fail_or_talk_nonsense_are_passed_over(tmp_path: Path) -> None:
    for text, status in (("506 Cannot talk to daemon", 1), ("a,b,c", 0), (",".join("x" * 14), 0), ("", 0)):
        assert host_clock(stand_in(tmp_path, text, status), NOBODY).source in (None, "kernel")
    unsynchronised = "7F7F0101,,0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,1.0,1.0,0.0,Not synchronised"
    assert host_clock(stand_in(tmp_path, unsynchronised), NOBODY) == HostClock("chrony", None, False)


def test_the_kernel_answers_where_nobody_else_does() -> None:
    clock = host_clock(NOBODY, NOBODY)
    assert clock.source in (None, "kernel")
    assert (clock.source is None) == (clock.synchronised is not True)


def test_a_step_is_noticed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is set while the monotonic one runs on; slewing and leap-second smearing are no steps."""
    watch, now = StepWatch(), time.time_ns
    assert watch.step_s() is None
    monkeypatch.setattr(time, "time_ns", lambda: now() - 5 * NS)
    assert watch.step_s() == pytest.approx(-5, abs=0.1)
    assert watch.step_s() is None
    monkeypatch.setattr(time, "time_ns", lambda: now() - 5 * NS + NS // 10)
    assert watch.step_s() is None


# The recorder.


class Days:
    """Packets of a channel, one a second, with a lag; the times that they come at are made up."""

    def __init__(self) -> None:
        self.clocks = DataClocks()
        self.second = 0

    def run(self, seconds: float, lag_s: float, quality: BlockQuality = UNKNOWN_QUALITY) -> set[bool]:
        """Whether packets were doubted."""
        found = set()
        for _ in range(round(seconds)):
            self.second += 1
            received_ns = START_NS + self.second * NS
            start_ns = received_ns - round(lag_s * NS) - NS
            block = SampleBlock(STREAM, start_ns, 100.0, np.zeros(100, np.int32), quality)
            judged = self.clocks.judge(block, received_ns, float(self.second))
            assert judged.samples is block.samples
            assert (judged.start_ns, judged.stream) == (block.start_ns, block.stream)
            found.add(judged.quality.time_questionable)
        return found


def test_sound_clocks_are_not_doubted() -> None:
    """Hours of jitter, an outage that is made up for, and a timing quality that is passed on as it is."""
    days = Days()
    for lag_s in (0.4, 2.5, 1.1, 0.3, 3.9, 0.6) * 20:
        assert days.run(60, lag_s) == {False}
    for lag_s in (600.0, 300.0, BACKLOG_S + 1, 40.0, 10.0, 0.5):
        assert days.run(10, lag_s) == {False}
    assert days.run(3600, 0.4) == {False}
    assert days.clocks.doubts() == []


def test_a_recorder_ahead_of_this_machine_is_doubted() -> None:
    days = Days()
    assert days.run(60, 0.3) == {False}
    assert days.run(10, -5.0, BlockQuality(100, True, False)) == {True}
    assert days.clocks.doubts() == ["clock of XX.A.00.HHZ: 5.0 s ahead of this machine's"]
    assert days.run(10, 0.3) == {False}
    assert days.clocks.doubts() == []


def test_a_step_forward_is_doubted_though_it_does_not_reach_the_future() -> None:
    """Packets of a slow way, 6 s: a clock set forward by 5 s still comes 1 s late. Later it is normal."""
    days = Days()
    assert days.run(2 * SPAN_S, 6.0) == {False}
    assert days.run(60, 1.0) == {True}
    assert days.run(SPAN_S + 10, 1.0) == {True, False}
    assert days.run(60, 1.0) == {False}


def test_a_clock_that_drifts_behind_is_doubted() -> None:
    """Ten seconds a day, as a sensor network saw; named once it is two seconds, within a quarter of a day."""
    days = Days()
    lag_s, named = 0.5, None
    for hour in range(12):
        if True in days.run(3600, lag_s):
            named = named or hour
        lag_s += 10 / 24
    assert named is not None
    assert 4 <= named <= 7
    assert "later than before" in days.clocks.doubts()[0]


def test_a_machine_whose_own_clock_is_wrong_judges_nobody() -> None:
    days = Days()
    days.clocks.host(is_wrong=True)
    assert days.run(10, -5.0) == {False}
    days.clocks.host(is_wrong=False)
    assert days.run(10, -5.0) == {True}


class Slope:
    """A second of three components at a time through a whole line, as the service does it."""

    def __init__(self) -> None:
        self.line = build_line(TunablesConfig(), ClassifierConfig(backends=("constant",)), "talus/v1")
        self.clocks = DataClocks()
        self.second = 0
        self.events: list[Event] = []
        self._rng = np.random.default_rng(1)

    def run(self, seconds: int, ahead_s: int, burst_at: int = -1) -> None:
        """The recorder's clock is so far ahead of this machine's."""
        for _ in range(seconds):
            loud = 50 if burst_at <= self.second < burst_at + 5 else 1
            received_ns = START_NS + (self.second + 1) * NS
            for component in "ENZ":
                samples = (self._rng.normal(0, 100, 100) * loud).astype(np.int32)
                start_ns = START_NS + (self.second + ahead_s) * NS
                block = SampleBlock(StreamId(STREAM.station, component), start_ns, 100.0, samples)
                self.clocks.judge(block, received_ns, float(self.second))
                if self.clocks.was_set_back(block, received_ns, float(self.second)):
                    self.line.pipeline.forget(block.stream)
                self.events += [out for out in self.line.pipeline.feed(block) if isinstance(out, Event)]
            self.second += 1

    @property
    def onsets_s(self) -> list[int]:
        return sorted({round((event.onset_ns - START_NS) / NS) for event in self.events})

    @property
    def restarts(self) -> set[int]:
        (station,) = self.line.pipeline.stations.values()
        return {counts.restarts for counts in station.counts.values()}


def test_a_clock_that_was_ahead_and_is_put_right_blinds_a_station_for_a_minute_at_most() -> None:
    """By 300 s: without help all that comes would pass for known for as long."""
    slope = Slope()
    slope.run(600, ahead_s=300)
    slope.run(250, ahead_s=0, burst_at=760)
    assert slope.restarts == {1}
    assert slope.onsets_s == [760]


def test_a_recorder_that_stays_ahead_may_repeat_itself() -> None:
    """After a reconnect records come again; those are no clock that was set back."""
    slope = Slope()
    slope.run(200, ahead_s=2)
    for _ in range(5):
        slope.second -= 30
        slope.run(60, ahead_s=2)
    assert slope.restarts == {0}


@pytest.mark.parametrize("ahead_s", [-1, 1])
def test_a_leap_second_costs_a_second_and_no_event(ahead_s: int) -> None:
    """A recorder gives a second twice, or a machine does and the recorder leaves one out: no event is lost, made up or
    out of order, and the averages go on."""
    slope = Slope()
    slope.run(100, ahead_s=0)
    slope.run(60, ahead_s=ahead_s, burst_at=130)
    assert slope.restarts == {0}
    assert slope.onsets_s == [130 + ahead_s]
    times = [event.data_ns for event in slope.events]
    assert times == sorted(times)


def crc32c(data: bytes) -> int:
    """The checksum of miniSEED 3."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


@pytest.mark.parametrize("version", [2, 3])
def test_a_record_in_a_leap_second_is_read(tmp_path: Path, version: int) -> None:
    """23:59:60 is the last second of some days; what reads it as the next day's first is a second off and no more."""
    name, start_ns = "FDSN:XX_A_00_H_H_Z", parse_ns("2016-12-31T23:59:59Z")
    record = bytearray(made(name, start_ns, np.arange(100), version=version)[0])
    record[14 if version == 3 else 26] = 60
    if version == 3:
        record[28:32] = bytes(4)
        record[28:32] = crc32c(bytes(record)).to_bytes(4, "little")
    read = RecordReader().read(bytes(record))
    assert [block.start_ns for block in read.blocks] == [start_ns + NS]
    if version == 2:
        (tmp_path / "leap.mseed").write_bytes(bytes(record))
        (block, *_) = ArchiveSource([tmp_path], on_problem=print).blocks()
        assert block.start_ns == start_ns + NS


def test_a_doubted_clock_shows_in_events_and_changes_nothing_else(tmp_path: Path) -> None:
    """The same events in the same order, each with a questionable clock."""
    source = list(ArchiveSource([write_records(tmp_path)], on_problem=print).blocks())
    seen = []
    for clocks in (None, DataClocks()):
        line = build_line(TunablesConfig(), ClassifierConfig(backends=("constant",)), "talus/v1")
        outputs = []
        for block in source:
            judged = clocks.judge(block, block.end_ns - 5 * NS, 0.0) if clocks else block
            outputs += line.pipeline.feed(judged)
        events = [output for output in outputs if isinstance(output, Event)]
        assert all(event.quality.clock.time_questionable == (clocks is not None) for event in events)
        seen.append([(event.id, event.revision, event.onset_ns) for event in events])
    assert seen[0] == seen[1] != []
