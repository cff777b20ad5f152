"""What is asked of a SeedLink server: stations, selectors in its version's notation, and where each goes on."""

from __future__ import annotations

import json
import re
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from agent.errors import SourceError
from agent.sources.seedlink.plan import Beginning, Holding, Plan, plan
from agent.sources.seedlink.resume import Cursor, Past, match
from agent.sources.seedlink.wire import Connection, RefusedError

if TYPE_CHECKING:
    from agent.config.seedlink import SeedLinkStationConfig

_WHOLE_3, _WHOLE_4 = 1 << 24, 1 << 64
_MAX_NAMED = 8


@dataclass(frozen=True, slots=True)
class Subscribed:
    """What a server accepted: the stations asked for, and from where on it sends those that are known.

    ``reasons`` says of each station why it is asked for by time. ``cursor`` is the packet after which the connection
    goes on, None if that is not one packet.
    """

    requests: list[SeedLinkStationConfig]
    beginnings: dict[str, Beginning]
    reasons: Mapping[str, str]
    cursor: Cursor | None


def subscribe(
    connection: Connection,
    requests: Sequence[SeedLinkStationConfig],
    past: Past,
    distrusted: Collection[str],
    refused: Callable[[str, SourceError], None],
) -> Subscribed:
    """Ask for everything, each station from where it was left.

    Args:
        connection: after its greeting; data flow when this returns.
        requests: the stations to ask for.
        past: what was received earlier.
        distrusted: stations whose sequence numbers were found to be out of date.
        refused: called for each station or selector that the server does not accept.

    Raises:
        SourceError: the connection is lost, or nothing at all was accepted.
    """
    requests = _expanded(requests, past)
    known = {
        request.station: past.stations[request.station] for request in requests if request.station in past.stations
    }
    holdings = held(connection, list(known)) if known else None
    planned = plan(connection.version, replace(past, stations=known), holdings, distrusted, time.time_ns())
    accepted: list[SeedLinkStationConfig] = []
    beginnings: dict[str, Beginning] = {}
    reason: SourceError | None = None
    # A server with one place to read from takes a number beside a time for the place, if its packet is of that time.
    one_place = past.numbering == "together" or _ringserver(connection.software) is not None
    for request in requests:
        holding = None if one_place else (holdings or {}).get(request.station)
        try:
            beginning = _ask(connection, request, planned, holding, refused)
        except RefusedError as error:
            reason = error
            refused(request.station, error)
            continue
        accepted.append(request)
        if request.station in known:
            beginnings[request.station] = beginning
    if reason is not None and not accepted:
        raise reason
    connection.start()
    exact = all(beginning.kind == "number" for beginning in beginnings.values())
    return Subscribed(accepted, beginnings, planned.reasons, planned.cursor if exact else None)


def _expanded(requests: Sequence[SeedLinkStationConfig], past: Past) -> list[SeedLinkStationConfig]:
    """Stations known by name come first and each with its own position; a pattern stands for the rest."""
    named = [request for request in requests if not request.is_pattern]
    patterns = [request for request in requests if request.is_pattern]
    asked = {request.station for request in named}
    for pattern in patterns:
        fits = match(pattern.station)
        for station in sorted(past.stations):
            if station not in asked and fits(station):
                named.append(pattern.model_copy(update={"station": station}))
                asked.add(station)
    return named + patterns


