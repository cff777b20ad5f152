"""Every figure about speed with its peer in the same run: ``make bench``.

    python bench/run.py [--quick] [--only NAME]... [--write]

Runs the scripts below one after the other, prints what they print, and collects their rows. With ``--write`` they go to
``bench/results.json`` and ``docs/benchmarks.md``; with ``--only`` the rows of the others stay as they are there. About
25 minutes on two cores that do nothing else, with ``--quick`` about three.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE = ROOT / "bench" / "results.json", ROOT / "docs" / "benchmarks.md"
RSUDP = Path(os.environ.get("TALUS_RSUDP", "/tmp/rsudp/bin/python"))  # noqa: S108


@dataclass(frozen=True, slots=True)
class Bench:
    """A script with its arguments, in full and quick (None: left out); ``about`` is the heading."""

    name: str
    about: str
    full: str
    quick: str | None


BENCHES = (
    Bench(
        "processing", "From the file to the message, beside ObsPy", "processing.py", "processing.py --hours 1 --turns 2"
    ),
    Bench(
        "inference",
        "The network, beside FP32, OpenVINO and its teachers",
        "inference.py",
        "inference.py --rounds 100 --teacher-rounds 3",
    ),
    Bench(
        "delivery",
        "From the decision to the broker, beside paho",
        "delivery.py line",
        "delivery.py line --rounds 100 --backlog 1000 --seconds 400",
    ),
    Bench("latency", "From the last sample to the subscriber", "delivery.py service", "delivery.py service --copies 6"),
    Bench("spool", "A week without a broker, beside paho's queue", "delivery.py week", None),
    Bench(
        "realtime",
        "One station at real time, beside ObsPy",
        "realtime.py one",
        "realtime.py one --seconds 20 --starts 2",
    ),
    Bench("stations-8", "Eight stations at real time", "realtime.py many --stations 8 --minutes 1", None),
    Bench("stations-64", "Sixty-four stations at real time", "realtime.py many --minutes 3", None),
    Bench("seedlink", "SeedLink, beside ObsPy's client", "receiving.py seedlink --seconds 60", None),
    Bench("shake", "A Raspberry Shake, beside rsudp", f"receiving.py shake --minutes 1 --rsudp {RSUDP}", None),
    Bench("scan", "Archives, beside ObsPy", "scan.py --days 2 --only scan", None),
    Bench("desk", "The desk", "desk.py ingest pages memory", None),
)


def run(bench: Bench, arguments: str) -> dict[str, Any]:
    """Run a script; its rows, and how it went."""
    print(f"\n== {bench.about}: python bench/{arguments}", flush=True)
    with tempfile.TemporaryDirectory(prefix="talus-bench-") as folder:
        rows = Path(folder) / "rows"
        load, began = os.getloadavg()[0], time.monotonic()
        command = [sys.executable, str(ROOT / "bench" / shlex.split(arguments)[0]), *shlex.split(arguments)[1:]]
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, "TALUS_BENCH_RESULTS": str(rows)}, check=False)
        took_s = round(time.monotonic() - began)
        lines = rows.read_text(encoding="utf-8").splitlines() if rows.exists() else []
    return {
        "name": bench.name,
        "about": bench.about,
        "command": f"python bench/{arguments}",
        "status": done.returncode,
        "took_s": took_s,
        "load": round(load, 1),
        "rows": [json.loads(line) for line in lines],
    }


def machine() -> dict[str, Any]:
    """What it was measured on."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    names = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def page(results: dict[str, Any]) -> str:
    """``docs/benchmarks.md``."""
    of = results["machine"]
    head = f"""# Benchmarks

`make bench` measures every part beside what one would use instead, in the same run, and writes this page and
`bench/results.json`; `make bench QUICK=1` is the short form. Peers that are not installed are left out:
`pip install openvino`, torch (`talus-agent[train]`), rsudp (see the head of `bench/receiving.py`).

Measured on {of["processor"]}, {of["cores"]} cores, Python {of["python"]}, {of["system"]}. `load` is the machine's load
average when a script began: where it is above the number of cores, others had a share of them, and times are longer
than on a machine of one's own, most of all the 99th percentiles."""
    out = [head]
    for bench in results["benches"]:
        out += ["", f"## {bench['about']}", f"`{bench['command']}`, {bench['took_s']} s, load {bench['load']:g}", ""]
        if not bench["rows"]:
            out.append(f"No figures: it ended with status {bench['status']}.")
            continue
        out += ["| | | goal | |", "|---|---|---|---|"]
        for one in bench["rows"]:
            mark = {None: "", True: "met", False: "not met"}[one["met"]]
            indent = "&nbsp;&nbsp;" if one["name"].startswith(" ") else ""
            out.append(f"| {indent}{one['name'].strip()} | {one['value']} | {one['goal']} | {mark} |")
    return "\n".join(out) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", action="append", choices=[bench.name for bench in BENCHES], default=[])
    parser.add_argument("--write", action="store_true", help=f"to {RESULTS.name} and {PAGE.name}")
    args = parser.parse_args()
    found = {}
    for bench in BENCHES:
        arguments = bench.quick if args.quick else bench.full
        if arguments is not None and (not args.only or bench.name in args.only):
            if bench.name == "shake" and not RSUDP.exists():
                print(f"\n== {bench.about}: left out, as there is no {RSUDP}")
                continue
            found[bench.name] = run(bench, arguments)
    if args.write:
        before = json.loads(RESULTS.read_text())["benches"] if args.only and RESULTS.exists() else []
        whole = {one["name"]: one for one in before} | found
        benches = [whole[bench.name] for bench in BENCHES if bench.name in whole]
        results = {"machine": machine(), "benches": benches}
        RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        PAGE.write_text(page(results), encoding="utf-8")
    return 1 if any(not one["rows"] for one in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
