"""The unit must be one that systemd takes, and must keep the agent in its box."""

from __future__ import annotations

import re
import shutil
import subprocess
from inspect import signature
from pathlib import Path

import pytest

from agent.deliver.delivery import Delivery
from agent.inference.tensorrt import switch
from agent.remote.models import ModelUpdates
from agent.service.service import STOP_S

UNIT = Path(__file__).parents[1] / "systemd" / "talus-agent.service"
JETSON = UNIT.with_name("jetson.conf")
CREDENTIALS = UNIT.with_name("credentials.conf")
DESK = UNIT.with_name("talus-desk.service")

needs_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None,
    reason="systemd-analyze is not installed (try: sudo apt-get install systemd)",
)


def installed(folder: Path, *drop_ins: Path, of: Path = UNIT) -> Path:
    """A unit with its drop-ins as they lie under /etc/systemd/system, and a program where it expects one."""
    program = folder / "talus"
    program.write_text("#!/bin/sh\n", encoding="ascii")
    program.chmod(0o755)
    unit = folder / of.name
    unit.write_text(of.read_text(encoding="utf-8").replace("/opt/talus/bin/talus", str(program)), encoding="utf-8")
    for drop_in in drop_ins:
        (folder / f"{of.name}.d").mkdir(exist_ok=True)
        shutil.copy(drop_in, folder / f"{of.name}.d")
    return unit


def exposure(unit: Path) -> tuple[float, str]:
    """What systemd thinks of it: from 0 (nothing can be reached) to 10, and the table behind it."""
    command = ["systemd-analyze", "security", "--offline=true", unit]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if "unrecognized option" in result.stderr:
        pytest.skip("systemd-analyze is too old for --offline")
    level = re.search(r"Overall exposure level for \S+: ([0-9.]+)", result.stdout)
    assert level, result.stderr
    return float(level[1]), result.stdout


@needs_analyze
@pytest.mark.parametrize("drop_ins", [(), (CREDENTIALS,), (JETSON, CREDENTIALS)], ids=["plain", "password", "jetson"])
def test_the_unit_is_well_formed(tmp_path: Path, drop_ins: tuple[Path, ...]) -> None:
    """An unknown key is ignored by systemd with a line in the journal that nobody reads."""
    unit = installed(tmp_path, *drop_ins)
    result = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    ours = [line for line in result.stderr.splitlines() if UNIT.name in line or ".conf" in line]
    assert not ours and result.returncode == 0


@needs_analyze
@pytest.mark.parametrize(("drop_ins", "most"), [((), 2.0), ((JETSON,), 3.0)], ids=["plain", "jetson"])
def test_the_unit_exposes_little(tmp_path: Path, drop_ins: tuple[Path, ...], most: float) -> None:
    """The agent listens to a network: what breaks into it must find nothing to use."""
    unit = installed(tmp_path, *drop_ins)
    level, table = exposure(unit)
    assert level <= most
    hidden = re.search(r"(.) PrivateDevices=", table)
    assert hidden and (hidden[1] == "✗") == bool(drop_ins), "the GPU can be reached where it is meant to be, only there"


@needs_analyze
def test_the_desks_unit_is_well_formed_and_exposes_little(tmp_path: Path) -> None:
    """The desk faces a network and people who guess passwords."""
    unit = installed(tmp_path, of=DESK)
    result = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert not [line for line in result.stderr.splitlines() if DESK.name in line]
    assert result.returncode == 0
    assert exposure(unit)[0] <= 2.0
    text = unit.read_text("utf-8")
    for name in (
        "Restart=always",
        "StartLimitIntervalSec=0",
        "DynamicUser=yes",
        "StateDirectory=talus-desk",
        "MemoryMax=",
    ):
        assert name in text


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("Type=notify", "systemctl start waits until the agent watches"),
        ("WatchdogSec=", "a hang is ended"),
        ("Restart=always", "nobody is near"),
        ("StartLimitIntervalSec=0", "and it never gives up"),
        ("DynamicUser=yes", "no user to make"),
        ("StateDirectory=talus", "the outbox survives"),
        ("MemoryMax=", "another program on the machine survives"),
        ("OOMPolicy=continue", "a model that swells in its trial ends the trial, not the station"),
        ("KillMode=mixed", "a stop during the trial of a model does not count against it"),
        ("ExecReload=", "tunables are read anew on SIGHUP"),
    ],
)
def test_the_unit_says(name: str, why: str) -> None:
    assert name in UNIT.read_text("utf-8"), why


def test_the_password_comes_from_a_drop_in_that_an_upgrade_keeps() -> None:
    """A new unit over the old one must not take the password away; and the page and the example name the same file."""
    assert "LoadCredential" not in UNIT.read_text("utf-8")
    credential = re.search(r"^LoadCredential=(\S+):/etc/talus/\S+$", CREDENTIALS.read_text("utf-8"), re.MULTILINE)
    assert credential
    file = f"password_file: /run/credentials/talus-agent.service/{credential[1]}"
    for place in (CREDENTIALS, UNIT.with_name("README.md"), UNIT.parents[1] / "configs" / "station.yaml"):
        assert file in place.read_text("utf-8")


def test_the_stop_is_given_more_time_than_the_agent_takes() -> None:
    """At worst, with a source that hangs, a model on its way, a GPU and a broker that takes nothing, in this order."""
    stop = re.search(r"^TimeoutStopSec=(\d+)$", UNIT.read_text("utf-8"), re.MULTILINE)
    waits = (
        STOP_S
        + signature(ModelUpdates.close).parameters["timeout_s"].default
        + switch.STOP_S
        + signature(Delivery.close).parameters["timeout_s"].default
    )
    assert stop and int(stop[1]) > waits + 2


def test_an_upgrade_installs_with_the_lines_of_the_first_installation() -> None:
    """Protects an upgraded station from another environment than the one that was measured and tried."""

    pages = (UNIT.with_name("README.md"), UNIT.parents[1] / "docs" / "upgrading.md")
    first, upgrade = (
        page.read_text("utf-8").partition("wheel=$(")[2].partition("uninstall --yes setuptools pip\n")[0]
        for page in pages
    )
    assert "compileall" in first
    assert upgrade == first
