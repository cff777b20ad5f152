"""What ``talus watch`` can write besides text and JSON; one file a standard, imported only when chosen."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import Protocol

from agent.messages.schema import AlertMessage, EventMessage, PositionPart, StateMessage
from agent.messages.text import printable
from agent.types import place_of

_MOST_AGENTS = 10_000
"""Agents whose word is remembered: anyone at the broker may invent more."""


@dataclass(frozen=True, slots=True)
class Document:
    """One XML document on one line, UTF-8. ``name`` is its file's: a newer version of a document has the same."""

    name: str
    text: bytes


class Format(Protocol):
    """Turns checked messages into documents. Told everything that arrives, in order; owned by one thread."""

    def state(self, body: StateMessage) -> None:
        """An agent reports what it is; the positions of its stations are remembered."""
        ...

    def document(self, body: EventMessage | AlertMessage) -> Document | None:
        """The document for this message, None for one that the standard has no use for.

        Raises:
            ValueError, ArithmeticError: it says what the standard cannot.
        """
        ...


class Places:
    """Where stations stand, as agents tell: each of itself, and of the stations whose data it works on."""

    def __init__(self) -> None:
        self._own: dict[str, PositionPart] = {}
        self._declared: dict[str, dict[str, PositionPart]] = {}
        """By the agent that tells."""

    def learn(self, body: StateMessage) -> None:
        """The newest word of an agent replaces what it told before."""
        agent = place_of(body.station)
        if agent not in self._declared and len(self._declared) >= _MOST_AGENTS:
            return
        self._declared[agent] = {one.station: one.position for one in body.stations if one.position is not None}
        if body.position is not None:
            self._own[agent] = body.position
        else:
            self._own.pop(agent, None)

    def of(self, station: str) -> PositionPart | None:
        """The position of ``NET.STA``: what its own agent tells counts before what others tell of it."""
        found = self._own.get(station)
        return found or next((told[station] for told in self._declared.values() if station in told), None)


def add(parent: ET.Element, name: str, value: str | None) -> None:
    """A new element with a text below ``parent``, without characters that XML does not allow; none where the value is
    None."""
    if value is not None:
        ET.SubElement(parent, name).text = printable(value)


def to_line(root: ET.Element) -> bytes:
    """A document on one line, with its declaration."""
    body: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return body.replace(b"\n", b"", 1)
