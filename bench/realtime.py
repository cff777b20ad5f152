"""What the service costs at real time, for one station and for many.

    python bench/realtime.py one [--seconds 120] [--starts 5] [--folder DIR]
    python bench/realtime.py many [--minutes 30] [--stations 64] [--folder DIR]

``one``, 3 x 100 Hz: at most 2 % of a core, 200 MB, and 3 s from start to ready. ``talus run`` as systemd starts it,
with a broker, on a real record with two earthquakes every two minutes, which is far busier than any site. Beside it in
the same run, on the same samples at the same pace, a minimal station in ObsPy: a minute of each component is kept, and
with each packet band-passed and put through ``recursive_sta_lta``; it has no network, no outbox and no broker.

``many``, 64 stations x 3 components x 100 Hz on one agent: at most 3 % of a core, 200 MB, and no sample lost. ``talus
run`` over SeedLink from a server in this process (its cost is not counted), with a broker, on noise with bursts: at
every station at once each ten minutes (--bursts), and at each at random every five. Each is a trigger with seven
verdicts. In the agent's process a wrapper notes, for each packet, how long after it came in (from the socket) all that
it decides was decided: the trigger, and the verdicts that were due. With other programs at work the share and the
memory still hold; the times do not, and the load is printed. The line below them stands for a core of its own: the same
packets, queued at the times when they came in, each served in the processor time that the pipeline's thread used for
it; waits for the disk are not in it, emptied caches are.

Processor time and memory are the kernel's (/proc).
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import tempfile
import threading
import time

import numpy as np
from pymseed import MS3Record
from seedlink_server import SeedLinkServer, made
from support import ONE_CORE, choose, cpu_s, make_busy, option, part, row

from agent.types import NS
from demo.broker import local_broker

ONE_PERCENT, ONE_RSS_MB, READY_S = 2.0, 200.0, 3.0
WARM_S = 5.0
PEER = """
import sys, time
from obspy import Stream, read
from obspy.signal.trigger import recursive_sta_lta

traces = [read(name)[0] for name in sys.argv[1:]]
kept = Stream()
print("ready", flush=True)
begin, second = time.monotonic(), 0
while True:
    for trace in traces:
        start = trace.stats.starttime + second
        kept += trace.slice(start, start + 1 - trace.stats.delta)
    kept.merge().trim(starttime=kept[0].stats.endtime - 60)
    for trace in kept.copy().filter("bandpass", freqmin=1, freqmax=20, corners=4):
        recursive_sta_lta(trace.data, 100, 3000).max() > 4
    second += 1
    time.sleep(max(0.0, begin + second - time.monotonic()))
"""


class Process:
    """A program that runs until it is told to stop, and what it has used."""

    def __init__(self, command: list[str], **environment: str) -> None:
        self.began = time.monotonic()
        self._process = subprocess.Popen(
            command, env={**os.environ, **ONE_CORE, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def wait_for_line(self) -> None:
        assert self._process.stdout is not None
        self._process.stdout.readline()

    def runs(self) -> bool:
        return self._process.poll() is None

    def cpu_s(self) -> float:
        """User and system time of all its threads."""
        return cpu_s(self._process.pid)

    def peak_mb(self) -> float:
        """The most memory it has had resident."""
        return self._status_mb("VmHWM")

    def resident_mb(self) -> float:
        """Memory that it has resident now."""
        return self._status_mb("VmRSS")

    def _status_mb(self, name: str) -> float:
        text = Path(f"/proc/{self._process.pid}/status").read_text()
        return float(next(line.split()[1] for line in text.splitlines() if line.startswith(name))) / 1024

    def stop(self) -> str:
        """End it; what it said on standard error."""
        self._process.send_signal(signal.SIGTERM)
        return self._process.communicate(timeout=30)[1].decode()


def start_agent(folder: Path, config: Path) -> tuple[Process, float]:
    """A service that has said that it is ready, and how many seconds that took."""
    path = folder / "notify"
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(str(path))
        heard.settimeout(60)
        agent = Process([sys.executable, "-m", "agent", "run", "--config", str(config)], NOTIFY_SOCKET=str(path))
        while heard.recv(100) != b"READY=1":
            pass
    return agent, time.monotonic() - agent.began


@part(
    option("--seconds", type=float, default=120.0, help="how long the shares are measured"),
    option("--starts", type=int, default=5, help="how often the start is measured"),
    option("--folder", type=Path, help="where the outbox lies"),
)
def one(args: argparse.Namespace) -> int:
    """One station, beside ObsPy."""
    with local_broker() as broker, tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        files = make_busy(folder / "records", round(args.seconds / 115) + 2)
        config = folder / "station.yaml"
        config.write_text(
            "station: {network: XX, station: BUSY}\n"
            "source: {kind: archive, paths: [records], speed: 1}\n"
            f"mqtt: {{host: {broker.host}, port: {broker.port}}}\n"
            f"state_dir: {folder}/state\n"
        )
        ready: list[float] = []
        start_cpu: list[float] = []
        for _ in range(args.starts):
            agent, took = start_agent(folder, config)
            ready.append(took)
            start_cpu.append(agent.cpu_s())
            agent.stop()
        peer = Process([sys.executable, "-c", PEER, *map(str, files)])
        peer.wait_for_line()
        agent, _ = start_agent(folder, config)
        time.sleep(WARM_S)
        begin, used, peer_used = time.monotonic(), agent.cpu_s(), peer.cpu_s()
        time.sleep(args.seconds)
        took = time.monotonic() - begin
        share, peer_share = 100 * (agent.cpu_s() - used) / took, 100 * (peer.cpu_s() - peer_used) / took
        memory, peer_memory = agent.peak_mb(), peer.peak_mb()
        log = agent.stop()
        peer.stop()
    verdicts = sum(": " in line and " r" in line for line in log.splitlines())
    median = statistics.median(ready)
    load = os.getloadavg()[0]
    print(f"{os.cpu_count()} cores, load {load:.1f}; {took:.0f} s at real time, {verdicts} verdicts, {broker.program}")
    row("share of a core, 3 x 100 Hz", f"{share:.2f} %", f"<= {ONE_PERCENT:g} %", share <= ONE_PERCENT)
    row("  ObsPy: band-pass and STA/LTA alone (peer)", f"{peer_share:.2f} %")
    row("memory, at its peak", f"{memory:.0f} MB", f"<= {ONE_RSS_MB:g} MB", memory <= ONE_RSS_MB)
    row("  ObsPy (peer)", f"{peer_memory:.0f} MB")
    row(f"start to ready, median of {args.starts}", f"{median:.2f} s", f"<= {READY_S:g} s", median <= READY_S)
    row("  processor time of that", f"{statistics.median(start_cpu):.2f} s")
    return 0 if share <= ONE_PERCENT and memory <= ONE_RSS_MB and median <= READY_S else 1


CPU_PERCENT, RSS_MB, P99_MS = 3.0, 200.0, 50.0
SETTLE_S = 45.0
"""From the start to the first figures: the averages are warm by then."""
ROUND_S = 30
"""So much is made at a time."""
AGENT = """
import dataclasses, json, sys, time
from array import array
from pathlib import Path
from agent.service import service
from agent.service.assemble import Line, build_line
from agent.config.file import load

