"""A day of a station as a drum: 24 lines of an hour, events in the colours of their classes; gaps are white."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from desk.drum import DAY_S, Drum
from desk.pictures.style import COLOURS, counts_text, figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_INK = "#1a2027"
_CLIP = 1.6
"""Lines may reach so far into their neighbours."""


@dataclass(frozen=True, slots=True)
class Mark:
    """An event of the day: seconds after midnight, length in seconds, class."""

    second: float
    duration_s: float
    label: str


def draw(drum: Drum, marks: Sequence[Mark], title: str) -> Figure:
    """The picture. Counts are clipped where a line would cross its neighbours."""
    picture = figure(10.0, 7.4)
    place = picture.subplots()
    scale = drum.scale()
    label = np.full(DAY_S, -1)
    names = tuple(COLOURS)
    for mark in marks:
        first, last = max(0, int(mark.second)), min(DAY_S, int(np.ceil(mark.second + max(1.0, mark.duration_s))))
        label[first:last] = names.index(mark.label)
        for hour in range(first // 3600, (max(first, last - 1)) // 3600 + 1):
            begin, end = max(first, hour * 3600) - hour * 3600, min(last, (hour + 1) * 3600) - hour * 3600
            place.barh(hour, max(4, end - begin), left=begin, height=0.9, color=COLOURS[mark.label], alpha=0.22)
    known = np.isfinite(drum.low)
    seconds = np.flatnonzero(known)
    low, high = (np.clip(part[seconds] / scale, -_CLIP, _CLIP) / 2 for part in (drum.low, drum.high))
    hours = seconds // 3600
    for number in np.unique(label[seconds]) if len(seconds) else ():
        mine = label[seconds] == number
        colour = _INK if number < 0 else COLOURS[names[number]]
        place.vlines(
            seconds[mine] % 3600, hours[mine] - high[mine] - 0.01, hours[mine] - low[mine] + 0.01, colors=colour,
            linewidth=0.5,
        )  # fmt: skip
    place.set_ylim(24.0, -1.0)
    place.set_xlim(0, 3600)
    place.set_yticks(range(24), [f"{hour:02d}:00" for hour in range(24)], fontsize=7)
    place.set_xticks(range(0, 3601, 600), [f"{minute}" for minute in range(0, 61, 10)], fontsize=7)
    sensor = f"{drum.sensor}.{drum.component}, " if drum.sensor else "no samples; "
    place.set_xlabel(
        f"minutes; {sensor}the middle of a line to its edge is {counts_text(scale)} counts; UTC", fontsize=8
    )
    place.spines[["top", "right", "left"]].set_visible(False)
    picture.suptitle(title, fontweight="bold")
    shown = [name for name in COLOURS if any(mark.label == name for mark in marks)]
    for name in shown:
        n = sum(mark.label == name for mark in marks)
        place.plot([], [], "s", color=COLOURS[name], label=f"{name} {n}")
    if shown:
        place.legend(loc="upper right", fontsize=7, ncols=len(shown), frameon=False)
    return picture
