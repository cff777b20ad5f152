"""What leaves the desk: training data that quantize and teaching read, and events for seismologists' own tools."""

from __future__ import annotations

import csv
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import uvicorn
from desk_support import START_NS, event, slow_event, verdict
from quantize_support import ONSET_S, START
from starlette.testclient import TestClient
from teach_support import write_site
from test_desk_record import record

from agent.cli import main
from agent.dsp.window import Preparation
from agent.errors import DataError, UsageError
from agent.messages.schema import StateMessage
from agent.types import NS, format_ns, parse_ns
from desk.evidence import Records
from desk.export import export
from desk.record import traces
from desk.service import listen
from desk.store import answers
from desk.store.store import Arrival, Store
from desk.web.application import application
from desk.web.live import Live

ANN, BEN = answers.Person("ann"), answers.Person("ben")


@pytest.fixture
def desk(tmp_path: Path) -> tuple[Store, Records]:
    store, records = Store(f"sqlite:///{tmp_path}/desk.db"), Records(tmp_path / "evidence", 10**9)
    store.ingest([Arrival("XX.SLP", event(3, onset_ns=START_NS + n * NS), START_NS) for n in range(6)])
    for n in range(5):
        records.keep(event(onset_ns=START_NS + n * NS).id, record())
    return store, records


def answered(store: Store, who: answers.Person, n: int, label: str | None, *, sure: bool = True) -> None:
    answers.answer(store, who, [event(onset_ns=START_NS + n * NS).id], answers.Answer(label, sure), START_NS)


def test_only_undisputed_answers_with_a_record_become_training_data(
    desk: tuple[Store, Records], tmp_path: Path
) -> None:
    store, records = desk
    answered(store, ANN, 0, "blast")
    answered(store, BEN, 0, "blast")
    answered(store, ANN, 1, "noise")
    answered(store, BEN, 1, "landslide")
    answered(store, ANN, 2, "earthquake", sure=False)
    answered(store, ANN, 3, "noise")
    answered(store, BEN, 3, "landslide")
    answered(store, BEN, 3, None)
    answered(store, ANN, 5, "landslide")
    done = export(store, records, tmp_path / "out")
    assert (done.written, done.disputed, done.unsure, done.without_record) == (2, 1, 1, 1)
    with (tmp_path / "out" / "metadata.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["source_type"], row["trace_channels"], row["notes"]) for row in rows] == [
        ("blast", "HHE,HHN,HHZ", "2 readers"),
        ("noise", "HHE,HHN,HHZ", "1 reader"),
    ]
    assert len({row["split"] for row in rows}) == 1, "events of one hour are on one side"
    with pytest.raises(UsageError, match="not empty"):
        export(store, records, tmp_path / "out")


