"""A thread that repeats one step: started, woken and stopped in the same way in every part of the desk."""

from __future__ import annotations

import abc
import logging
import threading

from agent.backoff import ThrottledLog
from agent.errors import TalusError

RETRY_S = 2.0
"""After a step that failed."""

_log = logging.getLogger(__name__)


class Worker(abc.ABC):
    """One thread, from ``start`` to ``stop``. A step that fails is logged and repeated; the thread goes on."""

    def __init__(self, name: str) -> None:
        self.failure: str | None = None
        """What a step raised that nobody expected; None once a later step has succeeded."""
        self.throttled = ThrottledLog(_log.warning)
        self.name = name
        self._stopping, self._waker = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    @abc.abstractmethod
    def step(self) -> float:
        """Do what there is to do now; returns for how many seconds there is nothing more, unless ``wake`` is called."""

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def stopping(self) -> bool:
        """Whether ``stop`` was called."""
        return self._stopping.is_set()

    def start(self) -> None:
        """Begin; returns at once."""
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Take the next step now. Any thread may call."""
        self._waker.set()

    def stop(self, timeout_s: float = 5.0) -> None:
        """End after the step at hand."""
        self._stopping.set()
        self.wake()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def pause(self, seconds: float) -> None:
        """Wait, whoever calls ``wake``; only ``stop`` ends it."""
        self._stopping.wait(seconds)

    def _run(self) -> None:
        while not self.stopping:
            self._waker.clear()
            try:
                wait_s = self.step()
                self.failure = None
            except TalusError as error:
                self.throttled.warn(str(error))
                wait_s = RETRY_S
            except Exception as error:  # noqa: BLE001 - a desk that is told what it cannot handle goes on, and says so
                self.failure = f"{self.name}: {type(error).__name__}: {error}"[:300]
                _log.error("%s failed", self.name, exc_info=error)
                self.pause(RETRY_S)
                continue
            if wait_s > 0 and not self.stopping:
                self._waker.wait(wait_s)
