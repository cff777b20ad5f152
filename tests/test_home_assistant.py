"""The manual's lines for Home Assistant read real payloads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2.sandbox
import yaml
from broker_support import make_alert
from test_messages import health

MANUAL = Path(__file__).parents[1] / "docs" / "operations.md"


def entity(kind: str) -> dict[str, Any]:
    text = MANUAL.read_text("utf-8").partition("## Home Assistant")[2]
    found: dict[str, Any] = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])["mqtt"][kind][0]
    return found


def rendered(kind: str, payload: bytes) -> str:
    """As Home Assistant does it: in a sandbox, with the payload as text and as JSON, an unknown name being an error."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined)
    value = json.loads(payload) if payload else None
    return environment.from_string(entity(kind)["value_template"]).render(value=payload.decode(), value_json=value)


def test_the_templates_read_a_health_report() -> None:
    body = health()
    starting = body.model_copy(update={"status": "starting", "events_hour": {}})
    said = [one.model_dump_json(by_alias=True).encode() for one in (body, starting)]
    assert [rendered("binary_sensor", one) for one in said] == ["ON", "OFF"], "the first moments are no fault"
    assert [rendered("sensor", one) for one in said] == ["1", "0"]


def test_an_alert_is_an_event_and_a_late_one_of_a_type_of_its_own() -> None:
    alert = make_alert(1).payload
    said = json.loads(rendered("event", alert))
    assert (said["event_type"], said["severity"], said["label"]) == ("raise", "warning", "landslide")
    late = json.loads(rendered("event", alert.replace(b'"late":false', b'"late":true')))
    assert late["event_type"] == "late", "an automation on raise does not fire for old data"
    assert {said["event_type"], late["event_type"]} <= {*entity("event")["event_types"]}
    assert rendered("event", b"") == "", "a probe of the doctor is none"
