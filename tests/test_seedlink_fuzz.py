"""Bytes that no sound server sends: nothing raises, grows or vanishes uncounted (``fuzz_support``)."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
from random import Random

import pytest
from fuzz_support import fuzz, junk, one_of, several, spoilt
from seedlink_support import packets, request, server_at

from agent.errors import SourceError
from agent.sources.miniseed import RecordReader
from agent.sources.seedlink.connection import Connection, subscribe
from agent.sources.seedlink.protocol import ForeignError, Frames, Packet, in_notation
from agent.sources.seedlink.resume import Cursor, Past, Position, Progress, Reached
from agent.types import MAX_BLOCK_S, NS

GOOD = [*packets(1), *packets(1, version=3), *packets(1, encoding=4, reclen=1024), *packets(1, encoding=1)]
READER = RecordReader()


@fuzz(150)
def test_any_record_is_read_or_refused(chance: Random) -> None:
    """Either samples of a length that the pipeline takes, or a reason."""
    read = READER.read(spoilt(chance, chance.choice(GOOD)))
    assert (read.skipped is None) == bool(read.blocks)
    for block in read.blocks:
        assert 0 < len(block.samples) <= MAX_BLOCK_S * block.rate_hz + 1
        assert 0 < block.rate_hz < 1100
    if read.skipped is not None:
        assert read.skipped.reason


@fuzz(150)
def test_any_bytes_are_read_or_refused(chance: Random) -> None:
    read = READER.read(junk(chance, 600))
    assert (read.skipped is None) == bool(read.blocks)


def _packet_4(chance: Random) -> bytes:
    """One whose lengths may be anything."""
    sizes = (0, chance.randrange(100), chance.randrange(2**32))
    name = chance.choice((b"", b"XX_A", junk(chance, 255)))
    length = chance.choice((len(name), chance.randrange(256)))
    head = struct.pack("<2s1s1sIQB", b"SE", junk(chance, 1) or b"2", b"D", chance.choice(sizes), 7, length)
    return head + name + junk(chance, 64)


LINES = (b"SL000001", b"SLINFO  ", b"SLINFO *", b"SE2D", b"SE", b"OK\r\n", b"ERROR\r\n", b"END", b"\r\n")


def _stream(chance: Random) -> bytes:
    return b"".join(
        several(
            chance,
            11,
            lambda chance: one_of(
                chance,
                lambda chance: junk(chance, 40),
                lambda chance: chance.choice(LINES),
                lambda chance: b"SL00000A" + spoilt(chance, chance.choice(GOOD)),
                lambda chance: b"SE2D" + struct.pack("<IQB", 512, 9, 4) + b"XX_A" + spoilt(chance, GOOD[0], 2),
                _packet_4,
            ),
        )
    )


@fuzz(150)
def test_any_stream_of_bytes_is_cut_or_refused(chance: Random) -> None:
    """Every byte ends up in a packet, in a line, in what was skipped, or waits; all waiting is bounded."""
    version, data, step = chance.choice((3, 4)), _stream(chance), chance.randrange(1, 700)
    frames = Frames()
    frames.version = version
    inside = 0
    for begin in range(0, len(data), step):
        frames.add(data[begin : begin + step])
        try:
            while (packet := frames.packet()) is not None:
                inside += _bytes_of(packet, version)
        except ForeignError:
            data = data[: begin + step]
            break
    lines = data.count(b"OK") * 4 + data.count(b"ERROR") * 7 + data.count(b"\n") * 40
    assert 0 <= len(data) - inside - frames.skipped_bytes - len(frames) <= lines


def _bytes_of(packet: Packet, version: int) -> int:
    if packet.form == "E" and packet.payload.startswith(b"ERROR"):
        return len(packet.payload)
    return len(packet.payload) + (17 + len(packet.station) if version == 4 else 8)


# A whole conversation


STATION_3 = '<station name="A" network="XX" begin_seq="%s" end_seq="%s"/>'
NUMBERS = ("1", "0", "FFFFFF", "-1", "1000000", "zz", "", "1" * 400)
ANSWERS_4 = (
    b'{"station":[{"id":"XX_A","start_seq":1,"end_seq":9}]}',
    b'{"station":[{"id":"XX_A","start_seq":1e999,"end_seq":2}]}',
    b'{"station":[{"id":"XX_A","start_seq":-5,"end_seq":-3}]}', b'{"station":{"id":1}}', b"[" * 100_000, b"{}", b"\xff",
)  # fmt: skip


def _answer_3(chance: Random) -> bytes:
    """To INFO STATIONS, in the log record that version 3 wraps it in."""
    stations = STATION_3 % (chance.choice(NUMBERS), chance.choice(NUMBERS))
    begins = ("", "<?xml version='1.0'?>", "<?xml version='1.0' encoding='nope'?>", "<!DOCTYPE a [<!ENTITY b 'c'>]>")
    text = spoilt(chance, f"{chance.choice(begins)}<seedlink>{stations}</seedlink>".encode(), 2)
    head = bytearray(GOOD[0][:64])
    struct.pack_into(">H", head, 30, len(text))
    struct.pack_into(">H", head, 44, 64)
    return b"SLINFO  " + bytes(head) + text.ljust(512 - 64, b"\0")


def _answer_4(chance: Random) -> bytes:
    text = spoilt(chance, chance.choice(ANSWERS_4), 1)
    return struct.pack("<2s1s1sIQB", b"SE", b"J", chance.choice((b"I", b"E")), len(text), 1, 0) + text


def _conversation(chance: Random) -> bytes:
    """All that a server says, whatever it is asked."""
    hello = chance.choice(
        (b"SeedLink v3.1 (x)\r\nY\r\n", b"SeedLink v4.0 (x) :: SLPROTO:4.0 TIME\r\nY\r\n", b"HTTP\r\n")
    )
    said = several(
        chance,
        11,
        lambda chance: one_of(
            chance,
            lambda _: b"OK\r\n",
            lambda _: b"OK\r\n",
            lambda _: b"ERROR NO such thing\r\n",
            _answer_3,
            _answer_4,
            lambda chance: b"SL00000A" + spoilt(chance, chance.choice(GOOD), 2),
            lambda chance: junk(chance, 40),
        ),
    )
    return spoilt(chance, hello, 1) + b"".join(said) if chance.randrange(9) == 0 else hello + b"".join(said)


@pytest.fixture(scope="module")
def listener() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


@fuzz(60)
def test_any_server_is_understood_or_named(listener: socket.socket, chance: Random) -> None:
    """Whatever it answers, the source's thread lives: the connection is given up with a reason."""
    said = _conversation(chance)

    def serve() -> None:
        peer, _ = listener.accept()
        with peer, contextlib.suppress(OSError):  # the client may be gone already
            peer.sendall(said)
            peer.shutdown(socket.SHUT_WR)
            while peer.recv(65536):
                pass

    server = threading.Thread(target=serve)
    server.start()
    connection = Connection(server_at(listener.getsockname()[1]), 5.0)
    try:
        connection.open()
        position = Position(
            chance.choice((0, 5, 2**24 - 1, 2**64 - 1)), 1_700_000_000_000_000_000, chance.choice((3, 4))
        )
        requests = [
            request("XX_A", *chance.choice(((), ("HH?",), ("0_H_H_Z", "!00_L_*_*")))),
            request("X?_*"),
        ]
        past = Past(
            {"XX_A": Reached(position), "XX_B": Reached(position)},
            chance.choice(("unknown", "together", "apart")),
            chance.choice((None, Cursor("XX_A", position))),
        )
        subscribe(connection, requests, past, {"XX_A"} if chance.randrange(2) else (), lambda *_: None)
        while connection.receive(5.0) is not None:
            pass
    except SourceError as error:
        assert error.message
    finally:
        connection.close()
        server.join()


