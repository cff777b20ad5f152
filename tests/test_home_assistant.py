"""MQTT discovery: what Home Assistant is told, that its templates work on real payloads, and that it is withdrawn."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import jinja2
import jinja2.sandbox
import pytest
from agent_support import running_agent, write_config, write_records
from broker_support import STATION, Collector, make_alert, needs_mosquitto, running, wait_for
from test_messages import health

from agent.config.file import Config
from agent.health.home_assistant import announcements
from agent.messages.payloads import OFFLINE, ONLINE, STOPPED
from agent.messages.schema import HearingHealth

HERE = "homeassistant/sensor/talus_XX_SLP/"


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_records(tmp_path_factory.mktemp("records"), 40)


def told(prefix: str = "talus/v1", others: tuple[str, ...] = ()) -> dict[str, dict[str, Any]]:
    found = announcements(STATION, "Upper terrace", prefix, "homeassistant", others)
    assert all(message.retain for message in found)
    return {message.topic.split("/")[-2]: json.loads(message.payload) for message in found}


def rendered(template: str, payload: bytes) -> str:
    """As Home Assistant does it: in a sandbox, with the payload as text and as JSON, an unknown name being an error."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined)
    text = payload.decode()
    return environment.from_string(template).render(
        value=text, value_json=json.loads(text) if text.startswith("{") else None
    )


def test_templates_read_real_payloads() -> None:
    entities = told()
    figures = {"armed_hour": 0.9, "usual_counts": 300.0, "usual_hours": 3.5, "plausible": True}
    sensors = [
        HearingHealth(station=f"XX.ABC.{place}.HH", listening_in_s=None, armed_10min=share, threshold_counts=counts,
                      **figures)
        for place, share, counts in (("00", 0.25, 100.0), ("01", 1.0, 310.0), ("02", 0.5, None))
    ]  # fmt: skip
    body = health().model_copy(update={"hearing": sensors})
    said = body.model_dump_json(by_alias=True).encode()
    values = {
        name: rendered(entity["value_template"], said)
        for name, entity in entities.items()
        if name not in ("connected", "alert")
    }
    assert values == {
        "problem": "ON",
        "events_hour": "1",
        "landslides_hour": "1",
        "latency": "0.4",
        "outbox_depth": "3",
        "temperature": "41.5",
        "status": "degraded",
        "armed": "25.0",
        "threshold": "310.0",
    }
    bare = body.model_copy(update={"streams": [], "outbox": None, "events_hour": {}, "temperature_c": None})
    starting = bare.model_copy(update={"status": "starting", "hearing": []}).model_dump_json(by_alias=True).encode()
    assert rendered(entities["problem"]["value_template"], starting) == "OFF", "the first moments are no fault"
    assert rendered(entities["armed"]["value_template"], starting) == "None"
    assert rendered(entities["threshold"]["value_template"], starting) == "None"
    poor = bare.model_dump_json(by_alias=True).encode()
    assert rendered(entities["events_hour"]["value_template"], poor) == "0"
    assert rendered(entities["landslides_hour"]["value_template"], poor) == "0"
    assert rendered(entities["latency"]["value_template"], poor) == "None"
    assert rendered(entities["outbox_depth"]["value_template"], poor) == "None"


def test_a_stopped_station_is_not_available() -> None:
    template = told()["latency"]["availability"][0]["value_template"]
    shown = [rendered(template, word.encode()) for word in (ONLINE, OFFLINE, STOPPED)]
    assert shown == ["online", "offline", "offline"]


def test_topics_and_identities() -> None:
    entities = told("slope/a")
    assert len({entity["unique_id"] for entity in entities.values()}) == len(entities)
    assert {entity["device"]["identifiers"][0] for entity in entities.values()} == {"talus_XX_ABC"}
    assert entities["latency"]["state_topic"] == "slope/a/XX/ABC/health"
    assert entities["alert"]["state_topic"] == "slope/a/XX/ABC/alert"
    assert entities["latency"]["default_entity_id"] == "sensor.talus_xx_abc_latency"
    assert not [name for name, entity in entities.items() if "object_id" in entity]
    assert entities["connected"]["device"]["name"] == "Talus Upper terrace"
    assert "availability" not in entities["connected"]


