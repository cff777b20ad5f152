"""``talus scan``: a station's own judgement on an archive, with the hours that were not heard."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from agent.errors import INTERRUPTED, DataError, UsageError
from agent.sources import SourceProblem
from agent.types import counted, place_of
from desk.commands.options import desk_config

if TYPE_CHECKING:
    from tqdm import tqdm

    from desk.scan.catalogue import Merged
    from desk.scan.engines import Engine
    from desk.scan.folder import Folder
    from desk.scan.judge import Judged, Settings, Task
    from desk.scan.units import Unit

EXAMPLE = (
    "talus scan /data/sds --out scan --jobs 4\n"
    "  talus scan status scan\n"
    "  talus scan merge scan\n"
    "  talus scan compare scan truth.csv\n"
    "  talus scan compare scan --review-sample review.csv\n"
    "  talus scan import scan --config /etc/talus/desk.yaml"
)
VERBS = ("status", "merge", "compare", "import")
_SHARD = re.compile(r"^(\d+)/(\d+)$")
_LINE_S = 10.0
"""Between two lines of progress where standard error is no terminal."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = (
        "talus scan SDS|FOLDER|FILE... --out DIR [options]\n"
        "       talus scan status|merge DIR\n"
        "       talus scan compare CATALOGUE [TRUTH.csv] [options]\n"
        "       talus scan import DIR [--config DESK.yaml | --state FOLDER | --db URL]"
    )
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", help="an SDS archive, folders, files; or an action, as above"
    )
    scan = parser.add_argument_group("scan")
    scan.add_argument("--out", type=Path, metavar="DIR", help="folder of the results; the same again goes on")
    scan.add_argument("--from", dest="begin", metavar="TIME", help="first onset, such as 2026-03-01")
    scan.add_argument("--to", dest="end", metavar="TIME", help="onsets before this time")
    scan.add_argument(
        "--stations", metavar="LIST", help="NET.STA or NET.STA.LOC.BS, separated by commas; * is any text"
    )
    scan.add_argument(
        "--config", type=Path, metavar="FILE", help="the station's file: its trigger and model; of import: the desk's"
    )
    how = scan.add_mutually_exclusive_group()
    scan.add_argument(
        "--no-slow",
        action="store_true",
        help="leave slow events out: a day is then read from half an hour before, not nine hours",
    )
    how.add_argument("--jobs", type=int, metavar="N", help="processes (default: one for each core)")
    how.add_argument("--dask", metavar="URL", help="a Dask scheduler, such as tcp://head:8786")
    scan.add_argument("--shard", metavar="I/N", help="of N parts the I-th, from 1: for job arrays; merge at the end")
    scan.add_argument("--dry-run", action="store_true", help="say what would be read, and end")
    scan.add_argument("--no-merge", action="store_true", help="leave the catalogue to talus scan merge")
    merge = parser.add_argument_group("merge")
    merge.add_argument("--quakeml", action="store_true", help="write QuakeML also of more than 50,000 events")
    compare = parser.add_argument_group("compare")
    compare.add_argument("--confidence", metavar="LIST", help="of the truth, only high,medium or whatever it has")
    compare.add_argument("--ignore", type=Path, metavar="CSV", help="intervals that are neither right nor wrong")
    compare.add_argument("--tolerance", type=float, default=5.0, metavar="SECONDS", help="around an interval (5)")
    compare.add_argument(
        "--review-sample",
        type=Path,
        metavar="CSV",
        help="draw events to review into a new file; read its answers later",
    )
    compare.add_argument("--per-class", type=int, default=50, metavar="N", help="events of each class to draw (50)")
    into = parser.add_argument_group("import")
    into.add_argument("--state", type=Path, metavar="FOLDER", help="without --config: where the desk keeps its state")
    into.add_argument("--db", metavar="URL", help="another database than the desk's `desk.db` in its state folder")


def main(args: argparse.Namespace) -> int:
    verb = args.paths[0]
    if verb not in VERBS:
        return _scan(args)
    rest = [Path(path) for path in args.paths[1:]]
    most = 2 if verb == "compare" else 1
    if not 1 <= len(rest) <= most:
        raise UsageError(
            f"talus scan {verb} takes {'a catalogue, and a truth' if most == 2 else 'one folder'}", EXAMPLE
        )
    if args.out is not None:
        raise UsageError(f"--out is not for {verb}", f"a folder named {verb} is written ./{verb}")
    if verb == "status":
        return _status(rest[0])
    if verb == "merge":
        return _merge(rest[0], quakeml=args.quakeml or None)
    if verb == "compare":
        return _compare(rest[0], rest[1] if len(rest) == 2 else None, args)
    return _import(rest[0], args)


