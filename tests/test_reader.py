"""The one reader of records: odd codes, damage, both versions, and the same blocks for the same bytes everywhere."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from fuzz_support import fuzz, junk, spoilt
from pymseed import MS3Record

from agent.alert.evidence import encode
from agent.cli import main
from agent.dsp.continuity import Continuity
from agent.dsp.timeline import same_rate
from agent.errors import SourceError
from agent.sources import SourceProblem
from agent.sources.archive import ArchiveSource
from agent.sources.channels import identify, identify_source
from agent.sources.folder import FolderSource
from agent.sources.miniseed import Piece, Record, RecordReader, earliest_ns, headers, pieces, recordings, together
from agent.sources.positions import Positions
from agent.sources.records import read_records
from agent.types import NS, SampleBlock, Segment, StreamId, parse_ns

START = parse_ns("2024-05-01T12:00:00Z")
INT16, INT32, FLOAT32, FLOAT64, STEIM1, STEIM2 = 1, 3, 4, 5, 10, 11
TYPES = {INT16: "i", INT32: "i", FLOAT32: "f", FLOAT64: "d", STEIM1: "i", STEIM2: "i"}


def made(
    samples: Any, start_ns: int = START, *, name: str = "FDSN:XX_SLP_00_H_H_Z", rate_hz: float = 100.0,
    version: int = 2, encoding: int = STEIM2, reclen: int = 512,
) -> list[bytes]:  # fmt: skip
    """Records of these samples, one after the other."""
    out = MS3Record(reclen=reclen, encoding=encoding)
    out.sourceid, out.formatversion, out.starttime, out.samprate = name, version, start_ns, rate_hz
    kind = TYPES[encoding]
    with out.with_datasamples(np.asarray(samples, {"i": np.int32, "f": np.float32, "d": np.float64}[kind]), kind):
        return [bytes(piece) for piece in out.generate()]


def wave(count: int, seed: int = 1) -> np.ndarray:
    """Noise of 200 counts with a loud event in the middle."""
    x = np.random.default_rng(seed).normal(0, 200, count)
    t = np.arange(min(800, count // 2)) / 100
    x[count // 2 : count // 2 + len(t)] += 6000 * np.sin(12 * np.pi * t) * np.exp(-t / 3)
    return x.astype(np.int32)


def with_codes(record: bytes, codes: bytes) -> bytes:
    """A record of version 2 with other twelve characters: station 5, location 2, channel 3, network 2."""
    assert len(codes) == 12
    return record[:8] + codes + record[20:]


def archived(*paths: Path, problems: list[SourceProblem] | None = None, packet_s: float | None = None) -> list[Any]:
    said: list[SourceProblem] = [] if problems is None else problems
    return list(ArchiveSource(paths, packet_s, on_problem=said.append).blocks())


def followed(path: Path, problems: list[SourceProblem]) -> tuple[list[SampleBlock], dict[str, int]]:
    """What the folder source hands on of a file, and its counters."""
    source = FolderSource([path.parent], path.parent / "unused", backlog_s=1e18, on_problem=problems.append)
    positions = Positions(Path(":memory:"))
    blocks = list(source._merge([path], positions, RecordReader(source._report_renamed)))
    positions.close()
    return blocks, source.counters()


CODES = {
    b"SLP  00HHZXX": "XX.SLP.00.HHZ",
    b"SLP\0\0\0\0HHZXX": "XX.SLP..HHZ",
    b"SL-1 --HHZXX": "XX.SL-1..HHZ",
    b"slp  00hhzxx": "XX.SLP.00.HHZ",
    b"S\xc9P  00HHZXX": "XX.S-P.00.HHZ",
    b"SL_1 00HHZXX": "XX.SL-1.00.HHZ",
    b"     00HHZ  ": "XX.UNKN.00.HHZ",
    b"\0\0\0\0\0\0\0HHZ\0\0": "XX.UNKN..HHZ",
    b"SLP  00HZ XX": "XX.SLP.00.HZ",
    b"SLP  00Z  XX": "XX.SLP.00.HHZ",
    b" SLP 0 HHZX ": "X.SLP.0.HHZ",
}


@pytest.mark.parametrize(("codes", "name"), CODES.items(), ids=[repr(code)[2:-1] for code in CODES])
def test_odd_codes_blind_no_reader(tmp_path: Path, codes: bytes, name: str) -> None:
    """Recorders pad with NUL, use dashes, lower case, and bytes beyond ASCII: all readers clean them alike."""
    path = tmp_path / "a.mseed"
    path.write_bytes(b"".join(with_codes(record, codes) for record in made(wave(2000))))
    problems: list[SourceProblem] = []
    everywhere = (
        archived(path, problems=problems),
        followed(path, problems)[0],
        RecordReader().read(path.read_bytes()[:512]).blocks,
    )
    assert [{block.stream.seed for block in blocks} for blocks in everywhere] == [{name}] * 3
    [record] = read_records(path)
    assert str(record.station) == name[:-1]
    changed = codes.upper().replace(b"\0", b"").replace(b" ", b"").replace(b"--", b"")
    if changed != name.replace(".", "").encode()[2:] + name[:2].encode().removesuffix(b"."):
        assert all(f"it is called {name}" in problem.message for problem in problems)


def test_a_channel_that_is_renamed_is_told_once_by_each_source(tmp_path: Path) -> None:
    path = tmp_path / "a.mseed"
    path.write_bytes(b"".join(with_codes(record, b"S\xc9P  00HHZXX") for record in made(wave(3000))))
    for problems in ([], []):
        archived(path, problems=problems)
        followed(path, problems)
        told = "channel 'XX.SÉP.00.HHZ' lacks FDSN codes; it is called XX.S-P.00.HHZ"
        assert [problem.message for problem in problems] == [told] * 2
        assert all(problem.hint for problem in problems)


@pytest.mark.parametrize(
    ("identifier", "reason"),
    [
        (b"FDSN:XX_TOOLONGCODE_00_H_H_Z", "more than 8 characters"),
        (b"FDSN:XX_A_B_00_H_H_Z", "no FDSN source identifier"),
        (b"something else", "no FDSN source identifier"),
        (b"", "no FDSN source identifier"),
    ],
)
def test_names_that_cannot_be_cleaned_are_refused_by_name(tmp_path: Path, identifier: bytes, reason: str) -> None:
    """Cutting a code short could make one station of two; each reader says which channel it leaves out."""
    channel = identify_source(identifier, 100.0)
    assert channel.refusal is not None
    assert reason in channel.refusal.reason
    assert identifier.decode() in channel.refusal.reason
    if identifier:
        path = tmp_path / "a.mseed"
        path.write_bytes(b"".join(made(wave(500), name=identifier.decode(), version=3)))
        problems: list[SourceProblem] = []
        with pytest.raises(SourceError):
            archived(path, problems=problems)
        blocks, counted = followed(path, problems)
        assert not blocks
        assert counted["format_bytes"] == path.stat().st_size
        assert len(problems) == 2 and all(reason in problem.message for problem in problems)


@fuzz(200)
def test_any_codes_are_cleaned_or_refused(chance: Random) -> None:
    codes = tuple(junk(chance, 5) for _ in range(4))
    channel = identify((codes[0], codes[1], codes[2], codes[3]), chance.choice((20.0, 100.0, 1000.0, 0.0)))
    assert (channel.stream is None) == (channel.refusal is not None)
    if channel.stream is not None and channel.stream.row is not None:
        assert StreamId.parse(str(channel.stream)) == channel.stream


def damaged(records: Sequence[bytes], at: int) -> list[bytes]:
    """The last count of a record's own check is another one."""
    spoiled = bytearray(records[at])
    spoiled[64 + 11] ^= 0x55
    return [*records[:at], bytes(spoiled), *records[at + 1 :]]


