"""A contact sheet: many events at one sight, each with its trace, class and probability."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from agent.config.station import TriggerConfig
from agent.types import format_ns
from desk.pictures.style import COLOURS, counts_text, figure
from desk.record import USUAL, Trace, band_passed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 4
BEFORE_S, AFTER_S = 5.0, 40.0
"""Of each record that is shown, about the onset."""
LEAD_S = 10.0
"""Before that, for the filter to settle."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One event. ``trace`` is its vertical, or None where its record cannot be had."""

    title: str
    label: str
    duration_s: float | None
    trace: Trace | None


def title_of(name: str, probability: float | None, station: str, onset_ns: int) -> str:
    """The words above a cell; ``station`` is NET.STA."""
    share, onset = "" if probability is None else f" {probability:.2f}", format_ns(onset_ns)
    return f"{name}{share}  {station}  {onset[:10]} {onset[11:19]}"


def draw(cells: Sequence[Cell], title: str, trigger: TriggerConfig = USUAL) -> Figure:
    """The picture; each trace, band-passed as by the ``trigger``, fills its own cell, with its largest amplitude
    written below it."""
    rows = max(1, -(-len(cells) // COLUMNS))
    picture = figure(11.0, 0.7 + 1.25 * rows)
    places = picture.subplots(rows, COLUMNS, sharex=True, squeeze=False).ravel()
    picture.suptitle(title, fontweight="bold")
    for place, cell in zip(places, cells, strict=False):
        colour = COLOURS.get(cell.label, COLOURS["unclassified"])
        place.set_title(cell.title, fontsize=7, color=colour, loc="left", pad=2)
        if cell.trace is None:
            place.text(0.5, 0.5, "no record", transform=place.transAxes, ha="center", fontsize=8, color="#777f87")
            continue
        shown = band_passed(cell.trace, trigger)  # a drift would hide the event
        near = (shown.times_s >= -BEFORE_S) & (shown.times_s <= AFTER_S)
        place.plot(shown.times_s[near], shown.samples[near], color="#1a2027", linewidth=0.5)
        place.axvline(0, color=colour, linewidth=1)
        if cell.duration_s:
            place.axvspan(0, min(cell.duration_s, AFTER_S), color=colour, alpha=0.14, linewidth=0)
        known = shown.samples[near & np.isfinite(shown.samples)]
        if len(known):
            largest = float(np.abs(known).max())
            place.set_ylim(-1.6 * (largest or 1.0), 1.1 * (largest or 1.0))  # room for the words
            place.text(
                0.99,
                0.02,
                f"{counts_text(largest)} counts",
                transform=place.transAxes,
                ha="right",
                fontsize=6,
            )
    for number, place in enumerate(places):
        place.set_yticks([])
        place.tick_params(labelsize=6)
        place.spines[["top", "right", "left"]].set_visible(False)
        place.set_xlim(-BEFORE_S, AFTER_S)
        if number >= len(cells):
            place.axis("off")
        elif number >= len(places) - COLUMNS:
            place.set_xlabel("s after the onset", fontsize=6)
    return picture
