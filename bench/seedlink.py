"""SeedLink: what reception costs, and how soon it is back.

    python bench/seedlink.py cpu [--seconds 120]
    python bench/seedlink.py recovery [--cycles 20]

``cpu``: talus run on 1 station x 3 x 100 Hz, and other clients beside it. ``recovery``: the server is killed, then the
link is cut for 60 s, and so on; time from the return to the next new record (inf: not within 20 s), and records lost.

The peers get the same stream at the same time: ObsPy's client (SeedLink 3) and ``seedlink-client`` (version 4).
"""

from __future__ import annotations

import argparse
import json
import logging
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import psutil
from pymseed import MS3Record
from seedlink_server import SeedLinkServer, made
from support import row

from agent.config.sources import SeedLinkConfig
from agent.sources.seedlink.source import SeedLinkSource
from agent.types import NS

ROOT = Path(__file__).parents[1]
RECOVERY_GOAL_S = 15.0
CPU_GOAL_PERCENT = 1.5

OBSPY = """
import logging, sys
from obspy.clients.seedlink.slclient import SLClient
from obspy.clients.seedlink.slpacket import SLPacket
logging.disable()
class Client(SLClient):
    def packet_handler(self, count, packet):
        if packet.get_type() not in (SLPacket.TYPE_SLINF, SLPacket.TYPE_SLINFT):
            print(packet.get_trace().stats.npts, flush=True)
client = Client(timeout=120)
client.slconn.set_sl_address(f"127.0.0.1:{sys.argv[1]}")
client.multiselect = "XX_BENCH:HH?"
client.initialize()
client.run()
"""
CLIENT = """
import sys
from seedlink_client import SeedLink
with SeedLink("127.0.0.1", int(sys.argv[1])) as link:
    link.add_stream("XX_BENCH", "HH?")
    for packet in link.collect():
        print(packet.record().unpack_data(), flush=True)
"""


class Feed:
    """Three channels of real-looking noise at 100 Hz, in records of 512 bytes, sent when their last sample is due."""

    def __init__(self, server: SeedLinkServer) -> None:
        self._server = server
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Feed:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        rng = np.random.default_rng(1)
        while not self._stop.is_set():
            start_ns = time.time_ns()
            minute = []
            for component in "ENZ":
                samples = np.cumsum(rng.normal(0, 60, 6000)) * 0.2
                minute += made(f"FDSN:XX_BENCH_00_H_H_{component}", start_ns, samples)
            for due, record in sorted((MS3Record.parse(record).endtime, record) for record in minute):
                if self._stop.wait(max(0.0, (due - time.time_ns()) / NS)):
                    return
                self._server.feed([record])


def cpu(seconds: float) -> None:
    """Processor time of whole processes, from ten seconds after their start on."""
    with SeedLinkServer() as server, Feed(server), tempfile.TemporaryDirectory() as folder:
        time.sleep(6)
        config = Path(folder) / "station.yaml"
        config.write_text(
            "station: {network: XX, station: BENCH}\n"
            f"source: {{kind: seedlink, servers: [{{host: 127.0.0.1, port: {server.port}, "
            "stations: [{station: XX_BENCH, selectors: ['HH?']}]}]}\n"
            f"state_dir: {folder}/state\n"
        )
        commands = {
            "talus run (detector and classifier at work)": ["-m", "agent", "run", "--config", str(config)],
            "ObsPy's client, records decoded": ["-c", OBSPY, str(server.port)],
            "seedlink-client, records decoded": ["-c", CLIENT, str(server.port)],
        }
        running = {}
        for number, (name, command) in enumerate(commands.items()):
            with (Path(folder) / f"{number}.txt").open("w") as said:
                process = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=said, stderr=subprocess.DEVNULL)
            running[name] = psutil.Process(process.pid)
        time.sleep(10)
        before = {name: sum(process.cpu_times()[:2]) for name, process in running.items()}
        began = time.monotonic()
        time.sleep(seconds)
        took = time.monotonic() - began
        said = json.loads((Path(folder) / "state/status.json").read_text())
        got = [said["health"]["source"]["packets"]]  # some seconds ago
        got += [len((Path(folder) / f"{number}.txt").read_text().splitlines()) for number in (1, 2)]
        print(f"1 station x 3 x 100 Hz over SeedLink for {took:.0f} s: percent of one core, records received")
        for (name, process), records in zip(running.items(), got, strict=True):
            percent = 100 * (sum(process.cpu_times()[:2]) - before[name]) / took
            value = f"{percent:.2f} %, {records} records, {process.memory_info().rss / 1e6:.0f} MB"
            ours = name.startswith("talus")
            row(name, value, f"<= {CPU_GOAL_PERCENT} %" if ours else "", percent <= CPU_GOAL_PERCENT if ours else None)
            process.terminate()
            process.wait(30)