def test_an_answer_that_does_not_end_is_given_up(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.sources.seedlink.connection._MAX_INFO", 64 << 10)
    record = bytearray(512)
    struct.pack_into(">H", record, 30, 448)
    struct.pack_into(">H", record, 44, 64)

    def serve() -> None:
        peer, _ = listener.accept()
        with peer, contextlib.suppress(OSError):
            peer.recv(100)
            peer.sendall(b"SeedLink v3.1 (made up) :: SLPROTO:3.1\r\nhere\r\n")
            while True:
                peer.sendall((b"SLINFO *" + record) * 100)

    server = threading.Thread(target=serve)
    server.start()
    connection = Connection(server_at(listener.getsockname()[1]), 5.0)
    connection.open()
    with pytest.raises(SourceError, match="does not stop answering INFO STATIONS"):
        connection.info("STATIONS")
    connection.close()
    server.join()


AT = {"sequence": 5, "start_ns": 1_772_323_200 * NS, "version": 4}
STATE = json.dumps(
    {
        "schema": "talus/seedlink-state/3",
        "server": "host:18000",
        "numbering": "together",
        "cursor": {"station": "XX_A", "position": AT},
        "stations": {"XX_A": {"position": AT, "ends": {"XX.A.00.HHZ": 1_772_323_201 * NS}}},
    }
).encode()
VALUES = (b"1e999", b"-5", b"null", b"[" * 5000, b"2", b"NaN", b'"x"', b"1" * 5000, b"9" * 22, b"{}")


@fuzz(60)
def test_any_state_file_is_used_or_told(tmp_path_factory: pytest.TempPathFactory, chance: Random) -> None:
    """A disk may keep anything: reception begins, with sane positions or with none."""
    content = STATE
    if chance.randrange(2):
        old = chance.choice(
            (b"5", b"1772323200000000000", b"1772323201000000000", b"4}", b'{"XX_A"',
             b'"together"', b'{"XX.A.00.HHZ"', b'{"station"')
        )  # fmt: skip
        content = content.replace(old, chance.choice(VALUES))
    if chance.randrange(2):
        content = spoilt(chance, content, 4)
    path = tmp_path_factory.getbasetemp() / "fuzzed-state.json"
    path.write_bytes(content)
    progress = Progress(path, "host:18000")
    past = progress.past()
    positions = [reached.position for reached in past.stations.values()]
    for position in positions + ([past.cursor.position] if past.cursor else []):
        assert 0 <= position.sequence < 1 << 64
        assert position.version in (3, 4)
    assert past.numbering in ("unknown", "together", "apart")
    assert not (progress.problem and (positions or past.cursor))


# Single cases


def test_packets_of_version_3_are_found_again_behind_garbage() -> None:
    (record,) = packets(1)
    for between in (b"\x00" * 100, b"SL12", b"\xffSLxxxxxx\x01", record[:300]):
        frames = Frames()
        frames.add(b"SL000001" + record + between + b"SL000002" + record + b"SL000003" + record)
        found = []
        while (packet := frames.packet()) is not None:
            found.append(packet.sequence)
        assert found == [1, 2, 3], between
        assert frames.skipped_bytes == len(between)


@pytest.mark.parametrize("size", [(4 << 20) + 1, 2**32 - 1])
def test_a_packet_of_version_4_that_claims_too_much_is_refused(size: int) -> None:
    """It would otherwise be waited for while memory fills."""
    frames = Frames()
    frames.version = 4
    frames.add(struct.pack("<2s1s1sIQB", b"SE", b"2", b"D", size, 1, 4))
    with pytest.raises(ForeignError):
        frames.packet()


@pytest.mark.parametrize(
    ("given_selector", "version", "said"),
    [
        ("HH?", 3, "HH?"), ("00HH?", 3, "00HH?"), ("HH*", 3, "HH?"), ("!--H*Z", 3, "!--H?Z"), ("**HHZ.D", 3, "??HHZ.D"),
        ("00_H_H_?", 3, "00HH?"), ("_H_H_*", 3, "--HH?"), ("*_H_*_Z", 3, "H?Z"), ("0_H_H_Z", 3, None),
        ("HH?", 4, "*_H_H_?"), ("--HHZ", 4, "_H_H_Z"), ("!00HH?", 4, "!00_H_H_?"), ("00_H_H_?", 4, "00_H_H_?"),
    ],
)  # fmt: skip
def test_wildcards_are_said_as_the_version_knows_them(given_selector: str, version: int, said: str | None) -> None:
    assert in_notation(given_selector, version) == said
