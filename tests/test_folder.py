"""Folders that a recorder writes to: growing, rotated, replaced, damaged files, each record read once."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import inspect
import io
import lzma
import math
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from fuzz_support import fuzz, junk, several, spoilt
from obspy import Stream
from records_support import NOON, counts, seconds, trace

from agent.errors import SourceError
from agent.sources import SourceProblem
from agent.sources.folder import FolderSource
from agent.sources.miniseed import Piece, Record, RecordReader, headers, is_miniseed, pieces
from agent.sources.positions import Positions
from agent.sources.watching import files_below
from agent.types import MAX_BLOCK_S, SampleBlock


def miniseed(data: Any, channel: str = "HHZ", start_ns: int = NOON, reclen: int = 512, **options: Any) -> bytes:
    """Records of one channel, as a recorder writes them."""
    buffer = io.BytesIO()
    Stream([trace(data, channel, start_ns)]).write(buffer, format="MSEED", reclen=reclen, **options)
    return buffer.getvalue()


def miniseed3(data: Any, start_ns: int = NOON) -> bytes:
    from pymseed import MS3Record

    record = MS3Record()
    record.sourceid, record.formatversion, record.reclen = "FDSN:XX_SLP_00_H_H_Z", 3, 512
    record.starttime, record.samprate = start_ns, 100.0
    return b"".join(bytes(part) for part in record.generate(data_samples=list(map(int, data)), sample_type="i"))


THREE_SECONDS = miniseed(counts(300))
"""Written while the tests still have their own rights: ObsPy reads files of the environment when it writes records."""

ANY_AGE: dict[str, Any] = {"backlog_s": math.inf}
"""The records of most tests have times of their own; ages have tests of their own."""


class Reader:
    """A source that reads in a thread of its own."""

    def __init__(self, folder: Path, state: Path, **options: Any) -> None:
        self.problems: list[SourceProblem] = []
        self.blocks: list[SampleBlock] = []
        self.at_first: dict[str, int] = {}
        """The source's counters when it gave the first block."""
        self.source = FolderSource(
            [folder], state, on_problem=self.problems.append, **(ANY_AGE | {"rescan_s": 30.0} | options)
        )
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for block in self.source.blocks():
            self.at_first = self.at_first or self.source.counters()
            self.blocks.append(block)
            self.source.acknowledge(block)

    def samples(self, channel: str = "HHZ") -> list[int]:
        found = [b.samples for b in self.blocks if b.stream.seed.endswith(channel)]
        return np.concatenate(found).tolist() if found else []

    def gets(self, n: int, channel: str = "HHZ", within_s: float = 100.0) -> bool:
        return eventually(lambda: len(self.samples(channel)) >= n, within_s)

    def stop(self) -> None:
        self.source.close()
        self._thread.join(60)
        assert not self._thread.is_alive(), "close() did not end the source"


def eventually(what: Callable[[], bool], within_s: float = 100.0) -> bool:
    end = time.monotonic() + within_s
    while not what() and time.monotonic() < end:
        time.sleep(0.02)
    return what()


@contextmanager
def reading(folder: Path, state: Path, **options: Any) -> Iterator[Reader]:
    reader = Reader(folder, state, **options)
    try:
        yield reader
    finally:
        reader.stop()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "data"
    path.mkdir()
    return path


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state" / "folder.sqlite3"


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


# Growing and new files


def test_a_growing_file_is_read_record_by_record(folder: Path, state: Path) -> None:
    """Half a record is left until it is whole, also where the cut lies inside the header."""
    data, want = miniseed(counts(2000)), counts(2000).tolist()
    path = folder / "XX.SLP.00.HHZ.D.2024.122"
    with reading(folder, state) as reader:
        at = 0
        for size in (1, 47, 512, 100, 411, 2000, 7, len(data)):
            append(path, data[at : at + size])
            at += size
            time.sleep(0.05)
        assert reader.gets(2000)
    assert reader.samples() == want
    assert all(a.end_ns == b.start_ns for a, b in zip(reader.blocks, reader.blocks[1:], strict=False))
    assert reader.problems == []


