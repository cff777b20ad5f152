"""The agent's last word about itself, in a file of its state folder: what ``talus status`` reads.

A file needs no permission of the agent's, works while it hangs, and after its death still says what it saw last. It is
replaced as a whole every few seconds and is not forced to the disk: it describes a moment, and the disk may be a card.

From it comes one screen for whoever is woken at 3 a.m.: whether the station is well, why not, then the figures.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import Field

from agent.atomic import ANYONE, replace_file
from agent.errors import DataError, TalusError
from agent.host.disk import folder_in_memory
from agent.messages.schema import (
    AlertMessage,
    Amount,
    Count,
    DecisionPart,
    EventMessage,
    HealthMessage,
    HearingHealth,
    Payload,
    RateHealth,
    RsamHealth,
    StateMessage,
    Time,
    parse,
)
from agent.messages.text import digits, printable
from agent.types import NS, counted, format_ns, parse_ns, waiting

FILE = "status.json"
MAX_BYTES = 1_000_000
STALE_FACTOR = 3.0
"""Intervals without an update after which something is wrong."""
_GRACE_S = 5.0
Verdict: TypeAlias = Literal["ok", "starting", "degraded", "silent", "gone", "stopped"]
"""``starting``: it does not listen yet, which is no fault;
``silent``: the process is there but says nothing; ``gone``: it is not there; ``stopped``: it was told to end."""
_log = logging.getLogger(__name__)
HEADLINES = {
    "ok": "OK",
    "starting": "STARTING",
    "degraded": "DEGRADED",
    "silent": "SILENT: the process runs, but has not reported for {age}",
    "gone": "NOT RUNNING: it ended without a word, last heard of {age} ago",
    "stopped": "STOPPED: it was told to, {age} ago",
}
_RED, _GREEN, _PLAIN = "\x1b[1;31m", "\x1b[1;32m", "\x1b[0m"
_WORDS_MOST = 6


class StatusMessage(Payload):
    """What is in the file."""

    schema_: Literal["talus/status/1"] = Field(default="talus/status/1", alias="schema")
    written: Time
    interval_s: Amount = Field(description="how long after this the next word is due")
    pid: Count
    stopped: bool
    state: StateMessage
    health: HealthMessage
    last_event: EventMessage | None = Field(default=None, description="since the agent started")
    last_alert: AlertMessage | None = Field(description="since the agent started")


@dataclass(frozen=True, slots=True)
class Status:
    """The file's content, how old it is, and what follows from both."""

    said: StatusMessage
    age_s: float
    verdict: Verdict


class StatusFile:
    """Written by one thread."""

    def __init__(self, state_dir: Path, complain: Callable[[str], None] = _log.warning) -> None:
        self.path = state_dir / FILE
        self._complain = complain
        self._failed = False

    def write(self, body: StatusMessage) -> None:
        """Replace the file, or one in memory where the disk refuses; that is logged once, and is no reason to stop."""
        raw = body.model_dump_json().encode() + b"\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self.path, raw, mode=ANYONE, durable=False)
            self._failed = False
        except OSError as error:
            try:
                replace_file(_spare(self.path.parent), raw, mode=ANYONE, durable=False)
            except OSError:
                if not self._failed:
                    self._complain(f"{self.path}: {error.strerror}; `talus status` will show old figures")
            self._failed = True


def read(state_dir: Path, now_ns: int | None = None) -> Status:
    """What the agent that uses this folder said last.

    Raises:
        TalusError: no agent has used it, or the file may not be read or is not what it should be.
    """
    path = max(state_dir / FILE, _spare(state_dir), key=_written)
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES)
    except FileNotFoundError:
        raise TalusError(
            f"no agent has said anything in {state_dir}", "is it the state_dir of its configuration? see --config"
        ) from None
    except NotADirectoryError:
        raise TalusError(f"{state_dir} is not a folder", "name the state_dir of the configuration") from None
    except OSError as error:
        raise TalusError(f"{path}: {error.strerror}", "run this as the agent's user, or with sudo") from None
    try:
        said = parse(StatusMessage, raw)
        written_ns = parse_ns(said.written)
    except DataError as error:
        raise TalusError(
            f"{path} cannot be used: {error.message}",
            "it is damaged, or another version of the agent wrote it; one that runs replaces it every 10 s",
        ) from None
    age_s = ((time.time_ns() if now_ns is None else now_ns) - written_ns) / NS
    return Status(said, age_s, _verdict(said, age_s))


def _spare(state_dir: Path) -> Path:
    """Where the file is written when the disk refuses it; several agents may share the folder."""
    name = hashlib.sha256(os.fsencode(state_dir.absolute())).hexdigest()[:16]
    return folder_in_memory() / f"status-{name}.json"


