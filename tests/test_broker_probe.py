"""``talus doctor`` tries every topic that the agent will use, and nobody is alarmed by it."""

from __future__ import annotations

from pathlib import Path

import pytest
from agent_support import running_agent, talus, write_config
from broker_support import Collector, needs_mosquitto, running, wait_for
from control_support import control, key
from script_support import Publication, Script, answering
from test_voice import acl

from agent.cli import main
from agent.config.broker import MqttSettings
from agent.config.file import Config
from agent.health.broker_probe import ANSWERS, OWN, Probe, access_lines, orders, probes, try_topics

SIMULATOR = "{kind: simulator, speed: 1}"
SLP = "talus/v1/XX/SLP"


def configured(**changes: object) -> Config:
    return Config.model_validate(
        {
            "station": {"network": "XX", "station": "SLP"},
            "source": {"kind": "simulator"},
            "mqtt": {"host": "h"},
            **changes,
        }
    )


def doctor(config: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, list[str]]]:
    """The exit status, and the lines of each finding."""
    status = main(["doctor", "--config", str(config)])
    found: dict[str, list[str]] = {}
    for line in capsys.readouterr().out.splitlines():
        mark, _, rest = line.strip().partition(" ")
        if mark in ("ok", "BAD", "--"):
            name = rest.split()[0]
        found.setdefault(name, []).append(line)
    return status, found


def test_every_topic_of_every_station_is_tried_and_none_of_the_stored_values_changes() -> None:
    source = {"kind": "shake_udp", "senders": [{"address": "10.0.0.2"}, {"address": "10.0.0.3", "station": "UPR"}]}
    config = configured(source=source, mqtt={"host": "h", "home_assistant": {}})
    tried = {probe.topic: probe.payload for probe in probes(config, "online")}
    assert tried[f"{SLP}/availability"] == b"online"
    empty = [name for name, payload in tried.items() if not payload]
    assert {f"{SLP}/{name}" for name in ("state", "health", "event", "alert", "last_event", "last_alert")} <= {*empty}
    assert {f"talus/v1/XX/UPR/{name}" for name in ("event", "alert", "last_event", "last_alert")} <= {*empty}
    assert all(tried[name] for name in tried if name.startswith("homeassistant/")), "empty would remove the entity"
    assert f"{SLP}/availability" not in {probe.topic for probe in probes(config, None)}
    assert orders(config) == []
    lines = access_lines(config, tried)
    assert lines == [
        f"topic write {SLP}/#", "topic write talus/v1/XX/UPR/#", "topic write homeassistant/+/talus_XX_SLP/#"
    ]  # fmt: skip


