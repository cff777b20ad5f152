"""The parts of bench/chaos.py beside broker and link (``desk.crisis.broker``): recorder, keeper of the agent, ears."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import obspy

from agent.deliver.connection import Received
from agent.messages.schema import MODELS, parse
from agent.messages.text import describe
from agent.sources.simulator import Scenario, SimulatedSite, SimulatorSource, station_ids, steady
from agent.types import NS, parse_ns
from desk.crisis.broker import Subscriber

ROOT = Path(__file__).parents[1]
_SAID_ALERT = re.compile(r"agent\.service\.threads: (ALERT .*)")
_SAID_EVENT = re.compile(r"agent\.service\.threads: (\S+) (?:new|update|end) r(\d+):")
"""The agent's log."""
START_NS = 1_767_225_600 * NS
RATE_HZ = 100.0
PACKET_S = 5.0
NETWORK, STATION = "XX", "CHAOS"


def make_records(folder: Path, hours: float, seed: int, per_hour: dict[str, float]) -> int:
    """What the recorder will write, one miniSEED file a component: a simulated slope whose clock steps now and then.
    Returns the number of clock steps."""
    folder.mkdir()
    steps: list[float] = []
    site = SimulatedSite(station_ids(NETWORK, STATION, 1, RATE_HZ), RATE_HZ, packet_s=PACKET_S)
    scenario = Scenario(seed, steady(per_hour), 1)
    source = SimulatorSource(site, scenario, seed, start_ns=START_NS, seconds=hours * 3600, speed=0)
    with contextlib.ExitStack() as stack:
        files = {c: stack.enter_context((folder / f"{STATION}.{c}.mseed").open("wb")) for c in "ENZ"}
        drift = 0
        for block in source.blocks():
            code = {"network": NETWORK, "station": STATION, "location": "00", "channel": f"HH{block.stream.component}"}
            begin = obspy.UTCDateTime(ns=block.start_ns)
            trace = obspy.Trace(np.asarray(block.samples), {**code, "sampling_rate": RATE_HZ, "starttime": begin})
            trace.write(files[block.stream.component], format="MSEED", encoding="STEIM2", reclen=4096)
            off = (block.start_ns - START_NS) % round(PACKET_S * NS)
            if block.stream.component == "Z" and off != drift:
                drift = off
                steps.append(block.start_ns / NS)
    return len(steps)


class Recorder(threading.Thread):
    """Copies the made files into the watched folder, a piece at a time, as a recorder would write them."""

    def __init__(self, made: Path, folder: Path, seconds: float) -> None:
        super().__init__(daemon=True)
        folder.mkdir()
        self._files = sorted(made.iterdir())
        self._folder, self._seconds = folder, seconds
        self.done = threading.Event()

    def run(self) -> None:
        began = time.monotonic()
        with contextlib.ExitStack() as stack:
            pairs = [
                (stack.enter_context(file.open("rb")), stack.enter_context((self._folder / file.name).open("ab")))
                for file in self._files
            ]
            sizes = [file.stat().st_size for file in self._files]
            share = 0.0
            while share < 1.0:
                share = min(1.0, (time.monotonic() - began) / self._seconds)
                for (source, target), size in zip(pairs, sizes, strict=True):
                    target.write(source.read(round(share * size) - source.tell()))
                    target.flush()
                time.sleep(0.2)
        self.done.set()


class Keeper(threading.Thread):
    """Does what systemd does: starts the agent again when it has died. Its log is kept."""

    def __init__(self, config: Path, state: Path, log: Path) -> None:
        super().__init__(daemon=True)
        self._config, self._state, self._log = config, state, log
        self.starts = 0
        self.said: Counter[str] = Counter()
        """Alerts that the agents say they have decided, in words."""
        self.revisions: set[tuple[str, int]] = set()
        """Revisions of events that they say they have decided."""
        self.own_deaths: list[int] = []
        """Exit statuses of agents that ended by themselves."""
        self._stopping = False
        self._killed = False
        self._process: subprocess.Popen[str] | None = None

    def run(self) -> None:
        with self._log.open("w", encoding="utf-8") as log:
            while not self._stopping:
                self._killed = False
                self.starts += 1
                command = [sys.executable, "-m", "agent", "run", "--config", str(self._config)]
                env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
                self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=env)
                assert self._process.stderr is not None
                for line in self._process.stderr:
                    log.write(line)
                    if (found := _SAID_ALERT.search(line)) is not None:
                        self.said[found[1]] += 1
                    elif (found := _SAID_EVENT.search(line)) is not None:
                        self.revisions.add((found[1], int(found[2])))
                status = self._process.wait()
                log.write(f"--- ended with status {status}\n")
                log.flush()
                if not self._stopping and not self._killed:
                    self.own_deaths.append(status)
                time.sleep(0.2)

    def kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._killed = True
            self._process.kill()

    def fill_disk(self, full: bool) -> None:
        """Its files may not grow: what a user without root can have of a full disk."""
        sizes = [path.stat().st_size for path in self._state.iterdir() if path.is_file()]
        limit = max(sizes, default=0) if full else resource.RLIM_INFINITY
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    def stop(self) -> tuple[int, float]:
        """SIGTERM; the exit status, and how long the end took in seconds."""
        assert self._process is not None
        self._stopping = True
        began = time.monotonic()
        self._process.terminate()
        self.join(30)
        return self._process.returncode, time.monotonic() - began


class Ears(Subscriber):
    """All that arrives, copies included, in order; and the newest health."""

    def __init__(self, port: int) -> None:
        super().__init__(port, "chaos-ears")
        self.heard: list[tuple[str, dict[str, Any]]] = []
        self.words: dict[tuple[str, int], str] = {}
        """Of each alert, by who says it."""
        self.health: dict[str, Any] = {}
        self.times: list[float] = []
        """When each came, by this machine's clock."""
        self.newest_ns = START_NS
        """Onset of the newest event, in the time of the data."""

    def receive(self, name: str, message: Received) -> None:
        """See ``Subscriber``."""
        if name == "health":
            self.health = json.loads(message.payload)
        elif name in ("event", "alert"):
            body = json.loads(message.payload)
            self.heard.append((name, body))
            self.times.append(time.time())
            self.newest_ns = max(self.newest_ns, parse_ns(body["onset"]))
            if name == "alert":
                self.words[body["boot_id"], body["seq"]] = describe(parse(MODELS[name], message.payload))


class Watcher:
    """``talus watch`` as a program, with a session."""

    def __init__(self, port: int, folder: Path) -> None:
        self._out, self._err = folder / "watch.jsonl", folder / "watch.err"
        url = f"mqtt://127.0.0.1:{port}"
        command = [sys.executable, "-m", "agent", "watch", "--broker", url, "--session", "chaos-watch"]
        with self._out.open("w") as out, self._err.open("w") as err:
            env = {**os.environ, "PYTHONPATH": str(ROOT)}
            # A shell starts background jobs with SIGINT ignored, and children inherit that.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self._process = subprocess.Popen([*command, "--format", "json"], stdout=out, stderr=err, cwd=ROOT, env=env)

    def printed(self) -> list[tuple[str, int, str, int]]:
        """Identity of each printed message."""
        bodies = [json.loads(line) for line in self._out.read_text().splitlines()]
        return [(body["id"], body["revision"], body["boot_id"], body["seq"]) for body in bodies]

    def stop(self) -> int:
        """How many duplicates it says that it has passed over; -1 if it does not say."""
        self._process.send_signal(signal.SIGINT)
        self._process.wait(20)
        found = re.search(r"(\d+) duplicates", self._err.read_text())
        return int(found[1]) if found else -1
