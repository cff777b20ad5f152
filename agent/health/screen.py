"""One screen for whoever is woken at 3 a.m.: first whether the station is well, then why not, then the figures."""

from __future__ import annotations

from agent.health.status import Status
from agent.messages.schema import AlertMessage, DecisionPart, EventMessage, HealthMessage, HearingHealth, RateHealth

HEADLINES = {
    "ok": "OK",
    "starting": "STARTING",
    "degraded": "DEGRADED",
    "silent": "SILENT: the process runs, but has not reported for {age}",
    "gone": "NOT RUNNING: it ended without a word, {age} ago",
    "stopped": "STOPPED: it was told to, {age} ago",
}
_RED, _GREEN, _PLAIN = "\x1b[1;31m", "\x1b[1;32m", "\x1b[0m"
_WORDS_MOST = 6


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
        *(
            ("rsam", f"{one.station}: {one.counts:g} counts at {one.minute[11:16]}, {one.hour_counts:g} in the hour")
            for one in health.rsam[:_WORDS_MOST]
        ),
        ("broker", _broker(health)),
        ("last event", _event(said.last_event)),
        ("last alert", _alert(said.last_alert)),
        ("machine", _machine(health)),
        ("clock", _clock(health)),
    ]
    lines += [f"  {name:<11}{text}" for name, text in rows]
    lines = ["".join(c if c.isprintable() else "?" for c in line) for line in lines]
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
        text += f"; hears events from {one.threshold_counts:.3g} counts"
    if one.usual_counts is not None:
        text += f" (usually {one.usual_counts:.3g}, of {one.usual_hours:.1f} h)"
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
    return f"last hour: {named or 'none'}{going_on}; {sum(health.discards_hour.values())} triggers discarded"


def _rate(rate: RateHealth) -> str:
    inverse = "" if rate.inverse_rate_h is None else f", one in {span(3600 * rate.inverse_rate_h)}"
    return f"{rate.station} {rate.label}: {rate.per_hour:g} in 1 h, {rate.per_day:g} in 24 h{inverse}"


def _broker(health: HealthMessage) -> str:
    if health.link is None or health.outbox is None:
        return "none is configured, or the outbox cannot be read"
    link, box = health.link, health.outbox
    blind = "" if link.protocol != "3.1.1" else " (which does not tell what the broker refuses)"
    text = f"connected, MQTT {link.protocol}{blind}" if link.connected else f"NOT CONNECTED: {link.error or 'trying'}"
    text += f"; {box.depth} messages wait"
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
