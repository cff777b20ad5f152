"""Fit the last layer anew: weighted multinomial regression that is drawn towards the old layer.

The cost is convex, so the result does not depend on where the search begins, and a few dozen steps of L-BFGS
(Nocedal & Wright 2006, ch. 7) reach it. The row of a label that is not learned (collapse) stays as it was.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agent.types import LABELS
from quantize.teach.head import Head

Array = NDArray[np.float64]

_KEPT = LABELS.index("collapse")
_MEMORY, _STEPS, _ENOUGH = 10, 60, 1e-4
_SHRUNK = 0.1


@dataclass(frozen=True, slots=True, eq=False)
class Scale:
    """Mean and spread of each feature over the replay bank; the pull towards the old layer is alike for all features
    once they are divided by their spread.

    ``differences`` ``[m, features]``: by how much the features of some windows differ between the files of a bundle.
    What a layer makes of them is part of the cost, times ``rounding``: a layer that leans on what eight bits get wrong
    answers one thing in one file and another in the next.
    """

    mean: Array
    spread: Array
    differences: Array
    rounding: float

    @classmethod
    def of(cls, features: NDArray[np.floating], differences: NDArray[np.floating], rounding: float) -> Scale:
        """From the features of the bank."""
        spread = features.std(axis=0, dtype=np.float64)
        spread = np.maximum(spread, 1e-3 * max(float(spread.max()), 1e-6))
        return cls(features.mean(axis=0, dtype=np.float64), spread, np.asarray(differences, dtype=np.float64), rounding)

    def errors(self) -> Array:
        """A square matrix E, so that the mean squared error of the logits of a row w of a scaled layer is w E w."""
        scaled = self.differences / self.spread
        made: Array = scaled.T @ scaled / max(len(scaled), 1)
        # Windows that are not among these err in other directions as well.
        return (1 - _SHRUNK) * made + _SHRUNK * np.diag(np.diag(made))


def refit(
    features: NDArray[np.floating],
    labels: NDArray[np.int64],
    weights: Array,
    old: Head,
    scale: Scale,
    *,
    pull: float,
    start: Head | None = None,
) -> Head:
    """The layer that explains ``labels`` best, each example with its weight (their sum is made 1).

    ``pull``: how strongly the layer is held to the ``old`` one; ``start``: a layer near the result, which saves steps.
    """
    x = np.concatenate([(features - scale.mean) / scale.spread, np.ones((len(features), 1))], axis=1)
    share = weights / weights.sum()
    hot = np.eye(len(LABELS))[labels]
    before = _scaled(old, scale)
    errors = scale.rounding * scale.errors()

    def cost(flat: Array) -> tuple[float, Array]:
        theta = flat.reshape(before.shape)
        logits = x @ theta.T
        logits -= logits.max(axis=1, keepdims=True)
        powers = np.exp(logits)
        total = powers.sum(axis=1, keepdims=True)
        told = (logits[np.arange(len(labels)), labels] - np.log(total[:, 0])) @ share
        away = theta - before
        gradient = ((powers / total - hot) * share[:, None]).T @ x + pull * away
        wrong = theta[:, :-1] @ errors
        gradient[:, :-1] += wrong
        gradient[_KEPT] = 0.0
        price = pull / 2 * (away**2).sum() + (wrong * theta[:, :-1]).sum() / 2
        return float(price - told), gradient.ravel()

    first = before if start is None else _scaled(start, scale)
    found: Array = _lbfgs(cost, first.ravel().copy()).reshape(before.shape)
    weight = found[:, :-1] / scale.spread
    return Head(weight, found[:, -1] - weight @ scale.mean)


def _scaled(head: Head, scale: Scale) -> Array:
    """Weight and bias of a layer for features with mean 0 and spread 1, ``[5, n + 1]``."""
    return np.concatenate([head.weight * scale.spread, (head.bias + head.weight @ scale.mean)[:, None]], axis=1)


def _lbfgs(cost: Callable[[Array], tuple[float, Array]], x: Array) -> Array:
    value, gradient = cost(x)
    pairs: deque[tuple[Array, Array, float]] = deque(maxlen=_MEMORY)
    for _ in range(_STEPS):
        if np.abs(gradient).max() < _ENOUGH * max(1.0, abs(value)) / 10:
            break
        step = -_inverse_hessian(pairs, gradient)
        slope = float(step @ gradient)
        if slope >= 0:  # rounding has spoiled the memory
            pairs.clear()
            step, slope = -gradient, -float(gradient @ gradient)
        length = 1.0 if pairs else min(1.0, 1.0 / float(np.abs(gradient).sum()))
        for _ in range(30):
            there, slope_there = cost(x + length * step)
            if there <= value + 1e-4 * length * slope:
                break
            length /= 2
        else:
            break
        s, y = length * step, slope_there - gradient
        gained = value - there
        x, value, gradient = x + s, there, slope_there
        if float(s @ y) > 1e-12:
            pairs.append((s, y, 1.0 / float(s @ y)))
        if gained < 1e-7:
            break
    return x


def _inverse_hessian(pairs: deque[tuple[Array, Array, float]], gradient: Array) -> Array:
    q: Array = gradient.copy()
    factors = []
    for s, y, rho in reversed(pairs):
        factor = rho * float(s @ q)
        factors.append(factor)
        q -= factor * y
    if pairs:
        s, y, rho = pairs[-1]
        q *= 1.0 / (rho * float(y @ y))
    for (s, y, rho), factor in zip(pairs, reversed(factors), strict=True):
        q += (factor - rho * float(y @ q)) * s
    return q
