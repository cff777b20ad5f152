"""A wake-up call between threads that a ``select`` can wait for."""

from __future__ import annotations

import contextlib
import select
import socket


class Waker:
    """Ends another thread's wait early: its own `wait`, or a ``select`` that includes it."""

    def __init__(self) -> None:
        self._read, self._write = socket.socketpair()
        self._read.setblocking(False)
        self._write.setblocking(False)

    def fileno(self) -> int:
        return self._read.fileno()

    def wake(self) -> None:
        """A wake-up is never lost: the next wait ends at once if none is going on."""
        with contextlib.suppress(BlockingIOError):
            self._write.send(b"w")

    def clear(self) -> None:
        """Forget the wake-ups so far."""
        with contextlib.suppress(BlockingIOError):
            while self._read.recv(4096):
                pass

    def wait(self, timeout_s: float) -> None:
        """Sleep until woken or ``timeout_s`` have passed."""
        select.select([self._read], [], [], timeout_s)
        self.clear()

    def close(self) -> None:
        self._read.close()
        self._write.close()