# -- scan


def _scan(args: argparse.Namespace) -> int:
    jobs = _jobs(args)
    from agent.config.file import load
    from agent.config.station import ClassifierConfig, SlowTriggerConfig, TriggerConfig
    from desk.scan.folder import Folder
    from desk.scan.index import look
    from desk.scan.judge import Settings
    from desk.scan.units import after_ns, before_ns

    if args.out is None:
        raise UsageError("where do the results go?", "--out DIR; the same folder again goes on where it was")
    begin_ns, end_ns, part = _time("--from", args.begin), _time("--to", args.end), _shard(args.shard)
    engine = _engine(args.dask, jobs)
    config = load(args.config) if args.config else None
    trigger = config.tunables.trigger if config else TriggerConfig()
    if args.no_slow:
        trigger = trigger.model_copy(update={"slow": SlowTriggerConfig(enabled=False)})
    settings = Settings.of(trigger, config.classifier if config else ClassifierConfig())
    folder = Folder(args.out)
    memory = args.out / "files.jsonl" if args.out.is_dir() and not args.dry_run else None
    index = look(args.paths, memory)
    units = index.units(
        before_ns(trigger), after_ns(trigger), from_ns=begin_ns, to_ns=end_ns, wanted=_wanted(args.stations)
    )
    _tell(index.problems)
    if index.slow:
        print(f"talus scan: left out, below 10 samples a second by name: {_few(sorted(index.slow))}", file=sys.stderr)
    if not units:
        raise DataError("nothing to scan", "are the paths, --from, --to and --stations right?")
    if args.dry_run:
        return _dry_run(units, folder, settings)
    told = _told(args)
    problems = [(problem.path, problem.message) for problem in index.problems]
    before = folder.begin(told, settings, units, index.slow, problems)
    if before is not None:
        print(
            f"talus scan: {args.out} held another plan: {before}\n  its results stay, and this plan takes its place",
            file=sys.stderr,
        )
    mine = units[part[0] - 1 :: part[1]]
    status = _run(folder, mine, settings, engine)
    if status or args.shard or args.no_merge:
        return status
    return _merge(args.out)


def _tell(problems: Sequence[SourceProblem]) -> None:
    """A line for each kind of problem: an archive may hold a thousand tables beside its records."""
    of: dict[tuple[str, str], list[str]] = {}
    for problem in problems:
        of.setdefault((problem.message, problem.hint), []).append(problem.path)
    for (message, hint), paths in of.items():
        print(f"talus scan: {SourceProblem(_few(paths), message, hint)}", file=sys.stderr)


