"""Payloads: what is built passes its schema, says what the pipeline said and is small; what is not ours is refused."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import yaml
from broker_support import BOOT, ONSET_NS, STATION, make_event, stamp
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from numpy.typing import NDArray
from pydantic import TypeAdapter
from schema_support import values

from agent.errors import DataError
from agent.health.home_assistant import announcements
from agent.messages.payloads import (
    Message,
    Priority,
    Stamp,
    alert_message,
    envelope_message,
    event_message,
    evidence_topic,
    report_message,
    response_message,
    summary_message,
    with_handed,
)
from agent.messages.schema import (
    MODELS,
    AgreementPart,
    AlertMessage,
    ConfigReport,
    EventId,
    EventMessage,
    HealthMessage,
    LinkHealth,
    ModelPart,
    ModelReport,
    OutboxHealth,
    Outcome,
    Payload,
    PositionPart,
    ReasonPart,
    Response,
    StateMessage,
    StreamHealth,
    SummaryMessage,
    parse,
)
from agent.messages.text import describe
from agent.types import (
    LABELS,
    NS,
    Alert,
    BlockQuality,
    DecisionCode,
    DecisionReason,
    Event,
    Quality,
    StationId,
    event_id,
    format_ns,
)
from demo import pages

DOCS = Path(__file__).parent.parent / "docs"
MOMENT = format_ns(ONSET_NS)


def schema(name: str) -> Draft202012Validator:
    body = json.loads((DOCS / "schemas" / f"{name}.json").read_text())
    Draft202012Validator.check_schema(body)
    return Draft202012Validator(body)


def state() -> StateMessage:
    return StateMessage(
        station="XX.ABC",
        boot_id=BOOT,
        started=MOMENT,
        versions={"talus": "0.1.0", "onnxruntime": "1.20"},
        model=ModelPart(name="student-1", sha256="a" * 64),
        backend="onnxruntime",
        precision="int8",
        backend_reason=None,
        config_revision=3,
        config_sha256="b" * 64,
        position=PositionPart(latitude=30.8, longitude=110.4, elevation_m=None),
        exercise=False,
    )


def health() -> HealthMessage:
    return HealthMessage(
        station="XX.ABC",
        boot_id=BOOT,
        seq=9,
        time=MOMENT,
        uptime_s=60.5,
        status="degraded",
        reasons=[ReasonPart(code="channels_silent", text="no samples from HHZ for 12 s")],
        streams_total=1,
        streams_stalled=0,
        streams=[
            StreamHealth(
                stream="FDSN:XX_ABC_00_H_H_Z", rate_hz=100.0, last_sample=MOMENT, latency_s=0.4, gaps=1, gap_s=2.5,
                clock=None,
            )
        ],
        clock_source="ntp",
        clock_offset_s=-0.002,
        cpu_percent=1.2,
        rss_mb=120.0,
        disk_free_mb=4000.0,
        temperature_c=41.5,
        outbox=OutboxHealth(depth=3, bytes=3000, oldest_s=4.2, dropped=0, set_aside=0, set_aside_total=0),
        link=LinkHealth(connected=True, protocol="5", connects=1, acknowledged=12, unheard=0, error=None),
        events_hour={"landslide": 1},
        discards_hour={"too_short": 4},
        inference_ms=0.6,
        inference_failures=0,
    )  # fmt: skip


def config_report() -> ConfigReport:
    kept = Outcome(
        envelope="c" * 64, revision=7, key="control-room", result="kept", kind=None, reason=None, time=MOMENT
    )
    refused = Outcome(
        envelope="d" * 64, revision=None, key=None, result="refused", kind="signature", reason="altered", time=MOMENT
    )
    return ConfigReport(
        station="XX.ABC",
        boot_id=BOOT,
        seq=10,
        time=MOMENT,
        status="kept",
        revision=7,
        highest=7,
        tunables_sha256="e" * 64,
        trial_left_s=None,
        refusals=1,
        refused=[refused],
        history=[kept],
    )


def model_report() -> ModelReport:
    seen = AgreementPart(windows=20, same=19, failures=0, passed_over=1, difference=0.03, median_ms=0.6)
    return ModelReport(
        station="XX.ABC",
        boot_id=BOOT,
        seq=11,
        time=MOMENT,
        phase="shadow",
        revision=8,
        serving=ModelPart(name="student 1.0", sha256="a" * 64),
        ordered=ModelPart(name="student 1.1", sha256="b" * 64),
        pieces=38,
        got=38,
        missing=[],
        agreement=seen,
        reason=None,
        refused=None,
    )


def an_answer() -> Response:
    return Response(
        station="XX.ABC",
        boot_id=BOOT,
        seq=12,
        time=MOMENT,
        request="f" * 64,
        command="self_test",
        status="done",
        kind=None,
        reason=None,
        result={"model": "student 1.0", "seconds": 0.3, "pieces": 2, "reason": None},
    )


def an_alert(event: Event | None = None) -> Alert:
    return Alert(event or make_event(), "raise", "warning", "landslide", "91 % is above 80 %")


def test_the_summary_of_an_alert_that_is_taken_back_names_what_was_alerted() -> None:
    """The network has changed its mind: not the earthquake that it sees now is taken back."""
    verdict = make_event().classification
    assert verdict is not None
    now = dataclasses.replace(make_event(revision=2), classification=dataclasses.replace(verdict, label="earthquake"))
    back = Alert(now, "retract", "severe", "landslide", "not a landslide any more")
    body = parse(SummaryMessage, summary_message(back, stamp()).payload)
    assert (body.action, body.severity, body.label, body.probability) == ("retract", "severe", "landslide", None)
    assert "last alert  retract severe  XX.ABC" in describe(body)
    assert describe(body).endswith("  landslide")
    stands = parse(SummaryMessage, summary_message(an_alert(), stamp()).payload)
    assert (stands.label, stands.probability) == ("landslide", 0.91)
    failed = dataclasses.replace(now, classification=None, reason="it failed")
    unclassified = Alert(failed, "raise", "severe", "unclassified", "not classified")
    assert parse(SummaryMessage, summary_message(unclassified, stamp()).payload).label == "unclassified"


def every_message() -> dict[str, Message]:
    unclassified = dataclasses.replace(make_event(), classification=None, reason="the network failed")
    return {
        "event": event_message(make_event(), stamp()),
        "event without a verdict": event_message(unclassified, stamp()),
        "event with a clock": event_message(
            dataclasses.replace(make_event(), quality=Quality(1.25, "Z", BlockQuality(98, True, False))), stamp()
        ),
        "alert": alert_message(an_alert(), stamp()),
        "alert without a verdict": alert_message(an_alert(unclassified), stamp()),
        "summary of an event": summary_message(make_event(), stamp()),
        "summary of an event without a verdict": summary_message(unclassified, stamp()),
        "summary of an alert": summary_message(an_alert(), stamp()),
        "state": report_message(state(), STATION),
        "health": report_message(health(), STATION),
        "envelope": envelope_message(STATION, "Z", ONSET_NS // NS * NS, extremes(), stamp()),
        "report of the configuration": report_message(config_report(), STATION),
        "report of the model": report_message(model_report(), STATION),
        "answer to a command": response_message(an_answer(), STATION),
    }


def extremes() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Ten minutes of noise with an event, and a minute without samples."""
    rng = np.random.default_rng(3)
    samples = rng.normal(40.0, 300.0, (600, 100))
    samples[200:230] += rng.normal(0, 40_000.0, (30, 100))
    low, high = np.round(samples.min(axis=1)), np.round(samples.max(axis=1))
    low[300:360] = high[300:360] = np.nan
    return low, high


