"""Is there a GPU that TensorRT can use here? Asked of a child process, because the answer may be SIGSEGV."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.errors import BackendError
from agent.inference.trt.child import HINT, Child, interpreters

DEVICES = ("dev/nvidia[0-9]*", "dev/nvhost-gpu", "dev/nvgpu/*", "dev/nvmap", "dev/dxg")
"""Device nodes of NVIDIA's drivers. Where there is none, no process is started."""
TIMEOUT_S = 60.0
_L4T = re.compile(r"# R(\d+) \(release\), REVISION: ([\d.]+)")
_L4T_PACKAGE = re.compile(r"^Package: nvidia-l4t-core\n(?:.+\n)*?Version: ([\d.]+)", re.MULTILINE)


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
    match = _L4T.search(_text(root / "etc/nv_tegra_release"))
    if match:
        return f"{match[1]}.{match[2]}"
    match = _L4T_PACKAGE.search(_text(root / "var/lib/dpkg/status"))
    return match[1] if match else "none"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
