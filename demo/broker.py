"""A broker of one's own on the loopback, for the demonstration: Mosquitto if it is installed, else one in Python."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from agent.errors import DeliveryError
from desk.crisis.broker import find_mosquitto, free_port

_HOST = "127.0.0.1"
_START_S = 10.0


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """Where it listens, which program it is, and what it speaks (amqtt waits for ever for the rest of an MQTT 5
    CONNECT, which it misreads: trying costs a time-out)."""

    host: str
    port: int
    program: str
    protocol: Literal["auto", "3.1.1"]

    @property
    def url(self) -> str:
        """For ``MqttSettings.from_url`` and the commands' ``--broker``."""
        query = "" if self.protocol == "auto" else f"?protocol={self.protocol}"
        return f"mqtt://{self.host}:{self.port}{query}"


@contextlib.contextmanager
def local_broker() -> Iterator[BrokerAddress]:
    """A broker for as long as the block lasts, open to this machine only, keeping nothing on disk.

    Raises:
        DeliveryError: neither Mosquitto nor the Python package amqtt is there, or it does not start.
    """
    program = find_mosquitto()
    port = free_port()
    if program is not None:
        with _mosquitto(program, port):
            yield BrokerAddress(_HOST, port, "mosquitto", "auto")
    else:
        with _amqtt(port):
            yield BrokerAddress(_HOST, port, "amqtt", "3.1.1")


@contextlib.contextmanager
def _mosquitto(program: str, port: int) -> Iterator[None]:
    with tempfile.TemporaryDirectory(prefix="talus-broker-") as folder:
        config, log = Path(folder) / "mosquitto.conf", Path(folder) / "log"
        config.write_text(f"listener {port} {_HOST}\nallow_anonymous true\npersistence false\n", encoding="ascii")
        with (
            log.open("wb") as output,
            subprocess.Popen([program, "-c", config], stdout=output, stderr=output) as process,
        ):
            try:
                if not _answers(port, process):
                    text = log.read_text("utf-8", "replace").strip()
                    raise DeliveryError(
                        f"{program} does not start: {text[-300:]}", "start a broker by hand and name it"
                    )
                yield
            finally:
                process.terminate()


@contextlib.contextmanager
def _amqtt(port: int) -> Iterator[None]:
    try:
        from amqtt.broker import Broker
    except ImportError:
        raise DeliveryError(
            "there is no broker on this machine", "install mosquitto, or: pip install 'talus-agent[demo]'"
        ) from None
    for name in ("amqtt", "transitions"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    config = {
        "listeners": {"default": {"type": "tcp", "bind": f"{_HOST}:{port}"}},
        "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
    }

    async def start() -> None:
        await Broker(config).start()  # made inside the loop that it is to use

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="broker", daemon=True)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(start(), loop).result(_START_S)
        yield
    finally:
        # Its own shutdown waits five seconds for tasks that never end; there is nothing to be kept.
        asyncio.run_coroutine_threadsafe(_cancel_all(), loop).result(_START_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(_START_S)
        loop.close()


async def _cancel_all() -> None:
    # A client that leaves at this very moment ends as an error in asyncio's own callback: not one to print.
    asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: None)
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=1.0)


def _answers(port: int, process: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection((_HOST, port), timeout=1):
            return True
        time.sleep(0.02)
    return False
