"""What training's parts are worth: a few labels of a new site, the generator, and attributes of the waveform.

    python -m quantize evaluate --by region --methods mixed --work WORK --config CONFIG     first: trains the students
    python bench/training.py labels --work WORK --config CONFIG --data ../shared/data
    OMP_NUM_THREADS=1 python bench/training.py generator [--data DIR] [--count 250] [--all]
    OMP_NUM_THREADS=1 python bench/training.py attributes [--data DIR] [--bundle BUNDLE]

``labels``: what a few labels bring, `talus teach` in regions that the network never learned from. For every region left
out, its student answers the region's events in the neutral view, whole window, after its last layer was taught k events
a class of that region (mean of several draws), by the same fit that `talus teach` uses.

``generator``: how far synthetic records are from real ones, features side by side, and what a classifier of one makes
of the other. Only records of the training split are looked at. Both are seen in the neutral view, so that neither the
way of recording nor the noise (the synthetic records' own comes from real noise) tells them apart.

``attributes``: whether attributes of the waveform beside the shipped network's answers help in regions that it never
learned from. A layer on its log-probabilities and the attributes is fitted to the other regions, drawn towards the
answers as they are (``refit``, the pull chosen by regions left out among those); beside it a *control*, the same on the
log-probabilities alone, and the attributes by themselves. All learn from the sources that the network never learned
from and from the split `val` of the others, less what shares time with what it learned from. Records of northern
Europe were band-passed by their makers, all classes alike, so attributes are those of 2-8 Hz for every record.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import signal
from scipy.stats import ks_2samp
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from support import choose, option, part

from agent.dsp.window import Preparation
from agent.inference import load
from agent.inference.bundle import CPU_MODEL, FP16_MODEL, TRT_MODEL, Calibration, TemperatureAt, open_bundle, softmax
from agent.inference.selftest import SCALE
from agent.types import LABELS, WINDOW_RATE_HZ, Window
from quantize.config import read_config
from quantize.data.augment import calibration_windows
from quantize.data.generator import as_record, generate
from quantize.data.records import (
    FULL_S,
    LENGTHS_S,
    Record,
    Row,
    default_root,
    load_records,
    read_streams,
    read_table,
    read_unlabelled,
)
from quantize.data.regions import read_regions
from quantize.data.signals import background
from quantize.data.trust import apart, is_judged
from quantize.data.views import NEUTRAL_ONSET_S, VIEWS, main_component, neutral_windows, view_windows
from quantize.quantise.export import export_int8
from quantize.quantise.golden import golden_windows
from quantize.quantise.qdq import half
from quantize.study import tables
from quantize.study.by_region import study
from quantize.study.evaluate import OutOfFold
from quantize.teach import learn as teach
from quantize.teach import lesson
from quantize.teach.head import Features, Head
from quantize.teach.refit import Scale, refit
from quantize.teach.replay import Replay
from quantize.teach.site import site_windows
from quantize.train.baselines import NAMES, features
from quantize.train.lab import Lab
from quantize.train.methods import mixed_student, open_lab

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


@part(
    *(option(f"--{name}", type=Path, required=True) for name in ("data", "work", "config")),
    option("--region", nargs="+"),
    option("--json", type=Path),
)
def labels(options: argparse.Namespace) -> None:
    """A few labels of a region that the network never learned from."""
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


Array = NDArray[np.float64]

CLASSES = ("earthquake", "blast", "landslide", "noise")
"""Collapse has one real record, so nothing can be said of it."""
SHOWN = (
    "duration_s", "rise_share", "peak_to_median", "envelope_skewness", "envelope_kurtosis", "envelope_peaks",
    "decay_residual", "early_energy", "noise_ratio", "centroid_hz", "bandwidth_hz", "dominant_hz", "centroid_early_hz",
    "centroid_late_hz", "centroid_std_hz", "energy_1_2_hz", "energy_2_4_hz", "energy_11_16_hz",
)  # fmt: skip
MOST_OF_AN_EVENT = 4
"""Records of one real event that are looked at."""

PAIRS: tuple[tuple[str, Callable[[Row], bool], Callable[[Row], bool]], ...] = (
    ("earthquake", lambda row: row.label == "earthquake", lambda row: row.label == "earthquake"),
    ("blast", lambda row: row.label == "blast", lambda row: row.label == "blast"),
    (
        "rockfall on the slope (Sechilienne)",
        lambda row: row.label == "landslide" and row.subtype == "rockfall",
        lambda row: row.dataset == "sechilienne",
    ),
    (
        "flows, slides and falls afar (ESEC)",
        lambda row: row.label == "landslide" and row.subtype not in ("rockfall", "slopequake", "debris flow"),
        lambda row: row.label == "landslide" and row.dataset == "esec",
    ),
    ("noise that triggers", lambda row: row.transient, lambda row: row.transient),
)
"""Title, which synthetic rows, which real rows."""


def real_records(root: Path) -> list[Record]:
    """Training records of the compared classes, at most ``MOST_OF_AN_EVENT`` of an event; noise that triggers only."""
    seen: dict[tuple[str, str], int] = {}
    kept = []
    for row in read_table(root):
        key = (row.event, row.label)
        if row.split != "train" or row.label not in CLASSES or (row.label == "noise" and not row.transient):
            continue
        seen[key] = seen.get(key, 0) + 1
        if seen[key] <= MOST_OF_AN_EVENT:
            kept.append(row)
    return load_records(kept)


def quiet_stretches(root: Path) -> list[NDArray[np.float32]]:
    """Real noise of the training split on which the synthetic events are put."""
    rows = [r for r in read_table(root) if r.split == "train" and r.label == "noise" and not r.transient]
    return [background(record.data[main_component(record)], None) for record in load_records(rows)]


def synthetic_records(count: int, quiet: Sequence[NDArray[np.float32]], seed: int) -> list[Record]:
    """``count`` of each class."""
    made = []
    for number, label in enumerate(label for label in CLASSES for _ in range(count)):
        rng = np.random.default_rng((seed, number))
        made.append(as_record(generate(rng, label, quiet[int(rng.integers(len(quiet)))]), number))
    return made


def seen(records: Sequence[Record]) -> Array:
    """Features in the neutral view."""
    preparation = Preparation(highpass_hz=1.0)
    return np.concatenate([features(neutral_windows(record, [FULL_S], preparation, 0)) for record in records])


def compare(title: str, synthetic: Array, real: Array, names: Sequence[str]) -> str:
    """A table: 10 %, median and 90 % of both, their Kolmogorov-Smirnov distance, and the share of the real values that
    lie between the 2 and 98 % of the synthetic ones."""
    lines = [f"{title}: {len(synthetic)} synthetic, {len(real)} real records", f"{'':20}{'synthetic':>24}{'real':>24}"
             f"{'KS':>7}{'covered':>9}"]  # fmt: skip
    distances = []
    for name in names:
        column = NAMES.index(name)
        a, b = synthetic[:, column], real[:, column]
        low, high = np.percentile(a, (2, 98))
        distance = float(ks_2samp(a, b).statistic)
        distances.append(distance)
        spans = ["{:7.2f} {:7.2f} {:7.2f}".format(*np.percentile(x, (10, 50, 90))) for x in (a, b)]
        lines.append(f"{name:20}{spans[0]:>24}{spans[1]:>24}{distance:7.2f}{np.mean((b >= low) & (b <= high)):9.0%}")
    lines.append(f"{'mean':20}{'':48}{np.mean(distances):7.2f}")
    return "\n".join(lines)


def boosting() -> HistGradientBoostingClassifier:
    return HistGradientBoostingClassifier(
        max_iter=150, learning_rate=0.06, max_leaf_nodes=15, class_weight="balanced", random_state=0
    )


def transferred(x: Array, y: NDArray[np.str_], tried: Array, rows: Sequence[Row]) -> tuple[str, Array]:
    """Learn from ``x``; the share of each class's events (records weighed by event) that is right."""
    model = boosting().fit(x, y)
    right = model.predict(tried) == np.array([row.label for row in rows])
    shares = []
    for label in CLASSES:
        events: dict[str, list[bool]] = {}
        for row, hit in zip(rows, right, strict=True):
            if row.label == label:
                events.setdefault(row.event, []).append(bool(hit))
        shares.append(float(np.mean([np.mean(hits) for hits in events.values()])))
    text = "  ".join(f"{label} {share:.0%}" for label, share in zip(CLASSES, shares, strict=True))
    return f"{text}  mean {np.mean(shares):.1%}", model.predict_proba(tried)


