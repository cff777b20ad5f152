"""The sink ``file``: every message as a line of JSON, for a data logger, a rescue at the station, or another program.

    {"topic":"talus/v1/XX/SLOPE/event","retain":false,"message":{...}}

What is no JSON, such as a piece of a record, comes as ``"base64"`` in the place of ``"message"``. A line is on disk
before the message leaves the outbox; one that a power cut has cut off is followed by the whole one.
"""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Sequence

from agent.atomic import sync_folder
from agent.config.outputs import FileOutputConfig
from agent.deliver.outbox import Cursor
from agent.deliver.sink import BatchSink
from agent.messages.payloads import Message, with_handed


class FileSink(BatchSink):
    """See the module."""

    def __init__(self, settings: FileOutputConfig, cursor: Cursor) -> None:
        super().__init__(cursor)
        self._path, self._keep, self._max_bytes = settings.path, settings.older_files, round(settings.max_mb * 1e6)

    def write(self, messages: Sequence[Message]) -> None:
        lines = b"".join(line_of(message) for message in messages)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.exists() and 0 < self._path.stat().st_size > self._max_bytes - len(lines):
            self._rotate()
        with self._path.open("a+b") as file:
            size = file.seek(0, os.SEEK_END)
            if size and (file.seek(size - 1), file.read(1))[1] != b"\n":
                lines = b"\n" + lines
            try:
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                os.ftruncate(file.fileno(), size)
                raise

    def _rotate(self) -> None:
        """PATH becomes PATH.1, PATH.1 becomes PATH.2; the last one goes."""
        names = [self._path, *(self._path.with_name(f"{self._path.name}.{n + 1}") for n in range(self._keep))]
        for older, newer in zip(names[:0:-1], names[-2::-1], strict=True):
            if newer.exists():
                newer.replace(older)
        self._path.unlink(missing_ok=True)
        sync_folder(self._path.parent)


def line_of(message: Message) -> bytes:
    """One message as a line."""
    payload = with_handed(message.payload, time.time_ns())
    kind, body = "message", payload
    if not payload.startswith(b"{"):
        kind, body = "base64", json.dumps(base64.b64encode(payload).decode()).encode()
    head = json.dumps({"topic": message.topic, "retain": message.retain}, separators=(",", ":"), ensure_ascii=False)
    return head[:-1].encode() + f',"{kind}":'.encode() + body + b"}\n"