class Proxy:
    """Carries TCP to the server; while ``cut`` is set nothing passes, and nothing is closed."""

    def __init__(self, port: int) -> None:
        self._to = port
        self.cut = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            near, _ = self._listener.accept()
            threading.Thread(target=self._join, args=(near,), daemon=True).start()

    def _join(self, near: socket.socket) -> None:
        while self.cut.is_set():
            time.sleep(0.01)
        try:
            far = socket.create_connection(("127.0.0.1", self._to))
        except OSError:
            near.close()
            return
        for one, other in ((near, far), (far, near)):
            threading.Thread(target=self._carry, args=(one, other), daemon=True).start()

    def _carry(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while piece := one.recv(65536):
                while self.cut.is_set():
                    time.sleep(0.01)
                other.sendall(piece)
        for end in (one, other):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class Counted:
    """When a client got which records."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.starts: set[tuple[str, int]] = set()

    def got(self, channel: str, start_ns: int) -> None:
        if (channel, start_ns) not in self.starts:
            self.starts.add((channel, start_ns))
            self.times.append(time.monotonic())

    def after(self, moment: float) -> float | None:
        """Seconds from a moment to the next new record."""
        return next((at - moment for at in self.times if at > moment), None)


def recovery(cycles: int, cut_s: float, down_s: float) -> None:
    """Alternately the server is killed and the link is cut; all clients through the same proxy."""
    with SeedLinkServer() as server, Feed(server):
        time.sleep(6)
        proxy = Proxy(server.port)
        clients = {"Talus": Counted(), "seedlink-client": Counted(), "ObsPy's client": Counted()}
        source = SeedLinkSource(
            SeedLinkConfig.model_validate(
                {
                    "kind": "seedlink",
                    "servers": [
                        {
                            "host": "127.0.0.1",
                            "port": proxy.port,
                            "stations": [{"station": "XX_BENCH", "selectors": ["HH?"]}],
                        }
                    ],
                }
            ),
            None,
            on_problem=print,
        )
        for work in (_talus(source, clients["Talus"]), _client(proxy.port, clients["seedlink-client"]),
                     _obspy(proxy.port, clients["ObsPy's client"])):  # fmt: skip
            threading.Thread(target=work, daemon=True).start()
        time.sleep(15)
        since_ns = time.time_ns()
        waits: dict[str, list[float]] = {name: [] for name in clients}
        for cycle in range(cycles):
            kill = cycle % 2 == 0
            if kill:
                server.stop()
                time.sleep(down_s)
                server.start()
            else:
                proxy.cut.set()
                time.sleep(cut_s)
                proxy.cut.clear()
            back = time.monotonic()
            time.sleep(RECOVERY_GOAL_S + 5)
            for name, counted in clients.items():
                waits[name].append(counted.after(back) or float("inf"))
            print(
                f"{'killed' if kill else 'cut'}: " + ", ".join(f"{n} {w[-1]:.1f} s" for n, w in waits.items()),
                flush=True,
            )
        until_ns = time.time_ns() - 15 * NS
        time.sleep(12)
        sent = {(entry.channel, entry.start_ns) for entry in server.held() if since_ns < entry.start_ns < until_ns}
        print(f"{cycles} interruptions (killed for {down_s:g} s, cut for {cut_s:g} s); {len(sent)} records sent")
        for name, counted in clients.items():
            lost, worst = len(sent - counted.starts), max(waits[name])
            ours = name == "Talus"
            met = (lost == 0 and worst <= RECOVERY_GOAL_S) if ours else None
            value = f"longest {worst:.1f} s, median {float(np.median(waits[name])):.1f} s; {lost} records lost"
            row(name, value, f"<= {RECOVERY_GOAL_S:g} s, 0 lost" if ours else "", met)
        source.close()


def _talus(source: SeedLinkSource, counted: Counted) -> Callable[[], None]:
    def work() -> None:
        for block in source.blocks():
            counted.got(block.stream.seed[-3:], block.start_ns)
            source.acknowledge(block)

    return work


def _client(port: int, counted: Counted) -> Callable[[], None]:
    def work() -> None:
        from seedlink_client import SeedLink

        with SeedLink("127.0.0.1", port) as link:
            link.add_stream("XX_BENCH", "HH?")
            for packet in link.collect():
                record = packet.record()
                counted.got("".join(record.sourceid.split("_")[-3:]), record.starttime)

    return work


def _obspy(port: int, counted: Counted) -> Callable[[], None]:
    def work() -> None:
        from obspy.clients.seedlink.slclient import SLClient
        from obspy.clients.seedlink.slpacket import SLPacket

        class Client(SLClient):  # type: ignore[misc]
            def packet_handler(self, count: int, packet: SLPacket) -> bool:
                if packet.get_type() not in (SLPacket.TYPE_SLINF, SLPacket.TYPE_SLINFT):
                    trace = packet.get_trace()
                    counted.got(trace.stats.channel, trace.stats.starttime.ns)
                return False

        logging.disable()
        client = Client(timeout=120)
        client.slconn.set_sl_address(f"127.0.0.1:{port}")
        client.multiselect = "XX_BENCH:HH?"
        client.initialize()
        client.run()

    return work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["cpu", "recovery"])
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--cycles", type=int, default=20)
    parser.add_argument("--cut", type=float, default=60.0, help="seconds for which the link carries nothing")
    parser.add_argument("--down", type=float, default=10.0, help="seconds for which the server is away")
    args = parser.parse_args()
    if args.what == "cpu":
        cpu(args.seconds)
    else:
        recovery(args.cycles, args.cut, args.down)


if __name__ == "__main__":
    main()
