"""Engines on disk: one file each, which says what it is good for and proves that it is whole.

    talus-engine/1 LF   {"key": {...}, "sha256": ..., "bytes": ...} LF   the engine

The name is a digest of the key, so an engine of another TensorRT, GPU, JetPack or network is not even found. A file
appears whole or not at all. TensorRT's timing cache lies beside them, and a note of the builds that failed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from agent.atomic import ANYONE, replace_file
from agent.inference.tensorrt.child import Platform

MAGIC = b"talus-engine/1\n"
MAX_MB = 256
MAX_ENGINES = 6
MAX_TIMING_MB = 64
SCRATCH = ".new-"


@dataclass(frozen=True, slots=True)
class EngineKey:
    """Everything that makes an engine another one."""

    tensorrt: str
    gpu: str
    sm: str
    jetpack: str
    onnx_sha256: str
    precision: str

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:24]


def key_of(platform: Platform, onnx: bytes, precision: str) -> EngineKey:
    return EngineKey(
        tensorrt=platform.tensorrt,
        gpu=platform.gpu,
        sm=platform.sm,
        jetpack=platform.jetpack,
        onnx_sha256=hashlib.sha256(onnx).hexdigest(),
        precision=precision,
    )


@dataclass(frozen=True, slots=True)
class Stored:
    """A whole engine: ``size`` bytes from byte ``offset`` of the file ``path``."""

    path: Path
    offset: int
    size: int


class EngineCache:
    """A folder of engines. Several processes may use it at once."""

    def __init__(self, folder: Path, max_mb: int = MAX_MB) -> None:
        """
        Raises:
            OSError: the folder cannot be made.
        """
        self.folder = folder
        self._max_bytes = max_mb << 20
        folder.mkdir(parents=True, exist_ok=True)

    def find(self, key: EngineKey) -> Stored | None:
        """The engine for ``key``; one that is damaged is deleted and not found."""
        path = self._path(key)
        try:
            stored = _check(path, key)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            stored = None
        if stored is None:
            self.drop(key)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # so that the engine in use is the last to go
        return stored

    def put(self, key: EngineKey, engine: Path) -> Stored:
        """Take in a freshly built engine, and make room.

        Raises:
            OSError: the disk refuses.
        """
        raw = engine.read_bytes()
        head = {"key": asdict(key), "sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}
        self._place(self._path(key), MAGIC + json.dumps(head).encode() + b"\n" + raw)
        self._make_room(self._path(key))
        stored = self.find(key)
        if stored is None:
            raise OSError("the engine could not be read back")
        return stored

    def drop(self, key: EngineKey) -> None:
        with contextlib.suppress(OSError):
            self._path(key).unlink(missing_ok=True)

    @contextlib.contextmanager
    def scratch(self, suffix: str) -> Iterator[Path]:
        """A path that nothing else uses; gone afterwards."""
        path = self.folder / f"{SCRATCH}{os.getpid()}-{time.monotonic_ns()}{suffix}"
        try:
            yield path
        finally:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def timing(self, key: EngineKey) -> bytes:
        """TensorRT's timing cache for this machine and version; empty where there is none."""
        try:
            return self._timing_path(key).read_bytes()
        except OSError:
            return b""

    def put_timing(self, key: EngineKey, timing: Path) -> None:
        """Keep the timing cache that a build left; it only ever saves time, so a disk that refuses is no matter."""
        with contextlib.suppress(OSError):
            raw = timing.read_bytes()
            if 0 < len(raw) <= MAX_TIMING_MB << 20:
                self._place(self._timing_path(key), raw)

    def failures(self, key: EngineKey) -> tuple[int, str]:
        """How often the build for ``key`` failed in a row, and of what last."""
        try:
            note = json.loads(self._note_path(key).read_text(encoding="utf-8"))
            return int(note["count"]), str(note["reason"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0, ""

    def note_failure(self, key: EngineKey, reason: str) -> None:
        count = self.failures(key)[0] + 1
        with contextlib.suppress(OSError):
            self._place(self._note_path(key), json.dumps({"count": count, "reason": reason[:300]}).encode())

    def forget_failures(self, key: EngineKey) -> None:
        with contextlib.suppress(OSError):
            self._note_path(key).unlink(missing_ok=True)

    def _path(self, key: EngineKey) -> Path:
        return self.folder / f"{key.digest}.engine"

    def _note_path(self, key: EngineKey) -> Path:
        return self.folder / f"{key.digest}.failed"

    def _timing_path(self, key: EngineKey) -> Path:
        machine = json.dumps([key.tensorrt, key.gpu, key.sm, key.jetpack]).encode()
        return self.folder / f"{hashlib.sha256(machine).hexdigest()[:24]}.timing"

    def _place(self, path: Path, raw: bytes) -> None:
        with self.scratch(path.suffix) as new:
            replace_file(path, raw, mode=ANYONE, scratch=new)

    def _make_room(self, kept: Path) -> None:
        """Delete what a crash left behind, then the engines least recently used, but never ``kept``."""
        for leftover in self.folder.glob(f"{SCRATCH}*"):
            if not _alive(leftover.name):
                leftover.unlink(missing_ok=True)
        engines = sorted(self.folder.glob("*.engine"), key=lambda path: path.stat().st_mtime, reverse=True)
        engines = [kept, *(path for path in engines if path != kept)]
        total = 0
        for number, path in enumerate(engines):
            total += path.stat().st_size
            if number and (total > self._max_bytes or number >= MAX_ENGINES):
                path.unlink(missing_ok=True)
                path.with_suffix(".failed").unlink(missing_ok=True)
        for path in sorted(self.folder.glob("*.timing"), key=lambda path: path.stat().st_mtime)[:-2]:
            path.unlink(missing_ok=True)


def _check(path: Path, key: EngineKey) -> Stored | None:
    """The engine in ``path`` if it is whole and made for ``key``."""
    with path.open("rb") as file:
        if file.readline(len(MAGIC)) != MAGIC:
            return None
        head: dict[str, Any] = json.loads(file.readline(1 << 16))
        offset = file.tell()
        raw = file.read()
    whole = len(raw) == head["bytes"] and hashlib.sha256(raw).hexdigest() == head["sha256"]
    return Stored(path, offset, len(raw)) if whole and head["key"] == asdict(key) else None


def _alive(name: str) -> bool:
    """Whether the process that made a scratch file still runs."""
    return Path("/proc", name.removeprefix(SCRATCH).partition("-")[0]).exists()
