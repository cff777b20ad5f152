"""Below the MQTT client: a wake-up call that a ``select`` can wait for, and sockets that look at each packet's header.

paho reads a packet of any length and answers every packet of QoS 2, for which nobody asked here. Its public interface
takes a TLS context, whose ``wrap_socket`` makes the socket that it reads from: these contexts make sockets that end the
connection at a packet that a broker must not send, before it is held.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
from collections.abc import Iterator
from typing import Any

_PUBLISH = 3
_EXPECTED = frozenset({0x20, 0x40, 0x90, 0xB0, 0xD0, 0xE0})
"""First bytes of CONNACK, PUBACK, SUBACK, UNSUBACK, PINGRESP, DISCONNECT."""
_QOS_2 = frozenset({0x50, 0x62, 0x70})
"""First bytes of PUBREC, PUBREL, PUBCOMP."""
_MOST_DIGITS = 4
"""Bytes of a packet's length."""
MAX_PACKET = 128**_MOST_DIGITS - 1
"""Most bytes of a packet after its header that MQTT allows."""
_READ_AHEAD = 32 * 1024
"""Bytes that are read at once."""


class Waker:
    """Ends another thread's wait early: its own `wait`, or a ``select`` that includes it."""

    def __init__(self) -> None:
        self._read, self._write = socket.socketpair()
        self._read.setblocking(False)
        self._write.setblocking(False)

    def fileno(self) -> int:
        return self._read.fileno()

    def wake(self) -> None:
        """A wake-up is never lost: the next wait ends at once if none is going on."""
        with contextlib.suppress(BlockingIOError):
            self._write.send(b"w")

    def clear(self) -> None:
        """Forget the wake-ups so far."""
        with contextlib.suppress(BlockingIOError):
            while self._read.recv(4096):
                pass

    def wait(self, timeout_s: float) -> None:
        """Sleep until woken or ``timeout_s`` have passed."""
        select.select([self._read], [], [], timeout_s)
        self.clear()

    def close(self) -> None:
        self._read.close()
        self._write.close()


class UnwantedPacketError(Exception):
    """A packet that is valid MQTT and must not be held: too large, or of QoS 2."""


class Framing:
    """Follows the packets of one incoming stream, whatever the pieces in which it is read."""

    def __init__(self, largest: int | None) -> None:
        """``largest``: most bytes of a packet after its header, None for what MQTT allows (256 MB)."""
        self.publications = 0
        """PUBLISH packets that have begun to come in."""
        self.largest = MAX_PACKET if largest is None else largest
        self._in_header = False
        self._length = self._digits = self._left = 0

    def feed(self, data: bytes) -> None:
        """Follow what was read.

        Raises:
            UnwantedPacketError: a packet that is not to be held.
            ValueError: this is not MQTT.
        """
        place = 0
        while place < len(data):
            if self._left:
                skipped = min(self._left, len(data) - place)
                self._left -= skipped
                place += skipped
                continue
            byte = data[place]
            place += 1
            if self._in_header:
                self._add_digit(byte)
            else:
                self._begin(byte)

    def _begin(self, byte: int) -> None:
        is_publication, qos = byte >> 4 == _PUBLISH, byte >> 1 & 3
        if byte in _QOS_2 or (is_publication and qos > 1):
            raise UnwantedPacketError("what was not asked for (QoS 2)")
        if not is_publication and byte not in _EXPECTED:
            raise ValueError(f"a packet that begins with {byte:#04x}")
        self.publications += is_publication
        self._in_header, self._length, self._digits = True, 0, 0

    def _add_digit(self, byte: int) -> None:
        self._length |= (byte & 0x7F) << (7 * self._digits)
        self._digits += 1
        if self._length > self.largest:
            raise UnwantedPacketError(f"a packet of {self._length} bytes or more, at most {self.largest} are taken")
        if byte < 0x80:
            self._in_header, self._left = False, self._length
        elif self._digits == _MOST_DIGITS:
            raise ValueError("a packet whose length does not end")


class _Followed:
    """A socket whose packets are followed by ``framing``. It reads ahead, since paho asks for the first bytes of a
    packet one by one, and holds back what is sent inside ``one_write``."""

    framing: Framing | None = None
    _ahead = b""
    _place = 0
    _is_holding = False
    _held = b""

    @property
    def unread(self) -> bool:
        """Whether something was read from the network that nobody has asked for yet."""
        return self._place < len(self._ahead)

    @property
    def unsent(self) -> bool:
        """Whether something is held that the network has not taken."""
        return bool(self._held)

    def recv(self, size: int, *_: int) -> bytes:
        """See ``socket.socket.recv``."""
        if not self.unread:
            self._ahead, self._place = super().recv(max(size, _READ_AHEAD)), 0  # type: ignore[misc]
            if self.framing is not None:
                self.framing.feed(self._ahead)
        begin, self._place = self._place, min(self._place + size, len(self._ahead))
        return self._ahead[begin : self._place]

    def send(self, data: bytes, *_: int) -> int:
        """See ``socket.socket.send``."""
        if self._is_holding or self._held:
            self._held += data
            return len(data)
        sent: int = super().send(data)  # type: ignore[misc]
        return sent

    def flush(self) -> None:
        """Send what is held, as far as the network takes it now."""
        while self._held:
            try:
                sent = super().send(self._held)  # type: ignore[misc]
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return
            self._held = self._held[sent:]

    @contextlib.contextmanager
    def one_write(self) -> Iterator[None]:
        """Send everything that is sent inside with one call."""
        self._is_holding = True
        try:
            yield
        finally:
            self._is_holding = False
            self.flush()


class PlainSocket(_Followed, socket.socket):  # type: ignore[misc]
    """Over TCP."""

    def do_handshake(self) -> None:
        """There is none without TLS."""


class TlsSocket(_Followed, ssl.SSLSocket):  # type: ignore[misc]
    """Over TLS."""


class PlainContext(ssl.SSLContext):
    """The context for a connection without TLS: it makes a ``PlainSocket`` of the socket that it is given."""

    def __new__(cls) -> PlainContext:
        made = super().__new__(cls, ssl.PROTOCOL_TLS_CLIENT)
        made.check_hostname = False
        return made

    def wrap_socket(self, sock: socket.socket, *_: Any, **__: Any) -> PlainSocket:  # type: ignore[override]
        """See ``ssl.SSLContext.wrap_socket``."""
        timeout_s = sock.gettimeout()
        plain = PlainSocket(sock.family, sock.type, sock.proto, fileno=sock.detach())
        plain.settimeout(timeout_s)
        return plain


def followed(context: ssl.SSLContext | None) -> ssl.SSLContext:
    """The context to give to the client: ``context`` with followed sockets; None: no TLS."""
    if context is None:
        return PlainContext()
    context.sslsocket_class = TlsSocket
    return context
