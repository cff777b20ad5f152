"""The unit must be one that systemd takes, and must keep the agent in its box."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

UNIT = Path(__file__).parents[1] / "systemd" / "talus-agent.service"

pytestmark = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")


def test_the_unit_is_well_formed(tmp_path: Path) -> None:
    """An unknown key is ignored by systemd with a line in the journal that nobody reads."""
    program = tmp_path / "talus"
    program.write_text("#!/bin/sh\n", encoding="ascii")
    program.chmod(0o755)
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text(encoding="utf-8").replace("/opt/talus/bin/talus", str(program)), encoding="utf-8")
    result = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    ours = [line for line in result.stderr.splitlines() if UNIT.name in line]
    assert not ours and result.returncode == 0


def test_the_unit_exposes_little() -> None:
    """The agent listens to a network: what breaks into it must find nothing to use."""
    result = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", UNIT], capture_output=True, text=True, check=False
    )
    if "unrecognized option" in result.stderr:
        pytest.skip("systemd-analyze is too old for --offline")
    level = re.search(r"Overall exposure level for \S+: ([0-9.]+)", result.stdout)
    assert level and float(level[1]) <= 2.0
