"""How the station is: what each channel delivers, what the machine has left, what waits for the broker."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agent.detect.station import Station
from agent.dsp.continuity import Counts
from agent.dsp.hearing import Figures, Slot
from agent.dsp.measure import Minute
from agent.health.hearing import hearing_health, problems
from agent.host import machine
from agent.host.clock import HostClock
from agent.host.data_age import span
from agent.messages.payloads import clock_part
from agent.messages.schema import (
    NAME_LIMIT,
    TEXT_LIMIT,
    AlertCount,
    HealthMessage,
    LinkHealth,
    OutboxHealth,
    RateHealth,
    ReasonPart,
    RsamHealth,
    StageHealth,
    StreamHealth,
)
from agent.reasons import Reason
from agent.types import COMPONENTS, NS, AlertAction, Discard, Event, SampleBlock, StationId, StreamId, format_ns

HOUR_NS = 3600 * NS
DAY_NS = 24 * HOUR_NS
MOST = 64
"""Rates and stations that are reported."""
_KEPT = 100_000
HOUR_S, DAY_S = 3600.0, 86_400.0
STALLED_S = 60.0
"""A channel that delivers nothing for so long (or as the source has it) is named, and the station ``degraded``."""
LOW_DISK_MB = 200.0
LOW_FILES = 100
LOW_MEMORY_MB = 100.0
HOT_C = 95.0
"""Jetson modules throttle at 97 to 99 °C and switch off at 105 °C."""
STUCK_S = 30.0
"""A stage for which something waits does not rest so long."""
MAX_STREAMS = 64
"""Channels in a message to the broker: some 20 kB."""
MAX_KEPT = 1024
"""Channels that are watched."""
MAX_OPEN = 1024
"""Events that have not ended and are counted."""
MAX_COUNTERS = 64
MAX_LABELS = 32
MAX_ALERT_COUNTS = 64
MAX_REASONS = 20
NAMED = 5
"""Channels named in one reason."""
_LESS_IMPORTANT: tuple[dict[str, object], ...] = (
    {"rsam": [], "rates": []},
    {"streams": []},
    {"source": {}, "temperatures_c": {}, "power_w": {}},
    {"stages": [], "discards_hour": {}},
    {"hearing": []},
)
"""What is left out of a report that is too large for the broker, one after the other."""


class Rates:
    """Counts events at their end, by station and label, in the time of the data. Not thread-safe."""

    def __init__(self) -> None:
        self._events: deque[tuple[int, StationId, str]] = deque(maxlen=_KEPT)

    def add(self, event: Event) -> None:
        """An event has ended."""
        self._events.append((event.onset_ns, event.station, event.called))

    def report(self, newest_ns: Mapping[StationId, int]) -> list[RateHealth]:
        """Rates as of each station's newest sample; the inverse rate is that of Fukuzono (1985) and Voight (1988)."""
        hour: Counter[tuple[StationId, str]] = Counter()
        day: Counter[tuple[StationId, str]] = Counter()
        for onset_ns, station, label in self._events:
            age_ns = newest_ns.get(station, onset_ns) - onset_ns
            hour[station, label] += -HOUR_NS < age_ns <= HOUR_NS
            day[station, label] += -HOUR_NS < age_ns <= DAY_NS
        return [
            RateHealth(
                station=str(station),
                label=label,
                per_hour=float(hour[station, label]),
                per_day=float(count),
                inverse_rate_h=round(1 / hour[station, label], 4) if hour[station, label] else None,
            )
            for (station, label), count in day.most_common(MOST)
            if count
        ]


def rsam_health(station: StationId, minutes: tuple[Minute, ...]) -> RsamHealth | None:
    """The newest complete minute and the mean of the hour up to it; None before there is one."""
    if not minutes:
        return None
    newest = minutes[-1]
    recent = [minute for minute in minutes if 0 <= newest.start_ns - minute.start_ns < HOUR_NS]
    weight = sum(minute.coverage for minute in recent)
    mean = sum(minute.mean_counts * minute.coverage for minute in recent) / weight if weight else newest.mean_counts
    return RsamHealth(
        station=str(station),
        minute=format_ns(newest.start_ns),
        counts=newest.mean_counts,
        coverage=newest.coverage,
        hour_counts=float(f"{mean:.6g}"),
    )


