"""``/api/v1``: the desk for programs and for its own pages. JSON; times are ISO 8601, UTC."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from sqlalchemy import Connection
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from agent.errors import DataError
from agent.types import LABELS, NS, parse_ns
from desk.store import answers, queries
from desk.store.store import Change
from desk.store.tables import ALERTED, CLASSES
from desk.web import views
from desk.web.guard import allowed, person_of, store_of, text_field
from desk.web.live import Live
from desk.web.openapi import takes

MOST = 1000
"""Rows of one answer."""
DAY_NS = 86_400 * NS
LONGEST_COUNT_NS = 3700 * DAY_NS

_SPAN = {"from": "onset from (ISO 8601, or a date)", "to": "onset before; of a date alone, to the end of that day"}
_LIMIT = {"limit": f"rows, 1 to {MOST}"}
_FILTER = {
    "station": "NET.STA", "sensor": "NET.STA.LOC.BS", "class": f"one of {', '.join(CLASSES)}", **_SPAN,
    "reviewed": "1: answered by a person; 0: not", "alerted": "1: with an alert", "exercise": "1: exercises; 0: none",
}  # fmt: skip
_TEXT = {"type": "string", "default": ""}

_T = TypeVar("_T")


async def read(request: Request, question: Callable[[Connection], _T]) -> _T:
    """Ask the database in a thread of its own."""

    def ask() -> _T:
        with store_of(request).engine.connect() as connection:
            return question(connection)

    return await run_in_threadpool(ask)


@takes()
@allowed("viewer")
async def stations(request: Request) -> Response:
    """All stations."""
    rows = await read(request, queries.stations)
    now_ns = time.time_ns()
    return JSONResponse({"stations": [views.station(row, now_ns) for row in rows]})


@takes({**_FILTER, **_LIMIT, "order": "unsure: the review queue", "cursor": "`next` of the page before"})
@allowed("viewer")
async def events(request: Request) -> Response:
    """A page of events: ``station``, ``sensor``, ``class``, ``from``, ``to``, ``reviewed``, ``alerted``, ``exercise``,
    ``order=unsure``, ``limit``, and ``cursor`` for the next page."""
    limit = number_of(request, "limit", queries.PAGE, MOST)
    if request.query_params.get("order") == "unsure":
        rows = await read(request, lambda c: queries.queue(c, limit=limit))
    else:
        wanted, before = filter_of(request), cursor_of(request)
        rows = await read(request, lambda c: queries.events(c, wanted, before=before, limit=limit))
    following = views.event(rows[-1])["cursor"] if len(rows) == limit else None
    return JSONResponse({"events": [views.event(row) for row in rows], "next": following})


@takes()
@allowed("viewer")
async def event(request: Request) -> Response:
    """One event: its line, newest message, verdicts, alerts and neighbours."""
    uid = request.path_params["uid"]

    def ask(connection: Connection) -> dict[str, Any] | None:
        found = queries.event(connection, uid)
        if found is None:
            return None
        row, body = found
        return {
            "event": views.event(row),
            "message": body,
            "verdicts": [views.verdict(one) for one in queries.verdicts(connection, row.key)],
            "alerts": [views.alert(one) for one in queries.alerts(connection, event_uid=row.uid)],
            "neighbours": [views.event(one) for one in queries.neighbours(connection, row)],
        }

    answer = await read(request, ask)
    if answer is None:
        raise HTTPException(404, f"there is no event {uid[:80]}")
    return JSONResponse(answer)


@takes({"open": "1: those that wait for someone", **_LIMIT})
@allowed("viewer")
async def alerts(request: Request) -> Response:
    """The newest alerts; ``open=1`` for those that wait for someone."""
    only_open, limit = request.query_params.get("open") == "1", number_of(request, "limit", queries.PAGE, MOST)
    rows = await read(request, lambda c: queries.alerts(c, only_open=only_open, limit=limit))
    return JSONResponse({"alerts": [views.alert(row) for row in rows]})


@takes(
    {
        **_SPAN,
        "hours": "of a bin, 1 to 744; by the span",
        "sensor": "NET.STA.LOC.BS",
        "station": "its coverage, too",
        "exercise": "1: with exercises; 0: without; by web.exercises",
    }
)
@allowed("viewer")
async def counts(request: Request) -> Response:
    """Events by class in bins of ``hours``, and the coverage of ``station``, or of the one that heard least."""
    now_ns = time.time_ns()
    from_ns, to_ns = time_of(request, "from", now_ns - 7 * DAY_NS), time_of(request, "to", now_ns)
    if not 0 < to_ns - from_ns <= LONGEST_COUNT_NS:
        raise HTTPException(400, "`from` must be before `to`, by ten years at most")
    # So that an answer has a few hundred bins.
    wide = next((hours for hours, days in ((1, 8), (6, 92)) if to_ns - from_ns <= days * DAY_NS), 24)
    hours = number_of(request, "hours", wide, 24 * 31)
    sensor, station = request.query_params.get("sensor"), request.query_params.get("station")
    exercises = shows_exercises(request)

    def ask(connection: Connection) -> dict[str, Any]:
        found = queries.counts(connection, from_ns, to_ns, sensor=sensor, hours=hours, exercises=exercises)
        heard = queries.coverage(connection, station or None, from_ns, to_ns)
        return {
            "hours": hours,
            "from": views.moment(from_ns),
            "to": views.moment(to_ns),
            "counts": found,
            "heard": heard,
            "exercises": exercises,
        }

    return JSONResponse(await read(request, ask))


@takes({"last": "key of the last change that was seen; or the header Last-Event-ID"}, gives="text/event-stream")
@allowed("viewer")
async def stream(request: Request) -> Response:
    """Changes as server-sent events; ``Last-Event-ID`` (or ``?last=``) reads on from there."""
    text = request.headers.get("last-event-id") or request.query_params.get("last") or ""
    live: Live = request.app.state.live
    changes = live.stream(int(text) if re.fullmatch("[0-9]{1,18}", text) else None)
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(changes, media_type="text/event-stream", headers=headers)


@takes(body={"note": _TEXT, "revision": {"type": ["integer", "null"], "minimum": 0, "default": None}})
@allowed("operator")
async def acknowledge(request: Request) -> Response:
    """Acknowledge an alert; ``note`` may say more. ``revision`` is the one that was seen: the answer is 409, and
    nothing is acknowledged, where a newer one has come."""
    form = await _body(request)
    uid, person, note, seen = request.path_params["uid"], person_of(request), _note(form), form.get("revision")
    if seen is not None and (not isinstance(seen, int) or isinstance(seen, bool)):
        raise HTTPException(400, "`revision` is a number")

    def act() -> Change | None:
        return answers.acknowledge(store_of(request), person, uid, time.time_ns(), note, seen=seen)

    change = await _change(request, act)
    return JSONResponse({"acknowledged": uid, "again": change is None})


@takes(
    body={
        "events": {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MOST},
        "label": {"enum": [*LABELS, None], "default": None},
        "sure": {"type": "boolean", "default": True},
        "note": _TEXT,
    }
)
@allowed("operator")
async def review(request: Request) -> Response:
    """Answer one or many events: ``events`` (identifiers), ``label`` (null takes it back), ``sure``, ``note``."""
    form = await _body(request)
    uids, label = form.get("events"), form.get("label")
    if not isinstance(uids, list) or not 0 < len(uids) <= MOST or not all(isinstance(one, str) for one in uids):
        raise HTTPException(400, f"`events` is a list of 1 to {MOST} identifiers")
    if label is not None and not isinstance(label, str):
        raise HTTPException(400, "`label` is a label or null")
    said = answers.Answer(label, form.get("sure") is not False, _note(form))
    person = person_of(request)
    changes = await _change(request, lambda: answers.answer(store_of(request), person, uids, said, time.time_ns()))
    return JSONResponse({"reviewed": len(changes)})


@takes(
    body={
        "station": _TEXT,
        "label": {"enum": ["", *ALERTED], "default": ""},
        "until": {"type": "string", "format": "date-time"},
        "reason": {"type": "string"},
    }
)
@allowed("operator")
async def silence(request: Request) -> Response:
    """Hold back notifications: ``station``, ``label`` (empty: all), ``until`` and ``reason``."""
    form = await _body(request)
    try:
        until_ns = parse_ns(str(form.get("until", "")))
    except DataError as error:
        raise HTTPException(400, f"`until`: {error.message}") from None
    wanted = answers.Silence(
        str(form.get("station", "")), str(form.get("label", "")), until_ns, str(form.get("reason", ""))
    )
    person = person_of(request)
    key = await _change(request, lambda: answers.silence(store_of(request), person, wanted, time.time_ns()))
    return JSONResponse({"silence": key})


def shows_exercises(request: Request) -> bool:
    """Whether counts and review are to be of exercises: the request says so, or else the desk's file."""
    given = request.query_params.get("exercise")
    return bool(request.app.state.exercises) if given is None else given == "1"


