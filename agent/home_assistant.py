"""The station as a device of Home Assistant (MQTT discovery): retained configurations that name the station's topics.

They go through the outbox, which remembers them: after the section is taken out of the configuration, the next start
finds what was announced and withdraws it with empty payloads.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from agent import __version__
from agent.delivery import Delivery
from agent.errors import DeliveryError
from agent.messages import OFFLINE, ONLINE, Message, Priority, topic
from agent.types import StationId

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Entity:
    """``source`` is the last level of the topic whose payload ``template`` reads."""

    name: str
    kind: str
    title: str
    source: str
    template: str
    more: dict[str, Any] = field(default_factory=dict)


_AVAILABLE = f"{{{{ '{ONLINE}' if value == '{ONLINE}' else '{OFFLINE}' }}}}"
_ENTITIES = (
    _Entity(
        "connected", "binary_sensor", "Connected", "availability", _AVAILABLE,
        {"payload_on": ONLINE, "payload_off": OFFLINE, "device_class": "connectivity",
         "entity_category": "diagnostic"},
    ),
    _Entity(
        "problem", "binary_sensor", "Problem", "health",
        "{{ 'OFF' if value_json.status in ('ok', 'starting') else 'ON' }}",
        {"device_class": "problem", "entity_category": "diagnostic", "attributes": True},
    ),
    _Entity(
        "last_alert", "sensor", "Last alert", "last_alert",
        "{{ value_json.action }} {{ value_json.severity }} {{ value_json.label or 'unclassified' }}",
        {"icon": "mdi:landslide", "attributes": True},
    ),
    _Entity(
        "events_hour", "sensor", "Events in the last hour", "health",
        "{{ value_json.events_hour.values() | sum }}",
        {"unit_of_measurement": "events", "state_class": "measurement", "icon": "mdi:chart-timeline-variant"},
    ),
    _Entity(
        "landslides_hour", "sensor", "Landslide events in the last hour", "health",
        "{{ value_json.events_hour.landslide | default(0) }}",
        {"unit_of_measurement": "events", "state_class": "measurement", "icon": "mdi:landslide"},
    ),
    _Entity(
        "latency", "sensor", "Latency of the samples", "health",
        "{{ value_json.streams | map(attribute='latency_s') | select('number') | max | default(none) }}",
        {"unit_of_measurement": "s", "device_class": "duration", "state_class": "measurement",
         "entity_category": "diagnostic"},
    ),
    _Entity(
        "status", "sensor", "Status", "health", "{{ value_json.status }}",
        {"icon": "mdi:heart-pulse", "entity_category": "diagnostic"},
    ),
    _Entity(
        "armed", "sensor", "Armed in the last ten minutes", "health",
        "{% set shares = value_json.hearing | map(attribute='armed_10min') | select('number') | list %}"
        "{{ (100 * shares | min) | round(1) if shares else none }}",
        {"unit_of_measurement": "%", "state_class": "measurement", "icon": "mdi:ear-hearing",
         "entity_category": "diagnostic"},
    ),
    _Entity(
        "threshold", "sensor", "Smallest event that would trigger", "health",
        "{{ value_json.hearing | map(attribute='threshold_counts') | select('number') | max | default(none) }}",
        {"unit_of_measurement": "counts", "state_class": "measurement", "icon": "mdi:waveform",
         "entity_category": "diagnostic"},
    ),
    _Entity(
        "outbox_depth", "sensor", "Messages that wait", "health",
        "{{ value_json.outbox.depth if value_json.outbox else none }}",
        {"unit_of_measurement": "messages", "state_class": "measurement", "entity_category": "diagnostic"},
    ),
    _Entity(
        "temperature", "sensor", "Temperature", "health", "{{ value_json.temperature_c }}",
        {"unit_of_measurement": "°C", "device_class": "temperature", "state_class": "measurement",
         "entity_category": "diagnostic"},
    ),
)  # fmt: skip


def announcements(station: StationId, name: str | None, prefix: str, discovery: str) -> list[Message]:
    """One configuration an entity. ``name`` is the place in words, ``discovery`` where Home Assistant looks."""
    device_id = _device_id(station)
    availability = {
        "topic": topic(prefix, station, "availability"),
        "payload_available": ONLINE,
        "payload_not_available": OFFLINE,
        "value_template": _AVAILABLE,
    }
    found = []
    for entity in _ENTITIES:
        source = topic(prefix, station, entity.source)
        body = {
            "name": entity.title,
            "unique_id": f"{device_id}_{entity.name}",
            "object_id": f"{device_id}_{entity.name}",
            "state_topic": source,
            "value_template": entity.template,
            "device": {
                "identifiers": [device_id],
                "name": f"Talus {name or station.short}",
                "manufacturer": "Talus",
                "model": station.short,
                "sw_version": __version__,
            },
            **{key: value for key, value in entity.more.items() if key != "attributes"},
        }
        if entity.more.get("attributes"):
            body["json_attributes_topic"] = source
        if entity.source != "availability":
            body["availability"] = [availability]
        found.append(_message(f"{discovery}/{entity.kind}/{device_id}/{entity.name}/config", _encode(body)))
    return found


def announce(delivery: Delivery, station: StationId, name: str | None, discovery: str | None) -> None:
    """Announce under ``discovery`` (None: nowhere), and withdraw what an earlier run announced and this one does not.

    A disk that refuses is no reason not to watch the slope: it is told, and tried again at the next start.
    """
    wanted = [] if discovery is None else announcements(station, name, delivery.prefix, discovery)
    try:
        _tell(delivery, station, wanted)
    except DeliveryError as error:
        _log.warning("Home Assistant is not told of the station: %s", error)


def _tell(delivery: Delivery, station: StationId, wanted: list[Message]) -> None:
    told, _ = delivery.outbox.retained(0)
    keep = {message.topic for message in wanted}
    gone = [
        _message(message.topic, b"")
        for message in told
        if message.payload and _is_ours(message.topic, station) and message.topic not in keep
    ]
    changed = _changed(wanted, told)
    if gone or changed:
        delivery.put([*gone, *changed])


def _changed(wanted: Iterable[Message], told: Iterable[Message]) -> list[Message]:
    known = {message.topic: message.payload for message in told}
    return [message for message in wanted if known.get(message.topic) != message.payload]


def _is_ours(name: str, station: StationId) -> bool:
    levels = name.split("/")
    return len(levels) >= 5 and levels[-1] == "config" and levels[-3] == _device_id(station)


def _device_id(station: StationId) -> str:
    return f"talus_{station.network}_{station.station}"


def _message(name: str, payload: bytes) -> Message:
    return Message(name, payload, Priority.OTHER, retain=True)


def _encode(body: dict[str, Any]) -> bytes:
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()
