"""``talus scan``: speed beside ObsPy on the same files, scaling, memory, noisy days, and a merge of a million events.

    python bench/scan.py [--folder DIR] [--days 7] [--only PART] [--seisbench PYTHON]

The archive is ObsPy's real three-component record (two earthquakes) in noise of its own spectrum, 100 Hz, about 160
triggers a day; every trigger is classified on its whole window. Slow events are left out, except in a row of their own.
The peer reads the same files with ObsPy and band-passes them (1 to 20 Hz, order 4), nothing else, in the same run.
``--only peer`` has SeisBench's PhaseNet look at a day of them as well; it brings torch, so its environment is its own:
``python -m venv DIR; DIR/bin/pip install seisbench``, then ``--seisbench DIR/bin/python``. Its weights are random, as
those that are published have to be downloaded, and take the same time. ``--only pair`` sets two processes against one,
three times in turn, and wants a machine with nothing else to do.
Where other work shares the machine, processor time says more than the clock: both are printed, and ratios are of
processor time, except that of two processes to one.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

import numpy as np
import obspy
from support import make_day, row

from agent.config.station import ClassifierConfig, SlowTriggerConfig, TriggerConfig
from agent.types import StationId, format_ns, parse_ns
from desk.scan.catalogue import merge
from desk.scan.folder import Folder
from desk.scan.index import look
from desk.scan.judge import Settings, Task, judge
from desk.scan.ledger import Ledger
from desk.scan.result import Result
from desk.scan.units import DAY_NS, Unit, after_ns, before_ns

DAY = parse_ns("2026-03-01T00:00:00Z")


def measured(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the clock, and of processor time, of this process and its children."""

    def used() -> float:
        mine, theirs = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return mine.ru_utime + mine.ru_stime + theirs.ru_utime + theirs.ru_stime

    wall, cpu = time.perf_counter(), used()
    work()
    return time.perf_counter() - wall, used() - cpu


def write_day(root: Path, data: np.ndarray, day: int, station: str = "DAY") -> None:
    when = obspy.UTCDateTime(ns=DAY + day * DAY_NS)
    for component, samples in zip("ENZ", data, strict=True):
        codes = {"network": "XX", "station": station, "location": "00", "channel": f"HH{component}"}
        folder = root / str(when.year) / "XX" / station / f"HH{component}.D"
        folder.mkdir(parents=True, exist_ok=True)
        trace = obspy.Trace(samples, {**codes, "sampling_rate": 100.0, "starttime": when})
        name = f"XX.{station}.00.HH{component}.D.{when.year}.{when.julday:03d}"
        trace.write(str(folder / name), format="MSEED", encoding="STEIM2", reclen=4096)


def make_archives(folder: Path, days: int) -> tuple[Path, Path, Path]:
    """``days`` of the busy archive, a quiet day, and a noisy one with a trigger in 20 s. Made once and kept."""
    busy, quiet, noisy = folder / "busy", folder / "quiet", folder / "noisy"
    if not (folder / f"made-{days}").exists():
        data = np.stack([obspy.read(str(file))[0].data for file in make_day(folder / "day")]).astype(np.int32)
        for day in range(days):
            write_day(busy, data, day)
        rng = np.random.default_rng(3)
        still = rng.normal(0, 200, (3, 8_640_000))
        write_day(quiet, still.astype(np.int32), 0)
        burst = np.exp(-np.arange(200) / 60) * 4000
        for onset in range(1000, 8_640_000 - 300, 2000):
            still[:, onset : onset + 200] += burst * rng.normal(0, 1, (3, 200))
        write_day(noisy, still.astype(np.int32), 0)
        (folder / f"made-{days}").touch()
    return busy, quiet, noisy


def watched(process: subprocess.Popen[bytes]) -> tuple[float, float]:
    """Processor time (s) of all processes of its session, and the largest one's memory (MB), as last seen before each
    ended; looked at four times a second."""
    seconds: dict[str, float] = {}
    largest = 0.0
    while process.poll() is None:
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                fields = (folder / "stat").read_text().rsplit(") ", 1)[1].split()
                if int(fields[3]) != process.pid:
                    continue
                status = (folder / "status").read_text()
            except (OSError, IndexError):
                continue  # it has ended
            seconds[folder.name] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            if "VmHWM:" in status:
                largest = max(largest, int(status.split("VmHWM:")[1].split()[0]) / 1024)
        time.sleep(0.25)
    return sum(seconds.values()), largest


