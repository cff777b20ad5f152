"""What the health report says of a sensor's hearing, and the reasons that follow from it.

What is usual at each sensor is kept in a file of the state folder: a restart does not begin a day from nothing.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agent.atomic import replace_file
from agent.dsp.hearing import FAR_ABOVE, SLOTS, Figures, Slot
from agent.dsp.plausible import Fault
from agent.dsp.reference import LARGEST
from agent.messages.schema import Amount, HearingHealth, Name
from agent.reasons import Code, Reason
from agent.types import StationId

LEAST_ARMED = 0.9
MOST_UNARMED_S = 60.0
MOST_MASKED = 0.1
"""Share of the armed time, both of ten minutes and of half an hour, in which the threshold may be far above its usual.
One large event raises it for a minute or two, which is no fault."""
MOST_FLAWED = 0.1
"""Share of the last ten minutes in which samples may look as no working sensor's do."""
MOST_STUCK = 0.1
"""Share, both of ten minutes and of half an hour, in triggers that had lasted for a minute: in them no event begins."""
_CODE: Mapping[Fault, Code] = {
    "constant": "constant",
    "copies": "copies",
    "repeats": "repeats",
    "filled": "filled",
    "clipped": "clipped",
    "last_bit": "last_bit",
    "disconnected": "disconnected",
    "quieter_than_neighbours": "quieter",
    "quieter_than_usual": "quieter",
    "louder_than_neighbours": "louder",
    "louder_than_usual": "louder",
}
_WORDS: Mapping[Fault, str] = {
    "constant": "the samples of {which} do not change",
    "copies": "{which} have the same samples",
    "repeats": "{which} has the same samples again and again",
    "filled": "{which} stands still again and again between motion: the recorder fills gaps, or repeats samples",
    "clipped": "{which} is cut off at the largest value that the recorder writes",
    "last_bit": "{which} moves by less than one count in the trigger's band",
    "disconnected": "{which} has become far quieter, and as even as electronics' noise: the recorder hears no sensor",
    "quieter_than_neighbours": "{which} is a thousand times quieter than the other components",
    "quieter_than_usual": "{which} is a thousand times quieter than usual",
    "louder_than_neighbours": "{which} is a thousand times louder than the other components",
    "louder_than_usual": "{which} is a thousand times louder than usual",
}
_HIDES: Mapping[Fault, tuple[Fault, ...]] = {
    "constant": ("filled", "last_bit", "disconnected", "quieter_than_neighbours", "quieter_than_usual"),
    "last_bit": ("filled", "disconnected", "quieter_than_neighbours", "quieter_than_usual"),
    "disconnected": ("quieter_than_neighbours", "quieter_than_usual"),
    "quieter_than_neighbours": ("quieter_than_usual",),
    "louder_than_neighbours": ("louder_than_usual",),
}
"""What need not be said of a component of which that is said."""
FILE = "hearing.json"
WRITE_S = 600.0
MAX_BYTES = 4_000_000
_log = logging.getLogger(__name__)


def hearing_health(station: StationId, figures: Figures) -> HearingHealth:
    """For the report."""
    return HearingHealth(
        station=str(station),
        listening_in_s=None if figures.listening_in_s is None else round(figures.listening_in_s, 1),
        armed_10min=_rounded(figures.armed_10min),
        armed_hour=_rounded(figures.armed_hour),
        threshold_counts=_significant(figures.threshold),
        usual_counts=_significant(figures.usual),
        usual_hours=round(figures.usual_s / 3600, 2),
        plausible=not _flaws(figures),
    )