def filter_of(request: Request) -> queries.Filter:
    """The filter that a request's parameters describe.

    Raises:
        HTTPException: 400, a parameter that means nothing.
    """
    given = request.query_params
    name = given.get("class") or None
    if name is not None and name not in CLASSES:
        raise HTTPException(400, f"`class` is one of {', '.join(CLASSES)}")
    return queries.Filter(
        sensor=given.get("sensor") or None,
        station=given.get("station") or None,
        name=name,
        from_ns=time_of(request, "from", None),
        to_ns=time_of(request, "to", time.time_ns() + DAY_NS),
        reviewed={"1": True, "0": False}.get(given.get("reviewed", "")),
        alerted=given.get("alerted") == "1",
        exercise={"1": True, "0": False}.get(given.get("exercise", "")),
    )


def cursor_of(request: Request) -> tuple[int, int] | None:
    """Where the page before ended."""
    text = request.query_params.get("cursor", "")
    if not text:
        return None
    found = re.fullmatch(r"(-?[0-9]{1,20})-([0-9]{1,20})", text)
    if found is None:
        raise HTTPException(400, "`cursor` is the `next` of the page before")
    return within(int(found[1])), within(int(found[2]))


def within(number: int) -> int:
    """The nearest whole number that the database can hold."""
    return max(-(2**63), min(number, 2**63 - 1))


