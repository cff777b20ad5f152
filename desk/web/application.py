"""The desk's web application: routes, errors, and what every request shares."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import select
from sqlalchemy.exc import DataError as UnfitError
from sqlalchemy.exc import SQLAlchemyError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from agent.errors import DeliveryError
from desk.accounts import Attempts
from desk.call.link import Links
from desk.call.targets import Target
from desk.evidence import Records
from desk.store import tables
from desk.store.store import Store
from desk.web import ack, api, drums, fdsn, openapi, pages
from desk.web import metrics as figures
from desk.web import records as record_pages
from desk.web.guard import Headers, Turns, find_user, is_program
from desk.web.live import Live

HERE = Path(__file__).parent
_WORDS = {"Not Found": "There is no such page.", "Method Not Allowed": "This page takes no such request."}
"""For people, of what Starlette says by itself."""
_log = logging.getLogger(__name__)


def application(
    store: Store,
    live: Live,
    *,
    describe: Callable[[], Mapping[str, Any]] = dict,
    targets: Sequence[Target] = (),
    records: Records | None = None,
    links: Links | None = None,
    picture: Callable[[str], Path | None] = lambda _event: None,
    fdsnws: bool = False,
    metrics: bool = False,
    tiles: str | None = None,
    exercises: bool = False,
) -> Starlette:
    """The application over a store. ``describe`` says how the desk itself is, for every page; ``targets`` are those
    that are called; ``links`` checks what stands in their messages (None: nothing does), whose page shows the
    ``picture`` of an event; ``fdsnws`` and ``metrics`` answer programs without a login; ``tiles`` is the address of a
    map's tiles, with ``{z}``, ``{x}`` and ``{y}``; ``exercises``: counts and review show them unless asked not to."""

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        live.open()
        yield
        live.close()

    app = Starlette(
        routes=[
            *pages.ROUTES,
            *record_pages.ROUTES,
            *drums.ROUTES,
            *ack.ROUTES,
            *(fdsn.ROUTES if fdsnws else ()),
            *(figures.ROUTES if metrics else ()),
            Route("/api/v1/openapi.json", openapi.openapi),
            Mount("/api/v1", routes=api.ROUTES),
            Route("/healthz", healthz),
            Mount("/static/{version}", StaticFiles(directory=HERE / "static")),
        ],
        middleware=[Middleware(Headers, tiles=origin_of(tiles)), Middleware(GZipMiddleware, minimum_size=1000)],
        exception_handlers={
            HTTPException: _refused,
            SQLAlchemyError: _broken,
            DeliveryError: _broken,
            OverflowError: _broken,
            Exception: _broken,
        },
        lifespan=lifespan,
    )
    app.state.store, app.state.live, app.state.attempts = store, live, Attempts()
    app.state.logins, app.state.picture = Turns(), picture
    app.state.records, app.state.links = records, links or Links(secrets.token_bytes(32))
    app.state.describe, app.state.targets, app.state.tiles = describe, list(targets), tiles
    app.state.exercises = exercises
    pages.templates.env.globals["asset"] = asset
    return app


def origin_of(address: str | None) -> str | None:
    """Scheme, host and port of an address."""
    if address is None:
        return None
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc}"


async def healthz(request: Request) -> Response:
    """200 where the database answers and the desk hears its broker, else 503 with the reason; for a watchdog. It
    asks for no login: what a service or the database has said beyond that is for those who have one."""
    try:
        await api.read(request, lambda connection: connection.execute(select(tables.version.c.number)).scalar_one())
    except SQLAlchemyError:
        return PlainTextResponse("the database does not answer", 503)
    reason = request.app.state.describe().get("problem")
    return PlainTextResponse(reason.partition(": ")[0] if reason else "ok", 503 if reason else 200)


def asset(name: str) -> str:
    """The address of a file in ``static``. A hash of all of them is part of the path, so that a new version is never
    mixed with an old one, and a module that others import is the same one everywhere."""
    if not (HERE / "static" / name).is_file():
        raise FileNotFoundError(name)
    return f"/static/{_version()}/{name}"


@functools.cache
def _version() -> str:
    digest = hashlib.sha256()
    for path in sorted((HERE / "static").rglob("*")):
        if path.is_file():
            digest.update(path.relative_to(HERE).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


async def _refused(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    detail = error.detail if isinstance(error, HTTPException) else "the desk failed"
    if is_program(request):
        return JSONResponse({"error": detail}, status)
    with contextlib.suppress(SQLAlchemyError):
        request.state.user = await find_user(request)
    answer = pages.page(request, "error", status=status, detail=_WORDS.get(detail, detail))
    answer.status_code = status
    return answer


async def _broken(request: Request, error: Exception) -> Response:
    if isinstance(error, (UnfitError, OverflowError)):
        return await _refused(request, HTTPException(400, "no database can hold what the request says"))
    _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    if isinstance(error, (SQLAlchemyError, DeliveryError)):
        return await _refused(request, HTTPException(503, "the database does not answer; the desk's log says why"))
    return await _refused(request, HTTPException(500, "the desk failed; its log says why"))
