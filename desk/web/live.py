"""Changes pushed to open pages: server-sent events that a page reads on from where it was.

The identifier of each event is its key in the feed table, so a page that comes back with ``Last-Event-ID`` gets what it
missed from the database. A page that was away for longer than the feed reaches is told to load anew.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import threading
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection
from starlette.concurrency import run_in_threadpool

from desk.store import queries
from desk.store.store import Store
from desk.web import views
from desk.worker import Worker

LASTS_S = 300.0
"""A stream ends after this time, or up to twice as long."""
WAITING = 100
"""Pieces that wait for a page that reads slowly; it is then told to load anew."""
PIECE = 32 * 1024
"""Bytes of a piece, which one write brings to a page, unless a single change is longer."""
LOOK_S = 1.0
"""The feed is looked at so often although nothing was told: another program may have written."""
SIGN_S = 20.0
"""A page is sent a sign of life so often: it keeps proxies from closing the connection, and a page that hears none for
three times as long (``SILENT_MS`` in ``changes.js``) knows that it hears nothing, although nothing was closed."""


class Live(Worker):
    """Reads the feed whenever it has grown, and pushes what is new to every page. ``wake`` may be called from any
    thread; the streams belong to the event loop of ``open``."""

    def __init__(self, store: Store) -> None:
        super().__init__("pages")
        self._store = store
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sign: asyncio.TimerHandle | None = None
        self._pages: set[asyncio.Queue[_Piece | None]] = set()
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
        self._sign = self._loop.call_later(SIGN_S, self._give_sign)
        self.start()

    def end_streams(self) -> None:
        """End every stream, so that the server can stop; later ones end at once. In the event loop."""
        self._closed = True
        for page in self._pages:
            page.put_nowait(None)

    def close(self) -> None:
        """End every stream, and stop."""
        self.end_streams()
        if self._sign is not None:
            self._sign.cancel()
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
                ready = _pieces(connection, rows)
            if rows:
                self._reached = rows[-1][0]
                loop.call_soon_threadsafe(self._spread, ready)
        return 0.0 if len(rows) == queries.FEED_PAGE else LOOK_S

    def _spread(self, ready: Sequence[_Piece]) -> None:
        for page in self._pages:
            for piece in ready:
                if page.qsize() < WAITING:
                    page.put_nowait(piece)

    def _give_sign(self) -> None:
        if self._loop is not None and not self._closed:
            self._spread([_Piece(None, b"event: here\ndata: here\n\n")])
            self._sign = self._loop.call_later(SIGN_S, self._give_sign)

    async def stream(self, last: int | None) -> AsyncIterator[bytes]:
        """What a page gets: changes after ``last`` (None: from now on). It ends after a while: the page asks again, and
        whether it still may is looked at."""
        page: asyncio.Queue[_Piece | None] = asyncio.Queue()
        until = time.monotonic() + LASTS_S * (1 + secrets.randbelow(100) / 100)
        self._pages.add(page)
        try:
            first, newest = await run_in_threadpool(self._span)
            if last is None or last > newest or last < first - 1:
                yield _said(newest, "hello" if last is None else "reload")
                last = newest
            while True:
                end, missed = await run_in_threadpool(self._missed, last)
                if end is None:
                    break
                for piece in missed:
                    yield piece.sent
                last = end
            while not self._closed and time.monotonic() < until:
                found = await page.get()
                if found is None:
                    return
                if page.qsize() >= WAITING - 1:
                    yield _said(last, "reload")
                    return
                if found.key is None or found.key > last:
                    last = found.key or last
                    yield found.sent
        finally:
            self._pages.discard(page)

    def _span(self) -> tuple[int, int]:
        with self._lock, self._store.reading() as connection:
            first, newest = queries.feed_span(connection)
            if self._reached is None:
                self._reached = newest
            return first, newest

    def _missed(self, last: int) -> tuple[int | None, list[_Piece]]:
        """The key up to which the next pieces after ``last`` reach (None: there is nothing more), and the pieces."""
        with self._store.reading() as connection:
            rows = queries.feed_since(connection, last)
            return (rows[-1][0] if rows else None), _pieces(connection, rows)


@dataclass(frozen=True, slots=True)
class _Piece:
    """One or several changes as they are sent; ``key`` is that of the last one, None for a sign of life."""

    key: int | None
    sent: bytes


def _pieces(connection: Connection, rows: Sequence[tuple[int, str, str]]) -> list[_Piece]:
    """Rows of the feed with what a page shows of them, so that no page has to ask; in few pieces."""
    newest = {(kind, subject): key for key, kind, subject in rows}
    events, alerts = _subjects(newest, "event", "review"), _subjects(newest, "alert", "ack", "call")
    stations = _subjects(newest, "station")
    lines = {
        "event": _by_id(map(views.event, queries.events_of(connection, events))),
        "alert": {},
        "station": {},
    }
    if alerts:
        lines["alert"] = _by_id(map(views.alert, queries.alerts(connection, uids=alerts, limit=len(alerts))))
    if stations:
        lines["station"] = {row.code: views.station(row) for row in queries.stations(connection, stations)}
    lines |= {"review": lines["event"], "ack": lines["alert"], "call": lines["alert"]}
    pieces: list[_Piece] = []
    for (kind, subject), key in sorted(newest.items(), key=lambda item: item[1]):
        line = lines.get(kind, {}).get(subject)
        data = json.dumps({"kind": kind, "subject": subject, "row": line}, separators=(",", ":"))
        sent = _said(key, "change", data)
        if pieces and len(pieces[-1].sent) + len(sent) <= PIECE:
            sent = pieces.pop().sent + sent
        pieces.append(_Piece(key, sent))
    return pieces


def _subjects(changes: Iterable[tuple[str, str]], *kinds: str) -> list[str]:
    return sorted({subject for kind, subject in changes if kind in kinds})


def _by_id(lines: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {line["id"]: line for line in lines}


def _said(key: int, word: str, data: str | None = None) -> bytes:
    """One server-sent event; ``data`` has no line ends."""
    return f"id: {key}\nevent: {word}\ndata: {data or word}\n\n".encode()
