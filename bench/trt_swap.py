"""A ten-minute engine build delays no verdict: windows classified before, while and after TensorRT is made ready.

The real state machine with its real child processes, and a stand-in for the GPU (``tests/fake_gpu``): the build
computes for ``--build-s`` seconds at full tilt, as TensorRT's does, beside the agent. The peer is the same stream of
windows with the build paused, every other three seconds: what else the machine does disturbs both alike. No verdict may
be late while the build runs; run it on a machine that has nothing else to do.
Needs a C compiler.

    OMP_NUM_THREADS=1 python bench/trt_swap.py [--build-s 600] [--every-s 0.1]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from support import row

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from tensorrt_support import compile_driver, fake_environment, make_jetson  # noqa: E402

from agent.inference import Classifier, open_bundle, open_classifier  # noqa: E402
from agent.inference.bundle import DEFAULT_BUNDLE  # noqa: E402
from agent.inference.selftest import read_golden  # noqa: E402
from agent.inference.tensorrt.switch import SwitchingClassifier  # noqa: E402
from agent.types import Window  # noqa: E402

LIMIT_MS = 50.0
"""A verdict is due three seconds after the onset; nobody would notice a twentieth of a second."""
TURN_S = 3.0


class Stream:
    """Windows at a steady pace, each with the moment at which it was due."""

    def __init__(self, windows: tuple[Window, ...], every_s: float) -> None:
        self._windows, self._every_s = windows, every_s
        self.verdicts: list[tuple[str, str, float]] = []
        """Phase, backend, and milliseconds from when the window was due to its verdict."""

    def run(self, phase: str, classifier: Classifier, seconds: float) -> None:
        begin = time.monotonic()
        for number in range(round(seconds / self._every_s)):
            due = begin + (number + 1) * self._every_s
            time.sleep(max(0.0, due - time.monotonic()))
            verdict = classifier.classify(self._windows[len(self.verdicts) % len(self._windows)])
            self.verdicts.append((phase, verdict.backend, (time.monotonic() - due) * 1e3))

    def of(self, phase: str, backend: str = "onnxruntime") -> list[float]:
        return [ms for *kind, ms in self.verdicts if kind == [phase, backend]]


def builder() -> psutil.Process | None:
    """The process that builds the engine."""
    children = psutil.Process().children()
    return next((child for child in children if child.is_running() and "build" in child.cmdline()), None)


def tell(name: str, values: list[float]) -> None:
    median, high = np.percentile(values, [50, 99])
    late = sum(value > LIMIT_MS for value in values)
    row(
        name,
        f"{median:.2f} / {high:.2f} / {max(values):.2f}",
        f"{len(values)} verdicts, {late} later than {LIMIT_MS:g} ms",
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build-s", type=float, default=60.0)
    parser.add_argument("--every-s", type=float, default=0.1)
    options = parser.parse_args()
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, -5)  # as the service's unit has it

    bundle = open_bundle(DEFAULT_BUNDLE)
    alone = open_classifier(bundle, "onnxruntime")
    stream = Stream(read_golden(bundle).windows, options.every_s)
    with tempfile.TemporaryDirectory() as folder:
        jetson = make_jetson(Path(folder))
        os.environ.update(fake_environment(compile_driver(Path(folder)), jetson.script))
        jetson.tell(build_s=options.build_s, burn=True)
        begin = time.monotonic()
        classifier = SwitchingClassifier(alone, bundle, jetson.engine_settings(niceness=19))
        opened_ms = (time.monotonic() - begin) * 1e3
        while classifier.backend != "tensorrt" and (classifier.backend_status().activity or not stream.verdicts):
            build = builder()
            if build is None:
                stream.run("around", classifier, options.every_s)
                continue
            with contextlib.suppress(psutil.NoSuchProcess):
                stream.run("building", classifier, TURN_S)
                build.suspend()
                stream.run("paused", classifier, TURN_S)
                build.resume()
        ready_s = time.monotonic() - begin
        stream.run("after", classifier, 5.0)
        classifier.close()
    row("classifier open, before the first window", f"{opened_ms:.2f} ms")
    row(f"TensorRT ready (build of {options.build_s:g} s, beside the work)", f"{ready_s:.1f} s")
    print("from due to verdict, ms: median / 99 % / largest")
    building, paused, after = stream.of("building"), stream.of("paused"), stream.of("after", "tensorrt")
    tell("  the build paused (peer, every other 3 s)", paused)
    tell("  the build running", building)
    tell("  probe, load, golden windows, swap", stream.of("around"))
    tell("  on TensorRT (stand-in on the CPU)", after)
    late, late_paused = (sum(ms > LIMIT_MS for ms in values) for values in (building, paused))
    met = bool(after) and late == 0
    row("late verdicts while the build ran", f"{late} of {len(building)}", "none", met)
    if late and late_paused:
        print(f"{late_paused} of {len(paused)} were late with the build paused: this machine is too busy to tell")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
