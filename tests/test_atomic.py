"""A file that is replaced is the old one or the new one, whoever fails meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from agent.atomic import OWNER, replace_file, replacing

ROOT = Path(__file__).parent.parent


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    replace_file(path, b"old")

    def fail() -> None:
        with replacing(path) as file:
            file.write(b"half of the n")
            raise ValueError("the encoder gave up")

    with pytest.raises(ValueError, match="gave up"):
        fail()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_kill_9_at_any_moment_leaves_a_whole_file_and_the_next_write_succeeds(tmp_path: Path) -> None:
    code = textwrap.dedent("""
        import sys
        from pathlib import Path
        from agent.atomic import replace_file
        for n in range(10_000):
            replace_file(Path(sys.argv[1]), bytes([n % 256]) * 200_000, durable=False)
            print(n, flush=True)
    """)
    path = tmp_path / "state"
    for lines in (1, 2, 3, 5, 8):
        command = [sys.executable, "-c", code, path]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as process:
            assert process.stdout is not None
            for _ in range(lines):
                process.stdout.readline()
            process.kill()
        content = path.read_bytes()
        assert len(content) == 200_000
        assert len(set(content)) == 1
    replace_file(path, b"next")
    assert path.read_bytes() == b"next"


def test_a_file_of_the_owner_is_readable_by_no_other(tmp_path: Path) -> None:
    old_mask = os.umask(0)
    try:
        replace_file(tmp_path / "key", b"x", mode=OWNER)
    finally:
        os.umask(old_mask)
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
