"""Whom the desk calls, and in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SEVERITIES = ("info", "minor", "moderate", "severe", "extreme")
"""From the least to the most; a word that is not in this list counts as the highest: no alert is lost to a name."""


@dataclass(frozen=True, slots=True)
class Target:
    """A person or a channel. ``url`` is Apprise's (``ntfy://host/topic``, ``mailto://...``); the alert goes on to the
    next target when nobody has acknowledged it for ``wait_s``. Below ``least`` the target is left in peace."""

    name: str
    url: str
    wait_s: float = 300.0
    least: str = "info"
    exercises: bool = False

    def wants(self, severity: str, *, exercise: bool) -> bool:
        """Whether an alert of this severity is for this target."""
        return rank(severity) >= rank(self.least) and (self.exercises or not exercise)


def rank(severity: str) -> int:
    """Place of a severity in ``SEVERITIES``."""
    return SEVERITIES.index(severity) if severity in SEVERITIES else len(SEVERITIES)


def schedule(targets: Sequence[Target], severity: str, *, exercise: bool) -> list[tuple[Target, float]]:
    """Who is called after how many seconds, as long as nobody acknowledges."""
    found, wait_s = [], 0.0
    for target in targets:
        if target.wants(severity, exercise=exercise):
            found.append((target, wait_s))
            wait_s += target.wait_s
    return found
