"""Studies of a lab, each left as JSON in the work folder, from where a bundle takes it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from pydantic import JsonValue

from agent.atomic import ANYONE, replace_file, replacing
from agent.errors import UsageError
from agent.types import LABELS
from quantize.data.augment import calibration_windows
from quantize.data.records import FULL_S
from quantize.data.views import VIEWS
from quantize.quantise.int8 import Int8Files, layer_errors
from quantize.study.by_region import study
from quantize.study.compare import DRAWS, compare, crossfitted, drawn, event_draws, gained
from quantize.study.evaluate import FIGURES, Array, OutOfFold, Truth, fit_confidence, predict_views, softmax
from quantize.study.probe import probe, recording
from quantize.study.report import calibrated, measure, triple
from quantize.train.lab import Lab
from quantize.train.methods import folder, method

STUDIES = ("regions", "comparison", "probe", "learning_curve", "seeds", "layers")
"""Results that stages leave as JSON in the work folder, and that the bundle's manifest and card carry."""
CURVED = ("stft", "alone", "prime")
"""Methods that take the labels of their records and nothing else."""
FEW_EVENTS = (10, 30, 100)
REPEATED = ("distilled", "alone")


def compare_methods(lab: Lab, names: Sequence[str], only: Sequence[int]) -> dict[str, JsonValue]:
    """Cross-validate the methods named and leave what there is to say of them in ``work/comparison.json``."""
    answered = {name: cross_validate(lab, name, only) for name in names}
    teachers = lab.config.distil.teachers
    if set(teachers) <= set(names):
        answered["teachers"] = together([answered[name] for name in teachers])
    found = compare(answered, [record.row for record in lab.records], lab.parts // 2)
    leave_study(lab.work, "comparison", found)
    return found


def evaluate_regions(lab: Lab, names: Sequence[str], only: Sequence[str] = ()) -> dict[str, JsonValue]:
    """The methods named with regions left out one at a time (all that are large enough, or those in ``only``), and
    what there is to say of them, left in ``work/regions.json`` once every region is in it.

    Raises:
        UsageError: there is no such region, or none is large enough.
    """
    places = lab.left_out
    unknown = [name for name in only if name not in places]
    if unknown or not places:
        known = f"choose among {', '.join(places)}" if places else "a region needs 15 records of one class"
        raise UsageError(f"the region {unknown[0]!r} cannot be left out" if unknown else "no region is left out", known)
    numbers = [places.index(name) for name in only] or range(len(places))
    answered = {name: cross_validate(lab, name, numbers) for name in names}
    found = study(answered, [record.row for record in lab.records], lab.parts // 2, places)
    if not only:
        leave_study(lab.work, "regions", found)
    return found


def curve(lab: Lab, names: Sequence[str], only: Sequence[int]) -> dict[str, JsonValue]:
    """The learning curve: how much a method finds when it knows but a few landslides. The paper's point is that few do.

    Figures in the neutral view, whole window, on the folds ``only``, by method and number of landslide events; all
    other classes keep all their records. A network answers records of the same folds whatever it learned from. Left in
    ``work/learning_curve.json``.

    Raises:
        UsageError: a method learns from every landslide, however few are asked for.
    """
    others = [name for name in names if name not in CURVED]
    if others:
        raise UsageError(
            f"{others[0]} does not learn from labels alone, so that it has no learning curve",
            f"choose among {', '.join(CURVED)}",
        )
    most = min(
        len({record.row.event for record in lab.training(fold) if record.row.label == "landslide"}) for fold in only
    )
    points: list[JsonValue] = []
    for name in names:
        for count in (*(few for few in FEW_EVENTS if few < most), None):
            out = cross_validate(replace(lab, landslides=count), name, only)
            rows = [lab.records[int(i)].row for i in out.index]
            confidence = fit_confidence(out.logits, Truth.of(rows))
            measured = measure(calibrated(out.logits, confidence), rows)
            figures = next(m for m in measured if m.view == "neutral" and m.seconds == FULL_S)
            points.append(
                {
                    "method": name,
                    "events": most if count is None else count,
                    "record_balanced_accuracy": triple(figures.records.balanced),
                    "event_balanced_accuracy": triple(figures.events.balanced),
                    "landslide_recall": round(figures.records.recall[LABELS.index("landslide")], 4),
                }
            )
    found: dict[str, JsonValue] = {"folds": len(only), "points": points}
    leave_study(lab.work, "learning_curve", found)
    return found


def repeat_seeds(lab: Lab, count: int, only: Sequence[int]) -> dict[str, JsonValue]:
    """How much of a difference is luck: the student again from other random numbers, distilled and alone.

    Both students with ``count`` seeds on the folds ``only``, in the neutral view, whole window: ``FIGURES`` of every
    run, and how much better the distilled ones are in the mean, by a paired bootstrap over events. An interval over
    events does not hold what the seed of a training moves. The teachers are the same in every run. Left in
    ``work/seeds.json``.
    """
    figures: dict[str, list[JsonValue]] = {name: [] for name in REPEATED}
    gains = []
    for seed in range(count):
        answered = [cross_validate(replace(lab, seed=seed), name, only) for name in REPEATED]
        index = answered[0].index
        truth, folds = Truth.of([lab.records[int(i)].row for i in index]), (lab.parts // 2)[index]
        weights = event_draws(truth, DRAWS)
        drawings = [
            drawn(crossfitted(out.logits, truth, folds)["neutral"].probabilities[:, -1], truth, weights)
            for out in answered
        ]
        for name, values in zip(REPEATED, drawings, strict=True):
            figures[name].append([round(float(value), 4) for value in values[0]])
        gains.append(drawings[0] - drawings[1])
    gain = gained(np.mean(gains, axis=0))
    found: dict[str, JsonValue] = {
        "folds": len(only),
        "figures": list(FIGURES),
        "methods": {**figures},
        "difference": {name: triple(figure) for name, figure in gain.items()},
    }
    leave_study(lab.work, "seeds", found)
    return found


def study_layers(lab: Lab, files: Int8Files) -> None:
    """What INT8 does to each layer, on windows that neither the ranges nor the choice of method came from; left in
    ``work/layers.json``."""
    unseen = calibration_windows(lab.training(None), lab.config.preparation, 32, seed=3)
    leave_study(lab.work, "layers", layer_errors(files, unseen))


def probe_recording(lab: Lab) -> dict[str, JsonValue]:
    """What the recording alone gives away; left in ``work/probe.json``."""
    rows = [record.row for record in lab.records]
    found = probe(rows, recording(rows), lab.parts // 2)
    leave_study(lab.work, "probe", found)
    return found


def leave_study(work: Path, name: str, values: dict[str, JsonValue]) -> None:
    """Write one of ``STUDIES`` into the work folder; atomic."""
    work.mkdir(parents=True, exist_ok=True)
    replace_file(work / f"{name}.json", json.dumps(values).encode() + b"\n", mode=ANYONE)


def studies(work: Path) -> dict[str, JsonValue]:
    """The studies that stages have left in the work folder, by name."""
    paths = {name: work / f"{name}.json" for name in STUDIES}
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items() if path.is_file()}


def cross_validate(lab: Lab, name: str, only: Sequence[int] | None = None) -> OutOfFold:
    """Train the method ``name`` once a fold (of all, or of ``only``) and collect its answers on the records by which it
    is judged. Resumable."""
    only = range(lab.count) if only is None else only
    answered = [answers(lab, name, fold) for fold in only]
    judged = [lab.judged(fold) for fold in only]
    places = [np.isin(lab.held_out(fold), index) for fold, index in zip(only, judged, strict=True)]
    return OutOfFold(
        np.concatenate(judged),
        {
            view: np.concatenate([part[view][place] for part, place in zip(answered, places, strict=True)])
            for view in VIEWS
        },
    )


def together(parts: Sequence[OutOfFold]) -> OutOfFold:
    """The mean of several methods' probabilities, as logits: what a student of all of them could reach.

    The methods have answered the same records in the same order.
    """
    index, views = parts[0].index, parts[0].logits
    return OutOfFold(
        index, {view: np.log(np.mean([softmax(part.logits[view]) for part in parts], axis=0)) for view in views}
    )


def answers(lab: Lab, name: str, fold: int | None) -> dict[str, Array]:
    """Logits ``[records, lengths, 5]`` by view of one fold's network on the records left out of it."""
    path = folder(lab, name, fold) / "answers.npz"
    if not path.is_file():
        logits = method(name)(lab, fold)
        held = [lab.records[int(i)] for i in lab.held_out(fold)]
        made = predict_views(logits, held, lab.config.preparation)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            np.savez(file, allow_pickle=False, **made)
    with np.load(path) as saved:
        return {str(view): saved[view] for view in VIEWS}
