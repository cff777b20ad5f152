"""The part of the model card that the training side knows: what it is for, what it learned from, how well it does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from agent.types import LABELS
from quantize.data.records import Row
from quantize.study import tables
from quantize.study.confidence import Confidence
from quantize.study.report import Measured, markdown
from quantize.train.lab import FOLDS

_USE = """## Intended use

First verdicts on windows that a STA/LTA trigger cut at a station: earthquake, blast, landslide (mass movement of any
kind) or noise. It advises; a decision to warn people needs confirmation over time and stations.

**Collapse is not learned.** The training data hold one such record. The output exists for a later model;
its threshold is the highest, and figures below leave the class out.

## Limits

- Most landslides here are large and tens of kilometres away; local small rockfalls are three records. Expect
  rockfalls on the instrumented slope itself to be missed or called earthquakes until the model has seen some.
- Blasts are 28 events, 24 of them from one region.
- Earthquakes and blasts of the largest source were published as events that an earlier classifier got wrong, so the
  figures are lower than on a random sample; a few labels may be wrong.
- Classes are confounded with the recording (components, sampling rate, length, filling). Training removes these
  traces by augmentation, and the neutral view measures without them. The figures as recorded are given beside it
  and prove little.
- Sampling rates below 40 Hz were never seen. Noise of a kind absent here will be called something.
- Verdicts after 3 s rest on few seconds of signal: see the table."""


def card(
    validation: Sequence[Measured],
    crossed: Sequence[Measured],
    rows: Sequence[Row],
    confidence: Confidence,
    studies: Mapping[str, Any],
    *,
    folds: int,
    synthetic: float,
    overlapping: int,
) -> str:
    """Markdown: use, limits, data, figures, confidence; ``studies`` by name, as they stand in the manifest;
    ``synthetic`` the generator's share of what was learned from; ``overlapping`` records of the validation split are
    not judged."""
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
            f"Learned from as well: synthetic windows of the physics-based generator, {100 * synthetic:.0f} % of all,",
            "with its labels (nearly all that there is of collapse), and records without a class.",
            "",
            "Sources: USGS Exotic Seismic Events Catalog with waveforms of open networks, Pacific Northwest",
            "catalogue events, northern California (NCEDC), eastern US, Oklahoma wavefields array, Luhu slope",
            "array, Dead Sea Transform, Séchilienne (RESIF/OMIV), Piton de la Fournaise (RESIF). Licences of",
            "the sources: MIT, Apache-2.0, EUPL-1.1, GPL-3.0 (nine records); none of the records is part of",
            "this bundle.",
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
            "Temperatures and thresholds were fitted on these answers, so the calibration error is optimistic here.",
            "Records of the validation split are among them.",
            "",
            markdown(crossed),
            *tables.studies(studies),
            "## Confidence",
            "",
            f"Temperature by window length: {temperatures}.",
            f"Below these probabilities the verdict abstains: {limits}.",
        ]
    )


def _counts(rows: Sequence[Row], split: str) -> str:
    cells = []
    for label in LABELS:
        chosen = [row for row in rows if row.split == split and row.label == label]
        cells.append(f"{len(chosen)} / {len({row.event for row in chosen})}")
    return f"| {split} | " + " | ".join(cells) + " |"
