"""Health in Prometheus' text format (version 0.0.4), made from the same report that goes to the broker.

The format is a line a sample, which a library makes no shorter; prometheus-client, whose tests read what is made here,
stays out of the station's install.

The HTTP server for this one page is Python's own; it shows what it was given last. A client that is slow, silent or
hostile takes one of a few places, for a few seconds or until a newer client needs it. The server of prometheus-client
has a thread for each client, and no bound on them.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeAlias, get_args

from agent.config.section import address
from agent.errors import TalusError
from agent.messages.schema import HealthMessage, StateMessage
from agent.types import LABELS, NS, AlertAction, DiscardCode, parse_ns

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_Table: TypeAlias = Sequence[tuple[str, str, str]]
"""Name of a metric, its help, and the field of the report that it shows."""
_STREAMS: _Table = (
    ("talus_stream_latency_seconds", "Age of the newest sample when it came.", "latency_s"),
    ("talus_stream_stalled", "1 while nothing comes.", "stalled"),
    ("talus_stream_gaps_total", "Gaps.", "gaps"),
    ("talus_stream_gap_seconds_total", "Time missing in gaps.", "gap_s"),
    ("talus_stream_duplicates_total", "Packets known already.", "duplicates"),
    ("talus_stream_overlaps_total", "Packets known in part.", "overlaps"),
    ("talus_stream_late_total", "Packets lost for coming late.", "late"),
    ("talus_stream_invalid_samples_total", "Samples that are no number.", "invalid_samples"),
    ("talus_stream_restarts_total", "Changes of rate, clocks set back.", "restarts"),
)
_STAGES: _Table = (
    ("talus_stage_alive", "1 while the thread runs.", "alive"),
    ("talus_stage_idle_seconds", "Since it last did something.", "idle_s"),
    ("talus_stage_waiting", "What waits for it.", "waiting"),
)
_OUTBOX: _Table = (
    ("talus_outbox_messages", "Messages that wait for the broker.", "depth"),
    ("talus_outbox_bytes", "Size of what waits.", "bytes"),
    ("talus_outbox_oldest_seconds", "Age of the oldest that waits.", "oldest_s"),
    ("talus_outbox_held", "Messages in memory because the disk refuses them.", "held"),
    ("talus_outbox_dropped_total", "Dropped because the outbox was full.", "dropped"),
    ("talus_outbox_lost_total", "Events and alerts among the dropped.", "lost"),
    ("talus_outbox_set_aside", "Messages refused for good by the broker and kept.", "set_aside"),
    ("talus_outbox_set_aside_total", "Messages ever refused for good by the broker.", "set_aside_total"),
)
_LINK: _Table = (
    ("talus_link_connected", "1 after an accepted CONNACK.", "connected"),
    ("talus_link_connects_total", "Connections made.", "connects"),
    ("talus_link_acknowledged_total", "Messages the broker has.", "acknowledged"),
    ("talus_link_unheard_alerts_total", "Alerts that the broker took without a subscriber.", "unheard_alerts"),
)
_HEARING: _Table = (
    ("talus_hearing_armed_10min_ratio", "Share of 10 min in which it could trigger.", "armed_10min"),
    ("talus_hearing_armed_hour_ratio", "Share of the hour in which it could trigger.", "armed_hour"),
    ("talus_hearing_threshold_counts", "Smallest event that would trigger.", "threshold_counts"),
    ("talus_hearing_usual_counts", "The same, median of the last day.", "usual_counts"),
    ("talus_hearing_plausible", "1 while the samples look like ground motion.", "plausible"),
    ("talus_hearing_listening_in_seconds", "Until the averages are warm.", "listening_in_s"),
)
CLIENTS = 8
"""At once; the one that has been there longest makes room."""
PATIENCE_S = 5.0
_POLL_S = 1.0
"""How often the thread looks whether it is to end."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Family:
    """One metric, a counter if its name ends in ``_total``; ``samples`` are labels and value."""

    name: str
    help: str
    samples: Sequence[tuple[Mapping[str, str], float | int | None]]