@pytest.mark.parametrize("encoding", [STEIM1, STEIM2])
def test_a_damaged_record_is_a_gap_everywhere_counted_and_named(tmp_path: Path, encoding: int) -> None:
    """Samples that do not decode to the record's own last value may be anything: a step would trigger in a replay that
    never was at the station."""
    records = made(wave(4000), encoding=encoding)
    path = tmp_path / "a.mseed"
    path.write_bytes(b"".join(damaged(records, 3)))
    sound = [RecordReader().read(record).blocks[0] for i, record in enumerate(records) if i != 3]
    problems: list[SourceProblem] = []
    source = ArchiveSource([path], on_problem=problems.append)
    assert [block.start_ns for block in source.blocks()] == [block.start_ns for block in sound]
    assert source.counters()["damaged"] == 1
    assert source.counters()["damaged_bytes"] == 512
    blocks, counted = followed(path, problems)
    assert [block.start_ns for block in blocks] == [block.start_ns for block in sound]
    assert (counted["damaged"], counted["damaged_bytes"]) == (1, 512)
    [record] = read_records(path)
    first, second = record.rows[2]
    assert (first.end_ns, second.start_ns) == (sound[2].end_ns, sound[3].start_ns)
    assert len(problems) == 2
    assert all("its own last value" in problem.message and problem.hint for problem in problems)