def test_new_files_and_folders_are_found(folder: Path, state: Path) -> None:
    """A folder made, and filled at once, is not missed; a file moved in from a hidden name counts as new."""
    with reading(folder, state) as reader:
        time.sleep(0.3)
        for day in range(3):
            place = folder / "2024" / "XX" / f"SLP{day}" / "HHZ.D"
            place.mkdir(parents=True)
            append(place / "day", miniseed(counts(300, day), start_ns=NOON + day * seconds(86400)))
        hidden = folder / ".upload"
        hidden.write_bytes(miniseed(counts(300), "HHN"))
        time.sleep(0.3)
        assert reader.samples("HHN") == []
        hidden.rename(folder / "upload.mseed")
        assert reader.gets(900)
        assert reader.gets(300, "HHN")
    assert len(reader.samples()) == 900


def test_what_appears_while_a_folder_is_entered_is_listed(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "itself").symlink_to("itself")
    (tmp_path / "below" / "above").symlink_to(tmp_path)
    found = list(files_below(tmp_path, lambda error: None, lambda folder: (folder / "new").touch()))
    assert found == [tmp_path / "new", tmp_path / "below" / "itself", tmp_path / "below" / "new"]


def test_folders_nested_deeper_than_the_stack_are_listed(tmp_path: Path) -> None:
    bottom = tmp_path.joinpath(*"d" * 120)
    bottom.mkdir(parents=True)
    (bottom / "file").touch()
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 60)
    try:
        found = list(files_below(tmp_path, lambda error: None))
    finally:
        sys.setrecursionlimit(limit)
    assert found == [bottom / "file"]


