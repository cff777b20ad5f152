"""What the service costs at real time, 3 x 100 Hz: at most 2 % of a core, 200 MB, and 3 s from start to ready.

    python bench/realtime.py [--seconds 120] [--starts 5] [--folder DIR]

``talus run`` as systemd starts it, with a broker, on a real record with two earthquakes every two minutes, which is far
busier than any site. Beside it in the same run, on the same samples at the same pace, a minimal station in ObsPy: a
minute of each component is kept, and with each packet band-passed and put through ``recursive_sta_lta``; it has no
network, no outbox and no broker. Processor time and memory are the kernel's (/proc).
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from support import ONE_CORE, make_busy, row

from demo.broker import local_broker

CPU_PERCENT, RSS_MB, READY_S = 2.0, 200.0, 3.0
SETTLE_S = 5.0
TICKS = os.sysconf("SC_CLK_TCK")

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
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0, help="how long the shares are measured")
    parser.add_argument("--starts", type=int, default=5, help="how often the start is measured")
    parser.add_argument("--folder", type=Path, help="where the outbox lies")
    args = parser.parse_args()
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
        time.sleep(SETTLE_S)
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
    row("share of a core, 3 x 100 Hz", f"{share:.2f} %", f"<= {CPU_PERCENT:g} %", share <= CPU_PERCENT)
    row("  ObsPy: band-pass and STA/LTA alone (peer)", f"{peer_share:.2f} %")
    row("memory, at its peak", f"{memory:.0f} MB", f"<= {RSS_MB:g} MB", memory <= RSS_MB)
    row("  ObsPy (peer)", f"{peer_memory:.0f} MB")
    row(f"start to ready, median of {args.starts}", f"{median:.2f} s", f"<= {READY_S:g} s", median <= READY_S)
    row("  processor time of that", f"{statistics.median(start_cpu):.2f} s")
    return 0 if share <= CPU_PERCENT and memory <= RSS_MB and median <= READY_S else 1


if __name__ == "__main__":
    sys.exit(main())
