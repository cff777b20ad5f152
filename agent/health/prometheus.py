"""Health in Prometheus' text format (version 0.0.4), made from the same report that goes to the broker."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from agent.messages.schema import HealthMessage, HearingHealth, StateMessage, StreamHealth
from agent.types import LABELS, NS, AlertAction, DiscardCode, parse_ns

_LABELS = (*LABELS, "unclassified")
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Family:
    """One metric; ``samples`` are labels and value."""

    name: str
    kind: Literal["gauge", "counter"]
    help: str
    samples: list[tuple[Mapping[str, str], float | int | None]] = field(default_factory=list)


def render(health: HealthMessage, state: StateMessage) -> bytes:
    """The page. What the machine does not tell is left out; a family without samples too."""
    return page(_families(health, state))


def page(families: Iterable[Family]) -> bytes:
    """Families in the text format; one without samples is left out."""
    lines: list[str] = []
    for family in families:
        samples = [(labels, value) for labels, value in family.samples if value is not None]
        if samples:
            lines += [f"# HELP {family.name} {family.help}", f"# TYPE {family.name} {family.kind}"]
            lines += [f"{family.name}{_labels(labels)} {value!r}" for labels, value in samples]
    return ("\n".join(lines) + "\n").encode()


def _families(health: HealthMessage, state: StateMessage) -> Iterator[Family]:
    yield _info(state)
    yield _one("talus_ok", "1 while nothing is degraded.", int(health.status == "ok"))
    yield Family(
        "talus_status", "gauge", "1 for the status that holds.",
        [({"status": status}, int(health.status == status)) for status in ("ok", "starting", "degraded")],
    )  # fmt: skip
    yield _one("talus_problems", "Reasons for being degraded.", len(health.reasons))
    codes = Counter(reason.code for reason in health.reasons)
    yield Family(
        "talus_reason", "gauge", "Reasons for being degraded, by code.",
        [({"code": code}, count) for code, count in codes.items()],
    )  # fmt: skip
    yield _one("talus_report_timestamp_seconds", "When these figures were taken.", parse_ns(health.time) / NS)
    yield _one("talus_uptime_seconds", "Since the agent started.", health.uptime_s)
    yield from _streams(health.streams)
    yield from _stages(health)
    yield from _delivery(health)
    yield from _hearing(health.hearing)
    yield from _events(health)
    yield from _machine(health)


def _info(state: StateMessage) -> Family:
    model = state.model
    labels = {
        "station": state.station,
        "version": state.versions.get("talus", ""),
        "model": "" if model is None else model.name,
        "backend": state.backend or "",
        "precision": state.precision or "",
        "exercise": str(state.exercise).lower(),
    }
    return Family("talus_info", "gauge", "What runs at the station; always 1.", [(labels, 1)])


def _streams(streams: Iterable[StreamHealth]) -> Iterator[Family]:
    streams = list(streams)

    def per_stream(name: str, kind: Literal["gauge", "counter"], text: str, attribute: str) -> Family:
        values = ((stream, getattr(stream, attribute)) for stream in streams)
        return Family(name, kind, text, [({"stream": s.stream}, int(v) if v is True or v is False else v)
                                          for s, v in values])  # fmt: skip

    yield per_stream("talus_stream_latency_seconds", "gauge", "Age of the newest sample when it came.", "latency_s")
    yield per_stream("talus_stream_stalled", "gauge", "1 while nothing comes.", "stalled")
    yield per_stream("talus_stream_gaps_total", "counter", "Gaps.", "gaps")
    yield per_stream("talus_stream_gap_seconds_total", "counter", "Time missing in gaps.", "gap_s")
    yield per_stream("talus_stream_duplicates_total", "counter", "Packets known already.", "duplicates")
    yield per_stream("talus_stream_overlaps_total", "counter", "Packets known in part.", "overlaps")
    yield per_stream("talus_stream_late_total", "counter", "Packets lost for coming late.", "late")
    yield per_stream("talus_stream_invalid_samples_total", "counter", "Samples that are no number.", "invalid_samples")
    yield per_stream("talus_stream_restarts_total", "counter", "Changes of rate, clocks set back.", "restarts")


def _stages(health: HealthMessage) -> Iterator[Family]:
    stages = health.stages
    yield Family(
        "talus_stage_alive", "gauge", "1 while the thread runs.", [({"stage": s.name}, int(s.alive)) for s in stages]
    )
    yield Family(
        "talus_stage_idle_seconds",
        "gauge",
        "Since it last did something.",
        [({"stage": s.name}, s.idle_s) for s in stages],
    )
    yield Family(
        "talus_stage_waiting", "gauge", "What it has yet to take.", [({"stage": s.name}, s.waiting) for s in stages]
    )
    yield Family(
        "talus_source_total", "counter", "The source's own counters.",
        [({"what": name}, value) for name, value in health.source.items()],
    )  # fmt: skip


def _delivery(health: HealthMessage) -> Iterator[Family]:
    box, link = health.outbox, health.link
    if box is not None:
        yield _one("talus_outbox_messages", "Messages that wait for the broker.", box.depth)
        yield _one("talus_outbox_bytes", "Size of what waits.", box.bytes)
        yield _one("talus_outbox_oldest_seconds", "Age of the oldest that waits.", box.oldest_s)
        yield _one("talus_outbox_held", "Messages in memory because the disk refuses them.", box.held)
        yield _one("talus_outbox_dropped_total", "Dropped because the outbox was full.", box.dropped, "counter")
        yield _one("talus_outbox_lost_total", "Events and alerts among the dropped.", box.lost, "counter")
        yield _one("talus_outbox_set_aside", "Messages refused for good by the broker and kept.", box.set_aside)
        total = "Messages ever refused for good by the broker."
        yield _one("talus_outbox_set_aside_total", total, box.set_aside_total, "counter")
    if link is not None:
        yield _one("talus_link_connected", "1 after an accepted CONNACK.", int(link.connected))
        yield _one("talus_link_connects_total", "Connections made.", link.connects, "counter")
        yield _one("talus_link_acknowledged_total", "Messages the broker has.", link.acknowledged, "counter")
        unheard = "Alerts that the broker took without a subscriber."
        yield _one("talus_link_unheard_alerts_total", unheard, link.unheard_alerts, "counter")
        yield _one("talus_link_refused_topics", "Topics that the broker refuses now.", len(link.refused))


def _hearing(sensors: Iterable[HearingHealth]) -> Iterator[Family]:
    sensors = list(sensors)

    def per_sensor(name: str, text: str, attribute: str) -> Family:
        values = ((one.station, getattr(one, attribute)) for one in sensors)
        return Family(name, "gauge", text, [({"station": s}, int(v) if isinstance(v, bool) else v) for s, v in values])

    yield per_sensor("talus_hearing_armed_10min_ratio", "Share of 10 min in which it could trigger.", "armed_10min")
    yield per_sensor("talus_hearing_armed_hour_ratio", "Share of the hour in which it could trigger.", "armed_hour")
    yield per_sensor("talus_hearing_threshold_counts", "Smallest event that would trigger.", "threshold_counts")
    yield per_sensor("talus_hearing_usual_counts", "The same, median of the last day.", "usual_counts")
    yield per_sensor("talus_hearing_plausible", "1 while the samples look like ground motion.", "plausible")
    yield per_sensor("talus_hearing_listening_in_seconds", "Until the averages are warm.", "listening_in_s")


def _events(health: HealthMessage) -> Iterator[Family]:
    # Counters begin at 0 for each label, or the first event of a label would be no increase.
    yield Family(
        "talus_events_total", "counter", "Events that ended.",
        [({"label": label}, health.events_total.get(label, 0))
         for label in dict.fromkeys([*_LABELS, *health.events_total])],
    )  # fmt: skip
    alerts = {(one.action, one.label): one.count for one in health.alerts_total}
    every = dict.fromkeys([*((action, label) for action in get_args(AlertAction) for label in LABELS), *alerts])
    yield Family(
        "talus_alerts_total", "counter", "Alerts raised, escalated and retracted.",
        [({"action": action, "label": label}, alerts.get((action, label), 0)) for action, label in every],
    )  # fmt: skip
    yield Family(
        "talus_discards_total", "counter", "Triggers discarded.",
        [({"reason": code}, health.discards_total.get(code, 0))
         for code in dict.fromkeys([*get_args(DiscardCode), *health.discards_total])],
    )  # fmt: skip
    yield Family(
        "talus_events_last_hour", "gauge", "Events that ended in the last hour.",
        [({"label": label}, count) for label, count in health.events_hour.items()],
    )  # fmt: skip
    yield Family(
        "talus_discards_last_hour", "gauge", "Triggers discarded in the last hour.",
        [({"reason": reason}, count) for reason, count in health.discards_hour.items()],
    )  # fmt: skip
    yield Family(
        "talus_event_rate_per_hour", "gauge", "Events in the last hour of data.",
        [({"station": rate.station, "label": rate.label}, rate.per_hour) for rate in health.rates],
    )  # fmt: skip
    yield Family(
        "talus_rsam_counts", "gauge", "Mean absolute amplitude of the band-passed vertical in the last minute.",
        [({"station": one.station}, one.counts) for one in health.rsam],
    )  # fmt: skip
    yield _one("talus_inference_seconds", "Median time of a verdict.", _over(health.inference_ms, 1000))
    yield _one("talus_inference_failures_total", "Verdicts that failed.", health.inference_failures, "counter")


def _machine(health: HealthMessage) -> Iterator[Family]:
    yield _one("talus_cpu_ratio", "Processor time over time, cores.", _over(health.cpu_percent, 100))
    yield _one("talus_resident_memory_bytes", "Memory of the agent.", _times(health.rss_mb, 1e6))
    yield _one("talus_memory_available_bytes", "Memory left on the machine.", _times(health.memory_free_mb, 1e6))
    yield _one("talus_disk_free_bytes", "Left on the disk of the state folder.", _times(health.disk_free_mb, 1e6))
    yield _one("talus_clock_offset_seconds", "How far the machine's clock is ahead.", health.clock_offset_s)
    yield Family(
        "talus_temperature_celsius", "gauge", "Thermal zones.",
        [({"zone": zone}, degrees) for zone, degrees in health.temperatures_c.items()],
    )  # fmt: skip
    yield Family(
        "talus_power_watts",
        "gauge",
        "Supply rails.",
        [({"rail": rail}, watts) for rail, watts in health.power_w.items()],
    )


def _one(name: str, text: str, value: float | None, kind: Literal["gauge", "counter"] = "gauge") -> Family:
    return Family(name, kind, text, [({}, value)])


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _over(value: float | None, divisor: float) -> float | None:
    return None if value is None else value / divisor


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escape(value)}"' for name, value in labels.items()) + "}"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
