"""A short run of bench/chaos.py: kills, cuts, a full disk, refusals while alerts are decided; its scorecard is met."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from broker_support import needs_mosquitto

ROOT = Path(__file__).parents[1]


@needs_mosquitto
@pytest.mark.slow
def test_faults_of_every_kind_lose_no_alert(tmp_path: Path) -> None:
    """Every alert of a run without faults arrives, copies are recognised, events keep their order and get their end."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *command], capture_output=True, text=True, cwd=ROOT, env=env, check=False
        )

    folder = tmp_path / "chaos"
    done = run("bench/chaos.py", "run", "--alerts", "60", "--faults", "8", "--folder", str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "NOT MET" not in done.stdout
    kinds = ("agent killed", "broker killed", "link cut", "link stalled", "disk full", "refused")
    assert all(f"  {kind} " in done.stdout for kind in kinds), done.stdout
    # And a card that could not tell a loss would be worth nothing.
    heard = folder / "heard.jsonl"
    lines = heard.read_text().splitlines()
    last = json.loads(next(line for line in reversed(lines) if '"talus/alert/1"' in line))
    name = (last["id"], last["revision"])
    kept = [line for line in lines if '"talus/alert/1"' not in line or _name(line) != name]
    heard.write_text("".join(f"{line}\n" for line in kept))
    worse = run("bench/chaos.py", "score", str(folder))
    assert worse.returncode == 1
    assert [line.split("  ")[0] for line in worse.stdout.splitlines() if "NOT MET" in line] == [
        "lost, against the agents' own log",
        "lost, against the policy shown the events delivered",
    ]


def _name(line: str) -> tuple[str, int]:
    body = json.loads(line)
    return body["id"], body["revision"]
