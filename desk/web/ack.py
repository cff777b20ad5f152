"""The link in a notification: its page acknowledges with one button, without a login."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from agent.errors import DataError
from desk.call.link import Claim, Links
from desk.store import answers, queries
from desk.store.answers import OutdatedError, Person
from desk.web import pages, views
from desk.web.api import read
from desk.web.guard import address_of, store_of, text_field
from desk.web.live import Live


async def acknowledge(request: Request) -> Response:
    """The page behind a link. Only its button acknowledges: programs that look at links in messages follow them. It
    acknowledges what the page showed, or else what the message told, and nothing that has come since: an escalation
    calls again, and whoever has seen only the smaller alert is shown it first."""
    outdated = False
    try:
        claim, row = await _claimed(request)
    except DataError as refused:
        return _page(request, 403, error=f"{refused.message}: {refused.hint}")
    if row is not None and request.method == "POST":
        store, person = store_of(request), Person(claim.target, address_of(request), "link")
        shown = text_field(await request.form(), "revision", 9)
        seen = int(shown) if shown.isascii() and shown.isdigit() else claim.revision

        def act() -> None:
            answers.acknowledge(store, person, claim.alert, time.time_ns(), seen=seen)

        try:
            await run_in_threadpool(act)
        except OutdatedError:
            outdated = True
        live: Live = request.app.state.live
        live.wake()
        _, row = await _claimed(request)
    if row is None:
        return _page(request, 404, error="there is no such alert any more")
    return _page(
        request,
        409 if outdated else 200,
        alert=views.alert(row),
        outdated=outdated,
        grown=row.revision > claim.revision,
        age=views.age_words(time.time_ns() - row.onset_ns),
        done=request.method == "POST" and not outdated,
        target=claim.target,
        picture=await _picture_of(request, row) and f"/ack/{request.path_params['token']}/picture",
    )


async def picture(request: Request) -> Response:
    """The picture of the event, for whoever has the link."""
    try:
        _, row = await _claimed(request)
    except DataError as refused:
        raise HTTPException(403, refused.message) from None
    path = None if row is None else await _picture_of(request, row)
    if path is None:
        raise HTTPException(404, "there is no picture of this event")
    return FileResponse(path, media_type="image/webp")


async def _claimed(request: Request) -> tuple[Claim, queries.AlertRow | None]:
    """What the link stands for, and its alert; None where there is none any more.

    Raises:
        DataError: it is no link of this desk, or too old.
    """
    links: Links = request.app.state.links
    claim = links.claim(request.path_params["token"], time.time_ns())
    rows = await read(request, lambda connection: queries.alerts(connection, uids=[claim.alert]))
    return claim, rows[0] if rows else None


async def _picture_of(request: Request, row: queries.AlertRow) -> Path | None:
    found: Path | None = await run_in_threadpool(request.app.state.picture, row.event_uid)
    return found


def _page(request: Request, status: int, **values: Any) -> Response:
    answer = pages.page(request, "ack", **{"error": None, **values})
    answer.status_code = status
    return answer


ROUTES = [
    Route("/ack/{token}", acknowledge, methods=["GET", "POST"]),
    Route("/ack/{token}/picture", picture),
]
