"""A real ringserver, fed through its DataLink port. Tests that need one are skipped where none is on PATH."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
from certificates_support import Authority
from pymseed import MS3Record

RINGSERVER = shutil.which("ringserver")
needs_ringserver = pytest.mark.skipif(RINGSERVER is None, reason="ringserver is not on PATH")


class RingServer:
    """On the loopback alone: ``port`` in the clear, ``tls_port`` with a certificate of ``ca``."""

    def __init__(self, folder: Path) -> None:
        issuer = Authority(folder)
        self.ca = issuer.ca
        cert, key = issuer.issue("server", "127.0.0.1")
        with socket.create_server(("127.0.0.1", 0)) as plain, socket.create_server(("127.0.0.1", 0)) as secured:
            self.port, self.tls_port = plain.getsockname()[1], secured.getsockname()[1]
        self._ring, self._config = folder / "ring", folder / "ring.conf"
        self._config.write_text(
            f"RingDirectory {self._ring}\nRingSize 16M\n"
            f"ListenPort {self.port} IPv4\nListenPort {self.tls_port} IPv4 TLS\n"
            f"TLSCertFile {cert}\nTLSKeyFile {key}\nWriteIP 127.0.0.1\nMatchIP 127.0.0.1\n"
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, empty: bool = False) -> None:
        if empty:
            shutil.rmtree(self._ring, ignore_errors=True)
        self._ring.mkdir(exist_ok=True)
        assert RINGSERVER is not None
        self._process = subprocess.Popen(
            [RINGSERVER, self._config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                assert time.monotonic() < deadline, "ringserver does not start"
                time.sleep(0.02)

    def end(self, how: signal.Signals = signal.SIGKILL) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(60)
            self._process = None

    def feed(self, records: Iterable[bytes]) -> None:
        """Write miniSEED records; when this returns the server has all of them."""
        with socket.create_connection(("127.0.0.1", self.port), 5) as link:
            _say(link, "ID tests:talus:1:x")
            for payload in records:
                record = MS3Record.parse(payload)
                kind = "MSEED3" if payload.startswith(b"MS\x03") else "MSEED"
                begin, end = record.starttime // 1000, record.endtime // 1000
                head = _say(link, f"WRITE {record.sourceid}/{kind} {begin} {end} A {len(payload)}", payload)
                assert head.startswith(b"OK"), head


def _say(link: socket.socket, head: str, payload: bytes = b"") -> bytes:
    """A DataLink command and the head of its answer."""
    link.sendall(b"DL" + bytes([len(head)]) + head.encode() + payload)
    answer = _exactly(link, _exactly(link, 3)[2])
    words = answer.split()
    if words[0] in (b"OK", b"ERROR"):
        _exactly(link, int(words[2]))
    return answer


def _exactly(link: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = link.recv(size - len(data))
        assert piece, "ringserver closed the connection"
        data += piece
    return data
