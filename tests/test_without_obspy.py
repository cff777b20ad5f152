"""A station needs no ObsPy: every command works on miniSEED without it, and says what to install for other formats."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from agent_support import ROOT, write_records
from broker_support import make_event, needs_mosquitto, running, stamp
from records_support import counts, trace, write
from test_watch import Publisher

from agent.messages.payloads import event_message

BLOCKED = "import sys; sys.modules['obspy'] = None; from agent.cli import main; sys.exit(main(sys.argv[1:]))"
"""What Python does where ObsPy is not installed."""


def bare(*arguments: object, timeout: float = 250) -> subprocess.CompletedProcess[str]:
    """One command of Talus in a process in which ObsPy cannot be imported."""
    command = [sys.executable, "-c", BLOCKED, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, cwd=ROOT)


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_records(tmp_path_factory.mktemp("record"))
    file = folder / "slp.mseed"
    file.write_bytes(b"".join(path.read_bytes() for path in sorted(folder.glob("*.mseed"))))
    return file


def test_recorded_miniseed_is_replayed_and_classified(record: Path) -> None:
    done = bare("replay", "--json", record)
    assert done.returncode == 0, done.stderr
    assert '"talus/event' in done.stdout
    done = bare("classify", "--json", record)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["triggered"]


def test_a_station_runs_and_is_looked_after(record: Path, tmp_path: Path) -> None:
    """``run`` to the end of an archive, then what an operator asks."""
    config = tmp_path / "station.yaml"
    config.write_text(
        f"station: {{network: XX, station: SLP}}\nsource: {{kind: archive, paths: ['{record}']}}\n"
        f"state_dir: {tmp_path}/state\n"
    )
    for command in ("check", "run", "status", "doctor"):
        done = bare(command, "--config", config)
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode in (0, 1), (command, done.stderr)
        if command == "run":
            assert '"talus/event' in done.stdout, done.stderr


def test_other_formats_name_what_reads_them(record: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "a.sac", trace(counts(500).astype("f4")), format="SAC")
    for done in (bare("classify", path), bare("replay", path, record)):
        said = done.stdout + done.stderr
        assert "is not miniSEED" in said
        assert "pip install 'talus-agent[obspy]'" in said
        assert "Traceback" not in said


def test_no_command_imports_obspy_before_it_meets_another_format(record: Path) -> None:
    """It costs a second and a hundred megabytes of memory."""
    code = (
        "import sys; from agent.cli import main; main(['replay', '--json', sys.argv[1]]);"
        "import desk.formats.quakeml, desk.watch, agent.service.service, agent.commands.doctor;"
        "print([name for name in sys.modules if name.split('.')[0] in ('obspy', 'scipy', 'matplotlib')])"
    )
    done = subprocess.run([sys.executable, "-c", code, record], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "[]"


def test_obspy_is_asked_to_read_in_one_place_alone() -> None:
    """Its ``read`` without a format unpickles what looks like a pickle, and knows other rules for codes and damage."""
    found = {
        str(path.relative_to(ROOT))
        for package in ("agent", "desk", "quantize", "demo")
        for path in (ROOT / package).rglob("*.py")
        if re.search(r"^\s*from obspy|obspy\.read", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert found == {"agent/sources/waveforms.py"}


@needs_mosquitto
def test_an_event_becomes_quakeml(tmp_path: Path) -> None:
    with running(tmp_path) as broker:
        watching = ("watch", "--broker", f"127.0.0.1:{broker.port}", "--format", "quakeml", "--session", "q")
        assert bare(*watching, "--timeout", "0.1").returncode == 0
        Publisher(broker).send_message(event_message(make_event(), stamp()))
        done = bare(*watching, "--limit", "1", "--timeout", "100")
    assert done.returncode == 0, done.stderr
    assert "<type>landslide</type>" in done.stdout
