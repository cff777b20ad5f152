"""The only file that knows how ObsPy reads: from a file to traces, with every warning and failure accounted for.

ObsPy's format detection unpickles what looks like a pickle; whoever can drop a file into the archive could then run
code. Detection is therefore done here, over the same plug-ins in the same order, without that format.
"""

from __future__ import annotations

import glob
import importlib.metadata
import io
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.errors import SourceError
from agent.sources.isolated import FORMATS, SAFE_HEADERS, read_isolated
from agent.sources.miniseed import ClockRecord, RecordTable, carry_leap_seconds, holds_records, is_miniseed, salvage

if TYPE_CHECKING:
    from obspy import Trace

_HEAD_BYTES = 64 << 10

_LOST = ("Not a SEED record", "Last record only has", "The rest of the file will not be read")
"""What ObsPy says of bytes between and after records."""

_HARMLESS = (DeprecationWarning, PendingDeprecationWarning, FutureWarning, ResourceWarning)


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """A decoded file: ObsPy's traces, doubts as (message, hint), and the clock record of each channel by its id."""

    traces: list[Trace]
    notes: list[tuple[str, str]]
    clocks: dict[str, ClockRecord]


def read_file(file: Path, span: tuple[int, int] | None, headers: bool) -> Reading:
    """Decode one plain (not compressed) file.

    Args:
        file: any format that ObsPy reads, pickles excepted.
        span: offset and size of the piece to read of a miniSEED file; None for the whole of any file.
        headers: leave the samples out where the format allows it, and the clock records.

    Raises:
        SourceError: it is empty, or of no format that ObsPy knows.
        Exception: whatever the reader of a format raises.
    """
    with file.open("rb") as handle:
        head = handle.read(_HEAD_BYTES)
        if not head:
            raise SourceError("is empty", "delete it, or fetch it again from the recorder")
        name = detect(file, head)
        if name == "MSEED":
            handle.seek(span[0] if span else 0)
            return _read_miniseed(handle.read(span[1] if span else -1), headers)
    if name in FORMATS and not (headers and name in SAFE_HEADERS):
        return Reading(read_isolated(file, name), [], {})
    with _captured_warnings() as caught:
        traces = list(_obspy_read(glob.escape(str(file.absolute())), name, headers))
    return Reading(traces, _notes(caught), {})


def _read_miniseed(data: bytes, headers: bool) -> Reading:
    """From bytes in memory: ObsPy maps files, and a mapped file that shrinks meanwhile kills the process."""
    caught: list[warnings.WarningMessage] = []

    def decode(part: bytes) -> list[Trace]:
        with _captured_warnings() as heard:
            traces = list(_obspy_read(io.BytesIO(part), "MSEED", headers))
        caught.extend(heard)
        return traces

    table = RecordTable(b"" if headers else data)
    lost, failure = 0, ""
    try:
        traces = decode(data)
    except Exception as error:  # noqa: BLE001 - one bad record makes ObsPy refuse the file; its type varies
        carried = carry_leap_seconds(data)
        if carried is not None:
            return _read_miniseed(carried, headers)
        traces, failure = [], brief(error)
    foreign = any(phrase in str(warning.message) for warning in caught for phrase in _LOST)
    if failure or foreign:
        caught.clear()
        traces, lost = salvage(data, decode)
    if failure and not traces:
        raise SourceError(f"cannot be read ({failure})", "fetch it again from the recorder; it may be damaged")
    notes = []
    if lost:
        notes.append((f"{lost} damaged records were left out; the rest is used", "fetch it again from the recorder"))
    elif table.cut_short:
        notes.append(("is cut off in its last record; the rest is used", "fetch it again from the recorder"))
    elif foreign:
        notes.append(("holds bytes that are not miniSEED; the rest is used", "check what else writes to this file"))
    return Reading(traces, notes + _notes(caught), table.clocks())


def _obspy_read(file: str | io.BytesIO, name: str, headers: bool) -> Any:
    from obspy import read

    try:
        return read(file, format=name, headonly=headers, check_compression=False)
    except Exception as error:
        if str(error).startswith("Cannot open file/files"):  # ObsPy's plain Exception for a file without any trace
            return []
        raise


def detect(file: Path, head: bytes) -> str:
    """ObsPy's name of the file's format; ``head`` is how the file begins.

    Raises:
        SourceError: no format fits.
    """
    if is_miniseed(head):
        return "MSEED"
    with _captured_warnings():
        for name, fits in _formats():
            try:
                if fits(str(file)):
                    return name
            except Exception:  # noqa: BLE001, S112 - a check that stumbles over another format's bytes has said "no"
                continue
    if holds_records(head):
        return "MSEED"
    raise SourceError("is in no format that ObsPy reads", "give miniSEED, SAC, GSE2 or another waveform format")


@lru_cache(maxsize=1)
def _formats() -> tuple[tuple[str, Callable[[str], bool]], ...]:
    from obspy.core.util.base import ENTRY_POINTS

    checks = {
        point.group.rsplit(".", 1)[1]: point
        for point in importlib.metadata.entry_points(name="isFormat")
        if point.group.startswith("obspy.plugin.waveform.")
    }
    return tuple(
        (name, checks[name].load()) for name in ENTRY_POINTS["waveform"] if name != "PICKLE" and name in checks
    )


@contextmanager
def _captured_warnings() -> Iterator[list[warnings.WarningMessage]]:
    """Keeps ObsPy off the terminal: its warnings, and the messages of libmseed that its callback fails to decode."""
    print_unraisable = sys.unraisablehook

    def undecodable(unraisable: sys.UnraisableHookArgs) -> None:
        if isinstance(unraisable.exc_value, UnicodeDecodeError):
            warnings.warn("a message of the decoder was not text", stacklevel=2)
        else:
            print_unraisable(unraisable)

    sys.unraisablehook = undecodable
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield caught
    finally:
        sys.unraisablehook = print_unraisable


def _notes(caught: list[warnings.WarningMessage]) -> list[tuple[str, str]]:
    telling = [str(w.message) for w in caught if not issubclass(w.category, _HARMLESS)]
    texts = list(dict.fromkeys(text for text in telling if not any(lost in text for lost in _LOST)))
    if not texts:
        return []
    more = f" (and {len(texts) - 1} more like it)" if len(texts) > 1 else ""
    return [(f"ObsPy warns: {brief(texts[0])}{more}", "the data are used; check the file if they look wrong")]


def brief(error: object) -> str:
    """The first line of a foreign message, at most 160 characters, or the error's type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:2]) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."