@pytest.mark.parametrize("name", list(every_message()))
def test_every_message_passes_its_published_schema_and_its_model(name: str) -> None:
    message = every_message()[name]
    for payload in (message.payload, with_handed(message.payload, ONSET_NS)):
        body = json.loads(payload)
        kind = body["schema"].split("/")[1]
        schema(kind).validate(body)
        model = MODELS[message.topic.split("/", 4)[4]]
        assert parse(model, payload).model_dump_json().encode() == payload, "nothing is lost on the way"
        assert body["schema"] == f"talus/{kind}/1"


def test_an_event_says_why_there_is_an_alert_or_none() -> None:
    assert json.loads(event_message(make_event(), stamp()).payload)["decision"] is None
    why = DecisionReason("probability", "landslide 0.65, 0.7 is needed" + "!" * 600)
    said = event_message(make_event(), stamp(), why=why)
    schema("event").validate(json.loads(said.payload))
    decision = parse(EventMessage, said.payload).decision
    assert decision is not None
    assert (decision.code, decision.reason[:30]) == ("probability", "landslide 0.65, 0.7 is needed!")


def test_each_code_of_a_decision_has_a_row_in_the_manual() -> None:
    manual = (DOCS / "mqtt.md").read_text()
    assert [code for code in get_args(DecisionCode) if f"| `{code}` |" not in manual] == []