def scan(archive: Path, jobs: int, *options: str) -> dict[str, float]:
    """A scan from the command line, into a new folder."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "agent", "scan", str(archive), "--out", out, "--jobs", str(jobs), "--no-merge"]
        command += options
        began = time.perf_counter()
        with tempfile.TemporaryFile("w+") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
            seconds, largest = watched(process)
            log.seek(0)
            assert process.returncode == 0, log.read()
        wall = time.perf_counter() - began
        results = [Result.of(path.read_bytes()) for path in Path(out).rglob("units/*/*.json")]
        return {
            "wall": wall,
            "cpu": seconds,
            "mb": largest,
            "events": sum(len(result.events) for result in results),
            "unclassified": sum(result.ledger.classes.get("unclassified", 0) for result in results),
            "hours": sum(result.ledger.recorded_s for result in results) / 3600,
        }


def peer(archive: Path) -> None:
    """ObsPy reads every file and band-passes it."""
    for file in sorted(archive.rglob("*.D.*")):
        if file.is_file():
            for trace in obspy.read(str(file)):
                trace.data = trace.data.astype(np.float64)
                trace.filter("bandpass", freqmin=1.0, freqmax=20.0, corners=4)


SEISBENCH = """
import json, sys, time
import obspy, seisbench, torch
import seisbench.models as models
torch.set_num_threads(1)
model = models.PhaseNet(sampling_rate=100)
model.eval()
clock, cpu = time.perf_counter(), time.process_time()
stream = obspy.Stream([trace for file in sys.argv[1:] for trace in obspy.read(file)])
found = model.annotate(stream)
used = [time.perf_counter() - clock, time.process_time() - cpu]
print(json.dumps([*used, len(found), f"SeisBench {seisbench.__version__}, torch {torch.__version__}"]))
"""
"""What PhaseNet makes of a day: probabilities of P and S at each sample. Picks are not taken from them."""


def seisbench(python: str | None, archive: Path, settings: Settings) -> None:
    """A day of the archive through SeisBench's PhaseNet, from files to probabilities, and through the scan."""
    day = "2026.060"
    files = [str(path) for path in sorted(archive.rglob(f"*.D.{day}"))]
    command = [python or sys.executable, "-c", SEISBENCH, *files]
    run = subprocess.run(command, check=False, capture_output=True, text=True)
    if run.returncode:
        why = (run.stderr.strip().splitlines() or ["no word of why"])[-1]
        row("SeisBench's PhaseNet over a day", "skipped", f"{why}; see --seisbench")
        return
    wall, cpu, traces, versions = json.loads(run.stdout.splitlines()[-1])
    assert traces == 3, run.stdout
    row(f"PhaseNet over a day ({versions})", f"{wall:.1f} s, {cpu:.1f} s cpu")
    judge_all(archive, settings, days=1)()  # the network is loaded
    wall, own = measured(judge_all(archive, settings, days=1))
    row("  the scan of that day, of its processor time", f"{own:.1f} s cpu, {own / cpu:.2f}")


def pair(archive: Path) -> None:
    """Two processes against one, in turn."""
    ones, twos = [], []
    for _ in range(3):
        ones.append(scan(archive, 1, "--no-slow")["wall"])
        twos.append(scan(archive, 2, "--no-slow")["wall"])
    gain = min(ones) / min(twos)
    row("one process, the quickest of three", f"{min(ones):.1f} s")
    row("two processes", f"{min(twos):.1f} s", "<= 10 s", min(twos) <= 10)
    row("  two over one", f"{gain:.2f} x", ">= 1.7", gain >= 1.7)


def judge_all(archive: Path, settings: Settings, days: int | None = None) -> Callable[[], object]:
    units = look([archive]).units(before_ns(settings.trigger), after_ns(settings.trigger))[:days]
    return lambda: [judge(Task(unit, settings)) for unit in units]


