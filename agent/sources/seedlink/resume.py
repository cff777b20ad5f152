"""Reception from one SeedLink server so far: what a restart or a new connection goes on from.

For each station there is its last packet, with its number, and for each channel the time up to which samples are known.
The stored state never runs ahead of the pipeline: it has a packet of a station once the pipeline is done with it and
with all that came before it from that station. Until then the packet is in flight, and after a kill it comes again.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, TypeAdapter

from agent.atomic import ANYONE, replace_file
from agent.sources.in_flight import InFlight, Origin
from agent.types import SampleBlock

_SCHEMA: Literal["talus/seedlink-state/3"] = "talus/seedlink-state/3"
MAX_STATIONS = 4096
"""Of one server. A pattern may fit more of them; those beyond begin with what comes next."""
MAX_CHANNELS = 64
"""Of one station. Damaged headers could name any number of them."""
TOGETHER_CHANGES = 20
"""From one station's packet to another's, always with a higher number: then the server numbers all of them together."""

_HALF_3, _WHOLE_3 = 1 << 23, 1 << 24

TimeNs: TypeAlias = Annotated[int, Field(ge=-(1 << 61), lt=1 << 62)]
"""UTC nanoseconds, years 1897 to 2116: what a damaged file says must still be a date."""
NumberingKind: TypeAlias = Literal["unknown", "together", "apart"]


def ahead(version: int, sequence: int, of: int) -> bool:
    """Whether ``sequence`` comes after ``of``; those of version 3 begin anew after 24 bits."""
    if version >= 4:
        return sequence > of
    return 0 < (sequence - of) % _WHOLE_3 < _HALF_3


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
        """The same one packet later."""
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
        """In memory: the last packet of each station, which may be in flight."""
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
            channel, end_ns = ("", 0) if block is None else (block.stream.seed, block.end_ns)
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


def match(pattern: str) -> Callable[[str], bool]:
    """Whether a name fits a pattern with ``*`` and ``?``."""
    whole = re.compile("".join({"*": ".*", "?": "."}.get(c, re.escape(c)) for c in pattern))
    return lambda name: whole.fullmatch(name) is not None
