"""``talus config`` as an operator types it, against a station and a broker that are real."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
from pathlib import Path

import pytest
import yaml
from agent_support import ROOT, TALUS, running_agent, talus, write_config, write_records
from broker_support import needs_mosquitto, running
from site_support import write_site

FAST = "{kind: simulator, speed: 20}"


def key_and_section(tmp_path: Path) -> tuple[Path, str]:
    """A key as keygen makes it, and the section that it prints, as a flow mapping."""
    path = tmp_path / "ops.pem"
    status, out, err = talus("config", "keygen", path, "--name", "ops")
    assert status == 0, err
    return path, json.dumps({**yaml.safe_load(out)["control"], "probation_s": 600})


def change(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "change.yaml"
    path.write_text(text)
    return path


@needs_mosquitto
def test_the_whole_story(tmp_path: Path) -> None:
    """Make a key, sign, push, see it on trial; push one that floods, see it rolled back; replay, and see it refused."""
    path, section = key_and_section(tmp_path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    first, second = tmp_path / "1.json", tmp_path / "2.json"
    sign = ("config", "sign", "--key", path, "--station", "XX.SLP")
    with running(tmp_path) as broker:
        url = f"mqtt://127.0.0.1:{broker.port}"
        where = ("--broker", url, "--station", "XX.SLP")
        config = write_config(tmp_path, "", broker.port, source=FAST, control=section)
        for number, text, out in ((1, "trigger: {on: 5.0}", first), (2, "trigger: {on: 1.1, off: 0.1}", second)):
            done = talus(*sign, change(tmp_path, text), "--revision", number, "--out", out)
            assert done[0] == 0, done
        with running_agent("run", "--config", config) as agent:
            agent.wait_for("connected to")
            status, out, err = talus("config", "push", first, "--broker", url, "--wait", 60)
            assert (status, out) == (0, "XX.SLP: revision 1 by ops is active, on trial\n"), err
            status, out, err = talus("config", "push", second, "--broker", url, "--follow", "--wait", 90)
            assert status == 1, err
            # Whichever comes first: the flood, or a recorded event of the simulator's that would be lost.
            harm = r"(triggered for \d+% of|\d+ events in|\d+ of \d+ events on record)"
            assert re.match(rf"XX\.SLP: revision 2 by ops was rolled back: {harm}", out), out
            status, out, err = talus("config", "push", first, "--broker", url, "--wait", 60)
            assert status == 1, err
            assert (
                out == "XX.SLP: revision 1 by ops was refused: revision 1 is not above 2, which was accepted before\n"
            )
            status, out, err = talus("config", "show", *where)
            assert status == 0, err
            assert "XX.SLP: the configuration file is active" in out
            assert "highest revision accepted: 2" in out
            status, out, err = talus("config", "history", *where)
            told = [line.split("Z  ")[1].split(":")[0] for line in out.splitlines()]
            assert told[:4] == [
                "revision 1 by ops is active, on trial",
                "revision 1 by ops was rolled back",
                "revision 2 by ops is active, on trial",
                "revision 2 by ops was rolled back",
            ]
            assert json.loads(talus("config", "show", *where, "--json")[1])["highest"] == 2


@needs_mosquitto
def test_a_station_that_is_away_is_told_apart_and_obeys_when_it_comes(tmp_path: Path) -> None:
    path, section = key_and_section(tmp_path)
    order = tmp_path / "order.json"
    with running(tmp_path) as broker:
        url = f"mqtt://127.0.0.1:{broker.port}"
        status, _, err = talus("config", "show", "--broker", url, "--station", "XX.SLP")
        assert (status, "no configuration report from XX.SLP yet" in err) == (1, True)
        talus("config", "sign", change(tmp_path, "trigger: {on: 5.0}"), "--key", path, "--station", "XX.SLP",
              "--out", order)  # fmt: skip
        status, _, err = talus("config", "push", order, "--broker", url, "--wait", 1)
        assert (status, "has not answered within 1 s" in err) == (1, True)
        config = write_config(tmp_path, "", broker.port, source=FAST, control=section)
        with running_agent("run", "--config", config) as agent:
            agent.wait_for("is active, on trial")


def test_a_change_that_no_station_would_take_is_not_signed(tmp_path: Path) -> None:
    path, _ = key_and_section(tmp_path)
    for text, words in (
        ("trigger: {on: 0.1}", "trigger.on must be"),
        ("trigger: {threshold: 4}", "is not a setting"),
        ("mqtt: {host: evil}", "is not a setting"),
        ("trigger: {on: 5.0, on: 6.0}", "given twice"),
        ("- 4", "must be a mapping"),
    ):
        status, out, err = talus(
            "config", "sign", change(tmp_path, text), "--key", path, "--station", "XX.SLP", "--out", tmp_path / "x"
        )
        assert (status, out) == (1, ""), err
        assert words in err
        assert "Traceback" not in err
    assert not (tmp_path / "x").exists()


def test_what_an_operator_mistypes_is_answered_in_words_and_makes_nothing(tmp_path: Path) -> None:
    path, _ = key_and_section(tmp_path)
    sign = ("config", "sign", change(tmp_path, "trigger: {on: 5.0}"), "--key", path)
    nowhere = ("--key", path, "--station", "XX.SLP", "--broker", "mqtt://127.0.0.1:1")
    for words, said in (
        ((*sign, "--station", "XX.SLP", "--out", tmp_path / "absent" / "x"), "No such file or directory"),
        ((*sign, "--station", "SLP"), "write NETWORK.STATION in capitals"),
        ((*sign, "--station", "xx.slp"), "write NETWORK.STATION in capitals"),
        ((*sign, "--station", "XX.SLP", "--revision", 0), "a whole number from 1 on"),
        (("config", "keygen", tmp_path / "k.pem", "--name", ""), "1 to 40 letters"),
        (("config", "keygen", tmp_path / "k.pem", "--name", "x" * 41), "1 to 40 letters"),
        (("ask", "evidence", "E", "--out", tmp_path / "absent" / "e", *nowhere), "a folder that you may write"),
        (("config", "show", "--station", "XX.SLP", "--broker", "mqtt://x", "--ca", "ca.pem"), "mqtts://"),
    ):
        status, out, err = talus(*words)
        assert (status, out) == (2, ""), err
        assert said in err
        assert "Traceback" not in err
    assert not (tmp_path / "k.pem").exists()


def test_a_key_that_others_can_read_does_not_sign(tmp_path: Path) -> None:
    path, _ = key_and_section(tmp_path)
    path.chmod(0o644)
    status, _, err = talus(
        "config", "sign", change(tmp_path, "trigger: {on: 5.0}"), "--key", path, "--station", "XX.SLP"
    )
    assert (status, "others than its owner" in err) == (1, True)


def test_a_dry_run_says_what_the_change_would_have_made_of_recorded_data(tmp_path: Path) -> None:
    records = tmp_path / "records"
    records.mkdir()
    write_records(records, 2)
    deaf = change(tmp_path, "tunables: {trigger: {on: 900.0}}")
    status, out, err = talus("config", "dry-run", deaf, records, "--json")
    assert status == 0, err
    found = json.loads(out)
    replayed = talus("replay", "--json", records)[1].splitlines()
    assert sum(found["before"]["events"].values()) == len({json.loads(line)["id"] for line in replayed})
    assert found["before"]["triggers"] == sum(found["before"]["events"].values()) + found["before"]["discarded"]
    assert found["after"] == {"triggers": 0, "discarded": 0, "events": {}, "alerts": {}}
    assert found["seconds"] == pytest.approx(460, abs=1)
    status, out, err = talus("config", "dry-run", deaf, records)
    assert (status, "triggers" in out, "before" in out) == (0, True, True), err
    path, _ = key_and_section(tmp_path)
    status, out, err = talus("config", "sign", deaf, "--key", path, "--station", "XX.SLP", "--dry-run", records)
    assert (status, "triggers" in err, json.loads(out)["schema"]) == (0, True, "talus/envelope/1"), err


def test_a_dry_run_models_what_the_station_does_with_several_stations(tmp_path: Path) -> None:
    """An event of one station alone is local: no alert in a replay, and none in a dry run."""
    records = write_site(tmp_path / "records", {"S1": (260.0, [100.0, 200.0]), "S2": (260.0, [101.0])})
    together = "{coincidence: {stations: [XX.S1, XX.S2], required: 2}}"
    rule = "{severity: severe, min_probability: 0.05, min_duration_s: 0, confirm: {k: 1, n: 1}, refractory_s: 0}"
    config = write_config(
        tmp_path, records, station="{network: XX, station: SITE}", classifier="{backends: ['constant:landslide']}",
        site=together, tunables=f"{{policy: {{rules: {{landslide: {rule}}}}}}}",
    )  # fmt: skip
    replayed = [json.loads(line) for line in talus("replay", "--json", "--config", config)[1].splitlines()]
    raised = [body for body in replayed if body["schema"] == "talus/alert/1" and body["action"] == "raise"]
    assert [body["station"] for body in raised] == ["XX.SITE"]
    same = change(tmp_path, "trigger: {on: 4.0}")
    status, out, err = talus("config", "dry-run", same, records, "--config", config, "--json")
    assert status == 0, err
    found = json.loads(out)
    assert found["before"]["alerts"] == found["after"]["alerts"] == {"landslide": 1}
    assert found["lost"] == []
    status, out, err = talus("config", "dry-run", change(tmp_path, "trigger: {on: 900.0}"), records, "--config", config)
    assert status == 0, err
    assert re.search(r"of \d+ events (\d+) would be lost: XX\.S", out), out


def test_a_dry_run_tries_the_station_s_own_records_of_events(tmp_path: Path) -> None:
    config = write_config(tmp_path, write_records(tmp_path / "records", 2), evidence="{max_mb: 10}")
    with running_agent("run", "--config", config) as agent:
        assert agent.end() == 0, agent.log
    deaf = change(tmp_path, "trigger: {on: 900.0}")
    status, out, err = talus("config", "dry-run", deaf, "--config", config)
    assert status == 0, err
    lost = re.search(r"of (\d+) events on record (\d+) would be lost: XX\.SLP", out)
    assert lost is not None, out
    assert lost[1] == lost[2]
    status, _, err = talus("config", "dry-run", deaf)
    assert (status, "nothing to try the change on" in err) == (2, True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("trigger: {on: 400}", ["no event below 50 times the noise would trigger", "trigger.on: 400 is beyond"]),
        ("trigger: {on: 1.1, off: 0.1}", ["trigger.on: 1.1 is reached by noise", "trigger.off"]),
        ("trigger: {min_duration_s: 45}", ["min_duration_s"]),
        ("trigger: {low_hz: 0.1, high_hz: 0.5}", ["trigger: 6 Hz, where slides are strong, is not in the band"]),
        ("trigger: {max_component_lag_s: 600}", ["would hold back every alert for 600 s"]),
        ("policy: {rules: {landslide: {min_probability: 1, sure_probability: 1}}}", ["landslide.min_probability"]),
        ("policy: {max_age_s: 1, late: withhold}", ["policy.max_age_s", "would not be sent"]),
        ("trigger: {lta_s: 3600}", ["nothing is heard for 3600 s"]),
        ("policy: {rules: {landslide: {severity: none}, collapse: {severity: none}, noise: {severity: minor}}}",
         ["none of landslide and collapse raises an alert"]),
        ("policy: {rules: {landslide: {min_window_s: 60, refractory_s: 86400, min_duration_s: 90}}}",
         ["earlier than 80 s after", "for 24 h", "less than 90 s"]),
        ("verdict: {at_s: [60]}", ["earlier than 60 s after", "rules.collapse.confirm: no alert would come earlier"]),
        ("policy: {rules: {landslide: {confirm_events: {k: 3, within_s: 60}}}}", ["the first 2 events"]),
        ("reporting: {alert_expiry_s: 60}", ["away for 60 s never gets the alert"]),
        ("trigger: {on: 6}", []),
    ],
)  # fmt: skip
def test_who_signs_a_doubtful_value_is_warned(tmp_path: Path, text: str, words: list[str]) -> None:
    path, _ = key_and_section(tmp_path)
    status, out, err = talus("config", "sign", change(tmp_path, text), "--key", path, "--station", "XX.SLP")
    assert (status, json.loads(out)["schema"]) == (0, "talus/envelope/1"), err
    assert all(word in err for word in words), err
    assert ("warning" in err) == bool(words), err
    station = write_config(tmp_path, write_records(tmp_path / "records", 1), tunables=f"{{{text}}}")
    status, _, err = talus("check", "--config", station)
    assert (status, all(word in err for word in words)) == (0, True), err


def test_no_secret_shows_in_the_process_list_or_in_what_is_printed(tmp_path: Path) -> None:
    """A private key is a file and a password a variable of the environment: neither is an argument."""
    path, _ = key_and_section(tmp_path)
    secret = "".join(path.read_text().splitlines()[1:-1])
    done = subprocess.run(
        [*TALUS, "config", "push", str(path), "--broker", "mqtt://ops@127.0.0.1:1"],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "TALUS_MQTT_PASSWORD": "hunter2"}, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    for text in (done.stdout, done.stderr):
        assert secret not in text
        assert "hunter2" not in text
    helped = talus("config", "sign", "--help")[1] + talus("config", "push", "--help")[1]
    assert "--password" not in helped
