"""Which model the station runs: the one that it was installed with, or a remote one that passed its trial.

One small file, replaced as a whole, so that a power cut leaves the old one or the new one. A model on trial that the
agent finds at its start did not survive its probation: it is not tried twice.

The crash guard: a remote model with which the agent dies again and again gives way to the one before it.

Each run notes its start before it opens the model, and takes the note back if it ends in order. A power cut is not the
model's fault, so only the notes of this boot of the machine count.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from agent.atomic import replace_file
from agent.remote.model_order import ModelOrder

_FILE = "selected.json"
_log = logging.getLogger(__name__)
DEATHS = 5
WITHIN_S = 86_400.0


class Chosen(BaseModel):
    """``kept`` serves (a zip's SHA-256; None: the installed bundle), ``before`` is the last good one before it, and
    ``trial`` is on probation. ``order`` is not done yet, with its revision; ``begun``: so often it was tried by an
    agent that did not live to say how it went."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    kept: str | None = None
    before: str | None = None
    trial: str | None = None
    revision: int = 0
    order: ModelOrder | None = None
    begun: int = 0

    @property
    def used(self) -> set[str]:
        """Bundles that must stay on disk."""
        return {name for name in (self.kept, self.before, self.trial) if name is not None}


class ModelSlots:
    """The models of a state folder. Not safe for several threads at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.chosen = self._read()

    def path(self, sha256: str) -> Path:
        """Where a bundle is kept."""
        return self.folder / f"{sha256}.zip"

    def serving(self) -> list[Path]:
        """What to serve with, the first that works: the bundle that was kept, the good one before it."""
        return [self.path(name) for name in (self.chosen.kept, self.chosen.before) if name is not None]

    def change(self, **fields: Any) -> None:
        """On disk when it returns; bundles that nobody needs any more are removed.

        Raises:
            OSError: the disk does not take it; nothing has changed then.
        """
        chosen = self.chosen.model_copy(update=fields)
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        replace_file(self.folder / _FILE, chosen.model_dump_json(by_alias=True).encode())
        self.chosen = chosen
        wanted = chosen.used | ({chosen.order.sha256} if chosen.order else set())
        for other in self.folder.glob("*.zip"):
            if other.stem not in wanted:
                with contextlib.suppress(OSError):
                    other.unlink()

    def _read(self) -> Chosen:
        """What the file says; the installed bundle where there is none or it cannot be used."""
        path = self.folder / _FILE
        try:
            return Chosen.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return Chosen()
        except (OSError, ValueError) as error:
            # The station must not be down for that, but whoever sent a model must not think that it serves.
            _log.warning("%s cannot be used (%s); the installed model serves: send another again", path, error)
            return Chosen()


class CrashGuard:
    """``begin`` and ``end`` are called once a run. A disk that refuses is told, and is no reason not to watch."""

    def __init__(self, folder: Path) -> None:
        """``folder`` is that of the ``ModelSlots``."""
        self._folder, self._file = folder, folder / "starts.json"
        self._model: str | None = None
        self._before: list[float] = []

    def begin(self) -> str | None:
        """Note a start; why the model that was kept is taken back now, None if it is not."""
        slots, reason, now = ModelSlots(self._folder), None, time.monotonic()
        chosen = slots.chosen
        if chosen.kept is None:
            return None
        deaths = [at for at in self._read(chosen.kept) if now - at < WITHIN_S]
        if chosen.trial is not None or chosen.begun:
            deaths = deaths[:-1]  # the candidate beside it is as suspect, and is counted elsewhere
        try:
            if len(deaths) >= DEATHS:
                slots.change(kept=chosen.before, before=None)
                reason = f"with the remote model {chosen.kept[:12]} the agent died {len(deaths)} times within a day"
                _log.error("the model before it serves again: %s", reason)
                self._file.unlink(missing_ok=True)  # pushed again, it has a new life
                deaths = []
            self._model, self._before = slots.chosen.kept, deaths
            self._write([*deaths, now])
        except OSError as error:
            _log.warning("%s: %s; a model that ends the agent would not be noticed", self._file, error.strerror)
        return reason

    def end(self) -> None:
        """This run ends in order."""
        try:
            self._write(self._before)
        except OSError as error:
            _log.warning("%s: %s", self._file, error.strerror)

    def _read(self, model: str) -> list[float]:
        """When the runs of this boot began that did not end in order; none where the file is of no use."""
        try:
            noted = json.loads(self._file.read_text(encoding="utf-8"))
            return [float(at) for at in noted["starts"]] if (noted["model"], noted["boot"]) == (model, _boot()) else []
        except (OSError, ValueError, KeyError, TypeError):
            return []

    def _write(self, starts: list[float]) -> None:
        if self._model is not None:
            noted = {"model": self._model, "boot": _boot(), "starts": starts}
            replace_file(self._file, json.dumps(noted).encode())


def _boot() -> str:
    """Names the time since the machine was switched on, which is also what the monotonic clock counts."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
