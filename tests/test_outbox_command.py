"""``talus outbox``: an operator sees what waits and what was refused, and needs no sqlite3."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
from agent_support import running_agent, write_config
from broker_support import STATION, make_alert, make_message, needs_mosquitto, running, wait_for

from agent.cli import main
from agent.config.broker import MqttSettings
from agent.deliver.delivery import Delivery
from agent.deliver.outbox import MAIN, Outbox
from agent.deliver.outbox_file import TOO_LARGE

LIVELY = "{kind: simulator, speed: 20, rates: {slopequakes_per_hour: 400}}"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A station whose outbox holds two waiting messages, and two that were set aside."""
    path = write_config(tmp_path, "", source=LIVELY)
    outbox = Outbox(tmp_path / "state" / "outbox.sqlite3")
    outbox.put([make_alert(1), make_message(1), make_message(2), make_message(3)])
    for entry in outbox.cursor(MAIN).fetch(2):
        outbox.cursor(MAIN).refuse(entry.id, TOO_LARGE, "1264 bytes are larger than the broker's 900 bytes")
    outbox.close()
    return path


def talus(*words: object) -> tuple[int, str, str]:
    """A command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([str(word) for word in words])
    return status, out.getvalue(), err.getvalue()


def listed(config: Path) -> dict[str, Any]:
    _, out, err = talus("outbox", "--config", config, "--json")
    assert err == ""
    found: dict[str, Any] = json.loads(out)
    return found


def test_the_list_names_when_topic_size_and_reason(config: Path) -> None:
    status, out, err = talus("outbox", "--config", config)
    assert (status, err) == (1, "")
    assert "2 messages waiting, 2 set aside" in out
    assert "talus/v1/XX/ABC/alert" in out
    assert "[1264 bytes are larger than the broker's 900 bytes]" in out
    found = listed(config)
    assert [one["kind"] for one in found["set_aside"]] == ["alert", "event"]
    alert = found["set_aside"][0]
    assert alert["bytes"] == len(make_alert(1).payload)
    assert json.loads(alert["payload"])["action"] == "raise"
    assert alert["put"] <= alert["refused"]
    assert [one["event"] for one in found["waiting"]] == [make_message(n).key for n in (2, 3)]


def test_what_was_set_aside_is_sent_again_or_dropped_by_number(config: Path) -> None:
    alert, event = (one["number"] for one in listed(config)["set_aside"])
    assert talus("outbox", "retry", alert, "--config", config)[0] == 0
    assert [one["kind"] for one in listed(config)["waiting"]] == ["alert", "event", "event"]
    status, out, _ = talus("outbox", "drop", event, "--config", config)
    assert (status, out) == (0, "1 message dropped\n")
    assert talus("outbox", "--config", config)[0] == 0, "nothing is left to deal with"
    assert listed(config)["set_aside"] == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("drop",), "name the messages to drop"),
        (("retry", 1, "--all"), "name the messages to retry"),
        (("retry", 999), "no message 999"),
        (("list", 1), "go with retry or drop"),
    ],
)
def test_what_makes_no_sense_is_refused_with_a_hint(config: Path, words: tuple[object, ...], expected: str) -> None:
    status, _, err = talus("outbox", *words, "--config", config)
    assert status == 2
    assert expected in err
    assert "hint:" in err


def test_a_corrupt_file_that_was_moved_aside_is_listed(config: Path) -> None:
    aside = config.parent / "state" / "outbox.sqlite3.corrupt-20260101T000000.000000Z"
    aside.write_bytes(b"x")
    talus("outbox", "drop", "--all", "--config", config)
    status, out, _ = talus("outbox", "--config", config)
    assert (status, str(aside) in out) == (1, True)


def test_an_outbox_that_is_not_there_is_an_error_in_words(tmp_path: Path) -> None:
    config = write_config(tmp_path, "", source=LIVELY)
    for words in ("there is no outbox", "is empty"):
        status, out, err = talus("outbox", "--config", config)
        assert (status, out) == (1, "")
        assert words in err
        assert "hint:" in err
        (tmp_path / "state").mkdir(exist_ok=True)
        (tmp_path / "state" / "outbox.sqlite3").touch()


@needs_mosquitto
def test_a_running_agent_is_degraded_by_it_and_well_again_when_it_was_dealt_with(tmp_path: Path) -> None:
    """A message that the broker refused in an earlier run; sent again while the agent runs, it arrives."""
    with running(tmp_path) as broker:
        config = write_config(tmp_path, "", broker.port, source="{kind: simulator, speed: 1}")
        settings = MqttSettings(host="127.0.0.1", port=broker.port)
        delivery = Delivery(settings, STATION, tmp_path / "state" / "outbox.sqlite3")
        delivery.put([make_alert(1)])
        (entry,) = delivery.outbox.cursor(MAIN).fetch(1)
        delivery.outbox.cursor(MAIN).refuse(entry.id, 0x99, "Payload format invalid")
        delivery.outbox.close()
        with running_agent("run", "--config", config):
            wait_for(lambda: "messages_set_aside" in talus("status", "--config", config, "--json")[1])
            status, out, _ = talus("status", "--config", config)
            assert status == 1
            assert "DEGRADED" in out.splitlines()[0]
            assert "(see `talus outbox`)" in out
            assert talus("outbox", "retry", "--all", "--config", config)[0] == 0
            wait_for(lambda: listed(config)["waiting_total"] == 0 and not listed(config)["set_aside"])
            wait_for(lambda: "messages_set_aside" not in talus("status", "--config", config, "--json")[1])
