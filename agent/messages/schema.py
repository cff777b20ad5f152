"""The payloads: one strict, closed model each, and how a received one is checked.

An unknown field, a wrong type or an impossible value is refused. A change of the fields changes the number in
``schema``. JSON Schemas and ``docs/asyncapi.yaml`` are generated from here
(``python -m demo.pages docs``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agent.errors import DataError
from agent.types import AlertAction, DecisionCode, EventKind, EventPhase

TEXT_LIMIT = 500
"""Characters of a free text."""
NAME_LIMIT = 80
"""Characters of a name."""
MOST_REFUSED = 16
"""Refused topics in a health message."""

Time = Annotated[
    str,
    Field(
        pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{9}Z$",
        description="ISO 8601, UTC, nanoseconds",
    ),
]
EVENT_ID = (
    r"^[A-Z0-9-]{1,8}\.[A-Z0-9-]{1,8}(\.[A-Z0-9-]{0,8}\.[A-Z0-9-]{1,16})?"
    r"-[0-9]{8}T[0-9]{6}\.[0-9]{3}Z(-slow)?$"
)
EventId = Annotated[
    str,
    Field(
        pattern=EVENT_ID,
        description="the sensor, or the site, and the onset, with -slow for a slow event; the same for the event's "
        "whole life and in every replay",
    ),
]
Station = Annotated[
    str,
    Field(
        pattern=r"^[A-Z0-9-]{1,8}\.[A-Z0-9-]{1,8}\.[A-Z0-9-]{0,8}\.[A-Z0-9-]{1,16}$",
        description="network, station, location, FDSN band and source code",
    ),
]
StationName = Annotated[
    str,
    Field(
        pattern=r"^[A-Z0-9-]{1,8}\.[A-Z0-9-]{1,8}(\.[A-Z0-9-]{0,8}\.[A-Z0-9-]{1,16})?$",
        description="network and station; for a single sensor also location, FDSN band and source code",
    ),
]
AlertId = Annotated[
    str,
    Field(
        pattern=(
            r"^[A-Z0-9-]{1,8}\.[A-Z0-9-]{1,8}(\.[A-Z0-9-]{0,8}\.[A-Z0-9-]{1,16})?"
            r"-[0-9]{8}T[0-9]{6}\.[0-9]{3}Z(-slow)?(-rate-[a-z]{1,16})?$"
        ),
        description="the event's id; with -rate-LABEL for an alert on the rate of events, after the one that tipped it",
    ),
]
BootId = Annotated[str, Field(pattern=r"^[0-9a-f]{8,32}$", description="one run of the agent")]
Seq = Annotated[int, Field(ge=0, le=2**53, description="counts the messages of one run of the agent")]
Revision = Annotated[int, Field(ge=0, le=1_000_000, description="of the event; a higher one replaces a lower one")]
Name = Annotated[str, Field(max_length=NAME_LIMIT)]
Word = Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,32}$")]
Text = Annotated[str, Field(max_length=TEXT_LIMIT)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Label = Literal["earthquake", "blast", "collapse", "landslide", "noise"]
Number = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
Amount = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=2**53)]


class Payload(BaseModel):
    """Closed and strict: no unknown fields, no conversions."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, populate_by_name=True, serialize_by_alias=True)


class DetectionPart(Payload):
    """What the trigger saw; null where it has no finite value."""

    ratio: Amount | None = Field(description="peak STA/LTA ratio so far")
    duration_s: Amount
    peak_counts: Amount | None = Field(description="peak of the band-passed signal, largest component")
    dominant_hz: Amount | None
    noise_counts: Amount | None = Field(
        default=None, description="the sensor's own noise before the onset: mean absolute amplitude in the same band"
    )


class SwellPart(Payload):
    """What makes an event slow. Powers are those of the trigger's band, over the background of the last hours."""

    ratio: Amount = Field(description="median power of the last minute")
    peak_ratio: Amount = Field(description="power of the loudest ten seconds")
    rise_s: Amount = Field(description="from the begin to the loudest ten seconds")
    held_s: Amount = Field(description="within 6 dB of the loudest ten seconds")
    growth_db_min: Number = Field(description="slope of the level up to the loudest ten seconds, dB a minute")
    envelope_db: list[Number] = Field(max_length=30, description="mean level of each minute, the newest last")
    centroid_hz: Amount | None = Field(description="of the last minute's spectrum")
    centroid_growth_hz_min: Number | None = Field(description="its change a minute")


