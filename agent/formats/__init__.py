"""What ``talus watch`` can write besides text and JSON; one file a standard, imported only when chosen."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import Protocol

from agent.schema import AlertMessage, EventMessage, StateMessage


@dataclass(frozen=True, slots=True)
class Document:
    """One XML document on one line, UTF-8. ``name`` is its file's: a newer version of a document has the same."""

    name: str
    text: bytes


class Format(Protocol):
    """Turns checked messages into documents. Told everything that arrives, in order; owned by one thread."""

    def state(self, body: StateMessage) -> None:
        """A station says what it is; formats that place things on a map remember where it stands."""
        ...

    def document(self, body: EventMessage | AlertMessage) -> Document | None:
        """The document for this message, None for one that the standard has no use for.

        Raises:
            ValueError, ArithmeticError: it says what the standard cannot.
        """
        ...


def add(parent: ET.Element, name: str, value: str | None) -> None:
    """A new element with a text below ``parent``; none where the value is None."""
    if value is not None:
        ET.SubElement(parent, name).text = clean(value)


def to_line(root: ET.Element) -> bytes:
    """A document on one line, with its declaration."""
    body: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return body.replace(b"\n", b"", 1)


def clean(text: str) -> str:
    """Without characters that XML does not allow, or that could take over a terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)


def site(body: EventMessage | AlertMessage | StateMessage) -> str:
    """``NET.STA``."""
    return ".".join(body.station.split(".")[:2])
