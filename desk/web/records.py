"""Records of events on the pages: the file itself, its traces, its spectrogram."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from agent.errors import TalusError
from desk.evidence import Records
from desk.record import Trace, packed, png, spectrogram, traces
from desk.store import queries, tables
from desk.web.api import read
from desk.web.guard import allowed
from desk.web.openapi import takes


@dataclass(frozen=True, slots=True)
class _Found:
    row: queries.EventRow
    verdicts: list[queries.Verdict]
    path: Path


@takes(gives="application/vnd.fdsn.mseed")
@allowed("viewer")
async def record(request: Request) -> Response:
    """The record of an event as miniSEED, as the station sent it."""
    found = await _find(request)
    return FileResponse(found.path, media_type="application/vnd.fdsn.mseed", filename=found.path.name)


@takes(gives="application/octet-stream")
@allowed("viewer")
async def waveform(request: Request) -> Response:
    """The traces for a page; see ``desk.record.packed``."""
    found = await _find(request)
    row = found.row
    marks: list[dict[str, Any]] = [{"at": 0, "kind": "onset", "colour": row.name}]
    if row.duration_s:
        marks.append({"at": row.duration_s, "kind": "end", "colour": row.name})
    marks += [{"at": v.window_s, "kind": "verdict", "colour": "dim"} for v in found.verdicts if v.window_s is not None]

    def draw(shown: list[Trace]) -> bytes:
        return packed(row.uid, shown, marks, spectrogram(shown[0]))

    shown = await _traces(found)
    return Response(await run_in_threadpool(draw, shown), media_type="application/octet-stream")


@takes(gives="image/png")
@allowed("viewer")
async def strip(request: Request) -> Response:
    """The spectrogram of the vertical as an image."""
    shown = await _traces(await _find(request))
    image = await run_in_threadpool(lambda: png(spectrogram(shown[0])))
    return Response(image, media_type="image/png", headers={"cache-control": "private, max-age=3600"})


async def _find(request: Request) -> _Found:
    """
    Raises:
        HTTPException: 404, the record of this event is not here.
    """
    uid, records = request.path_params["uid"], request.app.state.records

    def ask(connection: Connection) -> _Found | None:
        found = queries.event(connection, uid)
        if found is None or not isinstance(records, Records):
            return None
        row = found[0]
        state = select(tables.evidence.c.state).where(tables.evidence.c.event_id == row.key)
        if connection.execute(state).scalar() != "here":
            return None
        return _Found(row, queries.verdicts(connection, row.key), records.path(row.uid))

    answer = await read(request, ask)
    if answer is None or not answer.path.is_file():
        raise HTTPException(404, "the record of this event is not here")
    return answer


async def _traces(found: _Found) -> list[Trace]:
    try:
        return await run_in_threadpool(traces, found.path, found.row.sensor, found.row.onset_ns)
    except TalusError as error:
        raise HTTPException(500, f"the record cannot be read: {error.message}") from None


ROUTES = [
    Route("/api/v1/events/{uid}/record.mseed", record),
    Route("/api/v1/events/{uid}/waveform", waveform),
    Route("/api/v1/events/{uid}/spectrogram.png", strip),
]
