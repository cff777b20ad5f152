"""Documents as files: each is there as a whole or not at all, whatever happens while it is written."""

from __future__ import annotations

import os
from pathlib import Path

from agent.atomic import ANYONE, replace_file
from agent.errors import DataError, TalusError
from desk.formats import Document


class DocumentFolder:
    """A folder of documents that others watch and pick up from."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            TalusError: the folder cannot be made or written to.
        """
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _refused(path, error) from error
        if not os.access(path, os.W_OK | os.X_OK):
            raise TalusError(f"{path} may not be written to", "choose a folder of your own with --out")

    def write(self, document: Document) -> Path:
        """Put the document in place of an earlier version of it; it is on disk when this returns.

        Raises:
            TalusError: the disk refuses it.
        """
        path = self.path / document.name
        if path.parent != self.path or document.name.startswith("."):
            raise DataError(f"{document.name!r} is not a file name", "see who publishes under the station's topics")
        scratch = path.with_name(f".{document.name}.{os.getpid()}")  # another program may write the same documents
        try:
            replace_file(path, document.text + b"\n", mode=ANYONE, scratch=scratch)
        except OSError as error:
            raise _refused(path, error) from error
        return path


def _refused(path: Path, error: OSError) -> TalusError:
    return TalusError(
        f"{path}: {error.strerror}", "free space, or choose another folder; with --session nothing is lost meanwhile"
    )
