"""A short run of bench/chaos.py: kills, cuts, a full disk, refusals while alerts are decided; its scorecard is met."""

from __future__ import annotations

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
    script = Path("bench", "chaos.py")
    command = [sys.executable, str(script), "--alerts", "60", "--faults", "8"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "--folder", str(tmp_path / "chaos")], capture_output=True, text=True, cwd=ROOT, env=env, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "NOT MET" not in done.stdout
    kinds = ("agent killed", "broker killed", "link cut", "link stalled", "disk full", "refused")
    assert all(f"  {kind} " in done.stdout for kind in kinds), done.stdout
