"""What this machine says of itself: memory, disk, temperatures, power. None, or nothing, where it does not tell."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Literal

THERMAL = Path("/sys/class/thermal")
HWMON = Path("/sys/class/hwmon")
PROC = Path("/proc")
POWER_MONITOR = "ina3221"
"""The monitor of a Jetson's supply rails: three channels, each with a label, millivolts and milliamperes."""
_MB = 1e6
_MOST = 16


def disk_free_mb(folder: Path) -> float | None:
    """What is left for an ordinary user on the disk that holds ``folder``, megabytes."""
    try:
        return round(shutil.disk_usage(folder).free / _MB, 1)
    except OSError:
        return None


def files_free(folder: Path) -> int | None:
    """How many more files an ordinary user can make on the disk that holds ``folder``; None where it has no limit."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return None
    return found.f_favail if found.f_files else None


def rss_mb(process: int | Literal["self"] = "self") -> float | None:
    """A process's resident memory, megabytes."""
    try:
        pages = int((PROC / str(process) / "statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return round(pages * os.sysconf("SC_PAGE_SIZE") / _MB, 1)


def memory_mb(proc: Path = PROC) -> tuple[float, float] | None:
    """The machine's memory, megabytes: what new work could have without swapping, and all of it."""
    try:
        lines = (proc / "meminfo").read_text(encoding="ascii").splitlines()
        kilobytes = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines) if rest}
        return round(kilobytes["MemAvailable"] * 1024 / _MB, 1), round(kilobytes["MemTotal"] * 1024 / _MB, 1)
    except (OSError, ValueError, KeyError, IndexError):
        return None


def temperatures_c(thermal: Path = THERMAL) -> dict[str, float]:
    """Each thermal zone by its type (``cpu-thermal``, ``tj-thermal``), of equal types the hottest, degrees Celsius."""
    found: dict[str, float] = {}
    for zone in sorted(thermal.glob("thermal_zone*")):
        name, millidegrees = _word(zone / "type"), _number(zone / "temp")
        if name and millidegrees is not None:
            found[name] = max(found.get(name, -274.0), round(millidegrees / 1000, 1))
    return dict(list(found.items())[:_MOST])


def power_w(hwmon: Path = HWMON) -> dict[str, float]:
    """Each supply rail that a Jetson measures, by its label (``VDD_IN``), watts."""
    found: dict[str, float] = {}
    for monitor in sorted(hwmon.glob("hwmon*")):
        if _word(monitor / "name") != POWER_MONITOR:
            continue
        for channel in (1, 2, 3):
            label = _word(monitor / f"in{channel}_label")
            millivolts, milliamperes = (
                _number(monitor / f"in{channel}_input"),
                _number(monitor / f"curr{channel}_input"),
            )
            if label and millivolts is not None and milliamperes is not None:
                found[label] = max(0.0, round(millivolts * milliamperes / 1e6, 3))
    return dict(list(found.items())[:_MOST])


def text_of(path: Path) -> str:
    """What a file of the kernel's or of the vendor's says; empty where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _word(path: Path) -> str:
    return text_of(path).strip()[:80]


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None  # a sensor that is switched off answers EINVAL
