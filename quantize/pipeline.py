"""From the data folder to the bundle: stages that leave their result in the work folder and are not repeated."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import JsonValue

import agent
from agent.inference.bundle import open_bundle
from quantize.config import BuildConfig, DistilConfig, MixConfig
from quantize.quantise.bundle import BundleSpec, write_bundle
from quantize.quantise.verify import stated_tolerances
from quantize.study import report
from quantize.study.card import card, read_distances
from quantize.study.evaluate import Confidence, OutOfFold, Truth, fit_confidence, predict_views
from quantize.study.studies import cross_validate, studies, study_layers
from quantize.teach.replay_bank import add_replay_bank
from quantize.train.lab import FOLDS, Lab
from quantize.train.methods import int8_logits, int8_student, prime_teacher
from quantize.train.transfer import Recipe, save_teacher

log = logging.getLogger("quantize.pipeline")

NAME = "talus-student"
CALIBRATION_WINDOWS = 512


def transferring(config: BuildConfig, recipe: Recipe | None) -> BuildConfig:
    """``config`` for a student of PRIME-DP alone, transferred by ``recipe``."""
    return replace(
        config,
        built="distilled",
        distil=replace(config.distil, teachers=("prime",)),
        teacher=replace(config.teacher, recipe=recipe or config.teacher.recipe),
    )


def transfer(lab: Lab, target: Path, *, count: int, only: Sequence[int]) -> str:
    """Adapt PRIME-DP to the lab's labels, distil a student of it and write its bundle; returns the text of its figures.
    The teacher itself is left in ``work/teacher.pt``, for ``verify --teacher``.

    Without a checkpoint the network is pre-trained on the lab's own records.
    """
    teacher = prime_teacher(lab, None)
    start = "pre-trained here" if lab.checkpoint is None else hashlib.sha256(lab.checkpoint.read_bytes()).hexdigest()
    save_teacher(lab.work / "teacher.pt", teacher, {"start": start, "recipe": lab.config.teacher.recipe})
    # A network of PRIME-DP for each region would take days.
    return build_bundle(replace(lab, regions={}), target, count=count, only=only)


def compared(config: BuildConfig) -> tuple[str, ...]:
    """The methods whose folds belong to a build: what the bundle is built of, its INT8 file, and its teachers."""
    teachers = [name for name in config.distil.teachers if "@" not in name] if config.built == "distilled" else []
    return (*dict.fromkeys((*teachers, config.built)), "int8")


def build_bundle(
    lab: Lab, target: Path, *, count: int = CALIBRATION_WINDOWS, only: Sequence[int] = tuple(range(FOLDS))
) -> str:
    """INT8 files, temperatures, thresholds, figures, card of the student. Writes the bundle and returns the text of its
    figures.

    The committed weights never saw the validation split; neither did the ranges. Temperatures and thresholds come from
    the networks that each left out a region; from the folds' by event where no region is large enough.
    """
    built = lab.config.built
    folds = cross_validate(lab, built, only)
    away = replace(lab, by="region")
    regions = list(lab.config.confidence or away.left_out) if lab.regions else []
    numbers = [away.left_out.index(name) for name in regions]
    confidence = _confidence(lab, cross_validate(away, built, numbers) if regions else folds)
    validation, preparation = [lab.records[int(i)] for i in lab.judged(None)], lab.config.preparation
    files = int8_student(lab, None, count)
    study_layers(lab, files)
    answers = predict_views(int8_logits(files), validation, preparation)
    rows, val_rows = [record.row for record in lab.records], [record.row for record in validation]
    fold_rows = [lab.records[int(i)].row for i in folds.index]
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
            training=_training(lab),
            metrics={
                "validation": report.numbers(measured),
                "cross_validation": report.numbers(crossed),
                "tolerances": stated_tolerances(),
                **studies(lab.work),
            },
            card=card(
                measured,
                crossed,
                rows,
                confidence,
                studies(lab.work),
                distances=read_distances(lab.data),
                regions=regions,
                folds=len(only),
                synthetic=_recipe(lab).synthetic if lab.config.bank.synthetic else 0.0,
                overlapping=len(lab.held_out(None)) - len(validation),
            ),
        ),
    )
    add_replay_bank(target, open_bundle(target), lab.records, lab.regions, lab.config.bank.without)
    log.info("%s written", target)
    return "\n\n".join(
        (
            report.text(measured, val_rows, "Committed weights, INT8, validation split"),
            report.text(
                crossed, fold_rows, f"Cross-validation by event, {len(only)} of {FOLDS} folds, FP32, same recipe"
            ),
        )
    )


def _recipe(lab: Lab) -> MixConfig | DistilConfig:
    return lab.config.mixed if lab.config.built == "mixed" else lab.config.distil


def _confidence(lab: Lab, folds: OutOfFold) -> Confidence:
    return fit_confidence(folds.logits, Truth.of([lab.records[int(i)].row for i in folds.index]))


def _training(lab: Lab) -> dict[str, JsonValue]:
    rows = [record.row for record in lab.training(None)]
    return {
        "records": len(rows),
        "events": len({row.event for row in rows}),
        "unlabelled": len(lab.unlabelled),
        "method": lab.config.built,
        "windows": _recipe(lab).fit.windows,
        "teachers": list(lab.config.distil.teachers) if lab.config.built == "distilled" else [],
        "seed": _recipe(lab).fit.seed,
        "without": list(lab.config.bank.without),
        "not_learned": ["collapse"],
    }