class Probabilities(Payload):
    """Calibrated, one for each label."""

    earthquake: Share
    blast: Share
    collapse: Share
    landslide: Share
    noise: Share


class ModelPart(Payload):
    """The network that spoke."""

    name: Name
    sha256: Sha256


class ClassificationPart(Payload):
    """The network's verdict on ``window_s`` seconds after the onset. ``abstained``: do not act on the label."""

    label: Label
    probability: Share
    probabilities: Probabilities
    window_s: Amount
    abstained: bool
    model: ModelPart
    backend: Name
    precision: Name


class TimingPart(Payload):
    """The way of the message. ``data`` is in the time of the samples, the others are the agent's clock."""

    data: Time = Field(description="time of the newest sample behind this message")
    received: Time = Field(description="when that sample came in")
    decided: Time
    handed: Time | None = Field(description="when this message was first given to a broker's connection")


class ClockPart(Payload):
    """What the recorder said about its own time; null where it said nothing."""

    timing_percent: Annotated[int, Field(ge=0, le=100)] | None
    locked: bool | None
    questionable: bool


class QualityPart(Payload):
    """How far the data can be trusted: seconds missing (worst component), components present, the clock."""

    gap_s: Amount
    components: Annotated[str, Field(pattern=r"^[A-Z0-9]{0,8}$")]
    clock: ClockPart | None


class VotePart(Payload):
    """One station's part in an event of its site: its newest verdict, null where the network failed."""

    station: Station
    event: EventId = Field(description="the station's own event")
    revision: Revision
    phase: EventPhase
    onset: Time
    weight: Amount
    label: Label | None
    probability: Share | None
    abstained: bool
    window_s: Amount | None


class CoincidencePart(Payload):
    """How several stations stood together: ``required`` of ``stations`` had to have an event within ``window_s``. With
    ``degraded``, which says why, one station was believed alone."""

    required: Count
    stations: Count
    window_s: Amount
    members: list[VotePart] = Field(max_length=64, description="stations that had the event, by onset")
    degraded: Text | None


class EvidencePart(Payload):
    """Recorded data of the event that can be had: a miniSEED file."""

    sha256: Sha256
    bytes: Count
    start: Time
    end: Time


class DecisionPart(Payload):
    """Why a revision of an event led to an alert or to none: ``code`` for programs, ``reason`` in words."""

    code: DecisionCode
    reason: Text


class EventMessage(Payload):
    """One revision of one event: new, update or end. Without a classification, ``reason`` says why.

    ``slow`` events swell over minutes: they have a ``swell``, and the network is not asked of them."""

    schema_: Literal["talus/event/1"] = Field(default="talus/event/1", alias="schema")
    id: EventId
    revision: Revision
    phase: EventPhase
    station: StationName
    onset: Time
    kind: EventKind = "trigger"
    detection: DetectionPart = Field(
        description="of a slow event, ratio is the last minute's power over the background's"
    )
    classification: ClassificationPart | None
    swell: SwellPart | None = Field(default=None, description="of a slow event")
    reason: Text | None
    timing: TimingPart
    quality: QualityPart
    evidence: EvidencePart | None = None
    coincidence: CoincidencePart | None = Field(
        default=None, description="of an event of the site: classification is then what the members' were fused into"
    )
    decision: DecisionPart | None = Field(default=None, description="why there is an alert at this revision, or none")
    quakeml_type: str | None = Field(max_length=40, description="QuakeML 1.2 event type, certainty suspected")
    exercise: bool
    boot_id: BootId
    seq: Seq


class RatePart(Payload):
    """Why an alert is about a rate of events: ``events`` of the alert's label in the last ``window_s`` seconds of data,
    against ``background_events`` in ``background_s``. ``chance``: how likely so many are at the background's rate."""

    event: EventId = Field(description="the event after which this was decided; detection and classification are its")
    window_s: Amount
    events: Count
    background_s: Amount
    background_events: Count
    ratio: Amount
    chance: Share


