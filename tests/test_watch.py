"""``talus watch``: what it prints, what it refuses, and that it misses nothing."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from broker_support import (
    BOOT,
    ONSET_NS,
    STATION,
    Mosquitto,
    make_alert,
    make_event,
    make_message,
    needs_mosquitto,
    running,
    stamp,
    wait_for,
)

from agent.config.broker import MqttSettings
from agent.deliver.connection import Connection
from agent.deliver.mqtt import MqttSink
from agent.deliver.outbox import Outbox
from agent.deliver.sockets import Waker
from agent.errors import DataError, DeliveryError
from agent.messages.payloads import Message, Stamp, alert_message, event_message, summary_message
from agent.messages.text import readable
from agent.types import Alert, Evidence
from desk.watch import Watched, watch

ROOT = Path(__file__).parent.parent
EVENT, ALERT = "talus/v1/XX/ABC/event", "talus/v1/XX/ABC/alert"


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with running(tmp_path) as broker:
        yield broker


class Publisher:
    """Publishes anything, as anyone with access to the broker can."""

    def __init__(self, broker: Mosquitto) -> None:
        self._connection = Connection.open(broker.settings(), "publisher", Waker())

    def send(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        token = self._connection.publish(topic, payload, retain=retain)
        while not any(ack.token == token for ack in self._connection.pump(1.0)):
            pass

    def send_message(self, message: Message) -> None:
        self.send(message.topic, message.payload, retain=message.retain)


class Watching:
    """A watch in a thread, with its output at hand."""

    def __init__(self, settings: MqttSettings, **options: Any) -> None:
        self.out, self.err = io.StringIO(), io.StringIO()
        self.result: Watched | None = None
        self._thread = threading.Thread(target=self._run, args=(settings, options), daemon=True)
        self._thread.start()

    def _run(self, settings: MqttSettings, options: dict[str, Any]) -> None:
        self.result = watch(settings, self.out, self.err, **options)

    def finish(self) -> Watched:
        self._thread.join(60)
        assert self.result is not None, self.err.getvalue()
        return self.result


def test_an_event_s_end_tells_by_which_name_its_record_can_be_had() -> None:
    event = dataclasses.replace(make_event(phase="end"), evidence=Evidence("0" * 64, 512, ONSET_NS, ONSET_NS + 1))
    assert readable(event_message(event, stamp())).endswith(f"  (record: {event.id})")
    assert event.id not in readable(make_message())


@needs_mosquitto
def test_it_prints_events_and_alerts_a_line_each(broker: Mosquitto) -> None:
    publisher = Publisher(broker)
    publisher.send("talus/v1/XX/ABC/availability", b"online", retain=True)
    watching = Watching(broker.settings(), limit=3)
    wait_for(lambda: "XX.ABC is online" in watching.out.getvalue())
    publisher.send_message(make_message(0))
    publisher.send_message(make_alert(0))
    publisher.send_message(event_message(dataclasses.replace(make_event(1), exercise=True), stamp()))
    assert watching.finish() == Watched(printed=3)
    lines = watching.out.getvalue().splitlines()[1:]
    assert lines[0].startswith("event new    XX.ABC  2023-11-14 22:13:20.123  landslide 91 % after 3 s")
    assert lines[1].startswith("ALERT raise warning  XX.ABC")
    assert "91 % is above 80 %" in lines[1]
    assert lines[2].endswith("(exercise)")
    assert "\x1b" not in watching.out.getvalue(), "colour only on a terminal"


@needs_mosquitto
def test_json_is_the_payloads_of_events_and_alerts_alone(broker: Mosquitto) -> None:
    publisher = Publisher(broker)
    publisher.send("talus/v1/XX/ABC/availability", b"online", retain=True)
    publisher.send_message(summary_message(make_event(), stamp()))
    event, alert = make_message(), make_alert()
    publisher.send("talus/v1/XX/ABC/health", b"broken", retain=True)
    watching = Watching(broker.settings(), style="json", limit=2)
    wait_for(lambda: "health" in watching.err.getvalue())
    publisher.send(EVENT, json.dumps(json.loads(event.payload), indent=4).encode())
    publisher.send_message(alert)
    watching.finish()
    assert [json.loads(line) for line in watching.out.getvalue().splitlines()] == [
        json.loads(event.payload),
        json.loads(alert.payload),
    ]


@needs_mosquitto
def test_copies_are_shown_once_but_a_second_run_of_the_agent_is_not_a_copy(broker: Mosquitto) -> None:
    publisher = Publisher(broker)
    publisher.send("talus/v1/XX/ABC/availability", b"online", retain=True)
    watching = Watching(broker.settings(), limit=3)
    wait_for(watching.out.getvalue)
    first = make_message(0)
    for _ in range(3):
        publisher.send_message(first)
    publisher.send_message(event_message(make_event(0), Stamp("f" * 16, 1, 1, 2)))
    publisher.send_message(alert_message(Alert(make_event(0), "raise", "w", "landslide", ""), Stamp(BOOT, 1, 1, 2)))
    assert watching.finish() == Watched(printed=3, duplicates=2)


HOSTILE = [
    (EVENT, b"\xff\xfe"),
    (EVENT, b"[" * 100_000),
    (EVENT, b'{"revision":' + b"9" * 100_000 + b"}"),
    (EVENT, b'{"schema":"talus/event/1"}'),
    (EVENT, b"x" * 2_000_000),
    (ALERT, make_message().payload),
    ("talus/v1/XX/OTHER/event", make_message().payload),
    ("talus/v1/XX/ABC/availability", b"\x1b[2Jonline"),
    ("talus/v1/\u202e/ABC/event", b"1"),
    ("talus/v1/XX/ABC/state", b"{}"),
    ("talus/v1/XX/ABC/last_event", b'{"id":1e400}'),
]


@needs_mosquitto
def test_hostile_messages_are_refused_by_name_and_the_next_good_one_is_shown(broker: Mosquitto) -> None:
    publisher = Publisher(broker)
    publisher.send("talus/v1/XX/ABC/availability", b"online", retain=True)
    watching = Watching(broker.settings(), limit=1)
    wait_for(watching.out.getvalue)
    for topic, payload in HOSTILE:
        publisher.send(topic, payload)
    publisher.send_message(make_alert())
    tally = watching.finish()
    assert (tally.printed, tally.refused) == (1, len(HOSTILE))
    complaints = watching.err.getvalue()
    assert "refused a message on talus/v1/XX/OTHER/event: it says that it is from XX.ABC.00.HH" in complaints
    assert complaints.count(f"on {EVENT}:") == 1, "one topic's complaints are not repeated"
    assert not {"\x1b", "\u202e"} & {*complaints, *watching.out.getvalue()}


def test_free_text_cannot_take_over_the_terminal() -> None:
    event = make_event()
    line = readable(alert_message(Alert(event, "raise", "warning", "landslide", "a\x1b[2J\r\nb\u202e"), stamp()))
    assert "a?[2J??b?" in line


@needs_mosquitto
def test_json_of_hostile_text_cannot_take_over_the_terminal_and_means_the_same(broker: Mosquitto) -> None:
    reason = "\x9b2J\u202e\U000e0041 滑坡"
    alert = json.loads(make_alert().payload) | {"reason": reason}
    publisher = Publisher(broker)
    publisher.send("talus/v1/XX/ABC/health", b"broken", retain=True)
    watching = Watching(broker.settings(), style="json", limit=1)
    wait_for(lambda: "health" in watching.err.getvalue())
    publisher.send(ALERT, json.dumps(alert).encode())
    watching.finish()
    assert watching.out.getvalue().strip().isprintable()
    assert json.loads(watching.out.getvalue())["reason"] == reason


def test_readable_lines() -> None:
    event = make_event()
    assert event.classification is not None
    undecided = dataclasses.replace(event, classification=dataclasses.replace(event.classification, abstained=True))
    assert "undecided (landslide 91 % after 3 s)" in readable(event_message(undecided, stamp()))
    failed = dataclasses.replace(event, classification=None, reason="the network failed")
    assert readable(event_message(failed, stamp())).endswith(
        "unclassified  [ratio 12.3, 3.2 s, 7.2 Hz]  the network failed"
    )
    with pytest.raises(DataError):
        readable(dataclasses.replace(make_message(), payload=b"{}"))


@needs_mosquitto
def test_a_session_misses_nothing_while_no_one_watches(broker: Mosquitto) -> None:
    """What came over the limit is not acknowledged: the next watch of the session gets it."""
    publisher = Publisher(broker)
    assert watch(broker.settings(), io.StringIO(), io.StringIO(), session="desk", timeout_s=0.3) == Watched()
    for n in range(5):
        publisher.send_message(make_message(n))
    seen = []
    for _ in range(5):
        watching = Watching(broker.settings(), style="json", session="desk", limit=1)
        assert watching.finish().printed == 1
        seen += [json.loads(line)["id"] for line in watching.out.getvalue().splitlines()]
    assert seen == [make_event(n).id for n in range(5)]


@needs_mosquitto
def test_it_goes_on_when_the_broker_comes_back(tmp_path: Path, broker: Mosquitto) -> None:
    watching = Watching(broker.settings(), limit=2)
    box = Outbox(tmp_path / "o.db")
    link = MqttSink(broker.settings(), box.cursor("mqtt"), STATION)
    link.start()
    wait_for(lambda: "online" in watching.out.getvalue())
    box.put([make_message(1)])
    wait_for(lambda: "event new" in watching.out.getvalue())
    broker.stop()
    wait_for(lambda: "talus watch: " in watching.err.getvalue())
    broker.start()
    wait_for(lambda: watching.out.getvalue().count("online") == 2)
    box.put([make_message(2)])
    assert watching.finish().printed == 2
    link.stop()
    box.close()


def test_no_broker_at_the_start_is_an_error() -> None:
    with pytest.raises(DeliveryError, match="refused the connection"):
        watch(MqttSettings(host="127.0.0.1", port=1), io.StringIO(), io.StringIO(), timeout_s=5)


@needs_mosquitto
def test_the_command(broker: Mosquitto) -> None:
    """As a person calls it, the password from the environment, into a pipe that closes early."""
    command = [sys.executable, "-m", "agent", "watch", "--broker"]
    done = subprocess.run(
        [*command, f"127.0.0.1:{broker.port}", "--timeout", "0.3"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stderr == "talus watch: 0 messages shown, 0 duplicates, 0 refused\n"
    wrong = subprocess.run([*command, "http://x"], capture_output=True, text=True, cwd=ROOT, check=False)
    assert wrong.returncode != 0
    assert "mqtt://" in wrong.stderr
    assert "Traceback" not in wrong.stderr
    with subprocess.Popen(
        [*command, f"127.0.0.1:{broker.port}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    ) as process:
        publisher = Publisher(broker)
        assert process.stdout is not None
        publisher.send("talus/v1/XX/ABC/availability", b"online", retain=True)
        assert process.stdout.readline() == b"XX.ABC is online\n"
        process.stdout.close()
        publisher.send_message(make_message())
        assert process.wait(60) == 0, "a closed pipe ends it quietly"
        assert process.stderr is not None
        assert b"Traceback" not in process.stderr.read()


@needs_mosquitto
def test_the_command_goes_on_where_the_terminal_lacks_the_letters(broker: Mosquitto) -> None:
    alert = json.loads(make_alert().payload) | {"reason": "滑坡"}
    command = [sys.executable, "-m", "agent", "watch", "--broker", f"mqtt://127.0.0.1:{broker.port}", "--limit", "1"]
    latin = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    with subprocess.Popen([*command, "--timeout", "30"], stdout=subprocess.PIPE, cwd=ROOT, env=latin) as watching:
        publisher = Publisher(broker)
        while watching.poll() is None:
            publisher.send(ALERT, json.dumps(alert).encode())
            time.sleep(0.1)
        assert watching.stdout is not None
        assert b"\\u6ed1\\u5761" in watching.stdout.read()
    assert watching.returncode == 0
