"""The link in a notification: its page acknowledges with one button, without a login."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import Connection
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from agent.errors import DataError
from desk.call.link import Links
from desk.store import answers, queries
from desk.store.answers import Person
from desk.web import pages, views
from desk.web.api import read
from desk.web.guard import address_of, store_of
from desk.web.live import Live


async def acknowledge(request: Request) -> Response:
    """The page behind a link. Only its button acknowledges: programs that look at links in messages follow them."""
    links: Links = request.app.state.links
    try:
        claim = links.claim(request.path_params["token"], time.time_ns())
    except DataError as refused:
        return _page(request, 403, error=f"{refused.message}: {refused.hint}")

    def ask(connection: Connection) -> list[queries.AlertRow]:
        return queries.alerts(connection, uids=[claim.alert])

    rows = await read(request, ask)
    if not rows:
        return _page(request, 404, error="there is no such alert any more")
    if request.method == "POST":
        store, person = store_of(request), Person(claim.target, address_of(request), "link")
        await run_in_threadpool(answers.acknowledge, store, person, claim.alert, time.time_ns())
        live: Live = request.app.state.live
        live.wake()
        rows = await read(request, ask)
    age = views.age_words(time.time_ns() - rows[0].onset_ns)
    return _page(request, 200, alert=views.alert(rows[0]), age=age, done=request.method == "POST", target=claim.target)


def _page(request: Request, status: int, **values: Any) -> Response:
    answer = pages.page(request, "ack", **{"error": None, **values})
    answer.status_code = status
    answer.headers["cache-control"] = "no-store"
    return answer


ROUTES = [Route("/ack/{token}", acknowledge, methods=["GET", "POST"])]
