"""SeedLink servers as a source: one connection and one thread a server, made anew for as long as it takes.

protocol.py    packets and commands as data
connection.py  a connection to a server, and what is asked for over it
resume.py      what was received and done with, on disk; from where a new connection goes on
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from agent.backoff import Backoff, Throttle, delays
from agent.errors import SourceError, in_words
from agent.host.data_age import Freshness, assess
from agent.sources import ProblemSink, SourceProblem
from agent.sources.channels import Channel, Skipped
from agent.sources.handoff import Full, Handoff
from agent.sources.in_flight import Origin
from agent.sources.miniseed import RecordReader
from agent.sources.seedlink.connection import Connection, SilentError, Subscribed, held, subscribe
from agent.sources.seedlink.protocol import Packet, ahead, iso, match
from agent.sources.seedlink.resume import Past, Position, Progress, Reached, recent, state_file
from agent.types import NS, SampleBlock, format_ns

if TYPE_CHECKING:
    from agent.config.sources import SeedLinkConfig, SeedLinkServerConfig, SeedLinkStationConfig

QUEUE_BLOCKS = 256
"""Between the servers' threads and the one that consumes ``blocks()``; when it is full the servers wait."""
TICK_S = 0.5
SAVE_S = 5.0
CLOSE_S = 1.0
"""How long the end waits for a server's thread to store its positions; one that is connecting does not hear."""
FIRST_RETRY_S = 0.5
_TOLERANCE_NS, _TOLERANCE = 120_000_000, 0.006
"""A first packet that is later than the known samples by this much, and by this share of its length, does not continue
them: stamps jitter, clocks drift, and headers hold a rate that was measured."""
LOSSES_S, UNSTABLE = 600.0, 5
"""Connections lost in this time are told of from this number on: what each of them costs may not be sent again."""
LONGEST_S = 3600.0
"""Longest time between two attempts to wake a channel."""
RECORDS_MISSED = 3
"""A channel of long records is not silent before so many of them are missing."""
MAX_CHANNELS = 4096
"""Most channels that are watched."""
DATA_S = 20.0
"""How long samples are waited for: a record of 512 bytes at 100 Hz takes some five seconds to fill."""
_NO_HINT = "is it a SeedLink server? The service tries again by itself"
_Item: TypeAlias = "SampleBlock | SourceProblem | BaseException | None"


class _AskAgainError(SourceError):
    """The connection is sound, but something must be asked for in another way."""


class SeedLinkSource:
    """Blocks from SeedLink servers as they come, each station from where the pipeline had got to.

    A block is a record (of miniSEED 2 or 3), cut where it is longer than ``MAX_BLOCK_S``. Blocks of one channel come in
    the server's order; after an interruption some may come twice. What a connection lost is asked for again; only what
    the server no longer holds is a gap.

    Args:
        config: servers, what is asked of them, and time-outs.
        state_dir: where positions are kept; None keeps none, and every start begins with what comes next.
        on_problem: told of lost connections, refused stations and damaged records; of each again after five minutes.
    """

    def __init__(self, config: SeedLinkConfig, state_dir: Path | None, *, on_problem: ProblemSink) -> None:
        self._on_problem = on_problem
        self._stop = threading.Event()
        self._queue: Handoff[_Item] = Handoff(QUEUE_BLOCKS)
        self._links = [_Link(server, config, state_dir, self._queue, self._stop) for server in config.servers]

    def blocks(self) -> Iterator[SampleBlock]:
        """Packets as they come, until ``close``.

        Raises:
            BaseException: a server's thread died of it; lost connections do not end a thread.
        """
        for link in self._links:
            link.start()
        try:
            while not self._stop.is_set():
                item = self._queue.take()
                if isinstance(item, SampleBlock):
                    yield item
                elif isinstance(item, SourceProblem):
                    self._on_problem(item)
                elif item is not None:
                    raise item
        finally:
            self.close()
            for link in self._links:
                link.join(CLOSE_S)

    def close(self) -> None:
        """Make ``blocks()`` end promptly, and the connections with it."""
        self._stop.set()
        for link in self._links:
            link.abort()
        try:
            self._queue.put(None)
        except Full:
            return  # then nobody waits for an item

    def acknowledge(self, block: SampleBlock) -> None:
        """See ``Resumable``."""
        link = block.origin.owner if isinstance(block.origin, Origin) else None
        if isinstance(link, _Link) and link in self._links:
            link.acknowledge(block)

    @property
    def in_flight(self) -> int:
        """See ``Resumable``."""
        return sum(link.in_flight for link in self._links)

    def problems(self) -> list[str]:
        """See ``Telling``."""
        return [problem for link in self._links for problem in link.problems()]

    def counters(self) -> dict[str, int]:
        """See ``Counting``: ``packets`` received and ``samples`` passed on; packets that gave none, by reason and with
        their bytes; ``stray_bytes`` between packets, and ``cut_off_bytes`` of packets that a lost connection left
        incomplete. All servers together."""
        return dict(sum((link.counts() for link in self._links), Counter[str]()))


