"""A signed change rules within 2 s of its arrival, and no event of the data is lost to it.

A real station (simulator, real time) on a local broker gets one order after the other; each is timed from the moment at
which it is published to the one at which the station's report says that it rules. Beside it, in the same run, the peer:
the same payload through the same broker to a subscriber that does nothing but receive it.

    OMP_NUM_THREADS=1 python bench/remote_config.py [--rounds 30]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support import row

from agent.config.broker import MqttSettings
from agent.deliver.connection import Connection, Received, Subscription
from agent.deliver.sockets import Waker
from agent.remote.gate import Body
from agent.types import NS
from demo.broker import local_broker
from desk.push.signing import SigningKey, seal

LIMIT_S = 2.0
ROOT = "talus/v1/XX/BENCH"


class Listener:
    """What arrives under the station's topics, with the time at which it did."""

    def __init__(self, settings: MqttSettings) -> None:
        self.heard: queue.Queue[tuple[float, Received]] = queue.Queue()
        self._stop = threading.Event()
        self._settings = settings
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _take(self, message: Received) -> bool:
        self.heard.put((time.perf_counter(), message))
        return True

    def _run(self) -> None:
        with closing(Waker()) as waker:
            subscription = Subscription((f"{ROOT}/config/reported", f"{ROOT}/peer"), self._take)
            connection = Connection.open(self._settings, "bench-listener", waker, subscription=subscription)
            while not self._stop.is_set():
                connection.pump(0.5)
            connection.close()

    def wait(self, ends: str, contains: bytes, timeout_s: float = 30.0) -> float:
        """When the first such message came."""
        deadline = time.perf_counter() + timeout_s
        while True:
            at, message = self.heard.get(timeout=max(0.1, deadline - time.perf_counter()))
            if message.topic.endswith(ends) and contains in message.payload:
                return at

    def close(self) -> None:
        self._stop.set()
        self._thread.join(5)


@contextmanager
def station(folder: Path, port: int, public: str) -> Iterator[None]:
    config = folder / "station.yaml"
    config.write_text(
        "station: {network: XX, station: BENCH}\nsource: {kind: simulator}\n"
        f"mqtt: {{host: 127.0.0.1, port: {port}}}\nstate_dir: {folder / 'state'}\n"
        f"control: {{keys: [{{name: bench, public: '{public}'}}]}}\n"
    )
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([sys.executable, "-m", "agent", "run", "--config", str(config)], stderr=log)
        try:
            yield
        finally:
            process.terminate()
            process.wait(20)


def publish(connection: Connection, topic: str, payload: bytes) -> float:
    at = time.perf_counter()
    connection.publish(topic, payload)
    connection.pump(0.2)
    return at


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    rounds: int = parser.parse_args().rounds
    ours: list[float] = []
    peer: list[float] = []
    with tempfile.TemporaryDirectory() as name, local_broker() as broker, closing(Waker()) as waker:
        folder = Path(name)
        key = SigningKey.create(folder / "key.pem")
        settings = MqttSettings(host=broker.host, port=broker.port)
        listener = Listener(settings)
        with station(folder, broker.port, key.trusted("bench").public):
            listener.wait("config/reported", b'"status":"file"', 60)
            connection = Connection.open(settings, "bench-operator", waker)
            for number in range(1, rounds + 1):
                now_ns = time.time_ns()
                content = {"trigger": {"on": 4.0 + number / 100}}
                body = Body(
                    kind="config", stations=("XX.BENCH",), revision=number, issued_ns=now_ns,
                    expires_ns=now_ns + 600 * NS, content=content,
                )  # fmt: skip
                payload = seal(body, key)
                name_of_it = json.dumps(hashlib.sha256(payload).hexdigest()).encode()
                sent = publish(connection, f"{ROOT}/config/set", payload)
                ours.append(listener.wait("config/reported", name_of_it) - sent)
                sent = publish(connection, f"{ROOT}/peer", payload)
                peer.append(listener.wait("peer", payload) - sent)
                time.sleep(0.3)
            connection.close()
        listener.close()
    print(f"{rounds} changes; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    row("signed change to report of it, worst", f"{max(ours):.2f} s", f"<= {LIMIT_S:g} s", max(ours) <= LIMIT_S)
    row("signed change to report of it, median", f"{statistics.median(ours) * 1e3:.0f} ms")
    row("peer: the payload through the broker", f"{statistics.median(peer) * 1e3:.1f} ms")
    return 0 if max(ours) <= LIMIT_S else 1


if __name__ == "__main__":
    sys.exit(main())