def test_an_event_says_what_the_pipeline_said() -> None:
    event = make_event(revision=2, phase="update")
    body = json.loads(event_message(event, Stamp(BOOT, 7, ONSET_NS + 1, ONSET_NS + 2)).payload)
    assert body["id"] == event.id == "XX.ABC.00.HH-20231114T221320.123Z"
    assert (body["revision"], body["phase"], body["station"]) == (2, "update", "XX.ABC.00.HH")
    assert body["onset"] == "2023-11-14T22:13:20.123456789Z"
    assert body["detection"] == {
        "ratio": 12.35,
        "duration_s": 3.21,
        "peak_counts": 8123.4,
        "dominant_hz": 7.25,
        "noise_counts": 41.25,
    }
    verdict = body["classification"]
    assert (verdict["label"], verdict["probability"], verdict["window_s"]) == ("landslide", 0.91, 3.0)
    assert tuple(verdict["probabilities"]) == LABELS
    assert sum(verdict["probabilities"].values()) == pytest.approx(1.0, abs=5e-4)
    assert body["timing"]["data"] == format_ns(event.data_ns)
    assert body["timing"]["received"] < body["timing"]["decided"]
    assert (body["quakeml_type"], body["exercise"], body["boot_id"], body["seq"]) == ("landslide", False, BOOT, 7)


def test_topics_priorities_and_flags() -> None:
    messages = every_message()
    assert messages["event"].topic == "talus/v1/XX/ABC/event"
    assert event_message(make_event(), stamp(), "site/a").topic == "site/a/XX/ABC/event"
    assert messages["summary of an event"].topic.endswith("/last_event")
    assert messages["summary of an alert"].topic.endswith("/last_alert")
    assert [name for name, message in messages.items() if message.retain] == [
        name for name in messages if name.startswith(("summary", "state", "health", "report"))
    ]
    assert messages["alert"].priority is Priority.ALERT
    assert messages["alert"].expiry_s == 86_400
    assert [event_message(make_event(phase=phase), stamp()).expendable for phase in ("new", "update", "end")] == [
        False,
        True,
        False,
    ]


def test_a_typical_event_stays_at_about_a_kilobyte() -> None:
    why = DecisionReason("confirm", "landslide 0.91; 1 of the 2 verdicts that must name it")
    assert len(with_handed(event_message(make_event(), stamp(10**9), why=why).payload, ONSET_NS)) < 1150


def test_handed_is_filled_in_once_and_never_in_free_text() -> None:
    """A reason that quotes the sought bytes must come out as it went in."""
    event = dataclasses.replace(make_event(), reason='bad "handed":null "handed":null')
    payload = with_handed(event_message(event, stamp()).payload, ONSET_NS)
    body = parse(EventMessage, payload)
    assert body.reason == event.reason
    assert body.timing.handed == MOMENT
    assert with_handed(payload, ONSET_NS + 1) == payload
    assert with_handed(b"x" * 10, ONSET_NS) == b"x" * 10


def test_samples_in_metres_a_second_have_a_peak_and_a_noise() -> None:
    """A recorder that writes physical units has numbers around 1e-9: rounded to a hundredth, no event had a size, and
    none its severity by amplitude after a restart."""
    event = make_event()
    small = dataclasses.replace(event.detection, peak_counts=6.8e-6, noise_counts=8.91e-8)
    body = event_message(dataclasses.replace(event, detection=small), stamp()).payload
    assert [json.loads(body)["detection"][name] for name in ("peak_counts", "noise_counts")] == [6.8e-6, 8.91e-8]


