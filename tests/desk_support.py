"""Builders for the tests of the desk: messages as stations send them, checked by the schema."""

from __future__ import annotations

from typing import Any

from agent.messages.schema import AlertMessage, EventMessage
from agent.types import LABELS, NS, format_ns, parse_ns

START_NS = parse_ns("2026-03-01T00:00:00Z")
MODEL = {"name": "talus-student 0.1.0", "sha256": "ab" * 32}
PHASES = ("new", "update", "update", "end")
WINDOWS_S = (3.0, 10.0, 40.0, 81.92)


def event_id(onset_ns: int, sensor: str = "XX.SLP.00.HH") -> str:
    """The identifier of an event."""
    text = format_ns(onset_ns)
    return f"{sensor}-{text[:4]}{text[5:7]}{text[8:13]}{text[14:16]}{text[17:19]}.{text[20:23]}Z"


def verdict(label: str = "landslide", probability: float = 0.9, window_s: float = 3.0, **more: Any) -> dict[str, Any]:
    """A classification; the other labels share what is left."""
    rest = (1 - probability) / (len(LABELS) - 1)
    return {
        "label": label,
        "probability": probability,
        "probabilities": {name: probability if name == label else rest for name in LABELS},
        "window_s": window_s,
        "abstained": False,
        "model": MODEL,
        "backend": "onnxruntime",
        "precision": "int8",
    } | more


def event(revision: int = 0, *, onset_ns: int = START_NS, sensor: str = "XX.SLP.00.HH", **more: Any) -> EventMessage:
    """A revision of an event: 0 is new, 3 the end."""
    time = format_ns(onset_ns)
    body = {
        "schema": "talus/event/1",
        "id": event_id(onset_ns, sensor),
        "revision": revision,
        "phase": PHASES[min(revision, 3)],
        "station": sensor,
        "onset": time,
        "detection": {"ratio": 8.0, "duration_s": 12.0, "peak_counts": 900.0, "dominant_hz": 9.0},
        "classification": verdict(window_s=WINDOWS_S[min(revision, 3)]),
        "reason": None,
        "timing": {"data": time, "received": time, "decided": time, "handed": None},
        "quality": {"gap_s": 0.0, "components": "ENZ", "clock": None},
        "quakeml_type": "landslide",
        "exercise": False,
        "boot_id": "0123456789abcdef",
        "seq": revision,
    }
    return EventMessage.model_validate(body | more)


def slow_event(*, onset_ns: int = START_NS, **more: Any) -> EventMessage:
    """The end of an event of which the network is not asked."""
    told = {"id": f"{event_id(onset_ns)}-slow", "kind": "slow", "classification": None, "quakeml_type": None}
    return event(3, onset_ns=onset_ns, **(told | more))


def alert(revision: int = 0, action: str = "raise", *, onset_ns: int = START_NS, **more: Any) -> AlertMessage:
    """A revision of an alert on an event of XX.SLP.00.HH."""
    known = {field.alias or name for name, field in AlertMessage.model_fields.items()}
    whole = event(revision, onset_ns=onset_ns).model_dump(mode="json", by_alias=True)
    body = {name: value for name, value in whole.items() if name in known}
    body |= {"schema": "talus/alert/1", "action": action, "severity": "severe", "label": "landslide"}
    body |= {"reason": "landslide 0.90 after 3 s", "expires": format_ns(onset_ns + 3600 * NS)}
    return AlertMessage.model_validate(body | more)
