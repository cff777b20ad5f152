"""Evidence: the samples behind an event, kept as miniSEED at the station until others need the room.

A thin link carries verdicts; whoever doubts one asks for the record. Its hash goes out with the event, so that what is
fetched later, over whatever way, can be held against it.

Records of events that alerted can be sent without being asked for: each once, when alert and record are both there.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from agent.atomic import ANYONE, replace_file
from agent.errors import in_words
from agent.messages.payloads import MAX_EVIDENCE, Message, evidence_messages
from agent.reasons import Reason
from agent.types import Event, Evidence, Segment, StationId, StreamId

_log = logging.getLogger(__name__)
RECORD_BYTES = 512
_STEIM2, _INT32, _FLOAT32 = 11, 3, 4
_STEIM2_STEP = 1 << 29
"""Largest difference of neighbours that Steim's second compression can write."""
_SUFFIX = ".mseed"
_ID = re.compile(r"[A-Za-z0-9.-]{1,80}")
_KEPT = 1024
"""Events that are remembered."""
WAIT_S = 2.0
"""How long a record's writing is waited for. It goes on by itself, so that a disk that hangs stops no detection."""
MOST_UNWRITTEN = 16
HANGS_S = 30.0
"""A record that is not written in so long is told of."""


class EvidenceStore:
    """One folder of ``EVENT.mseed``, at most ``max_mb``; the oldest make room. One thread keeps, any may read and ask
    for ``reasons``."""

    def __init__(self, folder: Path, max_mb: float) -> None:
        self._folder, self._max_bytes = folder, round(max_mb * 2**20)
        self._sizes: dict[Path, int] | None = None
        """Sizes of the files in the folder, the oldest first; read from the disk at the first use."""
        self._unwritten: dict[str, tuple[bytes, float]] = {}
        """Records on their way to the disk, the oldest first, and since when (monotonic clock, s)."""
        self._changed = threading.Condition()
        self._writer: threading.Thread | None = None
        self._fault: str | None = None
        """Why the newest record is not kept."""

    def keep(self, event: str, data: Mapping[StreamId, Sequence[Segment]]) -> Evidence | None:
        """Write the record of ``event``; None where there are no samples, or the disk or the format does not take
        it (which is logged: an event is worth more than its record)."""
        runs = [run for segments in data.values() for run in segments]
        if not runs:
            return None
        try:
            raw = encode(data)
        except (RuntimeError, ValueError) as error:  # pymseed's own errors are RuntimeErrors
            self._not_kept(event, error)
            return None
        if not self._write_beside(event, raw):
            return None
        span = min(run.start_ns for run in runs), max(run.end_ns for run in runs)
        return Evidence(hashlib.sha256(raw).hexdigest(), len(raw), *span)

    def read(self, event: str) -> bytes | None:
        """The record of ``event``; None where there is none (any more)."""
        if not _ID.fullmatch(event):
            return None
        if (unwritten := self._unwritten.get(event)) is not None:
            return unwritten[0]
        try:
            return self._path(event).read_bytes()
        except OSError:
            return None

    def reasons(self) -> list[Reason]:
        """Why records are not kept."""
        waits_s = time.monotonic() - min(
            (since for _, since in tuple(self._unwritten.values())), default=time.monotonic()
        )
        fault = f"one is not written in {waits_s:.0f} s" if waits_s > HANGS_S else self._fault
        return [] if fault is None else [Reason("records_not_kept", f"records of events are not kept: {fault}")]

    def _not_kept(self, event: str, error: Exception | str) -> None:
        self._fault = error if isinstance(error, str) else in_words(error)
        _log.warning("the record of %s is not kept: %s", event, self._fault)

    def _write_beside(self, event: str, raw: bytes) -> bool:
        """Have a record written; False where the disk refuses it, or has not taken many before it."""
        with self._changed:
            hangs = len(self._unwritten) > 0
            if len(self._unwritten) >= MOST_UNWRITTEN:
                self._not_kept(event, "the disk does not take those before it")
                return False
            self._unwritten[event] = raw, time.monotonic()
            if self._writer is None:
                self._writer = threading.Thread(target=self._keep_writing, name="records", daemon=True)
                self._writer.start()
            self._changed.notify_all()
            if not hangs and self._changed.wait_for(lambda: event not in self._unwritten, WAIT_S):
                return self._fault is None
        return True

    def _keep_writing(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._unwritten)
                event, (raw, since) = next(iter(self._unwritten.items()))
            try:
                self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                path = self._path(event)
                self._make_room(path, len(raw))
                replace_file(path, raw, mode=ANYONE, durable=False)
                self._fault = None
            except OSError as error:
                self._not_kept(event, error)
            with self._changed:
                if self._unwritten[event][1] == since:
                    del self._unwritten[event]
                self._changed.notify_all()

    def newest(self, count: int) -> list[Path]:
        """The newest records, the newest first; none where the disk refuses to list them."""
        try:
            return [path for path in reversed(self._found()) if path.suffix == _SUFFIX][:count]
        except OSError:
            return []

    def _path(self, event: str) -> Path:
        return self._folder / f"{event}{_SUFFIX}"

    def _make_room(self, path: Path, size: int) -> None:
        """For a file of ``size`` bytes, which is the newest from now on."""
        if self._sizes is None:
            self._sizes = self._found()
        self._sizes.pop(path, None)
        total = sum(self._sizes.values()) + size
        while self._sizes and total > self._max_bytes:
            oldest = next(iter(self._sizes))
            oldest.unlink(missing_ok=True)
            total -= self._sizes.pop(oldest)
        self._sizes[path] = size

    def _found(self) -> dict[Path, int]:
        files = []
        for path in self._folder.iterdir():
            with contextlib.suppress(OSError):
                found = path.stat(follow_symlinks=False)
                files.append((found.st_mtime_ns, path, found.st_size))
        return {path: size for _, path, size in sorted(files)}


