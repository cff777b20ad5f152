"""What the code does: two states of the project held against each other, and the files that a sample passes.

    python bench/behaviour.py compare BEFORE [AFTER]
    python bench/behaviour.py walk RECORDS...

``compare``: the same records, streams and drills, and the JSON lines of each. BEFORE and AFTER are commits (AFTER: the
working tree). Both run with the Python that runs this script. A line that differs is printed with a sign, after what
must differ in any two runs (times of sending, boot identifiers) is taken out. The exit status is 1 when anything
differs.

``walk``: the files of the agent that a sample passes on its way to the broker: a replay, from the first block to the
last acknowledgement, under a profiler.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

from support import choose, option, part

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("TALUS_DATA", ROOT.parent / "shared" / "data"))
DIFFERENT_EACH_RUN = {"boot_id", "received", "decided", "handed", "raised", "expires"}
SHOWN = 12


def cases() -> dict[str, list[str]]:
    """Arguments of ``talus``, by name. Those that need the labelled records are left out where these are absent."""
    import obspy

    package = Path(obspy.__file__).parent
    demo = sorted(map(str, (package / "io" / "mseed" / "tests" / "data").glob("BW.*")))
    found = {
        "check of the example": ["check", "--config", "configs/station.yaml"],
        "check of a file that is not there": ["check", "--config", "nowhere.yaml"],
        "wrong usage": ["replay", "--speed", "x"],
        "classify of the package's records": ["classify", "--json", *demo],
        "replay of the package's records": ["replay", "--json", *demo],
        "drill": ["simulate", "--speed", "0", "--seed", "3", "--start", "2026-01-01T00:00:00Z"],
        "drill of three stations": [
            "simulate", "--speed", "0", "--seed", "5", "--stations", "3", "--start", "2026-01-01T00:00:00Z"
        ],
    }  # fmt: skip
    for folder in sorted(path for path in (DATA / "streams").glob("*") if path.is_dir()):
        found[f"replay of {folder.name}"] = ["replay", "--json", str(folder)]
    return found


@part(option("before"), option("after", nargs="?"))
def compare(args: argparse.Namespace) -> int:
    """What differs between two states; 1 when anything does."""
    different = 0
    with tempfile.TemporaryDirectory() as place:
        before = checked_out(args.before, Path(place) / "before")
        after = checked_out(args.after, Path(place) / "after") if args.after else ROOT
        for name, arguments in cases().items():
            old, new = run(before, arguments), run(after, arguments)
            changes = [line for line in difflib.unified_diff(old, new, lineterm="", n=0) if line[:1] in "+-"][2:]
            print(f"{'same' if not changes else 'DIFFERS':<8}{name}: {len(new)} lines, {len(changes)} changed")
            for line in changes[:SHOWN]:
                print(f"    {line[:400]}")
            different += bool(changes)
    return int(different > 0)


def checked_out(commit: str, folder: Path) -> Path:
    """The files of a commit in a folder of their own."""
    folder.mkdir()
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", commit], check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", str(folder)], check=True, input=archive)
    return folder


def run(tree: Path, arguments: list[str]) -> list[str]:
    """The lines of a command's output and its exit status, without what differs in any two runs."""
    with tempfile.TemporaryDirectory() as state:
        environment = {**os.environ, "PYTHONPATH": str(tree), "XDG_STATE_HOME": state}
        command = [sys.executable, "-m", "agent", *arguments]
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    lines = [cleaned(line) for line in (done.stdout + done.stderr).splitlines()]
    return [*lines, f"exit status {done.returncode}"]


def cleaned(line: str) -> str:
    """A line that two runs of the same code have in common."""
    if not line.startswith("{"):
        return re.sub(r"\(\d+ x real time\)", "", re.sub(r"\d+\.\d s\b|\bin \d+\.\d (min|h)\b", "N s", line))
    return json.dumps(lasting(json.loads(line)), sort_keys=True)


def lasting(value: object) -> object:
    """The value without the fields that differ in any two runs, at any depth."""
    if not isinstance(value, dict):
        return value
    return {key: lasting(part) for key, part in value.items() if key not in DIFFERENT_EACH_RUN}


AGENT = f"{ROOT / 'agent'}{os.sep}"


@part(option("records", nargs="+"))
def walk(args: argparse.Namespace) -> int:
    """The files that a sample passes, with the number of calls in each."""
    calls: Counter[str] = Counter()
    counting = threading.Event()

    def see(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and counting.is_set() and code.co_filename.startswith(AGENT) and code.co_name != "<module>":
            calls[code.co_filename.removeprefix(AGENT)] += 1

    threading.setprofile(see)
    sys.setprofile(see)
    from agent.cli import main as talus
    from agent.commands import replay
    from demo.broker import local_broker

    run = replay._run

    def counted(*arguments: Any, **options: Any) -> None:
        counting.set()
        run(*arguments, **options)

    replay._run = counted
    with tempfile.TemporaryDirectory() as state, local_broker() as broker:
        os.environ["XDG_STATE_HOME"] = state
        status = talus(["replay", "--broker", broker.url, *args.records])
    for name, number in sorted(calls.items()):
        print(f"{number:>9} {name}")
    print(f"{len(calls)} files")
    return status


if __name__ == "__main__":
    sys.exit(choose(__doc__))
