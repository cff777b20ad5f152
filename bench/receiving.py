"""What reception costs, beside other clients on the same packets at the same time, and how soon it is back.

    python bench/receiving.py seedlink [--seconds 120]
    python bench/receiving.py recovery [--cycles 20]
    python3.12 -m venv /tmp/rsudp && /tmp/rsudp/bin/pip install rsudp "setuptools<81"
    python bench/receiving.py shake --rsudp /tmp/rsudp/bin/python [--minutes 5]

``seedlink``: talus run on 1 station x 3 x 100 Hz, and other clients beside it. ``recovery``: the server is killed, then
the link is cut for 60 s, and so on; time from the return to the next new record (inf: not within 20 s), and records
lost. The peers get the same stream: ObsPy's client (SeedLink 3) and ``seedlink-client`` (version 4).

``shake``: processor time of the whole service on a Raspberry Shake feed, beside rsudp. Three channels at 100 Hz,
datagrams of 25 samples in real time, noise with a few events. Talus: ``talus run`` with its default settings (trigger
on three components, network), events printed. rsudp: its client with the alert module alone (STA/LTA of the same
lengths and band, no plot, nothing written), once for each of the three components in one process, and for comparison
on one component, which is what its settings allow. Counted from when rsudp's averages are full, children included.
Goal: a fifth of rsudp's processor time at most.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import json
import logging
import os
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import psutil
from pymseed import MS3Record
from seedlink_server import SeedLinkServer, made
from support import ONE_CORE, choose, option, part, row

from agent.config.sources import SeedLinkConfig
from agent.sources.seedlink.source import SeedLinkSource
from agent.sources.simulator import Scenario, SimulatedSite, SimulatorSource, station_ids, steady
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


def shares(seconds: float) -> None:
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


def recovered(cycles: int, cut_s: float, down_s: float) -> None:
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


@part(
    option("--seconds", type=float, default=120.0),
)
def seedlink(args: argparse.Namespace) -> None:
    """Processor time of SeedLink."""
    shares(args.seconds)


@part(
    option("--cycles", type=int, default=20),
    option("--cut", type=float, default=60.0, help="seconds for which the link carries nothing"),
    option("--down", type=float, default=10.0, help="seconds for which the server is away"),
)
def recovery(args: argparse.Namespace) -> None:
    """Time until SeedLink is back."""
    recovered(args.cycles, args.cut, args.down)


GOAL = 0.2
START_S = 60.0
"""rsudp computes nothing for its first LTA."""
PORTS = (18_888, 18_889, 18_890)
RSUDP_CLIENT = """
import sys
import rsudp.client as client
from rsudp.c_alert import Alert

start = client.start

def with_more_channels():
    for channel in sys.argv.pop().split(","):
        if channel:
            settings = dict(sta=1, lta=30, thresh=4, reset=1.5, bp=[1, 20], debug=False)
            client.mk_p(Alert(q=client.mk_q(), cha=channel, **settings))
    start()