def encode(data: Mapping[StreamId, Sequence[Segment]]) -> bytes:
    """miniSEED 2, or 3 where the codes are too long for that; 512-byte records, Steim 2 where the samples are integers
    that it can write."""
    from pymseed import MS3Record

    records: list[bytes] = []
    for stream, segments in data.items():
        for run in segments:
            out = MS3Record(reclen=RECORD_BYTES, encoding=_encoding(run))
            out.sourceid, out.starttime, out.samprate = str(stream), run.start_ns, run.rate_hz
            out.formatversion = _version(stream)
            floats = run.samples.dtype.kind == "f"
            samples = np.ascontiguousarray(run.samples, dtype=np.float32 if floats else np.int32)
            with out.with_datasamples(samples, "f" if floats else "i"):
                records.extend(bytes(record) for record in out.generate())
    return b"".join(records)


def _version(stream: StreamId) -> int:
    station = stream.station
    lengths = (station.network, 2), (station.station, 5), (station.location, 2)
    fits = all(len(code) <= most for code, most in lengths) and len(station.band_source + stream.component) == 3
    return 2 if fits else 3


def _encoding(run: Segment) -> int:
    if run.samples.dtype.kind == "f":
        return _FLOAT32
    steps = np.diff(run.samples.astype(np.int64))
    return _STEIM2 if not len(steps) or int(np.abs(steps).max()) < _STEIM2_STEP else _INT32


class AlertRecords:
    """Owned by one thread."""

    def __init__(self, read: Callable[[str], bytes | None], agent: StationId, prefix: str) -> None:
        """``read`` gives the record of an event by its identifier; the pieces go out under the topics of ``agent``."""
        self._read, self._agent, self._prefix = read, agent, prefix
        self._alerted: OrderedDict[str, None] = OrderedDict()
        self._kept: OrderedDict[str, None] = OrderedDict()

    def alerted(self, event: Event) -> list[Message]:
        """There was an alert on this event; on an event of the site, also on those of its members."""
        members = () if event.coincidence is None else event.coincidence.votes
        messages: list[Message] = []
        for name in dict.fromkeys([event.id, *(vote.event_id for vote in members)]):
            if name in self._alerted:
                continue
            _remember(self._alerted, name)
            if name in self._kept:
                messages += self._send(name)
        return messages

    def kept(self, event: Event) -> list[Message]:
        """The record of this event is there."""
        if event.id in self._kept:
            return []
        _remember(self._kept, event.id)
        return self._send(event.id) if event.id in self._alerted else []

    def _send(self, event: str) -> list[Message]:
        raw = self._read(event)
        if raw is None:
            return []
        if len(raw) > MAX_EVIDENCE:
            _log.warning("the record of %s has %d bytes and is not sent: at most %d are", event, len(raw), MAX_EVIDENCE)
            return []
        return evidence_messages(event, raw, self._agent, self._prefix)


def _remember(names: OrderedDict[str, None], name: str) -> None:
    names[name] = None
    if len(names) > _KEPT:
        names.popitem(last=False)