def problems(station: StationId, figures: Figures, limit_counts: float | None = None) -> list[Reason]:
    """Why the sensor does not hear as it should; ``limit_counts`` is the configured largest threshold."""
    name = str(station)
    found = [
        Reason(_CODE[fault], f"{name}: {_WORDS[fault].format(which=', '.join(sorted(letters)))}", name)
        for fault, letters in _flaws(figures).items()
    ]
    if not figures.can_trigger:
        text = f"with these trigger settings no event below {LARGEST:g} times the noise would trigger"
        found.append(Reason("cannot_trigger", f"{name}: {text}", name))
    elif _is_deaf(figures):
        text = f"could trigger for only {figures.armed_10min:.0%} of the last 10 minutes"
        found.append(Reason("not_armed", f"{name}: {text}", name))
    threshold, usual = figures.threshold, figures.usual
    if min(figures.masked_10min, figures.masked_30min) > MOST_MASKED and threshold is not None and usual is not None:
        text = (
            f"for {figures.masked_10min:.0%} of the last 10 minutes only events more than {FAR_ABOVE:g} times as large "
            f"as usual would trigger (median {threshold:.3g} counts, usually {usual:.3g})"
        )
        found.append(Reason("threshold_high", f"{name}: {text}", name))
    if limit_counts is not None and threshold is not None and threshold > limit_counts:
        text = f"only events above {threshold:.3g} counts would trigger, the limit is {limit_counts:g}"
        found.append(Reason("threshold_limit", f"{name}: {text}", name))
    if min(figures.stuck_10min, figures.stuck_30min) > MOST_STUCK:
        text = f"for {figures.stuck_10min:.0%} of the last 10 minutes in a trigger that did not end after a minute"
        found.append(Reason("always_triggered", f"{name}: {text}", name))
    return found


def _is_deaf(figures: Figures) -> bool:
    """Whether the sensor counts as deaf. In the first minutes a short gap is a large share, and no reason yet."""
    armed = figures.armed_10min
    return armed is not None and armed < LEAST_ARMED and (figures.unarmed_s > MOST_UNARMED_S or armed < 0.5)


def _flaws(figures: Figures) -> dict[Fault, set[str]]:
    """The components with each fault, for long enough to be told of."""
    found: dict[Fault, set[str]] = {fault: set() for fault in _CODE}
    for (fault, letter), share in figures.flaws.items():
        if share >= MOST_FLAWED:
            found[fault].add(letter)
    for fault, hidden in _HIDES.items():
        for other in hidden:
            found[other] -= found[fault]
    return {fault: letters for fault, letters in found.items() if letters}


def _rounded(share: float | None) -> float | None:
    return None if share is None else round(share, 4)


def _significant(counts: float | None) -> float | None:
    return None if counts is None else float(f"{counts:.4g}")


class _Slot(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    start_s: int
    threshold: Amount
    levels: dict[Name, Amount] = Field(max_length=16)
    band: tuple[Amount, Amount, int]


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    sensors: dict[Name, list[_Slot]] = Field(max_length=1024)


class HearingMemory:
    """Owned by the main thread."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / FILE
        self._failed = False
        self._next = time.monotonic() + WRITE_S

    def read(self) -> dict[StationId, tuple[Slot, ...]]:
        """What the file holds. One that cannot be used is logged; what is usual is then learned anew."""
        try:
            with self._path.open("rb") as file:
                found = _File.model_validate_json(file.read(MAX_BYTES))
        except FileNotFoundError:
            return {}
        except (OSError, ValidationError, ValueError) as error:
            _log.warning("%s is not used: %s", self._path, str(error).splitlines()[0])
            return {}
        return {
            StationId(*name.split(".")): tuple(
                Slot(one.start_s, one.threshold, one.levels, one.band) for one in slots[-SLOTS:]
            )
            for name, slots in found.sensors.items()
            if name.count(".") == 3
        }

    def tick(self, now: float, known: Callable[[], Mapping[StationId, Sequence[Slot]]]) -> None:
        """Write every ten minutes; ``now`` is the monotonic clock."""
        if now >= self._next:
            self._next = now + WRITE_S
            self.write(known())

    def write(self, known: Mapping[StationId, Sequence[Slot]]) -> None:
        """Replace the file; a disk that refuses is logged once, and is no reason to stop."""
        sensors = {
            str(name): [
                _Slot(start_s=one.start_s, threshold=one.threshold, levels=dict(one.levels), band=one.band)
                for one in slots
            ]
            for name, slots in known.items()
            if slots
        }
        if not sensors:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            content = json.dumps(_File(sensors=sensors).model_dump(), separators=(",", ":")).encode()
            replace_file(self._path, content, durable=False)  # the main thread, which reports, waits for no disk
            self._failed = False
        except OSError as error:
            if not self._failed:
                _log.warning(
                    "%s: %s; after a restart the usual threshold is measured again", self._path, error.strerror
                )
            self._failed = True
