"""Where the agent keeps its state when it is started on a disk that takes nothing.

The kernel makes a worn card read-only, and the next power cut starts the agent on it. A station that stays silent then
is worse than one that forgets, so it works in a *refuge*: a folder in memory, which begins with what the disk still
shows of its small files: the tuned configuration, the model, how far reception has got, the messages that wait. The
refuge outlives the agent, not the machine; the first start that finds the disk well again carries it back.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from agent.atomic import sync_folder
from agent.health.status import FILE as STATUS

if TYPE_CHECKING:
    from agent.config.station import Config

_log = logging.getLogger(__name__)

_REFUSALS = {errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO}
"""What a disk says that nobody's permissions explain."""
_BASES = (Path("/run/talus"), Path("/dev/shm"))  # noqa: S108 - what is found there must be the agent's own
_LARGE = {"evidence", "tensorrt"}
"""Folders that stay behind: records of events, and engines, which can be built anew."""
_MOST_BYTES, _MOST_OUTBOX_MB = 32 << 20, 16
_PROBE_BYTES = 1 << 16


def settle(config: Config) -> tuple[Config, str | None]:
    """The configuration to run with, and what is to be complained of as long as it runs (None: the disk is well).

    A disk that is full and holds an outbox is worked on as it is: what does not fit waits in memory. An ``outbox.path``
    of its own stays what it is.
    """
    refuge = _find(config, {os.geteuid()})
    reason = _refusal(config)
    if reason is None and refuge is not None:
        reason = _carry_back(refuge, config.state_dir)
    if reason is None:
        return config, None
    try:
        refuge = refuge or _make(config)
    except OSError as error:
        _log.error("there is no memory to work in either: %s", error)
        return config, None
    changes = {
        "state_dir": refuge,
        "outbox": config.outbox.model_copy(update={"max_mb": min(config.outbox.max_mb, _MOST_OUTBOX_MB)}),
        "evidence": config.evidence.model_copy(update={"max_mb": 0}),
    }
    complaint = f"{config.state_dir} takes nothing ({reason}): what waits is in memory only, and lost with the power"
    _log.error("%s", complaint)
    return config.model_copy(update=changes), complaint


def in_use(config: Config) -> Path:
    """The folder in which an agent of this configuration was the last to say something."""
    anyone = {os.geteuid()} if os.geteuid() else None  # root looks at what the service's user left
    refuge = _find(config, anyone)
    return refuge if refuge and _spoke(refuge) > _spoke(config.state_dir) else config.state_dir


def _spoke(folder: Path) -> float:
    """When an agent last said something there; 0 where none did, or where only its user may look."""
    try:
        return (folder / STATUS).stat().st_mtime
    except OSError:
        return 0.0


def _refusal(config: Config) -> str | None:
    """Why the disk does not take the state; None where it does, or where whoever opens it has the better words."""
    try:
        config.state_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=config.state_dir) as probe:
            probe.write(bytes(_PROBE_BYTES))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        if error.errno not in _REFUSALS or (full and config.outbox_path.exists()):
            return None
        return error.strerror or str(error)
    return None


def _name(config: Config) -> str:
    return f"refuge-{config.station.network}.{config.station.station}"


def _bases() -> Iterator[Path]:
    """Folders in memory, the service's own first."""
    given = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    if given:
        yield Path(given)
    yield from _BASES


def _find(config: Config, owners: set[int] | None) -> Path | None:
    """The refuge of an earlier start by one of the ``owners`` (None: anyone): others may write to such folders, too."""
    for base in _bases():
        folder = base / _name(config)
        try:
            status = folder.lstat()
        except OSError:
            continue
        if stat.S_ISDIR(status.st_mode) and (owners is None or status.st_uid in owners):
            return folder
    return None


def _make(config: Config) -> Path:
    """A refuge with what the disk shows.

    Raises:
        OSError: there is no folder in memory.
    """
    for base in _bases():
        try:
            new = Path(tempfile.mkdtemp(prefix=".refuge-", dir=base))
        except OSError:
            continue
        try:
            _bring(config.state_dir, new)
            return new.rename(base / _name(config))
        except OSError:
            shutil.rmtree(new, ignore_errors=True)
    raise OSError(errno.ENOENT, "no folder in memory can be written to")


def _bring(home: Path, refuge: Path) -> None:
    room = _MOST_BYTES
    for path in sorted(_files(home), key=lambda path: path.stat().st_size):
        room -= path.stat().st_size
        if room < 0:
            _log.error("%s and what is larger stays on the disk: there is no room in memory", path)
            return
        target = refuge / path.relative_to(home)
        _copy(path, target)
        _beside(target).replace(target)


def _carry_back(refuge: Path, home: Path) -> str | None:
    """Put what the refuge holds back on the disk; the reason where the disk does not take it."""
    targets = [home / path.relative_to(refuge) for path in _files(refuge)]
    try:
        for target in targets:
            _copy(refuge / target.relative_to(home), target)
        for target in targets:
            if target.suffix == ".sqlite3":  # what belongs to the file that is replaced would spoil the new one
                for log in ("-wal", "-shm", "-journal"):
                    Path(f"{target}{log}").unlink(missing_ok=True)
        for target in targets:
            _beside(target).replace(target)
        for folder in {target.parent for target in targets}:
            sync_folder(folder)
    except OSError as error:
        for target in targets:
            with contextlib.suppress(OSError):
                _beside(target).unlink()
        return error.strerror or str(error)
    gone = refuge.rename(Path(tempfile.mkdtemp(prefix=".refuge-", dir=refuge.parent)))  # never to be carried twice
    shutil.rmtree(gone, ignore_errors=True)
    _log.warning("%s is well again; what was kept in memory is back on it", home)
    return None


def _files(folder: Path) -> list[Path]:
    """Regular files below it, without the large ones; what cannot be looked at is left out."""
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in _LARGE]
        paths = [Path(place, name) for name in names if not name.endswith("-shm")]
        found += [path for path in paths if path.is_file() and not path.is_symlink()]
    return found


def _beside(target: Path) -> Path:
    return target.with_name(f".{target.name}.carried")


def _copy(path: Path, target: Path) -> None:
    """A copy on the disk, beside ``target``, to be put in its place."""
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    shutil.copyfile(path, _beside(target))
    with _beside(target).open("rb") as file:
        os.fsync(file.fileno())