def render(health: HealthMessage, state: StateMessage) -> bytes:
    """The page. What the machine does not tell is left out; a family without samples too."""
    return page(_families(health, state))


def page(families: Iterable[Family]) -> bytes:
    """Families in the text format; one without samples is left out."""
    lines: list[str] = []
    for family in families:
        samples = [(labels, value) for labels, value in family.samples if value is not None]
        if samples:
            kind = "counter" if family.name.endswith("_total") else "gauge"
            lines += [f"# HELP {family.name} {family.help}", f"# TYPE {family.name} {kind}"]
            lines += [f"{family.name}{_labels(labels)} {value + 0!r}" for labels, value in samples]
    return ("\n".join(lines) + "\n").encode()


def _families(health: HealthMessage, state: StateMessage) -> Iterator[Family]:
    model, codes = state.model, Counter(reason.code for reason in health.reasons)
    about = {
        "station": state.station,
        "version": state.versions.get("talus", ""),
        "model": "" if model is None else model.name,
        "backend": state.backend or "",
        "precision": state.precision or "",
        "exercise": str(state.exercise).lower(),
    }
    status = {name: health.status == name for name in ("ok", "starting", "degraded")}
    yield Family("talus_info", "What runs at the station; always 1.", [(about, 1)])
    yield _one("talus_ok", "1 while nothing is degraded.", status["ok"])
    yield _by("talus_status", "1 for the status that holds.", "status", status)
    yield _one("talus_problems", "Reasons for being degraded.", len(health.reasons))
    yield _by("talus_reason", "Reasons for being degraded, by code.", "code", codes)
    yield _one("talus_report_timestamp_seconds", "When these figures were taken.", parse_ns(health.time) / NS)
    yield _one("talus_uptime_seconds", "Since the agent started.", health.uptime_s)
    yield from _each(_STREAMS, [({"stream": one.stream}, one) for one in health.streams])
    yield from _each(_STAGES, [({"stage": one.name}, one) for one in health.stages])
    yield _by("talus_source_total", "The source's own counters.", "what", health.source)
    if health.outbox is not None:
        yield from _each(_OUTBOX, [({}, health.outbox)])
    if health.link is not None:
        yield from _each(_LINK, [({}, health.link)])
        yield _one("talus_link_refused_topics", "Topics that the broker refuses now.", len(health.link.refused))
    yield from _each(_HEARING, [({"station": one.station}, one) for one in health.hearing])
    yield from _events(health)
    yield from _machine(health)


def _events(health: HealthMessage) -> Iterator[Family]:
    # Counters begin at 0 for each label, or the first event of a label would be no increase.
    events = dict.fromkeys((*LABELS, "undecided", "unclassified"), 0) | health.events_total
    discards = dict.fromkeys(get_args(DiscardCode), 0) | health.discards_total
    alerts = {(action, label): 0 for action in get_args(AlertAction) for label in LABELS}
    alerts |= {(one.action, one.label): one.count for one in health.alerts_total}
    yield _by("talus_events_total", "Events that ended.", "label", events)
    yield Family(
        "talus_alerts_total", "Alerts raised, escalated and retracted.",
        [({"action": action, "label": label}, count) for (action, label), count in alerts.items()],
    )  # fmt: skip
    yield _by("talus_discards_total", "Triggers discarded.", "reason", discards)
    yield _by("talus_events_last_hour", "Events that ended in the last hour.", "label", health.events_hour)
    yield _by("talus_discards_last_hour", "Triggers discarded in the last hour.", "reason", health.discards_hour)
    yield Family(
        "talus_event_rate_per_hour", "Events in the last hour of data.",
        [({"station": rate.station, "label": rate.label}, rate.per_hour) for rate in health.rates],
    )  # fmt: skip
    rsam = "Mean absolute amplitude of the band-passed vertical in the last minute."
    yield _by("talus_rsam_counts", rsam, "station", {one.station: one.counts for one in health.rsam})
    yield _one("talus_inference_seconds", "Median time of a verdict.", health.inference_ms, 1e-3)
    yield _one("talus_inference_failures_total", "Verdicts that failed.", health.inference_failures)


