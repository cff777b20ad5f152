"""The station of a crisis, in a process of its own: what the service runs, fed through a pipe a minute at a time.

The parent is the recorder, which keeps what has not been acknowledged and gives it again after a restart. Once a minute
of data the station has decided on all that it was given, and says what came of it.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import resource
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from agent.config.broker import MqttSettings
from agent.config.file import ClassifierConfig, TunablesConfig
from agent.deliver.delivery import Delivery
from agent.health.hearing import HearingMemory
from agent.health.report import Health, HealthInputs, Identity
from agent.messages.payloads import Message
from agent.service.assemble import build_line
from agent.service.threads import Runner
from agent.types import NS, SampleBlock, StationId, StreamId

STATION = StationId("XX", "CRISIS", "", "HH")
_DECIDE_S = 120.0
"""Longest that a minute of data may take."""
_DRAIN_S = 30.0
_MEMORY_MINUTES = 10
"""How often what is usual at the sensor is written down, as the service does."""
_HEARING = frozenset(
    (
        "always_triggered", "cannot_trigger", "channels_silent", "clipped", "constant", "copies",
        "disconnected", "filled", "last_bit", "louder", "no_component", "no_samples", "not_armed",
        "packets_refused", "quieter", "repeats", "stage_ended", "stage_stuck", "threshold_high",
        "threshold_limit",
    )
)  # fmt: skip
"""Reasons of the health report that say that something is not heard."""

Key = tuple[str, int]
"""``boot_id`` and ``seq`` of a message."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What the station runs with; ``port`` is where it finds the broker."""

    folder: Path
    port: int
    tunables: TunablesConfig
    classifier: ClassifierConfig


@dataclass(slots=True)
class Said:
    """What the station says after a minute of data. ``told``: the events and alerts that it has put on disk, and when
    by the machine's clock (ns); ``armed``: by the number of ten seconds since 1970, the share in which it could
    trigger; ``reasons``: those of its health report that are about hearing; ``acknowledged``: how far each channel is
    done with; ``held``: messages in memory, as the disk refuses them."""

    told: dict[Key, int] = field(default_factory=dict)
    armed: dict[int, float] = field(default_factory=dict)
    reasons: frozenset[str] = frozenset()
    acknowledged: dict[StreamId, int] = field(default_factory=dict)
    held: int = 0


class _Feed:
    """The pipe as a source that can resume: what is acknowledged is told to the recorder."""

    def __init__(self, pipe: Connection, answer: Callable[[int], Said]) -> None:
        """``answer``: what the station says once it has decided on so many packets."""
        self._pipe, self._answer = pipe, answer
        self._given = 0
        self.now_ns = 0
        self.acknowledged: dict[StreamId, int] = {}

    def blocks(self) -> Iterator[SampleBlock]:
        while (item := self._pipe.recv()) is not None:
            packets, self.now_ns = item
            for packet in packets:
                self._given += 1
                yield packet
            self._pipe.send(self._answer(self._given))

    def close(self) -> None:
        """Nothing to do: the parent ends the feed."""

    def acknowledge(self, block: SampleBlock) -> None:
        self.acknowledged[block.stream] = block.end_ns

    @property
    def in_flight(self) -> int:
        return 0  # the recorder counts

    def clock(self) -> float:
        """Seconds, in the time of the data: silence is judged by it."""
        return self.now_ns / NS


class _Station:
    """What the service puts together, with the pipe for a source."""

    def __init__(self, pipe: Connection, setup: Setup) -> None:
        settings = MqttSettings(host="127.0.0.1", port=setup.port, backoff_min_s=0.2, backoff_max_s=0.5)
        self._delivery = Delivery(settings, STATION, setup.folder / "outbox.sqlite3")
        self._line = build_line(setup.tunables, setup.classifier, self._delivery.prefix, exercise=True)
        self._feed = _Feed(pipe, self._answer)
        boot_id = self._line.reporter.boot_id
        self._health = Health(Identity(STATION, boot_id), setup.folder, clock=self._feed.clock)
        self._runner = Runner(self._feed, self._line, self._health, self._put, send_now=self._delivery.send_now)
        self._memory = HearingMemory(setup.folder)
        self._line.pipeline.remembered = self._memory.read()
        self._told: dict[Key, int] = {}
        self._heard = 0
        self._minutes = 0

    def run(self) -> dict[Key, int]:
        """Until the feed ends; what was told since the last answer."""
        self._line.reporter.resume(self._delivery.past())
        self._delivery.start()
        self._runner.start()
        self._runner.ended.wait()
        self._delivery.drain(_DRAIN_S)
        self._delivery.close()
        return self._told

    def _put(self, messages: list[Message]) -> None:
        began_ns = time.time_ns()
        self._delivery.put(messages)
        self._told |= dict.fromkeys(_keys(messages), began_ns)

    def _answer(self, given: int) -> Said:
        runner = self._runner
        deadline = time.monotonic() + _DECIDE_S
        while runner.decided < given and time.monotonic() < deadline and not runner.ended.is_set():
            time.sleep(0.0005)
        stations = tuple(self._line.pipeline.stations.values())
        steps = [step for station in stations for step in station.hearing.steps if step.number > self._heard]
        self._heard = max((step.number for step in steps), default=self._heard)
        self._minutes += 1
        if self._minutes % _MEMORY_MINUTES == 0:
            self._memory.write({station.id: station.hearing.slots for station in stations})
        inputs = HealthInputs(problems=runner.problems(), stages=runner.stages(), stations=stations)
        reasons = {reason.code for reason in self._health.message(0, inputs).reasons}
        told, self._told = self._told, {}
        armed = {step.number: step.armed for step in steps}
        return Said(told, armed, frozenset(reasons & _HEARING), self._feed.acknowledged.copy(), runner.held)


def serve(pipe: Connection, setup: Setup) -> None:
    """Be the station, until the parent sends None or kills the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    logging.basicConfig(level=logging.CRITICAL)
    pipe.send(Said(_Station(pipe, setup).run()))


def _keys(messages: Sequence[Message]) -> Iterator[Key]:
    for message in messages:
        if not message.retain and message.name in ("event", "alert"):
            body = json.loads(message.payload)
            yield body["boot_id"], body["seq"]


class Child:
    """The station's process, as the parent has it."""

    def __init__(self, setup: Setup) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, far = context.Pipe()
        self._process = context.Process(target=serve, args=(far, setup), daemon=True)
        self._process.start()
        far.close()

    def give(self, packets: Sequence[SampleBlock], now_ns: int) -> None:
        """A minute of data, complete at ``now_ns``; ``answer`` follows."""
        self._pipe.send((packets, now_ns))

    def answer(self) -> Said:
        """
        Raises:
            EOFError: the station has died.
        """
        said: Said = self._pipe.recv()
        return said

    def fill_disk(self, full: bool) -> None:
        """Its files may not be written to: what a user without root can have of a full disk."""
        pid = self._process.pid or 0
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0 if full else hard, hard))

    def kill(self) -> None:
        """SIGKILL, at once."""
        self._process.kill()
        self._process.join()

    def finish(self) -> Said:
        """The data end; what the station says last."""
        self._pipe.send(None)
        said = self.answer()
        self._process.join(_DRAIN_S)
        return said
