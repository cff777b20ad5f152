"""``talus status``: what it says of an agent that is well, in trouble, hung, killed, stopped or was never there."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from agent_support import ROOT, TALUS, running_agent, talus, write_config, write_records
from broker_support import Collector, make_event, needs_mosquitto, own_port, running, stamp, wait_for
from test_exporter import metrics
from test_formats import alert, state
from test_messages import health

from agent.cli import main
from agent.health.status import FILE, STALE_FACTOR, StatusFile, read, screen, status_message
from agent.messages.payloads import event_message
from agent.messages.schema import EventMessage, RateHealth, ReasonPart, RsamHealth, parse
from agent.types import NS, DecisionCode, DecisionReason, parse_ns


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_records(tmp_path_factory.mktemp("records"), 40)


def slow(records: Path) -> str:
    """A day's worth that is not played to its end."""
    return f"{{kind: archive, paths: ['{records}'], speed: 60}}"


def status(config: Path) -> tuple[int, dict[str, Any]]:
    """In this process: some tests ask a hundred times."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = main(["status", "--config", str(config), "--json"])
    return code, json.loads(out.getvalue() or "{}")


@needs_mosquitto
def test_an_agent_from_well_to_broker_lost_to_killed(tmp_path: Path, records: Path) -> None:
    port = own_port()
    with running(tmp_path) as broker:
        config = write_config(
            tmp_path, records, broker.port, source=slow(records), health=f"{{prometheus: '127.0.0.1:{port}'}}"
        )
        with running_agent("run", "--config", config) as agent:
            wait_for(lambda: status(config)[1].get("verdict") == "ok", what="it is well")
            code, out, err = talus("status", "--state", tmp_path / "state")
            assert code == 0, err
            assert out.startswith("XX.SLP  OK\n")
            assert "3 of 3 channels arrive" in out
            assert "connected, MQTT 5" in out
            page = metrics(urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60).read())
            assert page["talus_link_connected"] == {(): 1.0}
            assert page["talus_ok"] == {(): 1.0}
            with Collector(broker.settings(), "talus/#", session=False) as late:
                wait_for(lambda: late.bodies("/health"))
                [published] = late.bodies("/health")[:1]
            assert {stage["name"]: stage["alive"] for stage in published["stages"]} == {
                "source": True,
                "pipeline": True,
                "link": True,
            }
            assert published["inference_ms"] > 0
            assert published["memory_free_mb"] > 0
            broker.kill()
            wait_for(lambda: status(config)[0] == 1, what="the exit status tells")
            said = status(config)[1]
            assert said["verdict"] == "degraded"
            assert any(reason["code"] == "broker_unreachable" for reason in said["health"]["reasons"])
            agent.process.send_signal(signal.SIGKILL)
            agent.end()
        code, out, _ = talus("status", "--config", config)
        assert code == 1
        assert "NOT RUNNING: it ended without a word, last heard of " in out
        assert "NOT CONNECTED" in out


def test_a_clean_stop_is_told_from_a_death_and_none_from_both(tmp_path: Path, records: Path) -> None:
    """Also without a broker: whoever stands before the station has nothing else."""
    config = write_config(tmp_path, records, source=slow(records))
    code, out, err = talus("status", "--config", config)
    assert (code, out) == (1, "")
    assert "no agent has said anything in" in err
    assert "hint:" in err
    with running_agent("run", "--config", config) as agent:
        wait_for(lambda: status(config)[1].get("verdict") == "ok", what="it is well")
        agent.signal(signal.SIGTERM)
        assert agent.end() == 0
    code, body = status(config)
    assert (code, body["verdict"]) == (1, "stopped")
    assert body["health"]["rsam"]
    assert body["health"]["reasons"] == [], "an end in order is no fault"
    assert "ended" not in talus("status", "--config", config)[1]


def test_until_the_station_listens_it_is_starting_and_not_ok(tmp_path: Path) -> None:
    config = write_config(tmp_path, "", source="{kind: simulator}")
    with running_agent("run", "--config", config):
        wait_for(lambda: "listening" in str(status(config)[1].get("health", {}).get("reasons")), what="it will listen")
        code, out, _ = talus("status", "--config", config)
        assert code == 1
        assert out.startswith("XX.SLP  STARTING\n")
        assert re.search(r"! listening in \d+ s\n", out)
        said = status(config)[1]
        assert (said["verdict"], said["health"]["status"]) == ("starting", "starting")
        assert [reason["code"] for reason in said["health"]["reasons"]] == ["listening"]


def test_a_station_that_its_own_file_makes_mute_is_degraded(tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    rules = "{landslide: {severity: none}, collapse: {min_probability: 1}}"
    config = write_config(
        tmp_path / "site", "", source=f"{{kind: folder, paths: ['{tmp_path / 'records'}']}}",
        classifier="{backends: [constant]}", tunables=f"{{policy: {{slow: {{severity: none}}, rules: {rules}}}}}",
    )  # fmt: skip
    with running_agent("run", "--config", config):
        wait_for(lambda: "verdict" in status(config)[1], what="it has reported")
        code, body = status(config)
    codes = {reason["code"] for reason in body["health"]["reasons"]}
    assert (code, codes >= {"cannot_alert", "no_network", "no_output"}) == (1, True), codes


def test_a_port_that_is_taken_degrades_and_does_not_end_it(tmp_path: Path, records: Path) -> None:
    with running_agent("run", "--config", write_config(
        tmp_path / "a", records, source=slow(records), health=f"{{prometheus: '127.0.0.1:{(port := own_port())}'}}"
    )) as first:  # fmt: skip
        first.wait_for("watches XX.SLP")
        config = write_config(
            tmp_path / "b", records, source=slow(records), health=f"{{prometheus: '127.0.0.1:{port}'}}"
        )
        with running_agent("run", "--config", config) as second:
            second.wait_for("cannot be opened")
            wait_for(lambda: "verdict" in status(config)[1])
            code, body = status(config)
            assert (code, body["verdict"]) == (1, "degraded")
            assert "health.prometheus" in body["health"]["reasons"][0]["text"]
            assert body["health"]["streams"], "the slope is watched all the same"


def written(folder: Path, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    body = status_message(state(), health().model_copy(update={"status": "ok", "reasons": []}), None, 10, stopped=False)
    StatusFile(folder).write(body.model_copy(update=changes))
    return folder


def test_the_verdict_follows_from_age_process_and_word(tmp_path: Path) -> None:
    now_ns = time.time_ns()
    assert read(written(tmp_path)).verdict == "ok"
    assert read(tmp_path, now_ns + round((STALE_FACTOR * 10 + 60) * NS)).verdict == "silent"
    assert read(tmp_path, now_ns - 60 * NS).verdict == "silent", "written in the future: the clock was set back"
    assert read(written(tmp_path, pid=2**22 + 1)).verdict == "gone"
    assert read(written(tmp_path, pid=2**40)).verdict != "gone", "a number that is no process of this system"
    assert read(written(tmp_path, stopped=True)).verdict == "stopped"
    assert read(written(tmp_path, health=health())).verdict == "degraded"
    if os.getuid() == 0:
        assert read(written(tmp_path, pid=1)).verdict == "ok"


@pytest.mark.parametrize(
    ("code", "outcome"), [("probability", "no alert"), ("raised", "alert"), ("site_waits", "no alert yet")]
)
def test_the_screen_says_why_the_last_event_led_to_no_alert(tmp_path: Path, code: DecisionCode, outcome: str) -> None:
    why = DecisionReason(code, "landslide 0.65, 0.7 is needed")
    event = parse(EventMessage, event_message(make_event(), stamp(), why=why).payload)
    text = screen(read(written(tmp_path, last_event=event)))
    assert (
        f"last event XX.ABC.00.HH, 2023-11-14 22:13:20: landslide 0.91; {outcome}: landslide 0.65, 0.7 is needed"
        in text
    ), text
    assert "last event none since the start" in screen(read(written(tmp_path)))


def test_one_screen_has_what_matters_and_is_safe(tmp_path: Path) -> None:
    rich = health().model_copy(
        update={
            "reasons": [ReasonPart(code="channels_silent", text="no samples from HHZ\x1b[2J")],
            "rates": [RateHealth(station="XX.A.00.H", label="landslide", per_hour=6, per_day=9, inverse_rate_h=0.167)],
            "rsam": [
                RsamHealth(
                    station="XX.ABC.00.HH", minute="2023-11-14T22:13:00.000000000Z", counts=12.5, coverage=1.0,
                    hour_counts=11.0,
                )
            ],
        }
    )  # fmt: skip
    text = screen(read(written(tmp_path, health=rich, last_alert=alert())))
    assert len(text.splitlines()) <= 24
    assert "\x1b" not in text
    for expected in (
        "XX.ABC  DEGRADED",
        "! no samples from HHZ?[2J",
        "landslide: 6 in 1 h, 9 in 24 h, one in 10 min",
        "12.5 counts at 22:13, 11 in the hour",
        "3 messages wait (oldest 4.2 s)",
        "raise severe landslide at XX.ABC.00.HH, 2023-11-14 22:13:20: 91 % is above 80 %",
        "42 °C",
    ):
        assert expected in text, text
    assert screen(read(tmp_path), colour=True).count("\x1b[") == 2


def test_ok_is_followed_by_no_mark_of_a_problem_and_zero_has_no_sign(tmp_path: Path) -> None:
    well = health().model_copy(
        update={"status": "ok", "reasons": [], "events_open": 2, "events_hour": {"landslide": 3}}
    )
    well.streams[0] = well.streams[0].model_copy(update={"latency_s": -0.02})
    drill = state().model_copy(update={"exercise": True})
    text = screen(read(written(tmp_path, health=well, state=drill)))
    assert text.startswith("XX.ABC  OK\n  everything here is an exercise: simulated data\n")
    assert "!" not in text and "-0.0 s" not in text
    assert "1 of 1 channels arrive, up to 0.0 s late" in text
    assert "last hour: landslide 3 (2 going on); 4 triggers discarded" in text
    well.streams[0] = well.streams[0].model_copy(update={"latency_s": -3.0})
    assert "1 of 1 channels arrive, 3.0 s ahead of this machine's clock" in screen(read(written(tmp_path, health=well)))


@pytest.mark.parametrize("content", ["", "{}", "[" * 100_000, '{"schema":"talus/status/1"}', "\xff"])
def test_a_file_that_is_not_ours_is_an_error_in_words(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    code, out, err = talus("status", "--state", tmp_path)
    assert (code, out) == (1, "")
    assert f"{tmp_path / FILE} cannot be used" in err
    assert "hint: it is damaged, or another version of the agent wrote it" in err


def test_a_disk_that_refuses_is_told_once(tmp_path: Path) -> None:
    complaints: list[str] = []
    (tmp_path / "none").write_text("a file where the folder should be")
    file = StatusFile(tmp_path / "none", complaints.append)
    body = status_message(state(), health(), None, 10, stopped=False)
    file.write(body)
    file.write(body)
    (complaint,) = complaints
    assert "status.json" in complaint
    (tmp_path / "none").unlink()
    file.write(body)
    assert [path.name for path in (tmp_path / "none").iterdir()] == [FILE]


def test_it_holds_no_secret_and_says_when_it_was_written(tmp_path: Path) -> None:
    body = json.loads((written(tmp_path) / FILE).read_text())
    assert abs(time.time_ns() - parse_ns(body["written"])) < 60 * NS
    assert not re.search(r"password|secret|token", json.dumps(body), re.IGNORECASE)


def test_the_exit_status_of_a_degraded_station_does_not_depend_on_the_reader(tmp_path: Path) -> None:
    """The reader is gone before the command says anything; a full disk is one line, without a traceback."""
    written(tmp_path, health=health())
    command = " ".join([*TALUS, "status", "--state", str(tmp_path)])
    for script, said in (
        (f"set -o pipefail; (sleep 1; {command}) | true", ""),
        (f"{command} >&-", ""),
        (f"{command} > /dev/full", "talus status: standard output cannot be written: No space left on device\n"),
    ):
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
        assert (done.returncode, done.stderr) == (1, said)
