"""``talus classify``: one verdict a station for every record given, as the agent would reach it on that window."""

from __future__ import annotations

import argparse
import csv
import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.commands.options import check_time
from agent.config.station import TriggerConfig
from agent.errors import ConfigError, DataError, TalusError, UsageError, in_words
from agent.types import (
    LABELS,
    NS,
    POST_ONSET_S,
    format_ns,
    parse_ns,
)

if TYPE_CHECKING:
    from agent.inference import Classifier
    from agent.sources import ProblemSink, SourceProblem

EXAMPLE = "talus classify event.mseed --onset 2026-03-01T12:00:05 --json"

LONG = 20
"""Files from which on progress is shown."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="*", metavar="FILE", help="records: miniSEED, with ObsPy also other formats")
    parser.add_argument("--onset", metavar="ISO", help="onset (UTC) of all files; without it the strongest trigger")
    parser.add_argument(
        "--table", type=Path, metavar="CSV", help="files and onsets: columns trace_name and trace_onset_time"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=POST_ONSET_S,
        metavar="S",
        help="use only what S seconds after the onset would have",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument(
        "--png", type=Path, metavar="FOLDER", help="also a picture of each station of each file (extra `plot`)"
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="trigger and classifier of this configuration")


@dataclass(frozen=True, slots=True)
class _Item:
    shown: str
    path: Path
    onset: str | None


def main(args: argparse.Namespace) -> int:
    if not (args.files or args.table):
        raise UsageError("nothing to classify", "name a FILE, or a --table of them")
    if not 0 < args.seconds <= POST_ONSET_S:
        raise UsageError(
            f"--seconds must be positive, and at most {POST_ONSET_S:g}, not {args.seconds:g}",
            "leave it out to use all of the record",
        )
    if args.onset:
        check_time("--onset", args.onset)
    from tqdm import tqdm

    from agent.config.file import ClassifierConfig, TunablesConfig, load
    from agent.service.assemble import open_classifier

    config = load(args.config) if args.config else None
    tunables = config.tunables if config else TunablesConfig()
    classifier, fallbacks = open_classifier(config.classifier if config else ClassifierConfig())
    for reason in fallbacks:
        print(f"talus classify: {reason}", file=sys.stderr)
    items = [_Item(name, Path(name), args.onset) for name in args.files]
    if args.table:
        items += _read_table(args.table, args.onset)
    trigger = tunables.trigger
    draw = _painter(args.png) if args.png is not None else None
    failed = 0

    def problem(what: SourceProblem) -> None:
        with bar.external_write_mode():
            print(f"talus classify: {what}", file=sys.stderr)

    bar = tqdm(items, unit="file", disable=len(items) < LONG or not sys.stderr.isatty(), leave=False)
    for item in bar:
        try:
            for line in _classify_file(item, args.seconds, trigger, classifier, problem):
                with bar.external_write_mode():
                    print(json.dumps(line) if args.json else _text(line))
            if draw is not None:
                draw(args.png, item.path, classifier, parse_ns(item.onset) if item.onset else None, trigger)
        except TalusError as error:
            failed += 1
            message = error.message.removeprefix(f"{item.path}: ")
            with bar.external_write_mode():
                if args.json:
                    print(json.dumps({"file": item.shown, "error": message}))
                else:
                    print(f"{item.shown}  error: {message}")
                    print(f"  hint: {error.hint}", file=sys.stderr)
    if failed:
        print(f"talus classify: {failed} of {len(items)} could not be classified", file=sys.stderr)
    return 1 if failed else 0


def _painter(folder: Path) -> Callable[..., object]:
    """What draws a file. It belongs to the desk, and is loaded by its name only when it is asked for, as a command is:
    a station needs none of it.

    Raises:
        ConfigError: matplotlib is not installed.
        UsageError: the folder cannot be made.
    """
    found: Callable[..., object] = importlib.import_module("desk.pictures.of_file").write_pictures
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("pictures need matplotlib", "pip install 'talus-agent[plot]'")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder}: {in_words(error)}", "name a folder that you may write") from None
    return found


def _read_table(table: Path, onset: str | None) -> Iterator[_Item]:
    """Files and onsets of a table; an ``onset`` of the command line goes before those.

    Raises:
        DataError: not such a table.
    """
    try:
        with table.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle)
            missing = {"trace_name", "trace_onset_time"} - set(reader.fieldnames or ())
            if missing:
                raise DataError(
                    f"{table} has no column {' and no column '.join(sorted(missing))}",
                    "the first line names the columns; trace_name and trace_onset_time are needed",
                )
            for row in reader:
                name = row["trace_name"]
                if not name:
                    raise DataError(
                        f"{table}:{reader.line_num}: no trace_name", "write a file's path, or remove the line"
                    )
                yield _Item(name, table.parent / name, onset or row["trace_onset_time"] or None)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = in_words(error)
        raise DataError(f"{table} cannot be read as a table: {reason}", "give a CSV file in UTF-8") from None


def _classify_file(
    item: _Item, seconds: float, trigger: TriggerConfig, classifier: Classifier, on_problem: ProblemSink
) -> Iterator[dict[str, Any]]:
    from agent.dsp.window import prepare
    from agent.sources.records import read_records, strongest_trigger

    if item.path.is_dir():
        raise DataError("is a folder", f"name its files, or replay it: talus replay {item.shown}")
    given = parse_ns(item.onset) if item.onset else None
    for record in read_records(item.path, on_problem=on_problem):
        station, rows = record
        strongest = strongest_trigger(record, trigger)
        start = min(run.start_ns for runs in rows.values() for run in runs)
        end = max(run.end_ns for runs in rows.values() for run in runs)
        if given is not None and not start <= given < end:
            raise DataError(
                f"the onset {format_ns(given)} is outside the record of {station}",
                f"it runs from {format_ns(start)} to {format_ns(end)}",
            )
        # Nothing triggers: the agent would be silent here. The verdict is then on the middle of the record.
        onset = given if given is not None else strongest if strongest is not None else (start + end) // 2
        allowed = min(seconds, POST_ONSET_S, max((end - onset) / NS, 1 / NS))
        window = prepare(rows, onset, allowed, classifier.preparation)
        if not window.data.any():
            raise DataError(
                f"the samples of {station} around {format_ns(onset)} do not change, or are missing",
                "a dead sensor, cable or converter; name another moment with --onset",
            )
        verdict = classifier.classify(window)
        yield {
            "file": item.shown,
            "station": str(station),
            "onset": format_ns(onset),
            "triggered": strongest is not None,
            "label": verdict.label,
            "probability": round(verdict.probability, 4),
            "probabilities": {label: round(p, 4) for label, p in zip(LABELS, verdict.probabilities, strict=True)},
            "abstained": verdict.abstained,
            "window_s": round(verdict.window_s, 2),
        }


def _text(line: Mapping[str, Any]) -> str:
    mark = "?" if line["abstained"] else " "
    onset = line["onset"][:23] + "Z"
    heard = "trigger" if line["triggered"] else "quiet  "
    return (
        f"{line['file']}  {line['station']}  {onset}  {heard}  "
        f"{line['label']:10s} {line['probability']:.2f}{mark} {line['window_s']:.1f} s"
    )
