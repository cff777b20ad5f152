"""Who may see and do what: the session's cookie, the forms' token, and headers that keep a page to itself."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hmac
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeAlias
from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from desk.accounts import MOST_PASSWORD, Role, User, user_of
from desk.store.answers import Person
from desk.store.store import Store

COOKIE = "talus_desk"
CSRF_FIELD, CSRF_HEADER = "csrf", "x-csrf-token"
LARGEST_FORM = 256 * 1024
"""Bytes of a request's body."""
MOST_LOGINS = 30
"""Logins that wait for their turn."""

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self';"
        " font-src 'self'; manifest-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
"""Of every answer: no script, style, picture or request from another host, and no page of ours inside another's."""

KEPT, NOT_KEPT = "public, max-age=31536000, immutable", "no-store"

Endpoint: TypeAlias = Callable[[Request], Awaitable[Response]]


class Headers:
    """Adds ``HEADERS`` to every answer and refuses bodies beyond ``LARGEST_FORM``."""

    def __init__(self, app: ASGIApp, tiles: str | None = None) -> None:
        """``tiles``: origin of the map's tiles, the only other host that a page may ask."""
        self._app = app
        self._headers = dict(HEADERS)
        if tiles:
            policy = self._headers["content-security-policy"]
            self._headers["content-security-policy"] = policy.replace("img-src 'self'", f"img-src 'self' {tiles}")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"])
        length = given.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > LARGEST_FORM:
            await Response("the request is too large", 413)(scope, receive, send)
            return
        # A form of another site could log somebody in under another's name; all others carry a token as well.
        if scope["method"] not in ("GET", "HEAD") and given.get(b"sec-fetch-site") in (b"cross-site", b"same-site"):
            await Response("this comes from another site", 403)(scope, receive, send)
            return
        read = 0

        async def counted() -> Message:
            # A body that comes in chunks tells no length beforehand.
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > LARGEST_FORM:
                raise HTTPException(413, "the request is too large")
            return message

        # A page that is left and come back to is asked for anew; what is static has its version in its path.
        kept = KEPT if scope["path"].startswith("/static/") else NOT_KEPT

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                names = {name.lower() for name, _ in message["headers"]}
                ours = {**self._headers, "cache-control": kept if message["status"] == 200 else NOT_KEPT}
                message["headers"] = [
                    *message["headers"],
                    *((k.encode(), v.encode()) for k, v in ours.items() if k.encode() not in names),
                ]
            await send(message)

        await self._app(scope, counted, with_headers)


class Turns:
    """Passwords are looked at one at a time: each look takes 32 MB and a tenth of a second, and guesses that come
    together would all be looked at before the first of them counts."""

    def __init__(self) -> None:
        self._lock, self._waiting = asyncio.Lock(), 0

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for the turn.

        Raises:
            HTTPException: too many wait.
        """
        if self._waiting >= MOST_LOGINS:
            raise HTTPException(503, "too many people log in at this moment; try again")
        self._waiting += 1
        try:
            async with self._lock:
                yield
        finally:
            self._waiting -= 1


def store_of(request: Request) -> Store:
    """The database."""
    store: Store = request.app.state.store
    return store


def person_of(request: Request) -> Person:
    """Who answers, for the audit."""
    user: User = request.state.user
    return Person(user.name, address_of(request))


def address_of(request: Request) -> str:
    """The client's address; behind a proxy on this machine, the one that the proxy names (uvicorn's proxy headers)."""
    return "" if request.client is None else request.client.host


async def find_user(request: Request) -> User | None:
    """Whose session the cookie names."""
    token = request.cookies.get(COOKIE, "")
    if not token or len(token) > 100:
        return None

    def find() -> User | None:
        with store_of(request).engine.connect() as connection:
            return user_of(connection, token, time.time_ns())

    return await run_in_threadpool(find)


def allowed(role: Role) -> Callable[[Endpoint], Endpoint]:
    """Let only users with at least this role in. A request that changes something must carry the session's token."""

    def decorate(endpoint: Endpoint) -> Endpoint:
        @functools.wraps(endpoint)
        async def guarded(request: Request) -> Response:
            user = await find_user(request)
            if user is None:
                return _to_login(request)
            if not user.may(role):
                raise HTTPException(403, f"this needs the role {role}")
            request.state.user = user
            if request.method not in ("GET", "HEAD"):
                await _check_token(request, user)
            return await endpoint(request)

        vars(guarded)["role"] = role
        return guarded

    return decorate


async def _check_token(request: Request, user: User) -> None:
    """
    Raises:
        HTTPException: the request does not carry the session's token: another site may have sent it.
    """
    token = request.headers.get(CSRF_HEADER)
    if token is None and "form" in request.headers.get("content-type", ""):
        token = str((await request.form()).get(CSRF_FIELD, ""))
    if not hmac.compare_digest((token or "").encode(), user.csrf.encode()):
        raise HTTPException(403, "the form has expired; reload the page")


def is_program(request: Request) -> bool:
    """Whether the answer is for a program rather than a page."""
    return request.url.path.startswith(("/api/", "/fdsnws/"))


def _to_login(request: Request) -> Response:
    if is_program(request):
        return JSONResponse({"error": "log in first"}, 401)
    target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    return RedirectResponse(f"/login?next={quote(target, safe='')}", 303)


def safe_target(text: str) -> str:
    """Where a login leads: a path of this desk, nowhere else."""
    bad = not text.startswith("/") or text.startswith(("//", "/\\")) or any(c.isspace() or c == "\\" for c in text)
    return "/" if bad else text


def set_session(response: Response, token: str, *, secure: bool) -> None:
    """Give the browser its session."""
    response.set_cookie(COOKIE, token, max_age=14 * 86_400, httponly=True, samesite="lax", secure=secure)


def clear_session(response: Response) -> None:
    """Take the session away."""
    response.delete_cookie(COOKIE)


def password_field(form: Mapping[str, Any], name: str) -> str:
    """A form's field exactly as it was typed, blanks and all; cut where no password is so long."""
    value = form.get(name, "")
    return value[: MOST_PASSWORD + 1] if isinstance(value, str) else ""


def text_field(form: Mapping[str, Any], name: str, longest: int = 1000) -> str:
    """A form's field as text without control characters, cut to ``longest``."""
    value = form.get(name, "")
    text = value if isinstance(value, str) else ""
    return "".join(c for c in text if c.isprintable() or c == "\n")[:longest].strip()
