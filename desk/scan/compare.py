"""A catalogue against what is known: which events were found, and called rightly, and how much of it is false.

Of a truth that somebody listed, each interval is looked for at the stations that it names. Precision comes from a
sample, drawn at random from each class, that a person has looked at: a list of events that are known says nothing of
those that are not. Every share has its 95 % interval (Wilson), every rate its own (Poisson, exact).
"""

from __future__ import annotations

import csv
import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agent.errors import DataError, TalusError, UsageError, in_words
from agent.types import LABELS, NS, SLOW, counted, parse_ns
from desk.scan.catalogue import CLASSES, STATION_COLUMNS, read, read_ledger

TOLERANCE_S = 5.0
"""An onset may be so far outside the interval of its event."""
REVIEWED = ("source_id", "station", "trace_onset_time", "source_type", "stratum_events", "reviewed")
_HOUR_NS = 3600 * NS
_Z = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Share:
    """``count`` of ``total``, with a 95 % interval."""

    count: int
    total: int

    @property
    def interval(self) -> tuple[float, float]:
        """After Wilson (1927): it is right also for few, for none and for all."""
        n = self.total
        if n == 0:
            return 0.0, 1.0
        p, z2 = self.count / n, _Z * _Z
        middle, half = p + z2 / (2 * n), _Z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
        return max(0.0, (middle - half) / (1 + z2 / n)), min(1.0, (middle + half) / (1 + z2 / n))

    def __str__(self) -> str:
        low, high = self.interval
        if not self.total:
            return "none of 0"
        return f"{self.count} of {self.total}, {self.count / self.total:.0%} ({low:.0%} to {high:.0%})"


@dataclass(frozen=True, slots=True)
class Rate:
    """``count`` events in ``time`` units of time, with a 95 % interval."""

    count: int
    time: float

    @property
    def interval(self) -> tuple[float, float]:
        """After Garwood (1936): the means for which so few, or so many, come by chance once in 40 times."""
        if not self.time > 0:
            return 0.0, math.inf
        low = 0.0 if self.count == 0 else _solve(lambda mean: 1 - _at_most(self.count - 1, mean), self.count)
        high = _solve(lambda mean: -_at_most(self.count, mean), self.count, target=-0.025)
        return low / self.time, high / self.time

    def __str__(self) -> str:
        low, high = self.interval
        value = self.count / self.time if self.time > 0 else math.nan
        return f"{value:.2f} ({low:.2f} to {high:.2f})"


@dataclass(frozen=True, slots=True)
class Truth:
    """An interval (ns) that is known to hold an event of ``label``, at these stations (``STA`` or ``NET.STA``; empty:
    at any). With another label than the five it is neither right nor wrong."""

    from_ns: int
    to_ns: int
    label: str
    stations: frozenset[str]

    def is_at(self, row: Mapping[str, str], onset_ns: int, tolerance_ns: int) -> bool:
        """Whether an event of a catalogue lies in it."""
        inside = self.from_ns - tolerance_ns <= onset_ns <= self.to_ns + tolerance_ns
        return inside and self.names(f"{row['station_network_code']}.{row['station_code']}")

    def names(self, station: str) -> bool:
        """Whether ``NET.STA`` is one of its stations."""
        return not self.stations or station in self.stations or station.partition(".")[2] in self.stations

    @property
    def hours(self) -> range:
        """Those since 1970 in which it lies."""
        return range(self.from_ns // _HOUR_NS, self.to_ns // _HOUR_NS + 1)


@dataclass(slots=True)
class Comparison:
    """By label of the truth: how many lie in hours that were heard, found, rightly called, and what the others were
    called; ``unheard``: those in hours of which none of their stations heard anything. ``false``:
    events of a class other than noise in no known interval, by class, in ``station_days`` of hearing."""

    known: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    right: Counter[str] = field(default_factory=Counter)
    wrong: dict[str, Counter[str]] = field(default_factory=dict)
    unheard: Counter[str] = field(default_factory=Counter)
    false: Counter[str] = field(default_factory=Counter)
    station_days: float = 0.0
    unknown: int = 0
    """Events in intervals that are neither right nor wrong."""


def read_truth(path: Path, confidences: Sequence[str] = ()) -> list[Truth]:
    """A table with ``start``, ``end``, ``label``, and where it has them ``station`` or ``stream`` and ``confidence``.

    ``station`` names one or several, separated by blanks; the stations of a ``stream`` stand in ``streams.csv`` beside
    the table. ``confidences``: those that count; empty for all.

    Raises:
        DataError: not such a table.
    """
    streams = _streams(path.with_name("streams.csv"))
    found = []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            lacking = {"start", "end", "label"} - set(reader.fieldnames or ())
            if lacking:
                raise DataError(f"lacks the columns {', '.join(sorted(lacking))}", "")
            for row in reader:
                if confidences and row.get("confidence") not in confidences:
                    continue
                named = frozenset((row.get("station") or "").split()) or streams.get(
                    row.get("stream") or "", frozenset()
                )
                found.append(Truth(parse_ns(row["start"]), parse_ns(row["end"]), row["label"], named))
    except TalusError as error:
        raise DataError(f"{path}: {error.message}", "it needs start, end (ISO 8601) and label") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{path} cannot be read: {in_words(error)}", "it needs start, end (ISO 8601) and label"
        ) from None
    return found


