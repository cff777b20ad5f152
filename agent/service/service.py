"""The service: which thread does what, and what happens when one of them ends.

    source thread     source.blocks() -> bounded queue (``threads``; drivers may block)
    pipeline thread   queue -> pipeline -> policy (``threads``; sole owner of DSP state and network)
    storing thread    messages -> outbox (``storing``: no other waits for a disk that hangs)
    sink threads      outbox -> broker, file (``agent.deliver``)
    main thread       signals, health, state, remote changes (``agent.remote``), systemd

A stage that dies ends the process with status 1, and systemd starts it again; a silent sensor or an absent broker does
not: that is ``degraded``, and is reported as such.
"""

from __future__ import annotations

import gc
import logging
import os
import platform
import signal
import socket
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from agent import __version__
from agent.alert.evidence import AlertRecords, EvidenceStore
from agent.config.broker import DEFAULT_PREFIX
from agent.config.file import Config
from agent.config.outputs import OutputsConfig
from agent.config.station import Place, others
from agent.deliver.connection import Received, Subscription
from agent.deliver.delivery import Delivery
from agent.detect.lag import DataClocks, is_live
from agent.dsp.window import BEFORE_NS
from agent.errors import ControlError, DeliveryError, TalusError
from agent.health.hearing import HearingMemory
from agent.health.home_assistant import Announcer
from agent.health.report import STALLED_S, Health, Identity
from agent.host import heap
from agent.host.clock import MachineClock, StepWatch
from agent.host.data_age import DataAges
from agent.host.disk import alone_in
from agent.inference.tensorrt.switch import BackendStatus
from agent.messages.payloads import Message, report_message
from agent.messages.schema import TEXT_LIMIT, ModelPart, PositionPart, StateMessage, StationPart
from agent.remote.slots import CrashGuard
from agent.service.assemble import Line, build_line, is_exercise, is_recorded_once, open_site, open_source
from agent.service.monitor import Monitor
from agent.service.remote_orders import Tunables
from agent.service.threads import Runner
from agent.sources import SourceProblem
from agent.types import Event, Evidence, StationId, format_ns, waiting

if TYPE_CHECKING:
    from agent.service.remote_orders import RemoteOrders

_log = logging.getLogger(__name__)

TICK_S = 0.25
YOUNG_OBJECTS = 10_000
"""Made since the last look for cycles among them, and still there."""
STOP_S = 4.0
SILENCE_SPARE_S = 30.0
"""How much longer than a channel may be silent before that is reported, nothing may come without a report."""
LARGEST_PACKET = 96 * 1024
"""Bytes that the broker may send at once: an envelope, its topic, and room for what a broker adds."""
DRAIN_S = 30.0
"""At the end of an archive, how long a broker that acknowledges nothing is waited for."""


