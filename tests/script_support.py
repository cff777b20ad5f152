"""An MQTT broker as a test writes it, for what no real one does on demand."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


class Script:
    """A server that answers each connection as a function says: what no real broker does on demand."""

    def __init__(self, serve: Any) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.connections = 0
        self._serve = serve
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.connections += 1
                threading.Thread(target=self._answer, args=(client,), daemon=True).start()

    def _answer(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            self._serve(client)

    def __enter__(self) -> Script:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()


CONNACK_5 = b"\x20\x03\x00\x00\x00"


def read_packet(client: socket.socket) -> tuple[int, bytes]:
    """Type and body of one MQTT packet."""
    kind = client.recv(1)
    if not kind:
        raise OSError("closed")
    length = shift = 0
    while True:
        byte = client.recv(1)[0]
        length |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    body = b""
    while len(body) < length:
        body += client.recv(length - len(body))
    return kind[0], body


def publish_parts(body: bytes) -> tuple[str, bytes, bytes]:
    """Topic, packet identifier and the rest of a PUBLISH."""
    size = int.from_bytes(body[:2], "big")
    return body[2 : 2 + size].decode(), body[2 + size : 4 + size], body[4 + size :]


@dataclass(frozen=True)
class Publication:
    """A PUBLISH: its first byte, its topic, and its properties and payload."""

    kind: int
    topic: str
    rest: bytes


def answering(answer: Callable[[Publication], bytes | None]) -> Callable[[socket.socket], None]:
    """A broker of MQTT 5 that lets everyone in and refuses every subscription. ``answer`` gives what its
    acknowledgement of a publication says behind the number (nothing: it is taken), or None for no acknowledgement."""

    def serve(client: socket.socket) -> None:
        while True:
            kind, body = read_packet(client)
            if kind == 0x10:
                client.sendall(CONNACK_5)
            elif kind == 0x82:
                client.sendall(b"\x90\x04" + body[:2] + b"\x00\x87")
            elif kind & 0xF0 == 0x30:
                topic, token, rest = publish_parts(body)
                said = answer(Publication(kind, topic, rest))
                if said is not None:
                    client.sendall(bytes([0x40, 2 + len(said)]) + token + said)

    return serve
