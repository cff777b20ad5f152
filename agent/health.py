"""How the station is: what each channel delivers, what the machine has left, what waits for the broker."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass
from pathlib import Path

from agent.clock import HostClock
from agent.messages import clock_part
from agent.schema import HealthMessage, LinkHealth, OutboxHealth, StreamHealth
from agent.types import NS, Discard, Event, SampleBlock, StationId, StreamId, format_ns

HOUR_S = 3600.0
STALLED_S = 60.0
"""A channel that delivers nothing for so long (or as the source has it) is named, and the station ``degraded``."""
LOW_DISK_MB = 200.0
MAX_STREAMS = 32


@dataclass(slots=True)
class _Stream:
    end_ns: int
    rate_hz: float
    arrived: float
    latency_s: float
    block: SampleBlock
    gaps: int = 0
    gap_ns: int = 0


@dataclass(frozen=True, slots=True)
class Identity:
    """Who speaks: the station of the topics, and this run of the agent."""

    station: StationId
    boot_id: str


class Health:
    """Fed by the pipeline's thread, read by the one that reports; both may call at any time."""

    def __init__(self, identity: Identity, state_dir: Path, stalled_s: float = STALLED_S) -> None:
        self._identity = identity
        self._stalled_s = stalled_s
        self._state_dir = state_dir
        self._lock = threading.Lock()
        self._streams: dict[StreamId, _Stream] = {}
        self._events: deque[tuple[float, str]] = deque(maxlen=100_000)
        self._discards: deque[tuple[float, str]] = deque(maxlen=100_000)
        self._inference_failures = 0
        self._started = time.monotonic()
        self._cpu = (self._started, time.process_time())

    @property
    def station(self) -> StationId:
        """Whose health this is."""
        return self._identity.station

    def saw(self, block: SampleBlock, received_ns: int) -> None:
        """A packet came in at ``received_ns`` (host clock)."""
        end_ns = block.end_ns
        arrived, latency_s = time.monotonic(), (received_ns - end_ns) / NS
        with self._lock:
            stream = self._streams.get(block.stream)
            if stream is None:
                self._streams[block.stream] = _Stream(end_ns, block.rate_hz, arrived, latency_s, block)
                return
            missing = block.start_ns - stream.end_ns
            if missing > 0.5 * NS / block.rate_hz:
                stream.gaps += 1
                stream.gap_ns += missing
            if end_ns > stream.end_ns:
                stream.end_ns, stream.rate_hz, stream.latency_s = end_ns, block.rate_hz, latency_s
            stream.arrived, stream.block = arrived, block

    def decided(self, output: Event | Discard) -> None:
        """The pipeline spoke."""
        now = time.monotonic()
        with self._lock:
            if isinstance(output, Discard):
                self._discards.append((now, output.reason.split(",")[-1].strip()[:80]))
                return
            if output.reason is not None:
                self._inference_failures += 1
            if output.phase == "end":
                verdict = output.classification
                self._events.append((now, "unclassified" if verdict is None else verdict.label))

    def message(
        self,
        seq: int,
        *,
        outbox: OutboxHealth | None,
        link: LinkHealth | None,
        problems: list[str],
        activity: str | None = None,
        clock: HostClock | None = None,
    ) -> HealthMessage:
        """The present state, in the form that is published; ``activity`` is what is being made ready, ``clock`` what is
        known of this machine's."""
        now = time.monotonic()
        with self._lock:
            streams = sorted(self._streams.items())
            silent = {stream for stream, entry in streams if now - entry.arrived > self._stalled_s}
            shown = [_stream_health(stream, entry, stream in silent) for stream, entry in streams[:MAX_STREAMS]]
            events = _last_hour(self._events, now)
            discards = _last_hour(self._discards, now)
            failures = self._inference_failures
        disk_mb = _disk_free_mb(self._state_dir)
        reasons = [*problems, *(f"no samples from {name} for {self._stalled_s:.0f} s" for name in sorted(silent))]
        if not streams:
            reasons.append("no samples yet")
        if disk_mb is not None and disk_mb < LOW_DISK_MB:
            reasons.append(f"{disk_mb:.0f} MB of disk are left for {self._state_dir}")
        return HealthMessage(
            station=str(self._identity.station),
            boot_id=self._identity.boot_id,
            seq=seq,
            time=format_ns(time.time_ns()),
            uptime_s=round(now - self._started, 1),
            status="degraded" if reasons else "ok",
            reasons=[reason[:500] for reason in reasons[:20]],
            streams=shown,
            clock_source=None if clock is None else clock.source,
            clock_offset_s=None if clock is None or clock.offset_s is None else round(clock.offset_s, 6),
            cpu_percent=self._cpu_percent(now),
            rss_mb=_rss_mb(),
            disk_free_mb=disk_mb,
            temperature_c=_temperature_c(),
            outbox=outbox,
            link=link,
            events_hour=events,
            discards_hour=discards,
            inference_ms=None,
            backend_activity=activity[:500] if activity else None,
            inference_failures=failures,
        )

    def _cpu_percent(self, now: float) -> float:
        """Share of one core since the last call."""
        used = time.process_time()
        (then, before), self._cpu = self._cpu, (now, used)
        return round(100 * (used - before) / max(now - then, 1e-3), 2)


def _stream_health(stream: StreamId, entry: _Stream, stalled: bool) -> StreamHealth:
    return StreamHealth(
        stream=str(stream),
        rate_hz=entry.rate_hz,
        last_sample=format_ns(entry.end_ns),
        latency_s=round(entry.latency_s, 3),
        stalled=stalled,
        gaps=entry.gaps,
        gap_s=round(entry.gap_ns / NS, 3),
        clock=clock_part(entry.block.quality),
    )


def _last_hour(entries: deque[tuple[float, str]], now: float) -> dict[str, int]:
    while entries and now - entries[0][0] > HOUR_S:
        entries.popleft()
    return dict(Counter(name for _, name in entries).most_common(MAX_STREAMS))


def _disk_free_mb(folder: Path) -> float | None:
    try:
        return round(shutil.disk_usage(folder).free / 1e6, 1)
    except OSError:
        return None


def _rss_mb() -> float | None:
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)


def _temperature_c() -> float | None:
    """The hottest thermal zone of the kernel."""
    found = []
    for zone in Path("/sys/class/thermal").glob("thermal_zone*/temp"):
        try:
            found.append(int(zone.read_text(encoding="ascii")) / 1000)
        except (OSError, ValueError):
            continue  # a zone whose sensor is switched off answers EINVAL
    return round(max(found), 1) if found else None
