"""``talus run`` as systemd sees it: starting, stopping, dying, going on with a full disk."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import queue
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from agent_support import ROOT, TALUS, Agent, by_revision, expected, running_agent, talus, write_config, write_records
from broker_support import (
    STATION,
    Collector,
    Mosquitto,
    first_order,
    make_alert,
    make_message,
    needs_mosquitto,
    running,
    wait_for,
)
from test_formats import event

from agent.config.file import ClassifierConfig, TunablesConfig
from agent.deliver.outbox import Outbox
from agent.errors import DeliveryError
from agent.health.report import Health, Identity
from agent.messages.payloads import Message
from agent.service import storing
from agent.service import threads as feeding
from agent.service.assemble import build_line
from agent.service.service import Notifier, start
from agent.service.threads import EventLog, Runner
from agent.types import NS, SampleBlock, StationId, StreamId, parse_ns

COPIES = 2


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_records(tmp_path_factory.mktemp("records"), COPIES)


def paced(records: Path, speed: float) -> str:
    return f"{{kind: archive, paths: ['{records}'], speed: {speed}}}"


def availability(collector: Collector) -> list[bytes]:
    return collector.payloads("/availability")


def test_without_a_broker_a_file_of_lines_is_the_way_out(tmp_path: Path, records: Path) -> None:
    outputs = f"{{file: {{path: '{tmp_path}/lines.jsonl', max_mb: 0.01}}}}"
    agent = Agent("run", "--config", write_config(tmp_path, records, outputs=outputs))
    assert agent.end() == 0, agent.log
    files = sorted(tmp_path.glob("lines.jsonl*"))
    assert len(files) > 1, "it is rotated"
    lines = [json.loads(line) for file in files for line in file.read_bytes().splitlines()]
    events = [line["message"] for line in lines if line["topic"].endswith("/event")]
    told = [{**body, "decision": None} for body in events]  # by other rules than a replay's
    assert by_revision(told) == by_revision([{**body, "decision": None} for body in expected(records)])
    assert {"state", "last_event"} <= {line["topic"].rpartition("/")[2] for line in lines}


@needs_mosquitto
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_stops_in_order(tmp_path: Path, records: Path, number: signal.Signals) -> None:
    """Within five seconds, or as fast as it started: open events closed, everything sent, ``stopped`` retained."""
    with running(tmp_path) as broker, Collector(broker.settings()) as collector:
        config = write_config(tmp_path, records, broker.port, source=paced(records, 20))
        started = time.monotonic()
        with running_agent("run", "--config", config) as agent:
            agent.wait_for("watches XX.SLP")
            start_s = time.monotonic() - started
            wait_for(lambda: collector.bodies("/event"), what="the first event")
            began = time.monotonic()
            agent.signal(number)
            assert agent.end() == 0, agent.log
            took = time.monotonic() - began
        wait_for(lambda: availability(collector) == [b"online", b"stopped"])
        wait_for(lambda: collector.bodies("/event")[-1]["phase"] == "end")
    assert took < max(5, start_s), f"{took:.1f} s, {start_s:.1f} s to start"
    assert "Traceback" not in agent.log
    box = Outbox(tmp_path / "state" / "outbox.sqlite3")
    assert box.depth == 0
    box.close()


@needs_mosquitto
def test_the_last_word_about_it_is_kept_by_the_broker(tmp_path: Path, records: Path) -> None:
    """Who subscribes after the stop still learns that the station is stopped, what ran there and what it saw last."""
    with running(tmp_path) as broker:
        config = write_config(tmp_path, records, broker.port)
        with running_agent("run", "--config", config) as agent:
            assert agent.end() == 0, agent.log
        with Collector(broker.settings(), session=False) as late:
            wait_for(lambda: len(late.received) >= 3)
            assert availability(late) == [b"stopped"]
            [state] = late.bodies("/state")
            [last] = late.bodies("/last_event")
    assert (state["backend"], state["precision"]) == ("onnxruntime", "int8")
    assert (last["id"], last["revision"]) == (expected(records)[-1]["id"], expected(records)[-1]["revision"])


@needs_mosquitto
def test_a_broker_absent_at_the_start_is_no_reason_to_wait_or_to_end(tmp_path: Path, records: Path) -> None:
    """The station watches meanwhile, and the broker gets everything when it comes."""
    wanted = by_revision(list(expected(records)))
    broker = Mosquitto(tmp_path)
    config = write_config(tmp_path, records, broker.port)
    with running_agent("run", "--config", config) as agent:
        agent.wait_for(f"{expected(records)[-1]['id']} end")
        assert "refused the connection" in agent.log
        try:
            with Collector(broker.start().settings(), session=False) as collector:
                wait_for(lambda: len(by_revision(collector.bodies("/event"))) >= len(wanted))
                assert agent.end() == 0, agent.log
        finally:
            broker.stop()
    assert by_revision(collector.bodies("/event")) == wanted
    assert all(revisions == sorted(revisions) for revisions in first_order(collector.bodies("/event")).values())


def test_two_agents_do_not_share_a_state(tmp_path: Path, records: Path) -> None:
    """Also without an outbox: each would write over the other's status, positions and evidence."""
    config = write_config(tmp_path, records, source=paced(records, 1.0))
    with running_agent("run", "--config", config) as agent:
        agent.wait_for("watches")
        status, _, said = talus("run", "--config", config)
        assert status == 1
        assert "is in use by another agent" in said
        assert agent.process.poll() is None
    with running_agent("run", "--config", config) as agent:
        agent.wait_for("watches")