def told_apart(synthetic: Array, real: Array, rows: Sequence[Row]) -> float:
    """Area under the curve of a classifier that tells real from synthetic, folds by event: 0.5 would be perfect."""
    x = np.concatenate([synthetic, real])
    y = np.repeat([0, 1], [len(synthetic), len(real)])
    groups = [f"synthetic {i}" for i in range(len(synthetic))] + [row.event for row in rows]
    guess = cross_val_predict(boosting(), x, y, groups=groups, cv=GroupKFold(3), method="predict_proba")
    return float(roc_auc_score(y, guess[:, 1]))


@part(
    option("--data", type=Path, default=default_root(), help="folder with metadata.csv"),
    option("--count", type=int, default=250, help="synthetic records of each class"),
    option("--all", action="store_true", help="every feature, not the telling ones alone"),
)
def generator(options: argparse.Namespace) -> None:
    """Synthetic records beside real ones."""
    if options.data is None:
        sys.exit("no labelled records are at hand: give their folder with --data, or set TALUS_DATA")
    quiet, real = quiet_stretches(options.data), real_records(options.data)
    began = time.process_time()
    synthetic = synthetic_records(options.count, quiet, seed=1)
    print(f"{len(synthetic) / (time.process_time() - began):.0f} synthetic records a second of one core\n")
    made, found = seen(synthetic), seen(real)
    made_rows, found_rows = [r.row for r in synthetic], [r.row for r in real]
    for title, of_made, of_found in PAIRS:
        a = np.array([of_made(row) for row in made_rows])
        b = np.array([of_found(row) for row in found_rows])
        print(compare(title, made[a], found[b], NAMES if options.all else SHOWN))
        if len({row.event for row in np.array(found_rows, dtype=object)[b]}) >= 10:
            events = [row for row, here in zip(found_rows, b, strict=True) if here]
            print(f"real told from synthetic: AUC {told_apart(made[a], found[b], events):.3f}")
        print()
    y_made, y_found = (np.array([row.label for row in rows]) for rows in (made_rows, found_rows))
    text, answers = transferred(made, y_made, found, found_rows)
    print(f"learnt from synthetic, tried on real:  {text}")
    print(f"learnt from real, tried on synthetic:  {transferred(found, y_found, made, made_rows)[0]}")
    for row, answer in zip(found_rows, answers, strict=True):
        if row.dataset == "sechilienne":
            odds = "  ".join(f"{k} {p:.2f}" for k, p in zip(sorted(CLASSES), answer, strict=True))
            print(f"  {row.event}: {odds}")


