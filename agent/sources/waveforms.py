"""Waveform formats other than miniSEED, through ObsPy: the only file that knows how ObsPy reads.

ObsPy's format detection unpickles what looks like a pickle; whoever can drop a file into the archive could then run
code. Detection is therefore done here, over the same plug-ins in the same order, without that format.
"""

from __future__ import annotations

import glob
import importlib.metadata
import importlib.util
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from agent.errors import SourceError
from agent.sources.channels import Channel, Recording, Skipped, identify, not_motion, unusable
from agent.sources.miniseed import headers
from agent.types import UNKNOWN_QUALITY, Samples, StreamId

if TYPE_CHECKING:
    from obspy import Trace

PACKET_S = 1.0
"""Length of the blocks into which a trace is cut."""

INSTALL = "pip install 'talus-agent[obspy]'"

CRASHING = frozenset({"DMX", "GSE1", "GSE2"})
"""Formats that are refused. Damaged GSE files make ObsPy's decoder (as of 1.5.1) write beyond its buffer; damaged DMX
files make its reader loop until memory is full."""

_HARMLESS = (DeprecationWarning, PendingDeprecationWarning, FutureWarning, ResourceWarning)


def format_of(file: Path, head: bytes) -> str:
    """ObsPy's name of a file's format, ``MSEED`` also where records begin somewhere in it; ``head`` is how it begins.

    Raises:
        SourceError: no format fits, or one whose reader may crash, or ObsPy would be needed to tell.
    """
    found = _detect(file) if importlib.util.find_spec("obspy") else None
    if found in CRASHING:
        raise SourceError(
            f"is {found}, and one that is damaged takes ObsPy's reader down, and the agent with it",
            f"write it as miniSEED on another machine: obspy.read('{file.name}').write('{file.name}.mseed', 'MSEED')",
        )
    if found is not None:
        return found
    if headers(head):
        return "MSEED"
    if not importlib.util.find_spec("obspy"):
        raise SourceError("is not miniSEED; other formats are read by ObsPy, which is not installed", INSTALL)
    raise SourceError("is in no format that ObsPy reads", "give miniSEED, SAC, SEG-2 or another waveform format")


def read_traces(
    file: Path, notes: list[tuple[str, str]], *, headers: bool = False
) -> Iterator[Recording | Skipped | Channel]:
    """The samples of a file that is not miniSEED, and what is left out or was renamed.

    Args:
        file: a plain file, of a format for which ``format_of`` has a name.
        notes: doubts about the samples are added, as message and hint.
        headers: leave the samples out where the format allows it: empty recordings.

    Raises:
        SourceError: it cannot be read.
        Exception: whatever the reader of a format raises.
    """
    traces, caught = _read(file, headers)
    notes += _notes(caught)
    if not any(trace.stats.npts for trace in traces):
        notes.append(("holds no samples", "delete it, or fetch it again from the recorder"))
    for trace in traces:
        yield from accept(trace, headers=headers)


def _read(file: Path, headers: bool) -> tuple[list[Trace], list[warnings.WarningMessage]]:
    with file.open("rb") as handle:
        name = format_of(file, handle.read(512))
    from obspy import read

    with _captured_warnings() as caught:
        try:
            path = glob.escape(str(file.absolute()))
            return list(read(path, format=name, headonly=headers, check_compression=False)), caught
        except Exception as error:
            if str(error).startswith("Cannot open file/files"):  # ObsPy's plain Exception for a file without any trace
                return [], caught
            raise


def accept(trace: Trace, *, headers: bool = False) -> Iterator[Recording | Skipped | Channel]:
    """What of a trace can be used; see ``read_traces``."""
    stats = trace.stats
    rate_hz = float(stats.sampling_rate)
    names = (stats.network, stats.station, stats.location, stats.channel)
    network, station, location, code = (name.encode("latin-1", "replace") for name in names)
    channel = identify((network, station, location, code), rate_hz)
    stream = channel.stream
    if stream is None:
        if channel.refusal is not None:
            yield channel.refusal
        return
    refusal = not_motion(stream) or unusable(stream, rate_hz, stats.starttime.ns, int(stats.npts))
    if refusal is not None:
        yield refusal
        return
    if channel.original is not None:
        yield channel
    if headers:
        yield _recording(stream, stats.starttime.ns, rate_hz, np.empty(0, np.int32))
        return
    for piece in trace.split() if np.ma.isMaskedArray(trace.data) else [trace]:
        samples = _samples(piece.data)
        if isinstance(samples, str):
            yield Skipped("text", f"{stream.seed} holds {samples}, not samples", stream.seed, "leave it out")
        elif len(samples):
            yield _recording(stream, piece.stats.starttime.ns, rate_hz, samples)


def _recording(stream: StreamId, start_ns: int, rate_hz: float, samples: Samples) -> Recording:
    return Recording(stream, samples, [start_ns], [rate_hz], [len(samples)], [UNKNOWN_QUALITY], PACKET_S)


def _samples(data: Any) -> Samples | str:
    """The samples as int32, float32 or float64, read-only, values unchanged; what they are if they are not numbers."""
    array = np.asarray(data)
    kind = array.dtype.kind
    if kind not in "iuf" or array.ndim != 1:
        return {"S": "text", "U": "text", "c": "complex numbers"}.get(kind, f"values of type {array.dtype}")
    if kind == "f":
        target: Any = np.float32 if array.dtype.itemsize <= 4 else np.float64
    elif np.can_cast(array.dtype, np.int32) or not len(array) or (array.min() >= -(2**31) and array.max() < 2**31):
        target = np.int32
    else:
        target = np.float64
    samples: Samples = np.ascontiguousarray(array, dtype=target)
    samples.flags.writeable = False
    return samples


def _detect(file: Path) -> str | None:
    with _captured_warnings():
        for name, fits in _formats():
            try:
                if fits(str(file)):
                    return name
            except Exception:  # noqa: BLE001, S112 - a check that stumbles over another format's bytes has said "no"
                continue
    return None


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
    texts = list(dict.fromkeys(telling))
    if not texts:
        return []
    more = f" (and {len(texts) - 1} more like it)" if len(texts) > 1 else ""
    return [(f"ObsPy warns: {brief(texts[0])}{more}", "the data are used; check the file if they look wrong")]


def brief(error: object) -> str:
    """The first line of a foreign message, at most 160 characters, or the error's type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:2]) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."
