"""``make demo``: what a newcomer sees first."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from agent_support import ROOT
from broker_support import needs_mosquitto

WITHOUT_MOSQUITTO = """
import sys
import demo.broker
demo.broker.find_mosquitto = lambda: None
from demo.demo import main
sys.exit(main())
"""


@pytest.mark.parametrize("broker", [pytest.param("mosquitto", marks=needs_mosquitto), "amqtt"])
def test_the_demonstration_prints_what_arrived(broker: str, tmp_path: Path) -> None:
    """A table of events with labels and probabilities, through the broker; the rockfalls among them end in an alert,
    and the last line counts both."""
    if broker == "amqtt":
        pytest.importorskip("amqtt")
    command = ["-c", WITHOUT_MOSQUITTO] if broker == "amqtt" else ["-m", "demo.demo"]
    done = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "HOME": str(tmp_path)},
        check=False,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(rf"^broker +{broker} on mqtt://127\.0\.0\.1:\d+", done.stdout)
    verdict, alerts = r"\S+ [01]\.\d\d\??", r"\w+ \w+(?:, \w+ \w+)*"
    rows = re.findall(
        rf"^(\w+\.\w+\.\S+) +20\d\d-\S+ +[\d.]+  +{verdict} +{verdict} +\d+ s(  {alerts})?$",
        done.stdout,
        re.MULTILINE,
    )
    recorded = [station for station, _ in rows if station.startswith("BW")]
    assert len(recorded) >= 4
    assert {station for station, _ in rows} == {"BW.UH1..SH", "BW.UH2..SH", "BW.UH3..SH", "BW.UH4..EH", "XX.SIM..HH"}
    raised = [alert for _, alerts in rows if alerts for alert in alerts.strip().split(", ")]
    assert "raise severe" in raised
    summary = done.stdout.splitlines()[-1]
    assert re.fullmatch(
        rf"demo: {len(rows)} events and {len(raised)} alerts? arrived over MQTT in \d+ messages, 0 refused; [\d.]+ s",
        summary,
    )
    assert re.search(rf"^talus replay: {len(recorded)} events", done.stderr, re.MULTILINE), "every event that was sent"
    assert "all of it is marked as an exercise" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / ".local").exists(), "it leaves nothing behind"


def test_without_any_broker_it_says_what_to_install() -> None:
    code = "import sys\nsys.modules['amqtt'] = sys.modules['amqtt.broker'] = None\n" + WITHOUT_MOSQUITTO
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "demo: there is no broker on this machine\n  hint: install mosquitto, or: pip install 'talus-agent[demo]'\n"
    )
