"""The web server, which ends the pages' streams when it is told to stop."""

from __future__ import annotations

import socket

import uvicorn

from desk.web.live import Live


class Server(uvicorn.Server):
    """Otherwise it would wait for the open pages, which never end by themselves."""

    def __init__(self, live: Live, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._live = live

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See ``uvicorn.Server``."""
        self._live.end_streams()
        await super().shutdown(sockets)
