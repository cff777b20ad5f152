"""Which files hold which sensors and times.

Of a file in an SDS archive its name says it, and nothing is opened before its day is judged. Any other file is looked
through once, headers alone where the format allows that; what was found is remembered by size and time of change.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path

from agent.sources import SourceProblem
from agent.sources.archive import files
from agent.sources.channels import identify, not_motion
from agent.sources.intake import Intake
from agent.sources.miniseed import RecordReader, is_miniseed, parts
from agent.types import NS, StationId
from desk.scan.extent import extents
from desk.scan.units import DAY_NS, Unit, days

SLACK_NS = 3600 * NS
"""A day file of an SDS archive may begin with a record from before midnight, and end with one that passes it."""
_SLOW_BANDS = "LVURPTQ"
"""SEED band codes of channels below 10 samples a second."""
_HEAD_BYTES = 64 << 10
_NAME_FIELDS = 7


@dataclass(frozen=True, slots=True)
class Extent:
    """Samples of a sensor from ``first_ns`` to before ``end_ns``; of an SDS file the day of its name."""

    station: StationId
    first_ns: int
    end_ns: int


@dataclass(slots=True)
class Index:
    """The files of a scan: what each holds, and ``problems`` with those that hold nothing usable."""

    holds: dict[str, list[Extent]] = field(default_factory=dict)
    problems: list[SourceProblem] = field(default_factory=list)
    slow: set[str] = field(default_factory=set)
    """Channels that are left out by their band code."""

    def units(
        self,
        before_ns: int,
        after_ns: int,
        *,
        from_ns: int | None = None,
        to_ns: int | None = None,
        wanted: Callable[[StationId], bool] = lambda station: True,
    ) -> list[Unit]:
        """Every day of every sensor that has samples, by sensor and day.

        Args:
            before_ns, after_ns: how far beyond itself a unit is read.
            from_ns, to_ns: onsets outside are not asked for; None for all.
            wanted: which sensors.
        """
        of: dict[StationId, list[tuple[int, int, str]]] = {}
        for path, found in self.holds.items():
            for extent in found:
                if wanted(extent.station):
                    of.setdefault(extent.station, []).append((extent.first_ns, extent.end_ns, path))
        units = []
        for station in sorted(of):
            spans = sorted(of[station])
            wanted_days = sorted({day for first, end, _ in spans for day in days(first, max(end, first + 1))})
            begin = 0
            longest = max(end - first for first, end, _ in spans)
            for day in wanted_days:
                start, end = max(day, from_ns or 0), min(day + DAY_NS, to_ns if to_ns is not None else day + DAY_NS)
                if start >= end:
                    continue
                since, until = start - before_ns - SLACK_NS, end + after_ns + SLACK_NS
                while begin < len(spans) and spans[begin][0] < since - longest:
                    begin += 1
                named: dict[str, None] = {}
                for first, last, path in spans[begin:]:
                    if first >= until:
                        break
                    if last > since:
                        named[path] = None
                units.append(Unit(station, start, end, tuple(sorted(named))))
        return units


def look(
    paths: Sequence[str | Path], memory: Path | None = None, progress: Callable[[int], None] = lambda count: None
) -> Index:
    """Find every file below the paths and what it holds.

    Args:
        paths: files, folders and patterns.
        memory: a file that keeps what was found of files that are not named as in SDS.
        progress: told how many files were looked at.
    """
    index = Index()
    intake = Intake(index.problems.append)
    known = _recall(memory)
    kept: list[str] = []
    for number, path in enumerate(files([str(path) for path in paths], intake)):
        progress(number)
        named = _by_name(path, index.slow)
        if named is not None:
            index.holds[str(path)] = named
            continue
        try:
            status = path.stat()
        except OSError as error:
            intake.report_unreadable(path, error)
            continue
        stamp = (str(path), status.st_size, status.st_mtime_ns)
        if stamp not in known:
            known[stamp] = _looked_through(path)
        found, problems = known[stamp]
        index.holds[str(path)] = found
        index.problems += problems
        kept.append(_to_line(stamp, found, problems))
    if memory is not None and kept:
        from agent.atomic import replace_file

        replace_file(memory, "".join(kept).encode())
    index.holds = {path: found for path, found in index.holds.items() if found}
    return index


def _by_name(path: Path, slow: set[str]) -> list[Extent] | None:
    """What the name of an SDS file says; None for any other name."""
    fields = path.name.split(".")
    if len(fields) != _NAME_FIELDS or len(fields[4]) != 1 or not (len(fields[5]) == 4 and len(fields[6]) == 3):
        return None
    if not (fields[5].isdigit() and fields[6].isdigit()) or len(fields[3]) != 3:
        return None
    year, number = int(fields[5]), int(fields[6])
    if not (1900 <= year <= 2099 and 1 <= number <= 366):
        return None
    network, station, location, code = (one.encode() for one in fields[:4])
    channel = identify((network, station, location, code), 100.0)
    if channel.stream is None or not_motion(channel.stream) is not None:
        return []
    if code[:1].decode() in _SLOW_BANDS:
        slow.add(channel.name)
        return []
    begin = datetime(year, 1, 1, tzinfo=timezone.utc) + timedelta(days=number - 1)
    begin_ns = int(begin.timestamp()) * NS
    return [Extent(channel.stream.station, begin_ns, begin_ns + DAY_NS)]


def _looked_through(path: Path) -> tuple[list[Extent], list[SourceProblem]]:
    """What a file holds by its headers, or by its samples where headers do not say it."""
    problems: list[SourceProblem] = []
    found: dict[tuple[StationId, int], tuple[int, int]] = {}

    def add(station: StationId, first_ns: int, end_ns: int) -> None:
        # An extent a day: a file of several years would else be read for each day between its pieces.
        for day in days(first_ns, max(end_ns, first_ns + 1)):
            known = found.get((station, day), (first_ns, end_ns))
            found[station, day] = min(known[0], max(day, first_ns)), max(known[1], min(day + DAY_NS, end_ns))

    intake, reader = Intake(problems.append), RecordReader()
    try:
        with path.open("rb") as file:
            plain = is_miniseed(file.read(_HEAD_BYTES))
        for span in parts(path) if plain else [None]:
            by_headers = None
            if span is not None:
                with path.open("rb") as file:
                    file.seek(span[0])
                    by_headers = extents(reader, file.read(span[1]))
            if by_headers is None:
                for recording in intake.read(path, span):
                    end_ns = recording.starts_ns[-1] + round(recording.counts[-1] * NS / recording.rates_hz[-1])
                    add(recording.stream.station, recording.starts_ns[0], end_ns)
            else:
                for stream, first_ns, end_ns in by_headers:
                    add(stream.station, first_ns, end_ns)
    except OSError as error:
        intake.report_unreadable(path, error)
    return [Extent(station, first, end) for (station, _), (first, end) in sorted(found.items())], problems


def _to_line(stamp: tuple[str, int, int], found: Iterable[Extent], problems: Iterable[SourceProblem]) -> str:
    holds = [
        [e.station.network, e.station.station, e.station.location, e.station.band_source, e.first_ns, e.end_ns]
        for e in found
    ]
    said = [[problem.path, problem.message, problem.hint] for problem in problems]
    return json.dumps([*stamp, holds, said], separators=(",", ":")) + "\n"


def _recall(memory: Path | None) -> dict[tuple[str, int, int], tuple[list[Extent], list[SourceProblem]]]:
    """What an earlier look found. A damaged memory costs another look."""
    known: dict[tuple[str, int, int], tuple[list[Extent], list[SourceProblem]]] = {}
    if memory is None or not memory.is_file():
        return known
    for line in memory.read_text(errors="replace").splitlines():
        try:
            path, size, changed_ns, holds, said = json.loads(line)
            found = [Extent(StationId(*map(str, one[:4])), int(one[4]), int(one[5])) for one in holds]
            known[path, size, changed_ns] = found, [SourceProblem(*map(str, one)) for one in said]
        except (ValueError, TypeError, IndexError):
            continue
    return known