class AlertMessage(Payload):
    """A decision to wake someone (``raise``, ``escalate``) or to take that back (``retract``), complete in itself.

    Without ``rate`` it is about one event; with it, about the rate of events, and its revisions count on their own."""

    schema_: Literal["talus/alert/1"] = Field(default="talus/alert/1", alias="schema")
    id: AlertId
    revision: Revision
    action: AlertAction
    severity: Word
    label: Word
    reason: Text
    phase: EventPhase
    station: StationName
    onset: Time
    kind: EventKind = "trigger"
    detection: DetectionPart
    classification: ClassificationPart | None
    swell: SwellPart | None = Field(default=None, description="of a slow event")
    timing: TimingPart
    quality: QualityPart
    quakeml_type: str | None = Field(max_length=40, description="QuakeML 1.2 event type, certainty suspected")
    rate: RatePart | None = None
    coincidence: CoincidencePart | None = Field(
        default=None, description="for a station that belongs to a site with coincidence, and for the site itself"
    )
    late: bool = Field(
        default=False,
        description="it rests on data older than policy.max_age_s: wake nobody for it. Of a retraction: the alert did",
    )
    age_s: Number | None = Field(
        default=None, description="age of the newest sample behind it when it was decided; null: not known, or a replay"
    )
    expires: Time | None = Field(
        default=None, description="after this the alert is of no use to anyone; of a late one counted from its data"
    )
    exercise: bool
    boot_id: BootId
    seq: Seq


class SummaryMessage(Payload):
    """The latest event or alert of a station, retained for those who come later.

    Of an alert ``label`` is the alert's own, also when it is taken back because the network has changed its mind;
    ``probability`` is then null, as it would be that of another label."""

    schema_: Literal["talus/summary/1"] = Field(default="talus/summary/1", alias="schema")
    kind: Literal["event", "alert"]
    id: AlertId
    revision: Revision
    phase: EventPhase
    station: StationName
    onset: Time
    label: Word | None = Field(description="of the alert; of an event the verdict's, null where the network failed")
    probability: Share | None = Field(description="that the newest verdict gives to this label")
    abstained: bool
    action: AlertAction | None
    severity: Word | None
    late: bool = Field(default=False, description="of an alert: it rests on old data, wake nobody for it")
    decided: Time
    exercise: bool
    boot_id: BootId
    seq: Seq


class PositionPart(Payload):
    """WGS 84 degrees, metres above sea level."""

    latitude: Annotated[float, Field(ge=-90, le=90)]
    longitude: Annotated[float, Field(ge=-180, le=180)]
    elevation_m: Number | None = None


class StationPart(Payload):
    """A station whose data this agent works on, and under whose topics its events and alerts go out."""

    station: Annotated[str, Field(pattern=r"^[A-Z0-9-]{1,8}\.[A-Z0-9-]{1,8}$", description="network and station")]
    name: Annotated[str, Field(max_length=100)] | None
    position: PositionPart | None


class StateMessage(Payload):
    """What runs at the station and why; retained."""

    schema_: Literal["talus/state/1"] = Field(default="talus/state/1", alias="schema")
    station: StationName
    boot_id: BootId
    started: Time
    versions: dict[Name, Name] = Field(max_length=32, description="software and its version")
    model: ModelPart | None
    backend: Name | None
    precision: Name | None
    backend_reason: Text | None = Field(description="why this backend and not another")
    config_revision: Count | None
    config_sha256: Sha256 | None
    position: PositionPart | None
    stations: list[StationPart] = Field(
        default=[], max_length=256, description="other stations of this agent, as far as its file names them"
    )
    exercise: bool


