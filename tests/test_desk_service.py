"""The desk as one process with a real broker: what stations send is on the page, and a kill costs nothing."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from broker_support import Mosquitto, needs_mosquitto, running, wait_for
from desk_support import START_NS, alert, event
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

from agent.config.file import load_section
from agent.types import NS
from desk.settings import DeskConfig

ROOT = Path(__file__).parents[1]
PREFIX = "talus/v1/XX/SLP"


class Process:
    """``talus desk`` over a state folder; ``address`` and ``password`` are what it printed."""

    def __init__(self, folder: Path, broker: Mosquitto) -> None:
        self._folder, self._broker = folder, broker
        self.password = ""
        self.address = ""
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "agent", "desk", "--broker", f"mqtt://127.0.0.1:{self._broker.port}"]
        command += ["--state", str(self._folder / "desk"), "--port", "0"]
        with (self._folder / "desk.log").open("a") as log:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found is not None, (self._folder / "desk.log").read_text()
        self.address = found[0]
        if not self.password:
            told = re.search(r"password (\S+)", self._process.stdout.readline())
            assert told is not None
            self.password = told[1]
        wait_for(self._is_up, what="the desk")
        session = DeskConfig.model_fields["session"].default
        wait_for(lambda: self._broker.has_subscribed(session), what="the desk hears its broker")

    def _is_up(self) -> bool:
        try:
            return httpx.get(f"{self.address}/healthz", timeout=60).status_code == 200
        except httpx.HTTPError:
            return False

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self._process is not None
        self._process.send_signal(number)
        return self._process.wait(60)

    def client(self) -> httpx.Client:
        client = httpx.Client(base_url=self.address, timeout=60)
        answer = client.post("/login", data={"name": "admin", "password": self.password, "next": "/"})
        assert answer.status_code == 303, answer.text
        return client


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with running(tmp_path) as found:
        yield found


def publish(broker: Mosquitto, messages: list[tuple[str, bytes]]) -> None:
    client = Client(CallbackAPIVersion.VERSION2)
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    sent = [client.publish(f"{PREFIX}/{topic}", payload, 1) for topic, payload in messages]
    for one in sent:
        one.wait_for_publish(60)
    client.disconnect()
    client.loop_stop()


def payload(body: object) -> bytes:
    return body.model_dump_json(by_alias=True).encode()  # type: ignore[attr-defined, no-any-return]


@needs_mosquitto
def test_what_a_station_sends_is_on_the_page_and_nonsense_is_not(tmp_path: Path, broker: Mosquitto) -> None:
    desk = Process(tmp_path, broker)
    desk.start()
    other = event(0, sensor="XX.TOE.00.HH")
    publish(
        broker,
        [
            ("availability", b"online"),
            ("event", payload(event(0))),
            ("event", b"{" * 100_000),
            ("event", b"\x00\xff" * 50),
            ("event", payload(other)),
            ("availability", b"<b>"),
            ("alert", payload(alert(0))),
        ],
    )
    client = desk.client()
    wait_for(lambda: client.get("/api/v1/alerts").json()["alerts"], what="the alert")
    found = client.get("/api/v1/events").json()["events"]
    assert [one["id"] for one in found] == [event(0).id]
    assert [one["code"] for one in client.get("/api/v1/stations").json()["stations"]] == ["XX.SLP"]
    assert desk.stop() == 0
    assert f"refused a message on {PREFIX}/event" in (tmp_path / "desk.log").read_text()


@needs_mosquitto
def test_a_desk_that_is_killed_misses_nothing_that_came_meanwhile(tmp_path: Path, broker: Mosquitto) -> None:
    desk = Process(tmp_path, broker)
    desk.start()
    wanted = set()
    for round_ in range(3):
        messages = [event(n % 4, onset_ns=START_NS + (40 * round_ + n // 4) * 60 * NS) for n in range(80)]
        wanted |= {message.id for message in messages}
        publish(broker, [("event", payload(message)) for message in messages[:40]])
        desk.stop(signal.SIGKILL)
        publish(broker, [("event", payload(message)) for message in messages[40:]])
        desk.start()
    client = desk.client()

    def complete() -> bool:
        found = client.get("/api/v1/events?limit=1000").json()["events"]
        return {one["id"] for one in found if one["ended"] and one["revision"] == 3} == wanted

    wait_for(complete, what="every last revision")
    desk.stop()


@needs_mosquitto
def test_an_event_reaches_an_open_stream_and_a_page_that_was_away_reads_on(tmp_path: Path, broker: Mosquitto) -> None:
    desk = Process(tmp_path, broker)
    desk.start()
    client = desk.client()

    def read(last: str | None, wanted: int) -> list[str]:
        lines: list[str] = []
        headers = {} if last is None else {"last-event-id": last}
        with client.stream("GET", "/api/v1/stream", headers=headers, timeout=60) as answer:
            for line in answer.iter_lines():
                if line.startswith("event: hello"):
                    publish(broker, [("event", payload(event(0)))])
                lines.append(line)
                if sum(one.startswith("data: {") for one in lines) >= wanted:
                    return lines
        return lines

    lines = read(None, 1)
    assert any(event(0).id in line for line in lines)
    last = [line.removeprefix("id: ") for line in lines if line.startswith("id: ")][-1]
    publish(broker, [("event", payload(event(1))), ("event", payload(event(2)))])
    time.sleep(0.2)
    missed = read(last, 1)
    assert any('"revision":2' in line or '"revision":1' in line for line in missed)
    desk.stop()


def test_the_shipped_example_is_good() -> None:
    config = load_section(DeskConfig, ROOT / "configs" / "desk.yaml")
    assert config.web.host == "127.0.0.1"
    assert config.database_url == "sqlite:////var/lib/talus-desk/desk.db"


def test_a_wrong_configuration_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "desk.yaml"
    path.write_text("mqtt: {host: localhost}\ntargets:\n  - {name: ann}\nweb: {prot: 1}\n")
    command = [sys.executable, "-m", "agent", "desk", "--check", "--config", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 1
    assert "desk.yaml:3: targets[0].url" in done.stderr
    assert "desk.yaml:4: web.prot" in done.stderr


def test_a_check_names_a_target_without_an_address_and_messages_without_a_link(tmp_path: Path) -> None:
    path = tmp_path / "desk.yaml"

    def checked(target: str, web: str = "{}") -> subprocess.CompletedProcess[str]:
        path.write_text(f"mqtt: {{host: localhost}}\nweb: {web}\ntargets: [{{name: ann, {target}}}]\n")
        command = [sys.executable, "-m", "agent", "desk", "--check", "--config", str(path)]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=100, check=False)

    missing = checked("url_env: TALUS_NOT_SET")
    assert missing.returncode != 0
    assert "ann has no address" in missing.stderr
    unlinked = checked("url: json://localhost")
    assert (unlinked.returncode, "public_url is not set" in unlinked.stderr) == (0, True)
    assert checked("url: json://localhost", "{public_url: 'https://desk.example.org'}").stderr == ""