def test_alerts_of_every_station_are_events_with_what_they_say() -> None:
    """Two that say the same are two events; a probe of the doctor is none."""
    entities = told(others=("TW.LH01", "TW.LH02"))
    alerts = {name: entity for name, entity in entities.items() if name.startswith("alert")}
    assert {entity["state_topic"] for entity in alerts.values()} == {
        "talus/v1/XX/ABC/alert", "talus/v1/TW/LH01/alert", "talus/v1/TW/LH02/alert"
    }  # fmt: skip
    assert alerts["alert_TW_LH01"]["name"] == "Alert TW.LH01"
    assert alerts["alert_TW_LH01"]["availability"][0]["topic"] == "talus/v1/XX/ABC/availability"
    template = alerts["alert"]["value_template"]
    said = json.loads(rendered(template, make_alert(1).payload))
    assert said["event_type"] in alerts["alert"]["event_types"]
    assert (said["severity"], said["label"], said["station"]) == ("warning", "landslide", "XX.ABC.00.HH")
    assert rendered(template, b"") == ""
    late = json.loads(rendered(template, make_alert(1).payload.replace(b'"late":false', b'"late":true')))
    assert (late["event_type"], late["late"]) == ("late", True), "an automation on raise does not fire for old data"
    assert late["event_type"] in alerts["alert"]["event_types"]


@needs_mosquitto
def test_a_station_that_only_its_data_name_is_told_and_stays_told_after_a_restart(tmp_path: Path) -> None:
    """A folder or an archive brings what it brings; what Home Assistant knows of it must not vanish at each start."""
    (tmp_path / "records").mkdir()
    records = write_records(tmp_path / "records", 40, station="UPR")
    upper = "homeassistant/event/talus_XX_SLP/alert_XX_UPR/config"
    with (
        running(tmp_path) as broker,
        Collector(broker.settings(), "homeassistant/event/#", "talus/+/+/+/state") as seen,
    ):
        mqtt = f"{{host: 127.0.0.1, port: {broker.port}, home_assistant: {{}}}}"
        config = write_config(
            tmp_path, records, mqtt=mqtt, source=f"{{kind: archive, paths: ['{records}'], speed: 20}}",
            stations="[{station: XX.LOW, latitude_deg: 46.5, longitude_deg: 8.0, name: Toe of the slope}]",
        )  # fmt: skip
        for _ in range(2):
            with running_agent("run", "--config", config) as agent:
                agent.wait_for("XX.UPR is not named in the configuration")
                wait_for(lambda: seen.payloads("alert_XX_UPR/config"))
                agent.signal(signal.SIGTERM)
                assert agent.end() == 0
    said = [message for message in seen.received if message.topic == upper]
    assert all(message.payload for message in said)
    assert json.loads(said[0].payload)["state_topic"] == "talus/v1/XX/UPR/alert"
    assert seen.bodies("/state")[0]["stations"] == [
        {"station": "XX.LOW", "name": "Toe of the slope",
         "position": {"latitude": 46.5, "longitude": 8.0, "elevation_m": None}}
    ]  # fmt: skip


@needs_mosquitto
def test_it_is_told_on_every_connect_and_withdrawn_when_switched_off(tmp_path: Path, records: Path) -> None:
    source = f"{{kind: archive, paths: ['{records}'], speed: 20}}"
    with running(tmp_path) as broker:
        mqtt = f"{{host: 127.0.0.1, port: {broker.port}, home_assistant: {{}}}}"
        config = write_config(tmp_path, records, mqtt=mqtt, source=source)
        with running_agent("run", "--config", config) as agent:
            with Collector(broker.settings(), "homeassistant/#") as collector:
                wait_for(lambda: len({message.topic for message in collector.received}) == len(told()), what="all told")
            broker.kill()
            broker.start()
            with Collector(broker.settings(), "homeassistant/#") as collector:
                wait_for(lambda: len(collector.received) >= len(told()), what="told again to a broker that forgot")
            agent.signal(signal.SIGTERM)
            assert agent.end() == 0
        config = write_config(tmp_path, records, broker.port, source=source)
        with running_agent("run", "--config", config) as agent:
            with Collector(broker.settings(), "homeassistant/#") as collector:
                wait_for(lambda: {m.topic for m in collector.received if not m.payload} >= {f"{HERE}latency/config"})
            agent.signal(signal.SIGTERM)
            assert agent.end() == 0
        with Collector(broker.settings(), "#", session=False) as late:
            wait_for(lambda: late.payloads("/availability"))
            assert not [m for m in late.received if m.topic.startswith("homeassistant/")], "nothing is left"


@pytest.mark.parametrize("prefix", ["", "a b", "#", "/x", "x/", "a//b", "${X}"])
def test_prefixes_that_are_no_topics(prefix: str) -> None:
    with pytest.raises(ValueError, match="prefix"):
        Config.model_validate(
            {
                "station": {"network": "XX", "station": "A"},
                "source": {"kind": "archive", "paths": ["x"]},
                "mqtt": {"host": "h", "home_assistant": {"prefix": prefix}},
            }
        )
