"""The part of the model card that the training side knows: what it is for, what it learned from, how well it does."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from agent.types import LABELS
from quantize.data.records import Row, read_csv
from quantize.study import tables
from quantize.study.evaluate import Confidence
from quantize.study.report import Measured, markdown
from quantize.train.lab import FOLDS

_USE = """## Intended use

First verdicts on windows that a STA/LTA trigger cut at a station: earthquake, blast, landslide (mass movement of any
kind) or noise. It advises; a decision to warn people needs confirmation over time and stations.

**Collapse is not learned.** The training data hold one such record. The output exists for a later model;
its threshold is the highest, and figures below leave the class out.

## What it has never seen

- **Nobody has run this network on a slope** to warn of anything, not for a day. Every figure is of records.
- Rain, wind, running water, thunder, animals, machines at work: no record of the training is labelled so (the cause of
  five is unknown). Of traffic there are 52 passages of one kind, of people some field sites and a geyser; noise of
  another kind will be called something.
- Volumes of rockfalls are not known. The smallest by duration last from about 10 s (26 records of 8 events, a slope
  array in Taiwan) and from 21 s (3 records, Séchilienne slope); 49 are spindles of 60 to 400 s on one active dome. The
  other landslides are large, tens of kilometres away.
- Magnitudes are not in the table of the training records; the distances that are known stand below.
- Sampling rates below 40 Hz.

## Limits

- **A station's region is one that training never saw**: what that means stands under "regions left out". Blasts of a
  new region are hardly found, and their label is withheld unless the network is very sure.
- A third of the labelled earthquakes of the largest source may be blasts by their time of day; both were published as
  events that an earlier classifier got wrong.
- Classes are confounded with the recording (components, sampling rate, length, filling). Training removes these
  traces by augmentation, and the neutral view measures without them. The figures as recorded are given beside it
  and prove little.
- Verdicts after 3 s rest on few seconds of signal: see the table."""

_COLUMN = "path_ep_distance_km"


def read_distances(data: Path) -> dict[str, tuple[int, float, float, float]]:
    """Of each label how many records have a distance in ``data/metadata.csv``, and the least, median and largest in
    km; empty where the table has no such column."""
    found: dict[str, list[float]] = defaultdict(list)
    for _, fields in read_csv(data / "metadata.csv", ()):
        if fields.get(_COLUMN) and fields["source_type"] != "noise":
            found[fields["source_type"]].append(float(fields[_COLUMN]))
    return {
        label: (len(found[label]), min(found[label]), median(found[label]), max(found[label]))
        for label in LABELS
        if label in found
    }


def card(
    validation: Sequence[Measured],
    crossed: Sequence[Measured],
    rows: Sequence[Row],
    confidence: Confidence,
    studies: Mapping[str, Any],
    *,
    distances: Mapping[str, tuple[int, float, float, float]],
    regions: Sequence[str],
    folds: int,
    synthetic: float,
    overlapping: int,
) -> str:
    """Markdown: use, limits, data, figures, confidence; ``studies`` by name, as they stand in the manifest;
    ``synthetic`` the generator's share of what was learned from; ``overlapping`` records of the validation split are
    not judged; ``distances`` from ``read_distances``; ``regions``: those left out for the confidence, which comes from
    the folds without any."""
    temperatures = ", ".join(f"{seconds:g} s {value:.2f}" for seconds, value in confidence.temperatures)
    limits = ", ".join(f"{label} {confidence.thresholds[label]:.2f}" for label in LABELS)
    return "\n".join(
        [
            _USE,
            "",
            "## Data",
            "",
            "Real records, split by event; every figure below rests on them alone. Records / events:",
            "",
            "| split | " + " | ".join(LABELS) + " |",
            "| --- |" + " --- |" * len(LABELS),
            *(_counts(rows, split) for split in ("train", "val")),
            "",
            *_distances(distances),
            f"Learned from as well: synthetic windows of the physics-based generator, {100 * synthetic:.0f} % of all,",
            "with its labels (nearly all that there is of collapse), and records without a class.",
            "",
            "Sources: USGS Exotic Seismic Events Catalog with waveforms of open networks, Pacific Northwest",
            "catalogue events, northern California (NCEDC), eastern US, Oklahoma wavefields array, geothermal fields",
            "and volcanoes of Nevada, Iceland, Bolivia and Réunion, an active dome of Java, mine blasts and",
            "earthquakes of northern Europe (band-passed by their makers; other records are, at random), a slope",
            "array on Luhu (Taiwan), Séchilienne (RESIF/OMIV), Dead Sea Transform, noise of a road, of field sites",
            "and of a geyser. Licences of the sources: MIT, Apache-2.0, EUPL-1.1, LGPL, GPL-3.0, for some none is",
            "stated; none of the records is part of this bundle.",
            "",
            "## Figures",
            "",
            "Per cent, with 95 % intervals from drawing events. Per event: mean of the records' probabilities.",
            "ECE: expected calibration error per record.",
            "",
            "### These weights, INT8, on the validation split",
            "",
            f"Without {overlapping} records, nearly all noise, that share time with what was learned from.",
            "",
            markdown(validation),
            f"### The recipe, cross-validation by event over all records, {folds} of {FOLDS} folds, FP32",
            "",
            "Records of the validation split are among them."
            if regions
            else "Temperatures and thresholds were fitted on these answers: the calibration error is optimistic here.",
            "",
            markdown(crossed),
            *tables.studies(studies),
            "## Confidence",
            "",
            f"Fitted on the answers of networks that each left out a region: {', '.join(regions)}."
            if regions
            else "Fitted on the answers of the folds by event.",
            f"Temperature by window length: {temperatures}.",
            f"Below these probabilities the verdict abstains: {limits}.",
        ]
    )


def _distances(distances: Mapping[str, tuple[int, float, float, float]]) -> list[str]:
    """What is known of how far events were from stations."""
    if not distances:
        return []
    said = (
        f"{label} {low:.1f} to {high:.0f}, half within {middle:.0f} ({count} records)"
        for label, (count, low, middle, high) in distances.items()
    )
    return [f"Distances to the station, in km, where the table has them: {'; '.join(said)}.", ""]


def _counts(rows: Sequence[Row], split: str) -> str:
    cells = []
    for label in LABELS:
        chosen = [row for row in rows if row.split == split and row.label == label]
        cells.append(f"{len(chosen)} / {len({row.event for row in chosen})}")
    return f"| {split} | " + " | ".join(cells) + " |"
