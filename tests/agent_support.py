"""Whole agents as processes: real records to feed them, configurations to start them with, and what they say."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import obspy
from broker_support import wait_for
from command_support import forked
from records_support import trace, write

from agent.types import parse_ns

TALUS = (sys.executable, "-m", "agent")
ROOT = Path(__file__).parents[1]

START_NS = parse_ns("2026-03-01T00:00:00Z")
RATE_HZ = 50
RECORD_S = 230
"""Length of one copy of the record, seconds: two local earthquakes."""

Revisions: TypeAlias = dict[tuple[str, int], dict[str, Any]]
"""Messages by event and revision."""


@cache
def _record() -> tuple[np.ndarray, ...]:
    """Two local earthquakes at station BW.UH3, components E, N, Z at 50 Hz."""
    folder = Path(obspy.__file__).parent / "signal" / "tests" / "data"
    traces = [obspy.read(str(folder / f"BW.UH3._.SH{c}.D.2010.147.cut.slist.gz"))[0] for c in "ENZ"]
    return tuple(np.asarray(t.data[: RATE_HZ * RECORD_S], dtype=np.int32) for t in traces)


def write_records(folder: Path, copies: int = 1, station: str = "SLP") -> Path:
    """A folder with the record ``copies`` times end to end, one miniSEED file a component."""
    for component, samples in zip("ENZ", _record(), strict=True):
        name = folder / f"XX.{station}.00.HH{component}.mseed"
        write(name, trace(np.tile(samples, copies), f"HH{component}", START_NS, RATE_HZ, station))
    return folder


def write_config(folder: Path, records: Path | str, port: int | None = None, **changes: str) -> Path:
    """A configuration in a folder of its own; ``changes`` replace or add top-level sections."""
    sections = {
        "station": "{network: XX, station: SLP}",
        "source": f"{{kind: archive, paths: ['{records}']}}",
        "state_dir": str(folder / "state"),
        "tunables": "{reporting: {health_interval_s: 5}}",
    }
    if port is not None:
        sections["mqtt"] = f"{{host: 127.0.0.1, port: {port}}}"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "station.yaml"
    path.write_text("".join(f"{name}: {text}\n" for name, text in {**sections, **changes}.items()))
    return path


def environment() -> dict[str, str]:
    """Without what pytest says in it."""
    return {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}


_ENVIRONMENT = environment()


def talus(*arguments: object, env: Mapping[str, str] | None = None, timeout_s: float = 250) -> tuple[int, str, str]:
    """One command to its end: exit status, standard output, standard error."""
    if env is None and environment() == _ENVIRONMENT:
        return forked([str(argument) for argument in arguments], timeout_s)
    done = subprocess.run(
        [*TALUS, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        timeout=timeout_s,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def _hear_ctrl_c() -> None:
    """A shell starts background jobs with SIGINT ignored, and children inherit that: the tests may run in one."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Agent:
    """A command of ``talus`` that runs on; its lines are collected as they come."""

    def __init__(
        self, *arguments: object, env: Mapping[str, str] | None = None, command: tuple[str, ...] = TALUS
    ) -> None:
        self.process = subprocess.Popen(
            [*command, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, **(env or {})},
            preexec_fn=_hear_ctrl_c,  # noqa: PLW1509 - it only sets a signal
        )
        self.said: list[str] = []
        """Lines of standard error."""
        self.printed: list[str] = []
        """Lines of standard output."""
        streams = ((self.process.stdout, self.printed), (self.process.stderr, self.said))
        self._threads = [threading.Thread(target=list.extend, args=(lines, stream)) for stream, lines in streams]
        for thread in self._threads:
            thread.start()

    @property
    def log(self) -> str:
        return "".join(self.said)

    def wait_for(self, text: str, timeout_s: float = 100) -> None:
        """Until the process has said ``text`` on standard error."""
        wait_for(lambda: text in self.log or self.process.poll() is not None, timeout_s, f"{text!r} in:\n{self.log}")
        assert text in self.log, self.log

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self, timeout_s: float = 100) -> int:
        """Wait for its end; the exit status, negative where a signal killed it."""
        status = self.process.wait(timeout_s)
        for thread in self._threads:
            thread.join()
        return status

    def kill(self) -> None:
        self.process.kill()
        self.end()


@contextlib.contextmanager
def running_agent(*arguments: object, **options: Any) -> Iterator[Agent]:
    """Killed at the end, if it still runs."""
    agent = Agent(*arguments, **options)
    try:
        yield agent
    finally:
        agent.kill()


def on_disk(outbox: Path) -> list[dict[str, Any]]:
    """Event messages in the outbox, oldest first; from a copy of its files, so that it may be in use."""
    with tempfile.TemporaryDirectory() as folder:
        for name in (outbox.name, f"{outbox.name}-wal"):
            if outbox.with_name(name).exists():
                shutil.copy(outbox.with_name(name), folder)
        with contextlib.closing(sqlite3.connect(Path(folder, outbox.name))) as db:
            rows = db.execute("SELECT payload FROM queue WHERE topic LIKE '%/event' ORDER BY id").fetchall()
    return [json.loads(payload) for (payload,) in rows]


def content(body: Mapping[str, Any]) -> dict[str, Any]:
    """What a message says about the event, without who says it and when, and what record is kept at the station."""
    others = ("timing", "boot_id", "seq", "exercise", "evidence")
    return {name: value for name, value in body.items() if name not in others}


def by_revision(bodies: list[dict[str, Any]]) -> Revisions:
    """Contents of event messages; the copies of a revision must agree."""
    found: Revisions = {}
    for body in bodies:
        assert found.setdefault((body["id"], body["revision"]), content(body)) == content(body)
    return found


@cache
def expected(records: Path) -> tuple[dict[str, Any], ...]:
    """The events of records as ``talus replay --json`` prints them, in its order."""
    status, out, err = talus("replay", "--json", records)
    assert status == 0, err
    bodies = [json.loads(line) for line in out.splitlines()]
    return tuple(body for body in bodies if body["schema"].startswith("talus/event/"))
