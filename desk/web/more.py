"""Routes that need more than the database: records of events, and the link that acknowledges."""

from __future__ import annotations

import time
from collections.abc import Sequence

from sqlalchemy import Connection, select
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Route

from agent.errors import DataError
from desk.call.link import Claim, Links
from desk.evidence import Records
from desk.store import answers, queries, tables
from desk.store.answers import Person
from desk.store.store import Store
from desk.web import pages, views
from desk.web.api import read
from desk.web.guard import address_of, allowed
from desk.web.live import Live


def routes(store: Store, records: Records, links: Links) -> Sequence[BaseRoute]:
    """The routes over a store, a folder of records and the maker of links."""

    @allowed("viewer")
    async def record(request: Request) -> Response:
        """The record of an event as miniSEED, as the station sent it."""
        uid = request.path_params["uid"]

        def find(connection: Connection) -> str | None:
            statement = select(tables.evidence.c.path).join(tables.event).where(tables.event.c.uid == uid)
            found: str | None = connection.execute(statement.where(tables.evidence.c.state == "here")).scalar()
            return found

        name = await read(request, find)
        path = records.path(uid) if name else None
        if path is None or not path.is_file():
            raise HTTPException(404, "the record of this event is not here")
        return FileResponse(path, media_type="application/vnd.fdsn.mseed", filename=f"{uid}.mseed")

    async def acknowledge(request: Request) -> Response:
        """The page behind a link: its button acknowledges, without a login."""
        token, error, done = request.path_params["token"], None, False
        claim = Claim("", "", 0)
        try:
            claim = links.claim(token, time.time_ns())
        except DataError as refused:
            error = f"{refused.message}: {refused.hint}"
        found = None
        if error is None:
            with_alert = await read(request, lambda c: queries.alerts(c, uid=claim.alert))
            found = views.alert(with_alert[0]) if with_alert else None
            if found is None:
                error = "there is no such alert any more"
        if request.method == "POST" and error is None:
            person = Person(claim.target, address_of(request), "link")
            change = await run_in_threadpool(answers.acknowledge, store, person, claim.alert, time.time_ns())
            live: Live = request.app.state.live
            live.publish([] if change is None else [change])
            done = True
        answer = pages.page(request, "ack", alert=found, error=error, done=done, target=claim.target)
        answer.status_code = 403 if error else 200
        answer.headers["cache-control"] = "no-store"
        return answer

    return [
        Route("/api/v1/events/{uid}/record.mseed", record),
        Route("/ack/{token}", acknowledge, methods=["GET", "POST"]),
    ]
