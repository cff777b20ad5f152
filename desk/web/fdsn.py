"""``/fdsnws/event/1``: events for seismologists' own tools, as QuakeML 1.2 or text.

The origin of each event is the station that saw it first, and says so: ``epicenterFixed``, with the comment that this
is no location: limits of position are those of the station's. Nothing has a depth or a magnitude, so a limit of these
leaves no event. Parameters, codes and texts follow the FDSN web services' specification 1.2. No login is asked for, so
the desk answers only where its configuration says so (``web.fdsnws``).
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from agent.errors import DataError
from agent.messages.payloads import QUAKEML_TYPES
from agent.types import SLOW, format_ns, parse_ns, place_of
from desk.store import queries
from desk.web import region
from desk.web.api import DAY_NS, read, within
from desk.web.region import Region

MOST = 20_000
PARAMETERS = {
    "starttime": "start", "endtime": "end", **region.PARAMETERS,
    "mindepth": None, "maxdepth": None, "minmagnitude": "minmag", "maxmagnitude": "maxmag", "magnitudetype": "magtype",
    "eventtype": None, "limit": None, "offset": None, "orderby": None, "eventid": None,
    "format": None, "nodata": None, "catalog": None, "contributor": None, "includeallorigins": None,
    "includearrivals": None, "includeallmagnitudes": None,
}  # fmt: skip
TYPES = {label: kind for label, kind in QUAKEML_TYPES.items() if label != "noise"} | {SLOW: "other event"}
"""QuakeML's names of the classes, which has none for a slow event; noise and events without an answer are not in the
catalogue unless asked for by id."""
CATALOG, CONTRIBUTOR = "desk", "Talus"
_SHORT = {short: name for name, short in PARAMETERS.items() if short}


@dataclass(frozen=True, slots=True)
class _Query:
    """What is asked. ``without``: the status where nothing is found; ``oldest_first``: else the newest; ``skipped`` of
    these before the first that is wanted; ``fixed_limit``: the client named the ``limit``."""

    events: queries.Filter
    uid: str | None
    region: Region | None
    is_empty: bool
    limit: int
    fixed_limit: bool
    skipped: int
    oldest_first: bool
    form: str
    without: int

    @classmethod
    def of(cls, given: Mapping[str, str]) -> _Query:
        """Of a request's parameters.

        Raises:
            DataError: one is unknown or has a value that it cannot have.
        """
        unknown = sorted(given.keys() - PARAMETERS.keys())
        if unknown:
            raise DataError(f"the parameter {unknown[0]} is not supported; there are {', '.join(PARAMETERS)}")
        to_ns, none_has = _time(given, "endtime"), _asks_for_what_none_has(given)
        events = queries.Filter(
            from_ns=_time(given, "starttime"),
            to_ns=time.time_ns() + DAY_NS if to_ns is None else to_ns,
            exercise=False,
            names=tuple(sorted(_types(given.get("eventtype")))),
        )
        ours = given.get("catalog", CATALOG) == CATALOG and given.get("contributor", CONTRIBUTOR) == CONTRIBUTOR
        return cls(
            events,
            given["eventid"].rpartition("/")[2] if "eventid" in given else None,
            Region.of(given),
            none_has or not ours,
            _natural(given, "limit", MOST),
            "limit" in given,
            _natural(given, "offset", 1) - 1,
            _one_of(given, "orderby", "time", "time-asc") == "time-asc",
            _one_of(given, "format", "xml", "text"),
            int(_one_of(given, "nodata", "204", "404")),
        )

    def find(self, connection: Connection, places: dict[str, Any]) -> list[queries.EventRow]:
        """The events, in their order.

        Raises:
            DataError: they are too many.
        """
        if self.uid is not None:
            found = queries.event(connection, self.uid)
            return [found[0]] if found and _is_in(self.region, places, found[0].sensor) else []
        near = None if self.region is None else tuple(code for code in places if _is_in(self.region, places, code))
        wanted, rows = replace(self.events, stations=near), list[queries.EventRow]()
        before, most = None, 2 * MOST if self.oldest_first else self.skipped + self.limit
        while len(rows) <= most:
            page = queries.events(connection, wanted, before=before, limit=1000)
            rows += [row for row in page if row.ended]
            if len(page) < 1000:
                break
            before = page[-1].onset_ns, page[-1].key
        if len(rows) > most and (self.oldest_first or not self.fixed_limit):
            raise DataError(f"more than {most} events match; name a shorter time or a smaller region")
        return (rows[::-1] if self.oldest_first else rows)[self.skipped : self.skipped + self.limit]


async def query(request: Request) -> Response:
    """Events by time, place of the station, and type, the newest first."""
    try:
        wanted = _Query.of({_SHORT.get(name, name): value for name, value in request.query_params.items()})
    except DataError as error:
        return _error(request, 400, error.message)

    def ask(connection: Connection) -> tuple[list[queries.EventRow], dict[str, Any]]:
        places = {row.code: row.position for row in queries.stations(connection, imported=True)}
        return ([] if wanted.is_empty else wanted.find(connection, places)), places

    try:
        rows, places = await read(request, ask)
    except DataError as error:
        return _error(request, 413, error.message)
    if not rows:
        return Response(status_code=wanted.without)
    if wanted.form == "text":
        return PlainTextResponse(text(rows, places))
    return Response(quakeml(rows, places), media_type="application/xml")


def quakeml(rows: list[queries.EventRow], places: dict[str, Any]) -> str:
    """A QuakeML 1.2 document."""
    parts = [
        '<?xml version="1.0" encoding="UTF-8"?>\n<q:quakeml xmlns="http://quakeml.org/xmlns/bed/1.2"'
        ' xmlns:q="http://quakeml.org/xmlns/quakeml/1.2">\n<eventParameters publicID="smi:talus.desk/catalogue">'
    ]
    parts += [_event(row, places) for row in rows]
    return "\n".join([*parts, "</eventParameters>\n</q:quakeml>\n"])


def _event(row: queries.EventRow, places: dict[str, Any]) -> str:
    place = places.get(place_of(row.sensor))
    public = f"smi:talus.desk/event/{row.uid}"
    onset = f"{format_ns(row.onset_ns)[:26]}Z"
    kind, origin = TYPES.get(row.name), ""
    if place is not None:
        latitude, longitude, _ = place
        origin = (
            f"<preferredOriginID>{escape(public)}/origin</preferredOriginID>"
            f"<origin publicID={quoteattr(public + '/origin')}><time><value>{onset}</value></time>"
            f"<latitude><value>{latitude}</value></latitude><longitude><value>{longitude}</value></longitude>"
            "<epicenterFixed>true</epicenterFixed><comment><text>The position is that of the station, not a location."
            "</text></comment><evaluationMode>automatic</evaluationMode></origin>"
        )
    status = "known" if row.review else "suspected"
    typed = f"<type>{kind}</type><typeCertainty>{status}</typeCertainty>" if kind else ""
    share = "" if row.probability is None else f", probability {row.probability:.2f}"
    drill = "EXERCISE, not a real event: " if row.exercise else ""
    words = f"{drill}{row.name} at {row.sensor}{share}"
    return (
        f"<event publicID={quoteattr(public)}>{typed}"
        f"<description><text>{escape(words)}</text></description>{origin}</event>"
    )


def text(rows: list[queries.EventRow], places: dict[str, Any]) -> str:
    """The table of the specification's text format."""
    lines = [
        "#EventID|Time|Latitude|Longitude|Depth/km|Author|Catalog|Contributor|ContributorID|MagType|Magnitude|MagAuthor"
        "|EventLocationName|EventType"
    ]
    for row in rows:
        latitude, longitude, _ = places.get(place_of(row.sensor)) or ("", "", "")
        onset = format_ns(row.onset_ns)[:26]
        kind, drill = TYPES.get(row.name, ""), "EXERCISE " if row.exercise else ""
        lines.append(
            f"{row.uid}|{onset}|{latitude}|{longitude}||Talus|desk|Talus|{row.uid}||||{drill}at {row.sensor}|{kind}"
        )
    return "\n".join([*lines, ""])


