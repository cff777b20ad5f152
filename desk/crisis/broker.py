"""A Mosquitto of one's own that keeps on disk what it has acknowledged, the link to it, and who listens."""

from __future__ import annotations

import contextlib
import json
import select
import shutil
import signal
import socket
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from agent.config.broker import MqttSettings
from agent.deliver.connection import Connection, Received, Subscription
from agent.deliver.sockets import Waker
from agent.errors import DeliveryError
from agent.messages.payloads import OFFLINE
from agent.types import parse_ns

_HOST = "127.0.0.1"
_START_S = 20.0


def find_mosquitto() -> str | None:
    """The Mosquitto executable; Debian keeps it where only root's PATH leads."""
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin")


def free_port() -> int:
    """A TCP port on the loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


class Broker:
    """A real Mosquitto on the loopback; stopped, killed, started again, and told to refuse.

    Raises:
        DeliveryError: there is none on this machine, or it does not start.
    """

    def __init__(self, folder: Path) -> None:
        program = find_mosquitto()
        if program is None:
            raise DeliveryError("mosquitto is not installed", "apt install mosquitto, or your system's package")
        self.port = free_port()
        self._folder = folder
        folder.mkdir()
        self._acl = folder / "acl"
        self._config = folder / "mosquitto.conf"
        # The broker keeps what it runs as: where root starts it, it would become another user.
        self._config.write_text(
            f"listener {self.port} {_HOST}\nallow_anonymous true\nuser root\nacl_file {self._acl}\n"
            f"persistence true\npersistence_location {folder}/\nautosave_interval 1\nautosave_on_changes true\n"
            "max_queued_messages 0\n"
        )
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None
        self.refuse(False)

    def start(self) -> None:
        """Return when it answers."""
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen([self._program, "-c", self._config], stdout=log, stderr=log)
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection((_HOST, self.port), timeout=1):
                return
            time.sleep(0.02)
        text = (self._folder / "log").read_text("utf-8", "replace").strip()
        raise DeliveryError(f"{self._program} does not start: {text[-300:]}")

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Return when it has ended."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(_START_S)

    def has_met(self, client: str) -> bool:
        """Whether a client of this name has connected."""
        return f" as {client} " in (self._folder / "log").read_text(encoding="utf-8")

    def refuse(self, yes: bool) -> None:
        """Whether it refuses what is published; subscribers hear as before."""
        # Mosquitto 2.0.11 forgets what "topic" lines grant to nameless sessions when it restarts; patterns it keeps.
        self._acl.write_text(f"pattern {'read' if yes else 'readwrite'} #\n")
        self._acl.chmod(0o600)
        if self._process is not None:
            self._process.send_signal(signal.SIGHUP)


class Link(threading.Thread):
    """A TCP proxy between station and broker: ``open``, ``cut`` (connections end, new ones too) or ``stalled``."""

    def __init__(self, target: int) -> None:
        super().__init__(daemon=True)
        self.state: Literal["open", "cut", "stalled"] = "open"
        self._target = target
        self._listener = socket.create_server((_HOST, 0))
        self.port = int(self._listener.getsockname()[1])
        self._peers: dict[socket.socket, socket.socket] = {}
        self._stopping = False

    def run(self) -> None:
        while not self._stopping:
            if self.state == "cut":
                for one in list(self._peers):
                    self._close(one)
            watched = [self._listener, *(self._peers if self.state == "open" else ())]
            for one in select.select(watched, [], [], 0.05)[0]:
                if one is self._listener:
                    self._accept()
                elif one in self._peers:
                    self._carry(one)
        for one in list(self._peers):
            self._close(one)
        self._listener.close()

    def stop(self) -> None:
        """End, and all connections with it."""
        self._stopping = True
        self.join(10)

    def _accept(self) -> None:
        near, _ = self._listener.accept()
        try:
            if self.state == "cut":
                raise OSError
            far = socket.create_connection((_HOST, self._target), timeout=1)
        except OSError:
            near.close()
            return
        self._peers[near], self._peers[far] = far, near
        for one in (near, far):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            one.settimeout(5)

    def _carry(self, one: socket.socket) -> None:
        try:
            data = one.recv(65536)
            if not data:
                raise OSError
            self._peers[one].sendall(data)
        except OSError:
            self._close(one)

    def _close(self, one: socket.socket) -> None:
        other = self._peers.pop(one, None)
        if other is not None:
            self._peers.pop(other, None)
            other.close()
        one.close()


@dataclass(frozen=True, slots=True)
class Arrival:
    """An event or an alert when it came first: ``at_ns`` in the time of the data, ``wall_ns`` by this machine."""

    name: str
    body: dict[str, Any]
    at_ns: int
    wall_ns: int


class Subscriber(threading.Thread):
    """A subscriber with a session, as a desk is; it comes back after every loss. ``receive`` says what to keep."""

    def __init__(self, port: int, client_id: str) -> None:
        super().__init__(daemon=True)
        self._settings = MqttSettings(host=_HOST, port=port)
        self._client_id = client_id
        self.ready = threading.Event()
        self._stopping = False

    def run(self) -> None:
        subscription = Subscription(["talus/#"], self._take, 86_400)
        waker = Waker()
        while not self._stopping:
            connection = None
            try:
                connection = Connection.open(self._settings, self._client_id, waker, subscription=subscription)
                while not self._stopping:
                    connection.pump(0.2)
                    if connection.subscribed:
                        self.ready.set()
            except DeliveryError:
                time.sleep(0.05)
            finally:
                if connection is not None:
                    connection.close()

    def stop(self) -> None:
        """End; what has arrived stays."""
        self._stopping = True
        self.join(10)

    def receive(self, name: str, message: Received) -> None:
        """Take a message, of the last part of its topic ``name``."""
        raise NotImplementedError

    def _take(self, message: Received) -> bool:
        self.receive(message.topic.rsplit("/", 1)[-1], message)
        return True


class Listener(Subscriber):
    """Events and alerts as they came first. ``floor_ns`` is the data time at which the way was last opened again: what
    comes later and was decided before has waited until then."""

    def __init__(self, port: int) -> None:
        super().__init__(port, "talus-crisis-desk")
        self.arrived: dict[tuple[str, int], Arrival] = {}
        """By ``boot_id`` and ``seq``; copies are passed over."""
        self.copies = 0
        self.offline = 0
        """How often the broker has said that the station is lost."""
        self.floor_ns = 0

    def receive(self, name: str, message: Received) -> None:
        """See ``Subscriber``."""
        if name == "availability":
            self.offline += message.payload == OFFLINE.encode() and not message.retain
        elif name in ("event", "alert"):
            body = json.loads(message.payload)
            key = (body["boot_id"], body["seq"])
            if key in self.arrived:
                self.copies += 1
            else:
                at_ns = max(parse_ns(body["timing"]["data"]), self.floor_ns)
                self.arrived[key] = Arrival(name, body, at_ns, time.time_ns())
