"""What a new site sees: figures of networks that learned nothing from the region of what they are asked.

Every record is answered by the network that was trained without its region, in the neutral view, whole window.
Intervals come from drawing whole events; they do not hold what another set of regions would change.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from agent.types import LABELS
from quantize.data.records import Row
from quantize.study.compare import DRAWS, crossfitted, event_draws
from quantize.study.evaluate import CLASSES, Array, Figure, OutOfFold, Truth, per_event
from quantize.study.report import triple

FORMAT = "talus/regions/1"
HARD = ("vehicle_noise", "hvsr_noise", "strokkur_noise")
"""Noise of roads, fields and a geyser: no source of its kind is learned from where its region is left out, except that
fields and a geyser have a road and each other."""
POOLED: Mapping[str, str] = {
    "event_balanced": "events: balanced over four classes",
    "event_accuracy": "events: accuracy",
    "record_balanced": "records: balanced",
    "record_accuracy": "records: accuracy",
    "landslides": "landslide events found",
    "quakes_as_landslide": "quake events called landslide",
    "quake_blast": "quake against blast, events, balanced",
    "same_station": "the same at stations that recorded both, records",
    "hard_noise": "hard noise called noise, records",
    "hard_noise_held": "hard noise called noise or withheld, records",
    "noise": "noise called noise, records",
    "answered": "records answered",
    "right_of_answered": "right among the answered",
}
"""Figures over all regions, and what they are called."""
_EARTHQUAKE, _BLAST, _LANDSLIDE, _NOISE = (LABELS.index(x) for x in ("earthquake", "blast", "landslide", "noise"))


@dataclass(frozen=True, slots=True, eq=False)
class _Share:
    """A figure: the mean of several shares, each of ``hits`` among the entries that it is ``of``; entries belong to
    ``events``."""

    events: NDArray[np.int64]
    parts: tuple[tuple[NDArray[np.bool_], NDArray[np.bool_]], ...]

    def over(self, weights: Array) -> Array:
        """The figure for each row of event weights ``[rows, events]``; NaN where nothing is counted."""
        shares = []
        for of, hits in self.parts:
            total, right = np.zeros((2, weights.shape[1]))
            np.add.at(total, self.events[of], 1.0)
            np.add.at(right, self.events[of & hits], 1.0)
            count = weights @ total
            shares.append(np.divide(weights @ right, count, out=np.full(len(weights), np.nan), where=count > 0))
        with np.errstate(invalid="ignore"):
            made: Array = np.nanmean(shares, axis=0) if np.isfinite(shares).any() else np.full(len(weights), np.nan)
        return made


def study(
    answered: Mapping[str, OutOfFold], rows: Sequence[Row], fold: NDArray[np.int64], names: Sequence[str]
) -> dict[str, JsonValue]:
    """Plain values of the methods ``answered`` (shares 0 to 1; figures as value, low, high): over all regions, by
    region and class, and each method against the first by a paired bootstrap. ``fold`` is the number of each row's
    region, an index of ``names`` where it was left out."""
    index = np.sort(next(iter(answered.values())).index)
    chosen, folds = [rows[int(i)] for i in index], fold[index]
    truth = Truth.of(chosen)
    weights = event_draws(truth, DRAWS)
    methods: dict[str, dict[str, JsonValue]] = {}
    drawn: dict[str, dict[str, Array]] = {}
    for name, out in answered.items():
        made = crossfitted(out.in_order(), truth, folds)["neutral"]
        p, withheld = made.probabilities[:, -1], made.abstained[:, -1]
        drawn[name] = {key: share.over(weights) for key, share in _pooled(p, withheld, truth, chosen).items()}
        methods[name] = {
            "pooled": {key: triple(_figure(values)) for key, values in drawn[name].items()},
            "regions": {names[number]: _region(p, truth, folds == number) for number in np.unique(folds)},
        }
    first, *others = drawn
    return {
        "format": FORMAT,
        "regions": [names[number] for number in np.unique(folds)],
        "records": len(index),
        "events": len(np.unique(truth.events)),
        "counts": {names[number]: _counts(truth, folds == number) for number in np.unique(folds)},
        "methods": {**methods},
        "differences": {
            other: {key: triple(_figure(drawn[other][key] - drawn[first][key])) for key in POOLED} for other in others
        },
    }


def _figure(values: Array) -> Figure:
    """The first of ``values``, and the 95 % interval of the others."""
    if not np.isfinite(values[0]):
        return Figure(-1.0, -1.0, -1.0)
    low, high = np.nanpercentile(values[1:], [2.5, 97.5])
    return Figure(float(values[0]), float(low), float(high))


def _pooled(p: Array, withheld: NDArray[np.bool_], truth: Truth, rows: Sequence[Row]) -> dict[str, _Share]:
    q, grouped = per_event(p, truth)
    said, told = p.argmax(axis=-1), q.argmax(axis=-1)
    known, labels = truth.labels != LABELS.index("collapse"), truth.labels
    hard = np.array([row.dataset in HARD for row in rows], dtype=np.bool_)
    both = _at_stations_with_both(rows)

    def records(*parts: tuple[NDArray[np.bool_], NDArray[np.bool_]]) -> _Share:
        return _Share(truth.events, parts)

    def events(*parts: tuple[NDArray[np.bool_], NDArray[np.bool_]]) -> _Share:
        return _Share(grouped.events, parts)

    right, hit = said == labels, told == grouped.labels
    quake = grouped.labels == _EARTHQUAKE
    return {
        "event_balanced": events(*((grouped.labels == c, hit) for c in CLASSES)),
        "event_accuracy": events((grouped.labels != LABELS.index("collapse"), hit)),
        "record_balanced": records(*((labels == c, right) for c in CLASSES)),
        "record_accuracy": records((known, right)),
        "landslides": events((grouped.labels == _LANDSLIDE, hit)),
        "quakes_as_landslide": events((quake, told == _LANDSLIDE)),
        "quake_blast": events((quake, _likelier(q)), (grouped.labels == _BLAST, ~_likelier(q))),
        "same_station": records(
            (both & (labels == _EARTHQUAKE), _likelier(p)), (both & (labels == _BLAST), ~_likelier(p))
        ),
        "hard_noise": records((hard, said == _NOISE)),
        "hard_noise_held": records((hard, (said == _NOISE) | withheld)),
        "noise": records((labels == _NOISE, right)),
        "answered": records((known, ~withheld)),
        "right_of_answered": records((known & ~withheld, right)),
    }


def _likelier(p: Array) -> NDArray[np.bool_]:
    """Where an earthquake is likelier than a blast."""
    more: NDArray[np.bool_] = p[:, _EARTHQUAKE] > p[:, _BLAST]
    return more


def _at_stations_with_both(rows: Sequence[Row]) -> NDArray[np.bool_]:
    """Which rows are of a station that recorded earthquakes and blasts."""
    seen: dict[str, set[str]] = defaultdict(set)
    stations = [row.path.stem.partition("__")[2] for row in rows]
    for station, row in zip(stations, rows, strict=True):
        seen[station].add(row.label)
    return np.array([bool(s) and {"earthquake", "blast"} <= seen[s] for s in stations], dtype=np.bool_)


def _counts(truth: Truth, inside: NDArray[np.bool_]) -> dict[str, JsonValue]:
    return {
        LABELS[c]: [int(of.sum()), len(np.unique(truth.events[of]))]
        for c in CLASSES
        if (of := inside & (truth.labels == c)).any()
    }


def _region(p: Array, truth: Truth, inside: NDArray[np.bool_]) -> dict[str, JsonValue]:
    """By class: share of the events found with its interval, share of the records found, what else was said most."""
    index = np.flatnonzero(inside)
    local = truth.take(index)
    _, events = np.unique(local.events, return_inverse=True)
    local = Truth(local.labels, events.astype(np.int64), local.groups, local.transient)
    q, grouped = per_event(p[index], local)
    weights = event_draws(local, DRAWS)
    made: dict[str, JsonValue] = {}
    for c in CLASSES:
        of = grouped.labels == c
        if not of.any():
            continue
        told = q.argmax(axis=-1)
        others = np.bincount(told[of & (told != c)], minlength=len(LABELS))
        share = _Share(grouped.events, ((of, told == c),))
        found = p[index].argmax(axis=-1)[local.labels == c] == c
        made[LABELS[c]] = {
            "events": triple(_figure(share.over(weights))),
            "records": round(float(found.mean()), 4),
            "else": LABELS[int(others.argmax())] if others.any() else "",
        }
    return made
