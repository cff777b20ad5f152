"""Which model the station runs: the one that it was installed with, or a remote one that passed its trial.

One small file, replaced as a whole, so that a power cut leaves the old one or the new one. A model on trial that the
agent finds at its start did not survive its probation: it is not tried twice.
"""

from __future__ import annotations

import contextlib
import json
import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from agent.atomic import replace_file
from agent.errors import ControlError
from agent.remote.model_order import ModelOrder, parse

_FILE = "selected.json"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Chosen:
    """``kept`` serves (a zip's SHA-256; None: the installed bundle), ``before`` is the last good one before it, and
    ``trial`` is on probation. ``order`` is not done yet, with its revision; ``begun``: so often it was tried by an
    agent that did not live to say how it went."""

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
        chosen = replace(self.chosen, **fields)
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        values = asdict(chosen)
        values["order"] = None if chosen.order is None else chosen.order.content()
        replace_file(self.folder / _FILE, json.dumps(values).encode())
        self.chosen = chosen
        wanted = chosen.used | ({chosen.order.sha256} if chosen.order else set())
        for other in self.folder.glob("*.zip"):
            if other.stem not in wanted:
                with contextlib.suppress(OSError):
                    other.unlink()

    def _read(self) -> Chosen:
        """What the file says; the installed bundle where there is none or it says nothing of use."""
        path = self.folder / _FILE
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            order = values.pop("order")
            return Chosen(**values, order=None if order is None else parse(order))
        except FileNotFoundError:
            return Chosen()
        except (OSError, ValueError, TypeError, KeyError, AttributeError, ControlError) as error:
            # The station must not be down for that, but whoever sent a model must not think that it serves.
            _log.warning("%s says nothing of use (%s); the installed model serves: send another again", path, error)
            return Chosen()
