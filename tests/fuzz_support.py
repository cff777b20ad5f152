"""How often hostile input is fed to a source: a few hundred times, or ``TALUS_FUZZ=100000 pytest --timeout 0`` once."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings

_ASKED = int(os.environ.get("TALUS_FUZZ", "0"))


def fuzz(examples: int) -> Callable[[Any], Any]:
    """So many inputs, always the same, in the suite; as many as ``TALUS_FUZZ`` says, new ones, where that is set."""
    return settings(
        max_examples=_ASKED or examples,
        deadline=None,
        derandomize=not _ASKED,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
