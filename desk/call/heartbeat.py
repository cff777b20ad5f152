"""The desk's own sign of life: an address that is asked every minute, for as long as the desk is well.

A service at the other end (healthchecks.io, a cron job on another machine) calls when the signs stop. Whatever stops
the desk stops them: a crash, the power, the network, a broker that it no longer hears.
"""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Callable

from desk.worker import Worker

TIMEOUT_S = 10.0


class Heartbeat(Worker):
    """Gives a sign every ``every_s`` seconds."""

    def __init__(self, url: str, every_s: float, problem: Callable[[], str | None]) -> None:
        """``problem`` says what is wrong with the desk; while it is anything, no sign is given."""
        super().__init__("heartbeat")
        self.error: str | None = None
        """Why the last sign did not arrive."""
        self._url, self._every_s, self._problem = url, every_s, problem

    def step(self) -> float:
        """See ``Worker``."""
        self.beat()
        return self._every_s

    def beat(self) -> bool:
        """Give one sign, if the desk is well; whether it arrived."""
        problem = self._problem()
        if problem is not None:
            self.throttled.warn(f"no sign of life is given: {problem}")
            return False
        try:
            with urllib.request.urlopen(self._url, timeout=TIMEOUT_S) as answer:  # noqa: S310 - http and https alone
                answer.read(1)
        except (OSError, urllib.error.URLError, ValueError) as error:
            self.error = f"the sign of life does not arrive: {error}"
            self.throttled.warn(self.error)
            return False
        self.error = None
        return True
