"""A network learns a site's own labels: its last layer is fitted anew, judged before it is written, and refused where
it does not help.

Every figure is of events that the layer in question was not fitted to. The *control* is the same fit with as many
labels of other regions: what it gains as well is no gain of the site's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.errors import DataError
from agent.inference.bundle import Calibration, TemperatureAt, softmax
from agent.types import LABELS
from quantize.teach.head import Head
from quantize.teach.refit import Scale, refit
from quantize.teach.replay import Replay

Array = NDArray[np.float64]
Index = NDArray[np.int64]

LEAST_EVENTS = 5
"""Events of a class that can be taught and judged."""
FOLDS = 24
"""At most so many groups of events are left out in turn; up to so many events, each alone."""
SURE = 0.9
"""Share of the bootstrap's draws in which a gain must be one."""
MOST_LOST = 0.02
"""Share of other regions' events right that teaching may cost."""
GOOD_LOST = 0.01
"""What it should cost at most: a weaker fit is preferred to a larger loss."""
SHARES = (0.6, 0.4, 0.25, 0.1)
"""Shares of the site in the fit, tried in this order."""
PULL = 2e-3
"""How strongly the layer is held to the old one."""
ROUNDING = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 1000.0)
"""How much it counts what a layer makes of the differences between the files of a bundle: the first of these at which
their answers agree."""
HALF = 5.0
"""Events of the site at which it has half of its share."""
DRAWS = 1000
CONTROLS = 3
SIZES = (2, 5, 10, 20, 40)
"""Events a class of the learning curve."""
CURVE_DRAWS = 4
_COLLAPSE = LABELS.index("collapse")


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Features ``[n, features]`` of windows: label index, number of the event and of the record, seconds after the
    onset, and whether the window is the one by which its record is judged."""

    features: NDArray[np.float32]
    label: Index
    event: Index
    record: Index
    seconds: Array
    judged: NDArray[np.bool_]

    def take(self, which: NDArray[Any]) -> Examples:
        """Some of the examples."""
        return Examples(
            self.features[which],
            self.label[which],
            self.event[which],
            self.record[which],
            self.seconds[which],
            self.judged[which],
        )


@dataclass(frozen=True, slots=True)
class Gain:
    """A difference in balanced accuracy of events, its 95 % interval, and the share of draws in which it is one."""

    value: float
    low: float
    high: float
    sure: float

    def __str__(self) -> str:
        return f"{100 * self.value:+.1f} [{100 * self.low:+.1f}, {100 * self.high:+.1f}] points"


@dataclass(frozen=True, slots=True, eq=False)
class Lesson:
    """What came of teaching. ``right``: share of the site's events right by class, of the shipped layer, the control
    and the taught one; ``others``: of other regions' events, shipped and taught; ``curve``: (events a class, balanced
    accuracy of the events left out). ``refused``: why no bundle is to be written; empty where one is."""

    head: Head
    temperature: tuple[tuple[float, float], ...]
    thresholds: dict[str, float]
    events: dict[str, int]
    share: float
    right: dict[str, tuple[float, float, float]]
    balanced: tuple[float, float, float]
    over_control: Gain
    over_shipped: Gain
    others: tuple[float, float]
    curve: tuple[tuple[int, float], ...]
    refused: tuple[str, ...]


def learn(
    site: Examples,
    replay: Replay,
    temperature: tuple[TemperatureAt, ...],
    differences: NDArray[np.floating],
    *,
    agrees: Callable[[Head], bool] = lambda _: True,
    seed: int = 0,
) -> Lesson:
    """Fit the last layer to ``site`` and the bank, and judge it.

    ``differences``: see ``Scale``; ``agrees``: whether the files of a bundle give the same answers with a layer.
    """
    events = count_events(site)
    calibration = Calibration(temperature)
    for rounding in ROUNDING:
        scale = Scale.of(replay.features, differences, rounding)
        share, others = _bearable(site, replay, scale, calibration)
        head = taught(site, replay, scale, share=share)
        if agrees(head):
            break
    answers = _left_out(site, replay, scale, share, head)
    shipped = _probabilities(replay.head.logits(site.features), site.seconds, calibration)
    told = _probabilities(answers, site.seconds, calibration)
    controls = [
        _probabilities(
            taught(_control(site, replay, seed + i), replay, scale, share=share).logits(site.features),
            site.seconds,
            calibration,
        )
        for i in range(CONTROLS)
    ]
    scores = [_Scores.of(site, p) for p in (shipped, told, *controls)]
    over_control = _gain(scores[1:2], scores[2:], seed)
    over_shipped = _gain(scores[1:2], scores[:1], seed)
    control = [float(np.mean([score.balanced() for score in scores[2:]]))]
    right = {
        LABELS[c]: (scores[0].recall(c), float(np.mean([s.recall(c) for s in scores[2:]])), scores[1].recall(c))
        for c in scores[0].classes
    }
    points = _curve(site, replay, scale, calibration, share=share, seed=seed)
    temperatures, thresholds = _confidence(site, answers, replay, head, temperature)
    return Lesson(
        head,
        temperatures,
        thresholds,
        events,
        share,
        right,
        (scores[0].balanced(), control[0], scores[1].balanced()),
        over_control,
        over_shipped,
        others,
        points,
        (
            *_reasons(scores[0].balanced(), over_control, over_shipped, others),
            *(() if agrees(head) else ("its files would not give the same answers",)),
        ),
    )


def count_events(site: Examples) -> dict[str, int]:
    """Events of each class that occurs."""
    return {LABELS[c]: len(np.unique(site.event[site.label == c])) for c in np.unique(site.label)}


def require_enough(events: Mapping[str, int]) -> None:
    """Refuse labels of which nothing can be learned and judged.

    Raises:
        DataError: there is one class alone, or a class has fewer than ``LEAST_EVENTS`` events.
    """
    if len(events) < 2:
        raise DataError(
            f"all labels say {', '.join(events)}",
            f"label at least {LEAST_EVENTS} events of another class as well; the noise of the site is one",
        )
    few = {label: count for label, count in events.items() if count < LEAST_EVENTS}
    if few:
        said = ", ".join(f"{label} {count}" for label, count in few.items())
        raise DataError(
            f"too few events to learn from and to judge by: {said}",
            f"label at least {LEAST_EVENTS} events of each class, or leave the class out",
        )


def taught(site: Examples, replay: Replay, scale: Scale, *, share: float, start: Head | None = None) -> Head:
    """The layer fitted to ``site`` and to what may be learned from the bank. A site of few events has less than its
    ``share``."""
    bank = replay.take(replay.learned)
    count = len(np.unique(site.event))
    mass = share * count / (count + HALF)
    features = np.concatenate([site.features, bank.features])
    labels = np.concatenate([site.label, bank.label])
    weights = np.concatenate([mass * _even(site.label, site.event), (1 - mass) * _even(bank.label, bank.event)])
    return refit(features, labels, weights, replay.head, scale, pull=PULL, start=start)


def _even(label: Index, event: Index) -> Array:
    """Weights that sum to 1: every class alike, every event of a class alike, every window of an event alike."""
    weights = np.zeros(len(label))
    classes = np.unique(label)
    for c in classes:
        of = label == c
        _, inverse, counts = np.unique(event[of], return_inverse=True, return_counts=True)
        weights[of] = 1 / (len(classes) * len(counts) * counts[inverse])
    return weights


def _probabilities(logits: Array, seconds: Array, calibration: Calibration) -> Array:
    """Calibrated probabilities ``[n, 5]`` of windows of several lengths."""
    temperatures = np.array([calibration.temperature(float(s)) for s in seconds])
    return softmax(logits / temperatures[:, None])


def _bearable(
    site: Examples, replay: Replay, scale: Scale, calibration: Calibration
) -> tuple[float, tuple[float, float]]:
    """The largest share of the site at which other regions lose no more than they should, else the smallest; and the
    share of other regions' events right, before and after."""
    aside = replay.take(~replay.learned)
    before = _right_by_class(aside, replay.head, calibration)
    for share in SHARES:
        after = _right_by_class(aside, taught(site, replay, scale, share=share), calibration)
        if before - after <= GOOD_LOST:
            break
    return share, (before, after)


