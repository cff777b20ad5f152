"""Which model the station runs: the one that it was installed with, or a remote one that passed its trial.

One small file, replaced as a whole, so that a power cut leaves the old one or the new one. A model on trial that the
agent finds at its start did not survive its probation: it is not tried twice.
"""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from agent.atomic import replace_file
from agent.remote.model_order import ModelOrder

_FILE = "selected.json"
_log = logging.getLogger(__name__)


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
    """Not safe for several threads at once."""

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
