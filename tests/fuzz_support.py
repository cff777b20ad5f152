"""How often the tests that feed hostile input to a source run: as often as ``TALUS_FUZZ`` says, else a few hundred."""

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