def start(runner: Runner) -> None:
    """Start the work, with Python looking for cycles less often, and never among what stays for good: a look at all of
    a site's objects takes longer than many packets, which wait for it."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS)
    runner.start()


class Notifier:
    """systemd's notify socket (sd_notify(3)); says nothing where there is none."""

    def __init__(self) -> None:
        # Taken out of the environment: systemd's own tools, which are asked about the clock, would speak there too.
        address = os.environ.pop("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        watchdog, process = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", str(os.getpid()))
        self.watchdog_s = int(watchdog) / 2e6 if watchdog.isdigit() and process == str(os.getpid()) else None
        """How often to feed the watchdog, None where systemd does not ask."""

    def notify(self, text: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.sendto(text.encode(), self._address)
        except OSError as error:
            _log.warning("systemd does not listen: %s", error)


class Service:
    """One station's agent, from start to stop."""

    def __init__(self, config: Config, reread: Callable[[], Config] | None = None) -> None:
        """``reread`` reads the configuration anew, at SIGHUP."""
        self._config = config
        self._reread = reread
        self._signals: SimpleQueue[int] = SimpleQueue()
        """Those that came. No ``Event``: a handler runs between two instructions of the thread that waits, and may find
        the event's lock held by that thread, for ever."""
        self._reload = False
        self._started = format_ns(time.time_ns())
        self._prefix = config.mqtt.prefix if config.mqtt else DEFAULT_PREFIX
        self._failure: tuple[str, BaseException] | None = None
        self._taken_back: str | None = None
        self._announcer: Announcer | None = None

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT, the end of an archive, or a stage's death; returns the exit status.

        Raises:
            TalusError: the service cannot start: another agent has its state, no model, no outbox, no secret.
        """
        with alone_in(self._config.state_dir):
            return self._run_alone()

    def _run_alone(self) -> int:
        heap.keep_one()
        self._install_signal_handlers()
        crash_guard = CrashGuard(self._config.state_dir / "models")
        self._taken_back = crash_guard.begin()
        try:
            self._run()
        except TalusError:
            crash_guard.end()
            raise
        # A fault of the source or the disk has words of its own; what has none may be the model's doing.
        if self._failure is None or isinstance(self._failure[1], TalusError):
            crash_guard.end()
        return 0 if self._failure is None else 1

    def _run(self) -> None:
        config = self._config
        notifier = Notifier()
        station = StationId(config.station.network, config.station.station, "", "")
        prefix = self._prefix
        exercise = is_exercise(config)
        tunables = Tunables(config, station)
        orders = self._orders(station)
        clock = MachineClock()
        line = build_line(
            tunables.effective,
            config.classifier,
            prefix,
            exercise=exercise,
            state_dir=config.state_dir,
            site=open_site(config.model_copy(update={"tunables": tunables.effective})),
            ages=None if exercise else DataAges(clock),
            envelope=config.envelope.component,
        )
        for reason in line.fallbacks:
            _log.warning("%s", reason)
        stalled_s = getattr(config.source, "stalled_s", STALLED_S)
        health = Health(
            Identity(station, line.reporter.boot_id),
            config.state_dir,
            stalled_s,
            hearing_limit_counts=config.health.hearing_limit_counts,
        )
        delivery = self._delivery(station, _subscription(tunables, orders))
        clocks = DataClocks() if is_live(config) else None
        send_now = delivery.send_now if delivery else None
        runner = Runner(
            open_source(config, _warn, clock),
            line,
            health,
            delivery.put if delivery else _print,
            clocks=clocks,
            send_now=send_now,
        )
        evidence = self._keep_evidence(line)
        tunables.start(runner, evidence)
        if delivery:
            if is_recorded_once(config):
                line.reporter.resume(delivery.past())
            delivery.publish_retained(self._state_message(line, line.backend_status(), health, tunables))
            self._announcer = Announcer(delivery, config)
            self._announcer.announce()
        monitor = Monitor(
            config,
            runner,
            health,
            delivery,
            lambda: self._state(line, line.backend_status(), health, tunables),
            clock=clock,
            problems=lambda: [*tunables.reasons(), *(evidence.reasons() if evidence else [])],
            memory=self._remember(line, health),
        )
        monitor.report_every(tunables.effective.reporting.health_interval_s)
        if delivery:
            if orders:
                orders.start(line, delivery, evidence, monitor.in_short, self._taken_back)
            delivery.start()  # not before whatever the broker may send can be taken
        start(runner)
        _log.info("talus %s watches %s with %s", __version__, station.short, line.classifier.model)
        notifier.notify("READY=1")
        try:
            self._attend(runner, health, delivery, notifier, monitor, tunables=tunables, orders=orders)
        finally:
            notifier.notify("STOPPING=1")
            runner.stop(STOP_S)
            monitor.end()
            if orders:
                orders.close()
            line.close()
            self._failure = runner.failure()
            if self._failure is not None:
                _log_death(*self._failure)
            if delivery:
                rest = delivery.close()
                if rest.waiting:
                    _log.warning("%s in %s for the next start", waiting(rest.waiting), delivery.path)

    def _install_signal_handlers(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda number, _: self._signals.put(number))

    def _wait(self, seconds: float) -> bool:
        """Wait for a signal, at most so long; False where it is one to stop."""
        try:
            number = self._signals.get(timeout=seconds)
        except Empty:
            return True
        self._reload |= number == signal.SIGHUP
        return number == signal.SIGHUP

    def _orders(self, station: StationId) -> RemoteOrders | None:
        """The receiver of remote models and commands; None where no key is trusted."""
        if self._config.mqtt is None or not self._config.control.keys:
            return None
        from agent.service.remote_orders import RemoteOrders

        try:
            return RemoteOrders(self._config, station)
        except ControlError as error:
            _log.error("no remote model or command is accepted: %s", error)
            return None

    def _attend(
        self,
        runner: Runner,
        health: Health,
        delivery: Delivery | None,
        notifier: Notifier,
        monitor: Monitor,
        *,
        tunables: Tunables,
        orders: RemoteOrders | None,
    ) -> None:
        """Until the end: report health, and feed the watchdog only while packets are decided on, or while the report
        says what is wrong."""
        next_watchdog = 0.0
        backend_status, tuned, model = runner.line.backend_status(), tunables.effective, runner.line.classifier.sha256
        steps, known = StepWatch(), 0
        while self._wait(TICK_S):
            now = time.monotonic()
            if step_s := steps.step_s():
                _log.warning("this machine's clock was set by %+.1f s", step_s)
                monitor.clock_was_set()
            if runner.ended.is_set() and (runner.failure() or not delivery or delivery.drained(DRAIN_S)):
                return
            if delivery and (name := delivery.failed_sink):
                raise DeliveryError(
                    f"the thread of the sink {name} died", "see the log above; systemd starts the agent again"
                )
            self._tune(tunables, runner, health, delivery, now)
            if orders:
                orders.tick(now, tunables.control)
            monitor.tick(now)
            if self._announcer is not None and len(runner.line.pipeline.stations) != known:
                known = len(runner.line.pipeline.stations)
                self._announcer.announce_new(sensor.short for sensor in runner.line.pipeline.stations.copy())
            before, backend_status = backend_status, runner.line.backend_status()
            if tuned is not tunables.effective:
                monitor.report_every(tunables.effective.reporting.health_interval_s)
            served, model = model, runner.line.classifier.sha256
            if delivery and not (backend_status.same(before) and tuned is tunables.effective and model == served):
                delivery.publish_retained(self._state_message(runner.line, backend_status, health, tunables))
            tuned = tunables.effective
            moves = runner.advances(health.stalled_s + SILENCE_SPARE_S) or monitor.degraded
            if notifier.watchdog_s and now >= next_watchdog and runner.works() and moves:
                next_watchdog = now + notifier.watchdog_s
                notifier.notify("WATCHDOG=1")

    def _tune(self, tunables: Tunables, runner: Runner, health: Health, delivery: Delivery | None, now: float) -> None:
        """Apply changes of the file and of the remote configuration."""
        if self._reload and self._reread is not None:
            self._reload = False
            tunables.reload(self._reread)
        report = tunables.tick(
            now,
            runner.line.reporter.stamp,
            link_up=delivery is not None and delivery.connected,
            silent=health.silent,
        )
        if report is not None and delivery is not None:
            delivery.publish_retained(report)

    def _remember(self, line: Line, health: Health) -> HearingMemory | None:
        """Go on with what was usual at each sensor; an archive or a simulation begins anew at each start."""
        if not is_recorded_once(self._config):
            return None
        memory = HearingMemory(self._config.state_dir)
        line.pipeline.remembered = memory.read()
        health.expect(line.pipeline.remembered)
        return memory

    def _keep_evidence(self, line: Line) -> EvidenceStore | None:
        """Have the records of events kept."""
        if not self._config.evidence.max_mb:
            return None
        store = EvidenceStore(self._config.state_dir / "evidence", self._config.evidence.max_mb)

        def keep(event: Event) -> Evidence | None:
            station = line.pipeline.stations.get(event.station)
            if station is None:
                return None
            return store.keep(event.id, station.recorded(event.onset_ns - BEFORE_NS, event.data_ns))

        line.reporter.keep = keep
        if self._config.evidence.send == "alerts":
            own = StationId(self._config.station.network, self._config.station.station, "", "")
            line.reporter.records = AlertRecords(store.read, own, self._prefix)
        return store

    def _delivery(self, station: StationId, subscription: Subscription | None) -> Delivery | None:
        config = self._config
        outputs = config.outputs
        if config.mqtt is None and outputs == OutputsConfig():
            _log.warning("no broker is configured: events and alerts go to standard output only")
            return None
        settings = config.mqtt.settings(config.client_id) if config.mqtt else None
        path, max_mb = config.outbox_path, config.outbox.max_mb
        together = config.site.coincidence
        voters = 0 if together is None else len(together.stations)
        return Delivery(settings, station, path, max_mb, subscription, voters=voters, outputs=outputs)

    def _state_message(self, line: Line, backend_status: BackendStatus, health: Health, tunables: Tunables) -> Message:
        return report_message(self._state(line, backend_status, health, tunables), health.station, self._prefix)

    def _state(self, line: Line, backend_status: BackendStatus, health: Health, tunables: Tunables) -> StateMessage:
        classifier = line.classifier
        return StateMessage(
            station=str(health.station),
            boot_id=line.reporter.boot_id,
            started=self._started,
            versions={
                "talus": __version__,
                "python": platform.python_version(),
                "onnxruntime": metadata.version("onnxruntime"),
            },
            model=ModelPart(name=classifier.model, sha256=classifier.sha256),
            backend=backend_status.backend,
            precision=backend_status.precision,
            backend_reason="; ".join(filter(None, (self._taken_back, backend_status.reason())))[:TEXT_LIMIT] or None,
            config_revision=tunables.revision,
            config_sha256=tunables.sha256,
            position=_position(self._config.station),
            stations=[
                StationPart(station=name, name=None if place is None else place.name, position=_position(place))
                for name, place in others(self._config).items()
            ],
            exercise=is_exercise(self._config),
        )


def _position(place: Place | None) -> PositionPart | None:
    if place is None or place.latitude_deg is None or place.longitude_deg is None:
        return None
    return PositionPart(latitude=place.latitude_deg, longitude=place.longitude_deg, elevation_m=place.elevation_m)


def _subscription(tunables: Tunables, orders: RemoteOrders | None) -> Subscription | None:
    """The one subscription for all remote orders; None where nobody is trusted."""
    handlers = {**tunables.handlers, **(orders.handlers if orders else {})}

    def handle(message: Received) -> bool:
        handler = handlers.get(message.topic)
        return handler is None or handler(message)

    return Subscription(tuple(handlers), handle, required=False, largest=LARGEST_PACKET) if handlers else None


def _print(messages: Sequence[Message]) -> None:
    for message in messages:
        if not message.retain:
            print(message.payload.decode(), flush=True)


def _log_death(stage: str, error: BaseException) -> None:
    """A fault of the input is told in words, one of the agent itself with its traceback."""
    _log.error("the %s died: %s", stage, error, exc_info=None if isinstance(error, TalusError) else error)


def _warn(problem: SourceProblem) -> None:
    _log.warning("%s", problem)
