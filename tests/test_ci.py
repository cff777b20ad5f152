"""Continuous integration sees what a user sees: ``make test`` alone first, and no part's failure is lost."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]

MAKE = """#!/bin/sh
echo "$1" >> "$CALLS"
case $1 in
test) echo '===== 7 passed, 1 skipped in 1.00s =====' ;;
test-train) echo '===== 3 passed in 2.00s =====' ;;
esac
[ "$1" != "$FAILS" ]
"""
SETUP = """#!/bin/sh
mkdir -p "$1/bin"
printf '#!/bin/sh\\n[ "$TORCH" = there ]\\n' > "$1/bin/python"
chmod +x "$1/bin/python"
"""


def run(tmp_path: Path, *, fails: str = "", torch: bool = True) -> tuple[int, list[str], list[str]]:
    """Run a copy of .ci/run with a `make` that only reports; its exit status, last lines and the targets it called."""
    for name, text in (("bin/make", MAKE), (".ci/setup", SETUP)):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci" / "run")
    calls = tmp_path / "calls"
    environment = {
        **os.environ,
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "CALLS": str(calls),
        "FAILS": fails,
        "TORCH": "there" if torch else "absent",
    }
    done = subprocess.run([tmp_path / ".ci" / "run"], env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout.splitlines()[-6:], calls.read_text().split()


def test_every_part_runs_and_the_last_lines_show_both_summaries(tmp_path: Path) -> None:
    status, lines, calls = run(tmp_path)
    assert status == 0
    assert calls == ["test", "test-train", "check"]
    assert lines[-5:] == [
        "ci: make test passed",
        "===== 7 passed, 1 skipped in 1.00s =====",
        "ci: make test-train passed",
        "===== 3 passed in 2.00s =====",
        "ci: make check passed",
    ]


def test_one_failed_part_fails_the_whole_and_the_others_still_run(tmp_path: Path) -> None:
    for name in ("test", "test-train", "check"):
        folder = tmp_path / name
        folder.mkdir()
        status, lines, calls = run(folder, fails=name)
        assert status == 1
        assert calls == ["test", "test-train", "check"]
        assert [line for line in lines if "FAILED" in line] == [f"ci: make {name} FAILED (exit status 1)"]


def test_training_tests_that_did_not_run_are_told(tmp_path: Path) -> None:
    status, lines, calls = run(tmp_path, torch=False)
    assert status == 0
    assert calls == ["test", "check"]
    assert "ci: THE TRAINING TESTS DID NOT RUN: torch could not be installed" in lines
