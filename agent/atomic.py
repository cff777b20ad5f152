"""Files of which a power cut leaves the old one or the new one, and nothing in between.

Every file that is replaced is written here: beside its place, and then renamed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

OWNER, ANYONE = 0o600, 0o666
"""Modes of a file for its owner alone and for everyone; the user's mask applies."""


@contextlib.contextmanager
def replacing(
    path: Path, *, mode: int = ANYONE, durable: bool = True, scratch: Path | None = None
) -> Iterator[BinaryIO]:
    """Yield an open file that takes the place of ``path`` when the block ends, and is removed when the block fails.

    Args:
        mode: permissions of the file.
        durable: return only when the disk has it; without, a power cut may bring the previous file back.
        scratch: where to write first, in the same folder; by default one name for each ``path``, which two processes
            must not use at once.

    Raises:
        OSError: the disk refuses it; the old file stands then.
    """
    new = path.with_name(f".{path.name}.new") if scratch is None else scratch
    try:
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:  # noqa: PTH123 - mode
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        new.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            new.unlink()
        raise
    if durable:
        sync_folder(path.parent)


def replace_file(
    path: Path, content: bytes, *, mode: int = OWNER, durable: bool = True, scratch: Path | None = None
) -> None:
    """Put ``content`` in the place of ``path``; see ``replacing``."""
    with replacing(path, mode=mode, durable=durable, scratch=scratch) as file:
        file.write(content)


def sync_folder(folder: Path) -> None:
    """Have the disk keep what was renamed in a folder."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