def _streams(path: Path) -> dict[str, frozenset[str]]:
    if not path.is_file():
        return {}
    of: dict[str, set[str]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row.get("stream") and row.get("station"):
                of.setdefault(row["stream"], set()).add(row["station"])
    return {name: frozenset(stations) for name, stations in of.items()}


def compare(
    catalogue: Path, truths: Sequence[Truth], ignored: Sequence[Truth] = (), tolerance_s: float = TOLERANCE_S
) -> Comparison:
    """Look for each known event, and count what is in none of them.

    A known event is found if any station has an event in it, and rightly called if the most probable of their decided
    verdicts is its label; noise counts where no station says anything else.
    """
    result, tolerance_ns = Comparison(), round(tolerance_s * NS)
    judged = [truth for truth in truths if truth.label in LABELS]
    spared = [*(truth for truth in truths if truth.label not in LABELS), *ignored]
    at: dict[int, list[tuple[int, float, str]]] = {}
    for row in read(catalogue):
        onset_ns, kind = parse_ns(row["trace_onset_time"]), row["source_type"]
        hits = [number for number, truth in enumerate(judged) if truth.is_at(row, onset_ns, tolerance_ns)]
        for number in hits:
            rank = 2 if kind in LABELS[:-1] else 1 if kind in LABELS else 0
            at.setdefault(number, []).append((rank, float(row["probability"] or 0.0), kind))
        if not hits and any(truth.is_at(row, onset_ns, tolerance_ns) for truth in spared):
            result.unknown += 1
        elif not hits and kind in (*LABELS[:-1], SLOW):
            result.false[kind] += 1
    result.station_days, hours = _heard(catalogue, judged)
    for number, truth in enumerate(judged):
        if number not in at and not any(
            hour in heard for station, heard in hours.items() if truth.names(station) for hour in truth.hours
        ):
            result.unheard[truth.label] += 1
            continue
        result.known[truth.label] += 1
        if number not in at:
            continue
        result.found[truth.label] += 1
        _, _, kind = max(at[number])
        if kind == truth.label:
            result.right[truth.label] += 1
        else:
            result.wrong.setdefault(truth.label, Counter())[kind] += 1
    return result


def _heard(catalogue: Path, truths: Sequence[Truth]) -> tuple[float, dict[str, set[int]]]:
    """Station-days of hearing; and by station (``NET.STA``) the hours since 1970 with a known event in
    which something was heard."""
    asked = {hour for truth in truths for hour in truth.hours}
    total, hours = 0.0, dict[str, set[int]]()
    for row in read_ledger(catalogue):
        total += float(row["armed_h"]) / 24
        first = parse_ns(f"{row['day']}T00:00:00Z") // _HOUR_NS
        some = {first + at for at, share in enumerate(row["armed_by_hour"].split()) if float(share)}
        hours.setdefault(f"{row['station_network_code']}.{row['station_code']}", set()).update(asked & some)
    return total, hours


def words(result: Comparison) -> str:
    """A table for a terminal."""
    lines = []
    for label in LABELS:
        total, unheard = result.known[label], result.unheard[label]
        if not total + unheard:
            continue
        more = f"; {unheard} more in hours that were not heard" if unheard else ""
        found, right = Share(result.found[label], total), Share(result.right[label], total)
        lines.append(f"{label}: {total} known, {total - result.found[label]} missed{more}")
        lines.append(f"  found         {found}")
        lines.append(f"  right class   {right}")
        if label in result.wrong:
            others = ", ".join(f"{kind} {count}" for kind, count in result.wrong[label].most_common())
            lines.append(f"  wrong class   {others}")
    days = result.station_days
    lines.append(f"events in no known interval, for each of {days:.2f} station-days that were heard:")
    for kind in (*LABELS[:-1], *([SLOW] if result.false[SLOW] else [])):
        lines.append(f"  {kind:<13} {Rate(result.false[kind], days)}")
    if result.unknown:
        lines.append(f"left out: {result.unknown} in intervals of which nothing certain is known")
    return "\n".join(lines)


# -- precision, from a sample that a person has reviewed


def draw_sample(catalogue: Path, path: Path, per_class: int) -> int:
    """Write a table of events to review: ``per_class`` of each class at random, all where there are fewer. The same
    catalogue gives the same sample. Returns how many.

    Raises:
        UsageError: the table cannot be written.
    """
    strata: dict[str, list[tuple[bytes, dict[str, str]]]] = {}
    sizes: Counter[str] = Counter()
    for row in read(catalogue):
        kind = row["source_type"]
        sizes[kind] += 1
        stratum = strata.setdefault(kind, [])
        stratum.append((hashlib.blake2b(row["source_id"].encode(), digest_size=8).digest(), row))
        if len(stratum) >= 2 * per_class + 1000:
            stratum.sort(key=lambda one: one[0])
            del stratum[per_class:]
    chosen: list[tuple[object, ...]] = []
    for kind, stratum in strata.items():
        for _, row in sorted(stratum, key=lambda one: one[0])[:per_class]:
            station = ".".join(row[name] for name in STATION_COLUMNS)
            chosen.append((row["source_id"], station, row["trace_onset_time"], kind, sizes[kind], ""))
    try:
        with path.open("x", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(REVIEWED)
            # Not by class: whoever reviews must not see what comes.
            chosen.sort(key=lambda row: hashlib.blake2b(str(row[0]).encode(), digest_size=8).digest())
            writer.writerows(chosen)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", "name a new file") from None
    return len(chosen)


@dataclass(slots=True)
class Reviewed:
    """By class of the catalogue: the share of the reviewed that are what they are called; ``sizes``: of the strata."""

    right: dict[str, Share] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    found: dict[str, Counter[str]] = field(default_factory=dict)
    open: int = 0

    def overall(self, kinds: Iterable[str]) -> tuple[float, float, float] | None:
        """Precision over several classes, each weighted by its number of events, with its 95 % interval; None where one
        of them was not reviewed."""
        there = [kind for kind in kinds if self.sizes.get(kind)]
        if not there or any(kind not in self.right or not self.right[kind].total for kind in there):
            return None
        total = sum(self.sizes[kind] for kind in there)
        value = variance = 0.0
        for kind in there:
            share, weight = self.right[kind], self.sizes[kind] / total
            # Agresti and Coull (1998): two more of each, so that none of few has a variance.
            p = (share.count + 2) / (share.total + 4)
            left = max(0.0, 1 - share.total / self.sizes[kind])
            value += weight * share.count / share.total
            variance += weight * weight * p * (1 - p) / (share.total + 4) * left
        half = _Z * math.sqrt(variance)
        return value, max(0.0, value - half), min(1.0, value + half)


def read_review(path: Path) -> Reviewed:
    """What a person says of a sample: in the column ``reviewed`` the class that it is; empty where not looked at yet.

    Raises:
        DataError: not such a table, or a word in it that is no class.
    """
    result, counts = Reviewed(), dict[str, Counter[str]]()
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for number, row in enumerate(csv.DictReader(file), 2):
                kind, said = row["source_type"], (row["reviewed"] or "").strip().lower()
                result.sizes[kind] = int(row["stratum_events"])
                if not said:
                    result.open += 1
                elif said not in CLASSES:
                    raise DataError(f"{path}, line {number}: {said!r} is no class", f"write {', '.join(CLASSES)}")
                else:
                    counts.setdefault(kind, Counter())[said] += 1
    except (OSError, UnicodeDecodeError, csv.Error, KeyError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read: {in_words(error)}", f"it needs the columns {', '.join(REVIEWED)}"
        ) from None
    result.found = counts
    result.right = {kind: Share(said[kind], sum(said.values())) for kind, said in counts.items()}
    return result


def review_words(reviewed: Reviewed) -> str:
    """A table for a terminal."""
    lines = ["precision, by what a person said of a random sample of each class:"]
    for kind in CLASSES:
        if kind not in reviewed.right:
            continue
        others = reviewed.found[kind].copy()
        del others[kind]
        named = f"; else {', '.join(f'{name} {count}' for name, count in others.most_common())}" if others else ""
        lines.append(f"  {kind:<13} {reviewed.right[kind]} of {counted(reviewed.sizes[kind], 'event')}{named}")
    overall = reviewed.overall(LABELS[:-1])
    if overall is not None:
        value, low, high = overall
        lines.append(f"  all but noise {value:.0%} ({low:.0%} to {high:.0%}), each class by its number of events")
    if reviewed.open:
        lines.append(f"  {reviewed.open} not reviewed yet")
    return "\n".join(lines)


def _at_most(count: int, mean: float) -> float:
    """Poisson: how likely ``count`` or fewer are."""
    if mean <= 0:
        return 1.0
    return min(1.0, sum(math.exp(k * math.log(mean) - mean - math.lgamma(k + 1)) for k in range(count + 1)))


def _solve(rising: Callable[[float], float], count: int, target: float = 0.025) -> float:
    """Where a rising function of the mean has this value, by bisection."""
    low, high = 0.0, 2.0 * count + 20.0
    for _ in range(80):
        middle = (low + high) / 2
        if rising(middle) < target:
            low = middle
        else:
            high = middle
    return (low + high) / 2
