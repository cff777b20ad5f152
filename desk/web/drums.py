"""``/api/v1/drum/STATION/DATE``: a day of a station as minima and maxima, for the page that draws it."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from agent.errors import DataError
from agent.types import parse_ns
from desk.drum import drum_of
from desk.web.api import number_of, read
from desk.web.guard import allowed
from desk.web.openapi import takes


@takes({"step": "seconds of a minimum and maximum, 1 to 60"})
@allowed("viewer")
async def drum(request: Request) -> Response:
    """The day from its first second on; ``step`` (1 to 60, seconds) says how fine. Seconds without samples are in no
    part."""
    station, date = request.path_params["station"], request.path_params["date"]
    step_s = number_of(request, "step", 1, 60)
    try:
        begin_ns = parse_ns(f"{date}T00:00:00Z")
    except DataError as error:
        raise HTTPException(400, f"the date: {error.message}") from None

    def ask(connection: Connection) -> dict[str, Any]:
        found = drum_of(connection, request.app.state.records, station, begin_ns)
        return {
            "station": station,
            "date": date,
            "sensor": found.sensor,
            "component": found.component,
            "source": found.source,
            "unit": "counts",
            "step_s": step_s,
            "scale": round(found.scale(), 1),
            "parts": found.parts(step_s),
        }

    return JSONResponse(await read(request, ask))


ROUTES = [Route("/api/v1/drum/{station}/{date}", drum)]
