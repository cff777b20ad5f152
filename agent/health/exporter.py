"""A small HTTP server for one page, on Python's own: the pipeline does nothing for it.

It shows what it was given last. A client that is slow, silent or hostile takes one of a few places, for a few seconds
or until a newer client needs it. The server of prometheus-client has a thread for each client, and no bound on them.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections import OrderedDict
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from agent.errors import TalusError
from agent.health.prometheus import CONTENT_TYPE

CLIENTS = 8
"""At once; the one that has been there longest makes room."""
PATIENCE_S = 5.0
_POLL_S = 1.0
"""How often the thread looks whether it is to end."""

_log = logging.getLogger(__name__)


class Exporter(ThreadingHTTPServer):
    """``show`` from any thread; ``start`` and ``stop`` once each."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 4 * CLIENTS

    def __init__(self, host: str, port: int) -> None:
        """
        Raises:
            TalusError: the address cannot be opened.
        """
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            raise TalusError(
                f"health.prometheus: {host}:{port} cannot be opened: {error.strerror or error}",
                "another program, or another agent, may have that port",
            ) from error
        self.port: int = self.socket.getsockname()[1]
        self.page = b""
        self._lock = threading.Lock()
        self._clients: OrderedDict[Any, None] = OrderedDict()
        self._thread = threading.Thread(target=self.serve_forever, args=(_POLL_S,), name="exporter", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def show(self, page: bytes) -> None:
        """The page from now on."""
        self.page = page

    def stop(self) -> None:
        """Close everything."""
        self.shutdown()
        self.server_close()
        with self._lock:
            for client in self._clients:
                _hang_up(client)

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a client. Without file descriptors the listener stays readable: no reason to spin."""
        try:
            return super().get_request()
        except OSError:
            time.sleep(0.1)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Make room, and answer in a thread of its own."""
        with self._lock:
            self._clients[request] = None
            if len(self._clients) > CLIENTS:
                _hang_up(self._clients.popitem(last=False)[0])
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Note that a client has gone."""
        with self._lock:
            self._clients.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up in the middle is no error of ours."""
        _log.debug("a reader of the health page went away", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    timeout = PATIENCE_S
    server: Exporter

    def do_GET(self) -> None:
        page = self.server.page
        if self.path.partition("?")[0] != "/metrics":
            self._answer(HTTPStatus.NOT_FOUND, b"the page is /metrics\n")
        elif not page:
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, b"no report yet\n")
        else:
            self._answer(HTTPStatus.OK, page)

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        self._answer(HTTPStatus.METHOD_NOT_ALLOWED, b"GET only\n")

    def _answer(self, status: HTTPStatus, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Not in the agent's log."""


def _hang_up(client: socket.socket) -> None:
    with contextlib.suppress(OSError):
        client.shutdown(socket.SHUT_RDWR)
