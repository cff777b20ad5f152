"""QuakeML 1.2: one document an event, whose newest revision replaces the one before it.

A single station does not locate. The document therefore has a pick (the onset) and an amplitude, and no origin.
``landslide``, ``quarry blast``, ``collapse`` and ``earthquake`` are QuakeML's own event types, a machine's certainty is
``suspected``, and a verdict of noise makes the event ``not existing``. An abstention and a failed network leave the
type open. What QuakeML has no place for stands in comments: probabilities, network, why there is no verdict, exercise.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from agent.formats import Document, clean, one_line, site
from agent.schema import AlertMessage, ClassificationPart, EventMessage, StateMessage
from agent.types import parse_ns

if TYPE_CHECKING:
    from obspy.core.event import Amplitude, Comment, CreationInfo, Event, Pick

_TYPOLOGY = (
    "Typology of Provost et al. (2018): not told apart; the class landslide holds slopequakes, rockfalls and granular "
    "flows"
)


class QuakeML:
    """See ``Format``: events become documents; alerts do not, as the event says the same."""

    def state(self, body: StateMessage) -> None:
        """Not needed: nothing is located."""

    def document(self, body: EventMessage | AlertMessage) -> Document | None:
        """The event's newest revision, ``NET.STA-ONSET.xml``."""
        if isinstance(body, AlertMessage):
            return None
        from obspy.core.event import Catalog

        catalog = Catalog([_event(body)], resource_id=_id("catalog", body.id), creation_info=_creation(body))
        file = io.BytesIO()
        catalog.write(file, format="QUAKEML")
        return Document(f"{body.id}.xml", one_line(file.getvalue()))


def _event(body: EventMessage) -> Event:
    from obspy.core.event import Event, EventDescription

    typed = body.quakeml_type
    event = Event(
        resource_id=_id("event", body.id),
        event_type=typed,
        event_type_certainty="suspected" if typed is not None else None,
        creation_info=_creation(body),
        comments=[_comment(body, number, text) for number, text in enumerate(_texts(body))],
        picks=[_pick(body)],
    )
    if body.exercise:
        event.event_descriptions = [EventDescription("EXERCISE, not a real event")]
    if body.detection.peak_counts is not None:
        event.amplitudes = [_amplitude(body, body.detection.peak_counts)]
    return event


def _pick(body: EventMessage) -> Pick:
    from obspy import UTCDateTime
    from obspy.core.event import Pick, WaveformStreamID

    network, station, location, band = (*body.station.split("."), "", "")[:4]
    return Pick(
        resource_id=_id("pick", body.id),
        time=UTCDateTime(ns=parse_ns(body.onset)),
        waveform_id=WaveformStreamID(network, station, location or None, f"{band}Z" if band else None),
        evaluation_mode="automatic",
        evaluation_status="preliminary" if body.phase != "end" else "final",
        method_id="smi:talus/method/recursive-sta-lta",
        creation_info=_creation(body),
    )


def _amplitude(body: EventMessage, counts: float) -> Amplitude:
    from obspy.core.event import Amplitude, Comment

    return Amplitude(
        resource_id=_id("amplitude", body.id),
        generic_amplitude=counts,
        unit="other",
        category="point",
        pick_id=_id("pick", body.id),
        period=1 / body.detection.dominant_hz if body.detection.dominant_hz else None,
        evaluation_mode="automatic",
        comments=[Comment(text="peak of the band-passed signal in counts, largest component; no response removed")],
    )


def _texts(body: EventMessage) -> list[str]:
    seen = body.detection
    texts = ["EXERCISE: made from recorded or simulated data"] if body.exercise else []
    texts += _verdict(body.classification) if body.classification else []
    if body.reason is not None:
        texts.append(f"No classification: {body.reason}")
    ratio = "" if seen.ratio is None else f"STA/LTA {seen.ratio:g}, "
    frequency = "" if seen.dominant_hz is None else f", spectral maximum {seen.dominant_hz:g} Hz"
    texts.append(f"Trigger: {ratio}{seen.duration_s:g} s{frequency}")
    texts.append(f"Data: components {body.quality.components or 'none'}, {body.quality.gap_s:g} s missing")
    return texts


def _verdict(verdict: ClassificationPart) -> list[str]:
    shares = ", ".join(f"{label} {share:.4f}" for label, share in verdict.probabilities.model_dump().items())
    texts = [
        f"Probabilities: {shares}",
        f"Model: {verdict.model.name}, sha256 {verdict.model.sha256}, {verdict.backend} {verdict.precision}, "
        f"{verdict.window_s:g} s after the onset",
    ]
    if verdict.abstained:
        texts.insert(0, f"Undecided: {verdict.label} {verdict.probability:.2f} is the likeliest, but not likely enough")
    elif verdict.label == "landslide":
        texts.append(_TYPOLOGY)
    return texts


def _comment(body: EventMessage, number: int, text: str) -> Comment:
    from obspy.core.event import Comment

    return Comment(text=clean(text), resource_id=_id(f"comment/{number}", body.id))


def _creation(body: EventMessage) -> CreationInfo:
    from obspy import UTCDateTime
    from obspy.core.event import CreationInfo

    return CreationInfo(
        agency_id=body.station.split(".")[0],
        author=f"talus@{site(body)}",
        creation_time=UTCDateTime(ns=parse_ns(body.timing.decided)),
        version=str(body.revision),
    )


def _id(what: str, event: str) -> str:
    return f"smi:talus/{what}/{event}"
