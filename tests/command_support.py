"""Commands in processes of their own, forked from one that has imported the program: that takes most of their time."""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
from pathlib import Path

from agent.cli import main

ROOT = Path(__file__).parents[1]
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["agent.service.service", "agent.sources.archive", "desk.push.configuration"])


def _command(arguments: list[str], folder: str) -> None:
    os.chdir(ROOT)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT, 0o600), number)
    sys.exit(main(arguments))


def forked(arguments: list[str], timeout_s: float) -> tuple[int, str, str]:
    """Exit status, standard output, standard error."""
    with tempfile.TemporaryDirectory() as folder:
        process = _FORKS.Process(target=_command, args=(arguments, folder))
        process.start()
        process.join(timeout_s)
        assert process.exitcode is not None, f"talus {' '.join(arguments)} does not end"
        out, err = (Path(folder, name).read_text() for name in ("out", "err"))
        return process.exitcode, out, err