class StreamHealth(Payload):
    """One channel."""

    stream: Name = Field(description="FDSN source identifier")
    rate_hz: Amount | None
    last_sample: Time | None
    latency_s: Number | None = Field(description="age of the newest sample when it came in")
    stalled: bool = Field(default=False, description="nothing has come for longer than it should")
    gaps: Count
    gap_s: Amount
    overlaps: Count = Field(default=0, description="packets of which the beginning was known already")
    duplicates: Count = Field(default=0, description="packets of which everything was known already")
    late: Count = Field(default=0, description="packets that came after younger ones and are lost")
    invalid_samples: Count = Field(default=0, description="not a number, infinite or absurdly large")
    restarts: Count = Field(default=0, description="changes of rate, and clocks set back")
    clock: ClockPart | None


class StageHealth(Payload):
    """One thread of the agent. ``idle_s``: since it last did something; ``waiting``: what it has yet to take."""

    name: Word
    alive: bool
    idle_s: Amount | None
    waiting: Count | None


class RateHealth(Payload):
    """Events of one label at one sensor, up to its newest sample, in the time of the data."""

    station: StationName
    label: Word
    per_hour: Amount = Field(description="events of the last hour")
    per_day: Amount = Field(description="events of the last 24 hours, or of as many as the agent has run")
    inverse_rate_h: Amount | None = Field(description="1 / per_hour: hours per event (Fukuzono, Voight); null for none")


class RsamHealth(Payload):
    """Mean absolute amplitude of the band-passed vertical, counts."""

    station: Station
    minute: Time = Field(description="begin of the newest complete minute")
    counts: Amount = Field(description="in that minute")
    coverage: Share = Field(description="share of that minute that was recorded")
    hour_counts: Amount = Field(description="in the hour up to it")


class AlertCount(Payload):
    """How many alerts about a label did one thing."""

    action: AlertAction
    label: Word
    count: Count


class HearingHealth(Payload):
    """What a sensor can hear. The reference event is a wavelet of 6 Hz (or the centre of the trigger's band), 2 s long
    (or longer, with `min_duration_s`); its amplitude is that at its peak, on every component."""

    station: Station
    listening_in_s: Amount | None = Field(description="until its averages are warm; null from then on")
    armed_10min: Share | None = Field(
        description="share of the last ten minutes in which its detector could trigger, counted from when it began to "
        "listen; null before that"
    )
    armed_hour: Share | None = Field(description="the same of the last hour")
    threshold_counts: Amount | None = Field(
        description="smallest reference event that would have triggered, median of the last ten minutes; null where "
        "nothing would have"
    )
    usual_counts: Amount | None = Field(description="the same, median of the last day")
    usual_hours: Amount = Field(description="how much of the last day is known")
    plausible: bool = Field(description="whether the samples look as a working sensor's do")


class OutboxHealth(Payload):
    """What waits for the broker, and what was given up."""

    depth: Count
    bytes: Count
    oldest_s: Amount
    dropped: Count = Field(description="dropped because the outbox was full, since it was made")
    lost: Count = Field(default=0, description="events and alerts among `dropped`")
    set_aside: Count = Field(description="refused for good by the broker and kept: `talus outbox` lists them")
    set_aside_total: Count = Field(description="so many were ever set aside, since the outbox was made")
    held: Count = Field(default=0, description="in memory because the disk refuses them or is slow")


class RefusedTopic(Payload):
    """A topic that the broker refuses now."""

    topic: Annotated[str, Field(max_length=300)]
    reason: Text
    count: Count = Field(description="messages in a row")


class LinkHealth(Payload):
    """The connection to the broker."""

    connected: bool
    protocol: Name | None
    connects: Count
    acknowledged: Count
    unheard: Count = Field(description="acknowledged, but the broker knew of no subscriber (MQTT 5)")
    unheard_alerts: Count = Field(default=0, description="alerts among `unheard` that are no exercise")
    packet_limit: Count | None = Field(default=None, description="largest packet that the broker takes, bytes (MQTT 5)")
    refused: list[RefusedTopic] = Field(default=[], max_length=MOST_REFUSED, description="topics refused now")
    error: Text | None


class ReasonPart(Payload):
    """Why a station is degraded."""

    code: Word = Field(description="for programs: stays the same when the words change (docs/operations.md lists all)")
    text: Text
    about: Name | None = Field(default=None, description="the one sensor, channel, topic or file that it is about")


