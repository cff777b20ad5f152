"""``talus teach`` from folders to a bundle."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agent.alert.evidence import encode
from agent.dsp.window import Preparation
from agent.errors import BundleError, DataError, SourceError, UsageError
from agent.host.disk import make_new_folder
from agent.inference.bundle import CPU_MODEL, FP16_MODEL, TRT_MODEL, Bundle, Calibration, open_bundle
from agent.inference.selftest import read_golden
from agent.sources.records import read_records
from agent.types import COMPONENTS, LABELS, NS, Segment, StationId, StreamId, format_ns
from quantize.data.records import Row
from quantize.quantise.golden import VARIOUS
from quantize.quantise.infer import ExportError
from quantize.teach.head import Features, Head
from quantize.teach.learn import Examples, learn, require_enough, text
from quantize.teach.site import TABLE, SiteWindows, read_site, site_windows, together
from quantize.teach.taught import digest, patched, require_agreement, require_bank, taught_of, write_taught

_CHUNK = 16
_SOME, _COMPARED = 24, 120
"""Records and windows on which the files of a bundle are compared."""
GOLDEN = 6.0
"""How much more a golden window counts there: every backend is checked by them."""
OFFERED = 20
"""Random windows that are offered for labelling."""
_WINDOW_S = 120


def teach(
    bundle: Path, folder: Path | None, reviews: Path | None, target: Path, site: str | None
) -> tuple[str, tuple[str, ...]]:
    """The report, and the reasons for which no bundle was written; empty where ``target`` is one now.

    Raises:
        DataError: a table or a record cannot be read, or there are too few labels.
        BundleError: the bundle cannot be taught, or it was taught events that these labels do not hold.
        UsageError: ``target`` holds something else than what the site was taught before.
    """
    parent = open_bundle(bundle)
    bank, earlier = require_bank(parent), taught_of(parent)
    labelled = read_site(folder) if folder is not None else []
    rows = together(labelled, read_site(reviews, reviewed=True)) if reviews is not None else labelled
    named = site or (earlier.site if earlier else (folder or reviews or target).resolve().name)
    _require_replaceable(target, named)
    events = tuple(sorted({row.event for row in rows}))
    if earlier is not None:
        missing = set(earlier.learned) - {digest(event) for event in events}
        if missing:
            raise BundleError(
                f"{parent.origin} was taught {len(earlier.learned)} events of {earlier.site}; {len(missing)} of them "
                "are not among these labels",
                "teaching starts anew from all labels: give them all, or teach from the shipped bundle",
            )
    _refuse_disagreement(rows)
    require_enough({label: len({row.event for row in rows if row.label == label}) for label in {r.label for r in rows}})
    network = Features(parent.file(CPU_MODEL))
    learned = examples(rows, network, parent.preparation)
    differences = _differences(parent, network, site_windows(rows[:: max(1, len(rows) // _SOME)], parent.preparation))

    def agrees(head: Head) -> bool:
        try:
            require_agreement(parent, patched(parent, head), Calibration(parent.manifest.temperature))
        except ExportError:
            return False
        return True

    lesson = learn(learned, bank, parent.manifest.temperature, differences, agrees=agrees)
    report = text(lesson, named)
    if lesson.refused:
        return f"{report}\nNo bundle is written.", lesson.refused
    manifest = write_taught(target, parent, lesson, named, events)
    return f"{report}\n{target}: {manifest.name} {manifest.version}, parent {parent.manifest.version}", ()


def _require_replaceable(target: Path, site: str) -> None:
    """
    Raises:
        UsageError: the folder is there, is not empty, and holds no bundle that was taught this site.
    """
    if not target.exists() or (target.is_dir() and next(target.iterdir(), None) is None):
        return
    try:
        taught = taught_of(open_bundle(target))
    except BundleError:
        taught = None
    if taught is None or taught.site != site:
        held = "no taught bundle" if taught is None else f"the bundle of {taught.site}"
        raise UsageError(f"{target} holds {held}: it is not replaced", "give --out a new folder")


def _differences(parent: Bundle, network: Features, windows: SiteWindows) -> NDArray[np.float64]:
    """By how much the features of some windows of the site, and of the golden ones, differ between the files of a
    bundle, ``[m, features]``; the golden ones times ``GOLDEN``."""
    network_of = {name: Features(parent.file(name)) for name in (TRT_MODEL, FP16_MODEL) if name in parent.files}
    rows = [np.zeros((1, network.head.weight.shape[1]))]
    golden = np.stack([window.data for window in read_golden(parent).windows[:VARIOUS]])
    some = windows.data[:: max(1, len(windows.data) // _COMPARED)]
    for asked, weight in ((some, 1.0), (golden, GOLDEN)):
        exact = network.of(asked).astype(np.float64)
        rows += [weight * (other.of(asked) - exact) for other in network_of.values()]
    return np.concatenate(rows)


def examples(rows: Sequence[Row], network: Features, preparation: Preparation) -> Examples:
    """Features of all windows of the records.

    Raises:
        DataError: a record cannot be read.
    """
    numbers = {event: number for number, event in enumerate(sorted({row.event for row in rows}))}
    parts = []
    for start in range(0, len(rows), _CHUNK):  # so that windows of many records never are in memory together
        some = rows[start : start + _CHUNK]
        made = site_windows(some, preparation)
        parts.append((network.of(made.data), made.record + start, made.seconds, made.judged))
    features, record, seconds, judged = (np.concatenate(column) for column in zip(*parts, strict=True))
    label = np.array([LABELS.index(row.label) for row in rows])[record]
    event = np.array([numbers[row.event] for row in rows])[record]
    return Examples(features, label, event, record, seconds, judged)


def _refuse_disagreement(rows: Sequence[Row]) -> None:
    """An event is one thing; the noise before it has an event of its own.

    Raises:
        DataError: two records of an event have different labels.
    """
    said: dict[str, str] = {}
    for row in rows:
        if said.setdefault(row.event, row.label) != row.label:
            raise DataError(
                f"event {row.event!r} is labelled {said[row.event]} and {row.label}",
                "give the noise of an event's record a source_id of its own, or correct the label",
            )


def offer(files: Sequence[Path], target: Path) -> str:
    """Write ``target/metadata.csv`` and miniSEED cuts of random windows of continuous records, to be labelled: what
    never sets off a trigger is never labelled otherwise, and such noise halves the false landslides.

    Raises:
        UsageError: the folder is not empty, or cannot be written.
        DataError: a file cannot be read, or none holds two minutes without a gap.
    """
    make_new_folder(target)
    sensors: dict[StationId, dict[int, list[Segment]]] = {}
    for path in files:
        try:
            for station, found in read_records(path):
                for row, segments in found.items():
                    sensors.setdefault(station, {}).setdefault(row, []).extend(segments)
        except SourceError as error:
            raise DataError(error.message, error.hint) from error
    stations = sorted(sensors)
    rng, rows = np.random.default_rng(0), []
    for number in range(OFFERED):
        station = stations[number % len(stations)]
        long = [part for parts in sensors[station].values() for part in parts if _spare_ns(part) > 0]
        if not long:
            continue
        spare = np.array([_spare_ns(part) for part in long])
        chosen = long[int(rng.choice(len(long), p=spare / spare.sum()))]
        start_ns = chosen.start_ns + int(rng.uniform(0, _spare_ns(chosen)))
        name = f"offered-{number:02d}.{station.network}.{station.station}.mseed"
        (target / name).write_bytes(encode(_cut(station, sensors[station], start_ns)))
        event = f"{station.network}.{station.station}-{format_ns(start_ns)}"
        rows.append({"trace_name": name, "source_id": event, "source_type": "noise"})
        rows[-1]["trace_onset_time"] = format_ns(start_ns + _WINDOW_S * NS // 2)
    if not rows:
        raise DataError("no file holds two minutes without a gap", "give longer records")
    with (target / TABLE).open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return (
        f"{target / TABLE}: {len(rows)} random windows, all called noise. Look at each, correct source_type where one "
        "is no noise, and add the lines to your labels"
    )


def _spare_ns(segment: Segment) -> int:
    """How much longer than a window it is."""
    return segment.end_ns - segment.start_ns - _WINDOW_S * NS


def _cut(station: StationId, rows: Mapping[int, Sequence[Segment]], start_ns: int) -> dict[StreamId, list[Segment]]:
    """The window from ``start_ns`` on of every component."""
    found: dict[StreamId, list[Segment]] = {}
    for row, segments in rows.items():
        for segment in segments:
            step_ns = NS / segment.rate_hz
            first = max(0, math.ceil((start_ns - segment.start_ns) / step_ns))
            last = math.ceil((start_ns + _WINDOW_S * NS - segment.start_ns) / step_ns)
            samples = segment.samples[first : max(first, last)]
            if len(samples):
                part = Segment(segment.start_ns + round(first * step_ns), segment.rate_hz, samples)
                found.setdefault(StreamId(station, COMPONENTS[row]), []).append(part)
    return found
