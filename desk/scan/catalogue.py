"""All results of a scan together: the catalogue and the ledger, as CSV, Parquet and QuakeML.

Rows are in the order of time, then of sensor. A day is in memory at a time. The CSV depends on the results alone; what
the scan was (settings, bundle, command) stands beside it in ``catalogue.json``, and inside the Parquet file.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from agent.errors import ConfigError, DataError, in_words
from agent.messages.payloads import QUAKEML_TYPES
from agent.messages.schema import (
    ClassificationPart,
    ClockPart,
    DetectionPart,
    EventMessage,
    QualityPart,
    SwellPart,
    TimingPart,
)
from agent.types import LABELS, NS, SLOW, StationId, format_ns, parse_ns
from desk.scan.folder import About, Folder, Planned, results
from desk.scan.ledger import HOUR_NS, Ledger
from desk.scan.result import EVENT_COLUMNS, UNCLASSIFIED, UNDECIDED, Result
from desk.scan.units import DAY_NS, day_of

if TYPE_CHECKING:
    import pyarrow

STATION_COLUMNS = ("station_network_code", "station_code", "station_location_code", "trace_channel")
COLUMNS = (EVENT_COLUMNS[0], *STATION_COLUMNS, *EVENT_COLUMNS[1:])
"""Names are SeisBench's where it has one. ``source_type`` is the label, ``undecided``, ``unclassified`` or ``slow``;
``trace_channel`` the band and source code; ``window_s``, ``duration_s``, ``gap_s`` in seconds; ``peak_counts`` and
``noise_counts`` in counts, band-passed; ``dominant_hz`` in Hz. ``peak_ratio`` to ``centroid_hz`` are of slow events."""
CLASSES = (*LABELS, UNDECIDED, UNCLASSIFIED, SLOW)
LEDGER_COLUMNS = (
    "station_network_code", "station_code", "station_location_code", "trace_channel", "day", "state", "recorded_h",
    "components_h", "gaps", "longest_gap_s", "armed_h", "masked_h", "triggers", "discarded", *CLASSES, "refused",
    "refused_reasons", "armed_by_hour",
)  # fmt: skip
"""``state``: ``judged``, ``no data`` (no file of that day), ``not scanned``. ``armed_h``: hours in which an event could
have been heard, those left out in which the threshold was far above its usual (``masked_h``). ``armed_by_hour``: the
share of each hour of the day."""
_MERGE = "talus scan merge DIR writes it into the folder of a scan"
_MOST_QUAKEML = 50_000
"""Events of which QuakeML is written without being asked for: they take 80 MB."""
_ROWS = 50_000
"""Of a row group."""
_FORMULA = re.compile(r"^[=+\-@\t\r]")


@dataclass(slots=True)
class Merged:
    """What was put together. ``digest``: SHA-256 (hex) of the catalogue's CSV. ``seams``: midnights at which two units
    had something to compare, and those at which they did not find the same."""

    events: int = 0
    classes: Counter[str] = field(default_factory=Counter)
    units: int = 0
    missing: int = 0
    recorded_s: float = 0.0
    armed_s: float = 0.0
    refused: dict[tuple[str, str], None] = field(default_factory=dict)
    """File and reason, each once."""
    seams: int = 0
    torn: list[str] = field(default_factory=list)
    digest: str = ""
    files: list[Path] = field(default_factory=list)

    def result(self, result: Result) -> None:
        ledger = result.ledger
        self.units += 1
        self.events += len(result.events)
        self.classes.update(ledger.classes)
        self.recorded_s += ledger.recorded_s
        self.armed_s += sum(ledger.armed) * 3600
        self.refused.update(((name, reason), None) for name, reason in ledger.refused)


class Seams:
    """Compares, midnight by midnight, what two units found in the time that both have read."""

    def __init__(self, merged: Merged) -> None:
        self._merged = merged
        self._before: dict[StationId, tuple[int, list[str]]] = {}

    def next(self, result: Result) -> None:
        """Results of a sensor in the order of time."""
        before = self._before.get(result.station)
        if before is not None and before[0] == result.from_ns and (before[1] or result.seam):
            self._merged.seams += 1
            if before[1] != result.seam:
                apart = sorted(set(before[1]) ^ set(result.seam))
                self._merged.torn.append(f"{result.station} {day_of(result.from_ns)}: {', '.join(apart)}")
        late = format_ns(result.to_ns - result.seam_ns)
        own = sorted(row[0] for row in result.events if row[1] >= late)
        self._before[result.station] = result.to_ns, own


def merge(
    folder: Folder,
    *,
    parquet: bool | None = None,
    quakeml: bool | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Merged:
    """Write ``catalogue.csv``, ``catalogue.json``, ``ledger.csv``, and ``catalogue.parquet`` and ``catalogue.xml`` into
    the folder.

    Args:
        folder: a scan's.
        parquet: None: where pyarrow is installed.
        quakeml: None: if there are not too many events.
        progress: told how many of the units are done, now and then.

    Raises:
        DataError: there is no scan in the folder, or a result is damaged.
        ConfigError: ``parquet`` without pyarrow.
    """
    merged, about = Merged(), folder.about()
    plan = folder.plan()
    for name in ("catalogue.parquet", "catalogue.xml"):
        (folder.path / name).unlink(missing_ok=True)  # of a merge before, which may not be written this time
    seams = Seams(merged)
    table = _Parquet.open(folder.path / "catalogue.parquet", about, wanted=parquet)
    ledger = _LedgerFile()
    hashed = hashlib.sha256()
    with ExitStack() as stack:
        catalogue = stack.enter_context(_replacing(folder.path / "catalogue.csv", merged))
        hashing = _Hashing(catalogue, hashed)
        writer = csv.writer(hashing, lineterminator="\n")
        writer.writerow(COLUMNS)
        if table is not None:
            stack.callback(table.close)
        done = 0
        for _, units in groupby(results(folder), key=lambda one: one[0].day):
            rows: list[list[Any]] = []
            for planned, result in units:
                done += 1
                ledger.add(planned, result)
                if result is None:
                    merged.missing += 1
                    continue
                merged.result(result)
                seams.next(result)
                codes = _codes(result.station)
                rows += [[row[0], *codes, *row[1:]] for row in result.events]
            rows.sort(key=lambda row: (row[5], row[0]))
            writer.writerows(rows)
            if table is not None:
                table.add(rows)
            progress(done, len(plan))
    merged.digest = hashed.hexdigest()
    if quakeml or (quakeml is None and merged.events <= _MOST_QUAKEML):
        _write_quakeml(folder.path, about, merged)
    ledger.write(folder.path / "ledger.csv", merged)
    about_file = folder.path / "catalogue.json"
    about_file.write_text(json.dumps(_about(about) | _totals(merged), indent=1, sort_keys=True) + "\n")
    merged.files.append(about_file)
    if table is not None:
        merged.files.append(table.path)
    return merged


def read(path: Path, columns: Sequence[str] = COLUMNS) -> Iterator[dict[str, str]]:
    """Rows of a catalogue by the names of ``COLUMNS``, as text; an absent value is empty.

    Args:
        path: ``catalogue.csv``, ``catalogue.parquet`` or the folder of a scan.
        columns: those that it must have; of a Parquet file only these are read.

    Raises:
        DataError: no such file, or not a catalogue.
        ConfigError: a Parquet file without pyarrow.
    """
    file = path / "catalogue.csv" if path.is_dir() else path
    hint = _MERGE if path.is_dir() else f"a catalogue of talus scan, or a table with {', '.join(columns[:5])}"
    yield from (_read_parquet if file.suffix == ".parquet" else _rows)(file, columns, hint)


def read_ledger(path: Path, columns: Sequence[str] = LEDGER_COLUMNS) -> Iterator[dict[str, str]]:
    """Rows of the ledger beside a catalogue, by the names of ``LEDGER_COLUMNS``, as text.

    Raises:
        DataError: there is none, or it lacks one of ``columns``.
    """
    folder = path if path.is_dir() else path.parent
    yield from _rows(folder / "ledger.csv", columns, _MERGE)


def heard(path: Path) -> dict[int, float]:
    """Share of each hour since 1970 in which the sensors of a scan could hear, the mean over those that it has; hours
    that are not there were not heard.

    Raises:
        DataError: there is no ledger beside the catalogue.
    """
    shares: dict[int, float] = {}
    sensors: set[tuple[str, ...]] = set()
    for row in read_ledger(path):
        sensors.add(tuple(row[name] for name in STATION_COLUMNS))
        begin = parse_ns(f"{row['day']}T00:00:00Z") // HOUR_NS
        for number, share in enumerate(row["armed_by_hour"].split()):
            shares[begin + number] = shares.get(begin + number, 0.0) + float(share)
    return {hour: share / len(sensors) for hour, share in sorted(shares.items())}


def message(row: Mapping[str, str], about: Mapping[str, Any], number: int) -> EventMessage:
    """An event of a catalogue as the message that a station would have sent of its last revision.

    It has revision 0: whatever a station sent itself stands above it.
    """
    onset, kind = row["trace_onset_time"], row["source_type"]
    codes = [row[name] for name in STATION_COLUMNS]
    verdict = None
    if kind not in (UNCLASSIFIED, SLOW):
        verdict = ClassificationPart.model_validate_json(
            json.dumps({
                "label": row["label"], "probability": float(row["probability"]), "window_s": float(row["window_s"]),
                "probabilities": {label: float(row[f"probability_{label}"]) for label in LABELS},
                "abstained": row["abstained"] == "True",
                "model": {"name": about["bundle"]["name"], "sha256": about["bundle"]["sha256"]},
                "backend": "scan", "precision": "int8",
            })
        )  # fmt: skip
    seconds = row["duration_s"] if kind == SLOW else row["window_s"] or 0.0
    until = format_ns(parse_ns(onset) + round(float(seconds) * NS))
    timing_percent = int(row["timing_percent"]) if row["timing_percent"] else None
    questionable = row["time_questionable"] == "True"
    clock = None
    if timing_percent is not None or questionable:
        clock = ClockPart(timing_percent=timing_percent, locked=None, questionable=questionable)
    return EventMessage(
        id=row["source_id"],
        kind="slow" if kind == SLOW else "trigger",
        revision=0,
        phase="end",
        station=".".join(codes),
        onset=onset,
        detection=DetectionPart(
            ratio=float(row["ratio"]),
            duration_s=float(row["duration_s"]),
            peak_counts=_number(row["peak_counts"]),
            dominant_hz=_number(row["dominant_hz"]),
            noise_counts=_number(row["noise_counts"]),
        ),
        swell=_swell(row) if kind == SLOW else None,
        classification=verdict,
        reason=row["reason"] or ("the network gave no answer" if kind == UNCLASSIFIED else None),
        timing=TimingPart(data=until, received=until, decided=until, handed=None),
        quality=QualityPart(gap_s=float(row["gap_s"]), components=row["trace_component_order"], clock=clock),
        quakeml_type=QUAKEML_TYPES[row["label"]] if kind in QUAKEML_TYPES else None,
        exercise=False,
        boot_id=str(about["digest"])[:32],
        seq=number,
    )


def _swell(row: Mapping[str, str]) -> SwellPart:
    return SwellPart(
        ratio=float(row["ratio"]),
        peak_ratio=float(row["peak_ratio"]),
        rise_s=float(row["rise_s"]),
        held_s=float(row["held_s"]),
        growth_db_min=float(row["growth_db_min"]),
        envelope_db=[],
        centroid_hz=_number(row["centroid_hz"]),
        centroid_growth_hz_min=None,
    )


def about_of(path: Path) -> dict[str, Any]:
    """What the scan of a catalogue was: settings, bundle, command.

    Raises:
        DataError: there is no such file beside the catalogue.
    """
    file = (path if path.is_dir() else path.parent) / "catalogue.json"
    if not path.exists():
        raise DataError(f"{path} does not exist", "name the folder of a scan, or its catalogue")
    try:
        found: dict[str, Any] = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise _unreadable(file, error, _MERGE) from None
    return found


def _number(text: str) -> float | None:
    return float(text) if text else None


def _codes(station: StationId) -> list[str]:
    return [station.network, station.station, station.location, station.band_source]


def _about(about: About) -> dict[str, Any]:
    return {
        "schema": "talus/catalogue/1",
        "command": list(about.command),
        "talus": about.talus,
        "settings": about.settings,
        "digest": about.digest,
        "bundle": about.bundle,
    }


def _totals(merged: Merged) -> dict[str, Any]:
    return {
        "events": merged.events,
        "classes": dict(sorted(merged.classes.items())),
        "units": merged.units,
        "units_missing": merged.missing,
        "recorded_h": round(merged.recorded_s / 3600, 3),
        "armed_h": round(merged.armed_s / 3600, 3),
        "seams_compared": merged.seams,
        "seams_torn": merged.torn,
        "catalogue_csv_sha256": merged.digest,
    }


class _replacing:  # noqa: N801 - reads as a function
    """A text file that takes its name when it is whole."""

    def __init__(self, path: Path, merged: Merged) -> None:
        self._path, self._merged = path, merged
        self._new = path.with_name(f".{path.name}.new")

    def __enter__(self) -> IO[str]:
        self._file = self._new.open("w", newline="", encoding="utf-8")
        return self._file

    def __exit__(self, kind: object, *_: object) -> None:
        self._file.close()
        if kind is None:
            self._new.replace(self._path)
            self._merged.files.append(self._path)
        else:
            self._new.unlink(missing_ok=True)


class _Hashing:
    """Passes text on to a file and its bytes to a hash."""

    def __init__(self, file: IO[str], hashed: hashlib._Hash) -> None:
        self._file, self._hashed = file, hashed

    def write(self, text: str) -> int:
        self._hashed.update(text.encode())
        return self._file.write(text)


class _LedgerFile:
    def __init__(self) -> None:
        self._rows: dict[StationId, dict[str, list[object]]] = {}

    def add(self, planned: Planned, result: Result | None) -> None:
        row = _ledger_row(
            planned, "not scanned" if result is None else "judged", None if result is None else result.ledger
        )
        self._rows.setdefault(planned.station, {})[planned.day] = row

    def write(self, path: Path, merged: Merged) -> None:
        """With a row for each day between the first and the last of a sensor."""
        with _replacing(path, merged) as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(LEDGER_COLUMNS)
            for station, rows in sorted(self._rows.items()):
                day, last = (parse_ns(f"{one}T00:00:00Z") for one in (min(rows), max(rows)))
                while day <= last:
                    empty = _ledger_row(Planned(station, day, day + DAY_NS), "no data", None)
                    writer.writerow(rows.get(day_of(day), empty))
                    day += DAY_NS


def _ledger_row(planned: Planned, state: str, ledger: Ledger | None) -> list[object]:
    found = ledger or Ledger()
    components = ", ".join(f"{name} {seconds / 3600:.3f}" for name, seconds in found.component_s.items())
    reasons = "; ".join(f"{name}: {reason}" for name, reason in found.refused)
    armed = [*found.armed]
    if armed:
        # Counted from midnight, also for a day that is judged from a later hour on.
        armed = [0.0] * ((planned.from_ns % DAY_NS) // HOUR_NS) + armed
    return [
        *_codes(planned.station), planned.day, state, round(found.recorded_s / 3600, 4), components, found.gaps,
        found.longest_gap_s, round(sum(found.armed), 4), round(found.masked_s / 3600, 4), found.triggers,
        found.discarded, *(found.classes.get(name, 0) for name in CLASSES), len(found.refused),
        f"'{reasons}" if _FORMULA.match(reasons) else reasons, " ".join(f"{share:g}" for share in armed),
    ]  # fmt: skip


def _rows(file: Path, columns: Sequence[str], hint: str) -> Iterator[dict[str, str]]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as text:  # as spreadsheets write it
            reader = csv.DictReader(text)
            _check_columns(file, columns, reader.fieldnames or (), hint)
            yield from reader
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _unreadable(file, error, hint) from None


def _unreadable(file: Path, error: Exception, hint: str) -> DataError:
    return DataError(f"{file} cannot be read: {in_words(error)}", hint)


def _check_columns(file: Path, columns: Sequence[str], there: Iterable[str], hint: str) -> None:
    lacking = set(columns).difference(there)
    if lacking:
        raise DataError(f"{file} lacks the columns {', '.join(sorted(lacking)[:5])}", hint)


def _arrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        return None
    return pyarrow


def _read_parquet(file: Path, columns: Sequence[str], hint: str) -> Iterator[dict[str, str]]:
    arrow = _arrow()
    if arrow is None:
        raise ConfigError("reading Parquet needs pyarrow", "pip install 'talus-agent[scan]', or name the CSV")
    try:
        with arrow.parquet.ParquetFile(file) as table:
            _check_columns(file, columns, table.schema_arrow.names, hint)
            for batch in table.iter_batches(columns=list(columns)):
                for row in batch.to_pylist():
                    yield {name: _text(value) for name, value in row.items()}
    except (OSError, arrow.ArrowException) as error:
        raise _unreadable(file, error, hint) from None


def _text(value: object) -> str:
    return "" if value is None else str(value)


class _Parquet:
    """Row groups as they fill; settings, bundle and command in the metadata, under ``talus``."""

    def __init__(self, path: Path, about: About, arrow: Any) -> None:
        self.path, self._arrow = path, arrow
        self._new = path.with_name(f".{path.name}.new")
        text, real = arrow.string(), arrow.float64()
        few = arrow.dictionary(arrow.int16(), text)
        kinds = dict.fromkeys(COLUMNS, real) | {
            "source_id": text, "trace_onset_time": text, "reason": text, "abstained": arrow.bool_(),
            "time_questionable": arrow.bool_(), "timing_percent": arrow.int16(),
        }  # fmt: skip
        kinds |= dict.fromkeys((*STATION_COLUMNS, "source_type", "label", "trace_component_order"), few)
        metadata = {"talus": json.dumps(_about(about), sort_keys=True)}
        self._schema: pyarrow.Schema = arrow.schema(list(kinds.items()), metadata=metadata)
        self._writer = arrow.parquet.ParquetWriter(self._new, self._schema, compression="zstd")
        self._rows: list[list[Any]] = []

    @classmethod
    def open(cls, path: Path, about: About, *, wanted: bool | None) -> _Parquet | None:
        arrow = None if wanted is False else _arrow()
        if arrow is None and wanted:
            raise ConfigError("Parquet needs pyarrow", "pip install 'talus-agent[scan]'; the CSV is written without")
        return None if arrow is None else cls(path, about, arrow)

    def add(self, rows: Sequence[list[Any]]) -> None:
        self._rows += rows
        if len(self._rows) >= _ROWS:
            self._write()

    def close(self) -> None:
        self._write()
        self._writer.close()
        self._new.replace(self.path)

    def _write(self) -> None:
        if self._rows:
            values = zip(*self._rows, strict=True)
            columns = [
                self._arrow.array(column, type=kind) for column, kind in zip(values, self._schema.types, strict=True)
            ]
            self._writer.write_table(self._arrow.Table.from_arrays(columns, schema=self._schema))
            self._rows = []


def _write_quakeml(folder: Path, about: About, merged: Merged) -> None:
    """All events of ``catalogue.csv`` in one document."""
    from desk.formats.quakeml import QuakeML

    form, told = QuakeML(), _about(about)
    comment = json.dumps(told, sort_keys=True).replace("&", "&amp;").replace("<", "&lt;")
    with _replacing(folder / "catalogue.xml", merged) as file:
        file.write(
            "<?xml version='1.0' encoding='utf-8'?>\n"
            '<q:quakeml xmlns="http://quakeml.org/xmlns/bed/1.2" xmlns:q="http://quakeml.org/xmlns/quakeml/1.2">\n'
            f'<eventParameters publicID="smi:talus/scan">\n<comment><text>{comment}</text></comment>\n'
        )
        for number, row in enumerate(read(folder / "catalogue.csv"), 1):
            document = form.document(message(row, told, number))
            if document is not None:
                begin, end = document.text.index(b"<event "), document.text.rindex(b"</event>") + len(b"</event>")
                file.write(document.text[begin:end].decode() + "\n")
        file.write("</eventParameters>\n</q:quakeml>\n")
