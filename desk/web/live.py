"""Changes pushed to open pages: server-sent events that a page reads on from where it was.

The identifier of each event is its key in the feed table, so a page that comes back with ``Last-Event-ID`` gets what it
missed from the database. A page that was away for longer than the feed reaches is told to load anew.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection
from sse_starlette.event import ServerSentEvent
from starlette.concurrency import run_in_threadpool

from desk.store import queries
from desk.store.store import Store
from desk.web import views
from desk.worker import Worker

WAITING = 1000
"""Changes that wait for a page that reads slowly; it is then told to load anew."""
LOOK_S = 1.0
"""The feed is looked at so often although nothing was told: another program may have written."""


class Live(Worker):
    """Reads the feed whenever it has grown, and pushes what is new to every page. ``wake`` may be called from any
    thread; the streams belong to the event loop of ``open``."""

    def __init__(self, store: Store) -> None:
        super().__init__("pages")
        self._store = store
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pages: set[asyncio.Queue[_Event | None]] = set()
        self._reached: int | None = None
        """Key of the feed up to which all pages have been told; None while there is no page."""
        self._lock = threading.Lock()
        self._closed = False

    @property
    def pages(self) -> int:
        """How many pages listen."""
        return len(self._pages)

    def open(self) -> None:
        """Take the running event loop as the one of the pages, and begin."""
        self._loop, self._closed = asyncio.get_running_loop(), False
        self.start()

    def close(self) -> None:
        """End every stream, so that the server can stop."""
        self._closed = True
        for page in self._pages:
            page.put_nowait(None)
        self.stop()

    def step(self) -> float:
        """Push what was committed since the last call; each change is put into words once, whatever the number of
        pages, and one that was overtaken by a later change of the same kind not at all."""
        loop = self._loop
        with self._lock:
            if loop is None or loop.is_closed() or not self._pages:
                self._reached = None
                return LOOK_S
            with self._store.reading() as connection:
                if self._reached is None:
                    self._reached = queries.feed_span(connection)[1]
                rows = queries.feed_since(connection, self._reached)
                newest = {(kind, subject): key for key, kind, subject in rows}
                ready = [_event(connection, key, *change) for change, key in sorted(newest.items(), key=lambda i: i[1])]
            if rows:
                self._reached = rows[-1][0]
                loop.call_soon_threadsafe(self._spread, ready)
        return 0.0 if rows else LOOK_S

    def _spread(self, ready: list[_Event]) -> None:
        for page in self._pages:
            for event in ready:
                if page.qsize() < WAITING:
                    page.put_nowait(event)

    async def stream(self, last: int | None) -> AsyncIterator[bytes]:
        """What a page gets: changes after ``last`` (None: from now on)."""
        page: asyncio.Queue[_Event | None] = asyncio.Queue()
        self._pages.add(page)
        try:
            first, newest = await run_in_threadpool(self._span)
            if last is None or last > newest or last < first - 1:
                yield _word(newest, "hello" if last is None else "reload")
                last = newest
            while missed := await run_in_threadpool(self._missed, last):
                for event in missed:
                    yield event.sent
                last = missed[-1].key
            while not self._closed:
                found = await page.get()
                if found is None:
                    return
                if page.qsize() >= WAITING - 1:
                    yield _word(found.key, "reload")
                    return
                if found.key > last:
                    last = found.key
                    yield found.sent
        finally:
            self._pages.discard(page)

    def _span(self) -> tuple[int, int]:
        with self._lock, self._store.reading() as connection:
            first, newest = queries.feed_span(connection)
            if self._reached is None:
                self._reached = newest
            return first, newest

    def _missed(self, last: int) -> list[_Event]:
        with self._store.reading() as connection:
            return [_event(connection, *row) for row in queries.feed_since(connection, last)]


@dataclass(frozen=True, slots=True)
class _Event:
    key: int
    sent: bytes


def _event(connection: Connection, key: int, kind: str, subject: str) -> _Event:
    """A change with what a page shows of it, so that no page has to ask."""
    row: dict[str, Any] | None = None
    if kind in ("event", "review") and (found := queries.event(connection, subject)) is not None:
        row = views.event(found[0])
    elif kind in ("alert", "ack"):
        row = next((views.alert(one) for one in queries.alerts(connection, uid=subject)), None)
    elif kind == "station":
        row = next((views.station(one) for one in queries.stations(connection, code=subject)), None)
    data = json.dumps({"kind": kind, "subject": subject, "row": row}, separators=(",", ":"))
    return _Event(key, ServerSentEvent(data=data, id=str(key), event="change").encode())


def _word(key: int, word: str) -> bytes:
    return ServerSentEvent(data=word, id=str(key), event=word).encode()