class _Link:
    """One server's thread: connect, ask, receive, and once more from the beginning."""

    def __init__(
        self,
        server: SeedLinkServerConfig,
        config: SeedLinkConfig,
        state_dir: Path | None,
        out: Handoff[_Item],
        stop: threading.Event,
    ) -> None:
        self._server, self._config, self._queue, self._stop = server, config, out, stop
        self._name = server.address
        path = None if state_dir is None else state_file(state_dir, self._name)
        self._progress = Progress(path, self._name, self)
        self._reader = RecordReader(self._report_renamed)
        self._thread = threading.Thread(target=self._run, name=f"seedlink {self._name}", daemon=True)
        self._saver = threading.Thread(target=self._keep_saving, name=f"seedlink {self._name} positions", daemon=True)
        """Has a thread of its own, so that the server's data do not wait for a slow disk."""
        self._connection: Connection | None = None
        self._unsaved = ""
        """Why positions could not be stored."""
        self._problem: str | None = "not connected yet"
        self._problem_since = time.monotonic()
        self._losses: deque[float] = deque(maxlen=1000)
        """When connections were lost (monotonic clock, s)."""
        self._throttle = Throttle()
        self._liveness = Liveness(config.stalled_s)
        self._distrusted: set[str] = set()
        """Stations whose sequence numbers are out of date: the server numbers anew."""
        self._numbered: dict[str, Reached] = {}
        """Stations that were asked for by number, as they were left."""
        self._expected: dict[str, int] = {}
        """The time at which the first new packet of each channel should begin."""
        self._silent: set[str] = set()
        """Stations that were asked for from where they were left and have sent nothing yet."""
        self._looked_at = time.monotonic()
        self._delivered = False
        self._counts: Counter[str] = Counter()
        self._asked = [match(request.station) for request in server.stations]

    def start(self) -> None:
        self._thread.start()
        self._saver.start()

    def join(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)

    def abort(self) -> None:
        connection = self._connection
        if connection is not None:
            connection.abort()

    def counts(self) -> Counter[str]:
        counts, connection = self._counts.copy(), self._connection
        if connection is not None and connection.skipped_bytes:
            counts["stray_bytes"] += connection.skipped_bytes
        return counts

    @property
    def in_flight(self) -> int:
        return self._progress.in_flight

    def acknowledge(self, block: SampleBlock) -> None:
        self._progress.acknowledge(block)
        if self._stop.is_set():
            # The thread that saves may have ended while the pipeline still worked on what had come.
            self._save(durable=False)

    def problems(self) -> list[str]:
        problem, since = self._problem, time.monotonic() - self._problem_since
        if problem is not None:
            return [f"seedlink: {problem} (for {since:.0f} s)"]
        found, now = [], time.monotonic()
        if (losses := sum(now - at < LOSSES_S for at in tuple(self._losses))) >= UNSTABLE:
            minutes = f"{losses} times in the last {LOSSES_S / 60:.0f} minutes"
            found.append(f"seedlink {self._name}: the connection was lost {minutes}")
        if self._unsaved:
            found.append(self._unsaved)
        if silent := self._liveness.unheard():
            found.append(f"seedlink {self._name}: no samples from {_listed(silent)} yet")
        return found

    # The thread.

    def _run(self) -> None:
        try:
            self._run_sessions()
        except BaseException as error:  # noqa: BLE001 - whatever it is ends the source, which reports it
            self._put(error)

    def _run_sessions(self) -> None:
        if self._progress.problem is not None:
            self._report("state", self._progress.problem, "delete the file")
        waits = delays(FIRST_RETRY_S, self._config.retry_s)
        while not self._stop.is_set():
            at_once = self._delivered = False
            try:
                self._session()
            except _AskAgainError as error:
                at_once = True
                self._report(error.message, error.message, error.hint)
            except SourceError as error:
                if not self._stop.is_set():
                    self._lost(error)
            connection, self._connection = self._connection, None
            if connection is not None:
                self._count("stray_bytes", connection.skipped_bytes)
                self._count("cut_off_bytes", connection.waiting_bytes)
                connection.close()
            if self._delivered:
                waits = delays(FIRST_RETRY_S, self._config.retry_s)
            if not at_once:
                self._stop.wait(next(waits))
        self._save()

    def _keep_saving(self) -> None:
        try:
            while not self._stop.wait(SAVE_S):
                self._save()
        except BaseException as error:  # noqa: BLE001 - as above
            self._put(error)

    def _session(self) -> None:
        """One connection, from greeting to loss.

        Raises:
            SourceError: why it ended.
        """
        connection = self._connection = Connection(self._server, self._config.connect_timeout_s)
        connection.open()
        if self._stop.is_set():
            return
        past = self._progress.past()
        subscribed = subscribe(connection, self._server.stations, past, self._distrusted, self._refused)
        self._progress.connected(subscribed.cursor)
        self._resume(subscribed, past.stations)
        self._liveness.asked(subscribed.requests)
        heard = time.monotonic()
        self._problem = None
        asked = False
        while not self._stop.is_set():
            packet = connection.receive(TICK_S)
            now = time.monotonic()
            if packet is not None:
                heard, asked = now, False
                self._accept(packet, connection.version)
            elif now - heard > self._config.receive_timeout_s:
                raise SilentError(
                    f"{self._name} has been silent for {now - heard:.0f} s", "the server or the link is dead"
                )
            elif now - heard > self._config.receive_timeout_s / 2 and not asked:
                connection.ask("ID")
                asked = True
            if now - self._looked_at > TICK_S:
                self._looked_at = now
                self._look_for_stalls()

    def _accept(self, packet: Packet, version: int) -> None:
        if packet.sequence is None:
            return  # an answer to INFO: a sign of life
        self._counts["packets"] += 1
        if packet.form not in ("2", "3"):
            self._drop(Skipped("format", f"format {packet.form!r} is not miniSEED"), packet)
            return
        record = self._reader.read(packet.payload)
        station = packet.station or record.station
        asked = any(fits(station) for fits in self._asked)
        if record.skipped is not None:
            self._drop(record.skipped, packet)
        elif not asked:
            hint = "a damaged header, or the server names its records otherwise: then ask for the station by that name"
            self._drop(Skipped("not_asked_for", f"{station} was not asked for", "", hint), packet)
        if not asked:
            return
        position = Position(packet.sequence, record.sound_ns, version)
        if station in self._silent:
            self._silent.discard(station)
            if station not in self._numbered:
                self._distrusted.discard(station)  # its last number is one of this connection from now on
        if self._is_repeated(station, position, record.blocks):
            self._count_packet("repeated", packet)
            return
        if position.start_ns is None:
            last = self._progress.received().get(station)
            position = Position(packet.sequence, None if last is None else last.position.start_ns, version)
        *others, newest = record.blocks or (None,)
        for block in others:
            self._put(block)
        origin = self._progress.send(station, position, newest)
        if newest is not None:
            self._counts["samples"] += sum(len(block.samples) for block in record.blocks)
            self._delivered |= self._liveness.note(station, record.blocks)
            self._put(replace(newest, origin=origin))

    # Going on where the last connection ended.

    def _resume(self, subscribed: Subscribed, known: Mapping[str, Reached]) -> None:
        """Note what the first packets must look like, and tell what is asked for by time."""
        self._numbered.clear()
        self._expected.clear()
        self._silent = set(subscribed.beginnings)
        by_time: dict[str, list[str]] = {}
        for station, beginning in subscribed.beginnings.items():
            self._expected.update(recent(known[station], time.time_ns()))
            if beginning.kind == "number":
                self._numbered[station] = known[station]
                continue
            words = {"time": f"from {iso(beginning.time_s)} on", "all": "with all that is held"}
            if beginning.kind in words:
                reason = subscribed.reasons.get(station, "its number was refused")
                by_time.setdefault(reason, []).append(f"{station} {words[beginning.kind]}")
        for reason, stations in by_time.items():
            self._report(f"by time: {reason}", f"asking by time for {_listed(stations)}: {reason}", "")

    def _is_repeated(self, station: str, position: Position, blocks: Sequence[SampleBlock]) -> bool:
        """Whether a packet was received before: some servers begin with the last one instead of the next, and one that
        numbers all stations together begins with what is missing of any.

        Raises:
            _AskAgainError: the packet does not continue what is known, so that its number means another packet than it
                did.
        """
        known = self._numbered.get(station)
        name = blocks[0].stream.seed if blocks else ""
        if known is not None and not ahead(position.version, position.sequence, known.position.sequence):
            if position == known.position or not blocks or blocks[-1].end_ns <= known.ends.get(name, 0):
                return True
            self._distrust(station, f"packet {position.sequence} of {station} is not the one that it was")
        expected_ns = self._expected.get(name)
        if expected_ns is None or blocks[-1].end_ns <= expected_ns:
            return False
        del self._expected[name]
        late_ns = blocks[0].start_ns - expected_ns
        if late_ns > _TOLERANCE_NS + _TOLERANCE * (blocks[-1].end_ns - blocks[0].start_ns):
            if known is not None:
                self._distrust(station, f"{name} goes on {late_ns / NS:.2f} s later than it was left")
            gap = f"{late_ns / NS:.2f} s from {format_ns(expected_ns)} on"
            self._report(f"gap {name}", f"{name}: {gap} are lost: the server was asked, and sent what follows", "")
        return False

    def _distrust(self, station: str, reason: str) -> None:
        self._distrusted.add(station)
        raise _AskAgainError(f"{reason}; does the server number its packets anew? Asking by time", "")

    def _look_for_stalls(self) -> None:
        """Ask anew for what has fallen silent while the connection lives.

        Raises:
            _AskAgainError: something has.
        """
        due = self._liveness.due()
        # Of what was asked for by number and sent nothing, the server may wait for a number that it will not reach.
        self._distrusted.update(self._numbered.keys() & self._silent & set(due))
        if due:
            limit = self._config.stalled_s
            raise _AskAgainError(f"no samples from {_listed(due)} for {limit:g} s: asking again", "see the recorder")

    # What is said.

    def _refused(self, what: str, error: SourceError) -> None:
        self._report(f"refused {what}", error.message, error.hint)

    def _lost(self, error: SourceError) -> None:
        if self._problem is None:
            self._problem_since = time.monotonic()
            self._losses.append(self._problem_since)
        self._problem = error.message
        self._report(error.message, error.message, error.hint)

    def _drop(self, skipped: Skipped, packet: Packet) -> None:
        number = self._count_packet(skipped.kind, packet)
        name = skipped.channel or self._name
        self._report(
            f"{skipped.kind} {skipped.channel}",
            f"{name}: {skipped.reason}; left out ({number} of this kind so far)",
            skipped.hint,
        )

    def _count_packet(self, reason: str, packet: Packet) -> int:
        self._count(f"{reason}_bytes", len(packet.payload))
        self._counts[reason] += 1
        return self._counts[reason]

    def _count(self, what: str, number: int) -> None:
        if number:
            self._counts[what] += number

    def _report_renamed(self, channel: Channel) -> None:
        self._report(f"name {channel.original}", *channel.renaming)

    def _report(self, key: str, message: str, hint: str) -> None:
        if self._throttle.passes(key) is not None:
            self._put(SourceProblem(self._name, message.removeprefix(f"{self._name} "), hint))

    def _put(self, item: _Item) -> None:
        while not self._stop.is_set():
            try:
                self._queue.put(item, TICK_S)
            except Full:
                continue
            return

    def _save(self, *, durable: bool = True) -> None:
        try:
            self._progress.save(durable=durable)
            self._unsaved = ""
        except OSError as error:
            self._unsaved = f"seedlink {self._name}: positions cannot be kept ({in_words(error)})"
            self._report("save", f"how far reception has got cannot be stored ({in_words(error)})", "check state_dir")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")


