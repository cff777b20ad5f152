"""What is freed goes back, and threads have no heaps of their own: memory that many stations would hold for nothing."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

GLIBC = sys.platform == "linux" and hasattr(ctypes.CDLL(None), "malloc_trim")
pytestmark = pytest.mark.skipif(not GLIBC, reason="another C library")

ALLOCATES = """
import sys, threading
from pathlib import Path
from agent.host.heap import give_back, keep_one
from agent.host.machine import rss_mb

if "one" in sys.argv:
    keep_one()

def work():
    held.append([bytes(2000) for _ in range(20_000)])

held = []
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
    thread.join()
# A heap of a thread reserves 64 MiB, of which the rest may not be touched.
reserved = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if " ---p " in line]
sizes = [int(end, 16) - int(begin, 16) for begin, end in (line[0].split("-") for line in reserved)]
apart = sum(20 << 20 < size < 64 << 20 for size in sizes)
full = rss_mb()
held = [part[-1] for part in held]
free = rss_mb()
give_back()
print(apart, full, free, rss_mb())
"""


def run(*args: str) -> list[float]:
    said = subprocess.run(
        [sys.executable, "-c", ALLOCATES, *args], capture_output=True, text=True, check=True, timeout=300
    )
    return list(map(float, said.stdout.split()))


def test_threads_share_the_heap() -> None:
    """Protects the memory of a site from lying in as many pieces as there are threads."""
    assert run("one")[0] == 0
    assert run()[0] > 0


def test_what_is_free_is_given_back() -> None:
    """Protects other programs of the machine: after a swarm of events the memory that it took is theirs again."""
    _, full, free, after = run("one")
    assert after < full - 60
    assert after < free - 30
