"""`journalctl -p warning` shows alerts and faults: lines for the journal carry a priority, and no others do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from agent_support import ROOT

LOG = """
import logging
from agent.host.journal import log_to_stderr
log_to_stderr()
log = logging.getLogger("a.b")
log.warning("one\\n  hint: two")
log.error("three")
log.info("four")
logging.getLogger().setLevel("DEBUG")
log.debug("five")
"""


def said(folder: Path, *command: str, journal: str | None = None) -> list[str]:
    """Lines that the command writes to standard error, a file; ``journal``: what systemd says that it gave, the
    file itself where that is ``""``."""
    path = folder / "stderr"
    with path.open("wb") as file:
        found = os.fstat(file.fileno())
        named = {} if journal is None else {"JOURNAL_STREAM": journal or f"{found.st_dev}:{found.st_ino}"}
        environment = {name: value for name, value in os.environ.items() if name != "JOURNAL_STREAM"}
        subprocess.run([sys.executable, *command], cwd=ROOT, stderr=file, env=environment | named, check=False)
    return path.read_text().splitlines()


def test_every_line_for_the_journal_has_its_priority(tmp_path: Path) -> None:
    assert said(tmp_path, "-c", LOG, journal="") == [
        "<4>WARNING a.b: one", "<4>  hint: two", "<3>ERROR a.b: three", "<6>INFO a.b: four", "<7>DEBUG a.b: five"
    ]  # fmt: skip


@pytest.mark.parametrize("journal", [None, "8:123456"], ids=["none", "another file"])
def test_a_log_that_does_not_go_to_the_journal_has_times_and_no_priorities(tmp_path: Path, journal: str | None) -> None:
    """A service's environment names the journal also where its output was sent elsewhere."""
    first, hint, *_ = said(tmp_path, "-c", LOG, journal=journal)
    assert first.endswith("Z WARNING a.b: one") and first.startswith("20")
    assert hint == "  hint: two"


def test_the_error_that_ends_a_command_is_one_for_the_journal_too(tmp_path: Path) -> None:
    assert said(tmp_path, "-m", "agent", "run", "--config", "/none.yaml", journal="")[0].startswith("<3>talus run: ")
    assert said(tmp_path, "-m", "agent", "run", "--config", "/none.yaml")[0].startswith("talus run: ")
