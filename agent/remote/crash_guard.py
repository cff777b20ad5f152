"""The crash guard: a remote model with which the agent dies again and again gives way to the one before it.

Each run notes its start before it opens the model, and takes the note back if it ends in order. A power cut is not the
model's fault, so only the notes of this boot of the machine count.
"""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

from agent.atomic import replace_file
from agent.remote.slots import ModelSlots

DEATHS = 5
WITHIN_S = 86_400.0

_log = logging.getLogger(__name__)


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