MAKERS_HZ = (2.0, 8.0)
BAND = signal.butter(4, MAKERS_HZ, "bandpass", fs=WINDOW_RATE_HZ, output="sos")
HALVES = [signal.butter(4, band, "bandpass", fs=WINDOW_RATE_HZ, output="sos") for band in ((2.0, 4.0), (4.0, 8.0))]
SECOND = WINDOW_RATE_HZ
TELLING = tuple(
    i for i, name in enumerate(NAMES)
    if name in ("energy_2_4_hz", "energy_4_7_hz", "kurtosis_2_4_hz", "kurtosis_4_7_hz")
    or not name.startswith(("energy_", "kurtosis_", "cepstral_", "spectrogram_", "rect", "planar", "horizontal_"))
)  # fmt: skip
"""Of ``NAMES``: of one component, and without those in which it shows what lay outside the band."""
PULLS = (0.01, 0.03, 0.1, 0.3, 1.0, 100.0)


def phases(x: Array) -> list[float]:
    """Of a vertical: the steepest rise at the onset, the steepest after it (taken for S) and its delay, as logarithms,
    and the amplitudes before it over those after it, in both halves of the band."""
    total = np.concatenate([[0.0], np.cumsum(x**2)])

    def rises(at: NDArray[np.int64], before: int) -> Array:
        after, first = total[at + SECOND] - total[at], total[at] - total[at - before]
        return np.log((after + 1e-9) * before / SECOND / (first + 1e-3 * after.max() + 1e-9))

    places = np.arange(*(round(s * SECOND) for s in NEUTRAL_ONSET_S))
    onset = int(places[(first := rises(places, 5 * SECOND)).argmax()])
    later = np.arange(onset + SECOND, onset + 40 * SECOND)
    s_wave = int(later[(second := rises(later, SECOND)).argmax()])
    values = [float(first.max()), float(second.max()), float(np.log((s_wave - onset) / SECOND))]
    for half_band in HALVES:
        y = np.abs(signal.sosfiltfilt(half_band, x))
        values.append(
            float(np.log((y[onset : s_wave - 10].max() + 1e-9) / (y[s_wave - 10 :][: 5 * SECOND].max() + 1e-9)))
        )
    return values


def balanced(labels: NDArray[np.int64], regions: NDArray[np.int64], events: NDArray[np.int64]) -> Array:
    """A weight for each record: classes alike, in a class regions by the square root of their events, events alike."""
    weights = np.zeros(len(labels))
    for label in np.unique(labels):
        of = labels == label
        for place in np.unique(regions[of]):
            here = of & (regions == place)
            _, which, counts = np.unique(events[here], return_inverse=True, return_counts=True)
            weights[here] = len(counts) ** -0.5 / counts[which]
        weights[of] /= weights[of].sum()
    return weights / weights.sum()