class HealthMessage(Payload):
    """Periodic, retained. Null where the machine does not tell."""

    schema_: Literal["talus/health/1"] = Field(default="talus/health/1", alias="schema")
    station: StationName
    boot_id: BootId
    seq: Seq
    time: Time
    uptime_s: Amount
    status: Literal["ok", "starting", "degraded"]
    reasons: list[ReasonPart] = Field(max_length=20, description="why it is degraded, empty when it is ok")
    streams: list[StreamHealth] = Field(
        max_length=1024, description="all, or to the broker the 64 that are worst, those first that send nothing"
    )
    streams_total: Count = Field(description="channels, also those that `streams` leaves out")
    streams_stalled: Count = Field(description="of all channels")
    clock_source: Name | None
    clock_offset_s: Number | None
    cpu_percent: Amount | None
    rss_mb: Amount | None
    disk_free_mb: Amount | None
    temperature_c: Number | None = Field(description="the hottest zone")
    memory_free_mb: Amount | None = Field(default=None, description="of the machine, without swapping")
    memory_total_mb: Amount | None = None
    temperatures_c: dict[Name, Number] = Field(default={}, max_length=16, description="thermal zones")
    power_w: dict[Name, Amount] = Field(default={}, max_length=16, description="supply rails of a Jetson")
    stages: list[StageHealth] = Field(default=[], max_length=8)
    source: dict[Name, Count] = Field(
        default={}, max_length=64, description="the source's own counters, since the start"
    )
    rates: list[RateHealth] = Field(default=[], max_length=64)
    rsam: list[RsamHealth] = Field(default=[], max_length=64)
    hearing: list[HearingHealth] = Field(
        default=[], max_length=64, description="what each sensor can hear; those that hear least first"
    )
    outbox: OutboxHealth | None
    link: LinkHealth | None
    events_hour: dict[Word, Count] = Field(
        max_length=32,
        description="events of the last hour by label (or `undecided`, `unclassified`, `slow`), also those not ended",
    )
    events_open: Count = Field(default=0, description="events that have not ended")
    events_total: dict[Word, Count] = Field(default={}, max_length=32, description="the same since the start")
    alerts_total: list[AlertCount] = Field(default=[], max_length=64, description="alerts since the start")
    discards_total: dict[Word, Count] = Field(default={}, max_length=32, description="discards since the start")
    discards_hour: dict[Word, Count] = Field(
        max_length=32, description="discarded triggers of the last hour: too_short, too_many_open"
    )
    inference_ms: Amount | None = Field(description="median time that the network took for a verdict")
    backend_activity: Text | None = Field(default=None, description="how far a better backend than the present one is")
    inference_failures: Count


class MinMaxMessage(Payload):
    """The smallest and largest sample of each second of one component, for drum plots. ``data``: base64 of zlib of
    2 x ``count`` unsigned 32-bit numbers in four planes, lowest bytes first: zigzag differences of the minima, then
    maximum - minimum + 1, or 0 for a second without samples; in steps of ``scale`` counts. A block that comes twice
    with different content is one that a restart divided: both count."""

    schema_: Literal["talus/minmax/1"] = Field(default="talus/minmax/1", alias="schema")
    station: Station
    component: Annotated[str, Field(pattern=r"^[A-Z0-9]$")]
    start: Time = Field(description="of the first second; a full second, in the time of the data")
    count: Annotated[int, Field(ge=1, le=3600, description="seconds")]
    scale: Annotated[float, Field(gt=0, le=1e18, allow_inf_nan=False, description="counts of one step")]
    data: Annotated[str, Field(max_length=49_152, pattern=r"^[A-Za-z0-9+/]*={0,2}$")]
    exercise: bool
    boot_id: BootId
    seq: Seq


class Outcome(Payload):
    """What became of one signed order: on trial, kept, rolled back, or refused, and why."""

    envelope: Sha256 = Field(description="SHA-256 of the message as it came")
    revision: Count | None = Field(description="null where the signature was not that of a trusted key")
    key: Name | None = Field(description="the station's name for the key that signed it")
    result: Literal["trial", "kept", "rolled_back", "refused"]
    kind: Word | None = Field(description="why, in one word for programs")
    reason: Text | None
    time: Time


