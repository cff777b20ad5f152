"""Reception from one SeedLink server so far: what a restart or a new connection goes on from.

For each station there is its last packet, with its number, and for each channel the time up to which samples are known.
The stored state never runs ahead of the pipeline: it has a packet of a station once the pipeline is done with it and
with all that came before it from that station. Until then the packet is in flight, and after a kill it comes again.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from agent.atomic import ANYONE, replace_file
from agent.errors import DataError
from agent.sources.in_flight import InFlight, Origin
from agent.types import SampleBlock, format_ns, parse_ns

_SCHEMA = "talus/seedlink-state/2"
MAX_STATIONS = 4096
"""Of one server. A pattern may fit more of them; those beyond begin with what comes next."""
MAX_CHANNELS = 64
"""Of one station. Damaged headers could name any number of them."""
TOGETHER_CHANGES = 20
"""From one station's packet to another's, always with a higher number: then the server numbers all of them together."""

_HALF_3, _WHOLE_3 = 1 << 23, 1 << 24

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

    sequence: int
    start_ns: int | None
    version: int


@dataclass(frozen=True, slots=True)
class Reached:
    """How far a station has come: its last packet, and by channel (``NET.STA.LOC.CHA``) the time at which the sample
    after the last known one is due."""

    position: Position
    ends: Mapping[str, int] = field(default_factory=dict)

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
                replace_file(self._path, content.encode(), mode=ANYONE, durable=durable)
            except OSError:
                self._changed = True
                raise

    def _reach(self, station: str, packet: _Packet) -> None:
        _put(self._done, station, packet)
        self._changed = True

    def _content(self) -> str:
        stations = {
            name: {
                "sequence": reached.position.sequence,
                "start": None if reached.position.start_ns is None else format_ns(reached.position.start_ns),
                "protocol": reached.position.version,
                "channels": {channel: format_ns(end_ns) for channel, end_ns in sorted(reached.ends.items())},
            }
            for name, reached in sorted(self._done.items())
        }
        oldest = self._flight.oldest()
        cursor = self._last if oldest is None else oldest.before
        return json.dumps(
            {
                "schema": _SCHEMA,
                "server": self._server,
                "numbering": self._numbering.kind,
                "cursor": None if cursor is None else _cursor_to_json(cursor),
                "stations": stations,
            },
            indent=1,
        ) + "\n"  # fmt: skip

    def _load(self, path: Path) -> None:
        try:
            whole = json.loads(path.read_text("utf-8"))
            if whole["schema"] != _SCHEMA or whole["server"] != self._server:
                return
            done = {str(name): _reached(at) for name, at in whole["stations"].items()}
            cursor = None if whole["cursor"] is None else _cursor(whole["cursor"])
            kind = whole["numbering"]
            if kind not in ("unknown", "together", "apart"):
                raise ValueError(kind)
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            OverflowError,
            RecursionError,
            DataError,
        ) as error:
            self.problem = f"{path} cannot be used ({type(error).__name__}); reception begins with what comes now"
            return
        self._done, self._received = done, dict(done)
        self._last, self._numbering = cursor, Numbering(kind)


def _put(stations: dict[str, Reached], name: str, packet: _Packet) -> None:
    known = stations.get(name)
    if known is not None or len(stations) < MAX_STATIONS:
        stations[name] = (known or Reached(packet.position)).then(packet)


def _position(at: Any) -> Position:
    start = at["start"]
    sequence, version = int(at["sequence"]), int(at["protocol"])
    if not (0 <= sequence < 1 << 64 and version in (3, 4)):
        raise ValueError(sequence)
    return Position(sequence, None if start is None else parse_ns(start), version)


def _reached(at: Any) -> Reached:
    return Reached(_position(at), {str(name): parse_ns(end) for name, end in at["channels"].items()})


def _cursor_to_json(cursor: Cursor) -> dict[str, Any]:
    at = cursor.position
    start = None if at.start_ns is None else format_ns(at.start_ns)
    return {"station": cursor.station, "sequence": at.sequence, "start": start, "protocol": at.version}


def _cursor(at: Any) -> Cursor:
    return Cursor(str(at["station"]), _position(at))


def state_file(folder: Path, server: str) -> Path:
    """Where the positions of a server are kept."""
    return folder / f"seedlink-{re.sub('[^A-Za-z0-9.-]', '_', server)}.json"


def match(pattern: str) -> Callable[[str], bool]:
    """Whether a name fits a pattern with ``*`` and ``?``."""
    whole = re.compile("".join({"*": ".*", "?": "."}.get(c, re.escape(c)) for c in pattern))
    return lambda name: whole.fullmatch(name) is not None
