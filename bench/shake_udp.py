"""Processor time of the whole service on a Raspberry Shake feed, beside rsudp on the same datagrams at the same time.

    python3.12 -m venv /tmp/rsudp && /tmp/rsudp/bin/pip install rsudp "setuptools<81"
    python bench/shake_udp.py --rsudp /tmp/rsudp/bin/python [--minutes 5]

Three channels at 100 Hz, datagrams of 25 samples in real time, noise with a few events. Talus: ``talus run`` with its
default settings (trigger on three components, network), events printed. rsudp: its client with the alert module alone
(STA/LTA of the same lengths and band, no plot, nothing written), once for each of the three components in one process,
and for comparison on one component, which is what its settings allow. Counted from when rsudp's averages are full,
children included. Goal: a fifth of rsudp's processor time at most.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from support import ONE_CORE, row

from agent.sources.simulator import Scenario, SimulatedSite, SimulatorSource, station_ids, steady

GOAL = 0.2
START_S = 60.0
"""rsudp computes nothing for its first LTA."""
PORTS = (18_888, 18_889, 18_890)
CLIENT = """
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
            [python, "-u", "-c", CLIENT, "-s", str(file), more],
            stdout=log, stderr=log, env=environment,
        )  # fmt: skip


def cpu_s(process: subprocess.Popen[bytes]) -> float:
    """User and system time of a process and all it has started."""
    top = psutil.Process(process.pid)
    used = [p.cpu_times() for p in [top, *top.children(recursive=True)]]
    ended = top.cpu_times()
    return float(sum(t.user + t.system for t in used) + ended.children_user + ended.children_system)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rsudp", help="the Python that has rsudp; without it only Talus is measured")
    parser.add_argument("--minutes", type=float, default=5.0)
    args = parser.parse_args()
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
    main()
