"""``talus desk`` as a process, a broker that keeps what it has acknowledged, a station that sends, and a phone."""

from __future__ import annotations

import contextlib
import json
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import yaml
from broker_support import Mosquitto, wait_for

from agent.config.broker import MqttSettings
from agent.config.file import load_section
from agent.deliver.connection import Connection
from agent.deliver.sockets import Waker
from agent.errors import DeliveryError
from desk.accounts import Role, add_account
from desk.settings import DeskConfig
from desk.store.store import Store

ROOT = Path(__file__).parents[1]
PREFIX = "talus/v1/XX/SLP"
RESENT_S = 5.0
"""A station sends what was acknowledged in its last seconds again after a lost connection (docs/delivery.md)."""
PASSWORD = "a long enough password"  # noqa: S105


def lasting_port() -> int:
    """A free port below those that the kernel gives to clients: a server that was killed finds it free again."""
    ends = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        with contextlib.suppress(OSError), socket.socket() as trial:
            trial.bind(("127.0.0.1", port := random.randrange(10_000, ends)))
            return port


class DeskProcess:
    """``talus desk`` over a folder of its own; ``start`` after ``stop`` goes on in it. ``settings`` are added to its
    configuration file. Killed at the end of a ``with``."""

    def __init__(self, folder: Path, broker: Mosquitto, **settings: Any) -> None:
        self.folder, self._broker = folder, broker
        self._session = str(settings.get("session", DeskConfig.model_fields["session"].default))
        self.address = ""
        self.log = folder / "desk.log"
        self._process: subprocess.Popen[str] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "mqtt": {"host": "127.0.0.1", "port": broker.port},
            "state_dir": str(folder / "state"),
            **settings,
            "web": {"port": lasting_port(), **settings.get("web", {})},
        }
        self._config = folder / "desk.yaml"
        self._config.write_text(yaml.safe_dump(config))

    def __enter__(self) -> DeskProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def account(self, name: str = "omar", role: Role = "operator") -> None:
        """Make an account with ``PASSWORD``; also while the desk runs."""
        config = load_section(DeskConfig, self._config)
        store = Store(config.database_url)
        add_account(store, "setup", name, role, PASSWORD, now_ns=time.time_ns())
        store.close()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self, *, wait: bool = True) -> DeskProcess:
        command = [sys.executable, "-m", "agent", "desk", "--config", str(self._config)]
        if self.address:
            command += ["--port", self.address.rpartition(":")[2]]
        with self.log.open("a") as log:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found is not None, self.log.read_text()[-2000:]
        self.address = found[0]
        if wait:
            wait_for(self.is_up, what="the desk")
            wait_for(lambda: self._broker.has_subscribed(self._session), what="the desk hears its broker")
        return self

    def is_up(self) -> bool:
        """Whether it says that all is well with it."""
        try:
            return httpx.get(f"{self.address}/healthz", timeout=60).status_code == 200
        except httpx.HTTPError:
            return False

    def kill(self) -> None:
        self.stop(signal.SIGKILL)

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self._process is None:
            return 0
        self._process.send_signal(number)
        status = self._process.wait(60)
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._process = None
        return status

    def client(self, name: str = "omar") -> httpx.Client:
        """A logged-in browser."""
        client = httpx.Client(base_url=self.address, timeout=60)
        answer = client.post("/login", data={"name": name, "password": PASSWORD, "next": "/"})
        assert answer.status_code == 303, answer.text
        return client


def csrf(client: httpx.Client) -> dict[str, str]:
    """The header that a request of this session must carry."""
    found = re.search(r'name="csrf" content="([^"]+)"', client.get("/").text)
    assert found is not None
    return {"x-csrf-token": found[1]}


@contextlib.contextmanager
def persistent_broker(folder: Path) -> Iterator[Mosquitto]:
    """A broker that goes on from its disk after a kill. It writes all that it holds within two seconds of a change: at
    every change it would take a few packets a second while thousands wait. What it loses a station sends again."""
    lines = ["persistence true", f"persistence_location {folder}/", "autosave_interval 1", "autosave_on_changes false"]
    broker = Mosquitto(folder, "max_queued_messages 100000", port=lasting_port())
    config = folder / f"mosquitto-{broker.port}.conf"
    config.write_text(config.read_text().replace("persistence false", "\n".join(lines)))
    try:
        yield broker.start()
    finally:
        broker.stop()


