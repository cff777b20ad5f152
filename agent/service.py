"""The service: which thread does what, and what happens when one of them ends. The only file that knows about both.

    source thread     source.blocks() -> bounded queue          (drivers may block)
    pipeline thread   queue -> pipeline -> policy -> outbox     (sole owner of the DSP state and of the network)
    link thread       outbox -> broker                          (in ``agent.link``)
    main thread       signals, health, state, systemd

A stage that dies ends the process with status 1, and systemd starts it again; a silent sensor or an absent broker does
not: that is ``degraded``, and is reported as such.
"""

from __future__ import annotations

import itertools
import logging
import os
import platform
import queue
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from importlib import metadata

from agent import __version__
from agent.assemble import Line, build_line, is_exercise, open_source
from agent.clock import StepWatch, host_clock
from agent.config import Config, digest
from agent.data_clock import DataClocks, is_live
from agent.delivery import Delivery
from agent.errors import DataError, DeliveryError, TalusError
from agent.health import STALLED_S, Health, Identity
from agent.inference.switch import Standing
from agent.messages import DEFAULT_PREFIX, Message, Priority, health_message, state_message
from agent.patience import QuietLog
from agent.schema import TEXT_LIMIT, LinkHealth, ModelPart, OutboxHealth, PositionPart, StateMessage
from agent.sources import Resumable, Source, SourceProblem, Telling
from agent.types import Discard, Event, SampleBlock, StationId, format_ns
from agent.watch import readable

_log = logging.getLogger(__name__)

QUEUE_BLOCKS = 4096
"""Packets between the source and the pipeline: a minute of 64 channels. When it is full the source waits."""
PUT_RETRY_S = 1.0
TICK_S = 0.25
STOP_S = 4.0
DRAIN_S = 30.0
"""At the end of an archive, how long a broker that takes nothing is waited for."""
FIRST_HEALTH_S = 2.0
BUSY_S = 30.0
"""Longest that one packet may take before the watchdog is no longer fed."""
HELD_MESSAGES = 10_000
"""Messages kept in memory while the disk refuses them."""
PUT_MESSAGES = 100
"""Put in one transaction: many times what one packet gives rise to, and far less than the smallest outbox."""


