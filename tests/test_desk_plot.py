"""``talus plot``: pictures that others can read, in the colours of the pages; what is wrong is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from broker_support import stamp
from desk_support import START_NS, event, verdict
from numpy.typing import NDArray
from records_support import trace, write
from test_desk_record import record
from test_messages import extremes

from agent.cli import main
from agent.config.station import ClassifierConfig, TriggerConfig
from agent.messages.payloads import envelope_message
from agent.messages.schema import MinMaxMessage, parse
from agent.service.assemble import open_classifier
from agent.types import NS, StationId
from desk.evidence import Records
from desk.pictures.of_file import pictures_of
from desk.pictures.sheet import Cell
from desk.pictures.sheet import draw as draw_sheet
from desk.pictures.style import COLOURS
from desk.record import Trace
from desk.store.store import Arrival, Store

HOUR = 3600 * NS


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A desk's folder: two events with a record, one without, an hour of envelope with a minute missing."""
    folder = tmp_path_factory.mktemp("state")
    store, records = Store(f"sqlite:///{folder}/desk.db"), Records(folder / "evidence", 10**9)
    onsets = [START_NS + n * HOUR for n in range(3)]
    labels = ("landslide", "blast", "earthquake")
    bodies = [
        event(n, onset_ns=onset, classification=verdict(label, 0.95, window_s=3.0 + 10 * n))
        for onset, label in zip(onsets, labels, strict=True)
        for n in (0, 1, 3)
    ]
    for n in range(6):
        payload = envelope_message(
            StationId("XX", "SLP", "00", "HH"), "Z", START_NS + n * 600 * NS, extremes(), stamp()
        )
        bodies.append(parse(MinMaxMessage, payload.payload))  # type: ignore[arg-type]
    store.ingest([Arrival("XX.SLP", body, START_NS) for body in bodies])
    for onset in onsets[:2]:
        records.keep(event(onset_ns=onset).id, record(onset_ns=onset))
    store.close()
    return folder


def pixels(path: Path) -> NDArray[np.uint8]:
    """The picture as [rows, columns, 3]."""
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def has(shown: NDArray[np.uint8], label: str, least: int = 20) -> bool:
    """Whether the colour of a class is in a picture."""
    colour = [int(COLOURS[label][place : place + 2], 16) for place in (1, 3, 5)]
    return int((np.abs(shown.astype(int) - colour).max(axis=2) < 24).sum()) >= least


def drawn(capsys: pytest.CaptureFixture[str], *arguments: object) -> None:
    status = main(["plot", *map(str, arguments)])
    assert status == 0, capsys.readouterr().err


