"""What Talus publishes: topics, and payloads built from the pipeline's values.

Payloads are compact JSON in UTF-8 (availability is plain text); numbers are finite and rounded to what they resolve, so
that an event stays at about a kilobyte on a thin link. The models are in `agent.messages.schema`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from agent.config.broker import DEFAULT_PREFIX
from agent.errors import DataError
from agent.messages.envelope import pack
from agent.messages.schema import (
    MODELS,
    TEXT_LIMIT,
    AlertMessage,
    ClassificationPart,
    ClockPart,
    CoincidencePart,
    ConfigReport,
    DecisionPart,
    DetectionPart,
    EventMessage,
    EvidencePart,
    HealthMessage,
    Label,
    MinMaxMessage,
    ModelPart,
    ModelReport,
    Payload,
    Probabilities,
    QualityPart,
    RatePart,
    Response,
    StateMessage,
    SummaryMessage,
    SwellPart,
    TimingPart,
    VotePart,
)
from agent.types import (
    NS,
    SLOW,
    UNKNOWN_QUALITY,
    Alert,
    BlockQuality,
    Classification,
    Coincidence,
    DecisionReason,
    Detection,
    Event,
    Evidence,
    Quality,
    StationId,
    Swell,
    Vote,
    event_id,
    format_ns,
)

ONLINE, OFFLINE, STOPPED = "online", "offline", "stopped"
"""Availability: connected; lost (the broker says so, from the Last Will); stopped on purpose."""

QUAKEML_TYPES: Mapping[str, str] = {
    "earthquake": "earthquake",
    "blast": "quarry blast",
    "collapse": "collapse",
    "landslide": "landslide",
    "noise": "not existing",
}
"""Label to QuakeML 1.2 event type; the certainty of a machine's verdict is always ``suspected``."""

PACKET_OVERHEAD = 64
"""Most bytes of a PUBLISH packet besides topic, payload and correlation data: headers and MQTT 5 properties."""
_LONG_REASON = 300
"""Characters of a long reason of an alert."""
_ANSWER_EXPIRY_S = 86_400
_HANDED = b'"handed":null'


PIECE_BYTES = 32 * 1024
"""Bytes of a record in one message."""
MAX_EVIDENCE = 4 << 20
"""Largest record that is sent."""


class Priority(IntEnum):
    """Lower goes first, and is dropped last."""

    ALERT = 0
    EVENT = 1
    OTHER = 2


@dataclass(frozen=True, slots=True)
class Message:
    """One publication, QoS 1.

    Messages with the same ``key`` and priority are delivered in the order in which they were put. A ``retain`` message
    is a latest value: a newer one replaces it. ``expendable`` marks what a later message supersedes: it is the first of
    its priority to go when the outbox is full. ``expiry_s`` is the MQTT 5 message expiry, counted from the hand-over.
    ``correlation`` is the MQTT 5 property of an answer, as its request had it. ``journal`` is what the next run of the
    agent must know of it (``agent.detect.resume``); it is not sent.
    """

    topic: str
    payload: bytes
    priority: Priority
    key: str = ""
    retain: bool = False
    expendable: bool = False
    expiry_s: int | None = None
    correlation: bytes | None = None
    journal: bytes | None = None

    @property
    def name(self) -> str:
        """The last level of the topic, such as ``alert``."""
        return self.topic.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class Stamp:
    """The sender and the times of a message.

    ``boot_id`` names this run of the agent (8 to 32 hex digits), ``seq`` counts its messages. ``received_ns`` is when
    the newest sample behind the message came in, ``decided_ns`` when the verdict was reached, both by the agent's own
    UTC clock, whereas an onset is in the time of the data.
    """

    boot_id: str
    seq: int
    received_ns: int
    decided_ns: int


def topic(prefix: str, station: StationId, name: str) -> str:
    """``PREFIX/NET/STA/name``."""
    return f"{prefix}/{station.network}/{station.station}/{name}"


def evidence_topic(event: str) -> str:
    """The end of the topic below which the pieces of an event's record come. An event's id has dots, which NATS does
    not take in a topic; no id has an underscore."""
    return f"evidence/{event.replace('.', '_')}"