@dataclass(slots=True)
class _Stream:
    end_ns: int
    rate_hz: float
    arrived: float
    latency_s: float
    block: SampleBlock


@dataclass(frozen=True, slots=True)
class Identity:
    """The station of the topics, and this run of the agent."""

    station: StationId
    boot_id: str


@dataclass(frozen=True, slots=True)
class HealthInputs:
    """What the agent's parts report at one moment. ``problems`` are their reasons for being degraded, ``activity`` is
    what is being made ready, ``clock`` what is known of this machine's."""

    problems: list[Reason] = field(default_factory=list)
    outbox: OutboxHealth | None = None
    link: LinkHealth | None = None
    activity: str | None = None
    clock: HostClock | None = None
    stages: list[StageHealth] = field(default_factory=list)
    source: dict[str, int] = field(default_factory=dict)
    stations: tuple[Station, ...] = ()
    inference_ms: float | None = None
    alerts: Mapping[tuple[AlertAction, str], int] = field(default_factory=dict)
    """Alerts since the start, by action and label."""


class Health:
    """Fed by the pipeline's thread, read by the one that reports; both may call at any time."""

    def __init__(
        self,
        identity: Identity,
        state_dir: Path,
        stalled_s: float = STALLED_S,
        *,
        hearing_limit_counts: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``hearing_limit_counts``: the largest event that may go unheard; ``clock``: seconds, for silence and the last
        hour."""
        self._clock = clock
        self._identity = identity
        self._hearing_limit = hearing_limit_counts
        self.stalled_s = stalled_s
        """Silence of a channel after which it is named."""
        self._state_dir = state_dir
        self._lock = threading.Lock()
        self._streams: dict[StreamId, _Stream] = {}
        self._events: deque[tuple[float, str]] = deque(maxlen=100_000)
        self._open: dict[str, str] = {}
        """Labels of the events that have not ended."""
        self._discards: deque[tuple[float, str]] = deque(maxlen=100_000)
        self._events_total: Counter[str] = Counter()
        self._discards_total: Counter[str] = Counter()
        self._rates = Rates()
        self._inference_failures = 0
        self._no_verdict: deque[tuple[float, str]] = deque(maxlen=1000)
        self._behind: dict[StreamId, float] = {}
        """Since when channels have been so far behind the others of their sensor that the trigger leaves them out."""
        self._expected: dict[StationId, tuple[frozenset[str], float]] = {}
        """Components that came before the start, and until when (Unix time, s) they are expected."""
        self._started = self._clock()
        self._cpu = (self._started, time.process_time())

    @property
    def station(self) -> StationId:
        """Whose health this is."""
        return self._identity.station

    def expect(self, known: Mapping[StationId, Sequence[Slot]]) -> None:
        """What an earlier run heard in the last day: it is told of if it does not come back."""
        self._expected = {
            sensor: (frozenset(slots[-1].levels), slots[-1].start_s + DAY_S) for sensor, slots in known.items() if slots
        }

    def saw(self, block: SampleBlock, received_ns: int, *, used: bool) -> None:
        """A packet came in at ``received_ns`` (host clock). One that is not ``used``, as it was refused or brought
        nothing new, is no sign that its channel is well."""
        arrived, latency_s = self._clock(), (received_ns - block.end_ns) / NS
        with self._lock:
            stream = self._streams.get(block.stream)
            if stream is None:
                if len(self._streams) < MAX_KEPT:
                    self._streams[block.stream] = _Stream(block.end_ns, block.rate_hz, arrived, latency_s, block)
                return
            stream.block = block
            if used:
                stream.end_ns, stream.rate_hz = block.end_ns, block.rate_hz
                stream.arrived, stream.latency_s = arrived, latency_s

    def decided(self, output: Event | Discard) -> None:
        """The pipeline spoke."""
        now = self._clock()
        with self._lock:
            if isinstance(output, Discard):
                self._discards.append((now, output.code))
                self._discards_total[output.code] += 1
                return
            if output.reason is not None:
                self._inference_failures += 1
                self._no_verdict.append((now, output.reason))
            label = output.called
            self._open.pop(output.id, None)
            if output.phase == "end":
                self._rates.add(output)
                self._events.append((now, label))
                self._events_total[label] += 1
            elif len(self._open) < MAX_OPEN:
                self._open[output.id] = label

    def silent(self) -> frozenset[str]:
        """Channels that have delivered nothing for longer than they should."""
        now = self._clock()
        with self._lock:
            return frozenset(str(s) for s, entry in self._streams.items() if now - entry.arrived > self.stalled_s)

    def message(self, seq: int, inputs: HealthInputs) -> HealthMessage:
        """The present state, with all channels; ``for_the_broker`` makes of it what is published."""
        now, clock = self._clock(), inputs.clock
        counts = {station.id: station.counts for station in inputs.stations}
        with self._lock:
            streams = sorted(self._streams.items())
            silent = {stream for stream, entry in streams if now - entry.arrived > self.stalled_s}
            shown = [
                _stream_health(stream, entry, stream in silent, counts.get(stream.station, {}).get(stream.component))
                for stream, entry in streams
            ]
            newest: dict[StationId, int] = {}
            idle: dict[StationId, float] = {}
            for stream, entry in streams:
                newest[stream.station] = max(newest.get(stream.station, 0), entry.end_ns)
                idle[stream.station] = min(idle.get(stream.station, now), now - entry.arrived)
            rates = self._rates.report(newest)
            events, going_on = _last_hour(self._events, now, self._open.values()), len(self._open)
            discards = _last_hour(self._discards, now)
            events_total, discards_total = dict(self._events_total), dict(self._discards_total)
            failures = self._inference_failures
            no_verdict = [reason for at, reason in self._no_verdict if now - at <= HOUR_S]
        disk_mb, memory, temperatures = (
            machine.disk_free_mb(self._state_dir), machine.memory_mb(), machine.temperatures_c()
        )  # fmt: skip
        reasons = [
            *inputs.problems,
            *(
                Reason("stage_ended", f"the {stage.name} has ended", stage.name)
                for stage in inputs.stages
                if not stage.alive
            ),
            *(
                Reason(
                    "stage_stuck",
                    f"the {stage.name} has done nothing for {stage.idle_s:.0f} s, and {stage.waiting} packets wait",
                    stage.name,
                )
                for stage in inputs.stages
                if stage.alive and stage.waiting and stage.idle_s is not None and stage.idle_s > STUCK_S
            ),
        ]
        if silent:
            named = ", ".join(str(stream) for stream in sorted(silent)[:NAMED])
            more = f" and {len(silent) - NAMED} more" if len(silent) > NAMED else ""
            text = f"no new samples from {named}{more} for {self.stalled_s:.0f} s"
            reasons.append(Reason("channels_silent", text, named if len(silent) == 1 else None))
        reasons += self._not_back([stream for stream, _ in streams], now)
        lags = {station.id: station.max_lag_ns for station in inputs.stations}
        reasons += self._left_out([(s, entry) for s, entry in streams if s not in silent], lags, now)
        heard = self._listen(inputs.stations, idle)
        reasons += [reason for name, one in heard.items() for reason in problems(name, one, self._hearing_limit)]
        reasons += [reason for station in inputs.stations for reason in station.doubts()]
        starting = _starting(heard)
        if not streams:
            (starting if now - self._started <= self.stalled_s else reasons).append(
                Reason("no_samples", "no samples yet")
            )
        elif inputs.stations and not heard:
            text = "no channel is a component: its code ends in E, N, Z, 1, 2 or 3"
            reasons.append(Reason("no_component", text))
        if no_verdict:
            times = "once" if len(no_verdict) == 1 else f"{len(no_verdict)} times"
            text = f"the network failed {times} in the last hour, and the event has no label: {no_verdict[-1]}"
            reasons.append(Reason("no_verdict", text))
        if disk_mb is not None and disk_mb < LOW_DISK_MB:
            reasons.append(Reason("disk_low", f"{disk_mb:.0f} MB of disk are left for {self._state_dir}"))
        if (files := machine.files_free(self._state_dir)) is not None and files < LOW_FILES:
            text = f"only {files} more files fit on the disk of {self._state_dir}, however large it is (inodes)"
            reasons.append(Reason("disk_low", text))
        if memory is not None and memory[0] < LOW_MEMORY_MB:
            reasons.append(Reason("memory_low", f"{memory[0]:.0f} MB of memory are left on this machine"))
        reasons += [
            Reason("hot", f"{zone} is at {degrees:.0f} °C", zone)
            for zone, degrees in temperatures.items()
            if degrees >= HOT_C
        ]
        rsam = (rsam_health(station.id, station.rsam) for station in inputs.stations[:MOST])
        return HealthMessage(
            station=str(self._identity.station),
            boot_id=self._identity.boot_id,
            seq=seq,
            time=format_ns(time.time_ns()),
            uptime_s=round(now - self._started, 1),
            status="degraded" if reasons else "starting" if starting else "ok",
            reasons=_first([*reasons, *starting]),
            streams=shown,
            streams_total=len(shown),
            streams_stalled=len(silent),
            clock_source=None if clock is None else clock.source,
            clock_offset_s=None if clock is None or clock.offset_s is None else round(clock.offset_s, 6),
            cpu_percent=self._cpu_percent(now),
            rss_mb=machine.rss_mb(),
            disk_free_mb=disk_mb,
            temperature_c=max(temperatures.values(), default=None),
            memory_free_mb=None if memory is None else memory[0],
            memory_total_mb=None if memory is None else memory[1],
            temperatures_c=temperatures,
            power_w=machine.power_w(),
            stages=inputs.stages,
            source=dict(list(inputs.source.items())[:MAX_COUNTERS]),
            rates=rates,
            rsam=[one for one in rsam if one is not None],
            hearing=[hearing_health(name, one) for name, one in list(heard.items())[:MOST]],
            outbox=inputs.outbox,
            link=inputs.link,
            events_hour=events,
            events_open=going_on,
            discards_hour=discards,
            events_total=events_total,
            discards_total=discards_total,
            alerts_total=[
                AlertCount(action=action, label=label, count=count) for (action, label), count in inputs.alerts.items()
            ][:MAX_ALERT_COUNTS],
            inference_ms=inputs.inference_ms,
            backend_activity=inputs.activity[:500] if inputs.activity else None,
            inference_failures=failures,
        )

    def _not_back(self, streams: Sequence[StreamId], now: float) -> Iterator[Reason]:
        """Sensors and components that the run before heard, and this one has not yet."""
        if not streams or now - self._started <= self.stalled_s:
            return
        come = {(stream.station, COMPONENTS[stream.row]) for stream in streams if stream.row is not None}
        for sensor, (letters, until_s) in self._expected.items():
            absent = sorted(letter for letter in letters if (sensor, letter) not in come)
            if absent and time.time() < until_s:
                text = f"no samples from {sensor} ({', '.join(absent)}) since this start, which the run before had"
                yield Reason("channels_silent", text, str(sensor))

    def _left_out(
        self, streams: Sequence[tuple[StreamId, _Stream]], lags_ns: Mapping[StationId, int], now: float
    ) -> Iterator[Reason]:
        """Components that come all the time and too late for the trigger, which goes on with the others."""
        newest: dict[StationId, int] = {}
        for stream, entry in streams:
            newest[stream.station] = max(newest.get(stream.station, 0), entry.block.start_ns)
        behind: dict[StreamId, float] = {}
        for stream, entry in streams:
            late_ns = newest[stream.station] - entry.end_ns
            if stream.row is None or late_ns <= lags_ns.get(stream.station, late_ns):
                continue
            behind[stream] = self._behind.get(stream, now)
            if now - behind[stream] >= STALLED_S:
                text = f"{stream} is {span(late_ns / NS)} behind the other components, and the trigger leaves it out"
                yield Reason("component_late", text, str(stream))
        self._behind = behind

    def _listen(self, stations: Sequence[Station], idle: Mapping[StationId, float]) -> dict[StationId, Figures]:
        """How each sensor with a component hears, those that hear least first."""
        found = {}
        for station in stations:
            if station.has_component:
                silent_s = idle.get(station.id, 0.0)
                found[station.id] = station.hearing.figures(silent_s if silent_s > self.stalled_s else 0.0)
        return dict(sorted(found.items(), key=lambda one: (one[1].armed_10min or 0.0, one[0])))

    def _cpu_percent(self, now: float) -> float:
        """Share of one core since the last call."""
        used = time.process_time()
        (then, before), self._cpu = self._cpu, (now, used)
        return round(100 * (used - before) / max(now - then, 1e-3), 2)


def for_the_broker(report: HealthMessage, limit: int | None = None) -> HealthMessage:
    """The report without the channels that are well where there are many, and, where the broker takes no more than
    ``limit`` bytes, without what matters less than the reasons."""
    streams = sorted(report.streams, key=_ill, reverse=True) if len(report.streams) > MAX_STREAMS else report.streams
    short = report.model_copy(update={"streams": streams[:MAX_STREAMS]})
    for left_out in _LESS_IMPORTANT:
        if limit is None or len(short.model_dump_json()) <= limit:
            break
        short = short.model_copy(update=left_out)
    return short


def _starting(heard: Mapping[StationId, Figures]) -> list[Reason]:
    """What is yet to come before the station listens."""
    waiting = {name: one.listening_in_s for name, one in heard.items() if one.listening_in_s is not None}
    return [
        Reason("listening", f"{'' if len(heard) == 1 else f'{name}: '}listening in {left_s:.0f} s", str(name))
        for name, left_s in waiting.items()
    ]


def _ill(stream: StreamHealth) -> tuple[float, ...]:
    """The worse, the more."""
    doubted = stream.clock is not None and stream.clock.questionable
    lost = stream.gap_s + stream.late + stream.invalid_samples + stream.restarts
    return stream.stalled, doubted, stream.latency_s or 0.0, lost


def _first(reasons: list[Reason]) -> list[ReasonPart]:
    """The reasons that fit into the message."""
    if len(reasons) > MAX_REASONS:
        rest = Reason("more", f"and {len(reasons) - MAX_REASONS + 1} more")
        reasons = [*reasons[: MAX_REASONS - 1], rest]
    return [
        ReasonPart(
            code=reason.code,
            text=reason.text[:TEXT_LIMIT],
            about=None if reason.about is None else reason.about[:NAME_LIMIT],
        )
        for reason in reasons
    ]


def _stream_health(stream: StreamId, entry: _Stream, stalled: bool, counts: Counts | None) -> StreamHealth:
    seen = counts or Counts()
    return StreamHealth(
        stream=str(stream),
        rate_hz=entry.rate_hz,
        last_sample=format_ns(entry.end_ns),
        latency_s=round(entry.latency_s, 3),
        stalled=stalled,
        gaps=seen.gaps,
        gap_s=round(seen.gap_s, 3),
        overlaps=seen.overlaps,
        duplicates=seen.duplicates,
        late=seen.late,
        invalid_samples=seen.invalid_samples,
        restarts=seen.restarts,
        clock=clock_part(entry.block.quality),
    )


def _last_hour(entries: deque[tuple[float, str]], now: float, others: Iterable[str] = ()) -> dict[str, int]:
    """Return how many entries of the last hour, and ``others``, have each name."""
    while entries and now - entries[0][0] > HOUR_S:
        entries.popleft()
    return dict(Counter([*(name for _, name in entries), *others]).most_common(MAX_LABELS))
