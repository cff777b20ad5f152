"""A disk that refuses to be written, read-only, full or failing: what is on it can still be read; and new folders."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

from agent.errors import ConfigError, UsageError

_REFUSALS = {errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO}
"""What no permission explains."""
_MOST_BYTES = 64 << 20


def refuses(error: Exception) -> bool:
    """Whether the disk itself is what failed, and not a permission or a path."""
    if isinstance(error, sqlite3.OperationalError):
        return "full" in str(error) or "disk I/O" in str(error)
    return isinstance(error, OSError) and error.errno in _REFUSALS


def is_read_only(folder: Path) -> bool:
    """Whether the file system of a folder, which need not be there, is mounted read-only."""
    nearest = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    return bool(os.statvfs(nearest).f_flag & os.ST_RDONLY)


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold the folder against other agents, by a lock on the folder itself: that needs no file, so it works on a
    read-only disk too. A folder that cannot be made or locked is left to what needs it.

    Raises:
        ConfigError: another process holds it.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            stack.callback(os.close, lock)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(
                    f"state_dir {folder} is in use by another agent",
                    "stop that one (systemctl status talus-agent), or give this one a state_dir of its own",
                ) from None
        yield


def folder_in_memory() -> Path:
    """The service's own folder in memory (systemd's ``RuntimeDirectory``), which need not be there."""
    return Path(os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0] or "/run/talus")


@contextlib.contextmanager
def readable_copy(path: Path) -> Iterator[Path | None]:
    """Yield a copy of a SQLite file and its write-ahead log in memory, since SQLite cannot read a log on a disk to
    which it cannot write; None where there is no file, it is larger than 64 MB, or there is no memory for it."""
    with contextlib.ExitStack() as stack:
        copy = None
        with contextlib.suppress(OSError):
            found = [part for part in (path, Path(f"{path}-wal")) if part.exists()]
            if path in found and sum(part.stat().st_size for part in found) <= _MOST_BYTES:
                folder = next((one for one in (folder_in_memory(), Path("/dev/shm")) if os.access(one, os.W_OK)), None)  # noqa: S108 - a new folder below it
                made = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder)))
                for part in found:
                    shutil.copyfile(part, made / part.name)
                copy = made / path.name
        yield copy


def make_new_folder(folder: Path) -> None:
    """Make a folder for results, or take one that is empty: what is there already is not mixed with them.

    Raises:
        UsageError: the folder is not empty, or cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UsageError(f"{folder} is not empty", "name a new folder")
    except OSError as error:
        raise UsageError(f"{folder}: {error.strerror}", "name a folder that you may write") from None