def _ask(
    connection: Connection,
    request: SeedLinkStationConfig,
    planned: Plan,
    holding: Holding | None,
    refused: Callable[[str, SourceError], None],
) -> Beginning:
    """Ask for one station; returns from where on the server accepted it.

    Raises:
        RefusedError: the server does not have it.
    """
    network, _, code = request.station.partition("_")
    connection.command(f"STATION {request.station}" if connection.version >= 4 else f"STATION {code} {network}")
    selectors = [in_notation(selector, connection.version) for selector in request.selectors]
    unsaid = [given for given, said in zip(request.selectors, selectors, strict=True) if said is None]
    for given in unsaid:
        refused(f"{request.station} {given}", SourceError(
            f"selector {given!r} cannot be said in SeedLink {connection.version}", "write it as LLCCC, such as 00HH?"
        ))  # fmt: skip
    said = [selector for selector in selectors if selector is not None]
    refusals = connection.commands([f"SELECT {selector}" for selector in said])
    if request.selectors and len(refusals) + len(unsaid) == len(request.selectors):
        # Without any selector the server would send all channels, which was not asked for.
        raise refusals[0] if refusals else RefusedError(f"{request.station}: no selector can be used", "see above")
    for error in refusals:
        refused(f"{request.station} {error.message}", error)
    *attempts, last = planned.attempts.get(request.station, (Beginning("next"),))
    for beginning in attempts:
        try:
            connection.command(beginning.command(connection.version, holding))
        except RefusedError as error:
            refused(f"{request.station} {error.message}", error)
        else:
            return beginning
    connection.command(last.command(connection.version, holding))
    return last


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


def held(connection: Connection, stations: Sequence[str] = ()) -> dict[str, Holding] | None:
    """What the server holds of each station: of those named at least, of all if none is; None if it does not tell.

    Raises:
        SourceError: the connection is lost, or there was no answer.
    """
    found: dict[str, Holding] = {}
    few = connection.version >= 4 and 0 < len(stations) <= _MAX_NAMED
    try:
        for item in [f"STATIONS {name}" for name in stations] if few else ["STATIONS"]:
            answer = connection.info(item)
            told = _holdings_4(answer) if connection.version >= 4 else _holdings_3(answer, connection.software)
            if told is None:
                return None
            found |= told
    except RefusedError:
        return None
    return found


def _holdings_4(answer: bytes) -> dict[str, Holding] | None:
    try:
        return {
            str(station["id"]): _holding(int(station["start_seq"]), int(station["end_seq"]), _WHOLE_4)
            for station in json.loads(answer).get("station", ())
            if station.get("end_seq") is not None and station.get("start_seq") is not None
        }
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def _holding(first: int, last: int, whole: int) -> Holding:
    if not (0 <= first < whole and 0 <= last < whole):
        raise ValueError(f"{first} to {last} are no sequence numbers")
    return Holding(first, last)


_MARKUP = re.compile(rb"<!(?:DOCTYPE|ENTITY)", re.IGNORECASE)


def _holdings_3(answer: bytes, software: str) -> dict[str, Holding] | None:
    """Out of XML, which is not parsed if it defines anything: only an attack would."""
    if _MARKUP.search(answer):
        return None
    try:
        root = ET.fromstring(answer.rstrip(b"\0 "))  # noqa: S314
        ranges = {
            f"{station.attrib['network']}_{station.attrib['name']}": (
                station.attrib["begin_seq"], station.attrib["end_seq"],
            )
            for station in root.iter("station")
        }  # fmt: skip
        base = _base([number for pair in ranges.values() for number in pair], software)
        return {
            name: _holding(int(first, base) % _WHOLE_3, int(last, base) % _WHOLE_3, _WHOLE_3)
            for name, (first, last) in ranges.items()
            if int(last, base)
        }
    except (ET.ParseError, ValueError, LookupError):  # no such attribute, or an encoding that does not exist
        return None


def _base(numbers: Sequence[str], software: str) -> int:
    """Sequence numbers of version 3 are hexadecimal; ringserver lists them in decimal since its version 4."""
    if (_ringserver(software) or 0) < 4:
        return 16
    return 16 if any(re.search("^0.|[A-Fa-f]", number) for number in numbers) else 10


def _ringserver(software: str) -> int | None:
    """The major version of a ringserver; None if it is another server."""
    found = re.search(r"RingServer/(\d{1,4})", software, re.IGNORECASE)
    return None if found is None else int(found[1])