def test_an_event_of_the_desk_as_a_small_picture_and_a_large_one(
    state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {}
    for name, more in (("large.png", ()), ("small.webp", ("--small",))):
        drawn(capsys, "event", event().id, "--state", state, "-o", tmp_path / name, *more)
        shown = pixels(tmp_path / name)
        sizes[name] = shown.shape
        assert has(shown, "landslide")
        assert not has(shown, "blast")
        assert shown.min() < 60
    assert sizes["large.png"][1] == 900 and sizes["small.webp"][1] == 640
    assert (tmp_path / "small.webp").stat().st_size < 80_000


def test_a_file_is_drawn_with_what_the_network_says_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "event.mseed"
    path.write_bytes(record())
    drawn(capsys, "event", path, "--onset", "2026-03-01T00:00:00", "-o", tmp_path / "event.png")
    said = capsys.readouterr().out.split()
    assert said[:2] == [str(tmp_path / "event.png"), "XX.SLP.00.HH"]
    assert has(pixels(tmp_path / "event.png"), said[2])


def test_a_day_file_a_component_is_one_picture_around_the_onset(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Protects who has an SDS archive: the event is in the picture, and all components of it."""
    rng, paths = np.random.default_rng(3), []
    for component in "ENZ":
        samples = rng.normal(0, 20, 200_000)
        samples[150_000:151_000] += 900 * np.sin(np.arange(1000) / 2) * np.exp(-np.arange(1000) / 300)
        paths.append(
            write(tmp_path / f"{component}.mseed", trace(samples.astype(np.int32), f"HH{component}", START_NS))
        )
    (one,) = pictures_of(paths, open_classifier(ClassifierConfig(backends=("constant:blast",)))[0])
    traces = one.picture.axes[:3]
    assert [place.get_ylabel()[0] for place in traces] == ["Z", "N", "E"]
    for place in traces:
        assert place.get_xlim() == pytest.approx((-60, 180), abs=0.2)
        assert np.abs(np.asarray(place.lines[0].get_ydata())).max() > 600
    drawn(capsys, "event", *paths, "-o", tmp_path / "event.png")
    assert capsys.readouterr().out.split()[1] == "XX.SLP.00.HH"


def test_classify_draws_each_station_of_a_file_and_goes_on_after_a_bad_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = tmp_path / "good.mseed", tmp_path / "bad.mseed"
    good.write_bytes(record() + record("XX.TOE.00.HH"))
    bad.write_bytes(b"no seismogram")
    assert main(["classify", str(bad), str(good), "--json", "--png", str(tmp_path / "png")]) == 1
    assert [line.count("error") for line in capsys.readouterr().out.splitlines()] == [1, 0, 0]
    assert sorted(path.name for path in (tmp_path / "png").iterdir()) == [
        "good-XX.SLP.00.HH.png", "good-XX.TOE.00.HH.png",
    ]  # fmt: skip
    assert pixels(tmp_path / "png" / "good-XX.SLP.00.HH.png").shape[1] == 900
    (tmp_path / "file").write_text("")
    assert main(["classify", str(good), "--png", str(tmp_path / "file" / "x")]) == 2
    assert "name a folder" in capsys.readouterr().err


def test_a_day_is_white_where_nothing_was_recorded(
    state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn(capsys, "day", "XX.SLP", "2026-03-01", "--state", state, "-o", tmp_path / "day.png")
    shown = pixels(tmp_path / "day.png")
    assert all(has(shown, label) for label in ("landslide", "blast", "earthquake"))
    inked = (shown.max(axis=2) < 90)[:, 100:-20]
    middle = inked.sum(axis=1)
    first = int(np.argmax(middle > 200))
    assert first > 0, "the first hour is drawn"
    assert middle[first + 80 : first + 500].max() < 40, "the hours behind it are white"
    line = inked[first - 3 : first + 4].any(axis=0)
    assert (~line).sum() > 5 * round(0.8 * len(line) * 60 / 3600), "six gaps of a minute"


def test_a_sheet_shows_every_event_and_says_which_has_no_record(
    state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn(capsys, "sheet", "--state", state, "-o", tmp_path / "sheet.png")
    assert "3 events" in capsys.readouterr().out
    shown = pixels(tmp_path / "sheet.png")
    assert all(has(shown, label) for label in ("landslide", "blast", "earthquake"))
    drawn(capsys, "sheet", "--state", state, "--class", "blast", "-o", tmp_path / "blast.svg")
    assert b"<svg" in (tmp_path / "blast.svg").read_bytes()[:1000]


def test_a_drift_hides_no_event_of_a_sheet_and_words_stand_below_it() -> None:
    times = np.arange(-1500, 4000) / 100.0
    drifting = 1e6 * times + 100 * np.sin(2 * np.pi * 5 * times) * ((times > 0) & (times < 8))
    place = draw_sheet([Cell("", "blast", 8.0, Trace("Z", 100.0, -15.0, drifting))], "").axes[0]
    shown = np.asarray(place.lines[0].get_ydata(), dtype=float)
    assert 80 < np.abs(shown).max() < 200
    assert place.get_ylim()[0] < 1.4 * shown.min()


def test_a_sheet_is_in_the_band_of_its_trigger_also_where_the_record_has_few_samples() -> None:
    times = np.arange(-1500, 4000) / 100.0
    trace = Trace("Z", 100.0, -15.0, 100 * np.sin(2 * np.pi * 5 * times))
    largest = {}
    for low_hz, high_hz in ((1.0, 20.0), (10.0, 30.0)):
        place = draw_sheet([Cell("", "blast", 8.0, trace)], "", TriggerConfig(low_hz=low_hz, high_hz=high_hz)).axes[0]
        largest[low_hz] = np.abs(np.asarray(place.lines[0].get_ydata(), dtype=float)).max()
    assert largest[1.0] > 80
    assert largest[10.0] < 20


def test_a_rate_of_the_desk_and_of_a_catalogue_with_its_ledger(
    state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    span = ("--from", "2026-03-01", "--to", "2026-03-02")
    drawn(capsys, "rate", "--state", state, *span, "-o", tmp_path / "rate.png")
    assert "3 events" in capsys.readouterr().out
    assert all(has(pixels(tmp_path / "rate.png"), label) for label in ("landslide", "blast", "earthquake"))
    catalogue = tmp_path / "catalogue.csv"
    rows = [f"2026-03-01T{hour:02d}:10:00Z,landslide" for hour in (1, 1, 2, 20)]
    catalogue.write_text("\n".join(["trace_onset_time,source_type", *rows]) + "\n")
    drawn(capsys, "rate", catalogue, "-o", tmp_path / "bare.png")
    assert "4 events" in capsys.readouterr().out
    shares = " ".join("1" if hour < 6 else "0" for hour in range(24))
    (tmp_path / "ledger.csv").write_text(f"day,armed_by_hour\n2026-03-01,{shares}\n")
    drawn(capsys, "rate", catalogue, "-o", tmp_path / "shaded.png")
    (tmp_path / "ledger.csv").write_text(f"day,armed_by_hour\n2026-03-01,{shares}\n2026-03-01,\n")
    drawn(capsys, "rate", catalogue, "-o", tmp_path / "one-of-two.png")
    all_day = " ".join(24 * "1")
    (tmp_path / "ledger.csv").write_text(f"day,armed_by_hour\n2026-02-28,{all_day}\n2026-03-01,{shares}\n")
    drawn(capsys, "rate", catalogue, "-o", tmp_path / "quiet-day.png")
    (tmp_path / "ledger.csv").write_text(f"day,armed_by_hour\n2026-03-01,{' '.join(24 * '0')}\n")
    drawn(capsys, "rate", catalogue, "-o", tmp_path / "deaf.png")
    dots = [has(pixels(tmp_path / name)[460:, 60:], "landslide", 5) for name in ("bare.png", "deaf.png")]
    assert dots == [True, False], "no rate of hours that were not heard"
    grey = [
        int((pixels(tmp_path / name) == [0xD8, 0xDE, 0xE4]).all(axis=2).sum())
        for name in ("bare.png", "shaded.png", "one-of-two.png", "quiet-day.png")
    ]
    assert grey[3] < 0.7 * grey[1], "a day without an event that was heard"
    assert grey[2] > 1.2 * grey[1], "hours that one of two sensors did not hear"
    catalogue.write_text("trace_onset_time,source_type\n2016-03-01T01:10:00Z,landslide\n2026-03-01T01:10:00Z,slow\n")
    drawn(capsys, "rate", catalogue, "-o", tmp_path / "years.png")
    assert "0.0 h heard in 3652 days: --station, or --from and --to" in capsys.readouterr().err
    assert all(has(pixels(tmp_path / "years.png")[40:220, 60:], label, 60) for label in ("landslide", "slow")), "bars"
    assert grey[0] == 0
    assert grey[1] > 20_000, "hours that were not heard are grey"


def test_what_cannot_be_drawn_is_named(state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    (tmp_path / "good.csv").write_text(
        "trace_onset_time,source_type,station_network_code,station_code\n2026-03-01T00:00:00Z,blast,XX,SLP\n"
    )
    out = ("-o", tmp_path / "x.png")
    cases = (
        (("event", event().id, "--state", state, "-o", tmp_path / "x.bmp"), 2, "no format"),
        (("event", "XX.NO.00.HH-20260301T000000.000Z", "--state", state, *out), 1, "neither a file nor an event"),
        (("event", "../../no/such/record", "--state", state, *out), 1, "neither a file nor an event"),
        (("event", event().id, "--state", tmp_path / "none", *out), 1, "does not exist"),
        (("day", "XX.TOE", "2026-03-01", "--state", state, *out), 1, "knows no station XX.TOE"),
        (("day", "XX.SLP", "2026-13-01", "--state", state, *out), 1, "2026-13-01"),
        (("sheet", "--class", "whale", "--state", state, *out), 2, "whale"),
        (("rate", tmp_path / "bad.csv", *out), 1, "lacks the columns source_type, trace_onset_time"),
        (("rate", tmp_path / "none", *out), 1, "cannot be read: No such file or directory\n  hint"),
        (("rate", tmp_path / "good.csv", "--station", "XX.NOPE", *out), 1, "it has: XX.SLP"),
        (("rate", "--hours", "0", "--state", state, *out), 2, "--hours 0"),
    )
    for arguments, status, words in cases:
        assert main(["plot", *map(str, arguments)]) == status, arguments
        assert words in capsys.readouterr().err, arguments