class Feeder(threading.Thread):
    """A station's sender: so many messages a second, each until the broker has acknowledged it. After a lost connection
    it sends again also what was acknowledged less than ``resent_s`` before, which a broker that was killed may not have
    on its disk. The thread therefore goes on for ``resent_s`` after the last acknowledgement."""

    def __init__(
        self, settings: MqttSettings, messages: Sequence[tuple[str, bytes]], per_s: float, *, resent_s: float = RESENT_S
    ) -> None:
        super().__init__(daemon=True)
        self.sent = 0
        """Messages that were given to the broker at least once."""
        self._settings, self._messages, self._per_s, self._resent_s = settings, messages, per_s, resent_s
        self._kept: dict[int, float | None] = {}
        """What may have to be sent again, and when the connection that stands has acknowledged it (None: not yet)."""

    @property
    def done(self) -> bool:
        """Whether the broker has acknowledged all."""
        return self.sent == len(self._messages) and None not in list(self._kept.values())

    @property
    def settled(self) -> bool:
        """Whether nothing has to be sent again, even if the broker is killed now."""
        return self.sent == len(self._messages) and not self._kept

    def send(self) -> None:
        """Send all, until the broker has acknowledged it."""
        self._connect(lambda: self.done)

    def run(self) -> None:
        self._connect(lambda: self.settled)

    def _connect(self, ended: Callable[[], bool]) -> None:
        waker = Waker()
        while not ended():
            connection = None
            try:
                connection = Connection.open(self._settings, "feeder", waker)
                self._feed(connection, ended)
            except DeliveryError:
                time.sleep(0.05)
            finally:
                if connection is not None:
                    connection.abandon()

    def _feed(self, connection: Connection, ended: Callable[[], bool]) -> None:
        self._kept = dict.fromkeys(self._kept)
        waiting = {self._publish(connection, n): n for n in self._kept}
        begun, first = time.monotonic(), self.sent
        while not ended():
            now = time.monotonic()
            due = min(len(self._messages), first + int((now - begun) * self._per_s) + 1)
            while self.sent < due and len(waiting) < 200:
                self._kept[self.sent] = None
                waiting[self._publish(connection, self.sent)] = self.sent
                self.sent += 1
            acks = connection.pump(0.005)
            for ack in acks:
                self._kept[waiting.pop(ack.token)] = time.monotonic()
            if not acks:  # nothing to read, not even the end: the connection stood at ``now``
                old = [n for n, at in self._kept.items() if at is not None and now - at > self._resent_s]
                for n in old:
                    del self._kept[n]

    def _publish(self, connection: Connection, number: int) -> int:
        topic, payload = self._messages[number]
        return connection.publish(f"{PREFIX}/{topic}", payload)


@dataclass(frozen=True)
class Told:
    """One request to the phone's service."""

    path: str
    headers: dict[str, str]
    body: bytes
    at: float = field(default_factory=time.time)

    @property
    def words(self) -> dict[str, Any]:
        """A JSON body."""
        found: dict[str, Any] = json.loads(self.body)
        return found


class Phone:
    """A web service on the loopback that keeps what it is sent, as ntfy does; ``refuses`` answers 503."""

    def __init__(self) -> None:
        self.told: list[Told] = []
        self.refuses = False
        phone = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                if not phone.refuses:
                    phone.told.append(Told(self.path, dict(self.headers), body))
                self.send_response(503 if phone.refuses else 200)
                self.end_headers()

            do_GET = do_PUT = do_POST  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextlib.contextmanager
def phone() -> Iterator[Phone]:
    found = Phone()
    try:
        yield found
    finally:
        found.close()


def payload(body: Any) -> bytes:
    """A message as a station sends it."""
    text: str = body.model_dump_json(by_alias=True)
    return text.encode()