late, came, used = (array("q") for _ in range(3))  # compact, so that the notes weigh little beside what is measured
got, gaps, ends = {}, {}, {}

class Noted(Line):
    def feed(self, block, received_ns):
        fed = super().feed(block, received_ns)
        late.append(time.time_ns() - received_ns)
        came.append(received_ns)
        used.append(time.thread_time_ns())
        stream = str(block.stream)
        if stream in ends and abs(block.start_ns - ends[stream]) > 5e6:
            gaps[stream] = gaps.get(stream, 0) + 1
        ends[stream] = block.end_ns
        got.setdefault(stream, [block.start_ns, 0])[1] += len(block.samples)
        return fed

def build(*args, **kwargs):
    line = build_line(*args, **kwargs)
    return Noted(*(getattr(line, field.name) for field in dataclasses.fields(line)))

service.build_line = build
status = service.Service(load(sys.argv[1])).run()
Path(sys.argv[2]).write_text(json.dumps(
    {"late_ns": late.tolist(), "came_ns": came.tolist(), "used_ns": used.tolist(), "got": got, "gaps": gaps}
))
sys.exit(status)
"""


class Feed:
    """Every station's records, each sent when its last sample is due; what was sent is counted."""

    def __init__(self, server: SeedLinkServer, stations: int, bursts_s: float) -> None:
        self._server, self._stations, self._bursts_s = server, stations, bursts_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._rng = np.random.default_rng(1)
        self.sent: dict[str, list[tuple[int, int]]] = {}
        """Start and length of each record, by stream."""
        self.behind_s = 0.0

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        start_ns = time.time_ns()
        made_next = self._make(start_ns)
        while not self._stop.is_set():
            due = made_next
            start_ns += ROUND_S * NS
            maker = threading.Thread(target=lambda at=start_ns: setattr(self, "_next", self._make(at)))  # type: ignore[misc]
            maker.start()
            for end_ns, stream, first_ns, count, record in due:
                if self._stop.wait(max(0.0, (end_ns - time.time_ns()) / NS)):
                    break
                self.behind_s = max(self.behind_s, (time.time_ns() - end_ns) / NS)
                self._server.feed([record])
                self.sent.setdefault(stream, []).append((first_ns, count))
            maker.join()
            made_next = self._next

    def _make(self, start_ns: int) -> list[tuple[int, str, int, int, bytes]]:
        """The records of all channels for one round, in the order in which they are due."""
        t = np.arange(ROUND_S * 100) / 100
        found = []
        together = (start_ns // NS) % self._bursts_s < ROUND_S
        for number in range(self._stations):
            shift_ns = number * 3 * NS // self._stations  # recorders do not fill their records at the same moment
            onset = 5 + number % 7 * 0.5 if together else self._rng.uniform(0, ROUND_S / 0.1)
            tail = np.clip(t - onset, 0, None)
            burst = (t >= onset) * np.exp(-tail / 4) * np.sin(2 * np.pi * 5 * tail)
            for component, peak in zip("ENZ", (2000, 3000, 4000), strict=True):
                stream = f"FDSN:XX_S{number:02d}_00_H_H_{component}"
                for record in made(stream, start_ns + shift_ns, self._rng.normal(0, 100, len(t)) + peak * burst):
                    parsed = MS3Record.parse(record)
                    found.append((parsed.endtime, stream, parsed.starttime, parsed.samplecnt, record))
        return sorted(found)


def served(came_ns: list[int], used_ns: list[int]) -> np.ndarray:
    """Milliseconds from each packet's arrival to the end of its service, one at a time; ``used_ns`` counts up."""
    free_ns, found = 0, []
    for at_ns, cost_ns in zip(came_ns[1:], np.diff(used_ns).tolist(), strict=True):
        free_ns = max(at_ns, free_ns) + cost_ns
        found.append((free_ns - at_ns) / 1e6)
    return np.array(found)


@part(
    option("--minutes", type=float, default=30.0, help="how long it is measured"),
    option("--stations", type=int, default=64),
    option("--bursts", type=float, default=600.0, help="seconds between two at all stations"),
    option("--folder", type=Path, help="where the outbox lies"),
)
def many(args: argparse.Namespace) -> int:
    """Sixty-four stations on one agent."""
    with local_broker() as broker, tempfile.TemporaryDirectory(dir=args.folder) as name, SeedLinkServer() as server:
        folder = Path(name)
        (folder / "noted.py").write_text(AGENT)
        config = folder / "site.yaml"
        config.write_text(
            "station: {network: XX, station: SITE}\n"
            f"source: {{kind: seedlink, servers: [{{host: 127.0.0.1, port: {server.port}, "
            "stations: [{station: XX_*, selectors: ['HH?']}]}]}\n"
            f"mqtt: {{host: {broker.host}, port: {broker.port}}}\n"
            "log: {level: warning}\n"
            f"state_dir: {folder}/state\n"
        )
        feed = Feed(server, args.stations, args.bursts)
        feed.start()
        time.sleep(6)
        agent = Process([sys.executable, str(folder / "noted.py"), str(config), str(folder / "said.json")])
        time.sleep(SETTLE_S)
        if not agent.runs():
            print(agent.stop(), file=sys.stderr)
            return 1
        begin, used = time.monotonic(), agent.cpu_s()
        held = [agent.resident_mb()]
        while (left := begin + 60 * args.minutes - time.monotonic()) > 0:
            time.sleep(min(60.0, left))
            held.append(agent.resident_mb())
        took = time.monotonic() - begin
        share, memory, load = 100 * (agent.cpu_s() - used) / took, agent.peak_mb(), os.getloadavg()[0]
        feed.stop()
        time.sleep(10)
        log = agent.stop()
        said = json.loads((folder / "said.json").read_text())
    # What the server sent from the first record on that the agent had of the channel.
    sent = {s: sum(n for at, n in records if at >= said["got"].get(s, [0])[0]) for s, records in feed.sent.items()}
    lost = sum(count - said["got"].get(stream, [0, 0])[1] for stream, count in sent.items())
    late = np.array(said["late_ns"]) / 1e6
    p50, p99 = np.percentile(late, [50, 99])
    idle50, idle99 = np.percentile(served(said["came_ns"], said["used_ns"]), [50, 99])
    print(f"{os.cpu_count()} cores, load {load:.1f}; {took / 60:.1f} min, {len(late)} packets")
    row("share of a core", f"{share:.1f} %", f"<= {CPU_PERCENT:g} %", share <= CPU_PERCENT)
    row("memory, at its peak", f"{memory:.0f} MB", f"<= {RSS_MB:g} MB", memory <= RSS_MB)
    row("  every ten minutes", f"{', '.join(f'{mb:.0f}' for mb in held[::10])} MB")
    row("samples lost", f"{lost} of {sum(sent.values())}", "none", lost == 0)
    row("gaps", f"{sum(said['gaps'].values())}", "none", not said["gaps"])
    row(
        "packet in to decided, median / 99th percentile",
        f"{p50:.2f} / {p99:.2f} ms",
        f"<= {P99_MS:g} ms",
        p99 <= P99_MS,
    )
    row(
        "  as on an idle core, from processor time",
        f"{idle50:.2f} / {idle99:.2f} ms",
        f"<= {P99_MS:g} ms",
        idle99 <= P99_MS,
    )
    row("  the longest", f"{late.max():.0f} ms")
    row("  the server's delay at worst (not the agent's)", f"{feed.behind_s:.2f} s")
    for line in log.splitlines()[-5:]:
        print(f"  {line}")
    return 0 if share <= CPU_PERCENT and memory <= RSS_MB and lost == 0 and p99 <= P99_MS else 1


if __name__ == "__main__":
    sys.exit(choose(__doc__))
