"""What every sink must hold: a new one gets a ``Rig`` here, and runs the same tests.

Order, nothing lost over restarts and kills, at least once, an other side that is away for long, messages that have
expired meanwhile, retained values that are replaced.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from broker_support import (
    STATION,
    Collector,
    Mosquitto,
    first_order,
    make_alert,
    make_event,
    make_message,
    needs_mosquitto,
    stamp,
    wait_for,
)

from agent.config.broker import MqttSettings
from agent.config.outputs import FileOutputConfig
from agent.deliver.file import FileSink
from agent.deliver.mqtt import MqttSink
from agent.deliver.outbox import Outbox
from agent.deliver.sink import Sink
from agent.messages.payloads import Message, Priority, summary_message

TESTS = Path(__file__).parents[1]


def open_sink(kind: str, target: str, outbox: Outbox) -> Sink:
    """A sink to the other side at ``target``."""
    if kind == "file":
        return FileSink(FileOutputConfig(path=Path(target), max_mb=0.05, older_files=1000), outbox.cursor("file"))
    settings = MqttSettings(host="127.0.0.1", port=int(target), backoff_min_s=0.05, backoff_max_s=0.2)
    return MqttSink(settings, outbox.cursor("mqtt"), STATION)


class Rig(ABC):
    """A sink's other side, which can go away and come back."""

    kind: str
    target: str

    @abstractmethod
    def arrived(self) -> list[tuple[str, bytes]]:
        """Topic and payload of all that has come, in order."""

    @abstractmethod
    def go_away(self) -> None: ...

    @abstractmethod
    def come_back(self) -> None: ...

    def bodies(self, name: str) -> list[dict[str, Any]]:
        """What has come on the topics that end like this."""
        return [json.loads(payload) for topic, payload in self.arrived() if topic.endswith(f"/{name}")]


class MqttRig(Rig):
    """A broker that keeps what it has acknowledged, and a subscriber with a session."""

    kind = "mqtt"

    def __init__(self, folder: Path) -> None:
        self._broker = Mosquitto(folder)
        self.target = str(self._broker.port)
        place = f"persistence_location {folder}/"
        kept = ("persistence true", place, "autosave_interval 1", "autosave_on_changes true")
        config = folder / f"mosquitto-{self._broker.port}.conf"
        config.write_text(config.read_text().replace("persistence false", "\n".join(kept)))
        self._broker.start()
        self._collector = Collector(self._broker.settings(backoff_max_s=0.1)).__enter__()

    def arrived(self) -> list[tuple[str, bytes]]:
        return [(one.topic, one.payload) for one in list(self._collector.received)]

    def go_away(self) -> None:
        self._broker.stop()

    def come_back(self) -> None:
        self._broker.start()

    def end(self) -> None:
        self._collector.__exit__()
        self._broker.stop()


