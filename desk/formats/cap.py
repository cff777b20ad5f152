"""CAP 1.2 (OASIS Common Alerting Protocol): one document an alert, escalation or retraction.

``raise`` is an Alert, ``escalate`` an Update, ``retract`` a Cancel; Update and Cancel name in ``references`` every
message of the same event since its first Alert (section 3.2.1). An identifier is made of the message's own identity, so
that any number of watchers give the same document the same name. ``status`` is Exercise for what is marked as one, and
Test for everything when the receivers are being set up (``--cap-test``). What is late, as it rests on old data, has the
urgency Past and expires by the time of its data.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Literal, TypeAlias

from agent.errors import UsageError
from agent.messages.schema import AlertMessage, EventMessage, StateMessage
from agent.types import NS, counted, parse_ns, place_of
from desk.formats import Document, Places, add, to_line

NAMESPACE = "urn:oasis:names:tc:emergency:cap:1.2"
EXPIRES_S = 86_400
"""Life of an alert that does not say how long it is of use."""
RESTRICTION = "For those who watch the site: automatic, not reviewed, not for the public as it is"

MsgType: TypeAlias = Literal["Alert", "Update", "Cancel"]
_MSG_TYPES: Mapping[str, MsgType] = {"raise": "Alert", "escalate": "Update", "retract": "Cancel"}
_SEVERITIES = {"minor": "Minor", "moderate": "Moderate", "severe": "Severe", "extreme": "Extreme"}
_EVENTS = {
    "landslide": "Landslide",
    "collapse": "Collapse",
    "earthquake": "Earthquake",
    "blast": "Blast",
    "noise": "Disturbance",
    "slow": "Slow slide or debris flow",
    "unclassified": "Ground motion of unknown cause",
}
_MAX_EVENTS = 10_000
_MAX_REFERENCES = 50
_RESERVED = re.compile(r"[\s,<&]")


@dataclass(frozen=True, slots=True)
class CapOptions:
    """``sender`` names the originator (a domain name makes it unique), None: ``talus-NET.STA``. ``radius_km``: of the
    circle around the station. ``folder`` holds what was written before, for the references of a later run."""

    sender: str | None = None
    test: bool = False
    public: bool = False
    radius_km: float = 1.0
    folder: Path | None = None

    def __post_init__(self) -> None:
        if self.sender is not None and (not self.sender or _RESERVED.search(self.sender)):
            raise UsageError(
                f"{self.sender!r} cannot be a CAP sender", "no blanks, commas, '<' or '&'; such as slope@example.org"
            )
        if not 0 <= self.radius_km < 20_000:
            raise UsageError(f"the radius must be from 0 to 20000 km, not {self.radius_km:g}", "such as 5")


@dataclass(frozen=True, slots=True)
class _Reference:
    sender: str
    identifier: str
    sent: str

    def __str__(self) -> str:
        return f"{self.sender},{self.identifier},{self.sent}"


class Cap:
    """See ``Format``: alerts become documents, events do not."""

    def __init__(self, options: CapOptions | None = None) -> None:
        self._options = options or CapOptions()
        self._places = Places()
        self._chains: OrderedDict[str, list[_Reference]] = OrderedDict()

    def state(self, body: StateMessage) -> None:
        """Where stations stand, for ``area``."""
        self._places.learn(body)

    def document(self, body: EventMessage | AlertMessage) -> Document | None:
        """The alert as a CAP message, ``IDENTIFIER.xml``."""
        if isinstance(body, EventMessage):
            return None
        sender = self._options.sender or f"talus-{place_of(body.station)}"
        own = _Reference(sender, f"{body.id}.{body.boot_id}.{body.seq}", _time(body.timing.decided))
        chain = [earlier for earlier in self._chain(body.id) if earlier.identifier != own.identifier]
        kind = _MSG_TYPES[body.action]
        if kind != "Cancel":
            # A second run of the agent may raise what stands already; an escalation may be the first that is heard.
            kind = "Update" if chain else "Alert"
        text = to_line(self._message(body, own, kind, chain))
        self._remember(body.id, [] if kind == "Cancel" else [*chain, own][-_MAX_REFERENCES:])
        return Document(f"{own.identifier}.xml", text)

    def _message(self, body: AlertMessage, own: _Reference, kind: MsgType, chain: Iterable[_Reference]) -> ET.Element:
        root = ET.Element("alert", xmlns=NAMESPACE)
        status = "Test" if self._options.test else "Exercise" if body.exercise else "Actual"
        fields: Sequence[tuple[str, str | None]] = (
            ("identifier", own.identifier),
            ("sender", own.sender),
            ("sent", own.sent),
            ("status", status),
            ("msgType", kind),
            ("source", f"talus {place_of(body.station)}"),
            ("scope", "Public" if self._options.public else "Restricted"),
            ("restriction", None if self._options.public else RESTRICTION),
            ("note", "Made from recorded or simulated data" if body.exercise else None),
            ("references", " ".join(map(str, chain)) or None),
            ("incidents", body.id),
        )
        for name, value in fields:
            add(root, name, value)
        self._info(ET.SubElement(root, "info"), body, kind)
        return root

    def _info(self, info: ET.Element, body: AlertMessage, kind: MsgType) -> None:
        expires = body.expires or _later(body.timing.data if body.late else body.timing.decided)
        what: Sequence[tuple[str, str | None]] = (
            ("language", "en-US"),
            ("category", "Geo"),
            ("event", _event_name(body)),
            ("responseType", "None" if kind == "Cancel" else "Assess"),
            ("urgency", "Past" if kind == "Cancel" or body.late else "Expected" if body.rate else "Immediate"),
            ("severity", _SEVERITIES.get(body.severity, "Unknown")),
            ("certainty", "Unlikely" if kind == "Cancel" else _certainty(body)),
        )
        for name, value in what:
            add(info, name, value)
        if body.quakeml_type is not None and body.rate is None:
            _pair(info, "eventCode", "QuakeML", body.quakeml_type)
        words: Sequence[tuple[str, str | None]] = (
            ("effective", _time(body.timing.decided)),
            ("onset", _time(body.onset)),
            ("expires", _time(expires)),
            ("senderName", f"Talus at station {place_of(body.station)}"),
            ("headline", _headline(body, kind)),
            ("description", body.reason or None),
            ("instruction", "Automatic and not reviewed: look at the site's other sensors before acting."),
        )
        for name, value in words:
            add(info, name, value)
        for name, value in _parameters(body):
            _pair(info, "parameter", name, value)
        self._area(ET.SubElement(info, "area"), place_of(body.station))

    def _area(self, area: ET.Element, station: str) -> None:
        position, radius_km = self._places.of(station), self._options.radius_km
        if position is None:
            add(area, "areaDesc", f"Surroundings of station {station}, whose position is not known here")
            return
        add(area, "areaDesc", f"Within {radius_km:g} km of station {station}")
        add(area, "circle", f"{position.latitude:.6f},{position.longitude:.6f} {radius_km:g}")

    def _chain(self, alert_id: str) -> list[_Reference]:
        known = self._chains.get(alert_id)
        if known is None and self._options.folder is not None:
            known = _read_chain(self._options.folder, alert_id)
        return known or []

    def _remember(self, alert_id: str, chain: list[_Reference]) -> None:
        self._chains[alert_id] = chain
        self._chains.move_to_end(alert_id)
        if len(self._chains) > _MAX_EVENTS:
            self._chains.popitem(last=False)


def _read_chain(folder: Path, alert_id: str) -> list[_Reference]:
    """References that an earlier run left in the folder, in the order in which they were sent; none after a Cancel.

    Files that are not ours, or are damaged, are passed over: a missing reference is better than no alert.
    """
    found: list[tuple[tuple[str, int], str, _Reference]] = []
    for path in folder.glob(f"{alert_id}.*.xml"):
        try:
            root = ET.parse(path).getroot()  # noqa: S314 - a file that this program wrote into the operator's own folder
        except (OSError, ET.ParseError):
            continue
        said = {name: root.findtext(f"{{{NAMESPACE}}}{name}") or "" for name in ("sender", "identifier", "sent")}
        if all(said.values()):
            order = int(tail) if (tail := said["identifier"].rpartition(".")[2]).isdigit() else 0
            kind = root.findtext(f"{{{NAMESPACE}}}msgType") or ""
            found.append(((said["sent"], order), kind, _Reference(**said)))
    chain: list[_Reference] = []
    for _, kind, reference in sorted(found, key=lambda one: one[0]):
        chain = [] if kind == "Cancel" else [*chain, reference]
    return chain[-_MAX_REFERENCES:]


def _event_name(body: AlertMessage) -> str:
    name = _EVENTS.get(body.label, body.label)
    return f"{name}: rising rate of events" if body.rate else f"{name} (seismic detection)"


def _certainty(body: AlertMessage) -> str:
    """CAP: Likely is more than 50 %; a machine has observed nothing itself."""
    if body.rate is not None or body.classification is None:
        return "Possible" if body.rate else "Unknown"
    return "Likely" if body.classification.probability > 0.5 else "Possible"


def _headline(body: AlertMessage, kind: MsgType) -> str:
    said = {"Alert": "", "Update": "Update: ", "Cancel": "Cancelled: "}[kind]
    drill = "EXERCISE. " if body.exercise else ""
    late = "LATE, from old data. " if body.late else ""
    return f"{drill}{late}{said}{_event_name(body)} at {place_of(body.station)}, {body.severity}"


def _parameters(body: AlertMessage) -> list[tuple[str, str]]:
    found = [
        ("talus:event", body.rate.event if body.rate else body.id),
        ("talus:revision", str(body.revision)),
        ("talus:label", body.label),
    ]
    if body.age_s is not None:
        found.append(("talus:age_s", f"{body.age_s:.3f}"))
    if body.classification is not None and body.rate is None:
        found += [
            ("talus:probability", f"{body.classification.probability:.4f}"),
            ("talus:model", f"{body.classification.model.name} {body.classification.model.sha256}"),
        ]
    if body.rate is not None:
        rate = body.rate
        found += [
            ("talus:rate", f"{counted(rate.events, 'event')} in {rate.window_s:g} s"),
            ("talus:background", f"{counted(rate.background_events, 'event')} in {rate.background_s:g} s"),
            ("talus:chance", f"{rate.chance:.2g}"),
        ]
    return found


def _pair(parent: ET.Element, name: str, key: str, value: str) -> None:
    pair = ET.SubElement(parent, name)
    add(pair, "valueName", key)
    add(pair, "value", value)


def _time(text: str) -> str:
    """CAP's form of a time: whole seconds, and -00:00 for UTC (section 3.3.2)."""
    moment = datetime.fromtimestamp(parse_ns(text) // NS, timezone.utc)
    return moment.strftime("%Y-%m-%dT%H:%M:%S-00:00")


def _later(text: str) -> str:
    moment = datetime.fromtimestamp(parse_ns(text) // NS, timezone.utc) + timedelta(seconds=EXPIRES_S)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
