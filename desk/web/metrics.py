"""``/metrics``: how the desk and its stations are, in Prometheus' text format; without a login, if so configured."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, func, select
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from agent.health.prometheus import CONTENT_TYPE, Family, page
from agent.types import NS
from desk.store import queries
from desk.store import tables as t
from desk.web.api import DAY_NS, read

STATUSES = ("ok", "starting", "degraded", "failed", "silent", "offline", "stopped", "unknown")


async def metrics(request: Request) -> Response:
    """Figures of the desk itself, of its stations, and of the last day."""
    described: Mapping[str, Any] = request.app.state.describe()
    now_ns = time.time_ns()
    stored = await read(request, lambda connection: list(_of_database(connection, now_ns)))
    return Response(page([*_of_desk(described), *stored]), media_type=CONTENT_TYPE)


def _one(name: str, text: str, value: float | None) -> Family:
    return Family(name, text, [({}, value)])


def _of_desk(described: Mapping[str, Any]) -> Iterator[Family]:
    figures: Mapping[str, float] = described.get("figures", {})
    yield _one("talus_desk_ok", "1 while the desk hears, stores and calls.", int(described.get("problem") is None))
    yield _one("talus_desk_connected", "1 while the desk is connected to its broker.", figures.get("connected"))
    yield _one("talus_desk_connects_total", "Connections to the broker.", figures.get("connects"))
    yield Family(
        "talus_desk_messages_total", "Messages since the start: stored, or refused by the schema.",
        [({"result": "stored"}, figures.get("written")), ({"result": "refused"}, figures.get("refused"))],
    )  # fmt: skip
    yield _one("talus_desk_quiet_seconds", "Since the last message.", figures.get("quiet_s"))
    yield Family(
        "talus_desk_calls_total", "Notifications since the start: sent, or not taken by their service.",
        [({"result": "sent"}, figures.get("sent")), ({"result": "failed"}, figures.get("failed"))],
    )  # fmt: skip
    yield _one("talus_desk_pages", "Open pages.", figures.get("pages"))
    yield _one("process_resident_memory_bytes", "Memory of the desk.", _resident_bytes())
    yield _one("process_cpu_seconds_total", "Processor time of the desk.", time.process_time())


def _of_database(connection: Connection, now_ns: int) -> Iterator[Family]:
    stations = queries.stations(connection)
    yield Family(
        "talus_desk_station_heard_seconds", "Since the last sign of life of a station.",
        [({"station": row.code}, round((now_ns - row.heard_ns) / NS, 1)) for row in stations],
    )  # fmt: skip
    yield Family(
        "talus_desk_station_status", "1 for the status that holds.",
        [({"station": row.code, "status": status}, int(row.status(now_ns) == status))
         for row in stations for status in STATUSES],
    )  # fmt: skip
    day: Counter[str] = Counter()
    for _, name, number in queries.counts(connection, now_ns - DAY_NS, now_ns):
        day[name] += number
    yield Family(
        "talus_desk_events_day", "Events of the last 24 hours (begun hours), without exercises.",
        [({"class": name}, day[name]) for name in t.CLASSES],
    )  # fmt: skip
    a, n = t.alert.c, t.notification.c
    is_open = (a.acked_ns.is_(None), a.action != "retract")
    waiting = select(func.count()).select_from(t.alert).where(*is_open)
    yield _one("talus_desk_alerts_open", "Alerts that wait for someone.", connection.execute(waiting).scalar_one())
    calls = select(func.count()).select_from(t.notification).where(n.state.in_(["waiting", "sending"]))
    yield _one("talus_desk_calls_waiting", "Notifications still to be sent.", connection.execute(calls).scalar_one())


def _resident_bytes() -> int | None:
    """Where the kernel tells it."""
    try:
        pages = Path("/proc/self/statm").read_text("ascii").split()[1]
    except (OSError, IndexError):
        return None
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


ROUTES = [Route("/metrics", metrics)]