async def version(_request: Request) -> Response:
    """The version of the specification."""
    return PlainTextResponse("1.2.0")


async def catalogs(_request: Request) -> Response:
    """The one catalogue."""
    body = f'<?xml version="1.0"?><Catalogs><Catalog>{CATALOG}</Catalog></Catalogs>'
    return Response(body, media_type="application/xml")


async def contributors(_request: Request) -> Response:
    """The one contributor."""
    body = f'<?xml version="1.0"?><Contributors><Contributor>{CONTRIBUTOR}</Contributor></Contributors>'
    return Response(body, media_type="application/xml")


async def wadl(request: Request) -> Response:
    """What the service can do, for programs that look it up."""
    base = quoteattr(f"{request.base_url}fdsnws/event/1/")  # the client chooses what stands in it
    names = "".join(f'<param name="{name}" style="query" type="xs:string"/>' for name in PARAMETERS)
    resources = "".join(
        f'<resource path="{name}"><method name="GET"><response status="200"/></method></resource>'
        for name in ("catalogs", "contributors", "version", "application.wadl")
    )
    body = (
        '<?xml version="1.0"?><application xmlns="http://wadl.dev.java.net/2009/02"'
        ' xmlns:xs="http://www.w3.org/2001/XMLSchema">'
        f'<resources base={base}><resource path="query"><method name="GET" id="query"><request>{names}'
        f"</request></method></resource>{resources}</resources></application>"
    )
    return Response(body, media_type="application/xml")


