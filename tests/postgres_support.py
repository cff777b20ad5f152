"""A PostgreSQL cluster of the tests' own: made anew, on a free port of the loopback, and deleted afterwards."""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from broker_support import own_port, wait_for


def _programs() -> Path | None:
    """Where PostgreSQL's programs are: on the path, or in Debian's folder of the newest version."""
    found = shutil.which("initdb")
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    return debian[-1].parent if debian else Path(found).resolve().parent if found else None


def _user() -> str | None:
    """Whom the server runs as: PostgreSQL refuses to run as root."""
    if os.getuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    return None


PROGRAMS = _programs()


def why_not() -> str | None:
    """Why no cluster can be had here; None where it can."""
    if PROGRAMS is None:
        return "PostgreSQL is not installed (try: sudo apt-get install postgresql)"
    if os.getuid() == 0 and _user() is None:
        return "PostgreSQL refuses to run as root, and there is no other user here"
    try:
        import psycopg  # noqa: F401
    except ImportError:
        return "psycopg is not installed (try: pip install 'talus-agent[postgres]')"
    return None


class Cluster:
    """One server. ``durable``: it waits for the disk at every commit, as in operation."""

    def __init__(self, *, durable: bool = False) -> None:
        assert PROGRAMS is not None
        self.port = own_port()
        self.folder = Path(tempfile.mkdtemp(prefix="talus-postgres-"))
        self._user, self._count = _user(), itertools.count(1)
        self._process: subprocess.Popen[bytes] | None = None
        if self._user is not None:
            shutil.chown(self.folder, self._user)
        self._run("initdb", "-D", "data", "-U", "talus", "-A", "trust", "-E", "UTF8", "--locale=C", "-N")
        lines = [f"port = {self.port}", "listen_addresses = '127.0.0.1'", "unix_socket_directories = ''"]
        lines += ["max_connections = 50", "shared_buffers = 32MB"]
        lines += [] if durable else ["fsync = off", "synchronous_commit = off", "full_page_writes = off"]
        with (self.folder / "data" / "postgresql.conf").open("a") as file:
            file.write("\n".join([*lines, ""]))

    def _run(self, program: str, *arguments: str) -> None:
        assert PROGRAMS is not None
        command = [PROGRAMS / program, *arguments]
        subprocess.run(command, cwd=self.folder, user=self._user, check=True, capture_output=True)

    def start(self) -> Cluster:
        assert PROGRAMS is not None
        with (self.folder / "log").open("ab") as log:
            command = [PROGRAMS / "postgres", "-D", "data"]
            self._process = subprocess.Popen(command, cwd=self.folder, user=self._user, stdout=log, stderr=log)
        wait_for(self._answers, what="PostgreSQL answers")
        return self

    def _answers(self) -> bool:
        import psycopg

        assert self._process is not None
        assert self._process.poll() is None, (self.folder / "log").read_text()
        with contextlib.suppress(psycopg.OperationalError):
            self.execute("SELECT 1")
            return True
        return False

    def execute(self, statement: str) -> None:
        import psycopg

        with psycopg.connect(f"host=127.0.0.1 port={self.port} user=talus dbname=postgres", autocommit=True) as found:
            found.execute(statement.encode())

    def database(self) -> str:
        """The address of a new, empty schema; to the desk it is a database of its own."""
        name = f"desk{next(self._count)}"
        self.execute(f"CREATE SCHEMA {name}")
        return f"postgresql+psycopg://talus@127.0.0.1:{self.port}/postgres?options=-csearch_path%3D{name}"

    def stop(self, number: int = signal.SIGQUIT) -> None:
        """End the server; the default is an immediate shutdown, as after a crash."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(60)
            self._process = None

    def delete(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def cluster(*, durable: bool = False) -> Iterator[Cluster]:
    """A running server."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    found = Cluster(durable=durable)
    try:
        yield found.start()
    finally:
        found.delete()