def _right_by_class(aside: Replay, head: Head, calibration: Calibration) -> float:
    """Balanced accuracy of the bank's events that no layer is fitted to."""
    p = _probabilities(head.logits(aside.features), aside.seconds, calibration)
    _, group = np.unique(np.stack([aside.event, aside.label], axis=1), axis=0, return_inverse=True)
    q, first = _mean_of(p, group.ravel())
    label = aside.label[first]
    right = q.argmax(axis=1) == label
    return float(np.mean([right[label == c].mean() for c in np.unique(label) if c != _COLLAPSE]))


def _mean_of(p: Array, group: Index) -> tuple[Array, Index]:
    """Mean of the rows of each group, and the first row of each."""
    _, first, inverse = np.unique(group, return_index=True, return_inverse=True)
    total = np.zeros((len(first), p.shape[1]))
    np.add.at(total, inverse.ravel(), p)
    return total / np.bincount(inverse.ravel())[:, None], first


def _folds(site: Examples) -> list[Index]:
    """Groups of events to leave out in turn: each alone, or, of many, in ``FOLDS`` groups with every class in each."""
    events, first = np.unique(site.event, return_index=True)
    order = events[np.argsort(site.label[first], kind="stable")]
    count = min(FOLDS, len(order))
    return [order[i::count] for i in range(count)]