class FileRig(Rig):
    """A folder that is not there while the other side is away."""

    kind = "file"

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "lines"
        self.target = str(self._folder / "messages.jsonl")

    def arrived(self) -> list[tuple[str, bytes]]:
        names = self._folder.glob("messages.jsonl*") if self._folder.is_dir() else ()
        ages = {path: int(path.suffix[1:]) if path.suffix != ".jsonl" else 0 for path in names}
        found = []
        for path in sorted(ages, key=lambda path: -ages[path]):
            with contextlib.suppress(FileNotFoundError):
                for line in path.read_bytes().splitlines():
                    with contextlib.suppress(ValueError):
                        body = json.loads(line)
                        found.append((body["topic"], json.dumps(body.get("message")).encode()))
        return found

    def go_away(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._folder.rename(self._folder.with_name("away"))
        self._folder.write_text("in the way")

    def come_back(self) -> None:
        self._folder.unlink()
        with contextlib.suppress(FileNotFoundError):
            self._folder.with_name("away").rename(self._folder)

    def end(self) -> None:
        """Nothing is held."""


RIGS: dict[str, type[MqttRig] | type[FileRig]] = {"mqtt": MqttRig, "file": FileRig}
EACH = [pytest.param("mqtt", marks=needs_mosquitto), "file"]


@pytest.fixture(params=EACH)
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    made = RIGS[request.param](tmp_path)
    yield made
    made.end()


@contextlib.contextmanager
def delivering(outbox: Outbox, *rigs: Rig) -> Iterator[list[Sink]]:
    sinks = [open_sink(rig.kind, rig.target, outbox) for rig in rigs]
    for sink in sinks:
        sink.start()
    try:
        yield sinks
    finally:
        for sink in sinks:
            sink.stop(2.0)


def outbox_for(rig: Rig, folder: Path) -> Outbox:
    return Outbox(folder / "o.db", sinks=(rig.kind,))


def test_alerts_go_first_and_the_revisions_of_an_event_in_their_order(rig: Rig, tmp_path: Path) -> None:
    with contextlib.closing(outbox_for(rig, tmp_path)) as outbox:
        for n in range(30):
            phases = enumerate(("new", "update", "end"))
            outbox.put([make_message(n, revision, phase) for revision, phase in phases])  # type: ignore[arg-type]
        outbox.put([make_alert(99)])
        with delivering(outbox, rig):
            wait_for(lambda: outbox.depth == 0 and len(rig.bodies("event")) == 90)
    names = [topic.rpartition("/")[2] for topic, _ in rig.arrived()]
    assert next(name for name in names if name != "availability") == "alert"
    assert list(first_order(rig.bodies("event")).values()) == [[0, 1, 2]] * 30


def test_nothing_is_lost_over_restarts_and_a_copy_is_the_same_message(rig: Rig, tmp_path: Path) -> None:
    for round_ in range(4):
        with contextlib.closing(outbox_for(rig, tmp_path)) as outbox:
            outbox.put([make_message(100 * round_ + n) for n in range(40)])
            with delivering(outbox, rig):
                wait_for(lambda last=round_ == 3: outbox.depth == 0 if last else rig.bodies("event"))  # type: ignore[misc]
    wait_for(lambda: len(first_order(rig.bodies("event"))) == 160, what="every event arrived")
    named = {(body["id"], body["revision"], body["boot_id"], body["seq"]) for body in rig.bodies("event")}
    assert len(named) == 160


def test_nothing_is_lost_when_the_process_is_killed_while_it_delivers(rig: Rig, tmp_path: Path) -> None:
    code = textwrap.dedent("""
        import sys
        from pathlib import Path
        kind, target, path, first = sys.argv[1:]
        sys.path[:0] = ["tests", "tests/contract"]
        from broker_support import make_message
        from test_sinks import Outbox, open_sink
        outbox = Outbox(Path(path), sinks=(kind,))
        open_sink(kind, target, outbox).start()
        for n in range(int(first), int(first) + 1000):
            outbox.put([make_message(n, r, p) for r, p in enumerate(("new", "update", "end"))])
            print(n, flush=True)
    """)
    put: list[int] = []
    for round_ in range(2):
        command = [sys.executable, "-c", code, rig.kind, rig.target, str(tmp_path / "o.db"), str(1000 * round_)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=TESTS.parent) as process:
            assert process.stdout is not None
            for line in process.stdout:
                put.append(int(line))
                if len(put) >= 20 * (round_ + 1):
                    os.kill(process.pid, signal.SIGKILL)
                    break
            process.stdout.read()
    wanted = {make_event(n).id for n in put}
    with contextlib.closing(outbox_for(rig, tmp_path)) as outbox, delivering(outbox, rig):
        wait_for(lambda: outbox.depth == 0)
        wait_for(lambda: wanted <= first_order(rig.bodies("event")).keys(), what="every event arrived")
    order = first_order(rig.bodies("event"))
    assert all(order[name] == [0, 1, 2] for name in wanted)


@needs_mosquitto
@pytest.mark.parametrize("gone", ["mqtt", "file"])
def test_a_sink_whose_other_side_is_away_holds_up_no_other_and_has_its_own_when_it_is_back(
    tmp_path: Path, gone: str
) -> None:
    rigs = {name: kind(tmp_path) for name, kind in RIGS.items()}
    away, there = rigs[gone], next(rig for name, rig in rigs.items() if name != gone)
    try:
        with contextlib.closing(Outbox(tmp_path / "o.db", sinks=tuple(RIGS))) as outbox:
            away.go_away()
            with delivering(outbox, away, there) as (sink, _):
                outbox.put([make_message(n) for n in range(50)])
                wait_for(lambda: len(there.bodies("event")) == 50, what="the other sink has everything")
                wait_for(sink.reasons, what="it is said what is wrong")
                assert outbox.cursor(gone).depth == 50
                away.come_back()
                wait_for(lambda: outbox.depth == 0 and len(first_order(away.bodies("event"))) == 50)
                wait_for(lambda: not sink.reasons(), what="nothing is wrong any more")
            outbox.stats()
            assert outbox.stats().bytes == 0
    finally:
        for rig in rigs.values():
            rig.end()


def test_what_has_expired_while_it_waited_is_delivered_all_the_same(rig: Rig, tmp_path: Path) -> None:
    """An expiry is for who keeps the message after the hand-over; a record of an alert that came late is not lost."""
    with contextlib.closing(outbox_for(rig, tmp_path)) as outbox:
        outbox.put([replace(make_alert(1), expiry_s=1)])
        time.sleep(1.1)
        with delivering(outbox, rig):
            wait_for(lambda: len(rig.bodies("alert")) == 1)


def test_of_a_retained_message_only_the_newest_counts(rig: Rig, tmp_path: Path) -> None:
    health = Message("talus/v1/XX/ABC/health", b"{}", Priority.OTHER, retain=True)
    with contextlib.closing(outbox_for(rig, tmp_path)) as outbox:
        for n in (1, 2):
            outbox.put([summary_message(make_event(n), stamp())])
        with delivering(outbox, rig) as (sink,):
            for n in range(20):
                sink.publish_retained(replace(health, payload=b'{"n":%d}' % n))
            wait_for(lambda: rig.bodies("last_event") and {"n": 19} in rig.bodies("health"))
            outbox.put([summary_message(make_event(3), stamp())])
            wait_for(lambda: len(rig.bodies("last_event")) == 2)
    assert [body["id"] for body in rig.bodies("last_event")] == [make_event(n).id for n in (2, 3)]
    numbers = [body["n"] for body in rig.bodies("health")]
    assert numbers == sorted(numbers)


def test_an_alert_that_the_disk_refuses_is_delivered(rig: Rig, tmp_path: Path) -> None:
    with contextlib.closing(outbox_for(rig, tmp_path)) as outbox, delivering(outbox, rig) as (sink,):
        for n in range(3):
            sink.send_now(make_alert(n))
        wait_for(lambda: len(rig.bodies("alert")) >= 3)
        assert outbox.stats().depth == 0, "none of it was on disk"
    assert [body["id"] for body in rig.bodies("alert")][:3] == [
        json.loads(make_alert(n).payload)["id"] for n in range(3)
    ]
