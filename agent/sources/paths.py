"""Which files the paths on a command line mean."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from agent.sources.intake import Intake


def files(paths: Iterable[str], intake: Intake) -> Iterator[Path]:
    """Every regular file that the paths mean, each once however often and under whatever links it is named."""
    seen: set[str] = set()
    for given in paths:
        found = [given] if os.path.lexists(given) else sorted(glob.iglob(given, recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern
        if not found:
            intake.report(given, "does not exist", "check the path; a pattern needs at least one match")
        for name in found:
            for path in _below(Path(name), intake):
                real = os.path.realpath(path)
                if real in seen:
                    continue
                seen.add(real)
                try:
                    regular = stat.S_ISREG(path.stat().st_mode)
                except OSError as error:
                    intake.report_unreadable(path, error)
                    continue
                if regular:
                    yield path
                else:
                    intake.report(path, "is not a regular file", "name a file or a folder")


def _below(top: Path, intake: Intake) -> Iterator[Path]:
    """The path itself, or all files below a folder, hidden ones left out; links are followed, each folder once."""
    if not top.is_dir():
        yield top
        return

    def denied(error: OSError) -> None:
        intake.report(error.filename, f"cannot be listed ({error.strerror or error})", "check its permissions")

    seen: set[str] = set()
    for folder, folders, names in os.walk(top, onerror=denied, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                yield Path(folder, name)
