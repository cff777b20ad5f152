"""Values of the database as pages and programs show them: plain dictionaries, times as text."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from agent.config.policy import rank
from agent.types import NS, format_ns, place_of
from desk.store import queries
from desk.store.answers import LATE, SILENCED


def moment(time_ns: int | None) -> str | None:
    """ISO 8601 to the millisecond, UTC."""
    return None if time_ns is None else f"{format_ns(time_ns)[:23]}Z"


def clock(text: str) -> str:
    """The time of day of what ``moment`` gives, UTC, with its date where that is not today."""
    day, time_of_day = text[:10], text[11:19]
    return time_of_day if day == (moment(time.time_ns()) or "")[:10] else f"{day} {time_of_day}"


def span_words(time_ns: int) -> str:
    """``95 s``, ``12 min``, ``3.4 h``."""
    seconds = time_ns / NS
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def age_words(age_ns: int) -> str:
    """``12 min ago``."""
    seconds = age_ns / NS
    if seconds < -60:
        return "dated ahead, a clock is wrong"
    for most, unit, size in ((90, "s", 1), (5400, "min", 60), (172_800, "h", 3600)):
        if seconds < most:
            return f"{max(0.0, seconds) / size:.0f} {unit} ago"
    return f"{seconds / 86_400:.0f} days ago"


ACTIONS = {"raise": "alert", "escalate": "escalated", "retract": "retracted"}
"""What an alert did, as people say it."""


def alert_words(action: str, severity: str) -> str:
    """``alert: severe``."""
    return f"{ACTIONS.get(action, action)}: {severity}"


def event(row: queries.EventRow) -> dict[str, Any]:
    """A line of a list of events."""
    view = asdict(row)
    view["alert_words"] = None if row.alert is None else alert_words(*row.alert.partition(" ")[::2])
    view["place"] = place_of(row.sensor)
    view["id"], view["class"] = view.pop("uid"), view.pop("name")
    view["slow"] = row.uid.endswith("-slow")
    view["onset"] = moment(view.pop("onset_ns"))
    view["cursor"] = f"{row.onset_ns}-{view.pop('key')}"
    return view


NO_DRILL = 100
"""Taken from the rank of an exercise's severity, so that no drill stands before an alert."""


def alert(row: queries.AlertRow) -> dict[str, Any]:
    """A line of a list of alerts."""
    view = asdict(row)
    view.pop("key")
    view["id"], view["event"] = view.pop("uid"), view.pop("event_uid")
    for name in ("onset", "raised", "acked", "asked"):
        view[name] = moment(view.pop(f"{name}_ns"))
    view["open"] = row.is_open
    view["words"] = alert_words(row.action, row.severity)
    view["rank"] = rank(row.severity) - (NO_DRILL if row.exercise else 0)
    view["calls"] = calls(row)
    view["waited_s"] = None if row.acked_ns is None else round((row.acked_ns - row.asked_ns) / NS, 1)
    view["waited"] = None if row.acked_ns is None else span_words(row.acked_ns - row.asked_ns)
    return view


def calls(row: queries.AlertRow) -> list[dict[str, Any]]:
    """Who was called about an alert and who is next: ``words`` and the ``time`` they lead to."""
    found: list[dict[str, Any]] = []
    for call in row.calls:
        if call.state == "sent":
            found.append({"words": f"called {call.target}", "time": moment(call.sent_ns)})
        elif call.state == "dropped" and call.error in (SILENCED, LATE):
            found.append({"words": f"{call.target} not called: {call.error}", "time": None})
        elif call.state != "dropped" and call.tries:
            found.append({"words": f"{call.target} could not be reached, next try", "time": moment(call.due_ns)})
        elif call.state != "dropped":
            found.append({"words": f"{call.target} is next, at", "time": moment(call.due_ns)})
    if row.is_open and not row.calls:
        found.append({"words": "nobody is called", "time": None})
    return found


def station(row: queries.StationRow, now_ns: int | None = None) -> dict[str, Any]:
    """A station, with ``status``: ok, degraded, starting, silent, offline, stopped, imported or unknown."""
    now_ns = time.time_ns() if now_ns is None else now_ns
    health, state = row.health or {}, row.state or {}
    return {
        "code": row.code,
        "status": row.status(now_ns),
        "reasons": [reason["text"] for reason in health.get("reasons", [])],
        "availability": row.availability,
        "heard": moment(row.heard_ns),
        "heard_s": round((now_ns - row.heard_ns) / NS, 1),
        "health_time": moment(row.health_ns),
        "streams": health.get("streams", []),
        "streams_total": health.get("streams_total"),
        "streams_stalled": health.get("streams_stalled"),
        "hearing": health.get("hearing", []),
        "hearing_words": hearing_words(health.get("hearing") or []),
        "outbox": health.get("outbox"),
        "link": health.get("link"),
        "rates": health.get("rates", []),
        "events_hour": health.get("events_hour", {}),
        "model": state.get("model"),
        "versions": state.get("versions", {}),
        "config_revision": state.get("config_revision"),
        "exercise": bool(state.get("exercise")),
        "position": row.position,
    }


def hearing_words(hearing: list[dict[str, Any]]) -> str | None:
    """The least share of the last ten minutes in which a sensor could trigger, in words; None where none is told."""
    shares = [one["armed_10min"] for one in hearing if isinstance(one.get("armed_10min"), (int, float))]
    return f"{100 * min(shares):.0f} %" if shares else None


def verdict(found: queries.Verdict) -> dict[str, Any]:
    """One step of how a verdict grew."""
    return {
        "revision": found.number,
        "window_s": found.window_s,
        "class": found.name,
        "probabilities": found.shares,
        "received": moment(found.received_ns),
    }
