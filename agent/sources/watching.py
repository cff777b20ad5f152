"""Which files below some folders have changed: inotify where there is one, a listing now and then in any case."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from agent.backoff import Throttle
from agent.errors import in_words
from agent.sources import ProblemSink, SourceProblem

if TYPE_CHECKING:
    from inotify_simple import INotify

_POLL_S = 1.0
"""Pause between listings where inotify does not serve."""
_SHARE = 20
"""A listing may take one part in so many of the time."""


def files_below(
    top: Path, denied: Callable[[OSError], None], enter: Callable[[Path], None] = lambda folder: None
) -> Iterator[Path]:
    """All files below a folder, hidden files and folders left out; links are followed, each folder once.

    Args:
        top: the folder.
        denied: told why a folder cannot be listed.
        enter: called with each folder before it is listed: what is written in between is seen twice and not missed.
    """
    seen: set[Path] = set()
    pending = [(top, Path(os.path.realpath(top)))]
    # Without recursion, as folders may be nested deeper than Python's stack is.
    while pending:
        folder, real = pending.pop()
        if real in seen:
            continue
        seen.add(real)
        enter(folder)
        try:
            with os.scandir(folder) as listing:
                entries = sorted((one for one in listing if not one.name.startswith(".")), key=lambda one: one.name)
        except OSError as error:
            denied(error)
            continue
        below = {entry.name: entry.is_symlink() for entry in entries if _is_folder(entry)}
        yield from (folder / entry.name for entry in entries if entry.name not in below)
        for name, is_link in reversed(below.items()):
            path = folder / name
            pending.append((path, Path(os.path.realpath(path)) if is_link else real / name))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


class Watcher:
    """Paths of files that are new, have grown or were replaced. For one thread.

    Of the files see ``files_below``. A network file system tells nothing about changes made elsewhere, therefore all is
    also listed every ``rescan_s``.
    """

    def __init__(self, roots: Iterable[Path], rescan_s: float, on_problem: ProblemSink) -> None:
        self._roots = list(roots)
        self._rescan_s = rescan_s
        self._on_problem = on_problem
        self._once = Throttle(math.inf)
        self._denied: dict[str, str] = {}
        """Folders that could not be listed, and why."""
        self._seen: dict[Path, tuple[int, int, int, int]] = {}
        self._folders: dict[int, Path] = {}
        self._inotify = self._open()
        self._next_listing_s = 0.0

    def close(self) -> None:
        if self._inotify is not None:
            self._inotify.close()
            self._inotify = None

    def problems(self) -> list[str]:
        """Folders that cannot be listed now, a line each. Any thread may ask."""
        return [f"{name} cannot be listed ({reason})" for name, reason in self._denied.copy().items()]

    def wait(self, timeout_s: float) -> list[Path]:
        """Files to look at, at once if there are any, else after at most about ``timeout_s``; sorted."""
        now_s = time.monotonic()
        if now_s >= self._next_listing_s:
            found = self._list()
            took_s = time.monotonic() - now_s
            every_s = self._rescan_s if self._inotify else min(self._rescan_s, _POLL_S)
            self._next_listing_s = time.monotonic() + max(every_s, _SHARE * took_s)
            if found:
                return found
        if self._inotify is None:
            time.sleep(timeout_s)
            return []
        return sorted(self._events(self._inotify, timeout_s))

    def _open(self) -> INotify | None:
        try:
            from inotify_simple import INotify

            return INotify()
        except (ImportError, OSError) as error:
            self._report("inotify", f"changes are not told by the system ({error})", "folders are listed instead")
            return None

    def _events(self, inotify: INotify, timeout_s: float) -> set[Path]:
        from inotify_simple import flags

        found: set[Path] = set()
        for event in inotify.read(timeout=round(timeout_s * 1000)):
            if event.mask & flags.Q_OVERFLOW:
                self._next_listing_s = 0.0
            folder = self._folders.get(event.wd)
            if event.mask & flags.IGNORED:
                self._folders.pop(event.wd, None)
            if folder is None or not event.name or event.name.startswith("."):
                continue
            path = folder / event.name
            if event.mask & flags.ISDIR:
                # A new folder, or one moved here: what is already in it tells nothing more.
                found.update(self._changed(path))
            elif self._note(path):
                found.add(path)
        return found

    def _list(self) -> list[Path]:
        """All files that differ from what was seen last."""
        gone = [path for path in self._seen if not os.path.lexists(path)]
        for path in gone:
            del self._seen[path]
        self._denied.clear()
        return sorted({path for root in self._roots for path in self._changed(root)})

    def _changed(self, top: Path) -> Iterator[Path]:
        def denied(error: OSError) -> None:
            name, reason = str(error.filename), in_words(error)
            if isinstance(error, FileNotFoundError) and Path(name) not in self._roots:
                return  # it has just been removed
            self._denied[name] = reason
            self._report(
                f"{name} {reason}", f"{name} cannot be listed ({reason})", "check that it exists, and its rights"
            )

        yield from (path for path in files_below(top, denied, self._watch) if self._note(path))

    def _watch(self, folder: Path) -> None:
        if self._inotify is None:
            return
        from inotify_simple import flags

        mask = flags.MODIFY | flags.CLOSE_WRITE | flags.CREATE | flags.MOVED_TO | flags.ATTRIB | flags.ONLYDIR
        try:
            self._folders[self._inotify.add_watch(folder, mask)] = folder
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return  # it cannot be listed either, which says so
        except OSError as error:
            hint = "raise fs.inotify.max_user_watches (sysctl); until then the folders are listed every second"
            self._report("watches", f"{folder} cannot be watched ({in_words(error)})", hint)
            self.close()

    def _note(self, path: Path) -> bool:
        """Remember what the file looks like; whether that is news."""
        try:
            status = path.stat()
        except OSError:
            # Gone again, or a link to nowhere.
            self._seen.pop(path, None)
            return False
        # A change of rights is news too: what could not be read may be readable now.
        looks = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        if self._seen.get(path) == looks:
            return False
        self._seen[path] = looks
        return path.is_file()

    def _report(self, key: str, message: str, hint: str) -> None:
        if self._once.passes(key) is not None:
            self._on_problem(SourceProblem(", ".join(map(str, self._roots)), message, hint))