def _run(folder: Folder, units: list[Unit], settings: Settings, engine: Engine) -> int:
    from desk.scan.engines import Failed

    failed, made, same = 0, 0, 0
    progress = _Progress(len(units))

    def tasks() -> Iterator[Task]:
        nonlocal same
        for unit in units:
            task = folder.task(unit, settings)
            if task is None:
                same += 1
                progress.done()
            else:
                yield task

    try:
        for outcome in engine(tasks()):
            if isinstance(outcome, Failed):
                failed += 1
                progress.say(f"talus scan: {outcome.task.unit}: {outcome.reason}")
                progress.done()
                continue
            folder.keep(outcome, settings)
            made += outcome.content is not None
            same += outcome.content is None
            progress.done(outcome)
    except KeyboardInterrupt:
        progress.close()
        left = len(units) - made - same - failed
        words = f"stopped with {left} of {counted(len(units), 'unit')} left; the same command goes on"
        print(f"talus scan: {words}", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        progress.close()
        raise UsageError(
            f"{folder.path}: {error.strerror}", "make room, then start the same command: it goes on"
        ) from None
    finally:
        progress.close()
    print(
        f"talus scan: {counted(made, 'station-day')} judged, {same} as they were, {failed} failed; "
        f"{progress.summary()}",
        file=sys.stderr,
    )
    return 1 if failed else 0


class _Progress:
    """A bar on a terminal, else a line now and then, on standard error."""

    def __init__(self, total: int) -> None:
        from tqdm import tqdm

        self._total, self._judged, self._done = total, 0, 0
        self._seconds = 0.0
        self._began = self._said = time.monotonic()
        form = "{l_bar}{bar}| {n_fmt}/{total_fmt} station-days, {rate_fmt}, {remaining} left"
        self._bar: tqdm[NoReturn] = tqdm(
            total=total, unit="day", disable=not sys.stderr.isatty(), leave=False, bar_format=form, smoothing=0.1
        )

    def done(self, judged: Judged | None = None) -> None:
        """A unit is done; ``judged``: with what it took to know that."""
        self._done += 1
        if judged is not None and judged.content is not None:
            self._judged += 1
            self._seconds += judged.recorded_s
        self._bar.update()
        now = time.monotonic()
        if self._bar.disable and now - self._said >= _LINE_S:
            self._said = now
            rate = self._judged / (now - self._began)
            left = f", {_duration((self._total - self._done) / rate)} left" if rate else ""
            print(
                f"talus scan: {self._done} of {self._total} station-days, {rate:.2f} a second{left}",
                file=sys.stderr,
                flush=True,
            )

    def say(self, text: str) -> None:
        with self._bar.external_write_mode():
            print(text, file=sys.stderr, flush=True)

    def summary(self) -> str:
        took_s = time.monotonic() - self._began
        return f"{_duration(took_s)}, {self._seconds / max(took_s, 1e-9):.0f} x real time"

    def close(self) -> None:
        self._bar.close()


def _dry_run(units: list[Unit], folder: Folder, settings: Settings) -> int:
    sizes: dict[str, int] = {}
    todo = 0
    by_station: dict[str, list[Unit]] = {}
    for unit in units:
        by_station.setdefault(str(unit.station), []).append(unit)
        waiting = folder.task(unit, settings) is not None
        todo += waiting
        for name in unit.files if waiting else ():
            if name not in sizes:
                try:
                    sizes[name] = Path(name).stat().st_size
                except OSError:
                    sizes[name] = 0
    for station, mine in by_station.items():
        print(f"{station}: {counted(len(mine), 'day')} from {mine[0].day} to {mine[-1].day}")
    print(
        f"{counted(len(units), 'station-day')}, {todo} to be judged or looked at, "
        f"{counted(len(sizes), 'file')} to be read, {sum(sizes.values()) / 1e6:.1f} MB"
    )
    return 0


def _jobs(args: argparse.Namespace) -> int:
    """How many processes judge; what they import is imported from now on, beside what the command itself needs."""
    jobs: int = args.jobs if args.jobs is not None else len(os.sched_getaffinity(0))
    if jobs < 1:
        raise UsageError(f"--jobs {jobs}", "give 1 or more")
    if jobs > 1 and args.dask is None and not args.dry_run and args.out is not None:
        from desk.scan.workers import serve

        serve()
    return jobs


def _engine(address: str | None, jobs: int) -> Engine:
    from desk.scan.engines import dask, here, processes

    if address is not None:
        return dask(address)
    return here if jobs == 1 else processes(jobs)


def _time(option: str, text: str | None) -> int | None:
    from agent.commands.options import check_time
    from agent.types import parse_ns

    if text is None:
        return None
    whole = f"{text}T00:00:00Z" if re.fullmatch(r"\d{4}-\d{2}-\d{2}", text) else text
    check_time(option, whole)
    return parse_ns(whole)


def _shard(text: str | None) -> tuple[int, int]:
    if text is None:
        return 1, 1
    match = _SHARD.match(text)
    number, of = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= number <= of:
        raise UsageError(f"--shard {text}", "write I/N, such as 1/8 to 8/8")
    return number, of


def _wanted(text: str | None) -> Callable[[object], bool]:
    from fnmatch import fnmatchcase

    if text is None:
        return lambda station: True
    patterns = [one.strip() for one in text.split(",") if one.strip()]

    def wanted(station: object) -> bool:
        name = str(station)
        short = place_of(name)
        return any(fnmatchcase(name, pattern) or fnmatchcase(short, pattern) for pattern in patterns)

    return wanted


def _told(args: argparse.Namespace) -> list[str]:
    """The command as it is kept: what does not change the results is left out, and it holds from any folder."""
    told = ["talus", "scan", *map(os.path.abspath, args.paths)]
    for option, value in (("--from", args.begin), ("--to", args.end), ("--stations", args.stations)):
        told += [option, value] if value is not None else []
    told += ["--config", str(args.config.absolute())] if args.config else []
    return [*told, *(["--no-slow"] if args.no_slow else [])]


# -- what is done with the results


def _status(path: Path) -> int:
    from desk.scan.catalogue import Merged
    from desk.scan.folder import Folder, results

    folder, merged = Folder(path), Merged()
    about = folder.about()
    print(f"{shlex.join(about.command)}")
    print(f"model {about.bundle['name']} {about.bundle['version']}, talus {about.talus}")
    lines: dict[str, list[float]] = {}
    refused: dict[str, set[str]] = {}
    others = 0
    for planned, result in results(folder):
        name = str(planned.station)
        line = lines.setdefault(name, [0, 0, 0.0, 0.0, 0])
        line[0] += 1
        if result is None:
            others += folder.has(planned)
            merged.missing += 1
            continue
        merged.result(result)
        line[1] += 1
        line[2] += result.ledger.recorded_s / 3600
        line[3] += sum(result.ledger.armed)
        line[4] += len(result.events)
        refused.setdefault(name, set()).update(file for file, _ in result.ledger.refused)
    print(f"{'sensor':<20}{'days':>7}{'judged':>8}{'recorded h':>12}{'heard h':>10}{'events':>8}{'refused':>9}")
    for name, (days, done, recorded, heard, events) in lines.items():
        files = len(refused.get(name, ()))
        print(f"{name:<20}{days:>7.0f}{done:>8.0f}{recorded:>12.1f}{heard:>10.1f}{events:>8.0f}{files:>9}")
    print(_totals(merged))
    _print_refused(merged)
    for place, reason in about.problems:
        print(f"not read: {place}: {reason}")
    if merged.missing:
        other = f", {others} of them judged with other settings" if others else ""
        print(f"{merged.missing} station-days are missing{other}: the same command goes on")
    return 1 if merged.missing else 0


def _merge(path: Path, *, quakeml: bool | None = None) -> int:
    from desk.scan.catalogue import merge
    from desk.scan.folder import Folder

    folder = Folder(path)
    merged = merge(folder, quakeml=quakeml)
    print(_totals(merged))
    _print_refused(merged)
    if merged.seams:
        print(f"midnights compared: {merged.seams}, at {len(merged.torn)} of them the two days did not agree")
    for torn in merged.torn[:20]:
        print(f"  {torn}")
    for file in merged.files:
        print(file)
    print(f"catalogue sha256 {merged.digest}")
    if merged.missing:
        print(f"talus scan: {merged.missing} station-days are missing: the same scan goes on", file=sys.stderr)
    return 1 if merged.missing else 0


def _print_refused(merged: Merged) -> None:
    """The files that were not used, or not whole: what is missing was not heard."""
    for name, reason in islice(merged.refused, 5):
        print(f"refused: {name}: {reason}")
    if len(merged.refused) > 5:
        print(f"refused: {len(merged.refused) - 5} more, in ledger.csv")


def _totals(merged: Merged) -> str:
    counts = ", ".join(f"{name} {count}" for name, count in merged.classes.most_common()) or "none"
    heard_days = merged.armed_s / 86_400
    rate = f"; {merged.events / heard_days:.1f} a day that was heard" if heard_days else ""
    return (
        f"{counted(merged.units, 'station-day')}, {merged.recorded_s / 3600:.1f} h recorded, "
        f"{merged.armed_s / 3600:.1f} h heard; {counted(merged.events, 'event')} ({counts}){rate}"
    )


def _compare(catalogue: Path, truth: Path | None, args: argparse.Namespace) -> int:
    from desk.scan.compare import compare, draw_sample, read_review, read_truth, review_words, words

    if truth is None and args.review_sample is None:
        raise UsageError("what is the catalogue compared with?", "name a TRUTH.csv, or --review-sample FILE")
    if truth is not None:
        kept = tuple(args.confidence.split(",")) if args.confidence else ()
        ignored = read_truth(args.ignore) if args.ignore else []
        print(words(compare(catalogue, read_truth(truth, kept), ignored, args.tolerance)))
    sample: Path | None = args.review_sample
    if sample is not None and not sample.exists():
        count = draw_sample(catalogue, sample, args.per_class)
        drawn = counted(count, "event")
        print(f"{sample}: {drawn} drawn; write into the column reviewed what each is, then the same again")
    elif sample is not None:
        print(review_words(read_review(sample)))
    return 0


def _import(path: Path, args: argparse.Namespace) -> int:
    from sqlalchemy.engine import make_url

    from desk.scan.catalogue import about_of
    from desk.scan.into_desk import load

    about_of(path)
    url = desk_config(args.config, args.state, args.db).database_url
    os.umask(0o077)  # what it writes is for the desk's user alone
    events, heard_h, rows = load(path, url)
    place = make_url(url).render_as_string(hide_password=True)
    print(f"{counted(events, 'event')} and {heard_h:.1f} h heard, in {counted(rows, 'row')} of an hour, are in {place}")
    return 0


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.2f} h"
