"""The conductor: plays a plan to the station, strikes when it is due, and notes what was planted and what arrived."""

from __future__ import annotations

import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agent.config.broker import DEFAULT_PREFIX
from agent.config.file import ClassifierConfig, TunablesConfig
from agent.errors import TalusError
from agent.service.assemble import build_line
from agent.sources.simulator import Sent, SentFault, SimulatedSite, SimulatorSource
from agent.sources.synthesis import Array
from agent.types import NS, Event, SampleBlock, counted
from desk.crisis.broker import Arrival, Broker, Link, Listener
from desk.crisis.plan import Plan, Span
from desk.crisis.station import STATION, Child, Key, Said, Setup

_PACKET_S = 5.0
_SETTLE_S = 60.0
"""Longest wait for what was decided to arrive; what has not come by then is lost if it does not come at all."""

Say = Callable[[str], None]


@dataclass(slots=True)
class Facts:
    """What a run leaves. Times are nanoseconds: ``told`` by this machine's clock, all else in the time of the data.

    ``armed``: by the number of ten seconds since 1970, the largest share in which the station says that it could have
    triggered; ``reasons``: those of its health report at the end of each minute that are about hearing; ``away``:
    minutes of which the broker has told its subscribers that the station is not there; ``whole``: onset of each event
    that the same data give without strikes."""

    plan: Plan
    sent: list[Sent] = field(default_factory=list)
    spikes: int = 0
    told: dict[Key, int] = field(default_factory=dict)
    arrived: dict[Key, Arrival] = field(default_factory=dict)
    armed: dict[int, float] = field(default_factory=dict)
    reasons: dict[int, frozenset[str]] = field(default_factory=dict)
    away: set[int] = field(default_factory=set)
    whole: dict[str, int] = field(default_factory=dict)
    starts: int = 0
    copies: int = 0
    took_s: float = 0.0


def play(
    plan: Plan,
    tunables: TunablesConfig,
    classifier: ClassifierConfig,
    earthquakes: Sequence[Array] = (),
    say: Say = lambda text: None,
) -> Facts:
    """Play a plan from beginning to end.

    Raises:
        DeliveryError: there is no Mosquitto, or it does not start.
        ModelError: no backend serves.
        TalusError: the station died although nothing had struck it.
    """
    with tempfile.TemporaryDirectory(prefix="talus-crisis-") as name:
        return _Run(plan, Path(name), tunables, classifier, earthquakes=earthquakes, say=say).play()


