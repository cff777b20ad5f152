"""Bad input to the archive source: one clear problem each, and everything else still comes through."""

from __future__ import annotations

import os
import pickle
import random
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from obspy import read
from records_support import NOON, counts, packaged_records, seconds, trace, write

from agent.errors import SourceError
from agent.sources import SourceProblem
from agent.sources.archive import ArchiveSource
from agent.sources.intake import plain_files
from agent.sources.waveforms import accept
from agent.types import NS, parse_ns


def replay(*paths: str | Path) -> tuple[dict[str, np.ndarray], list[SourceProblem]]:
    """All samples by channel, in the order in which they came, and all problems; each problem must carry a hint."""
    problems: list[SourceProblem] = []
    parts: dict[str, list[np.ndarray]] = {}
    for block in ArchiveSource(paths, on_problem=problems.append).blocks():
        parts.setdefault(block.stream.seed, []).append(block.samples)
    assert all(problem.hint for problem in problems)
    return {seed: np.concatenate(samples) for seed, samples in parts.items()}, problems


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A sound file of 1000 samples beside which a bad one must not matter."""
    return write(tmp_path / "good.mseed", trace(counts(1000), station="GOOD"))


def replay_beside_good(good: Path, bad: Path) -> tuple[dict[str, np.ndarray], SourceProblem]:
    samples, problems = replay(good.parent)
    np.testing.assert_array_equal(samples.pop("XX.GOOD.00.HHZ"), counts(1000))
    assert len(problems) == 1, [str(problem) for problem in problems]
    [problem] = problems
    assert problem.path == str(bad)
    return samples, problem


UNREADABLE = {
    "empty": b"",
    "a few bytes": b"12",
    "half a header": b"000001D SLP  00HHZXX\x07\xe8\x00\x01",
    "text": b"date,value\n2024-01-01,1\n" * 50,
    "random bytes": random.Random(1).randbytes(5000),
    "zeros": bytes(5000),
    "xml": b"<?xml version='1.0'?><FDSNStationXML></FDSNStationXML>",
    "a cut gzip file": b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\x01\x02",
    "a cut zip file": b"PK\x03\x04" + bytes(40),
}


@pytest.mark.parametrize("content", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_unreadable_content_is_one_problem(good, tmp_path, content):
    bad = tmp_path / "bad.mseed"
    bad.write_bytes(content)
    samples, _ = replay_beside_good(good, bad)
    assert not samples


def test_a_truncated_file_gives_what_is_whole(good, tmp_path):
    bad = write(tmp_path / "cut.mseed", trace(counts(5000)), reclen=512)
    whole = read(str(bad))[0].data
    bad.write_bytes(bad.read_bytes()[:-300])
    samples, problem = replay_beside_good(good, bad)
    n = len(samples["XX.SLP.00.HHZ"])
    assert 4000 < n < 5000
    np.testing.assert_array_equal(samples["XX.SLP.00.HHZ"], whole[:n])
    assert "cut off" in problem.message


def corrupted(path: Path, how: str) -> Path:
    """Damage the sixth of the file's 512-byte records."""
    raw = path.read_bytes()
    before, record, after = raw[: 512 * 5], raw[512 * 5 : 512 * 6], raw[512 * 6 :]
    noise = random.Random(2).randbytes(512)
    record = {
        "samples overwritten": record[:64] + noise[64:],
        "record overwritten": noise,
        "record zeroed": bytes(512),
        "bytes lost": record[100:],
        "bytes inserted": noise[:300] + record,
        "text inserted": b"rebooted\n" + record,
    }[how]
    path.write_bytes(before + record + after)
    return path


@pytest.mark.parametrize(
    ("how", "lost"),
    [
        ("samples overwritten", 1),
        ("record overwritten", 1),
        ("record zeroed", 1),
        ("bytes lost", 1),
        ("bytes inserted", 0),
        ("text inserted", 0),
    ],
)
def test_one_bad_record_does_not_cost_the_file(good, tmp_path, how, lost):
    """ObsPy refuses the whole file, or all that follows the damage; a day must not be lost to one bad sector."""
    path = write(tmp_path / "bad.mseed", trace(counts(8000)), reclen=512, encoding="STEIM1")
    per_record = [len(tr.data) for i in range(20) for tr in [record_of(path, i)]]
    whole = counts(8000)
    samples, problem = replay_beside_good(good, corrupted(path, how))
    begin = sum(per_record[:5])
    expected = np.delete(whole, slice(begin, begin + lost * per_record[5]))
    np.testing.assert_array_equal(samples["XX.SLP.00.HHZ"], expected)
    assert "damaged" in problem.message or "not miniSEED" in problem.message


