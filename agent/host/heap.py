"""The heap of the C library: kept in one piece, and what is freed in it given back to the system.

glibc gives each thread a heap of its own, which none of the others uses what is freed of, and keeps what lies below
anything in use. Threads of Python take turns, so that one heap costs them nothing. Other C libraries do neither.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

_ARENA_MAX = -8
"""M_ARENA_MAX of malloc.h."""


def _function(name: str) -> Any:
    """A function of the C library; None where it has no such one."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


def keep_one() -> None:
    """Have all threads that are made from now on share the heap."""
    if (mallopt := _function("mallopt")) is not None:
        mallopt(_ARENA_MAX, 1)


def give_back() -> None:
    """Return to the system what is free; takes milliseconds."""
    if (trim := _function("malloc_trim")) is not None:
        trim(ctypes.c_size_t(0))