@dataclass(frozen=True, slots=True)
class _Sign:
    """The newest samples of a channel: when they came (monotonic), how many seconds, and up to when."""

    at: float
    span_s: float
    end_ns: int


class Liveness:
    """The channels of one server. Its thread tells and asks; any thread may ask for ``unheard``.

    Args:
        stalled_s: how long a channel may be silent.
    """

    def __init__(self, stalled_s: float) -> None:
        self._stalled_s = stalled_s
        self._signs: dict[str, _Sign] = {}
        """The newest samples by station (``NET_STA``) and by channel (``NET.STA.LOC.CHA``)."""
        self._backoff = Backoff[str](stalled_s, LONGEST_S)
        self._requests: Sequence[SeedLinkStationConfig] = ()
        self._asked_at = time.monotonic()

    def asked(self, requests: Sequence[SeedLinkStationConfig]) -> None:
        """All has just been asked for; nobody is silent yet."""
        self._requests, self._asked_at = requests, time.monotonic()

    def note(self, station: str, blocks: Sequence[SampleBlock]) -> bool:
        """Samples of one channel came; whether they are new. Those that are sent once more are no sign of life."""
        sign = _Sign(time.monotonic(), (blocks[-1].end_ns - blocks[0].start_ns) / NS, blocks[-1].end_ns)
        new = False
        for name in (station, blocks[0].stream.seed):
            last = self._signs.get(name)
            if last is None and len(self._signs) >= MAX_CHANNELS:
                new = True
            elif last is None or sign.end_ns > last.end_ns:
                self._signs[name] = sign
                self._backoff.lift(name)
                new = True
        return new

    def due(self) -> list[str]:
        """Channels and stations that are silent and are to be asked for now; each less and less often."""
        now = time.monotonic()
        silent = {
            name for name, last in self._signs.items() if now - max(last.at, self._asked_at) > self._limit_s(last)
        }
        silent.update(self.unheard())
        due = sorted(silent.difference(self._backoff.active())) if silent else []
        for name in due:
            self._backoff.add(name)
        return due

    def unheard(self) -> list[str]:
        """What was asked for and never sent anything, once that is too long ago."""
        if time.monotonic() - self._asked_at <= self._stalled_s:
            return []
        heard = self._signs.copy()
        return [request.station for request in self._requests if not any(map(match(request.station), heard))]

    def _limit_s(self, last: _Sign) -> float:
        return max(self._stalled_s, RECORDS_MISSED * last.span_s)


