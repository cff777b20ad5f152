"""A station that is started on a worn or full card warns all the same, and loses nothing that waited on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from agent_support import Agent, by_revision, expected, talus, write_config, write_records
from broker_support import Collector, make_alert, make_event, running, stamp, wait_for

from agent.commands import doctor
from agent.config.outputs import FileOutputConfig
from agent.deliver.file import FileSink
from agent.deliver.outbox import MAIN, Outbox
from agent.messages.payloads import summary_message
from agent.sources.positions import Position, Positions


class Disk:
    """A small file system of its own, mounted."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def remount(self, how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", str(self.path)], check=True, capture_output=True)

    def fill(self) -> None:
        with (self.path / "fill").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
            while True:
                file.write(bytes(4096))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "talus-test", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount")
    if done.returncode:
        pytest.skip(f"a disk cannot be mounted here: {done.stderr.strip()}")
    yield Disk(path)
    subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The service's folder in memory."""
    folder = tmp_path / "memory"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(folder))
    return folder


def test_an_agent_started_on_a_read_only_disk_warns_and_says_what_is_wrong(
    disk: Disk, memory: Path, tmp_path: Path
) -> None:
    records = write_records(tmp_path / "records")
    disk.remount("ro")
    with running(tmp_path) as broker, Collector(broker.settings(), "talus/#") as heard:
        tunables = "{policy: {rules: {earthquake: {severity: severe, min_probability: 0.5}}}}"
        state = str(disk.path / "state")
        path = write_config(tmp_path / "station", records, broker.port, state_dir=state, tunables=tunables)
        agent = Agent("run", "--config", path)
        assert agent.end() == 0, agent.log
        told = [{**body, "decision": None} for body in heard.bodies("/event")]  # by other rules than a replay's
        assert by_revision(told) == by_revision([{**body, "decision": None} for body in expected(records)])
        assert "raise" in {body["action"] for body in heard.bodies("/alert")}
    assert "Read-only file system" in agent.log
    status, shown, _ = talus("status", "--config", path)
    assert status == 1 and "held in memory" in shown


def test_what_waits_on_the_disk_is_sent_from_memory_and_is_still_there_afterwards(disk: Disk, memory: Path) -> None:
    path = disk.path / "state" / "outbox.sqlite3"
    with closing(Outbox(path)) as outbox:
        outbox.put([make_alert(0), make_alert(1), summary_message(make_event(1), stamp())])
    disk.remount("ro")
    with closing(Outbox(path)) as outbox:
        assert outbox.stats().in_memory == "Read-only file system"
        assert outbox.depth == 2
        assert [message.name for message in outbox.retained()[0]] == ["last_event"]
        outbox.put([make_alert(2)])
        taken = outbox.cursor(MAIN).fetch(10)
        assert [entry.message.key for entry in taken] == [make_alert(n).key for n in range(3)]
        outbox.cursor(MAIN).delete([entry.id for entry in taken])
        assert outbox.depth == 0
    disk.remount("rw")
    with closing(Outbox(path)) as outbox:
        assert outbox.depth == 2, "sent again, as copies"
        assert outbox.stats().in_memory is None


def test_an_outbox_that_a_kill_left_behind_is_read_with_its_log(disk: Disk, memory: Path) -> None:
    """The newest messages stand in the write-ahead log alone."""
    path = disk.path / "state" / "outbox.sqlite3"
    code = f"""
import os
from pathlib import Path
from broker_support import make_alert
from agent.config.outputs import FileOutputConfig
from agent.deliver.file import FileSink
from agent.deliver.outbox import MAIN, Outbox
Outbox(Path({str(path)!r})).put([make_alert(n) for n in range(5)])
os.kill(os.getpid(), 9)
"""
    env = os.environ | {"PYTHONPATH": os.pathsep.join((str(Path(__file__).parent), str(Path(__file__).parents[1])))}
    assert subprocess.run([sys.executable, "-c", code], env=env, check=False).returncode == -9
    disk.remount("ro")
    with closing(Outbox(path)) as outbox:
        assert outbox.depth == 5
    assert list(memory.iterdir()) == [], "the copy that was read is gone"


def test_a_full_disk_without_an_outbox_gives_one_in_memory(disk: Disk, memory: Path) -> None:
    path = disk.path / "state" / "outbox.sqlite3"
    disk.fill()
    with closing(Outbox(path)) as outbox:
        assert "No space left" in str(outbox.stats().in_memory) or "full" in str(outbox.stats().in_memory)
        outbox.put([make_alert(0)])
        assert outbox.depth == 1


def test_what_waits_in_an_outbox_on_a_full_disk_is_sent(disk: Disk, memory: Path) -> None:
    path = disk.path / "state" / "outbox.sqlite3"
    with closing(Outbox(path)) as outbox:
        outbox.put([make_alert(0)])
    disk.fill()
    with closing(Outbox(path)) as outbox:
        assert [entry.message.name for entry in outbox.cursor(MAIN).fetch(10)] == ["alert"]


def test_a_file_of_lines_on_a_full_disk_says_so_and_is_whole_when_there_is_room_again(
    disk: Disk, memory: Path, tmp_path: Path
) -> None:
    path = disk.path / "lines.jsonl"
    with closing(Outbox(tmp_path / "outbox.sqlite3", sinks=("file",))) as outbox:
        outbox.put([make_alert(n) for n in range(200)])
        disk.fill()
        sink = FileSink(FileOutputConfig(path=path), outbox.cursor("file"))
        sink.start()
        wait_for(sink.reasons)
        (reason,) = sink.reasons()
        assert reason.code == "output_failed" and "No space left" in reason.text
        (disk.path / "fill").unlink()
        wait_for(lambda: outbox.depth == 0)
        assert sink.stop()
    lines = [json.loads(line)["message"]["id"] for line in path.read_bytes().splitlines()]
    assert len(set(lines)) == 200 == len(lines)


@pytest.mark.parametrize("is_full", [False, True])
def test_a_folder_is_read_on_from_where_it_was_left_although_the_disk_is_read_only_or_full(
    disk: Disk, memory: Path, is_full: bool
) -> None:
    path = disk.path / "state" / "positions.sqlite3"
    left = Position(512, b"tail")
    with closing(Positions(path)) as positions:
        positions.put([(b"head", Path("/records/one"), left)])
    if is_full:
        disk.fill()
    else:
        disk.remount("ro")
    with closing(Positions(path)) as positions:
        assert positions.get(b"head") == {Path("/records/one"): left}
        positions.put([(b"head", Path("/records/one"), Position(1024, b"more"))])
        assert positions.get(b"head") == {Path("/records/one"): Position(1024, b"more")}
    with closing(Positions(disk.path / "none" / "positions.sqlite3")) as positions:
        assert positions.get(b"head") == {}


def test_doctor_does_not_send_an_operator_after_permissions_when_the_disk_is_read_only(disk: Disk) -> None:
    disk.remount("ro")
    finding = doctor._state(disk.path)
    assert finding.state == "bad" and "Read-only file system" in finding.detail and "dmesg" in finding.hint
