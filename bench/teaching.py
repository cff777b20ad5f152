"""What a few labels of a new site bring: `talus teach` in regions that the network never learned from.

For every region left out, its student answers the region's events in the neutral view, whole window, after its last
layer was taught k events a class of that region (mean of several draws), by the same fit that `talus teach` uses.

    python -m quantize evaluate --by region --methods mixed --work WORK --config CONFIG     first: trains the students
    python bench/teaching.py --work WORK --config CONFIG --data ../shared/data
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agent.inference.bundle import CPU_MODEL, FP16_MODEL, TRT_MODEL, Calibration, TemperatureAt, softmax
from agent.inference.selftest import SCALE
from agent.types import LABELS
from quantize.config import read_config
from quantize.data.augment import calibration_windows
from quantize.data.records import FULL_S, LENGTHS_S
from quantize.data.views import VIEWS, view_windows
from quantize.train.methods import open_lab
from quantize.quantise.export import export_int8
from quantize.quantise.golden import golden_windows
from quantize.quantise.qdq import half
from quantize.teach import learn as teach
from quantize.teach import lesson
from quantize.teach.head import Features, Head
from quantize.teach.refit import Scale
from quantize.teach.replay import Replay
from quantize.teach.site import site_windows
from quantize.train.lab import Lab
from quantize.train.methods import mixed_student

SIZES = (0, 5, 10, 20)
DRAWS = 3
TEMPERATURE = 0.7
"""Of the shipped network."""
KEPT = 2
"""Events of a class that are left to be judged, at least."""
CALIBRATION = 128
"""Windows for the INT8 ranges of a region's student."""


@dataclass(frozen=True)
class Region:
    """One region left out: its site windows to learn from, its neutral windows to be judged by, and the bank."""

    name: str
    site: teach.Examples
    asked: teach.Examples
    bank: Replay
    differences: np.ndarray
    golden: np.ndarray
    """Features of the golden windows in each of the three files, ``[3, n, features]``."""


