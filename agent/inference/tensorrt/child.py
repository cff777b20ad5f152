"""One child process of ``agent.tensorrt_child`` and the socket to it; whether there is a GPU is asked of one as well.

The answer to that may be SIGSEGV.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from agent.errors import BackendError
from agent.host.machine import rss_mb, text_of

START = """
import sys
sys.path.append(sys.argv.pop(1))
from agent.tensorrt_child.main import main
sys.exit(main(sys.argv[1:]))
"""
"""The agent's own packages come last on the child's path: another interpreter must not load ours before its own."""
HINT = "run `talus doctor --jetson`; the station goes on with ONNX Runtime"
MAX_LINE = 1 << 16
MAX_TEXT = 300
ERROR_MARK = "[TRT] [E] "
"""How TensorRT's logger begins an error: its own words say more than that something failed."""
POLL_S = 0.5
_HOME = str(Path(__file__).parents[3])
DEVICES = ("dev/nvidia[0-9]*", "dev/nvhost-gpu", "dev/nvgpu/*", "dev/nvmap", "dev/dxg")
"""Device nodes of NVIDIA's drivers. Where there is none, no process is started."""
TIMEOUT_S = 60.0
_L4T = re.compile(r"# R(\d+) \(release\), REVISION: ([\d.]+)")
_L4T_PACKAGE = re.compile(r"^Package: nvidia-l4t-core\n(?:.+\n)*?Version: ([\d.]+)", re.MULTILINE)


class Child:
    """Started at once. Kill it with ``close``, or use it as a context."""

    def __init__(self, python: str, command: str, *arguments: str, niceness: int = 0) -> None:
        """With ``niceness`` it also ends when the thread that makes this does.

        Raises:
            BackendError: the interpreter cannot be started.
        """
        self._what = command
        self.stage = "starting"
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child
        self.socket, theirs = socket.socketpair()
        # -I would hide a site's PYTHONPATH, which is how TensorRT from a tar file is found
        line = [python, "-c", START, _HOME, str(os.getpid()), str(niceness), command, *arguments]
        with theirs:
            try:
                self.process = subprocess.Popen(
                    line, stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=self._stderr, start_new_session=True
                )
            except OSError as error:
                self.socket.close()
                self._stderr.close()
                raise BackendError(f"{python} cannot be started: {error.strerror}", HINT) from error

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def result(self, timeout_s: float, check: Callable[[float], None] = lambda elapsed_s: None) -> Mapping[str, Any]:
        """Wait for the child's result; ``check`` is called about twice a second with the time passed, and may raise.

        Raises:
            BackendError: it refused, died (of which signal, and at which stage) or took too long.
        """
        begin = time.monotonic()
        pending = bytearray()
        while True:
            elapsed = time.monotonic() - begin
            if elapsed > timeout_s:
                raise BackendError(f"{self._what} took more than {timeout_s:.0f} s while {self.stage}", HINT)
            check(elapsed)
            self.socket.settimeout(min(POLL_S, max(0.01, timeout_s - elapsed)))
            try:
                raw = self.socket.recv(MAX_LINE)
            except TimeoutError:
                continue
            except ConnectionError:
                raw = b""
            pending += raw
            if not raw or len(pending) > MAX_LINE:
                raise self.died()
            *lines, rest = pending.split(b"\n")
            pending = bytearray(rest)
            for line in lines:
                try:
                    message = json.loads(line)
                except ValueError:
                    raise BackendError(f"{self._what} said what is not understood: {line[:80]!r}", HINT) from None
                if "result" in message:
                    found: Mapping[str, Any] = message["result"]
                    return found
                if "error" in message:
                    raise BackendError(str(message["error"])[:MAX_TEXT] + self._last_words(ERROR_MARK), HINT)
                self.stage = str(message.get("stage", self.stage))

    def died(self) -> BackendError:
        """What ended the child, as an error to raise."""
        try:
            status = self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return BackendError(f"{self._what} closed its socket while {self.stage}", HINT)
        return BackendError(f"{self._what} ended by {_cause(status)} while {self.stage}{self._last_words()}", HINT)

    def rss_mb(self) -> float:
        """Resident memory, 0 when it has ended."""
        return rss_mb(self.process.pid) or 0.0

    def close(self) -> None:
        """End it, whatever it does."""
        self.socket.close()
        self.process.kill()
        self.process.wait()
        self._stderr.close()

    def _last_words(self, mark: str = "") -> str:
        """The last line that its libraries wrote, after ``mark``; empty where none has it."""
        self._stderr.seek(0)
        lines = self._stderr.read()[-4000:].decode("utf-8", "replace").split("\n")
        said = [line.rpartition(mark)[2].strip() if mark else line.strip() for line in lines if mark in line]
        said = [text for text in said if text]
        return f" ({said[-1][:MAX_TEXT]})" if said else ""


