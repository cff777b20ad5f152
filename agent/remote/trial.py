"""A remote bundle is first opened in a process of its own, with little memory and little time.

Its files are data, but ONNX Runtime is a large parser: what makes it crash or swell must not do so beside the station's
detector. The child runs the golden windows; only a bundle that passes there is loaded by the agent.

    python -m agent.remote.trial BUNDLE
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agent.errors import ControlError

LIMIT_S = 120.0
MEMORY_MB = 320
"""What the child may write to. It has its place beside the agent within the unit's ``MemoryMax``."""
ADDRESSES_MB = 2048
"""Address space, of which ONNX Runtime maps far more than it uses."""
_TICK_S = 0.2


@dataclass(frozen=True, slots=True)
class Tried:
    """What the child found: the model's name, and the largest drift on the golden windows."""

    model: str
    drift: float


def try_bundle(path: Path, limit_s: float = LIMIT_S, stopped: Callable[[], bool] = lambda: False) -> Tried:
    """Open the bundle at ``path`` in a child and run its golden windows, unless ``stopped`` meanwhile.

    Raises:
        ControlError: ``bundle``: it was refused, or the child died of it; ``stopped``.
    """
    command = [sys.executable, "-m", "agent.remote.trial", str(path)]
    deadline = time.monotonic() + limit_s
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # each thread has memory of its own
        start_new_session=True,  # Ctrl-C at a terminal stops the agent, and is not the bundle's fault
    ) as child:
        try:
            while (answer := _answer(child)) is None:
                if stopped():
                    raise ControlError("stopped", "the agent stopped during the trial")
                if time.monotonic() > deadline:
                    raise ControlError(
                        "bundle", f"its golden windows take longer than {limit_s:g} s", "use a smaller one"
                    )
        finally:
            child.kill()
    out, err = answer
    if child.returncode in (-signal.SIGINT, -signal.SIGTERM):
        # The child of an agent that is being stopped, in the moment before it has a session of its own.
        raise ControlError("stopped", "the trial was stopped")
    if child.returncode < 0:
        raise ControlError("bundle", f"opening it killed a process (signal {-child.returncode})", "do not trust it")
    try:
        said = json.loads(out)
        if "error" in said:
            raise ControlError("bundle", str(said["error"])[:300], "build it again, then `python -m quantize verify`")
        return Tried(str(said["model"]), float(said["drift"]))
    except (ValueError, KeyError, TypeError):
        last = err.decode(errors="replace").strip().splitlines()[-1:] or ["no word"]
        raise ControlError("bundle", f"opening it failed: {last[0][:200]}", "do not trust it") from None


def _answer(child: subprocess.Popen[bytes]) -> tuple[bytes, bytes] | None:
    """What the child has said, once it has ended; None as long as it has not."""
    try:
        return child.communicate(timeout=_TICK_S)
    except subprocess.TimeoutExpired:
        return None


def main(path: Path) -> None:
    """The child: one JSON object on standard output."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES_MB << 20, ADDRESSES_MB << 20))
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_MB << 20, MEMORY_MB << 20))
    os.nice(5)
    with contextlib.suppress(OSError):
        # Where memory runs out all the same, the kernel is to end this process and not the agent.
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    from agent.errors import ModelError
    from agent.inference import open_bundle, open_classifier
    from agent.inference.bundle import CPU_MODEL
    from agent.inference.selftest import check_golden

    try:
        bundle = open_bundle(path)
        classifier = open_classifier(bundle, "onnxruntime")
        drift = check_golden(classifier, bundle, CPU_MODEL)
        said: dict[str, object] = {"model": classifier.model, "drift": drift}
    except ModelError as error:
        said = {"error": error.message}
    print(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
