"""Events per bin by class, cumulated, the inverse rate of landslides; hours not heard are grey."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from itertools import groupby
from typing import TYPE_CHECKING

from desk.pictures.style import COLOURS, figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_BINS = 400
"""More could not be told apart."""
FULLY = 0.9
"""Share of an hour that must have been heard for it to be white."""


def bin_of(span: int) -> int:
    """Length of a bin for a span, both hours: one, a quarter of a day, a day, a week, or thirty days."""
    return next((hours for hours in (1, 6, 24, 168) if span <= MOST_BINS * hours), 720)


def draw(
    counts: Sequence[tuple[int, str, int]],
    heard: Mapping[int, float] | None,
    span: tuple[int, int],
    hours: int,
    title: str,
) -> Figure:
    """``counts``: hour since 1970, class, events, in bins of ``hours``; ``heard``: share of each hour, None where it is
    not known; ``span``: first and last hour."""
    picture = figure(9.0, 6.6)
    bins, sums, inverse = picture.subplots(3, 1, sharex=True)
    picture.suptitle(title, fontweight="bold")
    base: dict[int, int] = {}
    for name, colour in COLOURS.items():
        mine = sorted((hour, n) for hour, kind, n in counts if kind == name)
        if not mine:
            continue
        bottoms = [base.get(hour, 0) for hour, _ in mine]
        middles, heights = [_time(hour + hours / 2) for hour, _ in mine], [n for _, n in mine]
        label = f"{name} {sum(heights)}"
        bins.bar(middles, heights, width=hours / 24 * 0.95, bottom=bottoms, color=colour, label=label)
        for hour, n in mine:
            base[hour] = base.get(hour, 0) + n
        total, edges, steps = 0, [_time(span[0])], [0]
        for hour, n in mine:
            total += n
            edges.append(_time(hour + hours / 2))
            steps.append(total)
        sums.step([*edges, _time(span[1])], [*steps, total], where="post", color=colour)
    # A rate of hours that were not heard is none.
    slides = [
        (hour, hours / n) for hour, kind, n in counts if kind == "landslide" and _is_heard(heard, hour, hours, span)
    ]
    inverse.plot(
        [_time(hour + hours / 2) for hour, _ in slides], [value for _, value in slides], "o", markersize=3,
        color=COLOURS["landslide"],
    )  # fmt: skip
    for place, words in ((bins, f"events per {hours} h"), (sums, "cumulated"), (inverse, "hours per landslide")):
        place.set_ylabel(words, fontsize=8)
        place.set_ylim(bottom=0)
        place.tick_params(labelsize=7)
        if heard is not None:
            for first, end in _deaf(heard, span):
                place.axvspan(_time(first), _time(end), color="#d8dee4", linewidth=0, zorder=0)
    if base:
        bins.set_ylim(top=1.35 * max(base.values()))  # room for the legend
        bins.legend(fontsize=7, ncols=4, frameon=False)
    inverse.set_xlabel("UTC" if heard is None else "UTC; grey: hours not heard", fontsize=8)
    inverse.set_xlim(_time(span[0]), _time(span[1]))
    picture.autofmt_xdate(rotation=0, ha="center")
    return picture


def _is_heard(heard: Mapping[int, float] | None, hour: int, hours: int, span: tuple[int, int]) -> bool:
    """Whether a bin was, as far as it lies in the span."""
    inside = range(max(hour, span[0]), min(hour + hours, span[1]))
    return heard is None or sum(heard.get(one, 0.0) for one in inside) >= FULLY * len(inside)


def _deaf(heard: Mapping[int, float], span: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Runs of hours that were not heard: ten years have 88,000 hours, and few runs."""
    for deaf, run in groupby(range(*span), lambda hour: heard.get(hour, 0.0) < FULLY):
        hours = list(run)
        if deaf:
            yield hours[0], hours[-1] + 1


def _time(hour: float) -> datetime:
    return datetime.fromtimestamp(hour * 3600, timezone.utc)
