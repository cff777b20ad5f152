"""Put a bundle in its place, whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import agent
from agent.inference import open_bundle, open_classifier


def place(target: Path, contents: Mapping[str, bytes]) -> None:
    """Write the files of a bundle to the folder ``target``, replacing one that is there, once the agent has opened them
    and their golden windows have passed.

    Raises:
        BundleError, BackendError: the agent refuses the result.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        new, old = scratch / "new", scratch / "old"
        new.mkdir()
        for name, raw in contents.items():
            with (new / name).open("wb") as file:
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
        open_classifier(open_bundle(new), "onnxruntime")
        if target.exists():
            target.rename(old)
        try:
            new.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
    finally:
        shutil.rmtree(scratch)


def tools() -> dict[str, str]:
    """Return the versions of Talus and of the packages that may have made the files, of those that are installed."""
    found = {"talus": agent.__version__}
    for name in ("numpy", "onnx", "onnxruntime", "torch"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def sha256(raw: bytes) -> str:
    """In lower-case hexadecimal."""
    return hashlib.sha256(raw).hexdigest()