def test_a_header_that_is_only_untidy_costs_no_samples() -> None:
    """A number of blockettes that does not fit is a recorder's habit, not damage."""
    record = bytearray(made(wave(400))[0])
    record[39] = 7
    assert RecordReader().read(bytes(record)).skipped is None


def test_records_without_a_length_of_their_own_are_read(tmp_path: Path) -> None:
    """Before blockette 1000 a record was as long as the way to the next one."""
    records = []
    for record in made(np.arange(3000), encoding=STEIM1):
        header = bytearray(record)
        header[39:40] = b"\0"
        header[46:48] = b"\0\0"
        records.append(bytes(header))
    path = tmp_path / "a.mseed"
    path.write_bytes(b"".join(records))
    assert sum(len(block.samples) for block in archived(path)) == 3000


def test_both_versions_in_one_file_are_read_by_every_reader(tmp_path: Path) -> None:
    """A recorder's update changes the version in the middle of a day."""
    path = tmp_path / "a.mseed"
    two, three = made(wave(3000)), made(wave(3000, 2), START + 30 * NS, version=3)
    path.write_bytes(b"".join(two + three))
    want = np.concatenate([wave(3000), wave(3000, 2)])
    for blocks in (archived(path), followed(path, [])[0], archived(path, packet_s=1.0)):
        np.testing.assert_array_equal(np.concatenate([block.samples for block in blocks]), want)
    [record] = read_records(path)
    np.testing.assert_array_equal(record.rows[2][0].samples, want)


def test_the_archive_hands_on_records_as_recorded(tmp_path: Path) -> None:
    """Each with its own time and rate, so that a clock that drifts is followed in a replay as at the station."""
    records, want = [], []
    for number in range(20):
        start_ns, rate_hz = START + number * 4_002_000_000, 100.0 + 0.01 * number
        records += made(wave(400, number), start_ns, rate_hz=rate_hz, reclen=4096, version=3)
        want.append((start_ns, rate_hz, 400))
    path = tmp_path / "a.mseed"
    path.write_bytes(b"".join(records[::-1]))
    assert [(block.start_ns, block.rate_hz, len(block.samples)) for block in archived(path)] == want


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_what_is_not_finite_is_a_gap_for_classify_too(
    tmp_path: Path, bad: float, capsys: pytest.CaptureFixture[str]
) -> None:
    """A verdict on such a window would be one on nothing; without the one door for all data classify never returned."""
    samples = wave(20_000).astype(np.float32)
    samples[3000:3005] = bad
    path = tmp_path / "a.mseed"
    path.write_bytes(b"".join(made(samples, encoding=FLOAT32, reclen=4096)))
    [record] = read_records(path)
    assert [len(segment.samples) for segment in record.rows[2]] == [3000, 20_000 - 3005]
    assert all(np.isfinite(segment.samples).all() for segment in record.rows[2])
    for arguments in ([], ["--onset", "2024-05-01T12:01:40Z"]):
        assert main(["classify", str(path), "--json", *arguments]) == 0
        assert json.loads(capsys.readouterr().out)["label"]


