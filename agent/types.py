"""The values that travel between stages: frozen, with units in the name or the docstring.

Time is always integer nanoseconds UTC since 1970, taken from the data. A float second at today's epoch resolves to
0.2 microseconds only and drifts when summed; integers do neither.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import lru_cache
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from agent.errors import DataError

NS = 1_000_000_000
"""Nanoseconds in a second."""

LABELS = ("earthquake", "blast", "collapse", "landslide", "noise")
"""The classes, in the order of the network's outputs."""

COMPONENTS = ("E", "N", "Z")
"""The network's input rows, in order."""

WINDOW_RATE_HZ = 100
WINDOW_SAMPLES = 10240
WINDOW_ONSET = 2048
"""Index of the onset in the window: 20.48 s of what came before it."""
POST_ONSET_S = (WINDOW_SAMPLES - WINDOW_ONSET) / WINDOW_RATE_HZ
"""What the window holds after the onset: 81.92 s."""

MAX_BLOCK_S = 60.0
"""Longest packet: what is kept of a stream is sized for it."""

Samples: TypeAlias = NDArray[np.int32] | NDArray[np.float32] | NDArray[np.float64]
EventPhase: TypeAlias = Literal["new", "update", "end"]
SLOW: Final = "slow"
"""Kind of an event that swells over minutes, and the label of an alert about one."""
EventKind: TypeAlias = Literal["trigger", "slow"]
"""Found by STA/LTA, or by the level of minutes (``agent.detect.slow``)."""
AlertAction: TypeAlias = Literal["raise", "escalate", "retract"]
DecisionCode: TypeAlias = Literal[
    "raised",
    "escalated",
    "retracted",
    "rate",
    "stands",
    "abstained",
    "no_rule",
    "probability",
    "window",
    "duration",
    "confirm",
    "confirm_events",
    "level",
    "stations",
    "withdrawn",
    "refractory",
    "late",
    "not_classified",
    "site_waits",
    "site_member",
    "site_local",
    "stale",
]
"""Why a revision of an event led to an alert or to none. docs/mqtt.md has a row for each (tested)."""

_FDSN = re.compile(r"^FDSN:([^_]+)_([^_]+)_([^_]*)_([^_]+)_([^_]*)_([^_]+)$")
_CODE = re.compile(r"^[A-Z0-9-]{0,8}$")
_ROW = {"E": 0, "N": 1, "Z": 2, "2": 0, "1": 1, "3": 2}


@dataclass(frozen=True, slots=True, order=True)
class StationId:
    """One sensor: network, station and location codes with the FDSN band and source code (``"HH"``). Without location
    and band it is the station as a whole, or a site, and its text is ``NET.STA``."""

    network: str
    station: str
    location: str
    band_source: str

    def __str__(self) -> str:
        sensor = f".{self.location}.{self.band_source}" if self.location or self.band_source else ""
        return f"{self.short}{sensor}"

    @property
    def short(self) -> str:
        """``NET.STA``, as event identifiers and topics use it."""
        return f"{self.network}.{self.station}"


@dataclass(frozen=True, slots=True, order=True)
class StreamId:
    """One channel of a sensor; its text is the FDSN source identifier."""

    station: StationId
    component: str

    @classmethod
    def parse(cls, text: str) -> StreamId:
        """Read ``FDSN:NET_STA_LOC_B_S_SS`` or the older ``NET.STA.LOC.CHA``.

        Raises:
            DataError: the text is neither.
        """
        match = _FDSN.match(text)
        if match:
            net, sta, loc, band, source, sub = match.groups()
        else:
            parts = text.split(".")
            if len(parts) != 4 or len(parts[3]) != 3:
                raise DataError(
                    f"{text!r} is not a stream identifier", "write FDSN:NET_STA_LOC_B_S_SS or NET.STA.LOC.CHA"
                )
            net, sta, loc = parts[:3]
            band, source, sub = parts[3][0], parts[3][1], parts[3][2]
        if not (net and sta) or not all(_CODE.match(part) for part in (net, sta, loc, band, source, sub)):
            raise DataError(
                f"{text!r} is not a stream identifier",
                "codes are upper-case letters, digits and '-'; network and station may not be empty",
            )
        return cls(StationId(net, sta, loc, band + source), sub)

    def __str__(self) -> str:
        s = self.station
        return f"FDSN:{s.network}_{s.station}_{s.location}_{s.band_source[:1]}_{s.band_source[1:]}_{self.component}"

    @property
    def seed(self) -> str:
        """The channel in SEED form, ``NET.STA.LOC.CHA``."""
        return f"{self.station}{self.component}"

    @property
    def row(self) -> int | None:
        """Input row of this component (E 0, N 1, Z 2; 2 and 1 stand for E and N), None for any other code."""
        return _ROW.get(self.component)


