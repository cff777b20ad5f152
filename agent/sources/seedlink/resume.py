"""Reception from one SeedLink server so far, and from where a restart or a new connection goes on; no connection here.

For each station there is its last packet, with its number, and for each channel the time up to which samples are known.
The stored state never runs ahead of the pipeline: it has a packet of a station once the pipeline is done with it and
with all that came before it from that station. Until then the packet is in flight, and after a kill it comes again.

A station is asked for by number, which is exact, where the number of the packet received last means the same to the
server as it did, and does not disturb other stations. By time in all other cases:

- A server whose buffer was lost numbers its packets anew. Asked for a number that it does not have, ringserver begins
  with its next packet and leaves out all that it holds; a number that it has again stands for another packet.
- A server that numbers the packets of all stations together has one place to read from for the whole connection: asked
  for several numbers, ringserver begins at the newest of them. There, all stations are asked for from the same number,
  up to which everything was received (the cursor); without one, by time, of which it takes the earliest.
"""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, TypeAdapter

from agent.atomic import ANYONE, replace_file
from agent.sources.in_flight import InFlight, Origin
from agent.sources.seedlink.protocol import Beginning, Holding, ahead
from agent.types import NS, SampleBlock

_SCHEMA: Literal["talus/seedlink-state/3"] = "talus/seedlink-state/3"
MAX_STATIONS = 4096
"""Most stations of one server. A pattern may fit more of them; those beyond begin with what comes next."""
MAX_CHANNELS = 64
"""Most channels of one station. Damaged headers could name any number of them."""
TOGETHER_CHANGES = 20
"""From one station's packet to another's, always with a higher number: then the server numbers all of them together."""
MARGIN_S = 1
"""Asked for by time, a station is asked for from so much before the earliest end of its channels."""
UNKNOWN_CHANNELS_S = 10
"""Margin where only the start of its last packet is known: channels of a station do not end together."""
RECENT_NS = 600 * NS
"""A channel that is further behind the newest of its station is not waited for: it has fallen silent."""
_FUTURE_NS = 86_400 * NS
"""A channel that is further ahead of this machine's clock has a clock that is wrong."""
TimeNs: TypeAlias = Annotated[int, Field(ge=-(1 << 61), lt=1 << 62)]
"""UTC nanoseconds, years 1897 to 2116: what a damaged file says must still be a date."""
NumberingKind: TypeAlias = Literal["unknown", "together", "apart"]


@dataclass(frozen=True, slots=True)
class Position:
    """A packet: its sequence number, the time of its first sample (None: unknown), and the protocol version that
    numbered it (3 or 4; their numbers have nothing to do with each other)."""

    sequence: Annotated[int, Field(ge=0, lt=1 << 64)]
    start_ns: TimeNs | None
    version: Annotated[int, Field(ge=3, le=4)]


@dataclass(frozen=True, slots=True)
class Reached:
    """How far a station has come: its last packet, and by channel (``NET.STA.LOC.CHA``) the time at which the sample
    after the last known one is due."""

    position: Position
    ends: Mapping[str, TimeNs] = field(default_factory=dict)

    def then(self, packet: _Packet) -> Reached:
        """The position one packet later."""
        name = packet.channel
        if not name or (name not in self.ends and len(self.ends) >= MAX_CHANNELS):
            return Reached(packet.position, self.ends)
        return Reached(packet.position, {**self.ends, name: packet.end_ns})


@dataclass(frozen=True, slots=True)
class Cursor:
    """A packet up to which everything of a connection was received, of whatever station. It has a meaning only where
    the server numbers the packets of all stations together."""

    station: str
    position: Position


@dataclass(frozen=True, slots=True)
class _State:
    """What is kept on disk; times are UTC nanoseconds."""

    schema: Literal["talus/seedlink-state/3"]
    server: str
    numbering: NumberingKind
    cursor: Cursor | None
    stations: Mapping[str, Reached]


_FILE = TypeAdapter(_State)


@dataclass(frozen=True, slots=True)
class Past:
    """What a new connection goes on from."""

    stations: Mapping[str, Reached]
    numbering: NumberingKind = "unknown"
    cursor: Cursor | None = None


@dataclass(frozen=True, slots=True)
class _Packet:
    """``channel`` is empty for a packet without samples; ``before`` is the connection's packet before this one."""

    position: Position
    channel: str
    end_ns: int
    before: Cursor | None


class Numbering:
    """Observes whether a server numbers the packets of all stations together, as ringserver does, or each station's
    apart, as SeisComP does."""

    def __init__(self, kind: NumberingKind = "unknown") -> None:
        self.kind = kind
        self._last: tuple[str, int] | None = None
        self._changes = 0

    def connected(self) -> None:
        """Begin anew with a new connection; what was found before stands until something else is found."""
        self._last, self._changes = None, 0

    def see(self, station: str, position: Position) -> None:
        """Note the next packet of the connection."""
        last, self._last = self._last, (station, position.sequence)
        if last is None or last[0] == station:
            return
        if not ahead(position.version, position.sequence, last[1]):
            self.kind, self._changes = "apart", 0
            return
        self._changes += 1
        if self._changes >= TOGETHER_CHANGES:
            self.kind = "together"