def _left_out(site: Examples, replay: Replay, scale: Scale, share: float, start: Head) -> Array:
    """Logits of every window by a layer that was fitted without its event."""
    logits = np.empty((len(site.label), len(LABELS)))
    for events in _folds(site):
        out = np.isin(site.event, events)
        logits[out] = taught(site.take(~out), replay, scale, share=share, start=start).logits(site.features[out])
    return logits


def _control(site: Examples, replay: Replay, seed: int) -> Examples:
    """As many events of each class from the bank, in the place of the site's."""
    rng = np.random.default_rng((seed, 11))
    bank = replay.take(replay.learned)
    chosen = np.zeros(len(bank), dtype=bool)
    for c in np.unique(site.label):
        wanted = len(np.unique(site.event[site.label == c]))
        there = np.unique(bank.event[bank.label == c])
        some = rng.choice(there, size=min(wanted, len(there)), replace=False)
        chosen |= (bank.label == c) & np.isin(bank.event, some)
    few = bank.take(chosen)
    place = np.arange(len(few))
    return Examples(few.features, few.label, few.event, place, few.seconds, np.ones(len(few), dtype=bool))


@dataclass(frozen=True, slots=True, eq=False)
class _Scores:
    """Of every event of the site its class and whether it was called right."""

    label: Index
    right: NDArray[np.bool_]

    @classmethod
    def of(cls, site: Examples, p: Array) -> _Scores:
        q, first = _mean_of(p[site.judged], site.event[site.judged])
        label = site.label[site.judged][first]
        return cls(label, q.argmax(axis=1) == label)

    @property
    def classes(self) -> list[int]:
        return [int(c) for c in np.unique(self.label)]

    def recall(self, c: int) -> float:
        return float(self.right[self.label == c].mean())

    def balanced(self) -> float:
        return float(np.mean([self.recall(c) for c in self.classes]))


def _gain(first: list[_Scores], second: list[_Scores], seed: int) -> Gain:
    """How much better ``first`` is than ``second`` (each the mean of its members), over draws of events within their
    classes: a draw without a class would say nothing of it."""
    label = first[0].label
    gained = np.mean([s.right for s in first], axis=0) - np.mean([s.right for s in second], axis=0)
    rng = np.random.default_rng((seed, 5))
    draws = np.zeros(DRAWS)
    value = 0.0
    for c in np.unique(label):
        of = gained[label == c]
        draws += of[rng.integers(len(of), size=(DRAWS, len(of)))].mean(axis=1)
        value += float(of.mean())
    classes = len(np.unique(label))
    draws, value = draws / classes, value / classes
    low, high = np.percentile(draws, [2.5, 97.5])
    return Gain(value, float(low), float(high), float((draws > 0).mean()))


def _reasons(shipped: float, over_control: Gain, over_shipped: Gain, others: tuple[float, float]) -> list[str]:
    reasons = []
    for gain, than in ((over_control, "as many labels of other regions"), (over_shipped, "the network as it is")):
        if gain.value <= 0 or gain.sure < SURE:
            reasons.append(
                f"the site's labels gain nothing sure over {than}: {gain}, "
                f"a gain in {100 * gain.sure:.0f} of 100 draws of events ({100 * SURE:.0f} needed)"
            )
    if reasons and shipped >= 0.97:
        reasons.append(f"the network as it is already has {100 * shipped:.0f} % of the site's events right")
    lost = others[0] - others[1]
    if lost > MOST_LOST:
        reasons.append(
            f"other regions lose {100 * lost:.1f} points ({100 * MOST_LOST:.0f} at most): "
            f"{100 * others[0]:.1f} % of their events were right, {100 * others[1]:.1f} % would be"
        )
    return reasons


