"""Source to outbox: the two threads that turn packets into messages on disk, for as long as both work."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING

from agent.backoff import ThrottledLog
from agent.detect.lag import DataClocks
from agent.detect.resume import PendingPackets
from agent.errors import ConfigError, DataError, TalusError
from agent.health.report import Health
from agent.messages.payloads import Message, Priority
from agent.messages.schema import EventMessage, StageHealth, parse
from agent.messages.text import readable
from agent.reasons import Reason, of
from agent.service.assemble import Fed, Line
from agent.service.storing import Storing
from agent.sources import Counting, Resumable, Source, Telling
from agent.sources.handoff import Empty, Full, Handoff
from agent.types import Discard, Event, SampleBlock, format_ns

if TYPE_CHECKING:
    from agent.config.file import TunablesConfig
    from agent.remote.trigger_watch import TriggerWatch

_log = logging.getLogger(__name__)

QUEUE_BLOCKS = 4096
"""Packets between the source and the pipeline: a minute of 64 channels. When it is full the source waits."""
TICK_S = 1.0
BUSY_S = 30.0
"""Longest that one packet may take before the watchdog is no longer fed."""
SILENT_S = 30.0
"""So long without a packet from anyone, and stations of a site are no longer waited for; longer where they may be
further behind, which those are that deliver a minute at a time."""
REFUSED_S = 120.0
"""So long a packet that the pipeline refused is told of: longer than packets are, so that one refused each time is."""
MOST_LOGGED = 1024
"""Events that go on of which it is known what the log said last."""


class Stage:
    """A named thread whose failure is noticed: ``failed`` holds the exception, ``finished`` is called either way."""

    def __init__(self, name: str, work: Callable[[], None], finished: Callable[[], None]) -> None:
        self.failed: BaseException | None = None
        self._work, self._finished = work, finished
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def name(self) -> str:
        return self._thread.name

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

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


class _Wake:
    """An item in the queue that only wakes the thread: it has other work."""


_WAKE = _Wake()


class Runner:
    """Source to outbox: the two threads that turn packets into messages on disk."""

    def __init__(
        self,
        source: Source,
        line: Line,
        health: Health,
        put: Callable[[list[Message]], None],
        *,
        clocks: DataClocks | None = None,
        send_now: Callable[[Message], None] | None = None,
    ) -> None:
        """``clocks`` judges the times of packets that come as they are recorded; None for all others. ``send_now``
        sends an alert that the disk refused."""
        self.line, self.clocks = line, clocks
        self._source, self._health, self._send_now = source, health, send_now
        self._storing = Storing(put)
        self._pending = PendingPackets(line.pipeline, source.acknowledge) if isinstance(source, Resumable) else None
        self.watch: TriggerWatch | None = None
        """Is shown what each packet gave rise to; to be set before the start."""
        self._work: deque[tuple[Callable[[], None], Future[None]]] = deque()
        self._queue: Handoff[tuple[SampleBlock, int] | _Wake | None] = Handoff(QUEUE_BLOCKS)
        self._refused = 0
        self._refusal: tuple[float, str] | None = None
        """When a packet was refused last, and why."""
        self._throttled = ThrottledLog(_log.error)
        self._log_event = EventLog().note
        self.stopping = threading.Event()
        self.ended = threading.Event()
        """Set when a stage has ended, whether it had to or not."""
        self.decided = 0
        """Packets decided on since the start, those included that could not be used."""
        self._busy_since: float | None = None
        self._read_at: float | None = None
        self._decided_at: float | None = None
        self._made_at = time.monotonic()
        self._stages = (
            Stage("source", self._read, self._source_ended),
            Stage("pipeline", self._decide, self._pipeline_ended),
        )

    def retune(self, tunables: TunablesConfig, then: Callable[[], None] = lambda: None) -> Future[None]:
        """Go on with other settings between two packets, at once; ``then`` is called right after, by the same thread.
        The future fails with what the pipeline says against them, and nothing has changed then."""

        def work() -> None:
            fed = self.line.retune(tunables, time.time_ns())
            then()
            self._note(fed.outputs)
            self._send(fed.messages)

        done: Future[None] = Future()
        self._work.append((work, done))
        with contextlib.suppress(Full):  # then it is not asleep
            self._queue.put(_WAKE)
        if self.ended.is_set():
            self._cancel_work()
        return done

    def _do_work(self) -> None:
        while self._work:
            work, done = self._work.popleft()
            try:
                work()
            except TalusError as error:
                done.set_exception(error)
            else:
                done.set_result(None)

    def _cancel_work(self) -> None:
        while self._work:
            with contextlib.suppress(IndexError):
                self._work.popleft()[1].set_exception(ConfigError("the pipeline has ended"))

    def start(self) -> None:
        self._storing.start()
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

    def advances(self, within_s: float) -> bool:
        """Whether a packet was decided on in the last ``within_s`` seconds; at first, whether it is that young."""
        return time.monotonic() - (self._decided_at or self._made_at) < within_s

    def works(self) -> bool:
        """False when the pipeline is stuck on a packet; a silent source is no reason to restart the agent."""
        since = self._busy_since
        return since is None or time.monotonic() - since < BUSY_S

    def stages(self) -> list[StageHealth]:
        """How each thread stands."""
        now = time.monotonic()
        source, pipeline = self._stages
        return [
            StageHealth(name="source", alive=source.alive, idle_s=_since(self._read_at, now), waiting=None),
            StageHealth(
                name="pipeline",
                alive=pipeline.alive,
                idle_s=_since(self._decided_at, now),
                waiting=len(self._queue),
            ),
        ]

    def counters(self) -> dict[str, int]:
        """What the source has counted, and the packets that the pipeline could not use."""
        counts = dict(self._source.counters()) if isinstance(self._source, Counting) else {}
        return {"refused_packets": self._refused, **counts} if self._refused else counts

    @property
    def held(self) -> int:
        """Messages that wait in memory because the disk refuses them or is slow."""
        return self._storing.held

    def problems(self) -> list[Reason]:
        """What is wrong with the way in and out."""
        found = self._storing.reasons()
        refusal = self._refusal
        if refusal is not None and time.monotonic() - refusal[0] < REFUSED_S:
            found.append(Reason("packets_refused", refusal[1]))
        if isinstance(self._source, Telling):
            found += of("source", self._source.problems())
        if self.clocks is not None:
            found += of("data_clock", self.clocks.doubts())
        if problem := self.line.reporter.problem():
            found.append(Reason("coincidence", problem))
        return found

    def _read(self) -> None:
        for block in self._source.blocks():
            self._read_at = time.monotonic()
            self._hand_over((block, time.time_ns()))
            if self.stopping.is_set():
                return

    def _pipeline_ended(self) -> None:
        self.ended.set()
        self._cancel_work()

    def _source_ended(self) -> None:
        self._hand_over(None)

    def _hand_over(self, item: tuple[SampleBlock, int] | None) -> None:
        """Wait for room, but not for a pipeline that has ended."""
        while not self.ended.is_set():
            try:
                self._queue.put(item, 0.5)
            except Full:
                continue
            return

    def _decide(self) -> None:
        received_ns = time.time_ns()
        while (item := self._next()) is not None:
            self._do_work()
            if isinstance(item, _Wake):
                continue
            packet, received_ns = item
            self._busy_since = time.monotonic()
            block = self.clocks.judge(packet, received_ns, self._busy_since) if self.clocks else packet
            if self.line.reporter.ages is not None:
                self.line.reporter.ages.saw(packet, received_ns, self._busy_since)
            if self.clocks and self.clocks.was_set_back(packet, received_ns, self._busy_since):
                _log.warning("the clock of %s was set back; it begins anew", block.stream)
                self.line.pipeline.forget(block.stream)
            fed = self._feed(block, received_ns)
            if self.watch is not None:
                self.watch.fed(block, self.line.pipeline.stations, fed.outputs)
            self._send(fed.messages)
            if self._pending is not None:
                self._pending.add(packet)
                if self._storing.is_done:
                    self._pending.release()
            self._decided_at, self._busy_since = time.monotonic(), None
            self.decided += 1
        # After a source that died the agent starts again, and what was open goes on, as after a stop.
        fed = self.line.finish(received_ns, cut=self.stopping.is_set() or self.failure() is not None)
        self._note(fed.outputs)
        self._send(fed.messages)
        self._storing.drain(self.stopping)

    def _feed(self, block: SampleBlock, received_ns: int) -> Fed:
        """What the line makes of a packet; whether it could use it goes into the health report."""
        pipeline, used, fed = self.line.pipeline, False, Fed([], [])
        before = pipeline.used(block.stream)
        try:
            fed = self.line.feed(block, received_ns)
            used = pipeline.used(block.stream) > before
        except DataError as error:
            self._refused += 1
            self._refusal = time.monotonic(), f"packets of {block.stream} are dropped: {error.message}"
            self._throttled.warn(f"packets of {block.stream} are dropped: {error}", key=str(block.stream))
        self._health.saw(block, received_ns, used=used)
        self._note(fed.outputs)
        return fed

    def _next(self) -> tuple[SampleBlock, int] | _Wake | None:
        silent_s = 0.0
        while True:
            patience_s = TICK_S if self.line.reporter.is_waiting() else None
            try:
                return self._queue.take(patience_s)
            except Empty:
                silent_s += TICK_S
            if silent_s >= max(SILENT_S, self.line.reporter.patience_s) and self.line.reporter.is_waiting():
                # The whole site is silent, and with it the time of the data: nobody is waited for any more.
                self._send(self.line.reporter.finish(time.time_ns()))

    def _note(self, outputs: Sequence[Event | Discard]) -> None:
        for output in outputs:
            self._health.decided(output)
            if isinstance(output, Discard):
                _log.debug("%s at %s: discarded: %s", output.station, format_ns(output.onset_ns), output.reason)

    def _send(self, messages: Sequence[Message]) -> None:
        stored = len(messages) - (self._storing.add(messages) if messages else 0)
        for place, message in enumerate(messages):
            if message.name == "event":
                self._log_event(parse(EventMessage, message.payload))
            if message.name == "alert":
                if place >= stored and message.priority is Priority.ALERT and self._send_now is not None:
                    # Whoever is in danger cannot wait for a disk. What goes there later is sent again, as a copy.
                    self._send_now(message)
                _log.warning("%s", readable(message))


def _since(then: float | None, now: float) -> float | None:
    return None if then is None else round(max(0.0, now - then), 1)


class EventLog:
    """Writes a line about each revision of an event that was sent: at INFO where it is the first, the last, or says
    something else than the one before; at DEBUG the rest."""

    def __init__(self) -> None:
        self._said: OrderedDict[str, tuple[str | None, bool]] = OrderedDict()
        """Label, and whether the network abstained, of the newest revision of each event that goes on."""

    def note(self, event: EventMessage) -> None:
        """Write the line about a revision."""
        verdict = event.classification
        says = (None, False) if verdict is None else (verdict.label, verdict.abstained)
        is_last, before = event.phase == "end", self._said.pop(event.id, None)
        if not is_last:
            self._said[event.id] = says
            if len(self._said) > MOST_LOGGED:
                self._said.popitem(last=False)
        nothing = "slow" if event.swell is not None else f"no verdict ({event.reason})"
        said = nothing if verdict is None else f"{verdict.label} {verdict.probability:.2f}"
        doubt = " (abstained)" if verdict is not None and verdict.abstained else ""
        why = "" if event.decision is None else f"; {event.decision.code}: {event.decision.reason}"
        level = logging.INFO if is_last or before != says else logging.DEBUG
        _log.log(level, "%s %s r%d: %s%s%s", event.id, event.phase, event.revision, said, doubt, why)
