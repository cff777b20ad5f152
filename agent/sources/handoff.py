"""What one thread hands on to another, at most so much at a time.

``queue.Queue`` wakes the other thread through locks and a condition in Python, which costs more than what a small
packet is worth. Here it sleeps in C, and whoever finds no room looks again after a moment.
"""

from __future__ import annotations

import time
from queue import Empty, Full, SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")
LOOK_S = 0.002

__all__ = ["Empty", "Full", "Handoff"]


class Handoff(Generic[T]):
    """For one thread that takes, and any that put. ``most``: items at a time; beyond it each thread that puts may add
    one at the same moment as another."""

    def __init__(self, most: int) -> None:
        self._items: SimpleQueue[T] = SimpleQueue()
        self._most = most

    def __len__(self) -> int:
        return self._items.qsize()

    def put(self, item: T, timeout_s: float = 0.0) -> None:
        """Hand an item on, as soon as there is room.

        Raises:
            Full: there was none in ``timeout_s``.
        """
        if self._items.qsize() >= self._most:
            deadline = time.monotonic() + timeout_s
            while self._items.qsize() >= self._most:
                if time.monotonic() >= deadline:
                    raise Full
                time.sleep(LOOK_S)
        self._items.put(item)

    def take(self, timeout_s: float | None = None) -> T:
        """The next item, as soon as there is one.

        Raises:
            Empty: there was none in ``timeout_s``; None waits for ever.
        """
        return self._items.get(timeout=timeout_s)