def _types(text_: str | None) -> set[str]:
    if text_ is None:
        return set(TYPES)
    names = {quake: label for label, quake in TYPES.items()}
    wanted = [part.strip() for part in text_.split(",")]
    if not all(one in names for one in wanted):
        raise DataError(f"eventtype is of {', '.join(names)}")
    return {names[one] for one in wanted}


def _time(given: Mapping[str, str], name: str) -> int | None:
    text_ = given.get(name)
    if text_ is None:
        return None
    try:
        return within(parse_ns(f"{text_.removesuffix('Z')}{'' if 'T' in text_ else 'T00:00:00'}Z"))
    except DataError:
        raise DataError(f"{name} is a time like 2026-03-01T00:00:00, UTC") from None


def _is_in(wanted: Region | None, places: dict[str, Any], code: str) -> bool:
    """Whether a station or sensor stands in a region; one whose place is not known stands in none."""
    place = places.get(place_of(code))
    return wanted is None or (place is not None and wanted.holds(*place[:2]))


def _asks_for_what_none_has(given: Mapping[str, str]) -> bool:
    """Whether there is a limit of depth or magnitude, which no event of the desk has."""
    for name in ("mindepth", "maxdepth", "minmagnitude", "maxmagnitude"):
        region.number(given, name, 0.0, -math.inf, math.inf)
    return any(name in given for name in ("mindepth", "maxdepth", "minmagnitude", "maxmagnitude", "magnitudetype"))


def _natural(given: Mapping[str, str], name: str, usual: int) -> int:
    text_ = given.get(name, str(usual))
    if not re.fullmatch("[0-9]{1,9}", text_) or not 0 < int(text_) <= MOST:
        raise DataError(f"{name} is a number from 1 to {MOST}")
    return int(text_)


def _one_of(given: Mapping[str, str], name: str, usual: str, other: str) -> str:
    value = given.get(name, usual)
    if value not in (usual, other):
        raise DataError(f"{name} is {usual} or {other}")
    return value


def _error(request: Request, status: int, words: str) -> Response:
    body = f"Error {status}: {words}\n\nRequest:\n{request.url}\n\nService version:\n1.2.0\n"
    return PlainTextResponse(body, status)


ROUTES = [
    Route("/fdsnws/event/1/query", query),
    Route("/fdsnws/event/1/version", version),
    Route("/fdsnws/event/1/catalogs", catalogs),
    Route("/fdsnws/event/1/contributors", contributors),
    Route("/fdsnws/event/1/application.wadl", wadl),
]
