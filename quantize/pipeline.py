"""From the data folder to the bundle: stages that leave their result in the work folder and are not repeated."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

import agent
from quantize import infer, report
from quantize.augment import calibration_windows
from quantize.bundle import BundleSpec, write_bundle
from quantize.card import card
from quantize.confidence import Confidence, fit_confidence
from quantize.crossval import FOLDS, OutOfFold, cross_validate
from quantize.data import Record, load_records, read_table
from quantize.evaluate import Array, Truth, predict
from quantize.export import export_int8
from quantize.signals import LENGTHS_S
from quantize.student import load_student, parameter_count
from quantize.train import TrainConfig, train
from quantize.views import VIEWS

log = logging.getLogger("quantize.pipeline")

NAME = "talus-student"
CALIBRATION_WINDOWS = 512


@dataclass(frozen=True, slots=True, eq=False)
class Workshop:
    """The records, the configuration and the folder that a build works in."""

    records: Sequence[Record]
    config: TrainConfig
    work: Path
    ahead: bool = True
    calibration_windows: int = CALIBRATION_WINDOWS
    folds: int = FOLDS
    """How many of the folds of the cross-validation are run."""

    def split(self, name: str) -> list[Record]:
        return [record for record in self.records if record.row.split == name]


def open_workshop(data: Path, work: Path, config: TrainConfig, *, ahead: bool, reduced: bool = False) -> Workshop:
    """Read all records; ``reduced`` keeps about every eighth event of each label and source."""
    rows = read_table(data)
    if reduced:
        events = sorted({(row.split, row.label, row.dataset, row.event) for row in rows})
        kept = {event for place, (_, _, _, event) in enumerate(events) if place % 8 == 0}
        rows = [row for row in rows if row.event in kept]
    return Workshop(load_records(rows), config, work, ahead, 32 if reduced else CALIBRATION_WINDOWS)


def train_student(shop: Workshop) -> Path:
    """Stage 1: the network, on the training split. Returns its checkpoint."""
    return train(shop.split("train"), shop.config, shop.work / "student", ahead=shop.ahead)


def cross_validate_student(shop: Workshop) -> OutOfFold:
    """Stage 2: answers out of fold on every record, for the broad estimate and for the calibration of confidence."""
    return cross_validate(shop.records, shop.config, shop.work / "crossval", ahead=shop.ahead, only=range(shop.folds))


def build_bundle(shop: Workshop, target: Path) -> str:
    """Stage 3: INT8 files, temperatures, thresholds, figures, card. Writes the bundle and returns the text of its
    figures.

    The committed weights never saw the validation split; neither did the ranges. Temperatures and thresholds come from
    the folds' networks.
    """
    module = load_student(train_student(shop))
    folds = cross_validate_student(shop)
    confidence = _confidence(shop, folds)
    training, validation = shop.split("train"), shop.split("val")
    preparation = shop.config.preparation
    count = shop.calibration_windows
    files = export_int8(
        module,
        calibration_windows(training, preparation, count, seed=1),
        calibration_windows(training, preparation, max(16, count // 4), seed=2),
    )

    def int8(windows: NDArray[np.float32]) -> Array:
        return infer.logits(files.cpu, windows).astype(np.float64)

    answers: dict[str, Array] = {view: predict(int8, validation, view, LENGTHS_S, preparation) for view in VIEWS}
    val_rows = [record.row for record in validation]
    fold_rows = [shop.records[int(i)].row for i in folds.index]
    measured = report.measure(report.calibrated(answers, confidence), val_rows)
    crossed = report.measure(report.calibrated(folds.logits, confidence), fold_rows)
    write_bundle(
        target,
        files,
        BundleSpec(
            name=NAME,
            version=agent.__version__,
            preparation=preparation,
            temperature=dict(confidence.temperatures),
            thresholds=confidence.thresholds,
            training=_training(shop),
            metrics={"validation": report.numbers(measured), "cross_validation": report.numbers(crossed)},
            card=card(measured, crossed, [record.row for record in shop.records], confidence, folds=shop.folds),
        ),
    )
    log.info("%s written, %d parameters", target, parameter_count(module))
    return "\n\n".join(
        (
            report.text(measured, val_rows, "Committed weights, INT8, validation split"),
            report.text(
                crossed, fold_rows, f"Cross-validation by event, {shop.folds} of {FOLDS} folds, FP32, same recipe"
            ),
        )
    )


def _confidence(shop: Workshop, folds: OutOfFold) -> Confidence:
    return fit_confidence(folds.logits, Truth.of([shop.records[int(i)].row for i in folds.index]))


def _training(shop: Workshop) -> dict[str, JsonValue]:
    rows = [record.row for record in shop.split("train")]
    return {
        "records": len(rows),
        "events": len({row.event for row in rows}),
        "epochs": shop.config.epochs,
        "windows": shop.config.epochs * shop.config.windows_per_epoch,
        "seed": shop.config.seed,
        "not_learned": ["collapse"],
    }
