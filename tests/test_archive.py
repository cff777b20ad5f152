"""The archive source: exact samples, exact times, one order, bounded memory, paced on request."""

from __future__ import annotations

import threading
import time
import tracemalloc
from collections import defaultdict
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from obspy import Stream, read
from obspy.io.mseed.util import get_flags
from records_support import MIDNIGHT, NOON, counts, packaged_records, seconds, trace, write, write_sds

from agent.errors import SourceError, UsageError
from agent.sources import Source, SourceProblem
from agent.sources.archive import ArchiveSource
from agent.types import NS, SampleBlock


def blocks_of(*paths: str | Path, packet_s: float = 1.0) -> list[SampleBlock]:
    """All blocks of sound files; any problem fails the test."""
    problems: list[SourceProblem] = []
    blocks = list(ArchiveSource(paths, packet_s, on_problem=problems.append).blocks())
    assert not problems
    return blocks


def joined(blocks: Sequence[SampleBlock]) -> dict[str, np.ndarray]:
    """All samples of each channel in the order in which they came."""
    samples = defaultdict(list)
    for block in blocks:
        samples[block.stream.seed].append(block.samples)
    return {seed: np.concatenate(parts) for seed, parts in samples.items()}


def assert_in_time_order(blocks: Sequence[SampleBlock]) -> None:
    keys = [(block.start_ns, block.stream.seed) for block in blocks]
    assert keys == sorted(keys)


