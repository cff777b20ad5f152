"""What is asked of a SeedLink server: stations, selectors in its version's notation, and where to go on."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

from agent.errors import SourceError
from agent.sources.seedlink_state import Position, match
from agent.sources.seedlink_wire import Connection, RefusedError
from agent.types import NS

REREAD_S = 10
"""Where only the time tells what was taken, so much is asked for again: channels of a station do not end together."""

_HALF_3, _WHOLE_3, _WHOLE_4 = 1 << 23, 1 << 24, 1 << 64
_MAX_NAMED = 8


@dataclass(frozen=True, slots=True)
class Wish:
    """A station as ``NET_STA``, possibly with wildcards, and selectors in either version's notation."""

    station: str
    selectors: tuple[str, ...] = ()

    @property
    def is_pattern(self) -> bool:
        return "*" in self.station or "?" in self.station


@dataclass(frozen=True, slots=True)
class Holding:
    """First and last sequence number that a server holds of a station."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Resume:
    """From where a station's data were asked for; ``by_time`` if its sequence numbers no longer mean anything."""

    position: Position
    by_time: bool


def ahead(version: int, sequence: int, of: int) -> bool:
    """Whether ``sequence`` comes after ``of``; those of version 3 begin anew after 24 bits."""
    if version >= 4:
        return sequence > of
    return 0 < (sequence - of) % _WHOLE_3 < _HALF_3


def subscribe(
    connection: Connection,
    wishes: Sequence[Wish],
    positions: Mapping[str, Position],
    distrusted: Callable[[str], bool],
    refused: Callable[[str, SourceError], None],
) -> tuple[list[Wish], dict[str, Resume]]:
    """Ask for everything, each station from where it was left.

    Args:
        connection: after its greeting; data flow when this returns.
        wishes: what is wanted.
        positions: the last packet received of each station that is known.
        distrusted: whether a station's sequence numbers are known to be out of date.
        refused: told of each station or selector that the server does not accept.

    Returns:
        The wishes that were accepted, and the stations that go on from a position.

    Raises:
        SourceError: the connection is lost, or nothing at all was accepted.
    """
    wishes = _expanded(wishes, positions)
    known = [wish.station for wish in wishes if wish.station in positions]
    holdings = held(connection, known) if known else {}
    accepted: list[Wish] = []
    resumed: dict[str, Resume] = {}
    reason: SourceError | None = None
    for wish in wishes:
        position = positions.get(wish.station)
        resume = None
        if position is not None:
            holding = holdings.get(wish.station)
            lost = holding is not None and ahead(connection.version, position.sequence, holding.last)
            foreign = position.version != connection.version
            resume = Resume(position, foreign or lost or distrusted(wish.station))
        try:
            resume = _ask(connection, wish, resume, holdings.get(wish.station), refused)
        except RefusedError as error:
            reason = error
            refused(wish.station, error)
            continue
        accepted.append(wish)
        if resume is not None:
            resumed[wish.station] = resume
    if reason is not None and not accepted:
        raise reason
    connection.start()
    return accepted, resumed


def _expanded(wishes: Sequence[Wish], positions: Mapping[str, Position]) -> list[Wish]:
    """Stations known by name come first and each with its own position; a pattern stands for the rest."""
    named = [wish for wish in wishes if not wish.is_pattern]
    patterns = [wish for wish in wishes if wish.is_pattern]
    taken = {wish.station for wish in named}
    for pattern in patterns:
        fits = match(pattern.station)
        for station in sorted(positions):
            if station not in taken and fits(station):
                named.append(Wish(station, pattern.selectors))
                taken.add(station)
    return named + patterns


def _ask(
    connection: Connection,
    wish: Wish,
    resume: Resume | None,
    holding: Holding | None,
    refused: Callable[[str, SourceError], None],
) -> Resume | None:
    """One station; raises RefusedError if it is not to be had at all. Returns from where on it was accepted."""
    network, _, code = wish.station.partition("_")
    connection.command(f"STATION {wish.station}" if connection.version >= 4 else f"STATION {code} {network}")
    selectors = [in_notation(selector, connection.version) for selector in wish.selectors]
    unsaid = [given for given, said in zip(wish.selectors, selectors, strict=True) if said is None]
    for given in unsaid:
        refused(f"{wish.station} {given}", SourceError(
            f"selector {given!r} cannot be said in SeedLink {connection.version}", "write it as LLCCC, such as 00HH?"
        ))  # fmt: skip
    said = [selector for selector in selectors if selector is not None]
    refusals = connection.commands([f"SELECT {selector}" for selector in said])
    if wish.selectors and len(refusals) + len(unsaid) == len(wish.selectors):
        # Without any selector the server would send all channels, which was not asked for.
        raise refusals[0] if refusals else RefusedError(f"{wish.station}: no selector can be used", "see above")
    for error in refusals:
        refused(f"{wish.station} {error.message}", error)
    return _begin(connection, wish, resume, holding, refused)