@needs_mosquitto
def test_the_log_is_in_utc_and_says_so(tmp_path: Path, records: Path) -> None:
    """As all else that the agent says: an operator compares the log with the onsets of events."""
    config = write_config(tmp_path, records)
    with running_agent("run", "--config", config, env={"TZ": "Asia/Shanghai", "JOURNAL_STREAM": ""}) as agent:
        agent.wait_for("watches XX.SLP")
    line = agent.log.splitlines()[0]
    found = re.match(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z) (INFO|WARNING) agent", line)
    assert found, line
    assert abs(parse_ns(found[1]) - time.time_ns()) < 120 * NS


def test_a_source_that_dies_ends_it_with_one_clear_line(tmp_path: Path) -> None:
    """systemd starts it again; the journal says why in words, not in a traceback."""
    config = write_config(tmp_path, tmp_path / "nowhere", 1)
    with running_agent("run", "--config", config) as agent:
        assert agent.end() == 1
    assert f"the source died: no usable samples in {tmp_path}/nowhere" in agent.log
    assert "Traceback" not in agent.log


def test_a_pipeline_that_dies_ends_it(tmp_path: Path, records: Path) -> None:
    """Without a broker it prints; when nobody reads that, the pipeline's thread fails, and with it the process."""
    config = write_config(tmp_path, records, source=paced(records, 100))
    reader, writer = os.pipe()
    os.close(reader)
    command = [*TALUS, "run", "--config", str(config)]
    try:
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False)
    finally:
        os.close(writer)
    assert done.returncode == 1
    assert "the pipeline died: [Errno 32] Broken pipe" in done.stderr


@contextlib.contextmanager
def notify_socket(folder: Path) -> Iterator[tuple[Path, queue.Queue[str]]]:
    """What systemd does: a datagram socket that is told how the service is."""
    path = folder / "notify"
    heard: queue.Queue[str] = queue.Queue()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(path))

        def listen() -> None:
            with contextlib.suppress(OSError):
                while data := sock.recv(4096):
                    heard.put(data.decode())

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        yield path, heard
        sock.shutdown(socket.SHUT_RDWR)
        thread.join(60)


def test_systemd_hears_of_ready_watchdog_and_stopping(tmp_path: Path, records: Path) -> None:
    config = write_config(tmp_path, records, source=paced(records, 1))
    with notify_socket(tmp_path) as (path, heard):
        env = {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "1000000"}
        with running_agent("run", "--config", config, env=env) as agent:
            assert heard.get(timeout=60) == "READY=1"
            assert [heard.get(timeout=60) for _ in range(3)] == ["WATCHDOG=1"] * 3
            agent.signal(signal.SIGTERM)
            rest = []
            while "STOPPING=1" not in rest:
                rest.append(heard.get(timeout=60))
            assert agent.end() == 0
        assert set(rest) == {"WATCHDOG=1", "STOPPING=1"} or rest == ["STOPPING=1"]


