"""The picture of a record in a file: what the network says of it as it grows, as a station would."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from agent.config.station import TriggerConfig, VerdictConfig
from agent.dsp.window import prepare
from agent.errors import DataError
from agent.sources.records import StationRecord, read_records, strongest_trigger
from agent.types import LABELS, NS, POST_ONSET_S, format_ns
from desk.pictures.event import Told, draw
from desk.pictures.style import save
from desk.record import LONGEST_S, spectrogram, traces_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from agent.inference import Classifier

BEFORE_NS, AFTER_NS = 60 * NS, 180 * NS
"""What is shown around the onset of a record that is too long to be shown whole."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """One sensor's picture, with the class that the network gives it."""

    sensor: str
    label: str
    picture: Figure


def write_pictures(
    folder: Path, path: Path, classifier: Classifier, onset_ns: int | None, trigger: TriggerConfig
) -> None:
    """A PNG for each sensor of a file, in a folder that is there: NAME-SENSOR.png.

    Raises:
        SourceError, DataError: as ``pictures_of``.
        UsageError: the folder cannot be written.
    """
    for drawn in pictures_of([path], classifier, onset_ns, trigger=trigger):
        save(drawn.picture, folder / f"{path.stem}-{drawn.sensor}.png")


def pictures_of(
    paths: Sequence[Path],
    classifier: Classifier,
    onset_ns: int | None = None,
    *,
    trigger: TriggerConfig | None = None,
    small: bool = False,
) -> Iterator[Drawn]:
    """One picture for each sensor of the files. Without an onset the strongest trigger is taken, or the middle.

    Raises:
        SourceError: nothing in the files can be used.
        DataError: the onset is outside the record.
    """
    for record in read_records(*paths):
        sensor = str(record.station)
        begin = min(run.start_ns for runs in record.rows.values() for run in runs)
        end = max(run.end_ns for runs in record.rows.values() for run in runs)
        if onset_ns is not None and not begin <= onset_ns < end:
            words = f"the onset {format_ns(onset_ns)} is outside the record of {sensor}"
            raise DataError(words, f"it runs from {format_ns(begin)} to {format_ns(end)}")
        found = onset_ns if onset_ns is not None else strongest_trigger(record, trigger or TriggerConfig())
        onset = found if found is not None else (begin + end) // 2
        grown = list(_grown(record, onset, end, classifier))
        last = grown[-1]
        label = max(last[1], key=lambda name: last[1][name])
        words = "" if found is not None else "  (no trigger: the middle of the record)"
        title = (
            f"{label} {100 * last[1][label]:.0f} %  {sensor}  {format_ns(onset)[:10]} {format_ns(onset)[11:19]}{words}"
        )
        is_long = end - begin > LONGEST_S * NS
        shown = traces_of(record.between(onset - BEFORE_NS, onset + AFTER_NS) if is_long else record, onset)
        yield Drawn(sensor, label, draw(shown, spectrogram(shown[0]), Told(title, label, None, grown), small=small))


def _grown(
    record: StationRecord, onset: int, end: int, classifier: Classifier
) -> Iterator[tuple[float, dict[str, float]]]:
    """Verdicts at the seconds at which a station would give them, as far as the record goes."""
    there_s = min(POST_ONSET_S, max((end - onset) / NS, 0.1))
    steps: Sequence[float] = [s for s in VerdictConfig().at_s if s < there_s]
    for seconds in (*steps, there_s):
        verdict = classifier.classify(prepare(record.rows, onset, seconds, classifier.preparation))
        yield verdict.window_s, dict(zip(LABELS, verdict.probabilities, strict=True))