def test_a_record_of_nothing_but_nan_is_an_error_of_classify(tmp_path: Path) -> None:
    path = tmp_path / "a.mseed"
    path.write_bytes(b"".join(made(np.full(500, np.nan), encoding=FLOAT32)))
    with pytest.raises(SourceError, match="no valid sample"):
        read_records(path)


@pytest.mark.parametrize("name", ["XX.SLOPE.00.HHZ", "XX.SITE01.00.HHZ", "FDSN:TALUSNET_SLOPE-12_LOC-0001_H_H_Z"])
def test_talus_replays_its_own_evidence(tmp_path: Path, name: str) -> None:
    """Codes too long for miniSEED 2 are kept in version 3, which must come back under the same name."""
    stream, samples = StreamId.parse(name), wave(2000)
    path = tmp_path / "E.mseed"
    path.write_bytes(encode({stream: [Segment(START, 100.0, samples)]}))
    blocks = archived(path)
    assert {block.stream for block in blocks} == {stream}
    np.testing.assert_array_equal(np.concatenate([block.samples for block in blocks]), samples)
    assert [str(record.station) for record in read_records(path)] == [str(stream.station)]


# The same blocks for the same bytes, fuzzed

_NAMES = [*CODES, b"SLP  00HHNXX", b"SLP  00HHEXX", b"SLP  00LOGXX", b"SLP  00HDFXX"]


def some_records(chance: Random, *, sound: bool = False) -> bytes:
    """One channel's next records, of any kind; at times damaged, cut, or followed by what is none."""
    count, version = chance.randint(1, 900), chance.choice((2, 2, 3))
    encoding = chance.choice(tuple(TYPES))
    samples = np.cumsum(np.random.default_rng(chance.randrange(1000)).integers(-30, 30, count))
    data = samples.astype(np.float64)
    if encoding in (FLOAT32, FLOAT64) and not chance.randrange(3):
        data[chance.randrange(count)] = chance.choice((np.nan, np.inf, -np.inf))
    records = made(
        data if encoding in (FLOAT32, FLOAT64) else samples, START + chance.randrange(3600) * NS,
        rate_hz=chance.choice((20.0, 100.0, 99.97, 1000.0, 1.0)), version=version, encoding=encoding,
        reclen=chance.choice((256, 512, 1024, 4096)),
    )  # fmt: skip
    if version == 2:
        records = [with_codes(record, chance.choice(_NAMES)) for record in records]
    raw = b"".join(records)
    kind = 5 if sound else chance.randrange(6)
    if kind == 0:
        raw = spoilt(chance, raw, 4)
    elif kind == 1:
        raw += junk(chance, 300)
    elif kind == 2:
        raw = raw[: chance.randrange(len(raw) + 1)]
    return raw


def shape(blocks: Sequence[SampleBlock]) -> list[tuple[Any, ...]]:
    """All that a block says, to be compared."""
    return [(str(b.stream), b.start_ns, b.rate_hz, b.samples.dtype.str, b.samples.tobytes(), b.quality) for b in blocks]


