"""A real Mosquitto that tests start, stop, kill and configure, and a collector that shows what subscribers get."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.config.broker import MqttSettings
from agent.deliver.connection import Connection, Received, Subscription
from agent.deliver.sockets import Waker
from agent.errors import DeliveryError
from agent.messages.payloads import Message, Priority, Stamp, alert_message, event_message
from agent.types import Alert, Classification, Detection, Event, EventPhase, Quality, StationId, event_id
from demo.broker import find_mosquitto

STATION = StationId("XX", "ABC", "00", "HH")
BOOT = "0123456789abcdef"
ONSET_NS = 1_700_000_000_123_456_789

_mosquitto = find_mosquitto()
needs_mosquitto = pytest.mark.skipif(_mosquitto is None, reason="mosquitto is not installed")


_locks: list[int] = []


def own_port() -> int:
    """A TCP port of the loopback for this process alone, as long as it lives: below those that the system gives to
    outgoing connections, of which one could take it while its server is restarted, and locked against other tests."""
    folder = Path(tempfile.gettempdir()) / f"talus-test-ports-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    chance = random.SystemRandom()
    while True:
        port = chance.randrange(15_000, 32_000)
        lock = os.open(folder / str(port), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            os.close(lock)
            continue
        _locks.append(lock)
        return port


def wait_for(condition: Callable[[], object], timeout_s: float = 100.0, what: str = "") -> None:
    """Poll until the condition holds; a test fails with the condition's name when it does not. The limit is for a
    machine that is ten times slower than any."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what or condition}"
        time.sleep(0.01)


def make_event(number: int = 0, revision: int = 0, phase: EventPhase = "new", probability: float = 0.91) -> Event:
    onset_ns = ONSET_NS + number * 1_000_000_000
    rest = (1 - probability) / 4
    return Event(
        id=event_id(STATION, onset_ns),
        revision=revision,
        phase=phase,
        station=STATION,
        onset_ns=onset_ns,
        detection=Detection(12.345678, 3.21, 8123.4, 7.25, 41.25),
        classification=Classification(
            "landslide", probability, (rest, rest, rest, probability, rest), False, 3.0, "student-1", "a" * 64,
            "onnxruntime", "int8",
        ),
        quality=Quality(0.0, "ENZ"),
        data_ns=onset_ns + 3_000_000_000,
    )  # fmt: skip


_seq = itertools.count(1)


def stamp(seq: int | None = None) -> Stamp:
    now = time.time_ns()
    return Stamp(BOOT, next(_seq) if seq is None else seq, now - 5_000_000, now)


def make_message(number: int = 0, revision: int = 0, phase: EventPhase = "new") -> Message:
    return event_message(make_event(number, revision, phase), stamp())


def make_alert(number: int = 0) -> Message:
    return alert_message(Alert(make_event(number), "raise", "warning", "landslide", "91 % is above 80 %"), stamp())


def make_other(number: int = 0, size: int = 100) -> Message:
    return Message("talus/v1/XX/ABC/response", b"x" * size, Priority.OTHER, key=f"other-{number}")


class Mosquitto:
    """One broker on one port; ``start`` after ``stop`` or ``kill`` uses the same port and forgets everything."""

    def __init__(self, folder: Path, *lines: str, anonymous: bool = True, port: int | None = None) -> None:
        assert _mosquitto is not None
        self.port = port or own_port()
        self._folder = folder
        self._config = folder / f"mosquitto-{self.port}.conf"
        self.log = folder / f"mosquitto-{self.port}.log"
        text = [f"listener {self.port} 127.0.0.1", f"allow_anonymous {str(anonymous).lower()}", "persistence false"]
        self._config.write_text("\n".join([*text, *lines, "user root", "log_type all", ""]))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Mosquitto:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen([str(_mosquitto), "-c", str(self._config)], stdout=log, stderr=log)
        wait_for(self._answers, what="mosquitto answers")
        return self

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log.read_text()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(60)
            self._process = None

    def has_subscribed(self, client_id: str) -> bool:
        """Whether a client with that name has ever subscribed to something, so that the broker keeps what comes for it
        (if it has asked for that)."""
        return f"Sending SUBACK to {client_id}\n" in self.log.read_text()

    def reload(self) -> None:
        """Have it read its access list and passwords anew."""
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)

    def save(self) -> None:
        """Have it write what it holds, and wait for that; it must have ``persistence true`` in its folder."""
        assert self._process is not None
        before = self._saved()
        self._process.send_signal(signal.SIGUSR1)
        wait_for(lambda: self._saved() != before, what="mosquitto has written what it holds")

    def _saved(self) -> int:
        file = self._folder / "mosquitto.db"
        return file.stat().st_mtime_ns if file.exists() else 0

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(60)
            self._process = None

    def settings(self, **changes: Any) -> MqttSettings:
        return MqttSettings(
            host="127.0.0.1", port=self.port, **{"backoff_min_s": 0.05, "backoff_max_s": 0.3, **changes}
        )


@contextlib.contextmanager
def running(folder: Path, *lines: str, **options: Any) -> Iterator[Mosquitto]:
    broker = Mosquitto(folder, *lines, **options)
    try:
        yield broker.start()
    finally:
        broker.stop()


class Collector:
    """A subscriber with a session that outlives its connections, in a thread of its own, reconnecting at once."""

    def __init__(self, settings: MqttSettings, *filters: str, session: bool = True) -> None:
        self.received: list[Received] = []
        self.connects = 0
        self._settings = settings
        self._client_id = f"collector-{next(_seq)}"
        self._subscription = Subscription(filters or ("talus/#",), self._receive, 3600 if session else 0)
        self._waker = Waker()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Collector:
        self._thread.start()
        wait_for(lambda: self.connects, what="the collector has subscribed")
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._waker.wake()
        self._thread.join(60)

    def _run(self) -> None:
        while not self._stop.is_set():
            connection = None
            try:
                connection = Connection.open(
                    self._settings, self._client_id, self._waker, subscription=self._subscription
                )
                self.connects += 1
                while not self._stop.is_set():
                    connection.pump(1.0)
            except DeliveryError:
                time.sleep(0.02)
            finally:
                if connection is not None:
                    connection.close()

    def _receive(self, message: Received) -> bool:
        self.received.append(message)
        return True

    def payloads(self, topic_end: str) -> list[bytes]:
        return [message.payload for message in list(self.received) if message.topic.endswith(topic_end)]

    def bodies(self, topic_end: str) -> list[dict[str, Any]]:
        return [json.loads(payload) for payload in self.payloads(topic_end)]


def first_order(bodies: list[dict[str, Any]]) -> dict[str, list[int]]:
    """Revisions of each event in the order of their first arrival."""
    order: dict[str, list[int]] = {}
    for body in bodies:
        revisions = order.setdefault(body["id"], [])
        if body["revision"] not in revisions:
            revisions.append(body["revision"])
    return order
