"""Old data in a recorder's folder: whenever and wherever they appear, they are not processed as live."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from records_support import counts
from test_folder import Reader, append, eventually, miniseed, reading

from agent.host.clock import EARLIEST_NS, HostClock, MachineClock
from agent.host.data_age import ROLLOVER_S
from agent.sources import backlog
from agent.sources.positions import Positions
from agent.types import NS

SYNCHRONISED, NOBODY_KEEPS_IT = HostClock("chrony", 0.0, True), HostClock(None, None, False)
NOT_YET = HostClock("systemd-timesyncd", None, False)
YEAR_S = 365 * 86_400.0
BACKLOG_S = 7200.0
SECONDS = 5
"""Length of the records in ``file``."""


class Clock(MachineClock):
    """This machine's clock, as far off as the test says, kept by whom the test says."""

    def __init__(self, said: HostClock = SYNCHRONISED, off_s: float = 0.0) -> None:
        self.off_s, self.keeper = off_s, said
        super().__init__(lambda: self.keeper, lambda: time.time_ns() + round(self.off_s * NS))


def file(path: Path, age_s: float, channel: str = "HHZ", written_s: float | None = None) -> Path:
    """A file whose newest sample is so old, and which was written so long ago (None: when its newest sample was)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    now = time.time()
    append(path, miniseed(counts(100 * SECONDS), channel, round((now - age_s - SECONDS) * NS)))
    written = now - (age_s if written_s is None else written_s)
    os.utime(path, (written, written))
    return path


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A recorder's disk: a year-old archive of three files, and one of now."""
    for number in range(3):
        file(tmp_path / "disk" / "old" / f"{number}", YEAR_S + 3600 * number)
    file(tmp_path / "disk" / "now", 1.0, "HHN")
    return tmp_path / "disk"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state" / "folder.sqlite3"


def live(folder: Path, state: Path, said: HostClock = NOBODY_KEEPS_IT, off_s: float = 0.0) -> Reader:
    return Reader(folder, state, backlog_s=BACKLOG_S, rescan_s=0.2, clock=Clock(said, off_s))


def only_new(reader: Reader) -> None:
    """What is of now is handed on, and of what is old nothing."""
    try:
        assert reader.gets(100 * SECONDS, "HHN")
        assert eventually(lambda: reader.source.counters().get("old") == 3)
        time.sleep(0.3)
        assert reader.samples("HHZ") == []
    finally:
        reader.stop()


# Wherever and whenever it appears


def test_at_the_very_first_start(disk: Path, state: Path) -> None:
    only_new(live(disk, state))


def test_when_the_disk_is_mounted_after_the_start(disk: Path, state: Path) -> None:
    """The mount point was absent; an empty folder under a mount is the same to the agent."""
    reader = live(disk.parent / "mount", state)
    time.sleep(0.3)
    disk.rename(disk.parent / "mount")
    only_new(reader)


def test_when_the_path_is_added_to_the_configuration_later(disk: Path, state: Path) -> None:
    other = disk.parent / "other"
    file(other / "now", 2.0, "HHE")
    with reading(other, state, backlog_s=BACKLOG_S) as reader:
        assert reader.gets(100 * SECONDS, "HHE")
    only_new(live(disk, state))


def test_when_the_disk_is_back_after_its_positions_were_forgotten(disk: Path, state: Path) -> None:
    with reading(disk, state, backlog_s=BACKLOG_S) as reader:
        assert reader.gets(100 * SECONDS, "HHN")
    positions = Positions(state)
    positions._db.execute("UPDATE positions SET seen = seen - 31 * 86400")
    positions.close()
    away = disk.rename(disk.parent / "away")
    with reading(disk, state, backlog_s=BACKLOG_S):
        time.sleep(0.3)
    (away / "now").unlink()
    file(away / "now", 1.0, "HHN")
    only_new(live(away, state))


def test_when_an_old_state_is_restored(tmp_path: Path, state: Path) -> None:
    """Files that it knows in part, and files that it does not know, have gone on without it."""
    known = file(tmp_path / "disk" / "known", YEAR_S)
    with reading(tmp_path / "disk", state, backlog_s=10 * YEAR_S) as reader:
        assert reader.gets(100 * SECONDS)
    append(known, miniseed(counts(100 * SECONDS), "HHZ", round((time.time() - YEAR_S + 60) * NS)))
    file(tmp_path / "disk" / "b", YEAR_S - 3600)
    file(tmp_path / "disk" / "c", YEAR_S - 7200)
    file(tmp_path / "disk" / "now", 1.0, "HHN")
    reader = live(tmp_path / "disk", state)
    try:
        assert eventually(lambda: reader.source.counters().get("old", 0) > 3)
        assert reader.gets(100 * SECONDS, "HHN")
        assert reader.samples("HHZ") == []
    finally:
        reader.stop()