client.start = with_more_channels
client.main()
"""
CHANNELS = {"E": "EHE", "N": "EHN", "Z": "EHZ"}


def talus(folder: Path) -> subprocess.Popen[bytes]:
    config = folder / "talus.yaml"
    config.write_text(
        "station: {network: AM, station: R1234}\n"
        f"source: {{kind: shake_udp, port: {PORTS[0]}, senders: [{{address: 127.0.0.1}}]}}\n"
        f"state_dir: {folder}\nclassifier: {{backends: [onnxruntime]}}\n"
    )
    with (folder / "talus.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "agent", "run", "--config", str(config)],
            stdout=log, stderr=log, env={**os.environ, **ONE_CORE},
        )  # fmt: skip


def rsudp(python: str, folder: Path, port: int, more: str) -> subprocess.Popen[bytes]:
    home = folder / f"rsudp-{port}"
    home.mkdir()
    environment = {**os.environ, **ONE_CORE, "HOME": str(home)}
    file = home / "settings.json"
    code = "import sys; from rsudp.c_settings import Settings as S; "
    code += "S.default_settings(output_dir=sys.argv[1], verbose=False).dump(sys.argv[2])"
    subprocess.run([python, "-c", code, str(home), str(file)], env=environment, check=True, stdout=subprocess.DEVNULL)
    settings = json.loads(file.read_text())
    settings["settings"] |= {"port": port, "station": "Z0000", "output_dir": str(home), "debug": False}
    for module in settings.values():
        if "enabled" in module:
            module["enabled"] = False
    settings["alert"] |= {"enabled": True, "channel": "EHZ", "sta": 1, "lta": 30, "threshold": 4, "reset": 1.5}
    settings["alert"] |= {"highpass": 1, "lowpass": 20, "deconvolve": False}
    file.write_text(json.dumps(settings))
    with (folder / f"rsudp-{port}.log").open("wb") as log:
        return subprocess.Popen(
            [python, "-u", "-c", RSUDP_CLIENT, "-s", str(file), more],
            stdout=log, stderr=log, env=environment,
        )  # fmt: skip


def cpu_s(process: subprocess.Popen[bytes]) -> float:
    """User and system time of a process and all it has started."""
    top = psutil.Process(process.pid)
    used = [p.cpu_times() for p in [top, *top.children(recursive=True)]]
    ended = top.cpu_times()
    return float(sum(t.user + t.system for t in used) + ended.children_user + ended.children_system)


@part(
    option("--rsudp", help="the Python that has rsudp; without it only Talus is measured"),
    option("--minutes", type=float, default=5.0),
)
def shake(args: argparse.Namespace) -> None:
    """A Raspberry Shake, beside rsudp."""
    site = SimulatedSite(station_ids("AM", "R1234", 1, 100.0), noise_counts=300.0, packet_s=0.25)
    scenario = Scenario(1, steady({"slopequake": 20, "rockfall": 6}), 1)
    feed = SimulatorSource(site, scenario, 1, seconds=START_S + 60 * args.minutes, speed=1.0)
    with tempfile.TemporaryDirectory(prefix="talus-bench-") as name, socket.socket(type=socket.SOCK_DGRAM) as out:
        folder = Path(name)
        processes = {"talus run": talus(folder)}
        if args.rsudp:
            processes["rsudp, three components"] = rsudp(args.rsudp, folder, PORTS[1], "EHN,EHE")
            processes["rsudp, one component"] = rsudp(args.rsudp, folder, PORTS[2], ",")
        before: dict[str, float] = {}
        begin = started = time.monotonic()
        sent = 0
        for block in feed.blocks():
            counts = ", ".join(map(str, block.samples.tolist()))
            channel = CHANNELS[block.stream.component]
            data = f"{{'{channel}', {block.start_ns / 1e9:.3f}, {counts}}}".encode()
            for port in PORTS:
                out.sendto(data, ("127.0.0.1", port))
            sent += 1
            if not before and time.monotonic() - begin >= START_S:
                before = {who: cpu_s(process) for who, process in processes.items()}
                started, sent = time.monotonic(), 0
        took_s = time.monotonic() - started
        used = {who: cpu_s(process) - before[who] for who, process in processes.items()}
        alive = {who: process.poll() is None for who, process in processes.items()}
        for process in processes.values():
            process.terminate()
        for process in processes.values():
            process.wait(20)
        for who, seconds in used.items():
            row(
                f"{who}, {sent} datagrams in {took_s:.0f} s",
                f"{seconds:.2f} s, {100 * seconds / took_s:.2f} % of a core",
            )
        events = (folder / "talus.log").read_text().count('"schema":"talus/event/1"')
        row("event revisions published by talus", f"{events}")
        assert all(alive.values()), alive
        for who in used if args.rsudp else ():
            if who != "talus run":
                ratio = used["talus run"] / used[who]
                row(f"talus against {who}", f"{ratio:.3f}", f"<= {GOAL}", ratio <= GOAL)


if __name__ == "__main__":
    sys.exit(choose(__doc__))
