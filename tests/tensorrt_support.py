"""A machine with a GPU that is none: a compiled stand-in for the CUDA driver and a ``tensorrt`` package that runs its
engines under ONNX Runtime, both found by real child processes through the environment, as on a device."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from agent.inference.tensorrt.child import Places
from agent.inference.tensorrt.fallback import EngineSettings

FAKE = Path(__file__).parent / "fake_gpu"


def compile_driver(folder: Path) -> Path:
    """``libcuda.so.1`` in ``folder``."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler for the stand-in of the CUDA driver (try: sudo apt-get install gcc)")
    target = folder / "libcuda.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", target, FAKE / "libcuda.c"], check=True)
    return folder


def children() -> list[psutil.Process]:
    """Living ones, without those that the tests of this process share until the end: the database, and what commands
    are forked from."""
    found = [child for child in psutil.Process().children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE]
    return [
        child
        for child in found
        if child.name() != "postgres" and not any("multiprocessing" in word for word in child.cmdline())
    ]


@dataclass(frozen=True)
class FakeJetson:
    """``tell`` says how TensorRT behaves from now on."""

    root: Path
    script: Path
    state: Path

    def tell(self, **script: Any) -> None:
        self.script.write_text(json.dumps(script))

    def engine_settings(self, **changes: Any) -> EngineSettings:
        fields: dict[str, Any] = {
            "folder": self.state / "tensorrt",
            "places": Places(root=self.root, pythons=(sys.executable,), timeout_s=60.0),
            "niceness": 0,  # the machine that tests may have no time left over
            "answer_s": 60.0,  # nor any time at all for a while
        }
        return EngineSettings(**{**fields, **changes})


def fake_environment(driver: Path, script: Path) -> dict[str, str]:
    """What makes a child process find the stand-ins."""
    return {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(FAKE), os.environ.get("PYTHONPATH")])),
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, [str(driver), os.environ.get("LD_LIBRARY_PATH")])),
        "FAKE_TENSORRT": str(script),
    }


def make_jetson(folder: Path) -> FakeJetson:
    """The files by which the agent recognises a Jetson."""
    root = folder / "root"
    (root / "dev").mkdir(parents=True)
    (root / "dev" / "nvhost-gpu").touch()
    (root / "etc").mkdir()
    (root / "etc" / "nv_tegra_release").write_text("# R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic\n")
    jetson = FakeJetson(root, folder / "script.json", folder / "state")
    jetson.tell()
    return jetson
