"""QuakeML 1.2: one document an event, whose newest revision replaces the one before it.

A single station does not locate. The document therefore has a pick (the onset) and an amplitude, and no origin; where
the station's position is known, a comment gives it.
``landslide``, ``quarry blast``, ``collapse`` and ``earthquake`` are QuakeML's own event types, a machine's certainty is
``suspected``, and a verdict of noise makes the event ``not existing``. An abstention and a failed network leave the
type open. What QuakeML has no place for stands in comments: probabilities, network, why there is no verdict, exercise.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from datetime import datetime, timezone

from agent.messages.payloads import QUAKEML_TYPES
from agent.messages.schema import AlertMessage, ClassificationPart, EventMessage, PositionPart, StateMessage
from agent.types import parse_ns, place_of
from desk.formats import Document, Places, add, to_line

_BED = "http://quakeml.org/xmlns/bed/1.2"
_QUAKEML = "http://quakeml.org/xmlns/quakeml/1.2"
_TYPOLOGY = (
    "Typology of Provost et al. (2018): not told apart; the class landslide holds slopequakes, rockfalls and granular "
    "flows"
)


class QuakeML:
    """See ``Format``: events become documents; alerts do not, as the event says the same."""

    def __init__(self) -> None:
        self._places = Places()

    def state(self, body: StateMessage) -> None:
        """Where stations stand, for a comment: QuakeML has a place for the origin alone."""
        self._places.learn(body)

    def document(self, body: EventMessage | AlertMessage) -> Document | None:
        """The event's newest revision, ``NET.STA-ONSET.xml``."""
        if isinstance(body, AlertMessage):
            return None
        root = ET.Element("q:quakeml", {"xmlns": _BED, "xmlns:q": _QUAKEML})
        parameters = ET.SubElement(root, "eventParameters", publicID=_id("catalog", body.id))
        _creation(parameters, body)
        place = self._places.of(place_of(body.station))
        _event(ET.SubElement(parameters, "event", publicID=_id("event", body.id)), body, place)
        return Document(f"{body.id}.xml", to_line(root))


def _event(event: ET.Element, body: EventMessage, place: PositionPart | None) -> None:
    typed = body.quakeml_type
    if typed is not None and typed not in QUAKEML_TYPES.values():
        raise ValueError(f"{typed!r} is none of the event types that Talus gives")
    add(event, "type", typed)
    add(event, "typeCertainty", "suspected" if typed is not None else None)
    if body.exercise:
        add(ET.SubElement(event, "description"), "text", "EXERCISE, not a real event")
    for number, text in enumerate(_texts(body, place)):
        add(ET.SubElement(event, "comment", id=_id(f"comment/{number}", body.id)), "text", text)
    _creation(event, body)
    _pick(ET.SubElement(event, "pick", publicID=_id("pick", body.id)), body)
    if body.detection.peak_counts is not None:
        amplitude = ET.SubElement(event, "amplitude", publicID=_id("amplitude", body.id))
        _amplitude(amplitude, body, body.detection.peak_counts)


def _pick(pick: ET.Element, body: EventMessage) -> None:
    add(ET.SubElement(pick, "time"), "value", _time(body.onset))
    network, station, location, band = (*body.station.split("."), "", "")[:4]
    codes = {"networkCode": network, "stationCode": station}
    if location:
        codes["locationCode"] = location
    if band:
        codes["channelCode"] = f"{band}Z"
    ET.SubElement(pick, "waveformID", codes)
    add(pick, "methodID", "smi:talus/method/recursive-sta-lta")
    add(pick, "evaluationMode", "automatic")
    add(pick, "evaluationStatus", "preliminary" if body.phase != "end" else "final")
    _creation(pick, body)


def _amplitude(amplitude: ET.Element, body: EventMessage, counts: float) -> None:
    add(ET.SubElement(amplitude, "genericAmplitude"), "value", str(counts))
    add(amplitude, "category", "point")
    add(amplitude, "unit", "other")
    if body.detection.dominant_hz:
        period_s = 1 / body.detection.dominant_hz
        if not math.isfinite(period_s):
            raise ValueError(f"{body.detection.dominant_hz:g} Hz has no period")
        add(ET.SubElement(amplitude, "period"), "value", str(period_s))
    add(amplitude, "pickID", _id("pick", body.id))
    add(amplitude, "evaluationMode", "automatic")
    text = "peak of the band-passed signal in counts, largest component; no response removed"
    add(ET.SubElement(amplitude, "comment"), "text", text)


def _texts(body: EventMessage, place: PositionPart | None) -> list[str]:
    seen = body.detection
    texts = ["EXERCISE: made from recorded or simulated data"] if body.exercise else []
    texts += _verdict(body.classification) if body.classification else []
    if body.reason is not None:
        texts.append(f"No classification: {body.reason}")
    ratio = "" if seen.ratio is None else f"STA/LTA {seen.ratio:g}, "
    frequency = "" if seen.dominant_hz is None else f", spectral maximum {seen.dominant_hz:g} Hz"
    texts.append(f"Trigger: {ratio}{seen.duration_s:g} s{frequency}")
    if place is not None:
        height = "" if place.elevation_m is None else f", elevation {place.elevation_m:g} m"
        where = f"latitude {place.latitude:.6f}, longitude {place.longitude:.6f}{height} (WGS 84)"
        texts.append(f"Station {place_of(body.station)}: {where}; the event is not located")
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


def _creation(parent: ET.Element, body: EventMessage) -> None:
    info = ET.SubElement(parent, "creationInfo")
    add(info, "agencyID", body.station.split(".")[0])
    add(info, "author", f"talus@{place_of(body.station)}")
    add(info, "creationTime", _time(body.timing.decided))
    add(info, "version", str(body.revision))


def _time(text: str) -> str:
    """QuakeML's form of a time, to the nearest microsecond."""
    seconds, micros = divmod(round(parse_ns(text) / 1000), 1_000_000)
    return datetime.fromtimestamp(seconds, timezone.utc).strftime(f"%Y-%m-%dT%H:%M:%S.{micros:06d}Z")


def _id(what: str, event: str) -> str:
    return f"smi:talus/{what}/{event}"
