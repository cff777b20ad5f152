"""What a unit ends in: one file of JSON that depends on what was read, the settings and the bundle, on nothing else.

No time of day, machine, path or engine is in it, so that the same unit gives the same bytes wherever it is judged.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from agent.types import LABELS, SLOW, Event, StationId, format_ns
from desk.scan.ledger import Ledger

SCHEMA = "talus/scan-unit/2"
EVENT_COLUMNS = (
    "source_id", "trace_onset_time", "source_type", "label", "probability", "abstained",
    *(f"probability_{label}" for label in LABELS), "window_s", "ratio", "duration_s", "peak_counts", "noise_counts",
    "dominant_hz", "peak_ratio", "rise_s", "held_s", "growth_db_min", "centroid_hz",
    "trace_component_order", "gap_s", "timing_percent", "time_questionable", "reason",
)  # fmt: skip
"""Of an event in a unit's file, in this order; ``catalogue.COLUMNS`` has the units."""
UNDECIDED, UNCLASSIFIED = "undecided", "unclassified"
"""Types of an event on which the network abstained, and of one on which it failed."""


@dataclass(frozen=True, slots=True)
class Result:
    """Events of a unit in the order of their onsets, as rows of ``EVENT_COLUMNS``. ``key`` names what it was made from,
    ``settings`` the settings with the bundle. ``seam``: events found before the unit's begin, by identifier."""

    key: str
    settings: str
    station: StationId
    from_ns: int
    to_ns: int
    seam_ns: int
    events: list[list[Any]]
    ledger: Ledger
    seam: list[str] = field(default_factory=list)

    def content(self) -> bytes:
        """The file. A row is a line, for ``grep``."""
        head = {
            "schema": SCHEMA,
            "key": self.key,
            "settings": self.settings,
            "station": list(asdict(self.station).values()),
            "from_ns": self.from_ns,
            "to_ns": self.to_ns,
            "seam_ns": self.seam_ns,
            "seam": self.seam,
            "ledger": asdict(self.ledger),
            "columns": EVENT_COLUMNS,
        }
        rows = ",\n".join(_compact(row) for row in self.events)
        return f'{_compact(head)[:-1]},"events":[\n{rows}\n]}}\n'.encode()

    @classmethod
    def of(cls, content: bytes) -> Result:
        """Read the file.

        Raises:
            ValueError: not such a file, or a damaged one.
        """
        try:
            found: Mapping[str, Any] = json.loads(content)
            if found["schema"] != SCHEMA or tuple(found["columns"]) != EVENT_COLUMNS:
                raise ValueError("it was written by another version of Talus")
            return cls(
                found["key"], found["settings"], StationId(*found["station"]), found["from_ns"], found["to_ns"],
                found["seam_ns"], found["events"], Ledger(**found["ledger"]), found["seam"],
            )  # fmt: skip
        except (KeyError, TypeError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from None


def row_of(event: Event) -> list[Any]:
    """An event's last revision as a row; numbers are rounded as in its message (``agent.messages.payloads``)."""
    seen, quality, verdict = event.detection, event.quality, event.classification
    shares: Sequence[float | None] = [None] * len(LABELS)
    kind = UNCLASSIFIED
    swell: Sequence[float | None] = [None] * 5
    if event.swell is not None:
        found, kind = event.swell, SLOW
        centroid = None if found.centroid_hz is None else round(found.centroid_hz, 2)
        swell = [round(found.peak_ratio, 2), found.rise_s, found.held_s, round(found.growth_db_min, 2), centroid]
    if verdict is not None:
        shares = [round(share, 4) for share in verdict.probabilities]
        kind = UNDECIDED if verdict.abstained else verdict.label
    return [
        event.id,
        format_ns(event.onset_ns),
        kind,
        None if verdict is None else verdict.label,
        None if verdict is None else round(verdict.probability, 4),
        None if verdict is None else verdict.abstained,
        *shares,
        None if verdict is None else round(verdict.window_s, 2),
        round(seen.ratio, 2),
        round(seen.duration_s, 2),
        round(seen.peak_counts, 2),
        None if seen.noise_counts is None else round(seen.noise_counts, 3),
        None if seen.dominant_hz is None else round(seen.dominant_hz, 3),
        *swell,
        quality.components,
        round(quality.gap_s, 3),
        quality.clock.timing_percent,
        quality.clock.time_questionable,
        event.reason,
    ]


def _compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)
