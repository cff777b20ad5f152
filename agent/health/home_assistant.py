"""The agent as a device of Home Assistant (MQTT discovery): retained configurations that name topics of the agent.

Alerts are an ``event`` entity for each station under whose topics the agent writes: every alert is an event of its own,
also one that says the same as the one before, and none comes again when Home Assistant starts.

The configurations go through the outbox, which remembers them: after the section is taken out of the configuration, the
next start finds what was announced and withdraws it with empty payloads.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from agent import __version__
from agent.config.station import stations_of
from agent.deliver.delivery import Delivery
from agent.errors import DeliveryError
from agent.messages.payloads import OFFLINE, ONLINE, Message, Priority, topic
from agent.types import StationId

if TYPE_CHECKING:
    from agent.config.file import Config

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


_ALERT = (
    "{% if value_json is defined and value_json %}{{ {"
    "'event_type': 'late' if value_json.late else value_json.action,"
    " 'severity': value_json.severity, 'label': value_json.label,"
    " 'station': value_json.station, 'onset': value_json.onset, 'reason': value_json.reason, 'id': value_json.id,"
    " 'exercise': value_json.exercise, 'late': value_json.late} | tojson }}{% endif %}"
)
"""An alert as Home Assistant's event with its attributes. One that is late is of a type of its own, so that an
automation on ``raise`` does not fire for old data."""


def announcements(
    station: StationId, name: str | None, prefix: str, discovery: str, others: Sequence[str] = ()
) -> list[Message]:
    """One configuration an entity. ``name`` is the place in words, ``discovery`` where Home Assistant looks, ``others``
    are the other stations (NET.STA) under whose topics the agent writes."""
    device_id = _device_id(station)
    device = {
        "identifiers": [device_id],
        "name": f"Talus {name or station.short}",
        "manufacturer": "Talus",
        "model": station.short,
        "sw_version": __version__,
    }
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
            "default_entity_id": f"{entity.kind}.{device_id}_{entity.name}".lower(),
            "state_topic": source,
            "value_template": entity.template,
            "device": device,
            **{key: value for key, value in entity.more.items() if key != "attributes"},
        }
        if entity.more.get("attributes"):
            body["json_attributes_topic"] = source
        if entity.source != "availability":
            body["availability"] = [availability]
        found.append(_message(f"{discovery}/{entity.kind}/{device_id}/{entity.name}/config", _encode(body)))
    for one in (station.short, *others):
        network, code = one.split(".")
        entity_name = "alert" if one == station.short else f"alert_{network}_{code}"
        body = {
            "name": f"Alert {one}" if others else "Alert",
            "unique_id": f"{device_id}_{entity_name}",
            "default_entity_id": f"event.{device_id}_{entity_name}".lower(),
            "state_topic": topic(prefix, StationId(network, code, "", ""), "alert"),
            "event_types": ["raise", "escalate", "retract", "late"],
            "value_template": _ALERT,
            "icon": "mdi:landslide",
            "device": device,
            "availability": [availability],
        }
        found.append(_message(f"{discovery}/event/{device_id}/{entity_name}/config", _encode(body)))
    return found


class Announcer:
    """Keeps Home Assistant informed of the entities of one agent; withdraws what is announced no longer.

    Where the source can bring stations that the file does not name, as a folder does, the alerts of stations that were
    announced by an earlier run stay. A disk that refuses is no reason not to watch the slope: it is logged, and tried
    again at the next start.
    """

    def __init__(self, delivery: Delivery, config: Config) -> None:
        self._delivery = delivery
        place, assistant = config.station, config.mqtt.home_assistant if config.mqtt else None
        self._station = StationId(place.network, place.station, "", "")
        self._name, self._discovery = place.name, assistant.prefix if assistant else None
        expected = stations_of(config)
        self._stations, self._complete = list(expected.known), expected.complete

    def announce(self) -> None:
        """What is known at the start."""
        wanted: list[Message] = []
        if self._discovery is not None:
            wanted = announcements(
                self._station, self._name, self._delivery.prefix, self._discovery, self._stations[1:]
            )
        try:
            _publish(self._delivery, self._station, wanted, keep_alerts=bool(wanted) and not self._complete)
        except DeliveryError as error:
            _log.warning("Home Assistant is not told of the station: %s", error)

    def announce_new(self, stations: Iterable[str]) -> None:
        """Data of these stations (NET.STA) have come."""
        new = sorted({*stations} - {*self._stations})
        if not new:
            return
        for name in new:
            topics = f"{self._delivery.prefix}/{name.replace('.', '/')}"
            _log.info("%s is not named in the configuration: its events and alerts go out under %s", name, topics)
        self._stations += new
        if self._discovery is not None:
            self.announce()


def _publish(delivery: Delivery, station: StationId, wanted: list[Message], *, keep_alerts: bool) -> None:
    told, _ = delivery.outbox.retained(0)
    keep = {message.topic for message in wanted}
    if keep_alerts:
        keep |= {message.topic for message in told if f"/event/{_device_id(station)}/alert_" in message.topic}
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