def probe(config: SeedLinkConfig, wait_s: float = DATA_S) -> Iterator[Freshness]:
    """Every server in turn, one sight for it and one for each station; nothing is stored.

    Args:
        config: the section ``source``.
        wait_s: how long samples are waited for, at each server.
    """
    for section in config.servers:
        try:
            yield from _probe(section, config.connect_timeout_s, wait_s)
        except SourceError as error:
            yield Freshness(False, error.message, error.hint or _NO_HINT)


def _probe(server: SeedLinkServerConfig, timeout_s: float, wait_s: float) -> Iterator[Freshness]:
    connection = Connection(server, timeout_s)
    refusals: list[SourceError] = []
    try:
        connection.open()
        yield Freshness(True, f"{server.address}: SeedLink {connection.version}, {connection.software}")
        stations = sorted(held(connection) or {})
        try:
            accepted = subscribe(
                connection, server.stations, Past({}), (), lambda _, error: refusals.append(error)
            ).requests
        finally:
            yield from (Freshness(False, error.message, _hint(error, stations)) for error in refusals)
        newest = _receive(connection, accepted, wait_s)
    finally:
        connection.close()
    for request in accepted:
        yield _assess(request, newest, wait_s)


def _hint(error: SourceError, stations: list[str]) -> str:
    if "'STATION " not in error.message or not stations:
        return error.hint
    return f"{error.hint}; the server has {', '.join(stations[:8])}" + (" ..." if len(stations) > 8 else "")