class Progress:
    """One server's positions, in memory and on disk. The server's thread sends, the pipeline's thread acknowledges."""

    def __init__(self, path: Path | None, server: str, owner: object = None) -> None:
        """Read what an earlier run left; ``problem`` then says if that could not be used.

        Args:
            path: the file, made at the first ``save``; None keeps the positions in memory only.
            server: ``host:port``; positions of another server are not used.
            owner: goes into the origins of the blocks.
        """
        self.problem: str | None = None
        self._path, self._server = path, server
        self._lock, self._file_lock = threading.Lock(), threading.Lock()
        self._flight: InFlight[str, _Packet] = InFlight(owner, self._reach)
        self._received: dict[str, Reached] = {}
        """The last packet of each station, which may be in flight; in memory only."""
        self._done: dict[str, Reached] = {}
        """On disk: up to here all is done with."""
        self._numbering = Numbering()
        self._last: Cursor | None = None
        self._changed = False
        if path is not None and path.exists():
            self._load(path)

    @property
    def in_flight(self) -> int:
        """Packets on their way to the pipeline, or not done with there."""
        return len(self._flight)

    def connected(self, cursor: Cursor | None) -> None:
        """Note a new connection, whose packets are all those after ``cursor``; None: it is not known after which."""
        with self._lock:
            self._last = cursor
            self._numbering.connected()

    def send(self, station: str, position: Position, block: SampleBlock | None) -> Origin[str]:
        """Note a packet that is on its way to the pipeline.

        Args:
            station: as ``NET_STA``.
            position: that of the packet.
            block: its last block, which gets the origin that is returned; None if it has no samples.
        """
        with self._lock:
            self._numbering.see(station, position)
            # Thousands of packets of a few names are in flight.
            station = sys.intern(station)
            channel, end_ns = ("", 0) if block is None else (sys.intern(block.stream.seed), block.end_ns)
            packet = _Packet(position, channel, end_ns, self._last)
            self._last = Cursor(station, position)
            if station not in self._done and position.start_ns is not None and len(self._done) < MAX_STATIONS:
                # Heard for the first time: even if nothing is ever done with, a restart goes on from here.
                before = Position(max(0, position.sequence - 1), position.start_ns, position.version)
                self._done[station] = Reached(before, {channel: position.start_ns} if channel else {})
                self._changed = True
            _put(self._received, station, packet)
            return self._flight.send(station, packet, None if block is None else block.stream)

    def acknowledge(self, block: SampleBlock) -> None:
        """Note that the pipeline is done with a block."""
        with self._lock:
            self._flight.acknowledge(block)

    def received(self) -> dict[str, Reached]:
        """The last packet received of each station."""
        with self._lock:
            return dict(self._received)

    def past(self) -> Past:
        """What a new connection of this run goes on from: the last packets received, done with or not."""
        with self._lock:
            return Past(dict(self._received), self._numbering.kind, self._last)

    def save(self, *, durable: bool = True) -> None:
        """Write the positions if they have changed, so that the file is always whole.

        Args:
            durable: wait until the disk has it; without, a loss of power may bring the previous file back.

        Raises:
            OSError: the disk refuses; the next call tries again.
        """
        with self._file_lock:
            with self._lock:
                if not self._changed or self._path is None:
                    return
                self._changed = False
                content = self._content()
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                replace_file(self._path, content, mode=ANYONE, durable=durable)
            except OSError:
                self._changed = True
                raise

    def _reach(self, station: str, packet: _Packet) -> None:
        _put(self._done, station, packet)
        self._changed = True

    def _content(self) -> bytes:
        oldest = self._flight.oldest()
        cursor = self._last if oldest is None else oldest.before
        state = _State(_SCHEMA, self._server, self._numbering.kind, cursor, self._done)
        return _FILE.dump_json(state, indent=1) + b"\n"

    def _load(self, path: Path) -> None:
        try:
            state = _FILE.validate_json(path.read_bytes())
        except (OSError, ValueError) as error:
            self.problem = f"{path} cannot be used ({type(error).__name__}); reception begins with what comes now"
            return
        if state.server == self._server:
            self._done, self._received = dict(state.stations), dict(state.stations)
            self._last, self._numbering = state.cursor, Numbering(state.numbering)


def _put(stations: dict[str, Reached], name: str, packet: _Packet) -> None:
    known = stations.get(name)
    if known is not None or len(stations) < MAX_STATIONS:
        stations[name] = (known or Reached(packet.position)).then(packet)


def state_file(folder: Path, server: str) -> Path:
    """Where the positions of a server are kept."""
    return folder / f"seedlink-{re.sub('[^A-Za-z0-9.-]', '_', server)}.json"


