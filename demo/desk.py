"""``make desk``: a broker, a simulated site with an hour of history, and the desk with its pages.

Everything is on the loopback and ends with Ctrl-C; the database and the records stay in the folder that is named, so
that the next start goes on from there.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import yaml

from agent.errors import TalusError
from demo.broker import local_broker
from desk.push.signing import SigningKey

NAME, PASSWORD = "demo", "falling-rocks-demo"
HISTORY_H = 1.0
RATES = {"slopequakes_per_hour": 40.0, "rockfalls_per_hour": 30.0, "blasts_per_hour": 3.0, "earthquakes_per_hour": 4.0}


def main(argv: Sequence[str] | None = None) -> int:
    """Play until Ctrl-C; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m demo.desk", description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=8088, help="of the pages (default 8088; 0: a free one)")
    parser.add_argument("--folder", type=Path, default=Path.home() / ".cache" / "talus" / "desk-demo")
    parser.add_argument("--seconds", type=float, help="end by itself after so long")
    args = parser.parse_args(argv)
    args.folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what it started ends with it, however it is stopped
    try:
        with local_broker() as broker:
            key = args.folder / "desk.pem"
            signing = SigningKey.load(key) if key.exists() else SigningKey.create(key)
            write(args.folder / "station.yaml", station(broker.port, signing.trusted("desk").public))
            write(args.folder / "desk.yaml", desk(broker.port, args.port))
            return play(args.folder, broker.url, args.seconds)
    except KeyboardInterrupt:
        return 0
    except TalusError as error:
        print(f"make desk: {error}", file=sys.stderr)
        return error.exit_status


def play(folder: Path, broker: str, seconds: float | None) -> int:
    """Start the desk and the station, and wait."""
    talus("desk", "--config", "desk.yaml", "--account", NAME, "--role", "admin", folder=folder, given=PASSWORD)
    with started("desk", "--config", "desk.yaml", folder=folder) as process:
        line = process.stdout.readline() if process.stdout is not None else ""
        if "http" not in line:
            print(f"make desk: the desk did not start; see {folder / 'desk.log'}", file=sys.stderr)
            return 1
        print(f"desk        {line.split()[-1]}   log in as {NAME}, password {PASSWORD}", flush=True)
        begin = datetime.now(timezone.utc) - timedelta(hours=HISTORY_H, minutes=2)
        talus(
            "simulate", "--speed", "0", "--hours", f"{HISTORY_H:g}", "--start", begin.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "--config", "station.yaml", "--broker", broker, "-q", folder=folder,
        )  # fmt: skip
        print(f"history     {HISTORY_H:g} hour of a crisis at XX.SLOPE, marked as an exercise", flush=True)
        with started("run", "--config", "station.yaml", folder=folder):
            print("station     XX.SLOPE goes on live; its records are fetched as events end", flush=True)
            print("            Ctrl-C ends all of it", flush=True)
            until = time.monotonic() + (seconds if seconds is not None else float("inf"))
            while process.poll() is None and time.monotonic() < until:
                time.sleep(0.2)
            return process.returncode or 0


def station(port: int, public: str) -> dict[str, Any]:
    """A station's file with a synthetic site in real time."""
    return {
        "station": {"network": "XX", "station": "SLOPE", "name": "demonstration", "latitude_deg": 46.5,
                    "longitude_deg": 8.2, "elevation_m": 1900.0},
        "source": {"kind": "simulator", "speed": 1.0, "rates": RATES},
        "mqtt": {"host": "127.0.0.1", "port": port},
        "envelope": {"component": "Z"},
        "control": {"keys": [{"name": "desk", "public": public, "may": ["evidence"]}]},
        "state_dir": "state",
    }  # fmt: skip


def desk(port: int, web: int) -> dict[str, Any]:
    """The desk's file."""
    return {
        "mqtt": {"host": "127.0.0.1", "port": port},
        "web": {"port": web, "fdsnws": True, "exercises": True},
        "evidence": {"key": "desk.pem", "fetch": "all"},
        "state_dir": "desk",
    }


def write(path: Path, content: dict[str, Any]) -> None:
    """Write a configuration file."""
    path.write_text(yaml.safe_dump(content, sort_keys=False))


def environment() -> dict[str, str]:
    """Of the commands, wherever they run."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def talus(*arguments: str, folder: Path, given: str = "") -> None:
    """Run one command to its end; what it prints goes to a log."""
    with (folder / f"{arguments[0]}.log").open("a") as log:
        command = [sys.executable, "-m", "agent", *arguments]
        subprocess.run(
            command, cwd=folder, env=environment(), input=given, text=True, stdout=log, stderr=log, check=True
        )


@contextlib.contextmanager
def started(*arguments: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A command that goes on; its messages go to a log."""
    command = [sys.executable, "-m", "agent", *arguments]
    with (folder / f"{arguments[0]}.log").open("a") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()


if __name__ == "__main__":
    sys.exit(main())
