"""What people answered, as training data: miniSEED and ``metadata.csv``, the columns of docs/training.md; or, for
SeisBench, ``waveforms.hdf5`` and ``metadata.csv``.

Only events whose record is here and whose answer is undisputed go out: where two people disagree, nobody learns from
it. Events of one hour share a split, so that neighbours of one sequence are never on both sides.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, func, select

from agent.host.disk import make_new_folder
from agent.sources.records import read_records
from agent.types import COMPONENTS, LABELS, NS, counted, format_ns
from desk.evidence import Records
from desk.formats.seisbench import COMPONENT_ORDER, WaveformFile, aligned
from desk.record import traces
from desk.store import tables as t
from desk.store.store import Store

COLUMNS = (
    "trace_name", "source_dataset", "source_id", "source_type", "source_subtype", "split", "station_network_code",
    "station_code", "trace_channels", "trace_n_components", "trace_sampling_rate_hz", "trace_npts", "trace_start_time",
    "trace_onset_time", "trace_onset_source", "trace_weight", "notes",
)  # fmt: skip
SEISBENCH_COLUMNS = (*COLUMNS, "trace_onset_sample", "trace_component_order")
HOUR_NS = 3600 * NS
VALIDATION_SHARE = 0.2
TABLE = "metadata.csv"


@dataclass(frozen=True, slots=True)
class Exported:
    """How many events went out, and why others did not."""

    written: int
    without_record: int
    disputed: int
    unsure: int
    exercises: int


@dataclass(frozen=True, slots=True)
class _Answered:
    uid: str
    sensor: str
    onset_ns: int
    label: str
    readers: int
    notes: str


def export(store: Store, records: Records, folder: Path, *, unsure: bool = False, seisbench: bool = False) -> Exported:
    """Write all answered events to a folder that is new or empty; with ``unsure``, also those that a person doubted.

    Raises:
        UsageError: the folder is not empty, or cannot be written.
        ConfigError: ``seisbench`` is asked for and h5py is not installed.
    """
    make_new_folder(folder)
    counts = {"written": 0, "without_record": 0, "disputed": 0, "unsure": 0, "exercises": 0}
    with contextlib.ExitStack() as stack:
        waveforms = stack.enter_context(WaveformFile(folder)) if seisbench else None
        connection = stack.enter_context(store.reading())
        file = stack.enter_context((folder / TABLE).open("w", newline="", encoding="utf-8"))
        table = csv.DictWriter(file, COLUMNS if waveforms is None else SEISBENCH_COLUMNS)
        table.writeheader()
        for one in _answered(connection, counts, unsure=unsure):
            path = records.path(one.uid)
            if not path.is_file():
                counts["without_record"] += 1
                continue
            table.writerow(_copied(one, path, folder) if waveforms is None else _added(one, path, waveforms))
            counts["written"] += 1
    return Exported(**counts)


def _copied(one: _Answered, path: Path, folder: Path) -> dict[str, object]:
    name = f"records/{one.uid}.mseed"
    (folder / "records").mkdir(exist_ok=True)
    shutil.copyfile(path, folder / name)
    return {"trace_name": name, **_columns(one, path)}


def _added(one: _Answered, path: Path, waveforms: WaveformFile) -> dict[str, object]:
    shown = traces(path, one.sensor, one.onset_ns)
    start_s, samples = aligned(shown)
    waveforms.add(one.uid, samples)
    columns = _columns(one, path)
    return columns | {
        "trace_name": one.uid,
        "split": "dev" if columns["split"] == "val" else columns["split"],
        "trace_npts": samples.shape[1],
        "trace_start_time": f"{format_ns(one.onset_ns + round(start_s * NS))[:26]}Z",
        "trace_onset_sample": round(-start_s * shown[0].rate_hz),
        "trace_component_order": COMPONENT_ORDER,
    }


def _answered(connection: Connection, counts: dict[str, int], *, unsure: bool) -> Iterator[_Answered]:
    drills = select(func.count()).where(t.event.c.review.is_not(None), t.event.c.exercise.is_(True))
    counts["exercises"] = connection.execute(drills).scalar_one()
    statement = (
        select(t.event.c.id, t.event.c.uid, t.event.c.onset_ns, t.sensor.c.code)
        .join(t.sensor)
        .where(t.event.c.review.is_not(None), t.event.c.exercise.is_(False))
        .order_by(t.event.c.onset_ns)
    )
    for row in connection.execute(statement).all():
        answers = _standing(connection, row.id)
        labels = {answer.label for answer in answers}
        if len(labels) > 1:
            counts["disputed"] += 1
        elif not unsure and not all(answer.sure for answer in answers):
            counts["unsure"] += 1
        else:
            notes = "; ".join(dict.fromkeys(answer.note for answer in answers if answer.note))
            yield _Answered(row.uid, row.code, row.onset_ns, LABELS[labels.pop()], len(answers), notes)


def _standing(connection: Connection, key: int) -> list[Row[Any]]:
    """The newest answer with a label of each person; one who took it back has none."""
    newest: dict[str, Row[Any]] = {}
    rows = connection.execute(select(t.review).where(t.review.c.event_id == key).order_by(t.review.c.id))
    for row in rows:
        if row.label is not None or not row.note:
            newest[row.who] = row
    return [row for row in newest.values() if row.label is not None]


def _columns(one: _Answered, path: Path) -> dict[str, object]:
    network, station = one.sensor.split(".")[:2]
    found = next((r for r in read_records(path) if str(r.station).startswith(one.sensor)), read_records(path)[0])
    rate = next(iter(found.rows.values()))[0].rate_hz
    first = min(segments[0].start_ns for segments in found.rows.values())
    names = ",".join(f"{one.sensor.split('.')[3]}{COMPONENTS[row]}" for row in sorted(found.rows))
    longest = max(sum(len(segment.samples) for segment in segments) for segments in found.rows.values())
    block = hashlib.sha256(f"{one.onset_ns // HOUR_NS}".encode()).digest()[0] / 256
    return {
        "source_dataset": "desk",
        "source_id": one.uid,
        "source_type": one.label,
        "source_subtype": "triggered transient" if one.label == "noise" else "",
        "split": "val" if block < VALIDATION_SHARE else "train",
        "station_network_code": network,
        "station_code": station,
        "trace_channels": names,
        "trace_n_components": len(found.rows),
        "trace_sampling_rate_hz": f"{rate:g}",
        "trace_npts": longest,
        "trace_start_time": f"{format_ns(first)[:23]}Z",
        "trace_onset_time": f"{format_ns(one.onset_ns)[:23]}Z",
        "trace_onset_source": "stalta",
        "trace_weight": 1,
        "notes": f"{counted(one.readers, 'reader')}{': ' + one.notes if one.notes else ''}",
    }