def test_without_inotify_the_listing_finds_everything(
    folder: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a kernel without it, or in a container that forbids it."""
    monkeypatch.setitem(sys.modules, "inotify_simple", None)
    with reading(folder, state, rescan_s=0.1) as reader:
        append(folder / "a", miniseed(counts(300)))
        assert reader.gets(300)
        append(folder / "a", miniseed(counts(300, 1), start_ns=NOON + seconds(3)))
        assert reader.gets(600)
    assert "not told by the system" in reader.problems[0].message


def test_components_that_arrive_together_come_in_the_order_of_time(folder: Path, state: Path) -> None:
    """An hour of one component before the others would make them too late for the trigger."""
    for channel in ("HHZ", "HHN", "HHE"):
        append(folder / channel, miniseed(counts(60_000), channel))
    with reading(folder, state) as reader:
        assert all(reader.gets(60_000, channel) for channel in ("HHZ", "HHN", "HHE"))
    starts = [block.start_ns for block in reader.blocks]
    assert starts == sorted(starts)


# Restart


def reached(state: Path) -> int:
    """Up to where the file is read, as it is kept on disk."""
    with contextlib.closing(sqlite3.connect(f"file:{state}?mode=ro", uri=True)) as kept:
        return int(kept.execute("SELECT max(offset) FROM positions").fetchone()[0] or 0)


KILLED = """
import sys
from pathlib import Path
from agent.sources.folder import FolderSource
source = FolderSource([Path(sys.argv[1])], Path(sys.argv[2]), backlog_s=1e18, on_problem=print)
out = open(sys.argv[3], "ab", buffering=0)
for block in source.blocks():
    out.write(b"%d %d\\n" % (block.samples[0], block.samples[-1]))
    source.acknowledge(block)
"""


@pytest.mark.parametrize("calm_s", [0.0, 0.1, 1.5])
def test_after_a_kill_nothing_is_left_out(folder: Path, state: Path, tmp_path: Path, calm_s: float) -> None:
    """SIGKILL at any moment: each sample is handed on, and only what the last second brought comes twice."""
    n, seen = 6000, tmp_path / "seen"
    seen.touch()
    data = miniseed(np.arange(n, dtype=np.int32), encoding="INT32")
    half = len(data) // 1024 * 512 + 100

    def spans() -> list[list[int]]:
        return [list(map(int, line.split())) for line in seen.read_text().splitlines()]

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", KILLED, str(folder), str(state), str(seen)])

    process = start()
    for at in range(0, half, 1000):
        append(folder / "a", data[at : min(at + 1000, half)])
        time.sleep(0.01)
    assert eventually(lambda: len(spans()) > (half // 512 - 1 if calm_s else 2))
    if calm_s > 1:
        assert eventually(lambda: reached(state) == half // 512 * 512), "more than a second is not needed"
    time.sleep(min(calm_s, 0.1))
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = spans()
    append(folder / "a", data[half:])
    process = start()
    assert eventually(lambda: spans()[-1][-1] == n - 1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    after = spans()[len(before) :]
    assert after[0][0] <= before[-1][1] + 1
    assert [last for _, last in after[:-1]] == [first - 1 for first, _ in after[1:]]
    if calm_s > 1:
        assert after[0][0] == before[-1][1] + 1


def test_positions_that_are_no_database_are_put_aside(folder: Path, state: Path) -> None:
    state.parent.mkdir()
    state.write_bytes(b"not a database at all, but long enough to look at" * 100)
    append(folder / "a", miniseed(counts(300)))
    with reading(folder, state) as reader:
        assert reader.gets(300)
    assert Path(f"{state}.damaged").exists()


def test_positions_that_cannot_be_kept_end_the_source(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file where the folder should be")
    source = FolderSource([folder], tmp_path / "state" / "x.sqlite3", on_problem=print, **ANY_AGE)
    with pytest.raises(SourceError, match="positions cannot be kept"):
        next(source.blocks())


def test_positions_that_can_no_longer_be_read_cost_a_file_and_not_the_source(folder: Path, state: Path) -> None:
    """A card that loses a sector in the middle of the night."""
    positions, reader = Positions(state), RecordReader()
    source = FolderSource([folder], state, on_problem=print, **ANY_AGE)
    append(folder / "a", miniseed(counts(300)))
    assert sum(len(block.samples) for block in source._merge([folder / "a"], positions, reader)) == 300
    with contextlib.closing(sqlite3.connect(state)) as worn:
        worn.execute("DROP TABLE positions")
    append(folder / "b", miniseed(counts(300, 1)))
    assert list(source._merge([folder / "b"], positions, reader)) == []
    assert source.counters()["unreadable"] == 1
    positions.close()


# Rotation and replacement


def test_a_rotated_file_goes_on_under_its_new_name(folder: Path, state: Path) -> None:
    """Renamed while its last record is half written; its successor takes the old name."""
    data = miniseed(counts(1000))
    current = folder / "current"
    with reading(folder, state) as reader:
        append(current, data[: 512 + 100])
        assert eventually(lambda: reader.source.counters()["blocks"] == 1)
        current.rename(folder / "current.1")
        append(folder / "current.1", data[612:])
        append(current, miniseed(counts(700, 1), start_ns=NOON + seconds(10)))
        assert reader.gets(1700)
        time.sleep(0.3)
    assert sorted(reader.samples()) == sorted([*counts(1000).tolist(), *counts(700, 1).tolist()])


def test_a_file_that_is_copied_and_truncated_is_not_read_twice(folder: Path, state: Path) -> None:
    """logrotate's copytruncate, and a backup beside the original."""
    path = folder / "current"
    with reading(folder, state) as reader:
        append(path, miniseed(counts(1000)))
        assert reader.gets(1000)
        shutil.copy(path, folder / "backup")
        os.truncate(path, 0)
        append(path, miniseed(counts(700, 1), start_ns=NOON + seconds(10)))
        assert reader.gets(1700)
        time.sleep(0.3)
    assert reader.samples() == [*counts(1000).tolist(), *counts(700, 1).tolist()]


def test_a_longer_copy_that_replaces_a_file_adds_only_what_is_new(folder: Path, state: Path) -> None:
    """As rsync does it each minute."""
    data = miniseed(counts(2000))
    with reading(folder, state) as reader:
        for end in range(512, len(data) + 1, 512):
            (folder / ".part").write_bytes(data[:end])
            (folder / ".part").rename(folder / "a")
            time.sleep(0.03)
        assert reader.gets(2000)
        time.sleep(0.2)
    assert reader.samples() == counts(2000).tolist()
    assert reader.problems == []


def test_a_rewritten_file_is_read_again_and_that_is_told(folder: Path, state: Path) -> None:
    """The same first record and another second one: nothing else tells that the content is new."""
    first, second, other = (miniseed(counts(100, seed), start_ns=NOON + seconds(seed)) for seed in range(3))
    path = folder / "a"
    with reading(folder, state) as reader:
        path.write_bytes(first + second)
        assert reader.gets(200)
        (folder / ".new").write_bytes(first + other + second)
        (folder / ".new").rename(path)
        assert reader.gets(500)
    assert any("was rewritten" in p.message for p in reader.problems)


def test_zeros_at_the_end_are_room_that_will_be_filled(folder: Path, state: Path) -> None:
    """Recorders that allocate a file at once and fill it in place."""
    data = miniseed(counts(3000))
    path = folder / "a"
    path.write_bytes(data[:1024] + bytes(3_000_000))
    with reading(folder, state) as reader:
        assert eventually(lambda: reader.source.counters()["blocks"] == 2)
        for at in range(1024, len(data), 512):
            with path.open("r+b") as file:
                file.seek(at)
                file.write(data[at : at + 512])
            time.sleep(0.01)
        assert reader.gets(3000)
    assert reader.samples() == counts(3000).tolist()
    assert "foreign" not in reader.source.counters()


# Damage


def test_junk_between_records_is_skipped_and_counted(folder: Path, state: Path) -> None:
    data = miniseed(counts(600))
    junk = b"\x01garbage" * 40
    append(folder / "a", data[:512] + junk + data[512:] + bytes(5_000_000) + data[:512])
    with reading(folder, state) as reader:
        assert eventually(lambda: len(reader.samples()) > 600)
    assert reader.source.counters()["foreign_bytes"] == len(junk) + 5_000_000
    assert "not miniSEED" in reader.problems[0].message


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_compressed_files_are_called_what_they_are(folder: Path, state: Path, pack: Callable[[bytes], bytes]) -> None:
    append(folder / "a", pack(THREE_SECONDS))
    with reading(folder, state, timeout_s=0.2) as reader:
        assert eventually(lambda: "is compressed (" in "".join(reader.source.problems()))
        assert reader.source.counters()["compressed_bytes"] == (folder / "a").stat().st_size
        assert "unpack" in reader.problems[0].hint
        append(folder / "b", THREE_SECONDS)
        assert reader.gets(300)
    assert "foreign" not in reader.source.counters()


def test_a_record_cut_short_does_not_hold_up_those_behind_it(folder: Path, state: Path) -> None:
    """A recorder that lost power goes on in the middle of a record."""
    data = miniseed(counts(900))
    append(folder / "a", data[:700])
    with reading(folder, state) as reader:
        assert eventually(lambda: reader.source.counters()["blocks"] == 1)
        append(folder / "a", miniseed(counts(500, 1), start_ns=NOON + seconds(20)))
        assert eventually(lambda: reader.samples()[-500:] == counts(500, 1).tolist())
    assert reader.source.counters()["foreign_bytes"] == 700 - 512


def test_channels_that_are_not_motion_are_counted(folder: Path, state: Path) -> None:
    append(folder / "a", miniseed(counts(600), "LCQ") + miniseed(counts(600), "HHZ"))
    with reading(folder, state) as reader:
        assert reader.gets(600)
    assert reader.source.counters()["not_motion"] >= 1


def test_an_unreadable_file_is_told_and_the_rest_is_read(folder: Path, state: Path) -> None:
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "nowhere").symlink_to(folder / "none")
    os.mkfifo(folder / "pipe")
    append(folder / "a", miniseed(counts(300)))
    with reading(folder, state) as reader:
        assert reader.gets(300)


