"""``talus scan``: the catalogue is that of one unbroken pass, whatever the cuts, the engine and the interruptions."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from agent_support import ROOT, TALUS
from broker_support import own_port, wait_for
from hypothesis import given, settings
from hypothesis import strategies as st
from records_support import trace, write
from scan_support import (
    DAY,
    NO_SLOW,
    RATE_HZ,
    TRIGGER,
    cut_at,
    ground,
    judged,
    rows_of,
    settings_of,
    unbroken,
    units_of,
    write_archive,
)
from test_desk_plot import pixels

from agent.cli import main
from agent.config.station import ClassifierConfig, SlowTriggerConfig, TriggerConfig
from agent.errors import DataError
from agent.inference import Classifier
from agent.types import NS, SampleBlock, StreamId, parse_ns
from desk.scan.catalogue import heard, merge, read, read_ledger
from desk.scan.folder import Folder
from desk.scan.index import look
from desk.scan.judge import Settings, Task, judge
from desk.scan.packets import arranged
from desk.scan.units import DAY_NS, after_ns, before_ns

HOLES = [
    ("*", 0.0, 86_400 - 3600.0),
    ("*", 86_400 + 2700.0, 2 * 86_400 - 2700.0),
    ("*", 86_400 - 250.0, 86_400 + 3.5),
    ("E", 86_400 - 600.0, 86_400 - 300.0),
    ("N", 86_400 + 400.0, 86_400 + 412.0),
    ("Z", 2 * 86_400 - 8.0, 2 * 86_400 + 8.0),
]


WANTED = {"LH02", "NUUG", "KLT3"}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An hour or so around two midnights, with gaps there."""
    return write_archive(tmp_path_factory.mktemp("sds"), ground(2.03), HOLES)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three hours around a midnight, at two stations."""
    root = tmp_path_factory.mktemp("small")
    for number, station in enumerate(("SLP", "TOP")):
        data = ground(1.0625, seed=5 + number)
        write_archive(root, data, [("*", 0.0, 86_400 - 5400.0)], station)
    return root


@pytest.mark.parametrize(("lost", "sizes"), [(0, {12_000}), (200, {100})])
def test_a_file_that_is_read_in_pieces_gives_whole_packets(lost: int, sizes: set[int]) -> None:
    """Protects the speed: packets of two minutes go on over the end of a piece of a file; with a hole they are of a
    second."""
    first, counts = parse_ns("2026-03-01T00:00:00Z"), np.arange(12_000, dtype=np.int32)
    streams = [StreamId.parse(f"XX.SLP..HH{name}") for name in "ENZ"]
    blocks = [
        SampleBlock(stream, first + at * NS // 100, 100.0, counts[at:end], stamps=((0, first + at * NS // 100),))
        for begin, end in ((0, 7000), (7000, 12_000))
        for stream in streams
        for at in [begin + lost * (begin > 0 and stream.component == "N")]
    ]
    found = list(arranged(blocks))
    assert {len(block.samples) for block in found} == sizes
    for stream in streams:
        own = [block for block in found if block.stream == stream]
        samples = np.concatenate([block.samples for block in own])
        expected = np.delete(counts, np.s_[7000 : 7000 + lost]) if stream.component == "N" else counts
        assert np.array_equal(samples, expected)
        stamps = [time_ns for block in own for _, time_ns in block.stamps or ()]
        assert stamps == [b.start_ns for b in blocks if b.stream == stream]


@pytest.fixture(scope="module")
def reference(small: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Digest of the catalogue of ``small``, judged in one process."""
    out = tmp_path_factory.mktemp("reference") / "scan"
    assert scan(small, out, "--jobs", 1) == 0
    return digest(out)


def scan(*arguments: object) -> int:
    archive, out, *rest = arguments
    return main(["scan", *map(str, (archive, "--out", out, *rest))])