def test_numbers_that_json_does_not_have_become_null() -> None:
    event = make_event()
    odd = dataclasses.replace(event.detection, ratio=math.inf, peak_counts=math.nan, dominant_hz=None)
    body = parse(EventMessage, event_message(dataclasses.replace(event, detection=odd), stamp()).payload)
    assert (body.detection.ratio, body.detection.peak_counts, body.detection.dominant_hz) == (None, None, None)


def test_a_long_reason_is_cut() -> None:
    event = dataclasses.replace(make_event(), classification=None, reason="x" * 10_000)
    assert parse(EventMessage, event_message(event, stamp()).payload).reason == "x" * 500


def test_quakeml_types_are_those_of_the_standard() -> None:
    """Against the vocabulary that ObsPy ships; an abstention or a failure claims no type."""
    from obspy.core.event.header import EventType

    event = make_event()
    assert event.classification is not None
    for label in LABELS:
        verdict = dataclasses.replace(event.classification, label=label)
        body = parse(EventMessage, event_message(dataclasses.replace(event, classification=verdict), stamp()).payload)
        assert body.quakeml_type in list(EventType)
    undecided = dataclasses.replace(event, classification=dataclasses.replace(event.classification, abstained=True))
    assert parse(EventMessage, event_message(undecided, stamp()).payload).quakeml_type is None


def test_a_label_that_is_not_ours_is_refused_when_built() -> None:
    event = make_event()
    assert event.classification is not None
    odd = dataclasses.replace(event, classification=dataclasses.replace(event.classification, label="avalanche"))
    with pytest.raises(DataError, match="avalanche"):
        event_message(odd, stamp())


ANY = {name.removesuffix(".json"): values(found) for name, found in pages.schemas().items()}


