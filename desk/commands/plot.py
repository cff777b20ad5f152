"""``talus plot``: events, days, contact sheets and rates as pictures, without the web."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from agent.errors import ConfigError, DataError, TalusError, UsageError
from agent.types import NS, counted, format_ns, parse_ns
from desk.commands.options import desk_config

if TYPE_CHECKING:
    from desk.evidence import Records
    from desk.pictures.sheet import Cell
    from desk.store.queries import EventRow
    from desk.store.store import Store

EXAMPLE = (
    "talus plot event record.mseed -o event.png\n"
    "  talus plot event sds/2026/XX/SLOPE/HH?.D/*.2026.060 --onset 2026-03-01T03:00:00Z -o event.png\n"
    "  talus plot event XX.SLOPE.00.HH-20260101T030000.120Z --config /etc/talus/desk.yaml -o event.webp\n"
    "  talus plot day XX.SLOPE 2026-01-01 -o day.png\n"
    "  talus plot sheet --unsure -o sheet.png\n"
    "  talus plot sheet scan/catalogue.parquet --class landslide -o sheet.png\n"
    "  talus plot rate --hours 6 -o rate.svg\n"
    "  talus plot rate scan/catalogue.csv -o rate.png"
)
HOUR_NS = 3600 * NS
DAY_NS = 24 * HOUR_NS
_LONG_NS, _FEW = 365 * DAY_NS, 0.05
"""Over a longer span of which a smaller share was heard, a picture of rates shows next to nothing."""


@dataclass(frozen=True, slots=True)
class _Desk:
    store: Store
    records: Records


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    event = kinds.add_parser("event", help="one event: traces, spectrogram, STA/LTA, how the verdict grew")
    event.add_argument(
        "what", nargs="+", metavar="FILE|ID",
        help="a record, also in several files, such as one a component; or an event of the desk",
    )  # fmt: skip
    event.add_argument("--onset", metavar="ISO", help="onset (UTC) in a file; without it the strongest trigger")
    event.add_argument("--small", action="store_true", help="the small version sent with a notification")
    day = kinds.add_parser("day", help="24 lines of an hour with events in the colours of their classes")
    day.add_argument("station", metavar="NET.STA")
    day.add_argument("date", metavar="DATE", help="such as 2026-01-01, UTC")
    sheet = kinds.add_parser("sheet", help="many events on one sheet")
    sheet.add_argument(
        "catalogue", nargs="?", type=Path, metavar="CATALOGUE",
        help="a scan's folder, catalogue.csv or catalogue.parquet; without it the desk's events",
    )  # fmt: skip
    sheet.add_argument(
        "--archive", nargs="+", metavar="PATH", help="where the scanned data are, if not where the scan found them"
    )
    sheet.add_argument("--station", metavar="NET.STA")
    sheet.add_argument("--class", dest="name", metavar="CLASS", help="one class alone")
    sheet.add_argument("--unsure", action="store_true", help="those of which the network was least sure")
    sheet.add_argument("--limit", type=int, default=24, metavar="N", help="events (default 24, at most 200)")
    rate = kinds.add_parser("rate", help="events per bin and class, cumulated, inverse rate; coverage shaded")
    rate.add_argument(
        "catalogue", nargs="?", type=Path, metavar="CATALOGUE",
        help="a scan's folder, catalogue.csv or catalogue.parquet, or any such table with trace_onset_time and "
        "source_type; without it the desk's events",
    )  # fmt: skip
    rate.add_argument("--station", metavar="NET.STA", help="one station alone")
    rate.add_argument(
        "--from", dest="begin", metavar="ISO", help="default: seven days ago, or when the desk or a catalogue begins"
    )
    rate.add_argument("--to", dest="end", metavar="ISO", help="default: now, or when a catalogue ends")
    rate.add_argument("--hours", type=int, metavar="N", help="length of a bin, hours (default: 1, and more over weeks)")
    for one in (event, day, sheet, rate):
        one.add_argument(
            "-o", "--out", type=Path, required=True, metavar="PICTURE", help="a .png, .svg, .webp or .pdf file"
        )
        one.add_argument("--config", type=Path, metavar="FILE", help="the desk's configuration file")
        one.add_argument(
            "--state", type=Path, metavar="FOLDER", help="without --config: where the desk keeps its state"
        )


def main(args: argparse.Namespace) -> int:
    from desk.pictures.style import check_name

    check_name(args.out)
    draw = {"event": _event, "day": _day, "sheet": _sheet, "rate": _rate}[args.kind]
    try:
        draw(args)
    except ModuleNotFoundError as error:
        # A picture of files needs `plot` alone, one of the desk's events also what its database needs.
        raise ConfigError(
            f"talus plot {args.kind} needs {error.name}", "pip install 'talus-agent[desk,plot]'"
        ) from None
    return 0


@contextmanager
def _desk(args: argparse.Namespace) -> Iterator[_Desk]:
    """The desk's database and records.

    Raises:
        ConfigError: there is none where it was looked for.
    """
    from desk.evidence import Records
    from desk.store.store import Store

    config = desk_config(args.config, args.state)
    store = Store(config.database_url)
    try:
        yield _Desk(store, Records(config.state_dir / "evidence", round(config.evidence.max_gb * 1e9)))
    finally:
        store.close()


def _event(args: argparse.Namespace) -> None:
    from desk.pictures.style import save

    paths = [Path(one) for one in args.what]
    for path in paths:
        if path.is_dir():
            raise DataError(f"{path} is a folder", "name a file with the record of an event")
        if len(paths) > 1 and not path.is_file():
            raise DataError(f"{path} does not exist", "name files of one record, or one event of the desk")
    if paths[0].is_file():
        from agent.config.file import ClassifierConfig
        from agent.service.assemble import open_classifier
        from desk.pictures.of_file import pictures_of

        onset_ns = parse_ns(args.onset) if args.onset else None
        classifier, _ = open_classifier(ClassifierConfig())
        drawn = list(pictures_of(paths, classifier, onset_ns, small=args.small))
        for one in drawn:
            out = args.out if len(drawn) == 1 else args.out.with_stem(f"{args.out.stem}-{one.sensor}")
            save(one.picture, out)
            print(f"{out}  {one.sensor}  {one.label}")
        return
    from desk.pictures.of_store import drawing_of

    with _desk(args) as desk:
        picture = drawing_of(desk.store, desk.records, args.what[0], small=args.small)
    if picture is None:
        raise DataError(
            f"{args.what[0]} is neither a file nor an event whose record is at the desk",
            "the page of the event says why",
        )
    save(picture, args.out)
    print(args.out)


def _day(args: argparse.Namespace) -> None:
    from desk.drum import drum_of
    from desk.pictures.day import Mark, draw
    from desk.pictures.style import save
    from desk.store import queries

    begin_ns = parse_ns(f"{args.date}T00:00:00Z")
    with _desk(args) as desk, desk.store.reading() as connection:
        if not queries.stations(connection, [args.station], imported=True):
            known = ", ".join(row.code for row in queries.stations(connection, imported=True)) or "none"
            raise DataError(f"the desk knows no station {args.station}", f"it knows: {known}")
        wanted = queries.Filter(station=args.station, from_ns=begin_ns, to_ns=begin_ns + DAY_NS)
        rows = queries.events(connection, wanted, limit=10_000)
        drum = drum_of(connection, desk.records, args.station, begin_ns)
    marks = [Mark((row.onset_ns - begin_ns) / NS, row.duration_s or 1.0, row.name) for row in reversed(rows)]
    save(draw(drum, marks, f"{args.station}, {args.date}"), args.out)
    print(f"{args.out}  {counted(len(marks), 'event')}")


def _sheet(args: argparse.Namespace) -> None:
    from desk.pictures.sheet import draw
    from desk.pictures.style import save
    from desk.store import queries
    from desk.store.tables import CLASSES

    if not 0 < args.limit <= 200:
        raise UsageError(f"--limit {args.limit}", "give 1 to 200")
    order = "the least sure first" if args.unsure else "the newest first"
    if args.catalogue is not None:
        from desk.pictures.of_scan import trigger_of

        cells, count = _cells_of_scan(args)
        some = f"{len(cells)} of " if count > len(cells) else ""
        what = f"{count} {args.name}" if args.name else counted(count, "event")
        save(draw(cells, f"{some}{what}, {order}", trigger_of(args.catalogue)), args.out)
        print(f"{args.out}  {counted(len(cells), 'event')}")
        return
    if args.archive:
        raise UsageError("--archive goes with a catalogue", "talus plot sheet CATALOGUE --archive PATH -o PICTURE")
    if args.name is not None and args.name not in CLASSES:
        raise UsageError(f"--class {args.name}", f"one of {', '.join(CLASSES)}")
    with _desk(args) as desk:
        with desk.store.reading() as connection:
            if args.unsure:
                found = queries.queue(connection, limit=1000)
                rows = [row for row in found if _is_wanted(row, args)][: args.limit]
            else:
                rows = queries.events(
                    connection, queries.Filter(station=args.station, name=args.name), limit=args.limit
                )
        if not rows:
            raise DataError("no event of the desk matches", "leave out --station, --class or --unsure")
        cells = [_cell(desk.records, row) for row in rows]
    save(draw(cells, f"{counted(len(cells), 'event')}, {order}"), args.out)
    print(f"{args.out}  {counted(len(cells), 'event')}")


def _cells_of_scan(args: argparse.Namespace) -> tuple[list[Cell], int]:
    from desk.pictures.of_scan import archive_of, cells_of
    from desk.scan.catalogue import CLASSES
    from desk.scan.samples import Samples

    if args.name is not None and args.name not in CLASSES:
        raise UsageError(f"--class {args.name}", f"one of {', '.join(CLASSES)}")
    paths = args.archive or archive_of(args.catalogue)
    cells, count = cells_of(
        args.catalogue, Samples(paths), args.limit, station=args.station, name=args.name, unsure=args.unsure
    )
    lacking = sum(cell.trace is None for cell in cells)
    if lacking:
        words = f"no samples of {lacking} of {counted(len(cells), 'event')} below {', '.join(paths)}"
        print(f"talus plot: {words}; --archive PATH says where they are", file=sys.stderr)
    return cells, count


def _is_wanted(row: EventRow, args: argparse.Namespace) -> bool:
    return args.name in (None, row.name) and (args.station is None or row.sensor.startswith(f"{args.station}."))


def _cell(records: Records, row: EventRow) -> Cell:
    from desk.pictures.sheet import Cell, title_of
    from desk.record import traces

    title = title_of(row.name, row.probability, ".".join(row.sensor.split(".")[:2]), row.onset_ns)
    trace = None
    path = records.path(row.uid)
    if path.is_file():
        try:
            trace = traces(path, row.sensor, row.onset_ns)[0]
        except TalusError:
            title += "  (unreadable)"
    return Cell(title, row.name, row.duration_s, trace)


def _rate(args: argparse.Namespace) -> None:
    from desk.pictures.rate import bin_of, draw
    from desk.pictures.style import COLOURS, save

    if args.hours is not None and not 0 < args.hours <= 24 * 31:
        raise UsageError(f"--hours {args.hours}", "give 1 to 744")
    begin_ns, end_ns = (None if text is None else _time(text) for text in (args.begin, args.end))
    if args.catalogue is not None:
        from desk.pictures.of_scan import hours_of, nothing_of, onsets_of

        events = list(onsets_of(args.catalogue, args.station))
        if not events:
            raise nothing_of(args.catalogue, args.station)
        heard, title = hours_of(args.catalogue, args.station), args.station or args.catalogue.name
        # A quiet beginning is part of a rate.
        known = [HOUR_NS * hour for hour, share in (heard or {}).items() if share] + [onset for onset, _ in events]
        begin_ns = begin_ns if begin_ns is not None else min(known)
        end_ns = end_ns if end_ns is not None else max(known) + 1
        kept = [
            (onset // HOUR_NS, name if name in COLOURS else "unclassified")
            for onset, name in events
            if begin_ns <= onset < end_ns
        ]
        bins = args.hours or bin_of((end_ns - begin_ns) // HOUR_NS)
        tally = Counter((hour - hour % bins, name) for hour, name in kept)
    else:
        from desk.store import queries

        end_ns = end_ns if end_ns is not None else time.time_ns()
        with _desk(args) as desk, desk.store.reading() as connection:
            if begin_ns is None:
                begin_ns = max(end_ns - 7 * DAY_NS, min(queries.first_ns(connection), end_ns - HOUR_NS))
            bins = args.hours or bin_of((end_ns - begin_ns) // HOUR_NS)
            sensors = [None] if args.station is None else queries.sensors(connection, args.station)
            tally = Counter()
            for sensor in sensors:
                for hour, name, n in queries.counts(connection, begin_ns, end_ns, sensor=sensor, hours=bins):
                    tally[hour, name] += n
            heard = dict(queries.coverage(connection, args.station, begin_ns, end_ns))
            title = args.station or "all stations"
    if begin_ns >= end_ns:
        raise UsageError("--from is not before --to", "give another span")
    counts = [(hour, name, n) for (hour, name), n in sorted(tally.items())]
    span = begin_ns // HOUR_NS, -(-end_ns // HOUR_NS)
    days = dict.fromkeys((format_ns(begin_ns)[:10], format_ns(end_ns - 1)[:10]))
    save(draw(counts, heard, span, bins, f"{title}, {' to '.join(days)}"), args.out)
    heard_h = sum((heard or {}).get(hour, 0.0) for hour in range(*span))
    if heard is not None and end_ns - begin_ns > _LONG_NS and heard_h < _FEW * (span[1] - span[0]):
        print(
            f"talus plot: {heard_h:.1f} h heard in {(end_ns - begin_ns) / DAY_NS:.0f} days: "
            "--station, or --from and --to, show them closer",
            file=sys.stderr,
        )
    print(f"{args.out}  {counted(sum(n for *_, n in counts), 'event')}")


def _time(text: str) -> int:
    """A time or a date, ns."""
    return parse_ns(text if "T" in text else f"{text}T00:00:00Z")