@dataclass(frozen=True)
class Fitted:
    """Records ``x`` with a layer ``old`` that answers before anything is fitted to them."""

    x: Array
    old: Head
    labels: NDArray[np.int64]
    regions: NDArray[np.int64]
    events: NDArray[np.int64]

    def head(self, of: NDArray[np.int64], pull: float) -> Head:
        """The layer fitted to the records ``of``."""
        scale = Scale.of(self.x[of], np.zeros((1, self.x.shape[1])), 0.0)
        weights = balanced(self.labels[of], self.regions[of], self.events[of])
        return refit(self.x[of], self.labels[of], weights, self.old, scale, pull=pull)

    def pull(self, of: NDArray[np.int64]) -> float:
        """That with the least loss in the regions of the records ``of``, each left out of the fit in turn."""
        weights, losses = balanced(self.labels[of], self.regions[of], self.events[of]), np.zeros((len(PULLS), len(of)))
        for place in np.unique(self.regions[of]):
            out = self.regions[of] == place
            for row, pull in zip(losses, PULLS, strict=True):
                p = softmax(self.head(of[~out], pull).logits(self.x[of[out]]))
                row[out] = -np.log(p[np.arange(out.sum()), self.labels[of[out]]] + 1e-9)
        return PULLS[int((losses @ weights).argmin())]


@part(
    option("--data", type=Path, default=default_root(), help="folder with metadata.csv and regions.csv"),
    option("--bundle", type=Path, default=Path(__file__).parents[1] / "agent" / "models" / "default"),
)
def attributes(options: argparse.Namespace) -> None:
    """Attributes of the waveform beside the network's answers, regions left out."""
    if options.data is None:
        sys.exit("no labelled records are at hand: give their folder with --data, or set TALUS_DATA")
    opened = open_bundle(options.bundle)
    without = opened.manifest.training["without"]
    records = [r for r in load_records(read_table(options.data)) if is_judged(r.row) and r.row.label != "collapse"]
    unknown = [r for r in records if r.row.dataset in without]
    known = [r for r in records if r.row.dataset not in without]
    held = [r for r in known if r.row.split == "val"]
    learned = [*(r for r in known if r.row.split != "val"), *read_unlabelled(options.data), *read_streams(options.data)]
    every = [*unknown, *(r for r, alone in zip(held, apart(held, learned), strict=True) if alone)]
    classifier, _ = load(options.bundle, ["onnxruntime"])
    logs, seen_as = np.empty((len(every), len(LABELS))), []
    for i, record in enumerate(every):
        data = view_windows("neutral", record, [FULL_S], opened.preparation)
        verdict = classifier.classify(Window(data[0], 0, FULL_S, (1.0, 1.0, 1.0), 0.0))
        logs[i] = np.log(np.array(verdict.probabilities) + 1e-9)
        x = signal.sosfiltfilt(BAND, data[0, 2].astype(np.float64))
        shape = features(np.repeat(x[None, None], 3, axis=1).astype(np.float32))[0]
        seen_as.append([*shape[list(TELLING)], *phases(x)])
    by_event = read_regions(options.data, [r.row for r in every])
    names, regions = np.unique([by_event[r.row.event] for r in every], return_inverse=True)
    labels = np.array([r.row.index for r in every])
    _, events = np.unique([r.row.event for r in every], return_inverse=True)
    told = np.clip(seen_as, *np.percentile(seen_as, (1, 99), axis=0))
    inputs = {"control": logs, "with attributes": np.concatenate([logs, told], axis=1), "attributes alone": told}
    judged = np.arange(len(unknown))
    answered = {"shipped": logs[judged]}
    for name, x in inputs.items():
        alone = name == "attributes alone"
        collapse = np.where(np.array(LABELS) == "collapse", -14.0 * alone, 0.0)
        fitted = Fitted(x, Head(np.eye(len(LABELS), x.shape[1]) * (not alone), collapse), labels, regions, events)
        answers = np.empty((len(every), len(LABELS)))
        for place in np.unique(regions[judged]):
            of, out = np.flatnonzero(regions != place), judged[regions[judged] == place]
            pull = fitted.pull(of)
            answers[out] = fitted.head(of, pull).logits(x[out])
            print(f"{name}, without {names[place]}: pull {pull:g}", file=sys.stderr, flush=True)
        answered[name] = answers[judged]
    rows = [r.row for r in every]
    # Temperatures and thresholds are fitted to all lengths; here each is the whole window.
    given = {
        name: OutOfFold(judged, {"neutral": np.repeat(values[:, None], len(LENGTHS_S), axis=1)})
        for name, values in answered.items()
    }
    print(tables.by_region(study(given, rows, regions, names.tolist())))
    less = study({name: given[name] for name in ("control", "with attributes")}, rows, regions, names.tolist())
    _, begin, rest = tables.by_region(less).partition("Less control")
    print(begin + rest.partition("Events found")[0])


if __name__ == "__main__":
    sys.exit(choose(__doc__))