@pytest.mark.parametrize("model", dict.fromkeys(MODELS.values()), ids=lambda model: model.__name__)
@settings(max_examples=8, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
@given(data=st.data())
def test_whatever_the_published_schema_allows_is_read_and_given_back(model: type[Payload], data: st.DataObject) -> None:
    name = pages.schema_name(model)
    body = data.draw(ANY[name])
    schema(name).validate(body)
    given_back = json.loads(parse(model, json.dumps(body).encode()).model_dump_json())
    schema(name).validate(given_back)
    assert holds(given_back, body), "and what was left out has its default"


def holds(whole: Any, part: Any) -> bool:
    """Whether two JSON values are the same but for fields that the first one has in addition."""
    if isinstance(part, dict):
        return all(name in whole and holds(whole[name], value) for name, value in part.items())
    if isinstance(part, list):
        return len(whole) == len(part) and all(map(holds, whole, part))
    return bool(whole == part)


HOSTILE = [
    b"",
    b"null",
    b"[]",
    b"{}",
    b"\xff\xfe\x00",
    b"[" * 200_000,
    b'{"a":' * 50_000,
    b'{"revision":' + b"9" * 200_000 + b"}",
    b'{"detection":{"ratio":1e999}}',
    b'{"detection":{"ratio":NaN}}',
    b'{"id":"\\ud800"}',
    b'"' + b"x" * 200_000,
]


@pytest.mark.parametrize("payload", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_payloads_are_refused_with_a_short_reason(payload: bytes) -> None:
    for model in (EventMessage, AlertMessage, SummaryMessage, StateMessage, HealthMessage):
        with pytest.raises(DataError) as caught:
            parse(model, payload)
        assert len(caught.value.message) <= 400


def test_two_sensors_of_a_station_name_their_events_apart() -> None:
    """A geophone and an accelerometer in one box see an onset in the same millisecond; one's record must not take the
    place of the other's. A site, which is no sensor, leaves the sensor out."""
    sensors = StationId("XX", "ABC", "00", "EH"), StationId("XX", "ABC", "00", "EN"), StationId("XX", "ABC", "", "EN")
    names = [event_id(sensor, 1_700_000_000 * NS) for sensor in sensors]
    assert len(set(names)) == 3 and names[0] == "XX.ABC.00.EH-20231114T221320.000Z"
    site = event_id(StationId("XX", "SITE", "", ""), 1_700_000_000 * NS)
    assert site == "XX.SITE-20231114T221320.000Z"
    allowed = TypeAdapter(EventId)
    assert [allowed.validate_python(name) for name in (*names, site)] == [*names, site]


CHANGES: list[tuple[str, Any]] = [
    ("schema", "talus/event/2"),
    ("id", "XX.ABC.00.HH-20231114T221320.123Z\n"),
    ("id", "../../etc/passwd"),
    ("id", "XX.ABC.00.HH-٢٠٢٣١١١٤T221320.123Z"),
    ("revision", -1),
    ("revision", True),
    ("revision", 1.5),
    ("revision", "1"),
    ("phase", "begin"),
    ("station", "XX"),
    ("station", "XX.ABC.00."),
    ("onset", "2023-11-14"),
    ("classification", {"label": "landslide"}),
    ("seq", 2**60),
    ("boot_id", "x"),
    ("exercise", 0),
    ("extra", 1),
    ("reason", "x" * 501),
]


@pytest.mark.parametrize(("field", "value"), CHANGES, ids=range(len(CHANGES)))
def test_a_changed_field_is_refused_by_the_model_and_by_the_schema(field: str, value: Any) -> None:
    body = json.loads(event_message(make_event(), stamp()).payload)
    body[field] = value
    with pytest.raises(DataError):
        parse(EventMessage, json.dumps(body).encode())
    if field == "id" and value.endswith("\n"):
        return  # "$" of Python's regular expressions, which jsonschema uses, also matches before a last newline
    assert not schema("event").is_valid(body)


@given(st.binary(max_size=300))
def test_no_bytes_crash_the_parser(payload: bytes) -> None:
    with pytest.raises(DataError):
        parse(EventMessage, payload)


def test_the_generated_documents_are_up_to_date() -> None:
    """Run ``python -m demo.pages docs`` after a change of a model."""
    for name, text in pages.files().items():
        assert (DOCS / name).read_text() == text, f"docs/{name} is stale"
    assert {path.name for path in (DOCS / "schemas").iterdir()} == {f"{name}" for name in pages.schemas()}


def test_the_asyncapi_document_refers_to_what_exists() -> None:
    document = yaml.safe_load((DOCS / "asyncapi.yaml").read_text())
    published = {message.topic.split("/", 4)[4].replace("/", "_") for message in every_message().values()}
    orders = {"config_set", "model_set", "model_chunk", "command"}
    assert document["channels"].keys() == published | orders | {"availability", "evidence"}
    references = find_references(document)
    assert references
    for reference in references:
        if reference.startswith("#/"):
            node = document
            for part in reference[2:].split("/"):
                node = node[part]
        else:
            assert (DOCS / reference).is_file(), reference


def test_no_topic_has_a_character_that_a_broker_may_refuse() -> None:
    """NATS takes neither dots nor blanks; `+`, `#` and `$` mean something to every broker."""
    event = make_event()
    topics = [message.topic for message in every_message().values()]
    topics += [f"talus/v1/XX/ABC/{evidence_topic(event.id)}/0"]
    topics += [message.topic for message in announcements(STATION, "Upper terrace, 2.", "talus/v1", "homeassistant")]
    assert not [name for name in topics if not re.fullmatch(r"[A-Za-z0-9_/-]+", name)]
    other = evidence_topic(event_id(StationId("XX", "AB", "C-", "HH"), event.onset_ns))
    assert other != evidence_topic(event_id(StationId("XX", "AB-C", "", "HH"), event.onset_ns))


def test_the_example_in_the_documentation_is_a_valid_event() -> None:
    text = (DOCS / "mqtt.md").read_text()
    example = text.split("```json\n")[1].split("```")[0].encode()
    event = parse(EventMessage, example)
    schema("event").validate(json.loads(example))
    assert event.timing.data < event.timing.received < event.timing.decided < str(event.timing.handed)
    for name in [*MODELS, "availability"]:
        assert f"`{name}`" in text


def find_references(node: Any) -> list[str]:
    if isinstance(node, dict):
        return [ref for key, value in node.items() for ref in ([value] if key == "$ref" else find_references(value))]
    return [ref for value in node for ref in find_references(value)] if isinstance(node, list) else []