def event_message(
    event: Event, stamp: Stamp, prefix: str = DEFAULT_PREFIX, why: DecisionReason | None = None
) -> Message:
    """Build the message of an event's revision; ``why`` there is an alert at it, or none. Only an ``update`` is
    expendable."""
    body = EventMessage(
        id=event.id,
        revision=event.revision,
        phase=event.phase,
        station=str(event.station),
        onset=format_ns(event.onset_ns),
        kind=event.kind,
        detection=_detection(event.detection),
        classification=_classification(event.classification),
        swell=_swell(event.swell),
        reason=None if event.reason is None else event.reason[:TEXT_LIMIT],
        timing=_timing(event, stamp),
        quality=_quality(event.quality),
        quakeml_type=_quakeml_type(event.classification),
        coincidence=_coincidence(event.coincidence),
        evidence=_evidence(event.evidence),
        decision=None if why is None else DecisionPart(code=why.code, reason=why.words[:TEXT_LIMIT]),
        exercise=event.exercise,
        boot_id=stamp.boot_id,
        seq=stamp.seq,
    )
    return Message(
        topic(prefix, event.station, "event"),
        encode(body),
        Priority.EVENT,
        key=event.id,
        expendable=event.phase == "update",
    )


def alert_message(
    alert: Alert,
    stamp: Stamp,
    prefix: str = DEFAULT_PREFIX,
    expiry_s: int | None = 86_400,
    age_s: float | None = None,
) -> Message:
    """Build the message of an alert; it overtakes events, never an earlier alert of the same event.

    A late one wakes nobody: it goes with the events, and ``expires`` counts from the time of its data; the broker keeps
    it as long as any other. ``age_s``: age of the newest sample, None where it is not known.
    """
    event = alert.event
    begin_ns = min(event.data_ns, stamp.decided_ns) if alert.late else stamp.decided_ns
    body = AlertMessage(
        id=alert.id,
        revision=alert.revision,
        action=alert.action,
        severity=alert.severity,
        label=alert.label,
        reason=alert.reason[:TEXT_LIMIT],
        phase=event.phase,
        station=str(event.station),
        onset=format_ns(event.onset_ns),
        kind=event.kind,
        detection=_detection(event.detection),
        classification=_classification(event.classification),
        swell=_swell(event.swell),
        timing=_timing(event, stamp),
        quality=_quality(event.quality),
        quakeml_type=_quakeml_type(event.classification) if alert.about_rate is None else None,
        rate=_rate(alert),
        coincidence=_coincidence(event.coincidence),
        late=alert.late,
        age_s=_round(age_s, 3),
        expires=None if expiry_s is None else format_ns(begin_ns + expiry_s * NS),
        exercise=event.exercise,
        boot_id=stamp.boot_id,
        seq=stamp.seq,
    )
    priority = Priority.EVENT if alert.late else Priority.ALERT
    return Message(topic(prefix, event.station, "alert"), encode(body), priority, key=alert.id, expiry_s=expiry_s)


def largest_alert(prefix: str = DEFAULT_PREFIX, voters: int = 0) -> int:
    """Bytes of the packet of a large alert: long words everywhere, and the votes of ``voters`` stations of the site."""
    station, onset_ns = StationId("NN", "SSSSS", "LL", "HH"), 1_767_225_600_123_456_789
    verdict = Classification(
        "earthquake", 0.1234, (0.1234,) * 5, False, 81.92, "m" * 40, "0" * 64, "onnxruntime", "int8"
    )
    votes = tuple(Vote(station, event_id(station, onset_ns), 10, "update", onset_ns, 0.1234, verdict)
                  for _ in range(voters))  # fmt: skip
    event = Event(
        id=event_id(station, onset_ns),
        revision=10,
        phase="update",
        station=station,
        onset_ns=onset_ns,
        detection=Detection(1234.56, 123.45, 1_234_567.89, 12.345),
        classification=verdict,
        quality=Quality(12.345, "ENZ", BlockQuality(timing_percent=100, clock_locked=False)),
        data_ns=onset_ns,
        coincidence=Coincidence(voters, voters, 123.45, votes, None) if voters else None,
    )
    alert = Alert(event, "escalate", "moderate", "earthquake", "x" * _LONG_REASON)
    message = alert_message(alert, Stamp("0" * 16, 10**6, onset_ns, onset_ns), prefix)
    return len(message.topic) + len(with_handed(message.payload, onset_ns)) + PACKET_OVERHEAD


