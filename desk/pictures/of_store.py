"""The picture of an event of the desk's database, for a page or a notification."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from agent.types import format_ns
from desk.evidence import Records
from desk.pictures.event import Told, draw
from desk.pictures.style import save
from desk.record import spectrogram, traces
from desk.store import queries
from desk.store.store import Store

if TYPE_CHECKING:
    from matplotlib.figure import Figure


KEPT_S = 30 * 86_400.0
"""A picture is drawn again after this time; the links in messages are older by then."""


def picture_of(store: Store, records: Records, folder: Path, uid: str) -> Path | None:
    """A small WebP of an event, drawn once a revision; None while its record is not here.

    Raises:
        OSError: the folder cannot be written.
        DataError: the record cannot be read.
    """
    with store.reading() as connection:
        found = queries.event(connection, uid)
    if found is None or not records.path(uid).is_file():
        return None
    path = folder / f"{uid}-{found[0].revision}.webp"
    if path.is_file():
        return path
    drawn = drawing_of(store, records, uid, small=True)
    if drawn is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    save(drawn, path)
    for other in folder.glob("*.webp"):
        if other != path and time.time() - other.stat().st_mtime > KEPT_S:
            other.unlink(missing_ok=True)
    return path


def drawing_of(store: Store, records: Records, uid: str, *, small: bool) -> Figure | None:
    """An event drawn; None where there is none of that name, or its record is not here.

    Raises:
        DataError: the record cannot be read.
    """
    with store.reading() as connection:
        found = queries.event(connection, uid)
        if found is None or not records.path(uid).is_file():
            return None
        row = found[0]
        grown = queries.verdicts(connection, row.key)
    share = "" if row.probability is None else f" {100 * row.probability:.0f} %"
    onset = format_ns(row.onset_ns)
    told = Told(
        f"{row.name}{share}  {'.'.join(row.sensor.split('.')[:2])}  {onset[:10]} {onset[11:19]}",
        row.name,
        row.duration_s,
        [(v.window_s, v.shares) for v in grown if v.window_s is not None and v.shares is not None],
        exercise=row.exercise,
    )
    shown = traces(records.path(uid), row.sensor, row.onset_ns)
    return draw(shown, spectrogram(shown[0]), told, small=small)