def _curve(
    site: Examples, replay: Replay, scale: Scale, calibration: Calibration, *, share: float, seed: int
) -> tuple[tuple[int, float], ...]:
    """Balanced accuracy of the events left out, by events a class learned from, mean of several draws. At least two
    events of every class are left out each time."""
    rng = np.random.default_rng((seed, 7))
    by_class = {int(c): np.unique(site.event[site.label == c]) for c in np.unique(site.label)}
    smallest = min(len(events) for events in by_class.values())
    points = []
    for size in SIZES:
        if size > smallest - 2:
            break
        found = []
        for _ in range(CURVE_DRAWS):
            chosen = np.concatenate([rng.choice(events, size, replace=False) for events in by_class.values()])
            inside = np.isin(site.event, chosen)
            head = taught(site.take(inside), replay, scale, share=share)
            rest = site.take(~inside & site.judged)
            p = _probabilities(head.logits(rest.features), rest.seconds, calibration)
            found.append(_Scores.of(rest, p).balanced())
        points.append((size, round(float(np.mean(found)), 4)))
    return tuple(points)


def _confidence(
    site: Examples, answers: Array, replay: Replay, head: Head, temperature: tuple[TemperatureAt, ...]
) -> tuple[tuple[tuple[float, float], ...], dict[str, float]]:
    """Temperatures and thresholds anew, from answers to events that were not learned from, of the site and of other
    regions: the old temperatures times one factor, since a site has too few events for one a length."""
    from quantize.study.evaluate import fit_temperature, thresholds

    aside = replay.take(~replay.learned & (replay.label != _COLLAPSE))
    calibration = Calibration(temperature)
    logits = np.concatenate([answers, head.logits(aside.features)])
    seconds = np.concatenate([site.seconds, aside.seconds])
    labels = np.concatenate([site.label, aside.label])
    scaled = logits / np.array([calibration.temperature(float(s)) for s in seconds])[:, None]
    factor = fit_temperature(scaled, labels)
    points = tuple((point.seconds, round(point.temperature * factor, 3)) for point in temperature)
    return points, thresholds(softmax(scaled / factor), labels)


def advice(lesson: Lesson) -> str:
    """How many more labels would help, from the end of the learning curve."""
    if len(lesson.curve) < 2:
        return "too few events for a learning curve: about 10 events a class show what more would bring"
    (fewer, before), (more, after) = lesson.curve[-2:]
    slope = (after - before) / np.log2(more / fewer)
    if slope < 0.01:
        return "more labels of the same kind would hardly help: the curve is flat"
    return f"twice as many labels (about {more} more events a class) would add some {100 * slope:.0f} points"


def text(lesson: Lesson, site: str) -> str:
    """The lesson as a report for a terminal."""
    counts = ", ".join(f"{label} {count}" for label, count in lesson.events.items())
    lines = [
        f"{site}: events learned from: {counts}; share of the site in the fit {lesson.share:g}",
        "Events of the site called right, per cent, each by a layer that did not learn from it:",
        f"{'':>12}  as it is  control  taught",
        *(f"{label:>12}  {100 * a:8.0f}  {100 * b:7.0f}  {100 * c:6.0f}" for label, (a, b, c) in lesson.right.items()),
        "{:>12}  {:8.0f}  {:7.0f}  {:6.0f}".format("balanced", *(100 * x for x in lesson.balanced)),
        f"Gain over the control (as many labels of other regions): {lesson.over_control}",
        f"Gain over the network as it is: {lesson.over_shipped}",
        f"Other regions' events right, balanced: {100 * lesson.others[0]:.1f} -> {100 * lesson.others[1]:.1f} %",
    ]
    if lesson.curve:
        points = ", ".join(f"{size}: {100 * value:.0f} %" for size, value in lesson.curve)
        lines.append(f"Learning curve, events a class: {points}")
    lines.append(f"How many more? {advice(lesson)}")
    if "noise" not in lesson.events:
        lines.append("No noise of the site was labelled: some 20 random windows of it would halve the false landslides")
    return "\n".join(lines)