@pytest.mark.parametrize("written_s", [0.0, None])
def test_when_it_is_copied_with_or_without_its_times(tmp_path: Path, state: Path, written_s: float | None) -> None:
    """``cp`` makes an old archive look new, ``cp -p`` does not: what counts are the times in the records."""
    folder = tmp_path / "disk"
    file(folder / "now", 1.0, "HHN")
    reader = live(folder, state)
    for number in range(3):
        file(folder / f"copy{number}", YEAR_S + number, written_s=written_s)
    only_new(reader)


def test_when_it_is_copied_bit_by_bit(tmp_path: Path, state: Path) -> None:
    """A long copy grows like a recorder's file; but the data do not come at the pace at which they were recorded."""
    data = miniseed(counts(100 * 3600), "HHZ", round((time.time() - YEAR_S) * NS))
    (tmp_path / "disk").mkdir()
    reader = live(tmp_path / "disk", state)
    for at in range(0, len(data), 20_000):
        append(tmp_path / "disk" / "copy", data[at : at + 20_000])
        time.sleep(0.01)
    assert eventually(lambda: reader.source.counters().get("old_bytes", 0) == len(data))
    reader.stop()
    assert reader.samples() == []


def test_of_a_file_that_goes_on_only_what_is_old_is_left_out(tmp_path: Path, state: Path) -> None:
    """A day's file that is found at noon: the last two hours of it, and all that follows."""
    begin_ns = round((time.time() - 4 * 3600) * NS)
    (tmp_path / "disk").mkdir()
    append(tmp_path / "disk" / "day", miniseed(counts(100 * 4 * 3600), "HHZ", begin_ns, reclen=4096))
    begun_ns = time.time_ns()
    with reading(tmp_path / "disk", state, backlog_s=BACKLOG_S) as reader:
        assert reader.gets(100 * 7000)
        behind_ns = time.time_ns() - round(BACKLOG_S * NS) - reader.blocks[0].start_ns
        assert 0 <= behind_ns < 60 * NS + time.time_ns() - begun_ns
        append(tmp_path / "disk" / "day", miniseed(counts(1000), "HHN", round(time.time() * NS)))
        assert reader.gets(1000, "HHN")