def _cause(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


def interpreters() -> tuple[str, ...]:
    """Where the bindings may be: beside the agent, or in the system's Python, where JetPack puts them."""
    system = "/usr/bin/python3"
    return (sys.executable, system) if Path(system).exists() else (sys.executable,)


class NoGpuError(BackendError):
    """There is no device node of NVIDIA's: nothing is wrong, there is just nothing."""


@dataclass(frozen=True, slots=True)
class Platform:
    """What an engine is good for, and who can run it. ``jetpack`` is the L4T release (``none`` off a Jetson);
    ``python`` the interpreter whose TensorRT answered."""

    tensorrt: str
    gpu: str
    sm: str
    jetpack: str
    cuda: str
    memory_mb: int
    python: str
    strongly_typed: bool

    def __str__(self) -> str:
        return f"TensorRT {self.tensorrt} on {self.gpu} (SM {self.sm}, L4T {self.jetpack}, CUDA {self.cuda})"


@dataclass(frozen=True, slots=True)
class Places:
    """Where to look; tests look elsewhere."""

    root: Path = Path("/")
    pythons: tuple[str, ...] = ()
    timeout_s: float = TIMEOUT_S


def probe(places: Places) -> Platform:
    """The GPU and its TensorRT, of the first interpreter where both work.

    Raises:
        NoGpuError: there is no device node of one.
        BackendError: none can be used; the text says what each interpreter lacked, or how its probe ended.
    """
    if not any(any(places.root.glob(pattern)) for pattern in DEVICES):
        raise NoGpuError(
            "no NVIDIA GPU: none of its device nodes is there",
            "on a Jetson: is the service's PrivateDevices off, and its user in the groups video and render?",
        )
    reasons = []
    for python in places.pythons or interpreters():
        try:
            with Child(python, "probe") as child:
                return _platform(child.result(places.timeout_s), python, jetpack_release(places.root))
        except BackendError as error:
            reasons.append(f"{python}: {error.message}")
    raise BackendError("; ".join(reasons), HINT)


def _platform(facts: Any, python: str, jetpack: str) -> Platform:
    return Platform(
        tensorrt=str(facts["tensorrt"]),
        gpu=str(facts["gpu"]),
        sm=str(facts["sm"]),
        jetpack=jetpack,
        cuda=str(facts["cuda"]),
        memory_mb=int(facts["memory_mb"]),
        python=python,
        strongly_typed=bool(facts["strongly_typed"]),
    )


def jetpack_release(root: Path = Path("/")) -> str:
    """The L4T release, such as ``36.4.3`` (JetPack 6.2), from NVIDIA's release file or its package; else ``none``."""
    match = _L4T.search(text_of(root / "etc/nv_tegra_release"))
    if match:
        return f"{match[1]}.{match[2]}"
    match = _L4T_PACKAGE.search(text_of(root / "var/lib/dpkg/status"))
    return match[1] if match else "none"