@needs_mosquitto
def test_the_doctor_names_the_topics_that_the_access_list_forbids(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A station that may connect and not write (and one that may write all but alerts) is not well."""
    for lines, forbidden in (
        (["read talus/#"], 7),
        (
            [
                f"write {SLP}/{name}"
                for name in ("availability", "state", "health", "event", "last_event", "last_alert")
            ],
            1,
        ),
    ):
        with running(tmp_path, acl(tmp_path, *lines)) as broker:
            status, found = doctor(write_config(tmp_path, "", broker.port, source=SIMULATOR), capsys)
        assert status == 1
        (line, hint) = found["topics"]
        assert line.startswith("BAD")
        assert line.count("Not authorized") == forbidden
        assert f"{SLP}/alert (Not authorized)" in line
        assert f"topic write {SLP}/#" in hint


@needs_mosquitto
def test_the_doctor_is_content_where_all_may_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    signing = key(tmp_path)
    with running(tmp_path, acl(tmp_path, "readwrite talus/#")) as broker:
        config = write_config(tmp_path, "", broker.port, source=SIMULATOR, control=control(signing))
        _, found = doctor(config, capsys)
    assert found["topics"] == ["ok   topics       all 11 topics may be written"]
    assert "orders" not in found


@needs_mosquitto
def test_the_doctor_says_that_the_broker_takes_no_alert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with running(tmp_path, "max_packet_size 900") as broker:
        status, found = doctor(write_config(tmp_path, "", broker.port, source=SIMULATOR), capsys)
    assert status == 1
    assert "takes packets of 900 bytes at most; an alert may have" in found["packets"][0]


@needs_mosquitto
@pytest.mark.parametrize(
    ("setting", "lacks"), [("retain_available false", "retained messages"), ("max_qos 0", "QoS 1")]
)
def test_the_doctor_says_what_the_broker_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: str, lacks: str
) -> None:
    """It accepts a connection without a will; the agent's, with one that is retained and of QoS 1, it refuses."""
    with running(tmp_path, setting) as broker:
        status, found = doctor(write_config(tmp_path, "", broker.port, source=SIMULATOR), capsys)
    assert status == 1
    assert f"does not offer {lacks}: it refuses the agent" in found["broker"][0]


@needs_mosquitto
def test_with_mqtt_3_1_1_only_what_comes_back_is_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The broker acknowledges what its list forbids, and drops it."""
    with running(tmp_path, acl(tmp_path, f"readwrite {SLP}/event", f"write {SLP}/#")) as broker:
        mqtt = f"{{host: 127.0.0.1, port: {broker.port}, protocol: 3.1.1}}"
        status, found = doctor(write_config(tmp_path, "", source=SIMULATOR, mqtt=mqtt), capsys)
        assert status == 1
        assert found["topics"][0].startswith("BAD  topics       MQTT 3.1.1 does not tell what the access list forbids")
        assert "1 topics are allowed" in found["topics"][0]
        assert f"{SLP}/alert" in found["topics"][0]
        acl(tmp_path, f"readwrite {SLP}/#")
        broker.reload()
        _, found = doctor(write_config(tmp_path, "", source=SIMULATOR, mqtt=mqtt), capsys)
        assert found["topics"] == ["ok   topics       all 7 topics may be written"]


@needs_mosquitto
def test_the_doctor_sees_that_orders_are_granted_and_do_not_come(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Mosquitto grants every subscription, and does not deliver what its list forbids to read."""
    reads = [f"read {SLP}/{name}" for name in ("config/set", "model/set", "model/chunk")]
    with running(tmp_path, acl(tmp_path, f"write {SLP}/#", *reads)) as broker:
        config = write_config(tmp_path, "", broker.port, source=SIMULATOR, control=control(key(tmp_path)))
        status, found = doctor(config, capsys)
        assert status == 1
        said = f"the broker grants the subscription to {SLP}/command, and delivers nothing"
        assert said in found["orders"][0]
        assert "model/chunk" not in found["orders"][0]
        acl(tmp_path, f"write {SLP}/#", *reads, f"read {SLP}/command")
        broker.reload()
        assert "orders" not in doctor(config, capsys)[1]
        acl(tmp_path, *(f"write {SLP}/{name}" for name in (*OWN, *ANSWERS)), *reads)
        broker.reload()
        assert "orders" not in doctor(config, capsys)[1], "where it may not write there, nothing is known"


@needs_mosquitto
def test_nobody_is_alarmed_by_a_doctor_beside_a_running_agent(tmp_path: Path) -> None:
    """Stored values stay, the availability is said as it is, and `talus watch` shows nothing."""
    with running(tmp_path) as broker, Collector(broker.settings(), "talus/#", session=False) as seen:
        config = write_config(tmp_path, "", broker.port, source=SIMULATOR)
        with running_agent("run", "--config", config):
            wait_for(lambda: seen.payloads("/health"))
            status = tmp_path / "state" / "status.json"
            wait_for(lambda: status.exists() and '"connected":true' in status.read_text())
            with running_agent("watch", "--broker", f"mqtt://127.0.0.1:{broker.port}") as watching:
                wait_for(lambda: any("online" in line for line in watching.printed))
                before = len(seen.received)
                assert "ok   topics" in talus("doctor", "--config", config)[1]
                wait_for(lambda: len(seen.received) >= before + 7)
                assert {message.payload for message in seen.received if message.topic.endswith("availability")} == {
                    b"online"
                }
                assert not [
                    line for line in (*watching.printed, *watching.said) if "refused" in line or "stopped" in line
                ]
        with Collector(broker.settings(), f"{SLP}/state", f"{SLP}/health", session=False) as late:
            wait_for(lambda: len(late.received) == 2)
            assert all(message.payload for message in late.received)


def test_a_broker_that_hangs_up_on_a_forbidden_topic_is_understood() -> None:
    def answer(it: Publication) -> bytes:
        if it.topic.endswith("/alert"):
            raise OSError("hung up")
        return b""

    with Script(answering(answer)) as server:
        tried = [Probe("a/event"), Probe("a/alert"), Probe("a/health")]
        report = try_topics(MqttSettings(host="127.0.0.1", port=server.port), "doctor", tried, [])
    assert report.allowed == ["a/event", "a/health"]
    assert report.forbidden == {"a/alert": "the broker ends the connection"}