def test_what_is_written_now_does_not_wait_for_an_archive(
    tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of a hundred thousand old files is looked through between two looks for new data."""
    monkeypatch.setattr("agent.sources.folder._LATER", 1)
    for number in range(OLD):
        file(tmp_path / "disk" / f"a{number}", YEAR_S + number)
    file(tmp_path / "disk" / "z", 1.0, "HHN")
    with reading(tmp_path / "disk", state, backlog_s=BACKLOG_S) as reader:
        assert reader.gets(100 * SECONDS, "HHN")
        assert eventually(lambda: reader.source.counters().get("old", 0) == OLD)
        assert eventually(lambda: bool(reader.problems))
    assert reader.at_first.get("old", 0) <= 1
    assert [problem.message.split(" ")[0] for problem in reader.problems] == [str(OLD)]


def test_it_is_said_once_with_counts_and_how_to_replay_it(disk: Path, state: Path) -> None:
    with reading(disk, state, backlog_s=BACKLOG_S) as reader:
        assert eventually(lambda: bool(reader.problems))
        time.sleep(0.3)
    [said] = reader.problems
    year = time.strftime("%Y-%m-%dT", time.gmtime(time.time() - YEAR_S))
    assert said.message.startswith("3 files with 0.00")
    assert "MB of data older than backlog_s (7200 s), from " in said.message
    assert f" to {year}" in said.message
    assert said.message.endswith(f"taken as read: {disk / 'old' / '0'} and 2 more")
    assert said.hint.startswith(f"`talus replay {disk / 'old'}` shows what they hold")


def test_where_nothing_but_old_data_comes_the_reason_says_so(tmp_path: Path, state: Path) -> None:
    file(tmp_path / "disk" / "a", 3 * 86_400)
    with reading(tmp_path / "disk", state, backlog_s=BACKLOG_S, timeout_s=0.3) as reader:
        assert eventually(lambda: bool(reader.source.problems()))
        assert reader.source.problems()[0].endswith(
            "for 0.3 s: what comes is 3.0 d old and is taken as read (backlog_s: 7200)"
        )


# Clocks


def test_a_recorder_whose_clock_is_wrong_is_heard_as_it_records(tmp_path: Path, state: Path) -> None:
    """Three days behind: what is there is taken for old, and what is then recorded is not, whatever its times say."""
    path, behind_s = tmp_path / "disk" / "a", 3 * 86_400.0
    file(path, behind_s, written_s=0.0)
    with reading(tmp_path / "disk", state, backlog_s=BACKLOG_S) as reader:
        assert eventually(lambda: reader.source.counters().get("old") == 1)
        for _ in range(8):
            time.sleep(0.25)
            append(path, miniseed(counts(25), "HHN", round((time.time() - behind_s - 0.25) * NS)))
        assert reader.gets(100, "HHN")
    assert reader.samples("HHZ") == []


def test_a_week_rollover_of_the_recorder_s_gps_makes_new_files_no_old_ones(tmp_path: Path, state: Path) -> None:
    file(tmp_path / "disk" / "a", ROLLOVER_S + 2.0, written_s=0.0)
    file(tmp_path / "disk" / "b", ROLLOVER_S + 3.0, "HHN")
    with reading(tmp_path / "disk", state, backlog_s=BACKLOG_S) as reader:
        assert reader.gets(100 * SECONDS)
        assert eventually(lambda: reader.source.counters().get("old") == 1)
    assert reader.samples("HHN") == [], "written twenty years ago, and recorded then"


@pytest.fixture
def short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog, "WAIT_S", 1.0)


OLD = 40
"""Files."""
AT_1970_S = -(time.time() - 600.0)


def test_files_that_were_never_seen_wait_for_a_clock_that_is_set(disk: Path, state: Path) -> None:
    """At 1970 all files are of the future. Then a time service sets the clock, and their ages can be told."""
    clock = Clock(NOT_YET, AT_1970_S)
    with reading(disk, state, backlog_s=BACKLOG_S, rescan_s=0.2, clock=clock) as reader:
        waiting = [f"4 files in {disk} wait until this machine's clock is set"]
        assert eventually(lambda: reader.source.problems() == waiting)
        assert reader.blocks == []
        clock.off_s, clock.keeper = 0.0, SYNCHRONISED
        clock.look()
        assert reader.gets(100 * SECONDS, "HHN")
        assert eventually(lambda: reader.source.problems() == [])
    assert reader.samples("HHZ") == []


@pytest.mark.parametrize("off_s", [AT_1970_S, -30 * 86_400.0], ids=["1970", "a month ago"])
def test_a_clock_that_is_never_set_costs_what_was_there_and_nothing_that_follows(
    tmp_path: Path, state: Path, short_wait: None, off_s: float
) -> None:
    """At 1970, or at the last shutdown a month ago: what is there at first is of unknown age. What is recorded then is
    newer than all of that, in a file that grows as in one that appears whole; a disk mounted later is not."""
    path = file(tmp_path / "disk" / "a", 10.0)
    with reading(tmp_path / "disk", state, backlog_s=BACKLOG_S, rescan_s=0.2, clock=Clock(NOT_YET, off_s)) as reader:
        assert eventually(lambda: reader.source.counters().get("old") == 1)
        append(path, miniseed(counts(500), "HHN", round((time.time() - 5) * NS)))
        assert reader.gets(500, "HHN")
        file(tmp_path / "disk" / "whole", 1.0, "HHE")
        assert reader.gets(100 * SECONDS, "HHE")
        file(tmp_path / "disk" / "late" / "b", YEAR_S, "HHZ")
        assert eventually(lambda: reader.source.counters().get("old") == 2)
        assert "of unknown age, as the clock is not set" in reader.problems[0].message
    assert reader.samples("HHZ") == []


def test_a_file_that_is_known_goes_on_at_once_though_the_clock_is_not_set(tmp_path: Path, state: Path) -> None:
    """After a restart on a machine without a battery-backed clock the station is not deaf until NTP answers."""
    path = file(tmp_path / "disk" / "a", 10.0)
    with reading(tmp_path / "disk", state, backlog_s=BACKLOG_S) as reader:
        assert reader.gets(100 * SECONDS)
    append(path, miniseed(counts(500), "HHN", round((time.time() - 5) * NS)))
    with reading(tmp_path / "disk", state, backlog_s=BACKLOG_S, clock=Clock(NOT_YET, AT_1970_S)) as reader:
        assert reader.gets(500, "HHN")


def test_a_clock_that_nothing_keeps_and_that_is_behind_the_data_tells_no_age(tmp_path: Path, state: Path) -> None:
    """At the last shutdown, and no time service: an old disk that is newer than that must not pass for live."""
    shutdown_s = 2 * YEAR_S
    assert time.time() - shutdown_s > EARLIEST_NS / NS - 3 * YEAR_S
    clock = Clock(NOBODY_KEEPS_IT, -(time.time() - EARLIEST_NS / NS) + 60)
    file(tmp_path / "disk" / "a", 30 * 86_400)
    with reading(tmp_path / "disk", state, backlog_s=BACKLOG_S, rescan_s=0.2, clock=clock) as reader:
        assert eventually(lambda: reader.source.counters().get("old") == 1)
    assert reader.blocks == []
