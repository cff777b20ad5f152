"""How good this machine's own clock is: what chrony, systemd-timesyncd or the kernel say of it."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from agent.types import NS, parse_ns

CHRONYC = ("chronyc", "-n", "-c", "tracking")
TIMEDATECTL = ("timedatectl", "timesync-status", "--no-pager")
WORST_OFFSET_S = 0.5
"""A clock further off is wrong: onsets of sources without a clock of their own are as far off."""

EARLIEST_NS = parse_ns("2026-01-01T00:00:00Z")
"""Before this software existed: a clock that shows an earlier time was never set."""
FAR_OFF_S = 60.0
"""A clock that its own time service is about to correct by more than this is not set yet."""

Trust: TypeAlias = Literal["synchronised", "unsynchronised", "not_set"]
"""``synchronised``: a time service keeps the clock. ``unsynchronised``: none is known to, and the time is possible; it
may be right. ``not_set``: the time is impossible, or a time service has not set it yet, as after a start without a
battery-backed clock: it shows 1970 or the time of the last shutdown."""

_TIMEOUT_S = 2.0
_STEP_NS = 500_000_000
_STA_PLL, _STA_UNSYNC, _STA_NANO = 0x0001, 0x0040, 0x2000
_TIME_ERROR = 5


@dataclass(frozen=True, slots=True)
class HostClock:
    """``source`` is what keeps the clock (``chrony``, ``systemd-timesyncd``, ``kernel``; None: nothing known to).

    ``offset_s`` is by how much the clock is ahead of true time, as far as that is known; ``synchronised`` is None where
    the system does not tell.
    """

    source: str | None
    offset_s: float | None
    synchronised: bool | None

    @property
    def is_wrong(self) -> bool:
        """Known to be of no use for comparing data times with."""
        return self.synchronised is False or (self.offset_s is not None and abs(self.offset_s) > WORST_OFFSET_S)

    def __str__(self) -> str:
        if self.source is None:
            return "not synchronised" if self.synchronised is False else "nothing is known of its synchronisation"
        state = "" if self.synchronised else ", not synchronised"
        if self.offset_s is None:
            return f"{self.source}{state}"
        return f"{self.source}{state}, {abs(self.offset_s):.6f} s {'ahead' if self.offset_s >= 0 else 'behind'}"


@dataclass(frozen=True, slots=True)
class Moment:
    """This machine's time, ns UTC, and how far it can be trusted."""

    ns: int
    trust: Trust

    @property
    def is_set(self) -> bool:
        """Whether ages can be told by it."""
        return self.trust != "not_set"


class MachineClock:
    """This machine's time for those who compare data with it. ``look`` asks other programs and may take seconds; one
    thread calls it now and then. ``now`` is quick, for any thread."""

    def __init__(self, ask: Callable[[], HostClock] | None = None, time_ns: Callable[[], int] = time.time_ns) -> None:
        """``ask`` tells how the clock is kept (``host_clock``); it is asked at once."""
        self._ask, self._time_ns = ask or host_clock, time_ns
        self.said = self._ask()
        """The newest answer."""

    def look(self) -> HostClock:
        """Ask how the clock is kept."""
        self.said = self._ask()
        return self.said

    def now(self) -> Moment:
        """The time, and how far it can be trusted as of the newest answer."""
        now_ns = self._time_ns()
        return Moment(now_ns, _trust(self.said, now_ns))


def _trust(said: HostClock, now_ns: int) -> Trust:
    if now_ns < EARLIEST_NS or (said.synchronised is False and said.source is not None):
        return "not_set"
    if said.synchronised is not True:
        return "unsynchronised"
    return "not_set" if said.offset_s is not None and abs(said.offset_s) > FAR_OFF_S else "synchronised"


def host_clock(chronyc: Sequence[str] = CHRONYC, timedatectl: Sequence[str] = TIMEDATECTL) -> HostClock:
    """Ask chrony, then systemd-timesyncd, then the kernel; the first that answers counts.

    Args:
        chronyc: command that prints chrony's tracking report as comma-separated values.
        timedatectl: command that prints the status of systemd-timesyncd.
    """
    return _chrony(_ask(chronyc)) or _timesyncd(_ask(timedatectl)) or _kernel()


class StepWatch:
    """Notices when the clock is set: it then leaves the monotonic clock by more than half a second."""

    def __init__(self) -> None:
        self._base_ns = time.time_ns() - time.monotonic_ns()

    def step_s(self) -> float | None:
        """Seconds by which the clock was set since the last call; None if it was not."""
        base_ns = time.time_ns() - time.monotonic_ns()
        step_ns = base_ns - self._base_ns
        self._base_ns = base_ns
        return step_ns / NS if abs(step_ns) > _STEP_NS else None


def _ask(command: Sequence[str]) -> str:
    """What a command prints, empty where it is not installed, fails or hangs."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False, env={**os.environ, "LC_ALL": "C"}
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _chrony(report: str) -> HostClock | None:
    """Fields of chronyc's tracking report: 2 is the stratum, 4 the correction still to come, 13 the leap status."""
    fields = report.strip().split(",")
    if len(fields) < 14:
        return None
    try:
        correction_s = float(fields[4])
    except ValueError:
        return None
    synchronised = fields[13] != "Not synchronised" and fields[2] != "0"
    return HostClock("chrony", -correction_s if synchronised else None, synchronised)


def _timesyncd(report: str) -> HostClock | None:
    if "Poll interval" not in report and "Server:" not in report:
        return None
    match = re.search(r"^\s*Offset: ([-+]?)(.+)$", report, re.MULTILINE)
    if match is None:
        return HostClock("systemd-timesyncd", None, False)
    span_s = _timespan_s(match[2])
    # What it calls offset is how far the server is ahead.
    offset_s = None if span_s is None else (span_s if match[1] == "-" else -span_s)
    return HostClock("systemd-timesyncd", offset_s, True)


_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


def _timespan_s(text: str) -> float | None:
    """systemd's time spans, such as ``1.234ms`` or ``1min 2.5s``."""
    parts = re.findall(r"([\d.]+)\s*([a-z]+)", text)
    try:
        return sum(float(number) * _UNITS[unit] for number, unit in parts) if parts else None
    except (KeyError, ValueError):
        return None


class _Timex(ctypes.Structure):
    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_byte * 512),
    )


def _kernel() -> HostClock:
    """adjtimex(2), which any time service keeps up to date."""
    timex = _Timex()
    try:
        state = ctypes.CDLL(None).adjtimex(ctypes.byref(timex))
    except (OSError, AttributeError):
        state = -1
    if state < 0:
        return HostClock(None, None, None)
    if state == _TIME_ERROR or timex.status & _STA_UNSYNC:
        return HostClock(None, None, False)
    unit_s = 1e-9 if timex.status & _STA_NANO else 1e-6
    return HostClock("kernel", -timex.offset * unit_s if timex.status & _STA_PLL else None, True)
