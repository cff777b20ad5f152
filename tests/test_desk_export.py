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
        ("noise", "HHE,HHN,HHZ", "1 readers"),
    ]
    assert len({row["split"] for row in rows}) == 1, "events of one hour are on one side"
    with pytest.raises(UsageError, match="not empty"):
        export(store, records, tmp_path / "out")


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
        "minmagnitude=2", "format=json", "limit=0", "starttime=soon", "eventtype=whale", "nodata=200",
        "orderby=magnitude", "starttime=",
    ],
)  # fmt: skip
def test_what_is_not_supported_is_refused_in_words(served: str, query: str) -> None:
    import httpx

    answer = httpx.get(f"{served}/fdsnws/event/1/query?{query}", timeout=60)
    assert answer.status_code == 400
    assert answer.text.startswith("Error 400: ")


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