def _receive(
    connection: Connection, requests: list[SeedLinkStationConfig], wait_s: float
) -> dict[str, tuple[SampleBlock, float]]:
    """For each station that sent samples its last block, and the smallest lag of all of its blocks, seconds."""
    reader = RecordReader()
    found: dict[str, tuple[SampleBlock, float]] = {}
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline and not all(any(map(match(request.station), found)) for request in requests):
        packet = connection.receive(min(1.0, deadline - time.monotonic()))
        if packet is None or packet.form not in ("2", "3"):
            continue
        record = reader.read(packet.payload)
        for block in record.blocks[-1:]:
            lag_s = (time.time_ns() - block.end_ns) / NS
            station = packet.station or record.station
            found[station] = (block, min(lag_s, found[station][1]) if station in found else lag_s)
    return found


def _assess(request: SeedLinkStationConfig, newest: dict[str, tuple[SampleBlock, float]], wait_s: float) -> Freshness:
    name = next(filter(match(request.station), newest), None)
    if name is None:
        hint = "check that the recorder runs, and the selectors; the server accepted both"
        return Freshness(False, f"{request.station} has sent no samples for {wait_s:g} s", hint)
    block, lag_s = newest[name]
    what = f"{name}: {block.stream.seed} at {block.rate_hz:g} Hz"
    return assess(what, block, lag_s)