RUNS = st.lists(
    st.tuples(
        st.sampled_from(["HHE", "HHN", "HHZ"]),
        st.integers(0, 60_000_000),
        st.integers(1, 700),
        st.sampled_from([20.0, 31.25, 99.5, 100.0, 128.0, 250.0, 1000.0]),
        st.sampled_from([np.int32, np.float32, np.float64]),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=60)
@given(runs=RUNS, packet_s=st.one_of(st.floats(0.001, 30), st.just(float("inf"))))
def test_any_packet_length_gives_every_sample_once_at_its_exact_time(tmp_path_factory, runs, packet_s):
    """Cutting and merging must neither lose, repeat, change nor shift a sample, whatever the packets and overlaps."""
    folder = tmp_path_factory.mktemp("runs")
    expected = {}
    for i, (channel, offset_us, n, rate, dtype) in enumerate(runs):
        data = (counts(n, i) / 8).astype(dtype)
        write(folder / f"{i}.mseed", trace(data, channel, NOON + offset_us * 1000, rate, station=f"S{i}"))
        [stored] = read(str(folder / f"{i}.mseed"))
        expected[stored.id] = (stored.stats.starttime.ns, stored.stats.sampling_rate, stored.data)
    blocks = blocks_of(folder, packet_s=packet_s)
    assert_in_time_order(blocks)
    done = dict.fromkeys(expected, 0)
    for block in blocks:
        start_ns, rate, data = expected[block.stream.seed]
        first = done[block.stream.seed]
        done[block.stream.seed] += len(block.samples)
        assert block.rate_hz == rate
        assert block.start_ns == round(start_ns + Fraction(first * NS) / Fraction(rate))
        assert len(block.samples) <= max(1, packet_s * rate + 0.5)
        assert block.samples.dtype == data.dtype
        np.testing.assert_array_equal(block.samples, data[first : first + len(block.samples)])
    assert done == {seed: len(data) for seed, (_, _, data) in expected.items()}


def test_aligned_channels_come_as_whole_packets_side_by_side(tmp_path):
    traces = [trace(counts(1000, i), f"HH{c}") for i, c in enumerate("ZNE")]
    blocks = blocks_of(write(tmp_path / "three.mseed", *traces))
    assert [b.stream.component for b in blocks] == ["E", "N", "Z"] * 10
    assert {len(b.samples) for b in blocks} == {100}
    assert [b.start_ns for b in blocks[::3]] == [NOON + seconds(i) for i in range(10)]


def test_packets_of_channels_that_begin_at_different_times_end_together(tmp_path):
    """As parts of large files do. A detector waits for all components, and would decide at the end of each."""
    write(tmp_path / "z", trace(counts(3000), "HHZ"))
    write(tmp_path / "n", trace(counts(2400), "HHN", NOON + 3_370_000_000))
    blocks = blocks_of(tmp_path)
    starts = {name: [b.start_ns for b in blocks if b.stream.component == name] for name in "NZ"}
    assert len(starts["N"]) == 25
    assert set(starts["N"][1:]) < set(starts["Z"])
    assert joined(blocks)["XX.SLP.00.HHN"].tolist() == counts(2400).tolist()


def test_a_gap_stays_a_gap(tmp_path):
    """No stage may invent samples; the block before a gap is simply shorter."""
    late = trace(counts(150, 2), start_ns=NOON + seconds(10))
    blocks = blocks_of(write(tmp_path / "gap.mseed", trace(counts(250, 1)), late))
    assert [len(b.samples) for b in blocks] == [100, 100, 50, 100, 50]
    assert blocks[2].end_ns == NOON + seconds(2.5)
    assert blocks[3].start_ns == NOON + seconds(10)


def test_overlapping_files_are_passed_on_in_time_order(tmp_path):
    """The detector drops and counts what overlaps; the source must not hide it."""
    write(tmp_path / "a.mseed", trace(counts(1000, 1)))
    write(tmp_path / "b.mseed", trace(counts(1000, 2), start_ns=NOON + seconds(5)))
    blocks = blocks_of(tmp_path)
    assert_in_time_order(blocks)
    assert sum(len(b.samples) for b in blocks) == 2000


def test_nan_and_integer_types_are_passed_on_as_recorded(tmp_path):
    with_nan = counts(300).astype(np.float32)
    with_nan[50:60] = np.nan
    short = counts(300, 1).astype(np.int16)
    write(tmp_path / "nan.mseed", trace(with_nan, "HHZ"))
    write(tmp_path / "short.mseed", trace(short, "HHN"), encoding="INT16")
    samples = joined(blocks_of(tmp_path))
    np.testing.assert_array_equal(samples["XX.SLP.00.HHZ"], with_nan)
    assert samples["XX.SLP.00.HHN"].dtype == np.int32
    np.testing.assert_array_equal(samples["XX.SLP.00.HHN"], short)


def test_blocks_cannot_be_written_to(tmp_path):
    """They are views of one array: a stage that worked in place would spoil the others' data."""
    block = blocks_of(write(tmp_path / "a.mseed", trace(counts(100))))[0]
    with pytest.raises(ValueError, match="read-only"):
        block.samples[0] = 1


def test_folders_patterns_links_and_repeats_read_each_file_once(tmp_path):
    write(tmp_path / "sub" / "a.mseed", trace(counts(500)))
    write(tmp_path / "sub" / ".hidden.mseed", trace(counts(500)))
    (tmp_path / "link.mseed").symlink_to(tmp_path / "sub" / "a.mseed")
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    paths = [tmp_path, tmp_path / "link.mseed", str(tmp_path / "**" / "*.mseed"), tmp_path / "sub" / "a.mseed"]
    assert sum(len(b.samples) for b in blocks_of(*paths)) == 500


def test_a_name_with_pattern_characters_is_taken_literally(tmp_path):
    assert len(blocks_of(write(tmp_path / "a[1]*.mseed", trace(counts(100))))) == 1


@pytest.mark.parametrize("name", ["a.gz", "a.bz2", "a.tar.gz", "a.tar", "a.zip"])
def test_compressed_files_and_archives(tmp_path, name):
    import bz2
    import gzip
    import tarfile
    import zipfile

    inner = write(tmp_path / "inner" / "a.mseed", trace(counts(500)))
    target = tmp_path / name
    if name == "a.zip":
        with zipfile.ZipFile(target, "w") as archive:
            archive.write(inner, "../../a.mseed")
    elif "tar" in name:
        with tarfile.open(target, "w:gz" if name.endswith("gz") else "w") as tar:
            tar.add(inner)
    else:
        opener = gzip.open if name.endswith("gz") else bz2.open
        with opener(target, "wb") as file:
            file.write(inner.read_bytes())
    np.testing.assert_array_equal(joined(blocks_of(target))["XX.SLP.00.HHZ"], counts(500))


def test_other_formats_and_their_byte_order(tmp_path):
    data = counts(500).astype(np.float32)
    write(tmp_path / "a.sac", trace(data), format="SAC", byteorder=">")
    np.testing.assert_array_equal(joined(blocks_of(tmp_path))["XX.SLP.00.HHZ"], data)


def test_an_sds_archive_is_read_day_by_day(tmp_path):
    """Days follow each other across channels, and a day is not even looked at before the one before it is done."""
    day = seconds(86400)
    for i in range(3):
        for channel in ("HHE", "HHZ"):
            write_sds(tmp_path, MIDNIGHT + i * day, counts(3000, i), channel)
    problems: list[SourceProblem] = []
    blocks = ArchiveSource([tmp_path], on_problem=problems.append).blocks()
    seen = [next(blocks)]
    last = next(tmp_path.glob("**/XX.SLP.00.HHZ.D.2024.124"))
    last.unlink()
    seen += blocks
    assert_in_time_order(seen)
    assert sum(len(b.samples) for b in seen) == 5 * 3000
    assert [problem.path for problem in problems] == [str(last)]


def test_data_older_than_their_file_is_named_are_passed_on_late_and_told(tmp_path):
    write_sds(tmp_path, MIDNIGHT, counts(300))
    late = write_sds(tmp_path, MIDNIGHT + seconds(86400), counts(300), "HHE")
    write(late, trace(counts(300), "HHE", MIDNIGHT - seconds(60)))
    problems: list[SourceProblem] = []
    blocks = list(ArchiveSource([tmp_path], on_problem=problems.append).blocks())
    assert [block.stream.component for block in blocks] == ["Z", "E"]
    assert [(problem.path, problem.message) for problem in problems] == [
        (str(late), "holds data older than its name or headers say")
    ]


def test_memory_does_not_grow_with_the_archive(tmp_path):
    """Six days of 100 Hz are 207 MB; only about a day may be in memory at once."""
    day = 8_640_000
    flat = np.zeros(day, np.int32)
    for i in range(6):
        write_sds(tmp_path, MIDNIGHT + i * seconds(86400), flat)
    tracemalloc.start()
    n = sum(len(b.samples) for b in ArchiveSource([tmp_path], 60.0, on_problem=print).blocks())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n == 6 * day
    assert peak < 2.5 * day * 4


def test_a_large_file_is_read_in_parts(tmp_path):
    """One file of 48 MB, channel after channel: all samples, in order, with a fraction of it in memory."""
    n = 4_000_000
    data = {f"HH{c}": np.random.default_rng(i).normal(size=n).astype(np.float32) for i, c in enumerate("ENZ")}
    path = write(tmp_path / "large.mseed", *[trace(values, channel) for channel, values in data.items()], reclen=4096)
    tracemalloc.start()
    blocks, position = 0, dict.fromkeys(data, 0)
    for block in ArchiveSource([path], 100.0, on_problem=print).blocks():
        channel = block.stream.seed[-3:]
        at = position[channel]
        assert block.start_ns == NOON + at * 10_000_000
        assert (block.samples == data[channel][at : at + len(block.samples)]).all()
        position[channel] += len(block.samples)
        blocks += 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert set(position.values()) == {n}
    assert blocks < 1.1 * 3 * n / 10_000
    assert peak < path.stat().st_size


@pytest.mark.slow
def test_every_packaged_record_that_obspy_reads_is_read_in_full():
    """ObsPy's own records, gaps, odd headers and damage included: nothing escapes, nothing readable is lost."""
    emitted = 0
    for path in packaged_records():
        if path.parts[path.parts.index("io") + 1] in NOT_WAVEFORMS:
            continue
        problems: list[SourceProblem] = []
        try:
            n = sum(len(b.samples) for b in ArchiveSource([path], on_problem=problems.append).blocks())
        except SourceError:
            n = 0
        if path.name in REFUSED or any("takes ObsPy's reader down" in problem.message for problem in problems):
            assert n == 0 or path.name in REFUSED
            continue
        assert n == expected_samples(path), path
        emitted += n
    assert emitted > 500_000


NOT_WAVEFORMS = (
    *("arclink", "cmtsolution", "cnv", "csv", "focmec", "hypodd", "iaspei", "kml", "ndk", "nlloc", "nordic", "pde"),
    *("quakeml", "scardec", "seiscomp", "shapefile", "stationtxt", "stationxml", "zmap"),
)
"""ObsPy's readers of catalogues and station data."""

REFUSED = {"infinite-loop.mseed", "microsecond_wrap.mseed"}
"""Records of which ObsPy reads nothing although some can be saved; and one with a time that does not exist."""


def expected_samples(path: Path) -> int:
    """What ``obspy.read`` gives for channels of ground motion at 20 to 1000 Hz."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            stream = read(str(path), check_compression=path.suffix in (".gz", ".bz2"))
        except Exception:  # noqa: BLE001 - whatever ObsPy cannot read counts nothing
            stream = Stream()
    return sum(
        len(tr.data)
        for tr in stream
        if 19.99 < tr.stats.sampling_rate < 1001
        and 1 <= len(tr.stats.channel.replace(" ", "")) <= 3
        and tr.stats.channel[-1] in "ENZ123"
        and tr.stats.channel not in ("EDH", "LOG")
        and tr.data.dtype.kind in "if"
    )


def packaged(name: str) -> Path:
    return next(path for path in packaged_records() if path.name == name)


def test_timing_quality_is_that_of_the_record():
    """Compared with ObsPy's own statistics of the same file."""
    path = packaged("timingquality.mseed")
    blocks = blocks_of(path, packet_s=0.1)
    seen = [b.quality.timing_percent for b in blocks]
    flags = get_flags(str(path), timing_quality=True)["timing_quality"]
    assert (min(seen), max(seen)) == (flags["min"], flags["max"])
    assert len(set(seen)) > 10


def test_questionable_time_and_clock_lock(tmp_path):
    """The flags of each record's fixed header end up on the blocks that begin in it."""
    path = write(tmp_path / "a.mseed", trace(counts(3000)), encoding="INT32", reclen=512)
    raw = bytearray(path.read_bytes())
    per_record = int.from_bytes(raw[30:32], "big")
    for record in range(len(raw) // 512):
        raw[record * 512 + 37] |= 0x20 if record % 2 else 0
        raw[record * 512 + 38] |= 0x80 if record == 3 else 0
    path.write_bytes(raw)
    for block in blocks_of(path, packet_s=0.01):
        record = (block.start_ns - NOON) // 10_000_000 // per_record
        # Before the first record with the flag nobody knows that this recorder sets it.
        assert block.quality.clock_locked is (bool(record % 2) if record else None)
        assert block.quality.time_questionable is (record == 3)
        assert block.quality.timing_percent is None


def test_a_lock_flag_that_is_never_set_says_nothing(tmp_path):
    assert blocks_of(write(tmp_path / "a.mseed", trace(counts(100))))[0].quality.clock_locked is None


def test_speed_paces_by_the_data_and_skips_long_silences(tmp_path):
    """Ten seconds at speed 20 take at least what they must; a year without data is not waited for."""
    write(tmp_path / "a.mseed", trace(counts(1000)))
    write(tmp_path / "b.mseed", trace(counts(100), start_ns=NOON + seconds(86400 * 365)))
    begin = time.monotonic()
    due = []
    for block in ArchiveSource([tmp_path], 1.0, speed=20.0, on_problem=print).blocks():
        due.append((block.end_ns, time.monotonic() - begin))
    assert len(due) == 11
    first_ns, first = due[0]
    for end_ns, elapsed in due[1:10]:
        assert elapsed - first >= (end_ns - first_ns) / NS / 20 - 0.01


@pytest.mark.parametrize("speed", [0.0, 0.001])
def test_close_from_another_thread_ends_it(tmp_path, speed):
    path = write(tmp_path / "a.mseed", trace(counts(100_000)))
    source = ArchiveSource([path], 1.0, speed=speed, on_problem=print)
    blocks = source.blocks()
    next(blocks)
    threading.Timer(0.2, source.close).start()
    if speed:
        assert list(blocks) == []
    else:
        source.close()
        assert next(blocks, None) is None


def test_progress_rises_to_one(tmp_path):
    for i in range(3):
        write(tmp_path / f"{i}.mseed", trace(counts(5000, i), start_ns=NOON + i * seconds(100)))
    shares: list[float] = []
    source: Source = ArchiveSource([tmp_path], 1.0, on_problem=print, progress=shares.append)
    for _ in source.blocks():
        pass
    assert shares == sorted(shares)
    assert len(shares) > 20
    assert shares[0] < 0.1
    assert shares[-1] == 1.0


@pytest.mark.parametrize(("packet_s", "speed"), [(0, 0), (-1, 0), (float("nan"), 0), (1, -1), (1, float("inf"))])
def test_senseless_settings_are_refused(packet_s, speed):
    with pytest.raises(UsageError):
        ArchiveSource(["x"], packet_s, speed, on_problem=print)