@pytest.fixture
def forbidding() -> Iterator[None]:
    """Rights count, also where the tests run as root."""
    if os.getuid() == 0:
        os.setegid(65534)
        os.seteuid(65534)
    yield
    if os.getuid() == 0:
        os.seteuid(0)
        os.setegid(0)


@pytest.fixture
def open_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder that whoever reads in the test may enter."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        yield Path(name)


def test_a_file_that_could_not_be_read_at_first_sight_is_read_once_it_can_be(
    open_folder: Path, forbidding: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recorder that creates its files with narrow rights and widens them later; a reason while it lasts. The change
    of rights is told: no second try at an interval is waited for."""
    monkeypatch.setattr("agent.sources.folder._RETRY_S", 3600.0)
    folder = open_folder / "data"
    folder.mkdir()
    append(folder / "a", THREE_SECONDS)
    (folder / "a").chmod(0)
    with reading(folder, open_folder / "state.sqlite3") as reader:
        assert eventually(lambda: reader.source.problems() != [])
        assert reader.source.problems() == [f"{folder / 'a'} cannot be read (Permission denied); tried again"]
        (folder / "a").chmod(0o644)
        assert reader.gets(300)
        assert eventually(lambda: reader.source.problems() == [])
    assert [problem.message for problem in reader.problems] == [f"{folder / 'a'} cannot be read (Permission denied)"]


def test_a_file_that_fails_in_the_reading_is_tried_again_at_growing_intervals(folder: Path, state: Path) -> None:
    """As on a network file system that answers with an error of its own: nothing tells when that is over. The memory of
    a process gives such an error here, from a link that is then made to lead elsewhere."""
    elsewhere = folder.parent / "elsewhere"
    elsewhere.symlink_to("/proc/self/mem")
    (folder / "a").symlink_to(elsewhere)
    with reading(folder, state, rescan_s=3600.0) as reader:
        assert eventually(lambda: reader.source.problems() != [])
        assert "cannot be read (Input/output error)" in reader.source.problems()[0]
        (folder.parent / "whole").write_bytes(miniseed(counts(300)))
        (folder.parent / "link").symlink_to(folder.parent / "whole")
        (folder.parent / "link").replace(elsewhere)
        assert reader.gets(300)
        assert eventually(lambda: reader.source.problems() == [])
    assert reader.source.counters()["unreadable"] == 1


def test_a_file_that_is_empty_or_all_zeros_at_first_sight_is_read_when_it_is_filled(folder: Path, state: Path) -> None:
    data = miniseed(counts(300))
    (folder / "empty").touch()
    (folder / "zeros").write_bytes(bytes(len(data)))
    with reading(folder, state) as reader:
        time.sleep(0.4)
        assert reader.problems == []
        append(folder / "empty", data)
        assert reader.gets(300)
        with (folder / "zeros").open("r+b") as file:
            file.write(miniseed(counts(300), "HHN"))
        assert reader.gets(300, "HHN")


def test_a_folder_that_is_not_there_or_cannot_be_listed_is_a_reason(open_folder: Path, forbidding: None) -> None:
    """A disk that is not mounted beside one that delivers would be noticed by nobody else."""
    folder, closed = open_folder / "data", open_folder / "closed"
    closed.mkdir()
    closed.chmod(0)
    with reading(folder, open_folder / "state.sqlite3", rescan_s=0.2) as reader:
        assert eventually(
            lambda: reader.source.problems() == [f"{folder} cannot be listed (No such file or directory)"]
        )
        folder.mkdir()
        assert eventually(lambda: reader.source.problems() == [])
    with reading(closed, open_folder / "other.sqlite3", rescan_s=0.2) as reader:
        assert eventually(lambda: reader.source.problems() == [f"{closed} cannot be listed (Permission denied)"])
        closed.chmod(0o755)
        append(closed / "a", THREE_SECONDS)
        assert reader.gets(300)
        assert reader.source.problems() == []


def test_silence_is_told_and_so_is_its_end(folder: Path, state: Path) -> None:
    with reading(folder, state, timeout_s=0.3) as reader:
        assert eventually(lambda: bool(reader.problems))
        assert "no new data" in reader.source.problems()[0]

        def goes_on() -> bool:
            append(folder / "a", THREE_SECONDS)
            return not reader.source.problems()

        assert eventually(goes_on)
        assert eventually(lambda: any(problem.message == "new data again" for problem in reader.problems))
    assert reader.problems[0].message == "no new data for 0.3 s"


# Framing, fuzzed

RECORDS, RECORD_3 = miniseed(counts(800)), miniseed3(counts(50))


def part(chance: Random) -> bytes:
    """Whole records, pieces of them, damaged ones, and what is none."""
    kind = chance.randrange(7)
    if kind < 2:
        return RECORDS[512 * kind : 512 * kind + 512]
    if kind == 2:
        return RECORD_3
    if kind == 3:
        return junk(chance, 200)
    if kind == 4:
        return bytes(chance.randrange(600))
    if kind == 5:
        begin = chance.randrange(512)
        return RECORDS[begin : begin + chance.randint(1, 511)]
    at, new = chance.randrange(64), junk(chance, 8)
    return RECORDS[:at] + new + RECORDS[at + len(new) : 512]


@fuzz(300)
def test_any_bytes_are_records_or_junk_or_wait(chance: Random) -> None:
    """Pieces follow each other without gaps; what waits at the end is short unless it may be one long record."""
    data = b"".join(several(chance, 8, part))
    found = list(pieces(data))
    at = 0
    for piece in found:
        assert piece.begin == at < piece.end
        assert piece.is_record is False or is_miniseed(data[piece.begin : piece.end])
        at = piece.end
    rest = data[at:].rstrip(b"\0")
    assert len(rest) < 48 or is_miniseed(rest)


@fuzz(100)
def test_sound_records_are_found_after_anything_in_any_portions(chance: Random) -> None:
    """A record that came whole is found, though the bytes before it are damaged and arrive piece by piece."""
    data = b"".join(several(chance, 8, part)) + RECORDS[:512] + RECORDS[512:1024]
    cuts = several(chance, 4, lambda chance: chance.randint(0, 4000))
    found, at = [], 0
    for end in [*sorted(cuts), len(data)]:
        done = at
        for piece in pieces(data[at:end]):
            done = at + piece.end
            if piece.is_record:
                found.append(data[at + piece.begin : done])
        at = max(at, done)
    assert found[-1] == RECORDS[512:1024]
    assert at == len(data)


class CountingReader(RecordReader):
    """Counts the bytes of the records that gave samples."""

    used = 0

    def read_all(self, data: bytes, **options: Any) -> Iterator[tuple[Piece, Record | None]]:
        for piece, record in super().read_all(data, **options):
            self.used += piece.end - piece.begin if record is not None and record.blocks else 0
            yield piece, record


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@fuzz(60)
def test_any_file_that_grows_is_read_or_counted(shared: Path, chance: Random) -> None:
    """Every byte behind which the source has gone on was in a record that gave samples, or is counted with a reason."""
    path = shared / "growing"
    path.unlink(missing_ok=True)
    data = b"".join(several(chance, 8, lambda chance: part(chance) if chance.randrange(3) else spoilt(chance, RECORDS)))
    positions, reader = Positions(Path(":memory:")), CountingReader()
    source = FolderSource([shared], shared / "unused", on_problem=lambda problem: None, **ANY_AGE)
    done = 0
    for end in [*sorted(chance.randint(0, len(data)) for _ in range(chance.randrange(4))), len(data)]:
        append(path, data[done:end])
        done = end
        for block in source._merge([path], positions, reader):
            assert 0 < len(block.samples) <= MAX_BLOCK_S * block.rate_hz + 1
    positions.close()
    reached = max((position.offset for position in source._reached.values()), default=0)
    dropped = sum(number for name, number in source.counters().items() if name.endswith("_bytes"))
    assert reader.used + dropped == reached <= len(data)
    assert len(data) - reached < 64 or headers(data[reached:]) or not data[reached:].strip(b"\0")
