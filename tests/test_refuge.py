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
from broker_support import Collector, make_alert, running

from agent.commands import doctor
from agent.config.file import load
from agent.deliver.outbox import Outbox
from agent.health.status import FILE
from agent.service.refuge import in_use, settle


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
    assert "takes nothing (Read-only file system)" in agent.log
    status, shown, _ = talus("status", "--config", path)
    assert status == 1 and "in memory only" in shown


def test_what_waits_on_the_disk_is_sent_and_comes_back_to_it(disk: Disk, memory: Path, tmp_path: Path) -> None:
    path = write_config(tmp_path / "station", "none", 1883, state_dir=str(disk.path / "state"))
    config = load(path)
    with closing(Outbox(config.outbox_path)) as outbox:
        outbox.put([make_alert(0), make_alert(1)])
    (disk.path / "state" / "control").mkdir()
    (disk.path / "state" / "control" / "kept.json").write_text("tuned")
    (disk.path / "state" / "evidence").mkdir()
    (disk.path / "state" / "evidence" / "one.mseed").write_bytes(bytes(1000))
    disk.remount("ro")

    inside, complaint = settle(config)
    assert complaint is not None and "Read-only file system" in complaint
    assert inside.state_dir.parent == memory and inside.evidence.max_mb == 0 and inside.outbox.max_mb == 16
    assert (inside.state_dir / "control" / "kept.json").read_text() == "tuned"
    assert not (inside.state_dir / "evidence").exists()
    with closing(Outbox(inside.outbox_path)) as outbox:
        assert outbox.depth == 2
        outbox.put([make_alert(2)])
    assert settle(config) == (inside, complaint), "the agent starts again, the machine does not"
    with closing(Outbox(inside.outbox_path)) as outbox:
        assert outbox.depth == 3
        outbox.done([outbox.take(1)[0].id])

    disk.remount("rw")
    assert settle(config) == (config, None)
    assert list(memory.iterdir()) == []
    with closing(Outbox(config.outbox_path)) as outbox:
        assert outbox.depth == 2
    assert (disk.path / "state" / "evidence" / "one.mseed").exists()


def test_an_outbox_that_a_kill_left_behind_is_brought_with_its_log(disk: Disk, memory: Path, tmp_path: Path) -> None:
    """The newest messages stand in the write-ahead log alone."""
    config = load(write_config(tmp_path / "station", "none", 1883, state_dir=str(disk.path / "state")))
    code = f"""
import os
from pathlib import Path
from broker_support import make_alert
from agent.deliver.outbox import Outbox
Outbox(Path({str(config.outbox_path)!r})).put([make_alert(n) for n in range(5)])
os.kill(os.getpid(), 9)
"""
    env = os.environ | {"PYTHONPATH": os.pathsep.join((str(Path(__file__).parent), str(Path(__file__).parents[1])))}
    assert subprocess.run([sys.executable, "-c", code], env=env, check=False).returncode == -9
    disk.remount("ro")
    inside, _ = settle(config)
    with closing(Outbox(inside.outbox_path)) as outbox:
        assert outbox.depth == 5
        outbox.put([make_alert(5)])
    disk.remount("rw")
    settle(config)
    with closing(Outbox(config.outbox_path)) as outbox:
        assert outbox.depth == 6


def test_a_full_disk_is_worked_on_where_it_holds_an_outbox_and_left_where_not(
    disk: Disk, memory: Path, tmp_path: Path
) -> None:
    config = load(write_config(tmp_path / "station", "none", 1883, state_dir=str(disk.path / "state")))
    disk.fill()
    inside, complaint = settle(config)
    assert complaint is not None and "No space left" in complaint and inside.state_dir.parent == memory
    Outbox(inside.outbox_path).close()
    assert settle(config)[0] == inside, "what the disk has no room for stays in memory"
    (disk.path / "fill").unlink()
    assert settle(config) == (config, None)
    disk.fill()
    assert settle(config) == (config, None)


def test_a_disk_too_full_to_take_it_back_is_left_as_it_is(disk: Disk, memory: Path, tmp_path: Path) -> None:
    """Half a way back would leave the old outbox without its log, or the new one without its messages."""
    config = load(write_config(tmp_path / "station", "none", 1883, state_dir=str(disk.path / "state")))
    with closing(Outbox(config.outbox_path)) as outbox:
        outbox.put([make_alert(0)])
    disk.remount("ro")
    inside, _ = settle(config)
    (inside.state_dir / "large").write_bytes(bytes(6 << 20))
    before = {path: path.read_bytes() for path in (disk.path / "state").iterdir()}
    disk.remount("rw")
    again, complaint = settle(config)
    assert again.state_dir == inside.state_dir and complaint is not None and "No space left" in complaint
    assert {path: path.read_bytes() for path in (disk.path / "state").iterdir()} == before
    (inside.state_dir / "large").unlink()
    assert settle(config) == (config, None)
    with closing(Outbox(config.outbox_path)) as outbox:
        assert outbox.depth == 1


def test_doctor_does_not_send_an_operator_after_permissions_when_the_disk_is_read_only(disk: Disk) -> None:
    disk.remount("ro")
    finding = doctor._state(disk.path)
    assert finding.state == "bad" and "Read-only file system" in finding.detail and "dmesg" in finding.hint


def test_status_looks_where_the_agent_last_said_something(disk: Disk, memory: Path, tmp_path: Path) -> None:
    config = load(write_config(tmp_path / "station", "none", 1883, state_dir=str(disk.path / "state")))
    assert in_use(config) == config.state_dir
    (disk.path / "state").mkdir()
    (disk.path / "state" / FILE).write_text(json.dumps({}))
    os.utime(disk.path / "state" / FILE, (1, 1))
    disk.remount("ro")
    inside, _ = settle(config)
    (inside.state_dir / FILE).write_text(json.dumps({}))
    assert in_use(config) == inside.state_dir


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a folder of another user")
def test_what_another_user_laid_in_the_way_is_not_taken_for_the_agents_own(
    disk: Disk, memory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.service.refuge._BASES", ())
    config = load(write_config(tmp_path / "station", "none", 1883, state_dir=str(disk.path / "state")))
    planted = memory / "refuge-XX.SLP"
    planted.mkdir(mode=0o700)
    (planted / "outbox.sqlite3").write_text("not ours")
    os.chown(planted, 12345, 12345)
    disk.remount("ro")
    assert settle(config) == (config, None), "the start then fails with the disk's own words"
    assert list(memory.iterdir()) == [planted]