def _begin(
    connection: Connection,
    wish: Wish,
    resume: Resume | None,
    holding: Holding | None,
    refused: Callable[[str, SourceError], None],
) -> Resume | None:
    """Where to begin; a server that refuses a number is asked by time, and then for what comes next."""
    attempts: list[Resume] = []
    if resume is not None:
        attempts = [resume] if resume.by_time else [resume, Resume(resume.position, True)]
    for attempt in attempts:
        try:
            connection.command(data_command(connection, attempt, holding))
        except RefusedError as error:
            refused(f"{wish.station} {error.message}", error)
        else:
            return attempt
    connection.command("DATA")
    return None


def data_command(connection: Connection, resume: Resume | None, holding: Holding | None) -> str:
    """DATA, or TIME, with where to begin: what comes next, after a sequence number, or from a time on."""
    if resume is None:
        return "DATA"
    position = resume.position
    begin = None if position.start_ns is None else position.start_ns // NS - REREAD_S
    if connection.version >= 4:
        if not resume.by_time:
            return f"DATA {position.sequence + 1}"
        timed = begin is not None and "TIME" in connection.capabilities
        return f"DATA ALL {_iso(begin)}" if timed and begin is not None else "DATA ALL"
    if not resume.by_time:
        following = (position.sequence + 1) % _WHOLE_3
        if holding is not None and ahead(3, holding.first, following):
            following = holding.first
        return f"DATA {following:06X}"
    if holding is not None:
        # Servers need not bear TIME for some stations and DATA for others.
        return f"DATA {holding.first:06X}" + (f" {_commas(begin)}" if begin is not None else "")
    return f"TIME {_commas(begin)}" if begin is not None else "DATA"


def _iso(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _commas(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y,%m,%d,%H,%M,%S")


def in_notation(selector: str, version: int) -> str | None:
    """The selector in a version's notation: ``00HH?`` in 3, ``00_H_H_?`` in 4; None if that version cannot say it."""
    sign, body = ("!", selector[1:]) if selector.startswith("!") else ("", selector)
    name, dot, kind = body.partition(".")
    parts = name.split("_")
    if version >= 4:
        if len(parts) == 4:
            return selector
        location, channel = name[:-3], name[-3:]
        location = {"": "*", "--": ""}.get(location, location)
        # Records of samples are all that is used of what comes, so the older notation's type may be left out.
        return f"{sign}{location}_{channel[0]}_{channel[1]}_{channel[2]}"
    if len(parts) != 4:
        # Version 3 knows '?' alone, and one of it is what '*' means for a code of one character.
        return f"{sign}{name.replace('*', '?')}{dot}{kind}"
    location, band, source, component = parts
    if any(len(part) != 1 for part in (band, source, component)) or len(location) not in (0, 1, 2):
        return None
    if len(location) == 1 and location != "*":
        return None
    prefix = {"": "--", "*": "", "**": "", "??": ""}.get(location, location)
    channel = (band + source + component).replace("*", "?")
    return f"{sign}{prefix}{channel}{dot}{kind}" if len(kind) <= 1 else f"{sign}{prefix}{channel}"


def held(connection: Connection, stations: Sequence[str] = ()) -> dict[str, Holding]:
    """What the server holds of each station: of those named at least, of all if none is; empty where it does not tell.

    Raises:
        SourceError: the connection is lost, or there was no answer.
    """
    found: dict[str, Holding] = {}
    few = connection.version >= 4 and 0 < len(stations) <= _MAX_NAMED
    try:
        for item in [f"STATIONS {name}" for name in stations] if few else ["STATIONS"]:
            answer = connection.info(item)
            found |= _holdings_4(answer) if connection.version >= 4 else _holdings_3(answer)
    except RefusedError:
        return found
    return found


def _holdings_4(answer: bytes) -> dict[str, Holding]:
    try:
        return {
            str(station["id"]): _holding(int(station["start_seq"]), int(station["end_seq"]), _WHOLE_4)
            for station in json.loads(answer).get("station", ())
            if station.get("end_seq") is not None and station.get("start_seq") is not None
        }
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return {}


def _holding(first: int, last: int, whole: int) -> Holding:
    if not (0 <= first < whole and 0 <= last < whole):
        raise ValueError(f"{first} to {last} are no sequence numbers")
    return Holding(first, last)


_MARKUP = re.compile(rb"<!(?:DOCTYPE|ENTITY)", re.IGNORECASE)


def _holdings_3(answer: bytes) -> dict[str, Holding]:
    """Out of XML, which is not parsed if it defines anything: only an attack would."""
    if _MARKUP.search(answer):
        return {}
    try:
        root = ET.fromstring(answer.rstrip(b"\0 "))  # noqa: S314
        return {
            f"{station.attrib['network']}_{station.attrib['name']}": _holding(
                int(station.attrib["begin_seq"], 16), int(station.attrib["end_seq"], 16), _WHOLE_3
            )
            for station in root.iter("station")
            if int(station.attrib["end_seq"], 16)
        }
    except (ET.ParseError, ValueError, LookupError):  # no such attribute, or an encoding that does not exist
        return {}