_D = TypeVar("_D", int, None)


def time_of(request: Request, name: str, default: _D) -> int | _D:
    """A time from a request's parameters, ns."""
    text = request.query_params.get(name)
    if not text:
        return default
    try:
        whole_day_ns = DAY_NS if name == "to" and "T" not in text else 0
        return within(parse_ns(text if "T" in text else f"{text}T00:00:00Z") + whole_day_ns)
    except DataError as error:
        raise HTTPException(400, f"`{name}`: {error.message}") from None


def number_of(request: Request, name: str, default: int, most: int) -> int:
    """A number from 1 to ``most`` from a request's parameters."""
    text = request.query_params.get(name)
    if not text:
        return default
    if not text.isascii() or not text.isdigit() or not 0 < int(text[:9]) <= most:
        raise HTTPException(400, f"`{name}` is a number from 1 to {most}")
    return int(text)


def _note(form: Mapping[str, Any]) -> str:
    return text_field({"note": str(form.get("note", ""))}, "note")


async def _body(request: Request) -> dict[str, Any]:
    try:
        body = await request.json()
    except (ValueError, RecursionError):
        raise HTTPException(400, "the body is not JSON") from None
    if not isinstance(body, dict):
        raise HTTPException(400, "the body is not a JSON object")
    return body


async def _change(request: Request, act: Callable[[], _T]) -> _T:
    """Let a person's act be done in a thread, and the pages be told."""
    try:
        done = await run_in_threadpool(act)
    except answers.OutdatedError as error:
        raise HTTPException(409, f"{error.message}: {error.hint}") from None
    except DataError as error:
        raise HTTPException(400, f"{error.message}: {error.hint}") from None
    live: Live = request.app.state.live
    live.wake()
    return done


ROUTES = [
    Route("/stations", stations),
    Route("/events", events),
    Route("/events/reviews", review, methods=["POST"]),
    Route("/events/{uid}", event),
    Route("/alerts", alerts),
    Route("/alerts/{uid}/ack", acknowledge, methods=["POST"]),
    Route("/counts", counts),
    Route("/silences", silence, methods=["POST"]),
    Route("/stream", stream),
]