def test_the_command_counts_one_event_as_one(
    desk: tuple[Store, Records], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drill_ns = START_NS + 3600 * NS
    desk[0].ingest([Arrival("XX.SLP", event(3, onset_ns=drill_ns, exercise=True), START_NS)])
    answered(desk[0], ANN, 0, "blast")
    answers.answer(desk[0], ANN, [event(onset_ns=drill_ns).id], answers.Answer("blast", True), START_NS)
    config = tmp_path / "desk.yaml"
    config.write_text(f"mqtt: {{host: 127.0.0.1}}\nstate_dir: {tmp_path}\n")
    assert main(["desk", "--config", str(config), "--export", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert ": 1 event; left out: 0 without a record, 0 disputed, 0 unsure, 1 exercise" in said


def test_training_reads_what_the_desk_exports(desk: tuple[Store, Records], tmp_path: Path) -> None:
    data = pytest.importorskip("quantize.data.records")
    store, records = desk
    answered(store, ANN, 0, "landslide")
    export(store, records, tmp_path / "out")
    (found,) = data.read_table(tmp_path / "out")
    assert found.label == "landslide"


def test_teaching_takes_what_the_desk_exports_and_leaves_out_what_cannot_be_taught(tmp_path: Path) -> None:
    site = pytest.importorskip("quantize.teach.site")
    store, records = Store(f"sqlite:///{tmp_path}/desk.db"), Records(tmp_path / "evidence", 10**9)
    folder = write_site(tmp_path / "site", 2)
    with (folder / "metadata.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate([*rows, {**rows[0], "source_type": "collapse"}]):
        onset_ns = parse_ns(str(START + 600 * (number % len(rows)) + ONSET_S)) + number // len(rows) * NS
        body = event(3, onset_ns=onset_ns, sensor="XX.AAA..HH", classification=verdict("noise", 0.5))
        store.ingest([Arrival("XX.AAA", body, START_NS)])
        records.keep(body.id, (folder / row["trace_name"]).read_bytes())
        answers.answer(store, ANN, [body.id], answers.Answer(row["source_type"]), START_NS)
    assert export(store, records, tmp_path / "out").written == len(rows) + 1
    taught = site.together(site.read_site(folder), site.read_site(tmp_path / "out", reviewed=True))
    ours = [one for one in taught if one.event.startswith("XX.AAA")]
    assert sorted(one.label for one in ours) == sorted(row["source_type"] for row in rows)
    windows = site.site_windows(ours, Preparation())
    assert set(windows.record.tolist()) == set(range(len(rows))), "every record gives windows at its onset"
    with pytest.raises(DataError, match="cannot be taught"):
        site.read_site(tmp_path / "out")


def test_seisbench_finds_waveforms_and_onsets_where_it_looks_for_them(
    desk: tuple[Store, Records], tmp_path: Path
) -> None:
    h5py = pytest.importorskip("h5py")
    store, records = desk
    for n, label in enumerate(("landslide", "blast", "noise")):
        answered(store, ANN, n, label)
    done = export(store, records, tmp_path / "out", seisbench=True)
    assert done.written == 3
    with (tmp_path / "out" / "metadata.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["split"] for row in rows} <= {"train", "dev"}
    with h5py.File(tmp_path / "out" / "waveforms.hdf5") as file:
        assert file["data_format/component_order"][()] == b"ZNE"
        for n, row in enumerate(rows):
            samples = file["data"][row["trace_name"]][()]
            shown = traces(records.path(row["source_id"]), "XX.SLP.00.HH", START_NS + n * NS)
            assert samples.shape == (3, int(row["trace_npts"]))
            onset = int(row["trace_onset_sample"])
            start_ns = parse_ns(row["trace_start_time"])
            rate = float(row["trace_sampling_rate_hz"])
            assert abs(start_ns + onset / rate * NS - (START_NS + n * NS)) <= NS / rate
            assert np.allclose(samples[0][: len(shown[0].samples)], np.nan_to_num(shown[0].samples), rtol=1e-5)
    seisbench = pytest.importorskip("seisbench.data", reason="SeisBench is not installed (it needs torch)")
    data = seisbench.WaveformDataset(tmp_path / "out")
    waveform, metadata = data.get_sample(0)
    assert waveform.shape[0] == 3
    assert metadata["source_type"] == "landslide"


@pytest.fixture
def served(desk: tuple[Store, Records]) -> Iterator[str]:
    """The address of a desk that answers programs."""
    store, _ = desk
    store.ingest([Arrival("XX.SLP", event(3, onset_ns=START_NS + 60 * NS, classification=verdict("noise")), START_NS)])
    state = StateMessage.model_validate(
        {
            "station": "XX.SLP", "boot_id": "0123456789abcdef", "started": format_ns(START_NS), "versions": {},
            "model": None, "backend": None, "precision": None, "backend_reason": None, "config_revision": None,
            "config_sha256": None, "exercise": False,
            "position": {"latitude": 46.5, "longitude": 8.25, "elevation_m": 1900.0},
        }
    )  # fmt: skip
    store.ingest([Arrival("XX.SLP", state, START_NS)])
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(application(store, Live(store), fdsnws=True), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(60)


def test_obspys_client_finds_the_events_with_type_and_the_stations_position(served: str) -> None:
    fdsn = pytest.importorskip("obspy.clients.fdsn")
    from obspy import UTCDateTime

    client = fdsn.Client(served)
    found = client.get_events(starttime=UTCDateTime("2026-02-28"), endtime=UTCDateTime("2026-03-02"))
    assert len(found) == 6
    assert {one.event_type for one in found} == {"landslide"}
    origin = found[0].preferred_origin()
    assert (origin.latitude, origin.longitude, origin.epicenter_fixed) == (46.5, 8.25, True)
    assert "not a location" in origin.comments[0].text
    assert len(client.get_events(starttime=UTCDateTime("2026-02-28"), limit=2)) == 2
    assert len(client.get_events(endtime=UTCDateTime("2599-01-01"))) == 6
    assert len(client.get_events(eventtype="landslide,collapse", limit=3)) == 3
    with pytest.raises(fdsn.header.FDSNException):
        client.get_events(eventtype="collapse")
    with pytest.raises(fdsn.header.FDSNException):
        client.get_events(starttime=UTCDateTime("2026-03-03"))
    with pytest.raises(fdsn.header.FDSNException):
        client.get_events(catalog="other")


@pytest.mark.parametrize(
    "query",
    [
        "minmagnitude=big", "format=json", "limit=0", "offset=0", "minlatitude=91", "maxradius=-1", "maxdepth=nan",
        "minlatitude=47&maxlatitude=46", "minradius=3&maxradius=2", "longitude=east", "whale=1",
        "updatedafter=2026-01-01",
        "starttime=soon", "eventtype=whale", "nodata=200",
        "orderby=magnitude", "starttime=",
    ],
)  # fmt: skip
def test_what_is_not_supported_is_refused_in_words(served: str, query: str) -> None:
    import httpx

    answer = httpx.get(f"{served}/fdsnws/event/1/query?{query}", timeout=60)
    assert answer.status_code == 400
    assert answer.text.startswith("Error 400: ")


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("minlatitude=46.5&maxlatitude=46.5&minlon=8&maxlon=9", 6), ("minlat=46.6", 0), ("maxlongitude=8.2", 0),
        ("minlongitude=170&maxlongitude=8.3", 6), ("minlongitude=9&maxlongitude=-170", 0),
        ("latitude=46.5&longitude=8&maxradius=0.2", 6), ("latitude=46.5&longitude=8&maxradius=0.1", 0),
        ("latitude=46.5&longitude=8&minradius=0.2", 0), ("maxradius=47.2&minradius=47.0", 6),
        ("mindepth=0", 0), ("maxdepth=700", 0), ("minmagnitude=-9", 0), ("maxmag=9", 0), ("magnitudetype=ML", 0),
        ("limit=2&orderby=time-asc", 2), ("offset=5", 2), ("offset=7", 0), ("limit=4&offset=2", 4),
    ],
)  # fmt: skip
def test_limits_of_place_are_those_of_the_station_and_what_no_event_has_leaves_none(
    served: str, query: str, found: int
) -> None:
    import httpx

    answer = httpx.get(f"{served}/fdsnws/event/1/query?{query}&format=text", timeout=60)
    assert answer.status_code == (200 if found else 204), answer.text
    lines = answer.text.splitlines()[1:]
    assert len(lines) == found
    if "time-asc" in query:
        assert lines[0].split("|")[1] == format_ns(START_NS)[:26], "the oldest of all, not of the newest two"


def test_an_event_of_a_station_without_a_position_is_in_no_region_and_too_many_are_no_half_answer(
    desk: tuple[Store, Records], monkeypatch: pytest.MonkeyPatch
) -> None:
    with TestClient(application(desk[0], Live(desk[0]), fdsnws=True)) as client:
        query = "/fdsnws/event/1/query?format=text"
        assert len(client.get(query).text.splitlines()) == 7
        uid = event().id
        assert client.get(f"{query}&eventid={uid}").status_code == 200
        assert client.get(f"{query}&eventid={uid}&minlatitude=-90").status_code == 204
        assert client.get(f"{query}&minlatitude=-90").status_code == 204
        monkeypatch.setattr("desk.web.fdsn.MOST", 2)
        late = "&starttime=2026-03-01T00:00:04"
        for more, status in (("", 413), ("&limit=2", 200), ("&orderby=time-asc", 413), (late, 200)):
            answer = client.get(query + more)
            assert answer.status_code == status, more
            assert status == 200 or "more than" in answer.text


def test_a_drill_that_is_asked_for_by_name_says_so_and_a_clients_words_stay_inside_the_description(
    desk: tuple[Store, Records],
) -> None:
    drill = event(3, onset_ns=START_NS + 90 * NS, exercise=True)
    slow = slow_event(onset_ns=START_NS + 120 * NS)
    desk[0].ingest([Arrival("XX.SLP", drill, START_NS), Arrival("XX.SLP", slow, START_NS)])
    with TestClient(application(desk[0], Live(desk[0]), fdsnws=True)) as client:
        found = client.get("/fdsnws/event/1/query?eventtype=other event&format=text").text.splitlines()
        assert [line.split("|")[0::13] for line in found[1:]] == [[slow.id, "other event"]]
        for form in ("xml", "text"):
            said = client.get(f"/fdsnws/event/1/query?eventid={drill.id}&format={form}").text
            assert "EXERCISE" in said, form
        host = {"host": 'x"><evil a="'}
        description = client.get("/fdsnws/event/1/application.wadl", headers=host).text
    assert ElementTree.fromstring(description).find(".//evil") is None  # noqa: S314 - our own
