"""Compressed files and archives: gzip, bzip2, zip, tar. Members are unpacked to a temporary folder, never by name."""

from __future__ import annotations

import bz2
import gzip
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from agent.errors import SourceError

MAX_UNPACKED_BYTES = 1 << 30
"""All members of one archive together: a small file must not be able to fill the disk."""

_BLOCK = 1 << 20


@contextmanager
def plain_files(path: Path, limit_bytes: int = MAX_UNPACKED_BYTES) -> Iterator[list[Path]]:
    """The file itself, or what a compressed one contains; the unpacked files go away at the end.

    Raises:
        SourceError: the archive holds more than ``limit_bytes``.
        OSError, EOFError, zipfile.BadZipFile, tarfile.TarError, zlib.error: it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(262)
    if not (head.startswith((b"\x1f\x8b", b"BZh", b"PK\x03\x04")) or head[257:262] == b"ustar"):
        yield [path]
        return
    with tempfile.TemporaryDirectory(prefix="talus-") as folder:
        files = []
        left = limit_bytes
        for number, member in enumerate(_members(path, head)):
            target = Path(folder) / str(number)
            with target.open("wb") as out:
                while block := member.read(_BLOCK):
                    left -= len(block)
                    if left < 0:
                        raise SourceError(f"unpacks to more than {limit_bytes >> 20} MiB", "unpack it by hand")
                    out.write(block)
            files.append(target)
        yield files


def _members(path: Path, head: bytes) -> Iterator[IO[bytes]]:
    if head.startswith(b"PK"):
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if not info.is_dir():
                    with archive.open(info) as member:
                        yield member
        return
    if head[257:262] == b"ustar" or tarfile.is_tarfile(path):
        with tarfile.open(path) as tar:
            for entry in tar:
                stream = tar.extractfile(entry) if entry.isfile() else None
                if stream is not None:
                    yield stream
        return
    with gzip.open(path) if head.startswith(b"\x1f\x8b") else bz2.open(path) as file:
        yield cast(IO[bytes], file)
