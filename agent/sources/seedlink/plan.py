"""From where each station is asked for on a new connection, decided from what is known; nothing here talks to a server.

By number, which is exact, where the number of the packet received last means the same to the server as it did, and does
not disturb other stations. By time in all other cases:

- A server whose buffer was lost numbers its packets anew. Asked for a number that it does not have, ringserver begins
  with its next packet and leaves out all that it holds; a number that it has again stands for another packet.
- A server that numbers the packets of all stations together has one place to read from for the whole connection: asked
  for several numbers, ringserver begins at the newest of them. There, all stations are asked for from the same number,
  up to which everything was received (the cursor); without one, by time, of which it takes the earliest.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Literal

from agent.sources.seedlink.resume import Cursor, Past, Position, Reached, ahead
from agent.types import NS

MARGIN_S = 1
"""Asked for by time, a station is asked for from so much before the earliest end of its channels."""
UNKNOWN_CHANNELS_S = 10
"""The same where only the start of its last packet is known: channels of a station do not end together."""
RECENT_NS = 600 * NS
"""A channel that is further behind the newest of its station is not waited for: it has fallen silent."""
_FUTURE_NS = 86_400 * NS
"""A channel that is further ahead of this machine's clock has a clock that is wrong."""
_WHOLE_3 = 1 << 24


@dataclass(frozen=True, slots=True)
class Holding:
    """First and last sequence number that a server holds of a station. Some servers give the number that comes next
    instead of the last."""

    first: int
    last: int

    def has(self, version: int, sequence: int) -> bool:
        """Whether the server may have a packet of this number."""
        return not ahead(version, sequence, self.last) and not ahead(version, self.first, sequence)


@dataclass(frozen=True, slots=True)
class Beginning:
    """From where one station is asked for: the packet after number ``sequence``, or data from ``time_s`` (UTC, seconds
    since 1970) on, or ``all`` that the server holds, or what comes ``next``."""

    kind: Literal["number", "time", "all", "next"]
    sequence: int = 0
    time_s: int = 0

    def command(self, version: int, holding: Holding | None) -> str:
        """The DATA or TIME command.

        Args:
            version: of the protocol, 3 or 4.
            holding: what the server holds of the station, if it told.
        """
        if version >= 4:
            return {
                "number": f"DATA {self.sequence + 1}",
                "time": f"DATA ALL {_iso(self.time_s)}",
                "all": "DATA ALL",
                "next": "DATA",
            }[self.kind]
        if self.kind == "number":
            return f"DATA {(self.sequence + 1) % _WHOLE_3:06X}"
        if self.kind == "time" and holding is None:
            return f"TIME {_commas(self.time_s)}"
        if holding is None or self.kind == "next":
            return "DATA"
        # Servers need not bear TIME for some stations and DATA for others.
        return f"DATA {holding.first:06X}" + (f" {_commas(self.time_s)}" if self.kind == "time" else "")


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


def _iso(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _commas(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y,%m,%d,%H,%M,%S")