def quietly(what: Callable[[], list[SampleBlock]]) -> list[SampleBlock]:
    try:
        return what()
    except SourceError:
        return []


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@fuzz(80)
def test_all_readers_give_the_same_blocks_for_the_same_bytes(fuzzed: Path, chance: Random) -> None:
    """The folder, the archive, a SeedLink packet and classify: what is read, renamed and left out is decided once."""
    data = b"".join(some_records(chance) for _ in range(chance.randint(1, 5)))
    # A record behind all, so that nothing waits for more bytes.
    data += made(np.arange(100), START + 7200 * NS)[0]
    path = fuzzed / "a.mseed"
    path.write_bytes(data)
    problems: list[SourceProblem] = []
    packets = [data[piece.begin : piece.end] for piece in pieces(data) if piece.is_record]
    reader = RecordReader()
    received = [block for packet in packets for block in reader.read(packet).blocks]
    folder, _ = followed(path, problems)
    assert shape(folder) == shape(received)
    archive = quietly(lambda: archived(path, problems=problems))
    in_order = sorted(received, key=lambda block: (block.start_ns, block.stream.seed))
    assert sorted(shape(archive), key=str) == sorted(shape(received), key=str)
    assert [(b.start_ns, b.stream.seed) for b in archive] == [(b.start_ns, b.stream.seed) for b in in_order]
    for station, rows in read_records(path):
        for row, segments in rows.items():
            rate_hz = segments[0].rate_hz
            codes = [b.stream.component for b in received if b.stream.station == station and b.stream.row == row]
            component = min(codes, key=lambda code: code.isdigit())
            door, kept = Continuity(), 0
            for block in in_order:
                same = block.stream == StreamId(station, component) and same_rate(block.rate_hz, rate_hz)
                kept += sum(len(piece.samples) for piece in door.accept(block)) if same else 0
            assert sum(len(segment.samples) for segment in segments) == kept


@fuzz(60)
def test_sound_files_are_decoded_all_at_once_to_the_same_blocks(chance: Random) -> None:
    """The quick way for whole files gives what one record after the other gives, in the order of time."""
    data = b"".join(some_records(chance, sound=True) for _ in range(chance.randint(1, 6)))
    quick, slow = RecordReader(), RecordReader()
    told: list[tuple[int, int, str]] = []

    def left_out(piece: Piece, record: Record | None) -> None:
        assert record is not None and record.skipped is not None
        told.append((piece.begin, piece.end, record.skipped.kind))

    found = [block for channel in recordings(quick, data, left_out) for block in channel.blocks()]
    want, skipped = [], []
    for piece, record in slow.read_all(data):
        assert record is not None
        want += record.blocks
        if record.skipped is not None:
            skipped.append((piece.begin, piece.end, record.skipped.kind))
    in_order = sorted(want, key=lambda block: (block.stream.seed, block.samples.dtype.str, block.start_ns))
    found.sort(key=lambda block: (block.stream.seed, block.samples.dtype.str, block.start_ns))
    assert shape(found) == shape(in_order)
    assert [block.stamps for block in found] == [block.stamps for block in in_order]
    assert sorted(told) == skipped


def test_a_sound_day_is_decoded_all_at_once() -> None:
    """Otherwise an archive would take three times as long to read, and nobody would notice."""
    data = b"".join(made(wave(60_000)) + made(wave(60_000, 2), name="FDSN:XX_SLP_00_H_H_N"))
    assert together(RecordReader(), data) is not None
    assert together(RecordReader(), data + bytes(100)) is None


@fuzz(60)
def test_headers_are_found_alike_in_small_and_large_pieces(chance: Random) -> None:
    data = b"".join(some_records(chance) for _ in range(chance.randint(1, 3)))[:20_000] + junk(chance, 60)
    small, large = headers(data), headers(data + bytes(40_000))
    assert [at for at in small if at + 48 <= len(data)] == [at for at in large if at + 48 <= len(data)]


@fuzz(60)
def test_no_record_begins_before_what_the_headers_say(chance: Random) -> None:
    """By that time a part of a large archive is read; later would be too late."""
    data = b"".join(some_records(chance) for _ in range(chance.randint(1, 4)))
    found = earliest_ns(data)
    starts = [record.start_ns for _, record in RecordReader().read_all(data) if record is not None and record.blocks]
    assert not starts or found[0] <= min(start_ns for start_ns in starts if start_ns is not None)
