"""What pictures show of a scan's catalogue: events with their samples from the archive, onsets, and the hours heard."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import ValidationError

from agent.config.station import TriggerConfig
from agent.errors import DataError
from agent.types import NS, SLOW, StationId, parse_ns
from desk.pictures.sheet import AFTER_S, BEFORE_S, LEAD_S, Cell, title_of
from desk.record import USUAL, traces_of
from desk.scan.catalogue import STATION_COLUMNS, about_of, read, read_ledger
from desk.scan.ledger import HOUR_NS
from desk.scan.samples import Samples

_ROW = dict[str, str]
_SHOWN = (*STATION_COLUMNS, "trace_onset_time", "source_type", "probability", "abstained", "duration_s")


def archive_of(catalogue: Path) -> list[str]:
    """The paths that a scan was asked to read, from ``catalogue.json`` beside its catalogue.

    Raises:
        UsageError: there is none.
    """
    command = [str(word) for word in about_of(catalogue)["command"][2:]]
    options = [place for place, word in enumerate(command) if word.startswith("--")]
    return command[: options[0] if options else None]


def trigger_of(catalogue: Path) -> TriggerConfig:
    """The trigger of a scan, from ``catalogue.json`` beside its catalogue; the usual one where a table stands alone.

    Raises:
        DataError: it cannot be read, or names settings that this version does not know.
    """
    if not ((catalogue if catalogue.is_dir() else catalogue.parent) / "catalogue.json").is_file():
        return USUAL
    try:
        return TriggerConfig.model_validate(about_of(catalogue)["settings"])
    except (KeyError, ValidationError):
        raise DataError(f"the settings of {catalogue} are not those of this version", "scan it again") from None


def cells_of(
    catalogue: Path, samples: Samples, limit: int, *, station: str | None, name: str | None, unsure: bool
) -> tuple[list[Cell], int]:
    """The newest events of a catalogue, or those of which the network was least sure, and of how many; ``station`` is
    NET.STA.

    Raises:
        UsageError: not a catalogue.
        DataError: no event of that station and class.
    """
    rows = (
        row
        for row in read(catalogue, _SHOWN)
        if _is_of(row, station) and name in (None, row["source_type"]) and not (unsure and row["source_type"] == SLOW)
    )

    count = 0

    def order(row: _ROW) -> tuple[float, str]:
        nonlocal count
        count += 1
        return (_doubt(row) if unsure else 0.0, row["trace_onset_time"])

    chosen = heapq.nlargest(limit, rows, order)
    if not chosen:
        raise nothing_of(catalogue, station)
    return [_cell(row, samples) for row in chosen], count


def onsets_of(catalogue: Path, station: str | None) -> Iterator[tuple[int, str]]:
    """Onset (ns) and class of each event of a catalogue, or of any table with these two columns.

    Raises:
        UsageError: it cannot be read, or lacks a column.
        DataError: a time is none.
    """
    columns = ("trace_onset_time", "source_type", *(STATION_COLUMNS[:2] if station else ()))
    for row in read(catalogue, columns):
        if _is_of(row, station):
            yield parse_ns(row["trace_onset_time"]), row["source_type"]


def nothing_of(catalogue: Path, station: str | None) -> DataError:
    """The error where no event is as it was asked for: it names the stations that there are."""
    if station is None:
        return DataError(f"no event of {catalogue} matches", "is it a catalogue? leave out --class or --unsure")
    known = sorted({".".join(row[one] for one in STATION_COLUMNS[:2]) for row in read(catalogue, STATION_COLUMNS[:2])})
    hint = "leave out --class or --unsure" if station in known else f"it has: {', '.join(known) or 'no event'}"
    return DataError(f"no event of {catalogue} is of {station}", hint)


def hours_of(catalogue: Path, station: str | None) -> Mapping[int, float] | None:
    """Share of each hour (since 1970) that was heard, the mean over the sensors of which the ledger beside a catalogue
    has that day: from the first to the last of each, also without data. None where there is no ledger.

    Raises:
        UsageError: it lacks a column.
    """
    if not ((catalogue if catalogue.is_dir() else catalogue.parent) / "ledger.csv").is_file():
        return None
    heard: dict[int, float] = {}
    sensors: Counter[int] = Counter()
    for row in read_ledger(catalogue, ("day", "armed_by_hour", *(STATION_COLUMNS[:2] if station else ()))):
        if _is_of(row, station):
            first = parse_ns(f"{row['day']}T00:00:00Z") // HOUR_NS
            sensors.update(range(first, first + 24))
            for number, share in enumerate(row["armed_by_hour"].split()):
                heard[first + number] = heard.get(first + number, 0.0) + float(share)
    return {hour: heard.get(hour, 0.0) / number for hour, number in sensors.items()}


def _cell(row: _ROW, samples: Samples) -> Cell:
    onset_ns, sensor = parse_ns(row["trace_onset_time"]), StationId(*(row[name] for name in STATION_COLUMNS))
    record = samples.record(sensor, onset_ns - round((BEFORE_S + LEAD_S) * NS), onset_ns + round(AFTER_S * NS))
    return Cell(
        title_of(row["source_type"], _number(row["probability"]), sensor.short, onset_ns),
        row["source_type"],
        _number(row["duration_s"]),
        None if record is None else traces_of(record, onset_ns)[0],
    )


def _is_of(row: _ROW, station: str | None) -> bool:
    return station is None or station == ".".join(row[column] for column in STATION_COLUMNS[:2])


def _doubt(row: _ROW) -> float:
    """As the desk orders its queue: above 1 where the network abstained, 1 where it gave no answer."""
    probability = _number(row["probability"])
    return 1.0 if probability is None else (row["abstained"] == "True") + 1.0 - probability


def _number(text: str) -> float | None:
    return float(text) if text else None
