"""What a broker sends is looked at before it is held, with and without TLS, and without a look into paho's inside."""

from __future__ import annotations

import ast
import contextlib
import socket
import ssl
import threading
from pathlib import Path

import pytest
from certificates_support import Authority
from hypothesis import given
from hypothesis import strategies as st
from script_support import CONNACK_5, read_packet

from agent.config.broker import MqttSettings, TlsConfig
from agent.deliver.connection import Connection, Subscription
from agent.deliver.sockets import Framing, PlainSocket, UnwantedPacketError, Waker
from agent.errors import DeliveryError

AGENT = Path(__file__).parents[1] / "agent"


def packet(kind: int, body: bytes) -> bytes:
    length, digits = len(body), b""
    while True:
        length, digit = divmod(length, 128)
        digits += bytes([digit | (0x80 if length else 0)])
        if not length:
            return bytes([kind]) + digits + body


@given(
    bodies=st.lists(st.tuples(st.sampled_from([0x20, 0x30, 0x32, 0x40, 0x90, 0xD0]), st.binary(max_size=300))),
    cuts=st.lists(st.integers(1, 400)),
)
def test_packets_are_told_apart_in_whatever_pieces_they_come(bodies: list[tuple[int, bytes]], cuts: list[int]) -> None:
    stream = b"".join(packet(kind, body) for kind, body in bodies)
    framing = Framing(300)
    for size in cuts:
        framing.feed(stream[:size])
        stream = stream[size:]
    framing.feed(stream)
    assert framing.publications == sum(kind & 0xF0 == 0x30 for kind, _ in bodies)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (packet(0x32, bytes(301)), UnwantedPacketError),
        (b"\x32\xff\xff\xff\x7f", UnwantedPacketError),
        (packet(0x34, b"x"), UnwantedPacketError),
        (packet(0x62, b"\x00\x01"), UnwantedPacketError),
        (b"HTTP/1.1 400 Bad Request", ValueError),
        (b"\x00\x00", ValueError),
    ],
)
def test_what_must_not_be_held_is_refused_at_its_header(data: bytes, error: type[Exception]) -> None:
    framing = Framing(300)
    framing.feed(packet(0x20, b"\x00\x00\x00"))
    with pytest.raises(error):
        for byte in data:
            framing.feed(bytes([byte]))


def test_a_hostile_broker_is_hung_up_on_over_tls_too(tmp_path: Path) -> None:
    issuer = Authority(tmp_path)
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(*issuer.issue("broker"))
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError), listener.accept()[0] as plain:
            client = server_side.wrap_socket(plain, server_side=True)
            read_packet(client)  # type: ignore[arg-type]
            client.sendall(CONNACK_5 + b"\x32\xff\xff\xff\x7f")
            client.recv(1)

    threading.Thread(target=serve, daemon=True).start()
    settings = MqttSettings(
        host="127.0.0.1", port=listener.getsockname()[1], tls=TlsConfig(ca_file=issuer.ca), protocol="5"
    )
    subscription = Subscription(("talus/x",), lambda _: True, required=False, largest=1000)
    with (
        contextlib.closing(listener),
        contextlib.closing(Waker()) as waker,
        pytest.raises(DeliveryError, match="at most 1000"),
    ):
        connection = Connection.open(settings, "station", waker, subscription=subscription)
        while True:
            connection.pump(1.0)


def test_the_socket_reads_ahead_and_sends_what_is_held_as_the_network_takes_it() -> None:
    ours, theirs = socket.socketpair()
    with PlainSocket(fileno=ours.detach()) as sock, theirs:
        sock.setblocking(False)
        theirs.sendall(packet(0x40, b"\x00\x01") + packet(0x40, b"\x00\x02"))
        assert sock.recv(1) == b"\x40"
        assert sock.unread
        assert sock.recv(100) == b"\x02\x00\x01\x40\x02\x00\x02"
        assert not sock.unread
        with pytest.raises(BlockingIOError):
            sock.recv(1)
        parts = [bytes([n]) * 50_000 for n in range(100)]
        with sock.one_write():
            for part in parts[:-1]:
                assert sock.send(part) == len(part)
        assert sock.unsent, "a socket does not take 5 MB at once"
        sock.send(parts[-1])
        got = b""
        while sock.unsent or len(got) < 5_000_000:
            got += theirs.recv(100_000)
            sock.flush()
        assert got == b"".join(parts)


def test_nothing_private_of_paho_is_used() -> None:
    """A minor release of paho may change it, and stop alerts: what begins with an underscore is our own."""
    tree = ast.parse((AGENT / "deliver" / "connection.py").read_text())
    own = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and _is_self(node.value)}
    own |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    foreign = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and node.attr not in own
    }
    assert foreign == set()
    importers = [
        path.name for path in AGENT.rglob("*.py") if "import paho" in (text := path.read_text()) or "from paho" in text
    ]
    assert importers == ["connection.py"]
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    assert not [node.name for node in classes if any("Client" in ast.unparse(base) for base in node.bases)]


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls", "connection")
