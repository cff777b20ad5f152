"""Records of events as the desk shows them: gaps stay gaps, times are those of the samples, images are images."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from desk_support import START_NS, event

from agent.alert.evidence import encode
from agent.errors import DataError
from agent.types import NS, Segment, StreamId
from desk import evidence
from desk.evidence import Records
from desk.pictures.of_store import picture_of
from desk.record import packed, png, ratio, spectrogram, traces
from desk.store import tables
from desk.store.store import Arrival, Store

RATE = 100.0


def record(sensor: str = "XX.SLP.00.HH", onset_ns: int = START_NS) -> bytes:
    """Three components of 60 s from 20 s before the onset, an 8 Hz wave at the onset, 5 s of Z missing at the end."""
    network, station, location, band = sensor.split(".")
    rng = np.random.default_rng(7)
    data = {}
    for name in "ENZ":
        stream = StreamId.parse(f"FDSN:{network}_{station}_{location}_{band[0]}_{band[1]}_{name}")
        x = rng.normal(0, 20, 6000)
        t = np.arange(1000) / RATE
        x[2000:3000] += 900 * np.sin(2 * np.pi * 8 * t) * np.exp(-t / 3)
        x = (x + 5000).astype(np.int32)
        begin = onset_ns - 20 * NS
        if name == "Z":
            data[stream] = [Segment(begin, RATE, x[:4000]), Segment(begin + 45 * NS, RATE, x[4500:])]
        else:
            data[stream] = [Segment(begin, RATE, x)]
    return encode(data)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "event.mseed"
    found.write_bytes(record())
    return found


def test_traces_share_an_axis_and_a_gap_stays_a_gap(path: Path) -> None:
    z, n, e = traces(path, "XX.SLP.00.HH", START_NS)
    assert [one.name for one in (z, n, e)] == ["Z", "N", "E"]
    assert z.start_s == -20.0
    assert np.isnan(z.samples[4000:4500]).all()
    assert not np.isnan(z.samples[:4000]).any()
    assert abs(float(np.nanmean(n.samples))) < 1e-9
    assert abs(n.times_s[int(np.nanargmax(np.abs(n.samples)))]) < 1.0


def test_the_ratio_rises_at_the_onset_and_the_spectrogram_at_the_waves_frequency(path: Path) -> None:
    z = traces(path, "XX.SLP.00.HH", START_NS)[0]
    found = ratio(z)
    at = z.times_s[int(np.nanargmax(np.nan_to_num(found)))]
    assert 0 < at < 3
    strip = spectrogram(z)
    row, column = np.unravel_index(int(strip.decibels.argmax()), strip.decibels.shape)
    hz = (row + 0.5) * strip.top_hz / strip.decibels.shape[0]
    seconds = strip.start_s + column * (strip.end_s - strip.start_s) / strip.decibels.shape[1]
    assert abs(hz - 8) < 1.5
    assert -2 < seconds < 4


def test_what_a_page_gets_can_be_taken_apart_again(path: Path) -> None:
    found = traces(path, "XX.SLP.00.HH", START_NS)
    raw = packed("id", found, [{"at": 0}], spectrogram(found[0]))
    (length,) = struct.unpack("<I", raw[:4])
    header = json.loads(raw[4 : 4 + length])
    assert (4 + length) % 4 == 0
    counts = [part["n"] for part in header["components"]]
    assert len(raw) == 4 + length + 4 * sum(counts)
    first = np.frombuffer(raw[4 + length :], "<f4", counts[0])
    np.testing.assert_allclose(first, found[0].samples.astype(np.float32), equal_nan=True)


def test_the_spectrogram_is_an_image_that_others_read(path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    strip = spectrogram(traces(path, "XX.SLP.00.HH", START_NS)[0])
    shown = path.with_suffix(".png")
    shown.write_bytes(png(strip))
    with image.open(shown) as found:
        assert found.size == strip.decibels.shape[::-1]
        lowest = np.asarray(found.convert("L"))[-20:]
        assert lowest.max() > 150


def test_a_record_of_another_sensor_is_refused(path: Path) -> None:
    two = path.with_name("two.mseed")
    two.write_bytes(record() + record("XX.TOE.00.HH"))
    assert traces(two, "XX.TOE.00.HH", START_NS)
    with pytest.raises(DataError, match=r"nothing of XX\.NO"):
        traces(two, "XX.NO.00.HH", START_NS)


@pytest.mark.parametrize("uid", ["../../etc/passwd", "XX.SLP/..", "", "x" * 200, "XX.SLP.00.HH-2026\0Z"])
def test_a_name_leads_to_no_file_outside_the_folder(tmp_path: Path, uid: str) -> None:
    with pytest.raises(DataError, match="no event"):
        Records(tmp_path, 10**9).path(uid)


def test_the_oldest_records_go_where_there_is_no_room(tmp_path: Path) -> None:
    records = Records(tmp_path, 250)
    for second in range(4):
        records.keep(event(onset_ns=START_NS + second * NS).id, b"x" * 100)
    assert len(list(tmp_path.glob("*/*.mseed"))) == 2


def test_what_another_desk_writes_into_the_folder_is_counted_within_the_hour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = Records(tmp_path, 250)
    one, two, three = (event(onset_ns=START_NS + second * NS).id for second in range(3))
    records.keep(one, b"x" * 100)
    another = Records(tmp_path, 10**9).keep(two, b"x" * 1000)
    os.utime(another, (1, 1))
    records.keep(one, b"x" * 100)
    assert another.exists(), "the folder is not looked through at every record"
    monkeypatch.setattr(evidence, "LOOK_S", 0.0)
    records.keep(three, b"x" * 100)
    assert not another.exists()
    assert records.path(one).exists()


def test_pictures_that_nobody_will_ask_for_again_go(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    store = Store(f"sqlite:///{tmp_path}/desk.db")
    store.ingest([Arrival("XX.SLP", event(n), START_NS) for n in range(4)])
    records = Records(tmp_path / "evidence", 10**9)
    records.keep(event().id, record())
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "old.webp").write_bytes(b"x")
    os.utime(folder / "old.webp", (1, 1))
    made = picture_of(store, records, folder, event().id)
    assert list(folder.iterdir()) == [made]


def test_the_picture_of_a_notification_is_small_and_drawn_once(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    store = Store(f"sqlite:///{tmp_path}/desk.db")
    store.ingest([Arrival("XX.SLP", event(n), START_NS) for n in range(4)])
    records = Records(tmp_path / "evidence", 10**9)
    uid = event().id
    assert picture_of(store, records, tmp_path / "pictures", uid) is None
    records.keep(uid, record())
    with store.writing() as connection:
        connection.execute(tables.evidence.insert().values(event_id=1, state="here", path="x"))
    found = picture_of(store, records, tmp_path / "pictures", uid)
    assert found is not None
    assert found.stat().st_size < 80_000
    assert found.read_bytes()[8:12] == b"WEBP"
    written = found.stat().st_mtime_ns
    assert picture_of(store, records, tmp_path / "pictures", uid) == found
    assert found.stat().st_mtime_ns == written