@dataclass(frozen=True, slots=True)
class Plan:
    """For each known station what to try, in this order, until the server accepts one."""

    attempts: Mapping[str, Sequence[Beginning]] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    """Why a station is asked for by time."""
    cursor: Cursor | None = None
    """What the connection goes on after, if every station's first attempt is accepted."""


def plan(
    version: int,
    past: Past,
    holdings: Mapping[str, Holding] | None,
    distrusted: Collection[str],
    now_ns: int,
) -> Plan:
    """Decide from where to ask for each station of ``past``.

    Args:
        version: of the protocol on this connection, 3 or 4.
        past: the stations to ask for, and what was received of them.
        holdings: what the server holds of each station; None if it does not tell.
        distrusted: stations whose numbers were found to mean other packets than they did.
        now_ns: this machine's clock.
    """
    doubts = {
        name: "its packets were numbered anew"
        if name in distrusted
        else _doubt(version, reached.position, holdings, name)
        for name, reached in past.stations.items()
    }
    numbers = {name: reached.position.sequence for name, reached in past.stations.items()}
    times = {name: begin_s(reached, now_ns) for name, reached in past.stations.items()}
    cursor: Cursor | None = None
    if len(numbers) == 1:
        ((name, reached),) = past.stations.items()
        cursor = None if doubts[name] else Cursor(name, reached.position)
    elif past.numbering != "apart":
        # The server may read from one place for all stations.
        doubt = _doubt_of_cursor(version, past, holdings, distrusted)
        if not doubt:
            cursor = past.cursor
            doubts = dict.fromkeys(doubts, "")
            numbers = dict.fromkeys(numbers, cursor.position.sequence if cursor else 0)
        doubts = {name: own or doubt for name, own in doubts.items()}
        _bring_up(times, holdings or {})
    attempts = {
        name: _attempts(numbers[name], times[name], doubts[name], reached.position.version == version)
        for name, reached in past.stations.items()
    }
    return Plan(attempts, {name: doubt for name, doubt in doubts.items() if doubt}, cursor)


def _doubt_of_cursor(
    version: int, past: Past, holdings: Mapping[str, Holding] | None, distrusted: Collection[str]
) -> str:
    """Why not all stations can be asked for from the cursor; empty if they can."""
    if past.numbering != "together" or past.cursor is None:
        return "the server may begin all stations at the newest of their numbers"
    if any(name in distrusted for name in past.stations):
        return "the server numbers its packets anew"
    return _doubt(version, past.cursor.position, holdings, past.cursor.station)


def _bring_up(times: dict[str, int | None], holdings: Mapping[str, Holding]) -> None:
    """Ask for stations of which the server holds nothing from when the others are asked for: the earliest of all times
    decides, and a station that has been silent for days would bring days of all others."""
    wanted = [time_s for name, time_s in times.items() if time_s is not None and name in holdings]
    for name, time_s in times.items():
        if time_s is not None and wanted and name not in holdings:
            times[name] = max(time_s, min(wanted))


def _attempts(sequence: int, time_s: int | None, doubt: str, same_version: bool) -> list[Beginning]:
    """A server that refuses one is asked in another way, and at last for what comes next."""
    by_number = [Beginning("number", sequence=sequence)] if same_version else []
    by_time = [] if time_s is None else [Beginning("time", time_s=time_s)]
    if doubt:
        return [*by_time, Beginning("all"), Beginning("next")]
    return [*by_number, *by_time, Beginning("next")]


def _doubt(version: int, position: Position, holdings: Mapping[str, Holding] | None, name: str) -> str:
    """Why a number says nothing to the server; empty if nothing speaks against it."""
    if position.version != version:
        return f"its number is one of SeedLink {position.version}"
    if holdings is None:
        return "the server does not tell which numbers it holds"
    holding = holdings.get(name)
    if holding is None:
        return "the server holds nothing of it"
    if not holding.has(version, position.sequence):
        return f"the server holds its packets {holding.first} to {holding.last}, not {position.sequence}"
    return ""


def begin_s(reached: Reached, now_ns: int) -> int | None:
    """From when on a station's data are missing, UTC in seconds since 1970, with a margin; None if that is not known.

    A channel that ended long before the others has fallen silent and does not count, nor does one from the future.
    """
    ends = recent(reached, now_ns).values()
    if ends:
        return min(ends) // NS - MARGIN_S
    start_ns = reached.position.start_ns
    return None if start_ns is None else start_ns // NS - UNKNOWN_CHANNELS_S


def recent(reached: Reached, now_ns: int) -> dict[str, int]:
    """The ends of those channels of a station that were alive when its last packet came."""
    sane = [end_ns for end_ns in reached.ends.values() if end_ns < now_ns + _FUTURE_NS]
    newest = max(sane or reached.ends.values(), default=0)
    return {name: end_ns for name, end_ns in reached.ends.items() if newest - RECENT_NS <= end_ns <= newest}
