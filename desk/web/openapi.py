"""``/api/v1/openapi.json``: the interface for programs, described from the routes that answer it (OpenAPI 3.1)."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route

from agent import __version__
from desk.web.guard import COOKIE, CSRF_HEADER

PREFIX = "/api/v1"
_PARAMETER = re.compile(r"\{(\w+)(?::\w+)?\}")
_E = TypeVar("_E", bound=Callable[..., Any])


def takes(
    query: Mapping[str, str] | None = None, body: Mapping[str, Any] | None = None, gives: str = "application/json"
) -> Callable[[_E], _E]:
    """Describe an endpoint: what its ``query`` parameters mean, the properties of its JSON ``body`` (JSON Schema, those
    without a default are required), and the type of its answer."""

    def decorate(endpoint: _E) -> _E:
        vars(endpoint).update(query=dict(query or {}), body=body, gives=gives)
        return endpoint

    return decorate


async def openapi(request: Request) -> Response:
    """This description; it needs no login."""
    return JSONResponse(described(request.app.routes))


def described(routes: Iterable[BaseRoute]) -> dict[str, Any]:
    """The document for the routes below ``PREFIX``."""
    paths: dict[str, dict[str, Any]] = {}
    for path, route in flat(routes):
        if path.startswith(PREFIX):
            operations = paths.setdefault(_PARAMETER.sub(r"{\1}", path), {})
            for method in sorted((route.methods or {"GET"}) - {"HEAD"}):
                operations[method.lower()] = _operation(path, route.endpoint)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Talus desk",
            "version": __version__,
            "description": "Events, alerts and stations of a Talus desk. Times are ISO 8601, UTC. Log in at /login: the"
            " session's cookie is asked for everywhere, and a request that changes something carries the session's"
            f" token (in the pages, meta name csrf) as {CSRF_HEADER}.",
        },
        "paths": paths,
        "components": {
            "securitySchemes": {
                "session": {"type": "apiKey", "in": "cookie", "name": COOKIE},
                "token": {"type": "apiKey", "in": "header", "name": CSRF_HEADER},
            },
            "schemas": {"Error": _object({"error": {"type": "string", "description": "what is wrong, in words"}})},
        },
    }


def flat(routes: Iterable[BaseRoute], prefix: str = "") -> Iterator[tuple[str, Route]]:
    """All routes with their whole paths."""
    for route in routes:
        if isinstance(route, Route):
            yield prefix + route.path, route
        elif isinstance(route, Mount):
            yield from flat(route.routes, prefix + route.path)


def _operation(path: str, endpoint: Any) -> dict[str, Any]:
    facts = vars(endpoint)
    text = inspect.cleandoc(endpoint.__doc__ or "")
    role = facts.get("role")
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    codes = {"400": "the request means nothing"}
    codes |= {"401": "not logged in", "403": f"needs the role {role}, or the token is missing"} if role else {}
    codes |= {"404": "there is no such thing"} if _PARAMETER.search(path) else {}
    operation: dict[str, Any] = {
        "operationId": endpoint.__name__,
        "summary": text.split("\n")[0].rstrip("."),
        "description": " ".join(text.split()),
        "parameters": [*_in_path(path), *_in_query(facts.get("query", {}))],
        "responses": {
            "200": {"description": "done", "content": {facts.get("gives", "application/json"): {}}},
            **{code: {"description": words, "content": error} for code, words in codes.items()},
        },
    }
    if facts.get("body") is not None:
        content = {"application/json": {"schema": _object(facts["body"])}}
        operation["requestBody"] = {"required": True, "content": content}
    if role:
        operation["security"] = [{"session": [], "token": []} if "requestBody" in operation else {"session": []}]
    return operation


def _in_path(path: str) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _PARAMETER.findall(path)
    ]


def _in_query(query: Mapping[str, str]) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "query", "required": False, "description": words, "schema": {"type": "string"}}
        for name, words in query.items()
    ]


def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
    required = [name for name, schema in properties.items() if "default" not in schema]
    return {"type": "object", "properties": dict(properties), "required": required}
