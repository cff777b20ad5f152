"""How far each station of a server has been taken: what is asked for after a restart or a lost connection.

The stored state never runs ahead of the pipeline. A packet counts once the pipeline is done with it and with all that
came before it; until then it is in flight, and after a kill it is asked for again.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agent.errors import DataError
from agent.types import SampleBlock, format_ns, parse_ns

_SCHEMA = "talus/seedlink-state/1"
MAX_FLIGHT = 32_768
"""Packets in flight that are remembered: more than the queues on the way and the hold-back for restarts keep. Of those
beyond it, which only a disk that has long refused can give rise to, the oldest are forgotten; they are asked for again
after a restart."""
MAX_STATIONS = 4096
"""Of one server. A pattern may fit more of them; those beyond begin with what comes next."""


@dataclass(frozen=True, slots=True)
class Position:
    """The last packet taken of a station: its sequence number, the time of its first sample (None: unknown), and the
    protocol version that numbered it (3 or 4; their numbers have nothing to do with each other)."""

    sequence: int
    start_ns: int | None
    version: int


class Progress:
    """One server's positions, in memory and on disk. The server's thread sends, the pipeline's thread takes."""

    def __init__(self, path: Path | None, server: str) -> None:
        """Read what an earlier run left; ``problem`` then says if that could not be used.

        Args:
            path: the file, made at the first ``save``; None keeps the positions in memory only.
            server: ``host:port``; positions of another server are not used.
        """
        self.problem: str | None = None
        self._path, self._server = path, server
        self._lock, self._file_lock = threading.Lock(), threading.Lock()
        self._flight: deque[tuple[str, Position, SampleBlock | None]] = deque()
        self._blocks: set[int] = set()
        """Identities of the blocks in flight, which live as long as they are."""
        self._taken: dict[str, Position] = {}
        self._changed = False
        if path is not None and path.exists():
            self._load(path)

    def send(self, station: str, position: Position, block: SampleBlock | None) -> None:
        """A packet is on its way to the pipeline; ``block`` is its last block, None if it gave none."""
        with self._lock:
            self._flight.append((station, position, block))
            if block is not None:
                self._blocks.add(id(block))
            self._land()
            while len(self._flight) > MAX_FLIGHT:
                self._blocks.discard(id(self._flight.popleft()[2]))

    def taken(self, block: SampleBlock) -> bool:
        """The pipeline is done with ``block`` and all before it; False if it is not one of this server's."""
        with self._lock:
            if id(block) not in self._blocks:
                return False
            while self._flight:
                station, position, mine = self._flight.popleft()
                self._blocks.discard(id(mine))
                self._advance(station, position)
                if mine is block:
                    break
            self._land()
        return True

    def positions(self) -> dict[str, Position]:
        """The last packet received of each station, taken or in flight: where a new connection of this run goes on."""
        with self._lock:
            found = dict(self._taken)
            found.update((station, position) for station, position, _ in self._flight)
        return found

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
                self._write(self._path, content, durable)
            except OSError:
                self._changed = True
                raise

    @staticmethod
    def _write(path: Path, content: str, durable: bool) -> None:
        beside = path.with_suffix(".new")
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("w", encoding="utf-8") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        beside.replace(path)

    def _advance(self, station: str, position: Position) -> None:
        if station not in self._taken and len(self._taken) >= MAX_STATIONS:
            return
        self._taken[station] = position
        self._changed = True

    def _land(self) -> None:
        """Packets without samples are done with as soon as those before them are."""
        while self._flight and self._flight[0][2] is None:
            station, position, _ = self._flight.popleft()
            self._advance(station, position)

    def _content(self) -> str:
        stations = {
            name: {
                "sequence": at.sequence,
                "start": None if at.start_ns is None else format_ns(at.start_ns),
                "protocol": at.version,
            }
            for name, at in sorted(self._taken.items())
        }
        return json.dumps({"schema": _SCHEMA, "server": self._server, "stations": stations}, indent=1) + "\n"

    def _load(self, path: Path) -> None:
        try:
            whole = json.loads(path.read_text("utf-8"))
            if whole["schema"] != _SCHEMA or whole["server"] != self._server:
                return
            for name, at in whole["stations"].items():
                start = at["start"]
                start_ns = None if start is None else parse_ns(start)
                sequence, version = int(at["sequence"]), int(at["protocol"])
                if not (0 <= sequence < 1 << 64 and version in (3, 4)):
                    raise ValueError(sequence)
                self._taken[str(name)] = Position(sequence, start_ns, version)
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
            self._taken.clear()
            self.problem = f"{path} cannot be used ({type(error).__name__}); reception begins with what comes now"


def state_file(folder: Path, server: str) -> Path:
    """Where the positions of a server are kept."""
    return folder / f"seedlink-{re.sub('[^A-Za-z0-9.-]', '_', server)}.json"


def match(pattern: str) -> Callable[[str], bool]:
    """Whether a name fits a pattern with ``*`` and ``?``."""
    whole = re.compile("".join({"*": ".*", "?": "."}.get(c, re.escape(c)) for c in pattern))
    return lambda name: whole.fullmatch(name) is not None