def _machine(health: HealthMessage) -> Iterator[Family]:
    yield _one("talus_cpu_ratio", "Processor time over time, cores.", health.cpu_percent, 1e-2)
    yield _one("talus_resident_memory_bytes", "Memory of the agent.", health.rss_mb, 1e6)
    yield _one("talus_memory_available_bytes", "Memory left on the machine.", health.memory_free_mb, 1e6)
    yield _one("talus_disk_free_bytes", "Left on the disk of the state folder.", health.disk_free_mb, 1e6)
    yield _one("talus_clock_offset_seconds", "How far the machine's clock is ahead.", health.clock_offset_s)
    yield _by("talus_temperature_celsius", "Thermal zones.", "zone", health.temperatures_c)
    yield _by("talus_power_watts", "Supply rails.", "rail", health.power_w)


def _one(name: str, text: str, value: float | None, factor: float = 1) -> Family:
    return Family(name, text, [({}, None if value is None else value * factor)])


def _by(name: str, text: str, label: str, values: Mapping[str, float]) -> Family:
    """A metric with one label."""
    return Family(name, text, [({label: key}, value) for key, value in values.items()])


def _each(table: _Table, things: Iterable[tuple[Mapping[str, str], object]]) -> Iterator[Family]:
    """The metrics of a table, a sample for each thing."""
    things = list(things)
    for name, text, field in table:
        yield Family(name, text, [(labels, getattr(thing, field)) for labels, thing in things])


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escape(value)}"' for name, value in labels.items()) + "}"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


class Exporter(ThreadingHTTPServer):
    """``show`` from any thread; ``start`` and ``stop`` once each."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 4 * CLIENTS

    def __init__(self, host: str, port: int) -> None:
        """
        Raises:
            TalusError: the address cannot be opened.
        """
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            raise TalusError(
                f"health.prometheus: {address(host, port)} cannot be opened: {error.strerror or error}",
                "another program, or another agent, may have that port",
            ) from error
        self.port: int = self.socket.getsockname()[1]
        self.page = b""
        self._lock = threading.Lock()
        self._clients: OrderedDict[Any, None] = OrderedDict()
        self._thread = threading.Thread(target=self.serve_forever, args=(_POLL_S,), name="exporter", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def show(self, page: bytes) -> None:
        """The page from now on."""
        self.page = page

    def stop(self) -> None:
        """Close everything."""
        self.shutdown()
        self.server_close()
        with self._lock:
            for client in self._clients:
                _hang_up(client)

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a client. Without file descriptors the listener stays readable: no reason to spin."""
        try:
            return super().get_request()
        except OSError:
            time.sleep(0.1)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Make room, and answer in a thread of its own."""
        with self._lock:
            self._clients[request] = None
            if len(self._clients) > CLIENTS:
                _hang_up(self._clients.popitem(last=False)[0])
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Note that a client has gone."""
        with self._lock:
            self._clients.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up in the middle is no error of ours."""
        _log.debug("a reader of the health page went away", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    timeout = PATIENCE_S
    server: Exporter

    def do_GET(self) -> None:
        page = self.server.page
        if self.path.partition("?")[0] != "/metrics":
            self._answer(HTTPStatus.NOT_FOUND, b"the page is /metrics\n")
        elif not page:
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, b"no report yet\n")
        else:
            self._answer(HTTPStatus.OK, page)

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        self._answer(HTTPStatus.METHOD_NOT_ALLOWED, b"GET only\n")

    def _answer(self, status: HTTPStatus, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Not in the agent's log."""


def _hang_up(client: socket.socket) -> None:
    with contextlib.suppress(OSError):
        client.shutdown(socket.SHUT_RDWR)