def _written(path: Path) -> float:
    """When a file was written; 0 where there is none, or where only its user may look."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _verdict(said: StatusMessage, age_s: float) -> Verdict:
    if said.stopped:
        return "stopped"
    if not _lives(said.pid):
        return "gone"
    if not -_GRACE_S <= age_s <= STALE_FACTOR * said.interval_s + _GRACE_S:
        return "silent"
    status = said.health.status
    return status if status in ("ok", "starting") else "degraded"


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def status_message(
    state: StateMessage,
    health: HealthMessage,
    last_alert: AlertMessage | None,
    interval_s: float,
    *,
    last_event: EventMessage | None = None,
    stopped: bool,
) -> StatusMessage:
    """The state as of now."""
    return StatusMessage(
        written=format_ns(time.time_ns()),
        interval_s=interval_s,
        pid=os.getpid(),
        stopped=stopped,
        state=state,
        health=health,
        last_event=last_event,
        last_alert=last_alert,
    )


def screen(status: Status, *, colour: bool = False) -> str:
    """At most about 30 lines, each below 120 characters where the figures allow."""
    said, health = status.said, status.said.health
    headline = HEADLINES[status.verdict].format(age=span(status.age_s))
    lines = [f"{said.state.station}  {headline}"]
    if said.state.exercise:
        lines.append("  everything here is an exercise: simulated data")
    if status.verdict in ("silent", "gone", "stopped"):
        lines.append("  what follows is what it said last")
    lines += [f"  ! {reason.text}" for reason in health.reasons]
    rows = [
        ("agent", _agent(status)),
        ("samples", _samples(health)),
        *(("hearing", _hearing(one)) for one in health.hearing[:_WORDS_MOST]),
        ("network", _network(status)),
        ("events", _events(health)),
        *(("rate", _rate(rate)) for rate in health.rates[:_WORDS_MOST]),
        *(("rsam", _rsam(one)) for one in health.rsam[:_WORDS_MOST]),
        ("broker", _broker(health)),
        ("last event", _event(said.last_event)),
        ("last alert", _alert(said.last_alert)),
        ("machine", _machine(health)),
        ("clock", _clock(health)),
    ]
    lines += [f"  {name:<11}{text}" for name, text in rows]
    lines = [printable(line) for line in lines]
    if colour:
        lines[0] = f"{_GREEN if status.verdict == 'ok' else _RED}{lines[0]}{_PLAIN}"
    return "\n".join(lines)


def span(seconds: float) -> str:
    """A duration in the unit that suits it."""
    size = abs(seconds)
    for unit, name in ((86_400, "d"), (3600, "h"), (60, "min")):
        if size >= 2 * unit:
            return f"{seconds / unit:.0f} {name}"
    # Zero is added because a small negative number would be rounded to -0.0.
    return f"{round(seconds, 1) + 0.0:.1f} s" if size < 10 else f"{seconds:.0f} s"


def _agent(status: Status) -> str:
    said = status.said
    version = said.state.versions.get("talus", "?")
    stages = "".join(f", {stage.name} ended" for stage in said.health.stages if not stage.alive)
    waiting = max((stage.waiting or 0 for stage in said.health.stages if stage.name == "pipeline"), default=0)
    queue = f", {waiting} packets wait" if waiting > 10 else ""
    return (
        f"talus {version}, up {span(said.health.uptime_s)}, process {said.pid}, "
        f"said at {said.written[:19].replace('T', ' ')} UTC ({span(status.age_s)} ago){stages}{queue}"
    )


def _samples(health: HealthMessage) -> str:
    streams = health.streams
    if not streams:
        return "none yet"
    alive = [stream for stream in streams if not stream.stalled]
    late = max((stream.latency_s for stream in alive if stream.latency_s is not None), default=None)
    text = f"{len(alive)} of {len(streams)} channels arrive"
    if late is not None:
        text += f", up to {span(late)} late" if late > -0.05 else f", {span(-late)} ahead of this machine's clock"
    faults = (
        (sum(stream.gaps for stream in streams), f"gaps ({sum(stream.gap_s for stream in streams):.1f} s)"),
        (sum(stream.duplicates for stream in streams), "duplicates"),
        (sum(stream.late for stream in streams), "late packets lost"),
        (sum(stream.invalid_samples for stream in streams), "invalid samples"),
        (sum(stream.restarts for stream in streams), "restarts"),
    )
    return text + "".join(f", {count} {name}" for count, name in faults if count)


def _hearing(one: HearingHealth) -> str:
    if one.listening_in_s is not None:
        return f"{one.station}: listening in {one.listening_in_s:.0f} s"
    if one.armed_10min is None or one.armed_hour is None:
        return f"{one.station}: listens; the figures come within half a minute"
    text = f"{one.station}: armed {one.armed_10min:.0%} of 10 min, {one.armed_hour:.0%} of 1 h"
    if one.threshold_counts is not None:
        text += f"; hears events from {digits(one.threshold_counts)} counts"
    if one.usual_counts is not None:
        text += f" (usually {digits(one.usual_counts)}, of {one.usual_hours:.1f} h)"
    return text


def _network(status: Status) -> str:
    state, health = status.said.state, status.said.health
    model = "none" if state.model is None else f"{state.model.name} on {state.backend}, {state.precision}"
    pace = "" if health.inference_ms is None else f", {health.inference_ms:.1f} ms a verdict"
    failures = f", {health.inference_failures} failures" if health.inference_failures else ""
    return f"{model}{pace}{failures}" + (f" ({health.backend_activity})" if health.backend_activity else "")


def _events(health: HealthMessage) -> str:
    named = ", ".join(f"{label} {count}" for label, count in list(health.events_hour.items())[:_WORDS_MOST])
    going_on = f" ({health.events_open} going on)" if health.events_open else ""
    return f"last hour: {named or 'none'}{going_on}; {counted(sum(health.discards_hour.values()), 'trigger')} discarded"


def _rsam(one: RsamHealth) -> str:
    hour = digits(one.hour_counts)
    return f"{one.station}: {digits(one.counts)} counts at {one.minute[11:16]}, {hour} in the hour"


def _rate(rate: RateHealth) -> str:
    inverse = "" if rate.inverse_rate_h is None else f", one in {span(3600 * rate.inverse_rate_h)}"
    return f"{rate.station} {rate.label}: {rate.per_hour:g} in 1 h, {rate.per_day:g} in 24 h{inverse}"


def _broker(health: HealthMessage) -> str:
    if health.link is None or health.outbox is None:
        return "none is configured, or the outbox cannot be read"
    link, box = health.link, health.outbox
    text = f"connected, MQTT {link.protocol}" if link.connected else f"NOT CONNECTED: {link.error or 'trying'}"
    text += f"; {waiting(box.depth)}"
    if box.depth:
        text += f" (oldest {span(box.oldest_s)})"
    faults = ((box.dropped, "dropped"), (box.set_aside, "set aside"), (box.held, "held in memory"))
    return text + "".join(f", {count} {name}" for count, name in faults if count)


def _event(event: EventMessage | None) -> str:
    if event is None:
        return "none since the start"
    verdict = event.classification
    nothing = "slow" if event.kind == "slow" else "unclassified"
    label = nothing if verdict is None else f"{verdict.label} {verdict.probability:.2f}"
    drill = " (exercise)" if event.exercise else ""
    said = f"{event.station}{drill}, {event.onset[:19].replace('T', ' ')}: {label}"
    return said if event.decision is None else f"{said}; {_outcome(event.decision)}"


def _outcome(decision: DecisionPart) -> str:
    """What an event led to, and why."""
    words = {
        "raised": "alert",
        "escalated": "alert escalated",
        "retracted": "alert withdrawn",
        "stands": "alert stands",
    }
    words |= {"rate": "alert on the rate of events", "site_waits": "no alert yet", "site_member": "see the site"}
    return f"{words.get(decision.code, 'no alert')}: {decision.reason}"


def _alert(alert: AlertMessage | None) -> str:
    if alert is None:
        return "none since the start"
    drill = (" (late)" if alert.late else "") + (" (exercise)" if alert.exercise else "")
    said = f"{alert.action} {alert.severity} {alert.label}{drill}"
    return f"{said} at {alert.station.rstrip('.')}, {alert.onset[:19].replace('T', ' ')}: {alert.reason}"


def _machine(health: HealthMessage) -> str:
    figures = [
        None if health.cpu_percent is None else f"cpu {health.cpu_percent:.0f} % of a core",
        None if health.rss_mb is None else f"rss {health.rss_mb:.0f} MB",
        None
        if health.memory_free_mb is None or health.memory_total_mb is None
        else f"memory {health.memory_free_mb / 1000:.1f} of {health.memory_total_mb / 1000:.1f} GB free",
        None if health.disk_free_mb is None else f"disk {health.disk_free_mb / 1000:.1f} GB free",
        None if health.temperature_c is None else f"{health.temperature_c:.0f} °C",
        *(f"{rail} {watts:.1f} W" for rail, watts in health.power_w.items()),
    ]
    return ", ".join(figure for figure in figures if figure) or "says nothing"


def _clock(health: HealthMessage) -> str:
    if health.clock_source is None:
        return "nothing is known of its synchronisation"
    offset = "" if health.clock_offset_s is None else f", {health.clock_offset_s:+.6f} s"
    return f"{health.clock_source}{offset}"