def summary_message(what: Event | Alert, stamp: Stamp, prefix: str = DEFAULT_PREFIX) -> Message:
    """``last_event`` or ``last_alert``: retained, so only the newest waits in the outbox."""
    alert = what if isinstance(what, Alert) else None
    event = what.event if isinstance(what, Alert) else what
    verdict = event.classification
    nothing = SLOW if event.kind == SLOW else None
    label: str | None = nothing if verdict is None else _classification_label(verdict)
    if alert is not None:
        label, verdict = alert.label, verdict if alert.label == label else None
    body = SummaryMessage(
        kind="event" if alert is None else "alert",
        id=what.id,
        revision=what.revision,
        phase=event.phase,
        station=str(event.station),
        onset=format_ns(event.onset_ns),
        label=label,
        probability=None if verdict is None else _round(verdict.probability, 4),
        abstained=event.kind != SLOW and (event.classification is None or event.classification.abstained),
        action=None if alert is None else alert.action,
        severity=None if alert is None else alert.severity,
        late=alert is not None and alert.late,
        decided=format_ns(stamp.decided_ns),
        exercise=event.exercise,
        boot_id=stamp.boot_id,
        seq=stamp.seq,
    )
    name = "last_event" if alert is None else "last_alert"
    return Message(topic(prefix, event.station, name), encode(body), Priority.OTHER, key=what.id, retain=True)


def report_message(
    body: StateMessage | HealthMessage | ConfigReport | ModelReport, station: StationId, prefix: str = DEFAULT_PREFIX
) -> Message:
    """What runs at the station, how it is, what rules there, how an order stands: for ``publish_retained``."""
    name = next(name for name, model in MODELS.items() if model is type(body))
    return Message(topic(prefix, station, name), encode(body), Priority.OTHER, retain=True)


def envelope_message(
    sensor: StationId,
    component: str,
    start_ns: int,
    extremes: tuple[NDArray[np.float64], NDArray[np.float64]],
    stamp: Stamp,
    *,
    prefix: str = DEFAULT_PREFIX,
    exercise: bool = False,
) -> Message:
    """The smallest and largest sample of each second from ``start_ns`` on, counts, NaN where none came."""
    packed = pack(*extremes)
    body = MinMaxMessage(
        station=str(sensor),
        component=component,
        start=format_ns(start_ns),
        count=packed.count,
        scale=packed.scale,
        data=packed.data,
        exercise=exercise,
        boot_id=stamp.boot_id,
        seq=stamp.seq,
    )
    place = topic(prefix, sensor, "envelope")
    return Message(place, encode(body), Priority.OTHER, key=f"envelope {sensor}", expendable=True)


def evidence_messages(event: str, raw: bytes, agent: StationId, prefix: str = DEFAULT_PREFIX) -> list[Message]:
    """The record of an event in pieces, under the topics of the agent that has it."""
    place = topic(prefix, agent, evidence_topic(event))
    pieces = (raw[start : start + PIECE_BYTES] for start in range(0, len(raw), PIECE_BYTES))
    return [
        Message(f"{place}/{number}", piece, Priority.OTHER, key=f"evidence {event}", expendable=True)
        for number, piece in enumerate(pieces)
    ]


def response_message(
    body: Response, station: StationId, prefix: str = DEFAULT_PREFIX, correlation: bytes | None = None
) -> Message:
    """The answer to a command, to be put into the outbox; nobody waits for it longer than a day."""
    place = topic(prefix, station, "response")
    return Message(
        place, encode(body), Priority.OTHER, key="response", expiry_s=_ANSWER_EXPIRY_S, correlation=correlation
    )


def encode(body: Payload) -> bytes:
    """Compact JSON."""
    return body.model_dump_json().encode()


def with_handed(payload: bytes, handed_ns: int) -> bytes:
    """Fill in ``timing.handed`` where it is open; other payloads are returned as they are.

    A quote inside a JSON string is escaped, so the sought bytes cannot occur in free text.
    """
    return payload.replace(_HANDED, b'"handed":"' + format_ns(handed_ns).encode() + b'"', 1)


def _timing(event: Event, stamp: Stamp) -> TimingPart:
    return TimingPart(
        data=format_ns(event.data_ns),
        received=format_ns(stamp.received_ns),
        decided=format_ns(stamp.decided_ns),
        handed=None,
    )


