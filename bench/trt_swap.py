"""A ten-minute engine build delays no verdict: windows classified before, while and after TensorRT is made ready.

The real state machine with its real child processes, and a stand-in for the GPU (``tests/fake_gpu``): the build
computes for ``--build-s`` seconds at full tilt, as TensorRT's does, beside the agent. The peer is the same stream of
windows without any build, in the same run. Needs a C compiler.

    OMP_NUM_THREADS=1 python bench/trt_swap.py [--build-s 600] [--every-s 0.2]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from support import row

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from tensorrt_support import compile_driver, fake_environment, make_jetson  # noqa: E402

from agent.assemble import DEFAULT_BUNDLE  # noqa: E402
from agent.inference import Classifier, open_bundle, open_classifier  # noqa: E402
from agent.inference.selftest import read_golden  # noqa: E402
from agent.inference.switch import SwitchingClassifier  # noqa: E402
from agent.types import Window  # noqa: E402

LIMIT_MS = 50.0
"""A verdict is due three seconds after the onset; nobody would notice a twentieth of a second."""


class Stream:
    """Windows at a steady pace, each with the moment at which it was due."""

    def __init__(self, windows: tuple[Window, ...], every_s: float) -> None:
        self._windows, self._every_s = windows, every_s
        self.verdicts: list[tuple[str, float]] = []
        """Backend, and milliseconds from when the window was due to its verdict."""

    def run(self, classifier: Classifier, seconds: float) -> None:
        begin = time.monotonic()
        for number in range(round(seconds / self._every_s)):
            due = begin + number * self._every_s
            time.sleep(max(0.0, due - time.monotonic()))
            verdict = classifier.classify(self._windows[number % len(self._windows)])
            self.verdicts.append((verdict.backend, (time.monotonic() - due) * 1e3))


def tell(name: str, values: list[float]) -> None:
    median, high = np.percentile(values, [50, 99])
    row(name, f"{median:.2f} / {high:.2f} / {max(values):.2f}", f"{len(values)} verdicts")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build-s", type=float, default=30.0)
    parser.add_argument("--every-s", type=float, default=0.2)
    parser.add_argument("--niceness", type=int, default=19)
    options = parser.parse_args()

    bundle = open_bundle(DEFAULT_BUNDLE)
    windows = read_golden(bundle).windows
    alone = open_classifier(bundle, "onnxruntime")
    peer = Stream(windows, options.every_s)
    peer.run(alone, min(options.build_s, 30.0))
    with tempfile.TemporaryDirectory() as folder:
        jetson = make_jetson(Path(folder))
        os.environ.update(fake_environment(compile_driver(Path(folder)), jetson.script))
        jetson.tell(build_s=options.build_s, burn=True)
        begin = time.monotonic()
        classifier = SwitchingClassifier(alone, bundle, jetson.workshop(niceness=options.niceness))
        opened_ms = (time.monotonic() - begin) * 1e3
        stream = Stream(windows, options.every_s)
        while classifier.backend != "tensorrt" and (classifier.standing().activity or not stream.verdicts):
            stream.run(classifier, 2 * options.every_s)
        ready_s = time.monotonic() - begin
        stream.run(classifier, 30 * options.every_s)
        print(classifier.standing())
        classifier.close()
    during = [ms for backend, ms in stream.verdicts if backend == "onnxruntime"]
    after = [ms for backend, ms in stream.verdicts if backend == "tensorrt"]
    row("classifier open, before the first window", f"{opened_ms:.2f} ms")
    row("TensorRT ready after (build of " + f"{options.build_s:g} s)", f"{ready_s:.1f} s")
    print("from due to verdict, ms: median / 99 % / largest")
    tell("  no build (peer)", [ms for _, ms in peer.verdicts])
    tell("  while the engine is built", during)
    if after:
        row("  the first window on TensorRT (stand-in)", f"{after[0]:.2f}")
        tell("  on TensorRT (stand-in)", after)
    met = bool(after) and max(during) <= LIMIT_MS and after[0] <= LIMIT_MS
    row("verdicts delayed by more than 50 ms", str(sum(ms > LIMIT_MS for ms in [*during, *after])), "none", met)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
