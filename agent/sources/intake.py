"""What of a file becomes samples: the checks that every recorded trace passes, and what is said of those that fail."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from agent.errors import SourceError
from agent.sources import ProblemSink, SourceProblem
from agent.sources.miniseed import UNKNOWN_CLOCK, ClockRecord
from agent.sources.unpack import plain_files
from agent.sources.waveforms import brief, read_file
from agent.types import NS, Samples, StationId, StreamId, format_ns

if TYPE_CHECKING:
    from obspy import Trace

MIN_RATE_HZ = 20.0
MAX_RATE_HZ = 1000.0
_RATE_SLACK = 1e-3
"""Formats that store the sample spacing in few digits give 19.9999997 Hz for 20 Hz."""

_DAY_NS = 86400 * NS
_YEAR_1900_NS = -25567 * _DAY_NS
_YEAR_1971_NS = 365 * _DAY_NS
_YEAR_2100_NS = 47482 * _DAY_NS

_NOT_MOTION = frozenset("ABCDEFIKMOQRSTUVW")
"""SEED instrument codes of what is not ground motion: logs, pressure, calibration, state of health, weather ..."""

OTHER_FIELDS = {
    "C": "calibration",
    "D": "pressure",
    "F": "a magnetic field",
    "K": "temperature",
    "M": "mass position",
    "W": "wind",
}
"""Those of them that may come with a component letter without meaning ground motion."""


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """Consecutive samples of one channel in one file. ``samples`` is read-only, and empty if only headers were read."""

    stream: StreamId
    start_ns: int
    rate_hz: float
    samples: Samples
    clock: ClockRecord


class Intake:
    """Reads files and decides what of them can be used; says once per channel why the rest cannot."""

    def __init__(self, on_problem: ProblemSink) -> None:
        self._on_problem = on_problem
        self._said: set[tuple[str, ...]] = set()

    def read(self, path: Path, span: tuple[int, int] | None = None, *, headers: bool = False) -> list[Run]:
        """The usable runs of one file, in the file's order.

        Args:
            path: the file, of any format that ObsPy reads, compressed or not.
            span: offset and size of the piece to read of a miniSEED file; None for the whole of any file.
            headers: read headers only; doubts about the samples are then left for the second reading.

        Returns:
            Empty when nothing in the file can be used; the ``ProblemSink`` then knows why.
        """
        runs: list[Run] = []
        try:
            with plain_files(path) as files:
                for file in files:
                    reading = read_file(file, span, headers)
                    if not headers:
                        for message, hint in reading.notes:
                            self.say(path, message, hint)
                    if not any(trace.stats.npts for trace in reading.traces):
                        self.say(path, "holds no samples", "delete it, or fetch it again from the recorder")
                    for trace in reading.traces:
                        runs += self._accept(trace, path, reading.clocks, headers)
        except SourceError as error:
            self.say(path, error.message, error.hint)
        except Exception as error:  # noqa: BLE001 - on a damaged file readers raise anything, struct.error to IndexError
            if isinstance(error, OSError) and error.errno is not None:
                self.say_unreadable(path, error)
            else:
                hint = "fetch it again from the recorder; it may be damaged"
                self.say(path, f"cannot be read ({brief(error)})", hint)
        return runs

    def say(self, path: Path | str, message: str, hint: str, *key: str) -> None:
        """Report a problem once per ``key`` (once per path and message where none is given)."""
        key = key or (str(path), message)
        if key not in self._said:
            self._said.add(key)
            self._on_problem(SourceProblem(str(path), message, hint))

    def say_unreadable(self, path: Path | str, error: OSError) -> None:
        """Report what the operating system refused."""
        self.say(path, f"cannot be read ({error.strerror or error})", "check that it exists, and its permissions")

    def _accept(self, trace: Trace, path: Path, clocks: dict[str, ClockRecord], headers: bool) -> Iterator[Run]:
        stream = self._stream(trace, path)
        if stream is None:
            return
        clock = clocks.get(trace.id, UNKNOWN_CLOCK)
        rate = float(trace.stats.sampling_rate)
        if headers:
            yield Run(stream, trace.stats.starttime.ns, rate, np.empty(0, np.int32), clock)
            return
        for piece in trace.split() if np.ma.isMaskedArray(trace.data) else [trace]:
            samples = self._samples(piece.data, trace.id, path)
            if samples is not None:
                yield Run(stream, piece.stats.starttime.ns, rate, samples, clock)

    def _stream(self, trace: Trace, path: Path) -> StreamId | None:
        """The channel's identifier if the agent can use the channel, the rate and the time."""
        stats = trace.stats
        channel = _code(stats.channel)
        instrument = channel[1] if len(channel) == 3 else ""
        if not channel or len(channel) > 3 or channel[-1] not in "ENZ123":
            if instrument not in _NOT_MOTION:
                self.say(
                    path,
                    f"channel {trace.id!r} is none of the components E, N, Z, 1, 2, 3",
                    "give it a SEED channel code such as HHZ if it records ground motion",
                    "channel",
                    trace.id,
                )
            return None
        if instrument in OTHER_FIELDS:
            self.say(
                path,
                f"channel {trace.id!r} records {OTHER_FIELDS[instrument]} by its code",
                "give it a SEED channel code such as HHZ if it records ground motion",
                "channel",
                trace.id,
            )
            return None
        rate = float(stats.sampling_rate)
        if not MIN_RATE_HZ * (1 - _RATE_SLACK) <= rate <= MAX_RATE_HZ * (1 + _RATE_SLACK):
            self.say(
                path,
                f"{trace.id} is sampled at {rate:g} Hz",
                f"Talus works with {MIN_RATE_HZ:g} to {MAX_RATE_HZ:g} Hz: use another channel of this sensor",
                "rate",
                trace.id,
                f"{rate:g}",
            )
            return None
        if not self._time_is_sane(stats.starttime.ns, trace.id, path):
            return None
        return self._identify(trace, channel, path)

    def _time_is_sane(self, start_ns: int, name: str, path: Path) -> bool:
        hint = "the recorder's clock may have been wrong: check its GPS or NTP"
        if not _YEAR_1900_NS <= start_ns < _YEAR_2100_NS:
            self.say(path, f"{name} has a time outside the years 1900 to 2099; skipped", hint, "time", name)
            return False
        if start_ns < _YEAR_1971_NS or start_ns > time.time_ns() + _DAY_NS:
            self.say(path, f"{name} begins at {format_ns(start_ns)}, used as it is", hint, "time", name)
        return True

    def _identify(self, trace: Trace, channel: str, path: Path) -> StreamId:
        stats, name = trace.stats, trace.id
        network, station = _code(stats.network) or "XX", _code(stats.station) or "UNKN"
        band_source = channel[:-1] or _band(stats.sampling_rate) + "H"
        stream = StreamId(StationId(network, station, _code(stats.location).strip("-"), band_source), channel[-1])
        if stream.seed != name:
            self.say(
                path,
                f"channel {name!r} lacks SEED codes; it is called {stream.seed}",
                "set network, station and channel codes in the file if the name matters",
                "name",
                name,
            )
        return stream

    def _samples(self, data: Any, name: str, path: Path) -> Samples | None:
        """The samples as int32, float32 or float64, read-only, values unchanged; None if they are not numbers."""
        array = np.asarray(data)
        kind = array.dtype.kind
        if kind not in "iuf" or array.ndim != 1:
            what = {"S": "text", "U": "text", "c": "complex numbers"}.get(kind, f"values of type {array.dtype}")
            self.say(path, f"{name} holds {what}, not samples", "leave it out", "type", name, what)
            return None
        if not len(array):
            return None
        if kind == "f":
            target: Any = np.float32 if array.dtype.itemsize <= 4 else np.float64
        elif np.can_cast(array.dtype, np.int32) or (array.min() >= -(2**31) and array.max() < 2**31):
            target = np.int32
        else:
            target = np.float64
        samples: Samples = np.ascontiguousarray(array, dtype=target)
        samples.flags.writeable = False
        return samples


def _code(text: str) -> str:
    return re.sub("[^A-Z0-9-]", "", text.upper())[:8]


def _band(rate_hz: float) -> str:
    """The FDSN band code of a broad-band channel at this rate."""
    return "F" if rate_hz >= 1000 else "C" if rate_hz >= 250 else "H" if rate_hz >= 80 else "B"