def files_of(lab: Lab, fold: int) -> dict[str, bytes]:
    """The files of a bundle of the region's student, as the station would have them."""
    training, preparation = lab.training(fold), lab.config.preparation
    ranged = calibration_windows(training, preparation, CALIBRATION, seed=1)
    tried = calibration_windows(training, preparation, CALIBRATION // 4, seed=2)
    made = export_int8(mixed_student(lab, fold), ranged, tried)
    networks = {CPU_MODEL: made.cpu, TRT_MODEL: made.trt, FP16_MODEL: half(made.fp32)}
    return {name: network.SerializeToString() for name, network in networks.items()}


def region(lab: Lab, fold: int, cache: Path) -> Region:
    """Everything that is measured of one region, computed once."""
    name = lab.left_out[fold]
    path = cache / f"{name}.npz"
    if not path.is_file():
        networks = {name: Features(raw) for name, raw in files_of(lab, fold).items()}
        run, head = networks[CPU_MODEL].of, networks[CPU_MODEL].head
        inside = [lab.records[int(i)] for i in lab.judged(fold) if lab.records[int(i)].row.label != "collapse"]
        others = [r for r in lab.training(fold) if r.row.label != "collapse"]
        preparation = lab.config.preparation
        numbers = {event: n for n, event in enumerate(sorted({r.row.event for r in lab.records}))}
        rng = np.random.default_rng(0)
        site = []
        for start in range(0, len(inside), 16):
            made = site_windows([r.row for r in inside[start : start + 16]], preparation)
            site.append((run(made.data), made.record + start, made.seconds, made.judged))
        columns = [np.concatenate(column) for column in zip(*site, strict=True)]
        asked = run(np.concatenate([view_windows("neutral", r, [FULL_S], preparation) for r in inside]))
        bank = []
        for r in others:
            length = FULL_S if rng.random() < 0.5 else LENGTHS_S[int(rng.integers(6))]
            bank.append((r, length, run(view_windows(VIEWS[int(rng.integers(2))], r, [length], preparation))[0]))
        few = np.concatenate([view_windows("recorded", r, LENGTHS_S, preparation) for r in inside[:: len(inside) // 8]])
        exact = run(few)
        synthetic = (golden_windows()[0] / SCALE).astype(np.float32)
        golden = np.stack([networks[name].of(synthetic) for name in (FP16_MODEL, CPU_MODEL, TRT_MODEL)])
        differences = [networks[name].of(few) - exact for name in (TRT_MODEL, FP16_MODEL)]
        differences += [golden[2] - golden[1], golden[0] - golden[1]]
        cache.mkdir(parents=True, exist_ok=True)
        np.savez(
            path,
            features=columns[0],
            record=columns[1],
            seconds=columns[2],
            label=np.array([r.row.index for r in inside]),
            event=np.array([numbers[r.row.event] for r in inside]),
            asked=asked,
            bank=np.stack([b[2] for b in bank]),
            bank_label=np.array([b[0].row.index for b in bank]),
            bank_seconds=np.array([b[1] for b in bank]),
            bank_event=np.array([numbers[b[0].row.event] for b in bank]),
            weight=head.weight,
            bias=head.bias,
            differences=np.concatenate(differences),
            golden=golden,
        )
    with np.load(path) as a:
        record, label, event = a["record"], a["label"], a["event"]
        none = np.zeros(len(record), dtype=bool)
        site_examples = teach.Examples(a["features"], label[record], event[record], record, a["seconds"], none)
        every, whole = np.arange(len(label)), np.full(len(label), FULL_S)
        asked_examples = teach.Examples(a["asked"], label, event, every, whole, every >= 0)
        head = Head(a["weight"].astype(np.float64), a["bias"].astype(np.float64))
        # Of the other regions' events a fifth is never fitted to: by them it is judged what teaching costs.
        learned = a["bank_event"] % 5 != 0
        where = np.zeros(len(learned), dtype=np.int64)
        bank_examples = Replay(a["bank"], a["bank_label"], a["bank_seconds"], a["bank_event"], where, learned, head)
        differences = a["differences"].copy()
        differences[-2 * len(a["golden"][0]) :] *= lesson.GOLDEN
        return Region(name, site_examples, asked_examples, bank_examples, differences, a["golden"])


def bearable(learned: teach.Examples, one: Region, scale: Scale, calibration: Calibration) -> Head:
    """The layer with the largest share of the site at which other regions lose a point at most, as in a lesson."""
    share, _ = teach._bearable(learned, one.bank, scale, calibration)
    return teach.taught(learned, one.bank, scale, share=share)


def measured(one: Region, size: int, draws: int) -> dict[str, float]:
    """Figures of a region after ``size`` events of each of its classes were learned; mean of ``draws``."""
    calibration = Calibration([TemperatureAt(seconds=FULL_S, temperature=1.0)])
    scales = [Scale.of(one.bank.features, one.differences, rounding) for rounding in teach.ROUNDING]
    by_class = {int(c): np.unique(one.asked.event[one.asked.label == c]) for c in np.unique(one.asked.label)}
    found: dict[str, list[float]] = {}
    for draw in range(draws if size else 1):
        rng = np.random.default_rng((draw, size))
        chosen = np.concatenate(
            [rng.choice(e, min(size, max(0, len(e) - KEPT)), replace=False) for e in by_class.values()]
        ).astype(int)
        head = one.bank.head
        if size and len(chosen):
            learned = one.site.take(np.isin(one.site.event, chosen))
            for scale in scales:
                head = bearable(learned, one, scale, calibration)
                if agree(one.golden, head):
                    break
        rest = one.asked.take(~np.isin(one.asked.event, chosen))
        for name, value in figures(rest, head, calibration).items():
            found.setdefault(name, []).append(value)
        aside = one.bank.take(~one.bank.learned)
        found.setdefault("others", []).append(teach._right_by_class(aside, head, calibration))
    return {name: float(np.nanmean(values)) for name, values in found.items()}


def agree(golden: np.ndarray, head: Head) -> bool:
    """Whether the three files would give the same answers to the golden windows, as a bundle must."""
    half_precision, cpu, trt = (softmax(head.logits(features) / TEMPERATURE) for features in golden)
    return all(
        np.abs(a - b).mean() <= 0.01 and (a.argmax(1) == b.argmax(1)).mean() >= 0.97
        for a, b in ((half_precision, cpu), (cpu, trt))
    )


def figures(asked: teach.Examples, head: Head, calibration: Calibration) -> dict[str, float]:
    """Shares of events, each the mean of its records' probabilities."""
    p = teach._probabilities(head.logits(asked.features), asked.seconds, calibration)
    q, first = teach._mean_of(p, asked.event * 8 + asked.label)
    label, said = asked.label[first], q.argmax(axis=1)
    quake, blast, slide = (LABELS.index(x) for x in ("earthquake", "blast", "landslide"))
    made = {"balanced": float(np.mean([(said[label == c] == c).mean() for c in np.unique(label)]))}
    if (label == quake).any() and (label == blast).any():
        likelier = q[:, quake] > q[:, blast]
        made["quake_blast"] = float((likelier[label == quake].mean() + (~likelier[label == blast]).mean()) / 2)
    if (label == slide).any():
        made["landslides"] = float((said[label == slide] == slide).mean())
    if (label == quake).any():
        made["quakes_as_landslide"] = float((said[label == quake] == slide).mean())
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name in ("data", "work", "config"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--region", nargs="+")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    lab = open_lab(options.data, options.work / "full", read_config(options.config), by="region")
    table = {}
    for fold, name in enumerate(lab.left_out):
        done = (options.work / "full" / "mixed" / f"without_{name}" / "average.pt").is_file()
        if not done or (options.region and name not in options.region):
            continue
        one = region(lab, fold, options.work / "full" / "teaching")
        table[name] = {size: measured(one, size, DRAWS) for size in SIZES}
        for size, row in table[name].items():
            said = ", ".join(f"{key} {100 * value:.1f}" for key, value in row.items())
            print(f"{name}, {size} events a class: {said}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