def test_a_signal_at_any_moment_of_the_wait_for_one_is_heard(tmp_path: Path) -> None:
    """A handler runs between two instructions of the thread that waits, whatever lock that holds."""
    config = write_config(tmp_path, tmp_path)
    script = (
        "import sys; from pathlib import Path\n"
        "from agent.config.file import load; from agent.service.service import Service\n"
        "service = Service(load(Path(sys.argv[1]))); service._install_signal_handlers(); print('ready', flush=True)\n"
        "while service._wait(0.0002): pass"
    )
    command = [sys.executable, "-c", script, str(config)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None and child.stdout.readline() == "ready\n"
            for _ in range(3000):
                child.send_signal(signal.SIGHUP)
                time.sleep(0.0004)
            child.send_signal(signal.SIGTERM)
            assert child.wait(60) == 0
        finally:
            child.kill()


def test_the_tool_that_is_asked_about_the_clock_does_not_speak_to_systemd(tmp_path: Path, records: Path) -> None:
    """timedatectl tells its own end to any NOTIFY_SOCKET that it inherits: a warning in the journal every minute."""
    tool, asked = tmp_path / "bin" / "chronyc", tmp_path / "asked"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\necho "asked$NOTIFY_SOCKET" >> {asked}\n')
    tool.chmod(0o755)
    config = write_config(tmp_path, records, source=paced(records, 1))
    with notify_socket(tmp_path) as (path, heard):
        env = {"NOTIFY_SOCKET": str(path), "PATH": f"{tool.parent}{os.pathsep}{os.environ['PATH']}"}
        with running_agent("run", "--config", config, env=env) as agent:
            assert heard.get(timeout=60) == "READY=1"
            agent.signal(signal.SIGTERM)
            assert agent.end() == 0
    assert set(asked.read_text().split()) == {"asked"}


def test_a_watchdog_meant_for_another_process_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """systemd sets WATCHDOG_PID; a child that inherits the variables must not answer."""
    monkeypatch.setenv("WATCHDOG_USEC", "2000000")
    assert Notifier().watchdog_s == 1.0
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert Notifier().watchdog_s is None


class Packets:
    """A source that hands on what a test gives it."""

    def __init__(self) -> None:
        self.queue: queue.Queue[SampleBlock | None] = queue.Queue()

    def blocks(self) -> Iterator[SampleBlock]:
        while (block := self.queue.get()) is not None:
            yield block

    def close(self) -> None:
        self.queue.put(None)


def runner(put: Any, folder: Path) -> tuple[Runner, Packets]:
    """A runner with a pipeline of its own, and what feeds it."""
    source = Packets()
    line = build_line(TunablesConfig(), ClassifierConfig(backends=("constant",)), "talus/v1")
    health = Health(Identity(StationId("XX", "SLP", "", ""), "0" * 16), folder)
    return Runner(source, line, health, put), source


def block(samples: Any, start_s: float = 0.0) -> SampleBlock:
    return SampleBlock(StreamId.parse("XX.SLP.00.HHZ"), round(start_s * NS), 100.0, samples)


def test_a_fault_of_the_agent_itself_ends_the_pipeline(tmp_path: Path) -> None:
    """A thread that dies must not leave a service that looks alive."""
    work, source = runner(lambda _: None, tmp_path)
    work.start()
    source.queue.put(block("not samples"))
    assert work.ended.wait(60)
    failure = work.failure()
    assert failure is not None and failure[0] == "pipeline"
    work.stop(100)


def packets(first: int, last: int, loud: range = range(0)) -> Iterator[SampleBlock]:
    """A second each, of noise, a thousand times louder in some seconds."""
    rng = np.random.default_rng(first)
    for second in range(first, last):
        yield block((rng.normal(size=100) * (1e5 if second in loud else 100)).astype(np.int32), second)


def test_the_watchdog_is_fed_while_the_pipeline_works_and_not_while_it_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sensor that says nothing is no reason for a restart; a disk that never answers is."""
    monkeypatch.setattr(feeding, "BUSY_S", 0.2)
    released, reached = threading.Event(), threading.Event()

    def hang(_: list[Message]) -> None:
        reached.set()
        released.wait(60)

    work, source = runner(hang, tmp_path)
    work.start()
    time.sleep(0.5)
    assert work.works(), "silence is no fault"
    for packet in packets(0, 60, loud=range(50, 55)):
        source.queue.put(packet)
    assert reached.wait(60)
    wait_for(lambda: not work.works(), what="the hanging packet is noticed")
    released.set()
    wait_for(work.works, what="and so is its end")
    work.stop(100)
    assert work.failure() is None


def test_what_stays_is_not_looked_through_for_garbage(tmp_path: Path) -> None:
    """Protects the delay of packets: a look at everything that many stations have takes a tenth of a second."""
    work, _ = runner(lambda messages: None, tmp_path)
    before = gc.get_threshold()
    try:
        start(work)
        assert gc.get_freeze_count() > 10_000
        assert gc.get_threshold()[0] >= 10_000
        assert gc.isenabled()
    finally:
        work.stop(100)
        gc.unfreeze()
        gc.set_threshold(*before)


class Disk:
    """Takes messages, or refuses them."""

    def __init__(self) -> None:
        self.full = True
        self.taken: list[Message] = []

    def put(self, messages: list[Message]) -> None:
        if self.full:
            raise DeliveryError("disk full")
        self.taken += messages


def an_event_on_a_full_disk(disk: Disk, folder: Path) -> tuple[Runner, Packets]:
    """A runner that has decided on an event from its first verdict to its last and can store none of it."""
    work, source = runner(disk.put, folder)
    work.start()
    for packet in packets(0, 160, loud=range(50, 55)):
        source.queue.put(packet)
    wait_for(lambda: source.queue.empty() and not work._queue)
    assert work.held
    return work, source


def test_what_the_disk_refused_is_stored_while_quiet_data_flow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packets come each second and bring no event for days: the retry must not wait for the next event."""
    monkeypatch.setattr(storing, "PUT_RETRY_S", 0.5)
    disk = Disk()
    work, source = an_event_on_a_full_disk(disk, tmp_path)
    waiting = work.held
    disk.full = False
    quiet = packets(160, 3000)

    def stored() -> bool:
        source.queue.put(next(quiet))
        time.sleep(0.04)
        return not work.held

    wait_for(stored)
    assert len(disk.taken) == waiting
    assert [m.expendable for m in disk.taken if not m.retain] == [False, *[True] * 8, False], "new, updates, end"
    work.stop(100)


def test_alerts_and_nothing_else_go_out_when_the_disk_refuses(tmp_path: Path) -> None:
    disk, source = Disk(), Packets()
    urged: list[Message] = []
    line = build_line(TunablesConfig(), ClassifierConfig(backends=("constant",)), "talus/v1")
    work = Runner(source, line, Health(Identity(STATION, "0" * 16), tmp_path), disk.put, send_now=urged.append)
    event, alert = make_message(), make_alert()
    disk.full = False
    work._send([event, alert])
    assert not urged, "what is on disk is not sent past it"
    disk.full = True
    work._send([event, alert])
    work._send([alert])
    assert urged == [alert, alert]
    assert work.held == 3, "and all of it still waits for the disk"


def test_what_the_disk_refused_is_offered_once_more_at_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    disk = Disk()
    work, _ = an_event_on_a_full_disk(disk, tmp_path)
    waiting, disk.full = work.held, False
    work.stop(100)
    assert len(disk.taken) == waiting
    disk = Disk()
    work, _ = an_event_on_a_full_disk(disk, tmp_path)
    work.stop(100)
    assert f"{waiting} messages are lost" in caplog.text


def test_the_log_has_what_changed_of_an_event_and_at_debug_every_revision(caplog: pytest.LogCaptureFixture) -> None:
    plain = event("landslide")
    assert plain.classification is not None
    undecided = plain.classification.model_copy(update={"abstained": True})
    log, verdicts = EventLog(), [plain.classification, plain.classification, undecided, undecided, None, None]
    caplog.set_level("DEBUG")
    for revision, verdict in enumerate(verdicts):
        phase = "end" if revision == len(verdicts) - 1 else "update"
        log.note(plain.model_copy(update={"revision": revision, "phase": phase, "classification": verdict}))
        log.note(plain.model_copy(update={"id": "another", "revision": 10, "phase": "update"}))
    told = [(r.levelname, re.findall(r" r(\d+): ", r.message)[0]) for r in caplog.records]
    assert [number for level, number in told if level == "INFO"] == ["0", "10", "2", "4", "5"]
    assert len(told) == 2 * len(verdicts), "the rest is not lost"


def test_what_matters_least_is_given_up_first_when_memory_is_full_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storing, "HELD_MESSAGES", 3)
    disk = Disk()
    work, _ = an_event_on_a_full_disk(disk, tmp_path)
    disk.full = False
    work.stop(100)
    phases = [json.loads(message.payload)["phase"] for message in disk.taken if not message.retain]
    assert (phases[0], phases[-1], len(disk.taken)) == ("new", "end", 3)