def _swell(swell: Swell | None) -> SwellPart | None:
    if swell is None:
        return None
    return SwellPart(
        ratio=round(swell.ratio, 2),
        peak_ratio=round(swell.peak_ratio, 2),
        rise_s=swell.rise_s,
        held_s=swell.held_s,
        growth_db_min=round(swell.growth_db_min, 2),
        envelope_db=[round(level, 1) for level in swell.envelope_db],
        centroid_hz=_round(swell.centroid_hz, 2),
        centroid_growth_hz_min=_round(swell.centroid_growth_hz_min, 2),
    )


def _detection(detection: Detection) -> DetectionPart:
    return DetectionPart(
        ratio=_round(detection.ratio, 2),
        duration_s=_round(detection.duration_s, 2) or 0.0,
        peak_counts=_counts(detection.peak_counts),
        dominant_hz=_round(detection.dominant_hz, 3),
        noise_counts=_counts(detection.noise_counts),
    )


def _rate(alert: Alert) -> RatePart | None:
    if alert.about_rate is None:
        return None
    rate = alert.about_rate.rate
    return RatePart(
        event=alert.event.id,
        window_s=round(rate.window_s, 1),
        events=rate.events,
        background_s=round(rate.background_s, 1),
        background_events=rate.background_events,
        ratio=round(rate.ratio, 2),
        chance=float(f"{rate.chance:.2g}"),
    )


def _evidence(kept: Evidence | None) -> EvidencePart | None:
    if kept is None:
        return None
    return EvidencePart(sha256=kept.sha256, bytes=kept.size, start=format_ns(kept.start_ns), end=format_ns(kept.end_ns))


def _coincidence(together: Coincidence | None) -> CoincidencePart | None:
    if together is None:
        return None
    return CoincidencePart(
        required=together.required,
        stations=together.stations,
        window_s=round(together.window_s, 2),
        members=[_vote(vote) for vote in together.votes],
        degraded=None if together.degraded is None else together.degraded[:TEXT_LIMIT],
    )


def _vote(vote: Vote) -> VotePart:
    verdict = vote.classification
    return VotePart(
        station=str(vote.station),
        event=vote.event_id,
        revision=vote.revision,
        phase=vote.phase,
        onset=format_ns(vote.onset_ns),
        weight=round(vote.weight, 4),
        label=None if verdict is None else _classification_label(verdict),
        probability=None if verdict is None else round(verdict.probability, 4),
        abstained=verdict is None or verdict.abstained,
        window_s=None if verdict is None else round(verdict.window_s, 2),
    )


def _classification(verdict: Classification | None) -> ClassificationPart | None:
    if verdict is None:
        return None
    return ClassificationPart(
        label=_classification_label(verdict),
        probability=round(verdict.probability, 4),
        probabilities=_probabilities(verdict.probabilities),
        window_s=round(verdict.window_s, 2),
        abstained=verdict.abstained,
        model=ModelPart(name=verdict.model, sha256=verdict.model_sha256),
        backend=verdict.backend,
        precision=verdict.precision,
    )


def _classification_label(verdict: Classification) -> Label:
    for label in ("earthquake", "blast", "collapse", "landslide", "noise"):
        if verdict.label == label:
            return label
    raise DataError(f"{verdict.label!r} is not a label", "the bundle's labels must be those of agent.types.LABELS")


def _probabilities(values: Sequence[float]) -> Probabilities:
    earthquake, blast, collapse, landslide, noise = (min(1.0, max(0.0, round(value, 4))) for value in values)
    return Probabilities(earthquake=earthquake, blast=blast, collapse=collapse, landslide=landslide, noise=noise)


def _quality(quality: Quality) -> QualityPart:
    return QualityPart(gap_s=round(quality.gap_s, 3), components=quality.components, clock=clock_part(quality.clock))


def clock_part(clock: BlockQuality) -> ClockPart | None:
    """The recorder's word on its time, None where it gave none."""
    if clock == UNKNOWN_QUALITY:
        return None
    return ClockPart(
        timing_percent=clock.timing_percent, locked=clock.clock_locked, questionable=clock.time_questionable
    )


def _quakeml_type(verdict: Classification | None) -> str | None:
    return None if verdict is None or verdict.abstained else QUAKEML_TYPES[verdict.label]


def _round(value: float | None, digits: int) -> float | None:
    return None if value is None or not math.isfinite(value) else round(float(value), digits)


def _counts(value: float | None) -> float | None:
    """To six digits: what a recorder writes in physical units may be as small as 1e-9."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")
