"""Shared by the benchmarks: a day of real ground motion, and how figures are printed."""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias, TypeVar

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
"""The packages go before this folder, where ``desk.py`` measures the package of that name."""

RESULTS = os.environ.get("TALUS_BENCH_RESULTS", "")
"""A file for the rows, beside what is printed."""

ONE_CORE = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


TICKS = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """Processor time of a process so far, without that of its children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def on_one_core() -> None:
    """Restart this script bound to one core, with one thread in every library."""
    if any(os.environ.get(name) != value for name, value in ONE_CORE.items()):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ONE_CORE})  # noqa: S606


def make_day(folder: Path, hours: float = 24.0) -> list[Path]:
    """Three day-long miniSEED files (XX.DAY.00.HHE/N/Z, 100 Hz), laid end to end from ObsPy's real three-component
    record of station BW.UH3 (sampled at 50 Hz, so everything in it happens twice as fast here) with noise of the same
    spectrum in between: about 160 triggers a day, three times the busiest published site per sensor. Made once and
    kept."""
    import obspy

    files = [folder / f"XX.DAY.00.HH{c}.mseed" for c in "ENZ"]
    if all(file.is_file() for file in files):
        return files
    folder.mkdir(parents=True, exist_ok=True)
    root = Path(obspy.__file__).parent / "signal" / "tests" / "data"
    rng = np.random.default_rng(1)
    pieces: list[np.ndarray] = []
    record = np.stack([obspy.read(str(root / f"BW.UH3._.SH{c}.D.2010.147.cut.slist.gz"))[0].data for c in "ENZ"])
    quiet = record[:, : record.shape[1] // 8].astype(np.float64)
    spectrum = np.abs(np.fft.rfft(quiet, axis=1))
    total, length = round(hours * 360_000), 0
    while length < total:
        # Noise with the spectrum of the record's own background, then the record itself.
        for _ in range(66):
            phase = rng.uniform(0, 2 * np.pi, spectrum.shape)
            pieces.append(np.fft.irfft(spectrum * np.exp(1j * phase), quiet.shape[1], axis=1))
        pieces.append(record.astype(np.float64))
        length += 66 * quiet.shape[1] + record.shape[1]
    data = np.concatenate(pieces, axis=1)[:, :total].astype(np.int32)
    start = obspy.UTCDateTime(2026, 3, 1)
    for row, (component, file) in enumerate(zip("ENZ", files, strict=True)):
        header = {"network": "XX", "station": "DAY", "location": "00", "channel": f"HH{component}"}
        trace = obspy.Trace(data[row], {**header, "sampling_rate": 100.0, "starttime": start})
        trace.write(str(file), format="MSEED", encoding="STEIM2", reclen=4096)
    return files


def row(name: str, value: str, goal: str = "", met: bool | None = None) -> None:
    """One line of a scorecard; bench/run.py collects them."""
    mark = "" if met is None else ("  met" if met else "  NOT MET")
    print(f"{name:<58}{value:>22}   {goal}{mark}", flush=True)
    if RESULTS:
        with Path(RESULTS).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"name": name, "value": value, "goal": goal, "met": met}) + "\n")


Call = TypeVar("Call", bound="Callable[[argparse.Namespace], int | None]")
"""A part of a script: measures with the arguments it is given; the status, None: 0."""
Option: TypeAlias = tuple[tuple[str, ...], Mapping[str, Any]]
_PARTS: dict[str, tuple[Callable[[argparse.Namespace], int | None], Sequence[Option]]] = {}


def option(*names: str, **settings: Any) -> Option:
    """Return an argument of a part, as ``add_argument`` takes it."""
    return names, settings


def part(*options: Option) -> Callable[[Call], Call]:
    """Make a function the part of its script that has its name, with these arguments."""

    def keep(call: Call) -> Call:
        _PARTS[call.__name__.replace("_", "-")] = call, options
        return call

    return keep


def choose(doc: str | None) -> int:
    """Run the part of a script that the first argument names; returns its status."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    chosen = parser.add_subparsers(required=True, metavar="PART")
    for name, (call, options) in _PARTS.items():
        own = chosen.add_parser(name, help=call.__doc__)
        own.set_defaults(call=call)
        for names, settings in options:
            own.add_argument(*names, **settings)
    args = parser.parse_args()
    return args.call(args) or 0


@dataclass(frozen=True, slots=True)
class Spread:
    """Of several turns: the median, the least and the most."""

    median: float
    least: float
    most: float

    def words(self, scale: float, unit: str, places: int = 1) -> str:
        """Such as ``6.1 us (5.9 to 7.0)``."""
        figures = (f"{scale * value:,.{places}f}" for value in (self.median, self.least, self.most))
        return "{} {} ({} to {})".format(next(figures), unit, *figures)


def in_turns(turns: int, clock: Callable[[], float], **calls: Callable[[], object]) -> dict[str, Spread]:
    """Seconds of each call, or what it says itself if it returns a float. They take turns, in another order each time,
    so that what else the machine does disturbs all of them alike."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    order = random.Random(0)
    for _ in range(turns):
        for name in order.sample(sorted(calls), len(calls)):
            began = clock()
            own = calls[name]()
            seconds[name].append(own if isinstance(own, float) else clock() - began)
    return {name: Spread(median(each), min(each), max(each)) for name, each in seconds.items()}


def ratio_of(turned: dict[str, Spread], of: str, to: str) -> float:
    """How many times as fast ``to`` is as ``of``, by the medians."""
    return turned[of].median / turned[to].median


def make_busy(folder: Path, copies: int) -> list[Path]:
    """Three miniSEED files (XX.BUSY.00.HHE/N/Z, 100 Hz): ObsPy's real record of station BW.UH3 ``copies`` times end to
    end, with two earthquakes in each 115 s."""
    import obspy

    folder.mkdir(parents=True, exist_ok=True)
    root = Path(obspy.__file__).parent / "signal" / "tests" / "data"
    files = []
    for component in "ENZ":
        data = obspy.read(str(root / f"BW.UH3._.SH{component}.D.2010.147.cut.slist.gz"))[0].data.astype(np.int32)
        codes = {"network": "XX", "station": "BUSY", "location": "00", "channel": f"HH{component}"}
        header = {**codes, "sampling_rate": 100.0, "starttime": obspy.UTCDateTime(2026, 3, 1)}
        files.append(folder / f"XX.BUSY.00.HH{component}.mseed")
        obspy.Trace(np.tile(data, copies), header).write(str(files[-1]), format="MSEED", encoding="STEIM2")
    return files