class SmallDisk:
    """A file system of its own, to be filled and emptied."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> SmallDisk:
        command = ["mount", "-t", "tmpfs", "-o", "size=8m", "talus", str(self._folder)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("only root can mount a small disk")
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "-l", str(self._folder)], check=True)

    def fill(self, _: Agent) -> None:
        with contextlib.suppress(OSError), (self._folder / "filler").open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass

    def empty(self, _: Agent) -> None:
        (self._folder / "filler").unlink()


class LimitedFiles(contextlib.nullcontext[Any]):
    """The same for anyone: a limit on the size of the agent's files, at what they have now."""

    def __init__(self, folder: Path) -> None:
        super().__init__(self)
        self._folder = folder

    def fill(self, agent: Agent) -> None:
        self._limit(agent, max(path.stat().st_size for path in self._folder.iterdir()))

    def empty(self, agent: Agent) -> None:
        self._limit(agent, resource.RLIM_INFINITY)

    def _limit(self, agent: Agent, size: int) -> None:
        resource.prlimit(agent.process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@needs_mosquitto
@pytest.mark.parametrize("kind", [SmallDisk, LimitedFiles])
def test_a_full_disk_is_reported_and_survived(tmp_path: Path, kind: type[SmallDisk | LimitedFiles]) -> None:
    """It goes on deciding, says in its health what is wrong, and delivers everything once there is room."""
    records = write_records(tmp_path / "records")
    wanted = by_revision(list(expected(records)))
    state = tmp_path / "state"
    state.mkdir()
    with kind(state) as disk, running(tmp_path) as broker:
        config = write_config(tmp_path, records, broker.port, source=paced(records, 15))
        with Collector(broker.settings()) as collector, running_agent("run", "--config", config) as agent:
            wait_for(lambda: collector.bodies("/event"), what="the first event")
            disk.fill(agent)
            wait_for(lambda: any("wait in memory" in str(h["reasons"]) for h in collector.bodies("/health")))
            before = len(by_revision(collector.bodies("/event")))
            disk.empty(agent)
            assert agent.end() == 0, agent.log
            wait_for(lambda: len(by_revision(collector.bodies("/event"))) >= len(wanted))
    assert before < len(wanted)
    assert "messages wait in memory" in agent.log
    assert "the disk takes messages again" in agent.log
    assert by_revision(collector.bodies("/event")) == wanted
    assert all(revisions == sorted(revisions) for revisions in first_order(collector.bodies("/event")).values())


def test_silence_that_no_report_mentions_does_not_feed_the_watchdog(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The packets' clock is what counts, not a timer; a sensor known to be silent is told of, and fed for."""
    clock = SimpleNamespace(now=1000.0, monotonic=lambda: clock.now, time_ns=time.time_ns)
    monkeypatch.setattr(feeding, "time", clock)
    work, source = runner(lambda _: None, tmp_path)
    work.start()
    assert work.advances(60.0), "it has just begun"
    clock.now += 60.0
    assert not work.advances(60.0)
    source.queue.put(block(np.zeros(100, dtype=np.int32)))
    wait_for(lambda: work.advances(60.0), what="a packet was decided on")
    clock.now += 60.0
    assert not work.advances(60.0), "and then no other"
    work.stop(100)


def test_a_silent_sensor_is_told_of_and_the_watchdog_is_fed(tmp_path: Path) -> None:
    """Nothing ever comes: the report says so within seconds, and systemd has no reason for a restart."""
    (tmp_path / "records").mkdir()
    config = write_config(tmp_path, "", source=f"{{kind: folder, paths: ['{tmp_path / 'records'}']}}")
    with notify_socket(tmp_path) as (path, heard):
        env = {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "1000000"}
        with running_agent("run", "--config", config, env=env) as agent:
            assert heard.get(timeout=60) == "READY=1"
            status = tmp_path / "state" / "status.json"
            wait_for(lambda: status.exists() and "no samples yet" in status.read_text())
            while not heard.empty():
                heard.get()
            assert [heard.get(timeout=60) for _ in range(3)] == ["WATCHDOG=1"] * 3
            agent.signal(signal.SIGTERM)
            assert agent.end() == 0
