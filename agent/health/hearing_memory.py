"""What is usual at each sensor, kept in a file of the state folder: a restart does not begin a day from nothing."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agent.atomic import replace_file
from agent.dsp.hearing import SLOTS, Slot
from agent.messages.schema import Amount, Name
from agent.types import StationId

FILE = "hearing.json"
WRITE_S = 600.0
MAX_BYTES = 4_000_000

_log = logging.getLogger(__name__)


class _Slot(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    start_s: int
    threshold: Amount
    levels: dict[Name, Amount] = Field(max_length=16)
    band: tuple[Amount, Amount, int]


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    sensors: dict[Name, list[_Slot]] = Field(max_length=1024)


class HearingMemory:
    """Owned by the main thread."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / FILE
        self._failed = False
        self._next = time.monotonic() + WRITE_S

    def read(self) -> dict[StationId, tuple[Slot, ...]]:
        """What the file holds. One that cannot be used is logged; what is usual is then learned anew."""
        try:
            with self._path.open("rb") as file:
                found = _File.model_validate_json(file.read(MAX_BYTES))
        except FileNotFoundError:
            return {}
        except (OSError, ValidationError, ValueError) as error:
            _log.warning("%s is not used: %s", self._path, str(error).splitlines()[0])
            return {}
        return {
            StationId(*name.split(".")): tuple(
                Slot(one.start_s, one.threshold, one.levels, one.band) for one in slots[-SLOTS:]
            )
            for name, slots in found.sensors.items()
            if name.count(".") == 3
        }

    def tick(self, now: float, known: Callable[[], Mapping[StationId, Sequence[Slot]]]) -> None:
        """Write every ten minutes; ``now`` is the monotonic clock."""
        if now >= self._next:
            self._next = now + WRITE_S
            self.write(known())

    def write(self, known: Mapping[StationId, Sequence[Slot]]) -> None:
        """Replace the file; a disk that refuses is logged once, and is no reason to stop."""
        sensors = {
            str(name): [
                _Slot(start_s=one.start_s, threshold=one.threshold, levels=dict(one.levels), band=one.band)
                for one in slots
            ]
            for name, slots in known.items()
            if slots
        }
        if not sensors:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self._path, json.dumps(_File(sensors=sensors).model_dump(), separators=(",", ":")).encode())
            self._failed = False
        except OSError as error:
            if not self._failed:
                _log.warning("%s: %s; after a restart it is learned anew what is usual", self._path, error.strerror)
            self._failed = True
