"""Bytes that no sound server sends: nothing raises, grows or vanishes uncounted (``fuzz_support``)."""

from __future__ import annotations

import struct

import pytest
from fuzz_support import fuzz
from hypothesis import given
from hypothesis import strategies as st
from seedlink_support import packets

from agent.sources.seedlink_frames import ForeignError, Frames, Packet
from agent.sources.seedlink_records import RecordReader
from agent.types import MAX_BLOCK_S

GOOD = [*packets(1), *packets(1, version=3), *packets(1, encoding=4, reclen=1024), *packets(1, encoding=1)]
changes = st.lists(st.tuples(st.integers(0, 1023), st.integers(0, 255)), max_size=12)
READER = RecordReader()


def spoilt(record: bytes, at: list[tuple[int, int]], cut: int) -> bytes:
    data = bytearray(record)
    for position, value in at:
        data[position % len(data)] = value
    return bytes(data[:cut])


@fuzz(150)
@given(st.sampled_from(GOOD), changes, st.integers(0, 4096))
def test_any_record_is_read_or_refused(record: bytes, at: list[tuple[int, int]], cut: int) -> None:
    """Either samples of a length that the pipeline takes, or a reason."""
    read = READER.read(spoilt(record, at, cut))
    assert (read.skipped is None) == bool(read.blocks)
    for block in read.blocks:
        assert 0 < len(block.samples) <= MAX_BLOCK_S * block.rate_hz + 1
        assert 0 < block.rate_hz < 1100
    if read.skipped is not None:
        assert read.skipped.reason


@fuzz(150)
@given(st.binary(max_size=600))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    read = READER.read(data)
    assert (read.skipped is None) == bool(read.blocks)


pieces = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([b"SL000001", b"SLINFO  ", b"SLINFO *", b"SE2D", b"SE", b"OK\r\n", b"ERROR\r\n", b"END", b"\r\n"]),
    st.builds(
        lambda record, at, cut: b"SL00000A" + spoilt(record, at, cut),
        st.sampled_from(GOOD), changes, st.integers(0, 1024),
    ),
    st.builds(
        lambda size, name, body: struct.pack("<2s1s1sIQB", b"SE", b"2", b"D", size, 7, name) + body,
        st.integers(0, 2**32 - 1), st.integers(0, 255), st.binary(max_size=64),
    ),
)  # fmt: skip


@fuzz(150)
@given(st.sampled_from([3, 4]), st.lists(pieces, max_size=12), st.integers(1, 700))
def test_any_stream_of_bytes_is_cut_or_refused(version: int, parts: list[bytes], step: int) -> None:
    """Every byte ends up in a packet, in a line, in what was skipped, or waits; all waiting is bounded."""
    frames, data = Frames(), b"".join(parts)
    frames.version = version
    inside = 0
    for begin in range(0, len(data), step):
        frames.add(data[begin : begin + step])
        try:
            while (packet := frames.packet()) is not None:
                inside += _bytes_of(packet, version)
        except ForeignError:
            return
    lines = data.count(b"OK") * 4 + data.count(b"ERROR") * 7 + data.count(b"\n") * 40
    assert 0 <= len(data) - inside - frames.skipped_bytes - len(frames) <= lines


def _bytes_of(packet: Packet, version: int) -> int:
    if packet.form == "E" and packet.payload.startswith(b"ERROR"):
        return len(packet.payload)
    return len(packet.payload) + (17 + len(packet.station) if version == 4 else 8)


def test_packets_of_version_3_are_found_again_behind_garbage() -> None:
    (record,) = packets(1)
    for junk in (b"\x00" * 100, b"SL12", b"\xffSLxxxxxx\x01", record[:300]):
        frames = Frames()
        frames.add(b"SL000001" + record + junk + b"SL000002" + record + b"SL000003" + record)
        found = []
        while (packet := frames.packet()) is not None:
            found.append(packet.sequence)
        assert found == [1, 2, 3], junk
        assert frames.skipped_bytes == len(junk)


@pytest.mark.parametrize("size", [(4 << 20) + 1, 2**32 - 1])
def test_a_packet_of_version_4_that_claims_too_much_is_refused(size: int) -> None:
    """It would otherwise be waited for while memory fills."""
    frames = Frames()
    frames.version = 4
    frames.add(struct.pack("<2s1s1sIQB", b"SE", b"2", b"D", size, 1, 4))
    with pytest.raises(ForeignError):
        frames.packet()