def record_of(path: Path, index: int):
    import io

    return read(io.BytesIO(path.read_bytes()[512 * index : 512 * (index + 1)]))[0]


def test_several_kinds_of_content_in_one_file(good, tmp_path):
    """A text tail after miniSEED, as an interrupted copy or a log in the wrong file leaves it."""
    bad = write(tmp_path / "mixed.mseed", trace(counts(2000)), reclen=512)
    bad.write_bytes(bad.read_bytes() + b"recorder restarted\n" * 200)
    samples, problem = replay_beside_good(good, bad)
    np.testing.assert_array_equal(samples["XX.SLP.00.HHZ"], counts(2000))
    assert "not miniSEED" in problem.message


CHANNELS = {
    "component": (trace(counts(100), "HHX"), "none of the components"),
    "no channel code": (trace(counts(100), ""), "none of the components"),
    "too slow": (trace(counts(100), "BHZ", rate=10.0), "10 Hz"),
    "far too slow": (trace(counts(100), "LHZ", rate=1.0), "1 Hz"),
    "too fast": (trace(counts(100), "GHZ", rate=4000.0), "4000 Hz"),
    "mass position": (trace(counts(100), "VMZ", rate=100.0), "mass position"),
    "text": (trace(np.frombuffer(b"log " * 50, "S1"), "HHZ"), "text"),
}


@pytest.mark.parametrize(("odd", "reason"), CHANNELS.values(), ids=CHANNELS.keys())
def test_channels_that_are_no_use_are_reported_once(good, tmp_path, odd, reason):
    for i in range(3):
        odd.stats.starttime += 60 * i
        write(tmp_path / f"z{i}.mseed", odd)
    samples, problem = replay_beside_good(good, tmp_path / "z0.mseed")
    assert not samples
    assert reason in problem.message


@pytest.mark.parametrize("channel", ["HDF", "BDF", "LOG", "LCQ", "OCF", "VEC"])
def test_channels_that_are_not_meant_as_motion_are_skipped_quietly(good, tmp_path, channel):
    write(tmp_path / "other.mseed", trace(counts(100), channel))
    samples, problems = replay(tmp_path)
    assert set(samples) == {"XX.GOOD.00.HHZ"}
    assert not problems


@pytest.mark.parametrize("day", ["1970-01-01T00:00:10Z", "2098-01-01T00:00:00Z"])
def test_a_clock_that_was_never_set_is_reported_and_used(good, tmp_path, day):
    bad = write(tmp_path / "bad.mseed", trace(counts(500), start_ns=parse_ns(day)))
    samples, problem = replay_beside_good(good, bad)
    assert len(samples["XX.SLP.00.HHZ"]) == 500
    assert day[:19] in problem.message


def test_missing_codes_get_names_that_say_so(good, tmp_path):
    bad = write(tmp_path / "bad.sac", trace(counts(500).astype(np.float32), network="", location=""), format="SAC")
    samples, problem = replay_beside_good(good, bad)
    assert set(samples) == {"XX.SLP..HHZ"}
    assert "XX.SLP..HHZ" in problem.message


def test_one_sample_and_constant_traces_pass(tmp_path):
    write(tmp_path / "one.mseed", trace([7], "HHE"))
    write(tmp_path / "flat.mseed", trace(np.full(1000, -5, np.int32), "HHN"))
    samples, problems = replay(tmp_path)
    assert samples["XX.SLP.00.HHE"].tolist() == [7]
    assert set(samples["XX.SLP.00.HHN"].tolist()) == {-5}
    assert not problems


def test_masked_samples_become_gaps():
    """No file format here stores masks, but readers may return them; the masked samples must not become numbers."""
    masked = trace(np.zeros(100))
    masked.data = np.ma.masked_inside(np.arange(100), 40, 59)
    assert [(found.starts_ns[0], found.samples.tolist()) for found in accept(masked)] == [
        (NOON, list(range(40))),
        (NOON + seconds(0.6), list(range(60, 100))),
    ]


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (np.array([1, 2**31 - 1]), np.int32),
        (np.array([1, 2**31]), np.float64),
        (np.array([1, 2], np.uint8), np.int32),
        (np.array([1, 2], ">f4"), np.float32),
        (np.array([1, 2j]), None),
    ],
)
def test_sample_types(values, dtype):
    [found] = accept(trace(values))
    if dtype is None:
        assert "complex" in found.reason
    else:
        assert found.samples.dtype == dtype
        assert found.samples.tolist() == values.tolist()


