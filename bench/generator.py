"""How far synthetic records are from real ones: features side by side, and what a classifier of one makes of the other.

Only records of the training split are looked at. Both are seen in the neutral view, so that neither the way of
recording nor the noise (the synthetic records' own comes from real noise) tells them apart.

    OMP_NUM_THREADS=1 python bench/generator.py [--data DIR] [--count 250] [--all]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ks_2samp
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict

from agent.dsp.window import Preparation
from quantize.data.generator import as_record, generate
from quantize.data.records import FULL_S
from quantize.data.records import Record, Row, default_root, load_records, read_table
from quantize.data.signals import background
from quantize.data.views import main_component, neutral_windows
from quantize.train.baselines import NAMES, features

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=default_root(), help="folder with metadata.csv")
    parser.add_argument("--count", type=int, default=250, help="synthetic records of each class")
    parser.add_argument("--all", action="store_true", help="every feature, not the telling ones alone")
    options = parser.parse_args()
    if options.data is None:
        parser.error("no labelled records are at hand: give their folder with --data, or set TALUS_DATA")
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


if __name__ == "__main__":
    main()
