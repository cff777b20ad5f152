"""An operator who asks a station that is not there learns it at once, and who is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from agent_support import running_agent, talus, write_config
from broker_support import Mosquitto, needs_mosquitto, running, wait_for
from control_support import control, key

from agent.cli import main
from agent.config.broker import MqttSettings
from agent.deliver.connection import Connection
from agent.deliver.sockets import Waker
from agent.inference.bundle import DEFAULT_BUNDLE
from agent.messages.payloads import Message, Priority
from agent.types import StationId
from desk.push.presence import Waiting, absence, silence

pytestmark = needs_mosquitto


def publish(settings: MqttSettings, *messages: Message) -> None:
    connection = Connection.open(settings, "a-station", Waker())
    tokens = {connection.publish(one.topic, one.payload, retain=one.retain) for one in messages}
    while tokens:
        tokens -= {ack.token for ack in connection.pump(1.0)}
    connection.close()


def retained(name: str, payload: bytes) -> Message:
    return Message(f"talus/v1/{name}", payload, Priority.OTHER, retain=True)


def state(station: str, *others: str) -> bytes:
    body = {
        "schema": "talus/state/1", "station": station, "boot_id": "0123456789abcdef",
        "started": "2026-01-01T00:00:00.000000000Z", "versions": {}, "model": None, "backend": None, "precision": None,
        "backend_reason": None, "config_revision": None, "config_sha256": None, "position": None,
        "stations": [{"station": one, "name": None, "position": None} for one in others], "exercise": False,
    }  # fmt: skip
    return json.dumps(body).encode()


def test_absence_is_told_with_who_is_online_and_who_works_on_the_data(tmp_path: Path) -> None:
    with running(tmp_path) as broker:
        publish(
            broker.settings(),
            retained("XX/SLOPE/availability", b"online"),
            retained("XX/SLOPE/state", state("XX.SLOPE", "TW.LH01", "TW.LH02")),
            retained("XX/OLD/availability", b"offline"),
        )
        settings = broker.settings()
        assert absence(settings, StationId("XX", "SLOPE", "", "")) is None
        assert absence(settings, StationId("XX", "OLD", "", "")) == "XX.OLD is offline; online: XX.SLOPE"
        assert absence(settings, StationId("TW", "LH02", "", "")) == (
            "TW.LH02 is not an agent of its own: XX.SLOPE works on its data, give --station XX.SLOPE; online: XX.SLOPE"
        )
        unknown = absence(settings, StationId("XX", "SLPOE", "", ""))
        assert unknown == "no agent XX.SLPOE has ever been seen at this broker; online: XX.SLOPE"


def asked(folder: Path, broker: Mosquitto, *words: object) -> tuple[object, ...]:
    key(folder)
    where = ("--broker", f"mqtt://127.0.0.1:{broker.port}", "--station", "XX.SLP", "--key", folder / "key.pem")
    return ("ask", *words, *where)


def test_asking_a_station_that_is_not_there_says_so_at_once_and_waits(tmp_path: Path) -> None:
    with running(tmp_path) as broker:
        with running_agent(*asked(tmp_path, broker, "self-test", "--wait", 300)) as asking:
            asking.wait_for("no agent XX.SLP has ever been seen at this broker; online: none; waiting up to 300 s")
            assert asking.process.poll() is None
        status, _, err = talus(*asked(tmp_path, broker, "self-test", "--wait", 1))
        assert status == 1
        assert "has not answered within 1 s" in err


def test_a_command_reaches_a_station_that_comes_online_while_it_is_waited_for(tmp_path: Path) -> None:
    """The broker keeps no command for a station that is not there."""
    with running(tmp_path) as broker:
        config = write_config(
            tmp_path, "", broker.port, source="{kind: simulator, speed: 1}", control=control(key(tmp_path))
        )
        with running_agent(*asked(tmp_path, broker, "self-test", "--wait", 90)) as asking:
            asking.wait_for("waiting up to 90 s")
            with running_agent("run", "--config", config):
                wait_for(lambda: asking.process.poll() is not None)
            assert asking.end() == 0, asking.log
            assert "self_test: done" in "".join(asking.printed)


def words_of(command: str, folder: Path, broker: Mosquitto) -> tuple[object, ...]:
    """An order or command to XX.SLP by the key of the folder."""
    key(folder)
    own, where = ("--key", folder / "key.pem"), ("--broker", f"mqtt://127.0.0.1:{broker.port}")
    if command == "ask":
        return ("ask", "self-test", "--station", "XX.SLP", *own, *where)
    if command == "model":
        return ("model", "push", DEFAULT_BUNDLE, "--hold", "--station", "XX.SLP", *own, *where)
    order, change = folder / "order.json", folder / "change.yaml"
    change.write_text("trigger: {on: 5.0}")
    talus("config", "sign", change, "--station", "XX.SLP", "--out", order, *own)
    if command == "config":
        return ("config", "push", order, *where)
    return ("fleet", "push", "config", order, "--stations", "XX.SLP", *where)


@pytest.mark.parametrize("command", ["model", "config", "ask", "fleet"])
def test_a_station_without_keys_is_told_from_one_that_is_slow(command: str, tmp_path: Path) -> None:
    with running(tmp_path) as broker:
        config = write_config(tmp_path, "", broker.port, source="{kind: simulator, speed: 1}")
        station = StationId("XX", "SLP", "", "")
        with running_agent("run", "--config", config):
            wait_for(lambda: absence(broker.settings(), station) is None)
            status, out, err = talus(*words_of(command, tmp_path, broker), "--wait", 1)
    assert status == 1
    assert "is sent to XX.SLP; waiting up to 1 s" in err
    assert "has not answered within 1 s: XX.SLP is online, but takes no orders: no control.keys" in out + err
    assert command == "fleet" or "hint: add the public half of the key to control.keys" in err


def test_why_no_answer_comes_is_said_while_it_is_waited_for(tmp_path: Path) -> None:
    station, told = StationId("XX", "SLP", "", ""), list[str]()
    with running(tmp_path) as broker:
        config = write_config(
            tmp_path, "", broker.port, source="{kind: simulator, speed: 1}", control=control(key(tmp_path, "other"))
        )
        wait = Waiting(broker.settings(), station, 1000.0, told.append, explain_s=0.0)
        with running_agent("run", "--config", config):
            wait_for(lambda: "takes orders" in silence(broker.settings(), station)[0])
            wait.begin("the order")
            assert wait.goes_on(answered=True)
            assert len(told) == 1
            assert wait.goes_on(answered=False)
            assert wait.goes_on(answered=False)
    assert len(told) == 2
    assert "XX.SLP is online and takes orders, but has not answered this one" in told[1]


@pytest.mark.parametrize("value", ["0", "inf", "nan", "-3"])
def test_a_wait_has_an_end(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["ask", "self-test", "--station", "XX.SLP", "--key", "k", "--broker", "mqtt://x", "--wait", value])
    assert "--wait: invalid number of seconds value" in capsys.readouterr().err
