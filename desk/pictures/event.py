"""One event: its components, the spectrogram, STA/LTA, and how the probabilities grew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from agent.types import LABELS
from desk.pictures.style import COLOURS, figure
from desk.record import Spectrogram, Trace, palette, ratio

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Transform

_LEFT = 0.74
"""Inches for the name of a plot and its largest number."""


@dataclass(frozen=True, slots=True)
class Told:
    """What is known of an event besides its record. ``verdicts``: seconds after the onset and the probabilities."""

    title: str
    label: str
    duration_s: float | None = None
    verdicts: Sequence[tuple[float, dict[str, float]]] = field(default=())
    footer: str = ""
    exercise: bool = False


def draw(traces: Sequence[Trace], strip: Spectrogram, told: Told, *, small: bool = False) -> Figure:
    """The picture; ``small`` leaves out what a phone cannot show."""
    rows = len(traces) + 1 + (0 if small else 1) + bool(told.verdicts)
    width, height = 6.4 if small else 9.0, 0.9 + 1.15 * rows
    picture = figure(width, height, fitted=False)
    picture.subplots_adjust(
        left=_LEFT / width, right=1 - 0.12 / width, bottom=0.46 / height, top=1 - 0.42 / height, hspace=0.14
    )
    ratios = [1.0] * len(traces) + [1.4] + [0.9] * (rows - len(traces) - 1)
    axes = picture.subplots(rows, 1, sharex=True, height_ratios=ratios, squeeze=False)[:, 0]
    colour = COLOURS.get(told.label, COLOURS["unclassified"])
    words = f"EXERCISE  {told.title}" if told.exercise else told.title
    picture.suptitle(words, color=colour, fontweight="bold", fontsize=11 if small else 13, y=1 - 0.1 / height, va="top")
    for place, trace in zip(axes, traces, strict=False):
        place.plot(trace.times_s, trace.samples, color="#1a2027", linewidth=0.5)
        place.set_ylabel(f"{trace.name}, counts", fontsize=8)
        _marks(place, told, colour)
    _strip(axes[len(traces)], strip)
    after = axes[len(traces) + 1 :]
    if not small:
        first = traces[0]
        after[0].plot(first.times_s, ratio(first), color="#1a2027", linewidth=0.8)
        after[0].set_ylabel("STA/LTA", fontsize=8)
        _marks(after[0], told, colour)
    if told.verdicts:
        _verdicts(after[-1], told)
    axes[-1].set_xlabel(f"seconds after the onset{'   ' + told.footer if told.footer else ''}", fontsize=8)
    axes[-1].set_xlim(min(t.start_s for t in traces), max(float(t.times_s[-1]) for t in traces))
    for place in axes:
        place.tick_params(labelsize=7)
        place.yaxis.set_label_coords(0.16 / width, 0.5, transform=_from_left(picture, place))
        place.margins(x=0)
    return picture


def _from_left(picture: Figure, place: Axes) -> Transform:
    """Widths of the picture across, heights of one plot up: where the names of the plots stand one above the other."""
    from matplotlib.transforms import blended_transform_factory

    return blended_transform_factory(picture.transFigure, place.transAxes)


def _marks(place: Axes, told: Told, colour: str) -> None:
    place.axvline(0, color=colour, linewidth=1)
    if told.duration_s:
        place.axvspan(0, told.duration_s, color=colour, alpha=0.12, linewidth=0)
    for seconds, _ in told.verdicts:
        place.axvline(seconds, color="#5d6975", linewidth=0.5, linestyle=":")


def _strip(place: Axes, strip: Spectrogram) -> None:
    from matplotlib.colors import ListedColormap

    top = float(strip.decibels.max())
    place.imshow(
        strip.decibels, aspect="auto", origin="lower", vmin=top - 45, vmax=top, interpolation="bilinear",
        cmap=ListedColormap(palette() / 255.0), extent=(strip.start_s, strip.end_s, 0, strip.top_hz),
    )  # fmt: skip
    place.set_ylabel(f"{strip.component}, Hz", fontsize=8)


def _verdicts(place: Axes, told: Told) -> None:
    times = [seconds for seconds, _ in told.verdicts]
    for label in LABELS:
        values = [shares.get(label, 0.0) for _, shares in told.verdicts]
        if max(values) < 0.02:
            continue
        edges: list[Any] = [*times, max(times) * 1.02 + 1]
        place.step(edges, np.append(values, values[-1]), where="post", color=COLOURS[label], label=label, linewidth=1.6)
    place.set_ylim(0, 1.02)
    place.set_ylabel("probability", fontsize=8)
    place.legend(loc="upper left", fontsize=7, ncols=5, frameon=False)