class ConfigReport(Payload):
    """Which tunables rule at the station, and what became of the orders to change them; retained."""

    schema_: Literal["talus/config/1"] = Field(default="talus/config/1", alias="schema")
    station: StationName
    boot_id: BootId
    seq: Seq
    time: Time
    status: Literal["file", "trial", "kept"] = Field(description="file: no remote configuration is active")
    revision: Count | None = Field(description="of the envelope that rules")
    highest: Count = Field(description="highest revision that was ever accepted; the next one must be above it")
    tunables_sha256: Sha256
    trial_left_s: Amount | None = Field(description="after this the trial is kept if all is well")
    refusals: Count = Field(description="since the agent started")
    refused: list[Outcome] = Field(max_length=5, description="the last of them, newest last")
    history: list[Outcome] = Field(max_length=20, description="what was accepted, newest last")


class AgreementPart(Payload):
    """How a candidate answered beside the live model."""

    windows: Count
    same: Count = Field(description="with the same label, or withheld by both")
    failures: Count
    passed_over: Count
    difference: Share = Field(description="mean over windows of the largest difference in any probability")
    median_ms: Amount | None


class ModelReport(Payload):
    """How an order to change the model stands; retained."""

    schema_: Literal["talus/model/1"] = Field(default="talus/model/1", alias="schema")
    station: StationName
    boot_id: BootId
    seq: Seq
    time: Time
    phase: Literal["installed", "fetching", "trying", "shadow", "ready", "probation", "kept", "refused", "rolled_back"]
    revision: Count
    serving: ModelPart
    ordered: ModelPart | None
    pieces: Count
    got: Count
    missing: list[Count] = Field(max_length=32, description="pieces that the station waits for, on model/chunk")
    agreement: AgreementPart | None
    reason: Text | None
    refused: Outcome | None = Field(description="the last order that was not even begun")


class Response(Payload):
    """The answer to a command."""

    schema_: Literal["talus/response/1"] = Field(default="talus/response/1", alias="schema")
    station: StationName
    boot_id: BootId
    seq: Seq
    time: Time
    request: Sha256 = Field(description="SHA-256 of the command's message as it came")
    command: Word | None
    status: Literal["done", "refused", "failed"]
    kind: Word | None
    reason: Text | None
    result: dict[Word, str | int | float | bool | None] = Field(max_length=32)


class EnvelopeMessage(Payload):
    """A signed order. ``body`` and ``signature`` are base64; the signature (Ed25519) is over the text
    ``talus/envelope/1``, a zero byte and the bytes of the body."""

    schema_: Literal["talus/envelope/1"] = Field(default="talus/envelope/1", alias="schema")
    key: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$", description="begin of the SHA-256 of the public key")]
    body: Annotated[str, Field(max_length=65_536)]
    signature: Annotated[str, Field(max_length=88)]


MODELS: Mapping[str, type[Payload]] = {
    "event": EventMessage,
    "alert": AlertMessage,
    "last_event": SummaryMessage,
    "last_alert": SummaryMessage,
    "state": StateMessage,
    "health": HealthMessage,
    "envelope": MinMaxMessage,
    "config/reported": ConfigReport,
    "config/set": EnvelopeMessage,
    "model/reported": ModelReport,
    "model/set": EnvelopeMessage,
    "command": EnvelopeMessage,
    "response": Response,
}
"""End of the topic to the model of its payload (availability is plain text)."""

_P = TypeVar("_P", bound=Payload)


def parse(model: type[_P], payload: bytes) -> _P:
    """Read and check a payload, whoever wrote it.

    Raises:
        DataError: not JSON, or not what the model allows; names the first fields that are wrong.
    """
    try:
        return model.model_validate_json(payload)
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(str(part)[:40] for part in item['loc']) or 'payload'}: {item['msg']}"
            for item in error.errors(include_url=False, include_input=False, include_context=False)[:3]
        )
        raise DataError(
            f"{error.error_count()} faults: {wrong}"[:400], "see docs/schemas for what is allowed"
        ) from None