@dataclass(frozen=True, slots=True)
class BlockQuality:
    """What the recorder said about its own time: timing quality 0-100 %, clock lock, questionable time tag."""

    timing_percent: int | None = None
    clock_locked: bool | None = None
    time_questionable: bool = False

    @property
    def trust(self) -> tuple[bool, int]:
        """The rank of the clock, from the worst."""
        return not self.time_questionable, -1 if self.timing_percent is None else self.timing_percent


UNKNOWN_QUALITY = BlockQuality()


@dataclass(frozen=True, slots=True, eq=False)
class SampleBlock:
    """One channel's packet: ``samples`` ``[n]`` in counts as recorded, the first at ``start_ns``.

    At most ``MAX_BLOCK_S`` long. A jump between the end of one block and the start of the next *is* the gap; no stage
    invents samples. ``origin`` is for the source that gave the block, which finds its place by it (``Resumable``).
    """

    stream: StreamId
    start_ns: int
    rate_hz: float
    samples: Samples
    quality: BlockQuality = UNKNOWN_QUALITY
    stamps: tuple[tuple[int, int], ...] | None = None
    """Where records begin in the block: index of their first sample and its time stamp (ns), in order. None: the block
    is one record. Without an index 0 the block goes on with the record that the last one ended with."""
    origin: object | None = None

    @property
    def end_ns(self) -> int:
        """Time at which the next sample is due."""
        return self.start_ns + round(len(self.samples) * NS / self.rate_hz)

    @property
    def continues(self) -> bool:
        """Whether the first sample is the neighbour of the channel's last one, whatever the times say."""
        stamps = self.stamps
        return stamps is not None and not (stamps and stamps[0][0] == 0)


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """A run of samples of one component without a gap: what the ring buffer hands to the window preparation."""

    start_ns: int
    rate_hz: float
    samples: Samples

    @property
    def end_ns(self) -> int:
        return self.start_ns + round(len(self.samples) * NS / self.rate_hz)

    def since(self, time_ns: int) -> int:
        """How many of its samples were taken at a time or after it."""
        before = math.ceil((time_ns - self.start_ns - 0.5) * self.rate_hz / NS)
        return min(len(self.samples), max(0, len(self.samples) - before))

    def between(self, from_ns: int, to_ns: int) -> Segment:
        """Its samples from ``from_ns`` to before ``to_ns``; there may be none."""
        first, last = (-(-(at - self.start_ns) * self.rate_hz // NS) for at in (from_ns, to_ns))
        begin = max(0, int(first))
        start_ns = self.start_ns + round(begin * NS / self.rate_hz)
        return Segment(start_ns, self.rate_hz, self.samples[begin : max(begin, int(last))])

    def packets(self, stream: StreamId, packet_s: float) -> Iterator[SampleBlock]:
        """Cut it into packets of ``packet_s`` seconds, rounded to whole samples, at least one; the last is shorter."""
        size = max(1, round(packet_s * self.rate_hz))
        for at in range(0, len(self.samples), size):
            start_ns = self.start_ns + round(at * NS / self.rate_hz)
            yield SampleBlock(stream, start_ns, self.rate_hz, self.samples[at : at + size])


@dataclass(frozen=True, slots=True)
class TriggerOn:
    """The detector's ratio rose above the on threshold at ``onset_ns`` (time of that sample)."""

    station: StationId
    onset_ns: int
    ratio: float


@dataclass(frozen=True, slots=True)
class TriggerOff:
    """The ratio fell below the off threshold: the last sample above it is at ``off_ns``."""

    station: StationId
    onset_ns: int
    off_ns: int
    peak_ratio: float


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """The network's input: ``data`` float32 ``[3, 10240]`` (E, N, Z at 100 Hz, onset at sample 2048), in -1..1.

    ``seconds`` is how much signal after the onset was allowed in; ``coverage`` the share of the samples up to there
    that were recorded, per component; ``gap_s`` the recorded span's missing seconds, the largest over the components.
    """

    data: NDArray[np.float32]
    onset_ns: int
    seconds: float
    coverage: tuple[float, float, float]
    gap_s: float


@dataclass(frozen=True, slots=True)
class Classification:
    """A verdict on one window. ``probabilities`` are calibrated, in the order of ``LABELS``; ``window_s`` as above."""

    label: str
    probability: float
    probabilities: tuple[float, ...]
    abstained: bool
    window_s: float
    model: str
    model_sha256: str
    backend: str
    precision: str


@dataclass(frozen=True, slots=True)
class Detection:
    """What the trigger saw: peak STA/LTA ratio, duration so far (s), peak of the band-passed signal (counts, the
    largest component), frequency of the spectral maximum (Hz; None when no samples were at hand), and the sensor's own
    noise before the onset (counts, mean absolute amplitude in the same band; None where too little was recorded)."""

    ratio: float
    duration_s: float
    peak_counts: float
    dominant_hz: float | None
    noise_counts: float | None = None

    @property
    def size(self) -> float:
        """Peak amplitude times duration, count-seconds: by which events at one sensor are compared. Zero where the peak
        is not known."""
        return self.peak_counts * self.duration_s if math.isfinite(self.peak_counts) else 0.0

    @property
    def amplitude(self) -> float | None:
        """The peak in multiples of the noise; None where the noise is not known."""
        return self.peak_counts / self.noise_counts if self.noise_counts else None


@dataclass(frozen=True, slots=True)
class Quality:
    """How far the data behind a verdict can be trusted."""

    gap_s: float = 0.0
    components: str = ""
    clock: BlockQuality = UNKNOWN_QUALITY


@dataclass(frozen=True, slots=True)
class Vote:
    """What one station said of an event of its site: its own event's newest revision, and the weight it had."""

    station: StationId
    event_id: str
    revision: int
    phase: EventPhase
    onset_ns: int
    weight: float
    classification: Classification | None


@dataclass(frozen=True, slots=True)
class Coincidence:
    """How several stations of a site stood together: ``votes`` of those that had the event, of ``stations`` that were
    asked, of which ``required`` were needed within ``window_s``. With ``degraded`` it says why one station was believed
    alone."""

    required: int
    stations: int
    window_s: float
    votes: tuple[Vote, ...] = ()
    degraded: str | None = None


@dataclass(frozen=True, slots=True)
class Evidence:
    """The record of an event on the station's disk: hash and length of the file, and the time that it spans."""

    sha256: str
    size: int
    start_ns: int
    end_ns: int


@dataclass(frozen=True, slots=True)
class Swell:
    """What makes an event slow. Powers are those of the trigger's band, over the background's: ``ratio`` of the last
    minute, ``peak_ratio`` of the loudest ten seconds. ``rise_s``: from the begin to these; ``held_s``: within 6 dB of
    them. ``growth_db_min``: slope of the level up to them, dB a minute; ``envelope_db``: mean of each minute, the
    newest last. ``centroid_hz`` of the last minute's spectrum, and ``centroid_growth_hz_min``, its change a minute;
    None where too little was recorded."""

    ratio: float
    peak_ratio: float
    rise_s: float
    held_s: float
    growth_db_min: float
    envelope_db: tuple[float, ...]
    centroid_hz: float | None = None
    centroid_growth_hz_min: float | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """One revision of one event. ``classification`` is None when the network failed; ``reason`` then says why. The
    network is not asked of a slow event, which has a ``swell``."""

    id: str
    revision: int
    phase: EventPhase
    station: StationId
    onset_ns: int
    detection: Detection
    classification: Classification | None
    quality: Quality
    data_ns: int
    """Time of the newest sample that this revision has seen."""
    reason: str | None = None
    exercise: bool = False
    recorded_s: float | None = None
    """Seconds of data that the station had recorded up to the onset, since the agent started; None: not known."""
    coincidence: Coincidence | None = None
    """Votes of the site's stations; also at a station that should have waited for others and could not."""
    evidence: Evidence | None = None
    """The record of an event that has ended, if one is kept."""
    late: bool = False
    """Whether the newest sample was older than ``policy.max_age_s`` when this revision was decided on."""
    swell: Swell | None = None
    """How a slow event swelled."""

    @property
    def kind(self) -> EventKind:
        """What found it."""
        return "trigger" if self.swell is None else "slow"

    @property
    def called(self) -> str:
        """Its label, ``undecided`` where the network abstains, ``unclassified`` where it failed, or ``slow``."""
        verdict = self.classification
        if verdict is None:
            return "unclassified" if self.swell is None else SLOW
        return "undecided" if verdict.abstained else verdict.label


def is_alone(event: Event) -> bool:
    """Whether it is a station's event, published before, that is now believed without the others of its site."""
    return event.coincidence is not None and event.coincidence.degraded is not None


@dataclass(frozen=True, slots=True)
class Acceleration:
    """How the rate of one label's events stands: ``events`` in the last ``window_s`` seconds of data, against
    ``background_events`` in the ``background_s`` seconds that serve for comparison. ``chance`` is the probability of so
    many events, or more, if the rate were still that of the background."""

    window_s: float
    events: int
    background_s: float
    background_events: int
    ratio: float
    chance: float


@dataclass(frozen=True, slots=True)
class RateAlert:
    """What makes an alert one about the rate of events: its own identity, which lasts from ``raise`` to ``retract``."""

    id: str
    revision: int
    rate: Acceleration


@dataclass(frozen=True, slots=True)
class DecisionReason:
    """Why a revision of an event led to an alert or to none: for programs, and in words."""

    code: DecisionCode
    words: str


@dataclass(frozen=True, slots=True)
class Alert:
    """A decision to wake someone, or to take that back. With ``about_rate``, ``event`` is the one after which it was
    decided. ``late``: it rests on old data and wakes nobody; of a retraction, the alert that is taken back did."""

    event: Event
    action: AlertAction
    severity: str
    label: str
    reason: str
    about_rate: RateAlert | None = None
    late: bool = False

    @property
    def id(self) -> str:
        """The identifier, which is the same from ``raise`` to ``retract``."""
        return self.event.id if self.about_rate is None else self.about_rate.id

    @property
    def revision(self) -> int:
        return self.event.revision if self.about_rate is None else self.about_rate.revision


DiscardCode: TypeAlias = Literal["too_short", "too_many_open"]
"""Why a trigger did not become an event: shorter than ``min_duration_s``; too many events of its sensor are open."""


@dataclass(frozen=True, slots=True)
class Discard:
    """A trigger that did not become an event: ``code`` for programs, ``reason`` for people."""

    station: StationId
    onset_ns: int
    code: DiscardCode
    reason: str
    detection: Detection | None = field(default=None)


def counted(number: int, noun: str) -> str:
    """``1 file``, ``2 files``."""
    return f"1 {noun}" if number == 1 else f"{number} {noun}s"


def waiting(number: int) -> str:
    """``1 message waits``, ``2 messages wait``."""
    return f"{counted(number, 'message')} wait{'s' if number == 1 else ''}"


def format_ns(ns: int) -> str:
    """ISO 8601 UTC with nine decimals, exact."""
    seconds, rest = divmod(ns, NS)
    return f"{_format_second(seconds)}.{rest:09d}Z"


@lru_cache(maxsize=64)
def _format_second(seconds: int) -> str:
    """The messages of an event name the same second again and again."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat()[:19]


_ISO = re.compile(r"^(\d{4}-\d{2}-\d{2})[T ](\d{2}:\d{2}:\d{2})(?:\.(\d{1,9})\d*)?(Z|[+-]\d{2}:?\d{2})?$")


def parse_ns(text: str) -> int:
    """Integer nanoseconds of an ISO 8601 time; without a zone it is UTC.

    Raises:
        DataError: not such a time.
    """
    match = _ISO.match(text.strip())
    try:
        if match is None:
            raise ValueError(text)
        day, clock, fraction, zone = match.groups()
        offset = "+00:00" if zone in (None, "Z") else zone if ":" in zone else f"{zone[:3]}:{zone[3:]}"
        whole = datetime.fromisoformat(f"{day}T{clock}{offset}")
    except ValueError:
        raise DataError(f"{text!r} is not a time", "write it like 2026-03-01T12:00:00.123Z") from None
    return round(whole.timestamp()) * NS + int((fraction or "0").ljust(9, "0"))


def place_of(sensor: str) -> str:
    """NET.STA of a sensor, NET.STA.LOC.BS, or of an identifier that begins with one."""
    return ".".join(sensor.split(".")[:2])


def event_id(station: StationId, onset_ns: int, kind: EventKind = "trigger") -> str:
    """``NET.STA.LOC.HH-20260301T120000.123Z``: the identity of an event for its whole life, the same in every replay.

    It names the sensor, as two of one station see many an onset in the same millisecond; a site's is ``NET.STA-...``. A
    slow event's ends with ``-slow``.
    """
    seconds, rest = divmod(onset_ns, NS)
    moment = _format_second(seconds).replace("-", "").replace(":", "")
    name = station if station.band_source else station.short
    return f"{name}-{moment}.{rest // 1_000_000:03d}Z{'' if kind == 'trigger' else f'-{kind}'}"