class _Run:
    def __init__(
        self,
        plan: Plan,
        folder: Path,
        tunables: TunablesConfig,
        classifier: ClassifierConfig,
        *,
        earthquakes: Sequence[Array],
        say: Say,
    ) -> None:
        self._plan, self._say = plan, say
        self._facts = Facts(plan)
        self._broker = Broker(folder / "broker")
        self._broker.start()
        self._link = Link(self._broker.port)
        self._listener = Listener(self._broker.port)
        self._setup = Setup(folder, self._link.port, tunables, classifier)
        self._whole = build_line(tunables, classifier, DEFAULT_PREFIX, exercise=True)
        self._kept: deque[SampleBlock] = deque()
        self._child: Child | None = None
        self._is_known_lost = False
        """Whether the broker has told its subscribers that the station is away."""
        self._source = SimulatorSource(
            SimulatedSite((STATION,), packet_s=_PACKET_S),
            plan.scenario(),
            plan.seed,
            start_ns=plan.start_ns,
            seconds=60.0 * plan.minutes,
            speed=0,
            told=self._note_sent,
            recorded={"earthquake": earthquakes} if earthquakes else None,
        )

    def play(self) -> Facts:
        began = time.monotonic()
        facts, plan = self._facts, self._plan
        self._link.start()
        self._listener.start()
        try:
            self._listener.ready.wait(_SETTLE_S)
            self._start()
            minutes = self._minutes()
            batch = next(minutes)
            for minute in range(plan.minutes):
                self._strike(minute)
                if self._child is not None:
                    self._kept.extend(batch)
                    self._child.give(batch, self._ns(minute + 1))
                self._feed_whole(batch)
                batch = next(minutes, [])
                if self._child is not None:
                    self._note(self._answer(), minute)
                elif self._is_known_lost:
                    facts.away.add(minute)
                if (minute + 1) % 360 == 0:
                    came = len(self._listener.arrived)
                    self._say(f"{_clock(minute + 1)} of {plan.minutes / 60:g} h, {counted(came, 'message')}")
            facts.told |= self._station.finish().told
            self._settle()
            self._note_whole(self._whole.pipeline.flush())
        finally:
            if self._child is not None:
                self._child.kill()
            self._whole.close()
            self._listener.stop()
            self._link.stop()
            self._broker.end()
        facts.arrived, facts.copies = dict(self._listener.arrived), self._listener.copies
        facts.took_s = time.monotonic() - began
        return facts

    @property
    def _station(self) -> Child:
        if self._child is None:
            raise TalusError("the station is without power")
        return self._child

    def _ns(self, minute: int) -> int:
        return self._plan.start_ns + minute * 60 * NS

    def _minutes(self) -> Iterator[list[SampleBlock]]:
        """The packets of each minute, and at the end what the recorder still has."""
        rounds = round(60 / _PACKET_S)
        batch: list[SampleBlock] = []
        for number, packets in enumerate(self._source.rounds(), 1):
            batch += packets
            if number % rounds == 0:
                yield batch
                batch = []

    def _note_sent(self, what: Sent | SentFault) -> None:
        if isinstance(what, Sent):
            self._facts.sent.append(what)
        else:
            self._facts.spikes += what.fault.kind == "spike"

    def _feed_whole(self, batch: Sequence[SampleBlock]) -> None:
        """To the station that nothing happens to."""
        for block in batch:
            self._note_whole(self._whole.pipeline.feed(block))

    def _note_whole(self, outputs: Sequence[object]) -> None:
        for output in outputs:
            if isinstance(output, Event) and output.phase == "new":
                self._facts.whole[output.id] = output.onset_ns

    def _start(self) -> None:
        """The station starts, and the recorder gives it what was not acknowledged."""
        self._facts.starts += 1
        self._child = Child(self._setup)
        if self._kept:
            self._child.give([*self._kept], self._kept[-1].end_ns)
            self._note(self._answer(), None)

    def _answer(self) -> Said:
        try:
            return self._station.answer()
        except EOFError:
            raise TalusError("the station died by itself", "its last words are above") from None

    def _note(self, said: Said, minute: int | None) -> None:
        facts = self._facts
        facts.told |= said.told
        for number, armed in said.armed.items():
            facts.armed[number] = max(armed, facts.armed.get(number, 0.0))
        if minute is not None:
            facts.reasons[minute] = said.reasons
        done = said.acknowledged
        if done:
            self._kept = deque(block for block in self._kept if block.end_ns > done.get(block.stream, 0))

    def _ask(self, minute: int) -> Said:
        """What has come of the data so far."""
        self._station.give([], self._ns(minute))
        said = self._answer()
        self._note(said, None)
        return said

    # Strikes

    def _strike(self, minute: int) -> None:
        """What ends at the begin of this minute, then what begins."""
        for span in self._plan.troubles:
            if span.end == minute:
                self._end(span)
        for span in self._plan.troubles:
            if span.begin == minute:
                self._say(f"{_clock(minute)}  {span.kind}, {span.end - span.begin} min")
                self._begin(span)

    def _begin(self, span: Span) -> None:
        if span.kind in ("link cut", "broker restart", "disk full", "power cut"):
            self._settle()
        if span.kind == "link cut":
            self._link.state = "cut"
        elif span.kind == "broker restart":
            self._broker.end()
        elif span.kind == "disk full":
            self._station.fill_disk(True)
        elif span.kind == "power cut":
            self._cut_power()

    def _end(self, span: Span) -> None:
        if span.kind in ("link cut", "broker restart", "disk full", "power cut"):
            self._listener.floor_ns = self._ns(span.end)
        if span.kind == "link cut":
            self._link.state = "open"
        elif span.kind == "broker restart":
            self._listener.ready.clear()
            self._broker.start()
            self._listener.ready.wait(_SETTLE_S)
        elif span.kind == "disk full":
            self._station.fill_disk(False)
            self._wait(lambda: self._ask(span.end).held == 0)
        elif span.kind == "power cut":
            self._start()
        else:
            return
        self._settle()

    def _cut_power(self) -> None:
        before = self._listener.offline
        self._station.kill()
        self._child = None
        self._is_known_lost = self._wait(lambda: self._listener.offline > before)

    def _settle(self) -> None:
        """Wait until all that the station has put on disk has arrived, and nothing is held in memory."""
        deadline = time.monotonic() + _SETTLE_S
        while time.monotonic() < deadline:
            if self._facts.told.keys() <= self._listener.arrived.keys():
                return
            time.sleep(0.005)

    def _wait(self, condition: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + _SETTLE_S
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.005)
        return condition()


def _clock(minute: int) -> str:
    return f"{minute // 60}:{minute % 60:02d}"
