"""Recorded time passing at a chosen speed."""

from __future__ import annotations

import threading
import time

from agent.types import NS

LONGEST_SILENCE_S = 600
"""A longer stretch without any data (seconds of data time) is skipped: nobody waits a year between two files."""


class Pacer:
    """Holds packets back until they are due: ``speed`` seconds of data pass in one second of the monotonic clock.

    All due times are counted from one anchor, so delays do not add up; a consumer that fell behind catches up.
    With ``speed`` 0 nothing is ever held back.
    """

    def __init__(self, speed: float, stop: threading.Event) -> None:
        self._speed = speed
        self._stop = stop
        self._data_ns = 0
        self._clock_ns: int | None = None
        self._last_ns = 0

    def wait(self, data_ns: int) -> None:
        """Return once ``data_ns`` has come, or at once when ``stop`` is set."""
        if not self._speed:
            return
        now = time.monotonic_ns()
        if self._clock_ns is None or data_ns - self._last_ns > LONGEST_SILENCE_S * NS:
            self._data_ns, self._clock_ns = data_ns, now
        self._last_ns = max(self._last_ns, data_ns)
        delay_ns = self._clock_ns + (data_ns - self._data_ns) / self._speed - now
        if delay_ns > 0:
            self._stop.wait(delay_ns / NS)
