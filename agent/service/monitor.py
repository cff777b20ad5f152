"""The monitor: every few seconds the main thread looks at all parts of the agent and reports.

The status file and the page for Prometheus get every look, the broker one in ``reporting.health_interval_s``, and
sooner when the reasons change. All three say the same, as they are made from the same report.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from agent.config.broker import DEFAULT_PREFIX
from agent.config.file import Config
from agent.config.outputs import split_address
from agent.deliver.delivery import Delivery
from agent.detect.station import Station
from agent.dsp.hearing import Slot
from agent.errors import DeliveryError, TalusError
from agent.health.certificates import Certificates
from agent.health.hearing import HearingMemory
from agent.health.prometheus import render
from agent.health.report import Health, HealthInputs, for_the_broker
from agent.health.status import StatusFile, status_message
from agent.host import heap
from agent.host.clock import HostClock, MachineClock
from agent.messages.payloads import PACKET_OVERHEAD, report_message, topic
from agent.messages.schema import HealthMessage, LinkHealth, OutboxHealth, StageHealth, StateMessage
from agent.reasons import Reason
from agent.service.assemble import is_recorded_once
from agent.service.threads import Runner
from agent.types import StationId

if TYPE_CHECKING:
    from agent.health.prometheus import Exporter

LOOK_S = 10.0
FIRST_LOOK_S = 2.0
CHANGE_S = 30.0
"""The broker gets other reasons at once, but not more often than this."""
CLOCK_S = 60.0
"""How often the machine is asked about its clock: that starts another program."""
GIVE_BACK_S = 60.0
"""How often memory that is free is given back: windows of a swarm of events leave some."""

_log = logging.getLogger(__name__)


class Monitor:
    """Owned by the main thread."""

    def __init__(
        self,
        config: Config,
        runner: Runner,
        health: Health,
        delivery: Delivery | None,
        state: Callable[[], StateMessage],
        *,
        clock: MachineClock,
        problems: Callable[[], list[Reason]] = list,
        memory: HearingMemory | None = None,
    ) -> None:
        """``state`` words what runs at the station now, ``problems`` what is wrong that only others know; ``memory``
        keeps what is usual at each sensor."""
        self._problems, self._memory = problems, memory
        self._runner, self._health, self._delivery, self._state = runner, health, delivery, state
        self._prefix = config.mqtt.prefix if config.mqtt else DEFAULT_PREFIX
        self._interval_s = config.tunables.reporting.health_interval_s
        self._look_s = min(LOOK_S, self._interval_s)
        now = time.monotonic()
        self._next_look = self._next_report = now + min(self._interval_s, FIRST_LOOK_S)
        self._reported_at = now - CHANGE_S
        self._reported: set[str] = set()
        """Codes of the reasons in the newest report to the broker."""
        self._clock, self._asked_at = clock, now
        self._is_live = is_recorded_once(config)
        self._ages = runner.line.reporter.ages if self._is_live else None
        """Of data that are recorded now; a replay may be of any age."""
        self._give_back_at = now + GIVE_BACK_S
        self._ending = False
        self._certificates = Certificates(config)
        self._file = StatusFile(config.state_dir)
        self._complaints: list[Reason] = []
        self.degraded = False
        """Whether the newest report says that something is wrong."""
        self._exporter = self._export(config)

    def _export(self, config: Config) -> Exporter | None:
        """A port that is taken is reported; the slope is watched all the same."""
        if config.health.prometheus is None:
            return None
        from agent.health.prometheus import Exporter

        try:
            exporter = Exporter(*split_address(config.health.prometheus))
        except TalusError as error:
            _log.warning("%s", error)
            self._complaints.append(Reason("prometheus", error.message))
            return None
        exporter.start()
        return exporter

    def in_short(self) -> dict[str, str | float | None]:
        """How everything is, for who asks for a word."""
        report = self._collect(time.monotonic())
        reason = report.reasons[0].text if report.reasons else None
        return {"status": report.status, "reason": reason, "disk_free_mb": report.disk_free_mb, "rss_mb": report.rss_mb}

    def report_every(self, interval_s: float) -> None:
        """Another ``reporting.health_interval_s``, from the next report on."""
        self._interval_s, self._look_s = interval_s, min(LOOK_S, interval_s)

    def tick(self, now: float) -> None:
        """Look and tell, if it is time; ``now`` is the monotonic clock."""
        if now < min(self._next_look, self._next_report):
            return
        self._next_look = now + self._look_s
        report = self._collect(now)
        self.degraded = report.status != "ok"
        codes = {reason.code for reason in report.reasons}
        changed = codes != self._reported and now - self._reported_at >= CHANGE_S
        if now >= self._next_report or changed:
            self._next_report = now + self._interval_s
            self._reported_at, self._reported = now, codes
            report = self._publish(report)
        self._write(report, stopped=False)
        if self._memory is not None:
            self._memory.tick(now, self._usual)
        if now >= self._give_back_at:
            self._give_back_at = now + GIVE_BACK_S
            heap.give_back()

    def _publish(self, report: HealthMessage) -> HealthMessage:
        """To the broker, with a number of its own; returns what was published, unabridged."""
        if self._delivery is None:
            return report
        report = report.model_copy(update={"seq": self._runner.line.reporter.next_seq()})
        station, limit = self._health.station, self._delivery.packet_limit
        room = None if limit is None else limit - PACKET_OVERHEAD - len(topic(self._prefix, station, "health"))
        self._delivery.publish_retained(report_message(for_the_broker(report, room), station, self._prefix))
        return report

    def end(self) -> None:
        """The agent stops in order: say so where it is still heard."""
        self._ending = True
        if self._exporter is not None:
            self._exporter.stop()
        self._write(self._collect(time.monotonic()), stopped=True)
        if self._memory is not None:
            self._memory.write(self._usual())

    def _write(self, report: HealthMessage, *, stopped: bool) -> None:
        state, reporter = self._state(), self._runner.line.reporter
        last_event, last_alert = reporter.last_event, reporter.last_alert
        self._file.write(
            status_message(state, report, last_alert, self._look_s, last_event=last_event, stopped=stopped)
        )
        if self._exporter is not None:
            self._exporter.show(render(report, state))

    def _collect(self, now: float) -> HealthMessage:
        """How everything is; an outbox that cannot even be read is part of it."""
        runner, clock = self._runner, self._host_clock(now)
        problems = [*self._complaints, *self._problems(), *runner.problems()]
        if runner.clocks is not None:
            runner.clocks.host(is_wrong=clock.is_wrong)
        problems += [*self._times(clock), *self._bare()]
        if self._clock.now().is_set:
            problems += self._certificates.reasons()
        outbox, link = self._spool(problems)
        inputs = HealthInputs(
            problems=problems,
            outbox=outbox,
            link=link,
            activity=runner.line.backend_status().activity,
            clock=clock,
            stages=[*self._threads(), *self._link_stage(outbox)],
            source=runner.counters(),
            inference_ms=runner.line.timed.median_ms(),
            stations=self._stations(),
            alerts=runner.line.reporter.alerts.copy(),
        )
        return self._health.message(0, inputs)

    def _threads(self) -> list[StageHealth]:
        """The source and the pipeline; not what has ended because it was told to."""
        ended_in_order = self._ending and self._runner.failure() is None
        return [stage for stage in self._runner.stages() if stage.alive or not ended_in_order]

    def _stations(self) -> tuple[Station, ...]:
        return tuple(self._runner.line.pipeline.stations.copy().values())

    def _usual(self) -> dict[StationId, tuple[Slot, ...]]:
        """What is usual at each sensor; of one that has not come yet, as an earlier run had it."""
        known = {station.id: station.hearing.slots for station in self._stations()}
        earlier = {name: tuple(slots) for name, slots in self._runner.line.pipeline.remembered.items()}
        return {**earlier, **{name: slots for name, slots in known.items() if slots}}

    def clock_was_set(self) -> None:
        """This machine's clock was set: what was compared with it before does not count."""
        if self._runner.clocks is not None:
            self._runner.clocks.forget()
        if self._runner.line.reporter.ages is not None:
            self._runner.line.reporter.ages.forget()
        self._asked_at = -CLOCK_S

    def _host_clock(self, now: float) -> HostClock:
        """How the clock is kept; asked more often until it is set."""
        every_s = min(CLOCK_S, self._interval_s) if self._clock.now().is_set else 0.0
        if not self._ending and now - self._asked_at >= every_s:
            self._asked_at = now
            self._clock.look()
        return self._clock.said

    def _times(self, clock: HostClock) -> list[Reason]:
        """What is wrong with this machine's clock, and with the age of the data by it."""
        if self._ages is None:
            return []
        is_set = self._clock.now().is_set
        found = []
        if not is_set or (clock.is_wrong and self._runner.clocks is not None):
            unknown = "" if is_set else "; it is not set, and the age of the data is not known"
            found.append(Reason("clock", f"this machine's clock: {clock}{unknown}"))
        return found + self._ages.reasons(self._runner.line.reporter.max_age_s)

    def _bare(self) -> list[Reason]:
        """What a station on live data lacks by its configuration."""
        if not self._is_live:
            return []
        found = []
        if self._delivery is None:
            text = "neither a broker nor an output is configured: events and alerts are printed, and nobody is told"
            found.append(Reason("no_output", text))
        if self._runner.line.backend_status().backend == "constant":
            text = "every event gets the same label, whatever it is (classifier.backends: constant)"
            found.append(Reason("no_network", text))
        return found

    def _spool(self, problems: list[Reason]) -> tuple[OutboxHealth | None, LinkHealth | None]:
        if self._delivery is None:
            return None, None
        try:
            outbox, link, reasons = self._delivery.health()
        except DeliveryError as error:
            problems.append(Reason("outbox_unreadable", error.message))
            return None, None
        problems += reasons
        return outbox.model_copy(update={"held": self._runner.held}), link

    def _link_stage(self, outbox: OutboxHealth | None) -> list[StageHealth]:
        if self._delivery is None:
            return []
        waiting = None if outbox is None else outbox.depth
        return [StageHealth(name="link", alive=self._delivery.failed_sink is None, idle_s=None, waiting=waiting)]
