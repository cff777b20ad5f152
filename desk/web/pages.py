"""The pages, drawn on the server; small modules of JavaScript keep them up to date."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, func, select
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route
from starlette.templating import Jinja2Templates

from agent import __version__
from agent.errors import DataError
from agent.types import LABELS, NS, counted, parse_ns, place_of
from desk import accounts
from desk.call.calls import try_call
from desk.store import answers, queries, tables
from desk.store.tables import CLASSES
from desk.web import glance, views
from desk.web.api import DAY_NS, cursor_of, filter_of, read, shows_exercises, time_of
from desk.web.guard import (
    COOKIE,
    address_of,
    allowed,
    clear_session,
    find_user,
    password_field,
    person_of,
    safe_target,
    set_session,
    store_of,
    text_field,
)

HERE = Path(__file__).parent
MANY_STATIONS = 20
"""Of more stations, the page *Now* shows those with a problem at first."""
FIRST_DAY, LAST_DAY = "1970-01-02", "2199-12-31"
templates = Jinja2Templates(HERE / "templates")
templates.env.globals |= {
    "LABELS": LABELS,
    "CLASSES": CLASSES,
    "ALERTED": tables.ALERTED,
    "VERSION": __version__,
    "moment": views.moment,
    "clock": views.clock,
    "counted": counted,
    "distance": glance.span_words,
}


def page(request: Request, name: str, **values: Any) -> Response:
    """A page with what every page shows: the user, and how the desk itself is."""
    user = getattr(request.state, "user", None)
    shared = {"user": user, "desk": request.app.state.describe(), "now": views.moment(time.time_ns()), "here": name}
    return templates.TemplateResponse(request, f"{name}.html", {**shared, **values})


@allowed("viewer")
async def now(request: Request) -> Response:
    """Open alerts, the gravest first, stations, those with a problem first, and the newest events."""

    def ask(connection: Connection) -> dict[str, Any]:
        wanted = queries.Filter(to_ns=time.time_ns() + DAY_NS)
        stations = [views.station(row) for row in queries.stations(connection)]
        placed = [one for one in stations if one["position"] is not None]
        waiting = [views.alert(row) for row in queries.alerts(connection, only_open=True)]
        return {
            "stations": stations,
            "many": MANY_STATIONS,
            "places": [{name: one[name] for name in ("code", "status", "position")} for one in placed],
            "tiles": request.app.state.tiles,
            "alerts": sorted(waiting, key=lambda one: (one["rank"], one["raised"]), reverse=True),
            "events": [views.event(row) for row in queries.events(connection, wanted, limit=60)],
            "ahead": len(queries.events(connection, queries.Filter(from_ns=time.time_ns() + DAY_NS))),
            "last": queries.feed_span(connection)[1],
        }

    return page(request, "now", **await read(request, ask))


@allowed("viewer")
async def events(request: Request) -> Response:
    """A list of events by filter, page by page."""
    wanted, before = filter_of(request), cursor_of(request)

    def ask(connection: Connection) -> dict[str, Any]:
        rows = [views.event(row) for row in queries.events(connection, wanted, before=before)]
        following = rows[-1]["cursor"] if len(rows) == queries.PAGE else None
        return {"events": rows, "next": following, "sensors": _sensors(connection)}

    given = {name: value for name, value in request.query_params.items() if name != "cursor"}
    return page(request, "events", given=given, **await read(request, ask))


@allowed("viewer")
async def event(request: Request) -> Response:
    """One event with its picture, its verdicts, its neighbours and what people said."""
    uid = request.path_params["uid"]

    def ask(connection: Connection) -> dict[str, Any] | None:
        found = queries.event(connection, uid)
        if found is None:
            return None
        row, body = found
        station = place_of(row.sensor)
        known = queries.stations(connection, [station], imported=True)
        around = queries.Filter(station=station, from_ns=row.onset_ns - DAY_NS, to_ns=row.onset_ns + DAY_NS)
        rows, others = queries.events(connection, around, limit=1000), queries.neighbours(connection, row)
        reviews = select(tables.review).where(tables.review.c.event_id == row.key).order_by(tables.review.c.id.desc())
        record = select(tables.evidence).where(tables.evidence.c.event_id == row.key)
        return {
            "event": views.event(row),
            "message": body,
            "verdicts": [views.verdict(one) for one in changing(queries.verdicts(connection, row.key))],
            "alerts": [views.alert(one) for one in queries.alerts(connection, event_uid=row.uid)],
            "neighbours": [beside(row, one) for one in nearest(row, others)],
            "near": [
                {"code": one.code, "km": one.km, "words": one.words, "event": one.event and beside(row, one.event)}
                for one in glance.neighbours(connection, row, others, time.time_ns())
            ],
            "size": glance.size_words(connection, row),
            "spans": since_words(row, rows),
            "last": queries.feed_span(connection)[1],
            "around": [views.event(one) for one in rows],
            "reviews": [
                {"who": one.who, "when": views.moment(one.when_ns), "note": one.note, "sure": one.sure,
                 "label": None if one.label is None else LABELS[one.label]}
                for one in connection.execute(reviews)
            ],
            "record": connection.execute(record).mappings().first(),
            "station": next(map(views.station, known), None),
        }  # fmt: skip

    answer = await read(request, ask)
    if answer is None:
        raise HTTPException(404, f"there is no event {uid[:80]}")
    return page(request, "event", **answer)


def beside(row: queries.EventRow, other: queries.EventRow) -> dict[str, Any]:
    """The line of another event, with its seconds after this one."""
    return {**views.event(other), "after_s": (other.onset_ns - row.onset_ns) / NS}


def changing(verdicts: list[queries.Verdict]) -> list[queries.Verdict]:
    """Without those that say what the one before said: the window of an event ends where the next one begins, and later
    revisions have nothing more to judge."""
    said = [(one.window_s, one.name, one.shares) for one in verdicts]
    return [one for place, one in enumerate(verdicts) if place == 0 or said[place] != said[place - 1]]


def nearest(row: queries.EventRow, others: list[queries.EventRow]) -> list[queries.EventRow]:
    """Of each other sensor the event that is nearest in time, the nearest first."""
    found: dict[str, queries.EventRow] = {}
    for one in sorted(others, key=lambda other: abs(other.onset_ns - row.onset_ns)):
        found.setdefault(one.sensor, one)
    return list(found.values())


def since_words(row: queries.EventRow, around: list[queries.EventRow]) -> list[str]:
    """How long before this event the last one was, and the last of its class, in words."""
    before = [one for one in around if one.onset_ns < row.onset_ns and one.sensor == row.sensor]
    same = [one for one in before if one.name == row.name]
    found = []
    if before:
        found.append(f"The last event at this sensor was {views.span_words(row.onset_ns - before[0].onset_ns)} before.")
    if same and same[0] is not before[0]:
        found.append(f"The last {row.name} was {views.span_words(row.onset_ns - same[0].onset_ns)} before.")
    return found


@allowed("viewer")
async def alerts(request: Request) -> Response:
    """All alerts: who acknowledged them, when, and how long that took."""

    def ask(connection: Connection) -> dict[str, Any]:
        rows = [views.alert(row) for row in queries.alerts(connection, limit=300)]
        waits = sorted(row["waited_s"] for row in rows if row["waited_s"] is not None and not row["exercise"])
        return {
            "alerts": rows,
            "median": waits and views.span_words(round(waits[len(waits) // 2] * NS)),
            "answered": len(waits),
            "last": queries.feed_span(connection)[1],
        }

    return page(request, "alerts", **await read(request, ask))


@allowed("viewer")
async def counts(request: Request) -> Response:
    """Events per hour and class, cumulated, the inverse rate, and the hours that were not heard."""
    now_ns = time.time_ns()
    first_ns = await read(request, queries.first_ns)
    from_ns = time_of(request, "from", max(first_ns, now_ns - 7 * DAY_NS))
    to_ns = time_of(request, "to", now_ns)

    def ask(connection: Connection) -> dict[str, Any]:
        within = queries.Filter(from_ns=from_ns, to_ns=to_ns, exercise=True)
        return {"sensors": _sensors(connection), "exercises": bool(queries.events(connection, within, limit=1))}

    given, found = dict(request.query_params), await read(request, ask)
    shown = {"start": views.moment(from_ns), "end": views.moment(to_ns), "included": shows_exercises(request)}
    return page(request, "counts", **found, **shown, given=given)


@allowed("viewer")
async def review(request: Request) -> Response:
    """The queue: events that nobody has answered, those first of which the network was least sure. ``exercise=1`` shows
    those of exercises, to practise with: their answers are exported nowhere."""
    exercise = shows_exercises(request)

    def ask(connection: Connection) -> dict[str, Any]:
        rows = queries.queue(connection, limit=60, exercise=exercise)
        imported = bool(rows) and rows[0].imported
        drawn = queries.random_unreviewed(connection, 10, exercise=exercise, imported=imported)
        done = select(func.count()).select_from(tables.event).where(tables.event.c.review.is_not(None))
        return {
            "events": [views.event(row) for row in mixed(rows, drawn)],
            "exercise": exercise,
            "exercises": bool(queries.queue(connection, limit=1, exercise=True)),
            "reviewed": connection.execute(done).scalar_one(),
        }

    return page(request, "review", **await read(request, ask))


def mixed(unsure: list[queries.EventRow], random: list[queries.EventRow]) -> list[queries.EventRow]:
    """Every tenth of the queue is drawn at random, so that precision can be estimated from the answers."""
    rest = [row for row in random if row.key not in {one.key for one in unsure}]
    found: list[queries.EventRow] = []
    for place, row in enumerate(unsure, start=1):
        if row.imported and rest and not rest[0].imported:
            found, rest = found + rest, []
        found.append(row)
        if place % 9 == 0 and rest:
            found.append(rest.pop())
    return found + rest


@allowed("viewer")
async def settings(request: Request) -> Response:
    """Targets, silences, accounts, and the last acts of people."""

    def ask(connection: Connection) -> dict[str, Any]:
        s, a = tables.silence, tables.audit
        active = select(s).where(s.c.until_ns > time.time_ns(), s.c.ended_ns.is_(None)).order_by(s.c.until_ns)
        acts = select(a).order_by(a.c.id.desc()).limit(100)
        people = select(tables.account).order_by(tables.account.c.name)
        told = select(tables.notification).order_by(tables.notification.c.id.desc()).limit(50)
        return {
            "silences": connection.execute(active).mappings().all(),
            "acts": connection.execute(acts).mappings().all(),
            "accounts": connection.execute(people).mappings().all(),
            "notifications": connection.execute(told).mappings().all(),
            "stations": [row.code for row in queries.stations(connection)],
        }

    changed = request.query_params.get("password") == "changed"
    return page(request, "settings", targets=request.app.state.targets, changed=changed, **await read(request, ask))


@allowed("operator")
async def make_silence(request: Request) -> Response:
    """A silence from the form of the settings page."""
    form = await request.form()
    hours = text_field(form, "hours", 8)
    if not hours.isdecimal() or not 0 < int(hours) <= 24 * 31:
        raise HTTPException(400, "a silence lasts 1 to 744 hours")
    until_ns = time.time_ns() + int(hours) * 3600 * NS
    wanted = answers.Silence(
        text_field(form, "station", 40), text_field(form, "label", 32), until_ns, text_field(form, "reason")
    )
    await _do(lambda: answers.silence(store_of(request), person_of(request), wanted, time.time_ns()))
    return RedirectResponse("/settings", 303)


@allowed("operator")
async def end_silence(request: Request) -> Response:
    """End a silence before its time."""
    key = int(request.path_params["key"])
    await _do(lambda: answers.end_silence(store_of(request), person_of(request), key, time.time_ns()))
    return RedirectResponse("/settings", 303)


@allowed("operator")
async def call_for_test(request: Request) -> Response:
    """A call to one target, to see that it arrives."""
    name = text_field(await request.form(), "name", 80)
    target = next((one for one in request.app.state.targets if one.name == name), None)
    if target is None:
        raise HTTPException(404, "there is no such target any more")
    await _do(lambda: try_call(store_of(request), person_of(request), target, time.time_ns()))
    return RedirectResponse("/settings", 303)


@allowed("admin")
async def make_account(request: Request) -> Response:
    """An account from the form of the settings page."""
    form = await request.form()
    name, role, password = text_field(form, "name"), text_field(form, "role"), password_field(form, "password")
    by = person_of(request).name
    await _do(lambda: accounts.add_account(store_of(request), by, name, role, password, now_ns=time.time_ns()))  # type: ignore[arg-type]
    return RedirectResponse("/settings", 303)


@allowed("admin")
async def close_account(request: Request) -> Response:
    """Let nobody log in under a name any more."""
    name, by = request.path_params["name"], person_of(request).name
    await _do(lambda: accounts.disable_account(store_of(request), by, name, now_ns=time.time_ns()))
    return RedirectResponse("/settings", 303)


@allowed("viewer")
async def change_password(request: Request) -> Response:
    """Another password for whoever asks, from the form of the settings page."""
    form, token, state = await request.form(), request.cookies[COOKIE], request.app.state
    old, new, again = (password_field(form, field) for field in ("old", "new", "again"))
    if new != again:
        raise HTTPException(400, "the two new passwords differ: your password is as it was")
    async with state.logins.turn():
        await _do(
            lambda: accounts.change_password(
                state.store, state.attempts, person_of(request), token, old=old, new=new, now_ns=time.time_ns()
            )
        )
    return RedirectResponse("/settings?password=changed#you", 303)


async def login(request: Request) -> Response:
    """The form, and what it sends."""
    target = safe_target(request.query_params.get("next", "/"))
    if request.method == "GET":
        if await find_user(request) is not None:
            return RedirectResponse(target, 303)
        return page(request, "login", target=target, known="", error=None)
    form = await request.form()
    name, target = text_field(form, "name", 80), safe_target(text_field(form, "next", 500) or "/")
    password, state, address = password_field(form, "password"), request.app.state, address_of(request)

    def let_in() -> None:
        accounts.let_in(state.store, state.attempts, name, address, now_ns=time.time_ns())

    def check() -> str:
        return accounts.log_in(state.store, state.attempts, name, password, address, now_ns=time.time_ns())

    try:
        await run_in_threadpool(let_in)
        async with state.logins.turn():
            token = await run_in_threadpool(check)
    except DataError as error:
        answer = page(request, "login", target=target, known=name, error=f"{error.message}: {error.hint}")
        answer.status_code = 403
        return answer
    answer = RedirectResponse(target, 303)
    set_session(answer, token, secure=request.url.scheme == "https")
    return answer


@allowed("viewer")
async def logout(request: Request) -> Response:
    """End the session."""
    await run_in_threadpool(accounts.log_out, store_of(request), request.cookies[COOKIE])
    answer = RedirectResponse("/login", 303)
    clear_session(answer)
    return answer


@allowed("viewer")
async def day(request: Request) -> Response:
    """One station's day: events by class over a drum plot, where its samples or envelopes are here."""
    station = request.query_params.get("station", "")
    text = request.query_params.get("date") or (views.moment(time.time_ns()) or "")[:10]
    try:
        begin_ns = parse_ns(f"{text}T00:00:00Z")
    except DataError as error:
        raise HTTPException(400, f"`date`: {error.message}") from None
    if not FIRST_DAY <= text <= LAST_DAY:
        raise HTTPException(400, f"`date` is from {FIRST_DAY} to {LAST_DAY}")

    def ask(connection: Connection) -> dict[str, Any]:
        codes = [row.code for row in queries.stations(connection, imported=True)]
        if station and station not in codes:
            raise HTTPException(404, f"there is no station {station[:40]}")
        newest = queries.events(connection, queries.Filter(to_ns=time.time_ns() + DAY_NS), limit=1)
        chosen = station or next(iter([place_of(row.sensor) for row in newest] or codes), "")
        wanted = queries.Filter(station=chosen or "-", from_ns=begin_ns, to_ns=begin_ns + DAY_NS)
        rows = queries.events(connection, wanted, limit=5000)
        return {"stations": codes, "station": chosen, "events": [views.event(row) for row in rows]}

    found = await read(request, ask)
    before, after = ((views.moment(begin_ns + step * DAY_NS) or "")[:10] for step in (-1, 1))
    return page(request, "day", date=text, before=before, after=after, begin_ns=begin_ns, **found)


def _sensors(connection: Connection) -> list[str]:
    return [row.code for row in connection.execute(select(tables.sensor.c.code).order_by(tables.sensor.c.code))]


async def _do(act: Callable[[], object]) -> None:
    try:
        await run_in_threadpool(act)
    except DataError as error:
        raise HTTPException(400, f"{error.message}: {error.hint}") from None


ROUTES = [
    Route("/", now),
    Route("/events", events),
    Route("/event/{uid}", event),
    Route("/day", day),
    Route("/counts", counts),
    Route("/review", review),
    Route("/alerts", alerts),
    Route("/settings", settings),
    Route("/settings/silences", make_silence, methods=["POST"]),
    Route("/settings/silences/{key:int}/end", end_silence, methods=["POST"]),
    Route("/settings/targets/test", call_for_test, methods=["POST"]),
    Route("/settings/password", change_password, methods=["POST"]),
    Route("/settings/accounts", make_account, methods=["POST"]),
    Route("/settings/accounts/{name}/close", close_account, methods=["POST"]),
    Route("/login", login, methods=["GET", "POST"]),
    Route("/logout", logout, methods=["POST"]),
]