def digest(out: Path) -> str:
    """Of catalogue and ledger."""
    files = [out / "catalogue.csv", out / "ledger.csv"]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def results(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted((out / "units").rglob("*.json"))}


# -- one unbroken pass


def test_days_give_the_events_of_one_unbroken_pass(archive: Path, classifier: Classifier) -> None:
    """Protects the claim itself: identifiers, labels, probabilities and measures, with gaps at midnight."""
    found = judged(units_of([archive]), settings_of())
    assert len(found) == 3
    whole = unbroken([archive], classifier)
    assert rows_of(found) == whole
    assert len(whole) > 15
    middle = [abs((parse_ns(str(row[1])) - DAY) % DAY_NS - DAY_NS // 2) for row in whole.values()]
    assert sum(off > DAY_NS // 2 - 60 * NS for off in middle) >= 3  # there was something at midnight to get wrong


def test_slow_events_are_those_of_one_unbroken_pass(tmp_path: Path, classifier: Classifier) -> None:
    """Protects what swells over midnight, and just after it: the background is that of the hours before the day."""
    slow = SlowTriggerConfig(background_s=1800, max_duration_s=300)
    trigger = TRIGGER.model_copy(update={"slow": slow, "lta_s": 5.0, "max_duration_s": 10.0})
    data = ground(1.02, every_s=1e9)[:, 77_400 * RATE_HZ :]
    for begin in (79_800, 81_500, 85_000, 86_340, 87_200):
        at = (begin - 77_400) * RATE_HZ
        data[:, at : at + 200 * RATE_HZ] *= 1 + 4 * np.hanning(200 * RATE_HZ)
    padded = np.concatenate([np.zeros((3, 77_400 * RATE_HZ)), data], axis=1)
    path = write_archive(tmp_path, padded, [("*", 0.0, 77_400.0)])
    found = judged(units_of([path], trigger), settings_of(trigger))
    whole = unbroken([path], classifier, trigger)
    assert rows_of(found) == whole
    assert [len([row for row in one.events if row[2] == "slow"]) for one in found] == [4, 1]
    assert [one.ledger.classes["slow"] for one in found] == [4, 1]


@settings(max_examples=3)
@given(seed=st.integers(0, 1_000_000))
def test_no_cut_changes_an_event(archive: Path, seed: int) -> None:
    """Protects the run-up: a unit may begin anywhere, also in an event or a gap."""
    rng = random.Random(seed)
    units = units_of([archive])[:2]
    whole = rows_of(judged(units, settings_of()))
    onsets = [parse_ns(str(row[1])) for row in whole.values()]
    cuts = [rng.choice(onsets) + rng.randrange(-2 * NS, 8 * NS) for _ in range(2)]
    cuts.append(rng.randrange(DAY + DAY_NS - 3600 * NS, DAY + DAY_NS + 2700 * NS))
    assert rows_of(judged(cut_at(units, cuts), settings_of())) == whole


@pytest.mark.slow
@pytest.mark.parametrize("stream", ["rocknet_2020_088_13", "nuugaatsiaq_20170617", "merapi_2001_312"])
def test_real_streams_cut_at_random(data_dir: Path, stream: str) -> None:
    """Protects the claim on real ground, one stream of 663 pieces."""
    trigger, rng = TriggerConfig(slow=NO_SLOW), random.Random(stream)
    paths = [data_dir / "streams" / stream]
    index = look(paths)
    units = index.units(before_ns(trigger), after_ns(trigger), wanted=lambda one: one.station in WANTED)
    quick = Settings.of(trigger, ClassifierConfig(backends=("constant:noise",)))
    whole = rows_of(judged(units, quick))
    spans = [(extent.first_ns, extent.end_ns) for found in index.holds.values() for extent in found]
    cuts = [rng.randrange(min(spans)[0], max(end for _, end in spans)) for _ in range(3)]
    assert len(whole) >= 10
    assert rows_of(judged(cut_at(units, cuts), quick)) == whole


# -- one result a unit


def test_a_result_depends_on_content_and_settings_alone(small: Path, tmp_path: Path) -> None:
    """Protects resuming: not on names of folders, times of change, or what lies beyond the unit's span."""
    unit = units_of([small])[0]
    first = judge(Task(unit, settings_of()))
    copy = shutil.copytree(small, tmp_path / "elsewhere")
    for path in copy.rglob("*.*"):
        os.utime(path, (1, 1))
    again = judge(Task(units_of([copy])[0], settings_of()))
    assert (again.key, again.content) == (first.key, first.content)
    other = judge(Task(unit, settings_of(TRIGGER.model_copy(update={"on": 5.0}))))
    assert other.key != first.key
    path = sorted(copy.rglob("*HHZ*060"))[0]
    raw = bytearray(path.read_bytes())
    raw[-100] ^= 1
    path.write_bytes(raw)
    changed = judge(Task(units_of([copy])[0], settings_of()))
    assert changed.key != first.key


def test_growing_files_do_not_undo_the_day_before(small: Path, tmp_path: Path) -> None:
    """Protects archives that are written to: what comes after the unit's span is not in its hash."""
    copy = shutil.copytree(small, tmp_path / "live")
    key = judge(Task(units_of([copy])[0], settings_of())).key
    for path in copy.rglob("*.D.2026.061"):
        path.write_bytes(path.read_bytes()[: -4 * 512])
    assert judge(Task(units_of([copy])[0], settings_of())).key == key


def test_only_what_a_changed_file_touches_is_judged_again(small: Path, tmp_path: Path) -> None:
    """Protects the time of whoever adds a day, or changes a setting."""
    copy, out = shutil.copytree(small, tmp_path / "sds"), tmp_path / "scan"
    assert scan(copy, out, "--jobs", 1) == 0
    before = {path: path.stat().st_mtime_ns for path in (out / "units").rglob("*.json")}
    assert len(before) == 4
    assert scan(copy, out, "--jobs", 1) == 0
    assert {path: path.stat().st_mtime_ns for path in (out / "units").rglob("*.json")} == before
    for path in copy.rglob("XX.TOP*HHN.D.2026.060"):
        path.write_bytes(path.read_bytes()[: 100 * 512])
    assert scan(copy, out, "--jobs", 1) == 0
    after = {path: path.stat().st_mtime_ns for path in (out / "units").rglob("*.json")}
    assert len(after) == 4  # the results that no longer count are gone
    stayed = {path.parent.name for path in set(before) & set(after)}
    assert stayed == {"XX.SLP.00.HH"}


def test_what_cannot_be_read_is_in_the_ledger_and_the_rest_goes_on(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Protects the rate: an hour that was not heard is not quiet, and somebody is told why."""
    copy, out = shutil.copytree(small, tmp_path / "sds"), tmp_path / "scan"
    for path in copy.rglob("XX.SLP*HHE.D.2026.060"):
        path.write_bytes(b"this is not a seismogram" * 1000)
    damaged = sorted(copy.rglob("XX.SLP*HHN.D.2026.060"))[0]
    raw = bytearray(damaged.read_bytes())
    raw[40 * 512 + 64 : 60 * 512] = b"\xff" * (20 * 512 - 64)
    damaged.write_bytes(raw)
    assert scan(copy, out, "--jobs", 1) == 0
    rows = {(row["station_code"], row["day"]): row for row in read_ledger(out)}
    row = rows["SLP", "2026-03-01"]
    assert "HHE.D.2026.060" in row["refused_reasons"]
    assert "HHN.D.2026.060" in row["refused_reasons"]
    assert int(row["refused"]) >= 2
    assert float(row["recorded_h"]) == pytest.approx(1.5, abs=0.01)
    assert 1.3 < float(row["armed_h"]) < 1.5
    said = capsys.readouterr().out
    assert said.count("refused: XX.SLP.00.HHE.D.2026.060: ") == 1, "two days read it, one line says it"
    assert "refused: XX.SLP.00.HHN.D.2026.060: " in said
    assert main(["scan", "status", str(out)]) == 0
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines() if line.startswith("XX.SLP")] == ["2"]
    # Two hours of three days' worth were there: the rest is not heard.
    shares = heard(out)
    hour = DAY // (3600 * NS)
    assert shares[hour + 23] > 0.9
    assert shares.get(hour + 3, 0.0) == 0.0


def test_what_was_heard_before_a_long_gap_counts(tmp_path: Path) -> None:
    """Protects the rate: the last half hour before the recorder was off for half a day was heard."""
    off = [("*", 7000.0, 60_000.0)]
    write_archive(tmp_path / "sds", ground(0.75, every_s=3000.0), off)
    ledger = judged(units_of([tmp_path / "sds"]), settings_of())[0].ledger
    assert ledger.recorded_s == pytest.approx(7000 + 4800, abs=0.1)
    assert ledger.armed_s == pytest.approx(ledger.recorded_s, abs=3 * TRIGGER.lta_s + 20)
    assert ledger.armed[1] == pytest.approx(3400 / 3600, abs=0.001)
    assert sum(ledger.armed[2:16]) == 0.0


def test_a_gap_before_another_rate_is_not_heard(tmp_path: Path) -> None:
    """Protects the rate: a recorder that comes back with other settings was away until then."""
    rng = np.random.default_rng(4)
    for component in "ENZ":
        pieces = [
            trace(rng.normal(0, 100, 1200 * rate).astype(np.int32), f"HH{component}", DAY + at_s * NS, rate)
            for at_s, rate in ((0, 20), (2400, 25))
        ]
        write(tmp_path / f"{component}.mseed", *pieces, encoding="STEIM2", reclen=512)
    ledger = judged(units_of([tmp_path]), settings_of())[0].ledger
    assert ledger.recorded_s == pytest.approx(2400, abs=0.2)
    assert ledger.recorded_s - 3 * TRIGGER.lta_s - 20 < ledger.armed_s < ledger.recorded_s


def test_a_file_that_cannot_be_opened_has_one_reason(small: Path, tmp_path: Path) -> None:
    """Protects who looks for what is wrong: a file without permission did not change."""
    unit = units_of([small])[0]
    (tmp_path / "closed").mkdir()  # opening it fails, for every user
    ledger = judged([replace(unit, files=(*unit.files, str(tmp_path / "closed")))], settings_of())[0].ledger
    (refused,) = ledger.refused
    assert refused[0] == "closed"
    assert "cannot be read" in refused[1]


def test_a_day_without_files_is_in_the_ledger(tmp_path: Path) -> None:
    """Protects the rate from days that nobody recorded."""
    data = ground(0.05)
    write_archive(tmp_path / "sds", data)
    later = write_archive(tmp_path / "later", ground(3.04), [("*", 0.0, 3 * 86_400.0)])
    out = tmp_path / "scan"
    assert main(["scan", str(tmp_path / "sds"), str(later), "--out", str(out), "--jobs", "1"]) == 0
    assert [(row["day"], row["state"]) for row in read_ledger(out)] == [
        ("2026-03-01", "judged"), ("2026-03-02", "no data"), ("2026-03-03", "no data"), ("2026-03-04", "judged"),
    ]  # fmt: skip


# -- engines


def test_two_processes_give_the_same(
    small: Path, tmp_path: Path, reference: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Protects ``--jobs``, and the speed that is printed: of what was recorded, not of whole days."""
    out = tmp_path / "scan"
    capsys.readouterr()
    assert scan(small, out, "--jobs", 2) == 0
    assert digest(out) == reference
    told = re.search(r"failed; ([\d.]+) s, (\d+) x real time", capsys.readouterr().err)
    assert told is not None
    recorded_s = 3600 * json.loads((out / "catalogue.json").read_bytes())["recorded_h"]
    assert float(told[1]) * float(told[2]) < 1.5 * recorded_s


def test_shards_give_the_same(small: Path, tmp_path: Path, reference: str) -> None:
    """Protects job arrays: two shards side by side in one folder, then a merge."""
    out = tmp_path / "scan"
    arguments = [*TALUS, "scan", str(small), "--out", str(out), "--jobs", "1", "--shard"]
    shards = [subprocess.Popen([*arguments, f"{n}/2"], cwd=ROOT) for n in (1, 2)]
    assert [shard.wait() for shard in shards] == [0, 0]
    assert main(["scan", "merge", str(out)]) == 0
    assert digest(out) == reference


@pytest.mark.slow
def test_dask_workers_give_the_same_when_one_is_killed(small: Path, tmp_path: Path, reference: str) -> None:
    """Protects clusters: two worker processes, one killed by SIGKILL while it judges."""
    pytest.importorskip("distributed", reason="dask is not installed (extra scan)")
    port = own_port()
    url, cli = f"tcp://127.0.0.1:{port}", [sys.executable, "-m", "dask"]
    dask = [*cli, "scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"]
    worker = [
        *cli,
        "worker",
        url,
        "--nthreads",
        "1",
        "--no-nanny",
        "--no-dashboard",
        "--local-directory",
        str(tmp_path),
    ]
    env = {**os.environ, "DASK_TEMPORARY_DIRECTORY": str(tmp_path)}
    logs = (tmp_path / "dask.log").open("w")
    running = [subprocess.Popen(dask, cwd=ROOT, stderr=logs, stdout=logs)]
    try:
        running += [subprocess.Popen(worker, cwd=ROOT, env=env, stderr=logs, stdout=logs) for _ in range(2)]
        out = tmp_path / "scan"
        command = [*TALUS, "scan", str(small), "--out", str(out), "--dask", url]
        scanning = subprocess.Popen(command, cwd=ROOT)
        wait_for(lambda: bool(results(out)) or scanning.poll() is not None, what="a first result")
        running[1].kill()
        assert scanning.wait() == 0
        assert digest(out) == reference
    finally:
        for process in running:
            process.kill()
            process.wait()
        logs.close()


def test_ctrl_c_leaves_what_goes_on(small: Path, tmp_path: Path, reference: str) -> None:
    """Protects a long scan: stopped at its first result it ends with 130, and the same command does the rest."""
    out = tmp_path / "scan"
    command = [*TALUS, "scan", str(small), "--out", str(out), "--jobs", "2"]
    process = subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,  # noqa: PLW1509
    )  # fmt: skip
    wait_for(lambda: bool(results(out)) or process.poll() is not None, what="a first result")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130, said
    assert "the same command goes on" in said
    done = {name: time.time() for name in results(out)}
    assert scan(small, out, "--jobs", 2) == 0
    assert done.keys() <= results(out).keys()
    assert digest(out) == reference


# -- the catalogue


def test_the_catalogue_says_what_it_is(small: Path, tmp_path: Path) -> None:
    """Protects whoever finds the file in ten years: CSV, Parquet and QuakeML have the same events, with settings,
    bundle and command."""
    import obspy

    out = tmp_path / "scan"
    assert scan(small, out, "--jobs", 1) == 0
    rows = list(read(out))
    about = json.loads((out / "catalogue.json").read_bytes())
    assert about["events"] == len(rows) > 10
    assert about["bundle"]["sha256"]
    assert about["settings"]["lta_s"] == 30.0
    assert about["command"][:2] == ["talus", "scan"]
    assert hashlib.sha256((out / "catalogue.csv").read_bytes()).hexdigest() == about["catalogue_csv_sha256"]
    catalogue = obspy.read_events(str(out / "catalogue.xml"))
    assert len(catalogue) == len(rows)
    assert [str(event.picks[0].time)[:23] for event in catalogue] == [row["trace_onset_time"][:23] for row in rows]
    pyarrow = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed (extra scan)")
    assert json.loads(pyarrow.read_schema(out / "catalogue.parquet").metadata[b"talus"])["bundle"] == about["bundle"]
    assert list(read(out / "catalogue.parquet")) == rows


def test_pictures_of_a_catalogue(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Protects whoever looks at a scan: the folder, the CSV and the Parquet file give the same pictures, with samples
    from the archive, also where that has moved."""
    pytest.importorskip("pyarrow", reason="pyarrow is not installed (extra scan)")
    archive, out = shutil.copytree(small, tmp_path / "sds"), tmp_path / "scan"
    assert scan(archive, out, "--jobs", 1) == 0
    files = [out, out / "catalogue.csv", out / "catalogue.parquet"]

    def drawn(kind: str, file: Path, *more: object) -> tuple[bytes, str]:
        picture = tmp_path / "picture.png"
        arguments = ["plot", kind, file, "--station", "XX.SLP", "-o", picture, *more]
        assert main([*map(str, arguments)]) == 0, capsys.readouterr().err
        return pixels(picture).tobytes(), capsys.readouterr().err

    capsys.readouterr()
    sheets = {drawn("sheet", file, "--unsure", "--limit", 6) for file in files}
    assert [said for _, said in sheets] == [""]
    rates = {drawn("rate", file) for file in files}
    assert len(rates) == 1
    assert rates != {drawn("rate", files[2], "--hours", 6)}
    about = json.loads((out / "catalogue.json").read_bytes())
    other = about | {"settings": about["settings"] | {"low_hz": 4.0, "high_hz": 6.0}}
    (out / "catalogue.json").write_text(json.dumps(other))
    assert drawn("sheet", out, "--unsure", "--limit", 6) not in sheets, "in the band of the scan's own trigger"
    (out / "catalogue.json").write_text(json.dumps(about))
    assert drawn("sheet", out, "--unsure", "--limit", 6) in sheets
    archive.rename(tmp_path / "moved")
    blank, said = drawn("sheet", files[2], "--unsure", "--limit", 6)
    assert "no samples of 6 of 6 events" in said
    assert (blank, "") not in sheets
    assert drawn("sheet", files[1], "--unsure", "--limit", 6, "--archive", tmp_path / "moved") in sheets
    for arguments, words in (
        (["sheet", str(out), "--station", "XX.NONE"], "it has: XX.SLP, XX.TOP"),
        (["sheet", str(out), "--class", "whale"], "one of earthquake"),
        (["sheet", "--archive", str(small)], "goes with a catalogue"),
        (["sheet", str(small)], "talus scan merge DIR"),
    ):
        assert main(["plot", *arguments, "-o", str(tmp_path / "picture.png")]) in (1, 2)
        assert words in capsys.readouterr().err


def test_units_that_do_not_agree_at_midnight_are_named(small: Path, tmp_path: Path) -> None:
    """Protects from a run-up that is too short for some data: it is checked at every midnight, not assumed."""
    out = tmp_path / "scan"
    assert scan(small, out, "--jobs", 1) == 0
    whole = merge(Folder(out))
    assert whole.seams == 2
    assert whole.torn == []
    path = sorted((out / "units" / "XX.SLP.00.HH").glob("2026-03-02*"))[0]
    told = json.loads(path.read_bytes())
    told["seam"] = told["seam"][1:]
    path.write_text(json.dumps(told))
    torn = merge(Folder(out)).torn
    assert len(torn) == 1
    assert torn[0].startswith("XX.SLP.00.HH 2026-03-02")


def test_a_scan_that_is_not_done_says_so(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Protects from a catalogue that looks whole."""
    out = tmp_path / "scan"
    assert scan(small, out, "--jobs", 1, "--shard", "1/4") == 0
    assert main(["scan", "merge", str(out)]) == 1
    assert "3 station-days are missing" in capsys.readouterr().err
    assert [row["state"] for row in read_ledger(out)].count("not scanned") == 3
    assert main(["scan", "status", str(out)]) == 1
    assert "3 station-days are missing" in capsys.readouterr().out


def test_a_damaged_result_is_named(small: Path, tmp_path: Path) -> None:
    """Protects from half a file after a full disk."""
    out = tmp_path / "scan"
    assert scan(small, out, "--jobs", 1) == 0
    path = sorted((out / "units").rglob("*.json"))[0]
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match="delete it"):
        merge(Folder(out))


def test_a_dry_run_writes_nothing(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Protects from a scan begun by mistake."""
    assert scan(small, tmp_path / "scan", "--dry-run", "--from", "2026-03-02", "--stations", "XX.T*") == 0
    printed = capsys.readouterr().out
    assert "XX.TOP.00.HH: 1 day from 2026-03-02 to 2026-03-02" in printed
    assert "SLP" not in printed
    assert not (tmp_path / "scan").exists()


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["records"], 2), (["records", "--out", "x", "--shard", "0/4"], 2), (["compare", "nowhere"], 2),
        (["records", "--out", "x", "--from", "soon"], 2), (["records", "--out", "x", "--jobs", "0"], 2),
        (["merge", "nowhere"], 1), (["import", "nowhere"], 1), (["compare", "nowhere", "nowhere"], 1),
        (["nowhere", "--out", "x"], 1), (["records", "--out", "x", "--stations", "NO.NE"], 1),
    ],
)  # fmt: skip
def test_wrong_use_is_refused_in_words(
    arguments: list[str], status: int, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Protects whoever types: a line, a hint, exit status 2, or 1 where the words are right and a file is not there."""
    places = {"records": small, "x": tmp_path / "x", "nowhere": tmp_path / "nowhere"}
    assert main(["scan", *(str(places.get(one, one)) for one in arguments)]) == status
    told = capsys.readouterr().err
    assert "hint:" in told
    assert "Errno" not in told


def test_what_is_left_out_is_one_line_and_another_plan_is_told(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Protects who scans a folder with tables beside its records, and who names the folder of another scan."""
    shutil.copytree(small, tmp_path / "in")
    for name in ("a", "b", "c"):
        (tmp_path / "in" / f"{name}.csv").write_text("not,a\nrecord,1\n")
    out = tmp_path / "scan"
    assert scan(tmp_path / "in", out, "--jobs", 1, "--stations", "XX.T*") == 0
    told = capsys.readouterr().err
    assert [line.count(".csv") for line in told.splitlines() if ".csv" in line] == [3]
    assert scan(tmp_path / "in", out, "--jobs", 1) == 0
    assert f"{out} held another plan: talus scan {tmp_path / 'in'} --stations" in capsys.readouterr().err
    assert scan(tmp_path / "in", out, "--jobs", 1) == 0
    assert "another plan" not in capsys.readouterr().err


def test_a_folder_of_something_else_is_left_alone(small: Path, tmp_path: Path) -> None:
    """Protects from --out into the archive."""
    (tmp_path / "thesis.tex").write_text("years of work")
    assert scan(small, tmp_path, "--jobs", 1) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_files_are_found_by_their_headers(small: Path, tmp_path: Path) -> None:
    """Protects archives that are not SDS: the same records under any name, several channels in a file, are the same
    units with the same events."""
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, day in enumerate(("060", "061")):
        files = sorted(small.rglob(f"*.D.2026.{day}"))
        (flat / f"part-{1 - number}.mseed").write_bytes(b"".join(path.read_bytes() for path in files))
    named, found = units_of([small]), units_of([flat])
    assert [str(unit) for unit in found] == [str(unit) for unit in named]
    assert rows_of(judged(found, settings_of())) == rows_of(judged(named, settings_of()))
    (flat / "notes.txt").write_text("not a seismogram")
    assert [problem.path for problem in look([flat]).problems] == [str(flat / "notes.txt")]