class Stage:
    """A named thread whose failure is noticed: ``failed`` holds the exception, ``finished`` is called either way."""

    def __init__(self, name: str, work: Callable[[], None], finished: Callable[[], None]) -> None:
        self.failed: BaseException | None = None
        self._work, self._finished = work, finished
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def name(self) -> str:
        return self._thread.name

    def start(self) -> None:
        self._thread.start()

    def join(self, timeout_s: float) -> bool:
        """Wait; True when the stage has ended."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001 - whatever ends a stage ends the service, which reports it
            self.failed = error
        finally:
            self._finished()


class Feeder:
    """Source to outbox: the two threads that turn packets into messages on disk."""

    def __init__(
        self,
        source: Source,
        line: Line,
        health: Health,
        put: Callable[[list[Message]], None],
        clocks: DataClocks | None = None,
    ) -> None:
        """``clocks`` judges the times of packets that come as they are recorded; None for all others."""
        self.line, self.clocks = line, clocks
        self._source, self._health, self._put = source, health, put
        self._taken = source.taken if isinstance(source, Resumable) else None
        self._queue: queue.Queue[tuple[SampleBlock, int] | None] = queue.Queue(QUEUE_BLOCKS)
        self._held: deque[Message] = deque()
        self._retry_at = 0.0
        self._quiet = QuietLog(_log.error)
        self.stopping = threading.Event()
        self.ended = threading.Event()
        """Set when a stage has ended, whether it had to or not."""
        self._busy_since: float | None = None
        self._stages = (
            Stage("source", self._read, self._source_ended),
            Stage("pipeline", self._decide, self.ended.set),
        )

    def start(self) -> None:
        for stage in self._stages:
            stage.start()

    def stop(self, timeout_s: float) -> None:
        """End the source, let the pipeline finish what is queued, and close open events."""
        self.stopping.set()
        self._source.close()
        deadline = time.monotonic() + timeout_s
        for stage in self._stages:
            if not stage.join(max(0.0, deadline - time.monotonic())):
                _log.error("the %s did not end in time", stage.name)

    def failure(self) -> tuple[str, BaseException] | None:
        """The first stage that died, and of what."""
        return next(((stage.name, stage.failed) for stage in self._stages if stage.failed is not None), None)

    def works(self) -> bool:
        """False when the pipeline is stuck on a packet; a silent source is no reason to restart the agent."""
        since = self._busy_since
        return since is None or time.monotonic() - since < BUSY_S

    @property
    def held(self) -> int:
        """Messages that wait in memory because the disk refuses them."""
        return len(self._held)

    def troubles(self) -> list[str]:
        """What is wrong with the way in and out."""
        held = [f"{self.held} messages wait in memory: the disk refuses them"] if self._held else []
        source = self._source.troubles() if isinstance(self._source, Telling) else []
        return held + source + (self.clocks.doubts() if self.clocks else [])

    def _read(self) -> None:
        for block in self._source.blocks():
            self._hand_over((block, time.time_ns()))
            if self.stopping.is_set():
                return

    def _source_ended(self) -> None:
        self._hand_over(None)

    def _hand_over(self, item: tuple[SampleBlock, int] | None) -> None:
        """Wait for room, but not for a pipeline that has ended."""
        while not self.ended.is_set():
            try:
                self._queue.put(item, timeout=0.5)
            except queue.Full:
                continue
            return

    def _decide(self) -> None:
        received_ns = time.time_ns()
        while (item := self._next()) is not None:
            packet, received_ns = item
            self._busy_since = time.monotonic()
            block = self.clocks.judge(packet, received_ns, self._busy_since) if self.clocks else packet
            self._health.saw(block, received_ns)
            try:
                outputs = self.line.pipeline.feed(block)
            except DataError as error:
                self._quiet.warn(f"packets of {block.stream} are dropped: {error}", key=str(block.stream))
                outputs = []
            self._deliver(outputs, received_ns)
            if self._taken is not None and not self._held:
                self._taken(packet)
            self._busy_since = None
        self._deliver(self.line.pipeline.flush(), received_ns)
        while self._held and not self.stopping.wait(PUT_RETRY_S):
            self._store()
        self._retry_at = 0.0
        self._store()
        if self._held:
            _log.error("%d messages are lost: the disk refused them to the last", len(self._held))

    def _next(self) -> tuple[SampleBlock, int] | None:
        while True:
            try:
                return self._queue.get(timeout=PUT_RETRY_S if self._held else None)
            except queue.Empty:
                self._store()

    def _deliver(self, outputs: Sequence[Event | Discard], received_ns: int) -> None:
        messages: list[Message] = []
        for output in outputs:
            self._health.decided(output)
            if isinstance(output, Discard):
                _log.info("%s at %s: discarded: %s", output.station, format_ns(output.onset_ns), output.reason)
                continue
            messages += self.line.reporter.report(output, received_ns)
            log_event(output)
        self._held += messages
        self._store()
        self._make_room()
        for message in messages:
            if message.priority is Priority.ALERT:
                _log.warning("%s", readable(message))

    def _store(self) -> None:
        """Hand over what is held, in order; a disk that refuses is tried again, and the pipeline goes on."""
        if not self._held or time.monotonic() < self._retry_at:
            return
        try:
            while self._held:
                part = list(itertools.islice(self._held, PUT_MESSAGES))
                self._put(part)
                for _ in part:
                    self._held.popleft()
        except DeliveryError as error:
            self._retry_at = time.monotonic() + PUT_RETRY_S
            self._quiet.warn(f"{len(self._held)} messages wait in memory: {error}", key="disk")
            return
        if self._retry_at:
            self._retry_at = 0.0
            self._quiet.reset()
            _log.info("the disk takes messages again")

    def _make_room(self) -> None:
        """What matters least goes first: retained summaries, then revisions that a later one repeats, alerts last."""
        while len(self._held) > HELD_MESSAGES:
            lost = max(self._held, key=lambda message: (message.priority, message.expendable))
            self._held.remove(lost)
            self._quiet.warn(f"memory is full too: a message for {lost.topic} is lost", key=lost.topic)


def log_event(event: Event) -> None:
    """One line for the journal."""
    verdict = event.classification
    said = f"no verdict ({event.reason})" if verdict is None else f"{verdict.label} {verdict.probability:.2f}"
    doubt = " (abstained)" if verdict is not None and verdict.abstained else ""
    _log.info("%s %s r%d: %s%s", event.id, event.phase, event.revision, said, doubt)


class Notifier:
    """systemd's notify socket (sd_notify(3)); says nothing where there is none."""

    def __init__(self) -> None:
        address = os.environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        watchdog, process = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", str(os.getpid()))
        self.watchdog_s = int(watchdog) / 2e6 if watchdog.isdigit() and process == str(os.getpid()) else None
        """How often to feed the watchdog, None where systemd does not ask."""

    def say(self, text: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.sendto(text.encode(), self._address)
        except OSError as error:
            _log.warning("systemd does not listen: %s", error)


class Service:
    """One station's agent, from start to stop."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._stop = threading.Event()
        self._started = format_ns(time.time_ns())
        self._prefix = config.mqtt.prefix if config.mqtt else DEFAULT_PREFIX

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT, the end of an archive, or a stage's death; returns the exit status.

        Raises:
            TalusError: the service cannot start: no model, no outbox, no secret.
        """
        config = self._config
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stop.set())
        notifier = Notifier()
        station = StationId(config.station.network, config.station.station, "", "")
        prefix = self._prefix
        exercise = is_exercise(config)
        line = build_line(config.tunables, config.classifier, prefix, exercise=exercise, state_dir=config.state_dir)
        for reason in line.fallbacks:
            _log.warning("%s", reason)
        stalled_s = getattr(config.source, "stalled_s", STALLED_S)
        health = Health(Identity(station, line.reporter.boot_id), config.state_dir, stalled_s)
        delivery = self._delivery(station)
        put = delivery.put if delivery else _print
        clocks = DataClocks() if is_live(config) else None
        feeder = Feeder(open_source(config, _warn), line, health, put, clocks)
        if delivery:
            delivery.link.publish_retained(self._state(line, line.standing(), health))
            delivery.link.start()
        feeder.start()
        _log.info("talus %s watches %s with %s", __version__, station.short, line.classifier.model)
        notifier.say("READY=1")
        try:
            self._attend(feeder, health, delivery, notifier, prefix)
        finally:
            notifier.say("STOPPING=1")
            feeder.stop(STOP_S)
            line.close()
            failure = feeder.failure()
            if failure is not None:
                _tell_death(*failure)
            if delivery:
                rest = delivery.close()
                if rest.waiting:
                    _log.warning("%d messages wait in %s for the next start", rest.waiting, delivery.path)
        return 0 if failure is None else 1

    def _attend(
        self, feeder: Feeder, health: Health, delivery: Delivery | None, notifier: Notifier, prefix: str
    ) -> None:
        """Until the end: report health, and feed the watchdog only while the work goes on."""
        interval_s = self._config.tunables.reporting.health_interval_s
        next_health, next_watchdog = time.monotonic() + min(interval_s, FIRST_HEALTH_S), 0.0
        standing = feeder.line.standing()
        steps = StepWatch()
        while not self._stop.wait(TICK_S):
            now = time.monotonic()
            if step_s := steps.step_s():
                _log.warning("this machine's clock was set by %+.1f s", step_s)
                if feeder.clocks is not None:
                    feeder.clocks.forget()
            if feeder.ended.is_set() and (feeder.failure() or not delivery or delivery.drained(DRAIN_S)):
                return
            if delivery and not delivery.link.alive:
                raise DeliveryError("the link to the broker died", "see the log above; systemd starts the agent again")
            if delivery and now >= next_health:
                next_health = now + interval_s
                self._report(feeder, health, delivery, prefix)
            before, standing = standing, feeder.line.standing()
            if delivery and not standing.same(before):
                delivery.link.publish_retained(self._state(feeder.line, standing, health))
            if notifier.watchdog_s and now >= next_watchdog and feeder.works():
                next_watchdog = now + notifier.watchdog_s
                notifier.say("WATCHDOG=1")

    def _report(self, feeder: Feeder, health: Health, delivery: Delivery, prefix: str) -> None:
        """Publish health; an outbox that cannot even be read is part of it."""
        clock = host_clock()
        problems = feeder.troubles()
        if feeder.clocks is not None:
            feeder.clocks.host(is_wrong=clock.is_wrong)
            if clock.is_wrong:
                problems.append(f"this machine's clock: {clock}")
        outbox: OutboxHealth | None = None
        link: LinkHealth | None = None
        try:
            outbox, link = delivery.health()
        except DeliveryError as error:
            problems.append(error.message)
        message = health.message(
            feeder.line.reporter.next_seq(),
            outbox=outbox,
            link=link,
            problems=problems,
            activity=feeder.line.standing().activity,
            clock=clock,
        )
        delivery.link.publish_retained(health_message(message, health.station, prefix))

    def _delivery(self, station: StationId) -> Delivery | None:
        config = self._config
        if config.mqtt is None:
            _log.warning("no broker is configured: events and alerts go to standard output only")
            return None
        return Delivery(config.mqtt.settings(config.client_id), station, config.outbox_path, config.outbox.max_mb)

    def _state(self, line: Line, standing: Standing, health: Health) -> Message:
        place, classifier = self._config.station, line.classifier
        position = None
        if place.latitude_deg is not None and place.longitude_deg is not None:
            position = PositionPart(
                latitude=place.latitude_deg, longitude=place.longitude_deg, elevation_m=place.elevation_m
            )
        state = StateMessage(
            station=str(health.station),
            boot_id=line.reporter.boot_id,
            started=self._started,
            versions={
                "talus": __version__,
                "python": platform.python_version(),
                "onnxruntime": metadata.version("onnxruntime"),
            },
            model=ModelPart(name=classifier.model, sha256=classifier.sha256),
            backend=standing.backend,
            precision=standing.precision,
            backend_reason=standing.reason()[:TEXT_LIMIT] or None,
            config_revision=None,
            config_sha256=digest(self._config),
            position=position,
            exercise=is_exercise(self._config),
        )
        return state_message(state, health.station, self._prefix)


def _print(messages: Sequence[Message]) -> None:
    for message in messages:
        if not message.retain:
            print(message.payload.decode(), flush=True)


def _tell_death(stage: str, error: BaseException) -> None:
    """A fault of the input is told in words, one of the agent itself with its traceback."""
    _log.error("the %s died: %s", stage, error, exc_info=None if isinstance(error, TalusError) else error)


def _warn(problem: SourceProblem) -> None:
    _log.warning("%s", problem)