def million(folder: Path, events: int) -> None:
    """A scan's folder with that many events, at three stations in a year."""
    settings = Settings.of(TriggerConfig(), ClassifierConfig())
    stations = [StationId("XX", name, "00", "HH") for name in ("A", "B", "C")]
    units = [Unit(s, DAY + d * DAY_NS, DAY + (d + 1) * DAY_NS) for s in stations for d in range(365)]
    made, each = Folder(folder), -(-events // len(units))
    made.begin(["talus", "scan"], settings, units, (), ())
    rng = np.random.default_rng(1)
    for unit in units:
        rows = []
        for onset in np.sort(rng.integers(0, 86_400_000, each)).tolist():
            text = format_ns(unit.from_ns + onset * 1_000_000)
            name = f"{unit.station}-{text[:4]}{text[5:7]}{text[8:13]}{text[14:16]}{text[17:19]}.{text[20:23]}Z"
            shares = rng.dirichlet(np.ones(5)).round(4).tolist()
            numbers = [81.92, round(4 + 9 * rng.random(), 2), round(20 * rng.random(), 2), 1234.56, 98.765, 8.123]
            rows.append(
                [
                    name,
                    text,
                    "landslide",
                    "landslide",
                    shares[3],
                    False,
                    *shares,
                    *numbers,
                    *[None] * 5,
                    "ENZ",
                    0.0,
                    None,
                    False,
                    None,
                ]
            )
        ledger = Ledger(86_400.0, {"E": 86_400.0}, armed=[1.0] * 24, triggers=each, classes={"landslide": each})
        result = Result("0" * 20, settings.digest, unit.station, unit.from_ns, unit.to_ns, 0, rows, ledger)
        path = made.results / str(unit.station) / f"{unit.day}-{'0' * 20}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(result.content())


def merging(folder: Path) -> None:
    """In a process of its own: the time and memory of the merge."""
    began = time.perf_counter()
    merged = merge(Folder(folder))
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(
        json.dumps([time.perf_counter() - began, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, merged.events])
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "talus-bench-scan")
    parser.add_argument("--days", type=int, default=7)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--only", choices=("scan", "pair", "peer", "noisy", "merge"))
    parser.add_argument("--seisbench", metavar="PYTHON", help="of an environment with SeisBench (default: this one)")
    parser.add_argument("--merging", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.merging is not None:
        merging(args.merging)
        return
    settings = Settings.of(TriggerConfig(slow=SlowTriggerConfig(enabled=False)), ClassifierConfig())
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    if args.only != "merge":
        # In a process of its own: one that is started from a large one counts as large from its first moment.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            busy, quiet, noisy = pool.submit(make_archives, args.folder, args.days).result()
    if args.only in (None, "scan"):
        two, one, slow = scan(busy, 2, "--no-slow"), scan(busy, 1, "--no-slow"), scan(busy, 2)
        row(f"{args.days} days x 3 x 100 Hz, two processes", f"{two['wall']:.1f} s", "<= 10 s", two["wall"] <= 10)
        row("  processor time", f"{two['cpu']:.1f} s")
        row("  events, all classified", f"{two['events']:.0f}", "", two["unclassified"] == 0)
        row("  largest process", f"{two['mb']:.0f} MB", "<= 250 MB", two["mb"] <= 250)
        row("  with slow events, nine hours more before each day", f"{slow['wall']:.1f} s, {slow['cpu']:.1f} s cpu")
        gain = one["wall"] / two["wall"]
        row(f"  {two['hours']:.0f} station-hours, one process", f"{one['wall']:.1f} s, {one['cpu']:.1f} s cpu")
        row("  two processes over one", f"{gain:.2f} x", ">= 1.7", gain >= 1.7)
        wall, cpu = measured(lambda: peer(busy))
        row("ObsPy reads and band-passes the same files", f"{wall:.1f} s, {cpu:.1f} s cpu")
        row("  scan, of its speed", f"{cpu / one['cpu']:.2f}", ">= 0.4", cpu / one["cpu"] >= 0.4)
    if args.only == "pair":
        pair(busy)
    if args.only in (None, "peer"):
        seisbench(args.seisbench, busy, settings)
    if args.only in (None, "noisy"):
        _, still = measured(judge_all(quiet, settings))
        _, loud = measured(judge_all(noisy, settings))
        row("a quiet day, processor time", f"{still:.2f} s")
        row("a day with a trigger in 20 s", f"{loud:.2f} s, {loud / still:.1f} x", "<= 5", loud <= 5 * still)
    if args.only in (None, "merge"):
        with tempfile.TemporaryDirectory() as folder:
            million(Path(folder) / "scan", args.events)
            command = [sys.executable, __file__, "--merging", str(Path(folder) / "scan")]
            wall, cpu, mb, events = json.loads(
                subprocess.run(command, check=True, capture_output=True, text=True).stdout
            )
        row(f"merge of {events:,} events", f"{wall:.1f} s, {cpu:.1f} s cpu", "<= 60 s", wall <= 60)
        row("  memory", f"{mb:.0f} MB", "<= 1000 MB", mb <= 1000)


if __name__ == "__main__":
    main()
