"""A very small HTTP server for one page, in a thread of its own: the pipeline does nothing for it.

It shows what it was given last. A client that is slow, silent or hostile costs one of a few places for a few seconds,
and nothing else: sockets never block, requests are short, nothing that comes is interpreted but the first line.
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import threading
import time
from dataclasses import dataclass, field

from agent.backoff import ThrottledLog
from agent.deliver.waker import Waker
from agent.errors import TalusError
from agent.health.prometheus import CONTENT_TYPE

CLIENTS = 8
"""At once; the one that has been there longest makes room."""
PATIENCE_S = 5.0
REQUEST_BYTES = 4096

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Client:
    sock: socket.socket
    until: float
    request: bytearray = field(default_factory=bytearray)
    answer: memoryview | None = None


class Exporter:
    """``show`` from any thread; ``start`` and ``stop`` once each."""

    def __init__(self, host: str, port: int) -> None:
        """
        Raises:
            TalusError: the address cannot be listened on.
        """
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._listener.bind((host, port))
            self._listener.listen(CLIENTS)
            self._listener.setblocking(False)
        except OSError as error:
            self._listener.close()
            raise TalusError(
                f"health.prometheus: {host}:{port} cannot be listened on: {error.strerror or error}",
                "another program, or another agent, may have that port",
            ) from error
        self.port: int = self._listener.getsockname()[1]
        self._page = b""
        self._clients: dict[int, _Client] = {}
        self._selector = selectors.DefaultSelector()
        self._waker = Waker()
        self._stopping = threading.Event()
        self._throttled = ThrottledLog(_log.warning)
        self._thread = threading.Thread(target=self._run, name="exporter", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def show(self, page: bytes) -> None:
        """The page from now on."""
        self._page = page

    def stop(self, timeout_s: float = 1.0) -> None:
        """Close everything."""
        self._stopping.set()
        self._waker.wake()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._waker, selectors.EVENT_READ)
        try:
            while not self._stopping.is_set():
                for key, _ in self._selector.select(1.0 if self._clients else None):
                    if key.fileobj is self._listener:
                        self._accept()
                    elif key.fd in self._clients:
                        self._serve(self._clients[key.fd])
                now = time.monotonic()
                for client in [client for client in self._clients.values() if client.until < now]:
                    self._drop(client)
        finally:
            for client in list(self._clients.values()):
                self._drop(client)
            self._listener.close()
            self._selector.close()
            self._waker.close()

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError as error:
            self._throttled.warn(f"a reader of the metrics is not let in: {error}")
            # Out of file descriptors the listener stays readable: no reason to spin.
            self._stopping.wait(0.1)
            return
        sock.setblocking(False)
        if len(self._clients) >= CLIENTS:
            self._drop(next(iter(self._clients.values())))
        self._clients[sock.fileno()] = _Client(sock, time.monotonic() + PATIENCE_S)
        self._selector.register(sock, selectors.EVENT_READ)

    def _serve(self, client: _Client) -> None:
        try:
            if client.answer is None:
                self._read(client)
            if client.answer is not None:
                sent = client.sock.send(client.answer)
                client.answer = client.answer[sent:]
                if not client.answer:
                    self._drop(client)
        except BlockingIOError:
            return
        except OSError:
            self._drop(client)

    def _read(self, client: _Client) -> None:
        data = client.sock.recv(REQUEST_BYTES)
        client.request += data
        if not data:
            self._drop(client)
        elif b"\r\n\r\n" in client.request or b"\n\n" in client.request:
            client.answer = memoryview(_answer(bytes(client.request), self._page))
            self._selector.modify(client.sock, selectors.EVENT_WRITE)
        elif len(client.request) > REQUEST_BYTES:
            client.answer = memoryview(_response("431 Request Header Fields Too Large"))
            self._selector.modify(client.sock, selectors.EVENT_WRITE)

    def _drop(self, client: _Client) -> None:
        self._clients.pop(client.sock.fileno(), None)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(client.sock)
        client.sock.close()


def _answer(request: bytes, page: bytes) -> bytes:
    method, _, rest = request.partition(b" ")
    path = rest.split(b" ", 1)[0].split(b"?", 1)[0]
    if method not in (b"GET", b"HEAD"):
        return _response("405 Method Not Allowed")
    if path != b"/metrics":
        return _response("404 Not Found", b"see /metrics\n")
    if not page:
        return _response("503 Service Unavailable", b"no figures yet\n")
    return _response("200 OK", page, CONTENT_TYPE, head=method == b"HEAD")


def _response(status: str, body: bytes = b"", kind: str = "text/plain; charset=utf-8", *, head: bool = False) -> bytes:
    lines = (f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(body)}", "Connection: close", "", "")
    return "\r\n".join(lines).encode() + (b"" if head else body)
