"""Events as pictures: drawn when the record has come that a station sends of an alert (``evidence.send: alerts``)."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

from agent.atomic import ANYONE, replace_file
from agent.errors import DataError, TalusError
from agent.messages.payloads import MAX_EVIDENCE, PIECE_BYTES
from agent.messages.schema import EventMessage
from agent.types import LABELS, SLOW, parse_ns
from desk.pictures.event import Told, draw
from desk.pictures.style import save
from desk.record import spectrogram, traces

_EVENTS = 1000
"""Whose verdicts are remembered."""
_HELD = 64 << 20
"""Bytes of records that are not complete."""


@dataclass(slots=True)
class _Known:
    """What was told of an event."""

    newest: EventMessage
    grown: dict[float, dict[str, float]] = field(default_factory=dict)
    pieces: dict[int, bytes] = field(default_factory=dict)


class Pictures:
    """A folder of ``EVENT.webp`` and ``EVENT.mseed``. Told everything that arrives, in order; owned by one thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._events: OrderedDict[str, _Known] = OrderedDict()

    def event(self, body: EventMessage) -> None:
        """A revision of an event."""
        known = self._events.setdefault(body.id, _Known(body))
        if body.revision >= known.newest.revision:
            known.newest = body
        verdict = body.classification
        if verdict is not None:
            known.grown[verdict.window_s] = {label: getattr(verdict.probabilities, label) for label in LABELS}
        if len(self._events) > _EVENTS:
            self._events.popitem(last=False)

    def piece(self, event: str, number: str, payload: bytes) -> Path | None:
        """A piece of a record, as the end of its topic names it; the picture, when it was the last.

        Raises:
            DataError: no event has announced it, or it is not what was announced, or it cannot be drawn.
            TalusError: the folder refuses it.
        """
        uid = event.replace("_", ".")
        known = self._events.get(uid)
        announced = None if known is None else known.newest.evidence
        if known is None or announced is None or not 0 < announced.bytes <= MAX_EVIDENCE:
            raise DataError("a piece of a record that no event has announced")
        if not (
            number.isascii() and number.isdigit() and len(number) < 9 and int(number) < MAX_EVIDENCE // PIECE_BYTES
        ):
            raise DataError(f"{number[:20]!r} is not the number of a piece")
        if not 0 < len(payload) <= PIECE_BYTES:
            raise DataError(f"a piece of {len(payload)} bytes")
        known.pieces[int(number)] = payload
        self._make_room(uid)
        if sum(map(len, known.pieces.values())) < announced.bytes:
            return None
        raw = b"".join(known.pieces[place] for place in sorted(known.pieces))
        known.pieces.clear()
        if hashlib.sha256(raw).hexdigest() != announced.sha256:
            raise DataError("the record is not what the event announced")
        return self._draw(known, raw)

    def _make_room(self, newest: str) -> None:
        sizes = {uid: sum(map(len, known.pieces.values())) for uid, known in self._events.items() if known.pieces}
        excess = sum(sizes.values()) - _HELD
        for uid, size in sizes.items():
            if excess > 0 and uid != newest:
                self._events[uid].pieces.clear()
                excess -= size

    def _draw(self, known: _Known, raw: bytes) -> Path:
        body = known.newest
        record, picture = (self._folder / f"{body.id}{suffix}" for suffix in (".mseed", ".webp"))
        try:
            replace_file(record, raw, mode=ANYONE)
        except OSError as error:
            raise TalusError(f"{record}: {error.strerror}", "free space, or choose another folder") from None
        verdict = body.classification
        if verdict is None:
            label = SLOW if body.kind == SLOW else "unclassified"
        else:
            label = "undecided" if verdict.abstained else verdict.label
        share = "" if verdict is None else f" {100 * verdict.probability:.0f} %"
        title = f"{label}{share}  {'.'.join(body.station.split('.')[:2])}  {body.onset[:10]} {body.onset[11:19]}"
        grown = sorted(known.grown.items())
        told = Told(title, label, body.detection.duration_s, grown, exercise=body.exercise)
        shown = traces(record, body.station, parse_ns(body.onset))
        save(draw(shown, spectrogram(shown[0]), told, small=True), picture)
        return picture