def test_a_pickle_is_never_loaded(good, tmp_path):
    """ObsPy's own format detection loads pickles, which runs whatever code their author wished."""
    trap = tmp_path / "trap"

    class Bait:
        def __reduce__(self):
            return (os.mkdir, (str(trap),))

    bad = tmp_path / "bait.pickle"
    bad.write_bytes(pickle.dumps(["obspy.core.stream", Bait()], protocol=2))
    samples, problem = replay_beside_good(good, bad)
    assert not samples
    assert not trap.exists()
    assert "no format" in problem.message


def test_a_gse_file_that_would_crash_its_reader_is_only_a_problem(good, tmp_path):
    """A line that is too long makes ObsPy's decoder write beyond its buffer and end the process."""
    text = next(p for p in packaged_records() if p.name == "sta2.gse2").read_bytes()
    bad = tmp_path / "bad.gse"
    bad.write_bytes(text.replace(b"DAT2\n", b"DAT2\n" + b"k" * 100_000))
    samples, problem = replay_beside_good(good, bad)
    assert not samples
    assert "is GSE2" in problem.message and "miniSEED" in problem.hint


def test_missing_paths_folders_and_odd_files(good, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    samples, problems = replay(tmp_path, tmp_path / "absent.mseed", str(tmp_path / "no*match"))
    assert set(samples) == {"XX.GOOD.00.HHZ"}
    assert sorted(Path(problem.path).name for problem in problems) == ["absent.mseed", "dangling", "no*match", "pipe"]


def test_files_and_folders_without_permission(good, tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir()
    secret = write(tmp_path / "secret.mseed", trace(counts(100)))
    secret.chmod(0)
    closed.chmod(0)
    try:
        if os.access(secret, os.R_OK):
            pytest.skip("whoever runs this may read everything")
        samples, problems = replay(tmp_path)
    finally:
        closed.chmod(0o700)
    assert set(samples) == {"XX.GOOD.00.HHZ"}
    assert {problem.path for problem in problems} == {str(closed), str(secret)}


@pytest.mark.parametrize("paths", [[], ["nothing/here"], ["."]])
def test_nothing_usable_is_an_error_that_names_the_paths(tmp_path, monkeypatch, paths):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match=paths[0] if paths else "empty list") as caught:
        replay(*paths)
    assert caught.value.hint


def test_files_that_change_vanish_or_shrink_while_others_are_read(tmp_path):
    """A growing archive is normal; a mapped file that shrinks would kill the process."""
    for i in range(4):
        write(tmp_path / f"{i}.mseed", trace(counts(20_000, i), start_ns=NOON + i * seconds(1000)), reclen=512)
    problems: list[SourceProblem] = []
    blocks = ArchiveSource([tmp_path], on_problem=problems.append).blocks()
    n = len(next(blocks).samples)
    os.truncate(tmp_path / "1.mseed", 2048)
    (tmp_path / "2.mseed").unlink()
    with (tmp_path / "3.mseed").open("ab") as file:
        file.write(write(tmp_path / "later", trace(counts(100), start_ns=NOON + seconds(9000))).read_bytes())
    n += sum(len(block.samples) for block in blocks)
    assert 40_100 < n < 60_000
    assert [(Path(p.path).name, p.message.split(";")[0]) for p in problems] == [
        ("1.mseed", "has changed since it was listed"),
        ("2.mseed", "cannot be read (No such file or directory)"),
        ("3.mseed", "has changed since it was listed"),
    ]


def test_nothing_reaches_the_terminal(tmp_path, capfd):
    """Warnings of ObsPy, and what its C code prints, become problems or nothing."""
    noisy = [p for p in packaged_records() if p.parent.name in ("data", "bizarre") and "mseed" in p.parts]
    noisy += [p for p in packaged_records() if "segy" in p.parts or p.name.startswith("loc_RJOB")]
    threads = threading.active_count()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in ArchiveSource(noisy, 60.0, on_problem=lambda problem: None).blocks():
            pass
    assert capfd.readouterr() == ("", "")
    assert threading.active_count() == threads


def test_an_archive_that_unpacks_to_too_much_is_refused(good, tmp_path):
    """The limit is on what comes out, so that a small file cannot fill the disk."""
    import zipfile

    bad = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bad, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(1 << 20))
    with pytest.raises(SourceError, match="unpacks to more"), plain_files(bad, limit_bytes=1 << 19):
        pass


def test_times_are_integers_of_the_header(tmp_path):
    """Microseconds of the header arrive as they are, however far from 1970."""
    start_ns = parse_ns("2031-12-31T23:59:59.123456Z")
    write(tmp_path / "a.mseed", trace(counts(250), start_ns=start_ns))
    blocks = list(ArchiveSource([tmp_path], 1.0, on_problem=lambda problem: None).blocks())
    assert [block.start_ns for block in blocks] == [start_ns, start_ns + NS, start_ns + 2 * NS]
