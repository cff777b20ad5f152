"""``make desk`` shows the pages to whoever has just cloned the project, and leaves nothing running."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import httpx
from broker_support import wait_for

ROOT = Path(__file__).parents[1]


def test_make_desk_shows_its_pages_and_ends_with_all_that_it_started(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "demo.desk", "--port", "0", "--folder", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"(http://\S+)\s+log in as (\S+), password (\S+)", line)
        assert found is not None, line
        form = {"name": found[2], "password": found[3], "next": "/"}
        assert httpx.post(f"{found[1]}/login", data=form, timeout=60).status_code == 303
    finally:
        process.terminate()
    process.wait(60)

    def is_down() -> bool:
        try:
            httpx.get(f"{found[1]}/healthz", timeout=2)
        except httpx.HTTPError:
            return True
        return False

    wait_for(is_down, what="the end of the desk")
