"""A subscriber's view: what arrives is checked against the models, freed of duplicates, and printed."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TextIO

from agent.backoff import ThrottledLog, delays
from agent.errors import DataError, DeliveryError
from agent.messages.payloads import OFFLINE, ONLINE, STOPPED
from agent.messages.schema import (
    MODELS,
    AlertMessage,
    EventMessage,
    StateMessage,
    parse,
)
from agent.messages.text import describe, printable, replaced

if TYPE_CHECKING:
    from agent.config.broker import MqttSettings
    from agent.deliver.connection import Received
    from agent.deliver.sockets import Waker
    from desk.formats import Format
    from desk.formats.folder import DocumentFolder
    from desk.formats.picture import Pictures

MAX_PAYLOAD = 256 * 1024
"""Bytes; a larger payload is refused unread."""

_REMEMBERED = 100_000
_SESSION_EXPIRY_S = 7 * 86_400
_STATE_S, _STATE_QUIET_S = 5.0, 0.5
_RED, _YELLOW, _DIM, _PLAIN = "\x1b[1;31m", "\x1b[33m", "\x1b[2m", "\x1b[0m"


@dataclass(slots=True)
class Watched:
    """What came in: events and alerts printed, duplicates passed over, messages refused."""

    printed: int = 0
    duplicates: int = 0
    refused: int = 0


def watch(
    settings: MqttSettings,
    out: TextIO,
    err: TextIO,
    *,
    style: Literal["text", "json"] = "text",
    documents: Format | None = None,
    folder: DocumentFolder | None = None,
    pictures: Pictures | None = None,
    limit: int | None = None,
    timeout_s: float | None = None,
    session: str | None = None,
    tally: Watched | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Watched:
    """Print events and alerts as they come: a line each in ``text`` (with changes of availability), or their payloads,
    one a line, in ``json``. With ``documents`` it is what that makes of them instead, one a line, or, with ``folder``,
    one a file, whose path is printed; with ``pictures`` the paths of those that it draws. What is refused, and why,
    goes to ``err``.

    Ends after ``limit`` events and alerts, ``timeout_s`` seconds, or within a second of ``cancelled``; else never.
    ``session`` is a client identifier under which the broker keeps, for a week, what comes while no one watches; then
    nothing is missed. A lost connection is made again. ``tally`` counts along, for who may interrupt this.

    Raises:
        DeliveryError: the first connection fails.
        TalusError: the folder refuses a document; the broker keeps the message for the session.
    """
    from agent.deliver.connection import Connection, Subscription
    from agent.deliver.sockets import Waker

    printer = _Printer(
        settings.prefix, out, err, style=style, limit=limit, documents=documents, folder=folder, pictures=pictures
    )
    printer.tally = tally or printer.tally
    names = ["event", "alert", "availability", "last_event", "last_alert", "state", "health"]
    names += [] if pictures is None else ["evidence/+/+"]
    subscription = Subscription(
        [f"{settings.prefix}/+/+/{name}" for name in names], printer.receive, _SESSION_EXPIRY_S if session else 0
    )
    client_id = session or f"talus-watch-{secrets.token_hex(4)}"
    waits = delays(settings.backoff_min_s, settings.backoff_max_s)
    connected_once = False
    with contextlib.closing(Waker()) as waker:
        if documents is not None:
            _hear_states(settings, printer, waker)
        deadline = time.monotonic() + (timeout_s if timeout_s is not None else float("inf"))
        while time.monotonic() < deadline and not (printer.done or cancelled()):
            connection = None
            try:
                connection = Connection.open(settings, client_id, waker, subscription=subscription, cancelled=cancelled)
                connected_once = True
                waits = delays(settings.backoff_min_s, settings.backoff_max_s)
                while not (printer.done or cancelled()) and (left := deadline - time.monotonic()) > 0:
                    connection.pump(min(left, 1.0))
            except DeliveryError as error:
                if not connected_once:
                    raise
                print(f"talus watch: {error}", file=err)
                time.sleep(max(0.0, min(next(waits), deadline - time.monotonic())))
            finally:
                if connection is not None:
                    connection.close()
    return printer.tally


def _hear_states(settings: MqttSettings, printer: _Printer, waker: Waker) -> None:
    """What stations say of themselves, before anything else: a session gets what was kept for it first, and the place
    of a station must be known by then."""
    from agent.deliver.connection import Connection, Subscription

    heard = time.monotonic()

    def receive(message: Received) -> bool:
        nonlocal heard
        heard = time.monotonic()
        return printer.receive(message)

    subscription = Subscription([f"{settings.prefix}/+/+/state"], receive)
    connection = Connection.open(settings, f"talus-watch-{secrets.token_hex(4)}", waker, subscription=subscription)
    try:
        begun = time.monotonic()
        while time.monotonic() < min(heard + _STATE_QUIET_S, begun + _STATE_S):
            connection.pump(0.1)
    finally:
        connection.close()


class _Printer:
    def __init__(
        self,
        prefix: str,
        out: TextIO,
        err: TextIO,
        *,
        style: Literal["text", "json"],
        limit: int | None,
        documents: Format | None,
        folder: DocumentFolder | None,
        pictures: Pictures | None,
    ) -> None:
        self.tally = Watched()
        self._availability: dict[str, str] = {}
        self._documents, self._folder, self._pictures = documents, folder, pictures
        self._prefix = prefix
        self._out, self._err = out, err
        self._style = style if documents is None and pictures is None else "document"
        self._limit = limit
        self._colour = style == "text" and out.isatty() and not os.environ.get("NO_COLOR")
        self._seen: OrderedDict[tuple[str, str, int, str, int], None] = OrderedDict()
        self._throttled = ThrottledLog(self._complain)

    @property
    def done(self) -> bool:
        return self._limit is not None and self.tally.printed >= self._limit

    def receive(self, message: Received) -> bool:
        """Whether it was dealt with: what comes over the limit stays with the broker."""
        if self.done:
            return False
        if not message.payload:
            return True  # a stored value that is deleted, or a probe of `talus doctor`
        try:
            if not self._is_piece(message):
                self._show(message)
        except DataError as error:
            self.tally.refused += 1
            topic = printable(message.topic)[:200]
            self._throttled.warn(f"refused a message on {topic}: {printable(error.message)}", key=topic)
        return True

    def _complain(self, text: str) -> None:
        print(f"talus watch: {text}", file=self._err, flush=True)

    def _is_piece(self, message: Received) -> bool:
        """Whether it is a piece of a record; pictures are drawn of those."""
        parts = message.topic.removeprefix(f"{self._prefix}/").split("/")
        if self._pictures is None or len(parts) != 5 or parts[2] != "evidence":
            return False
        path = self._pictures.piece(parts[3], parts[4], message.payload)
        if path is not None:
            self._print(str(path))
            self.tally.printed += 1
        return True

    def _show(self, message: Received) -> None:
        parts = message.topic.removeprefix(f"{self._prefix}/").split("/")
        if len(parts) != 3:
            raise DataError("not a topic of ours")
        if len(message.payload) > MAX_PAYLOAD:
            raise DataError(f"{len(message.payload)} bytes are too many")
        network, station, name = parts
        if name == "availability":
            self._show_availability(f"{network}.{station}", message.payload)
            return
        body = parse(MODELS[name], message.payload)
        said = getattr(body, "station", "")
        if not f"{said}.".startswith(f"{network}.{station}."):
            raise DataError(f"it says that it is from {said}")
        if isinstance(body, StateMessage) and self._documents is not None:
            self._documents.state(body)
        if not isinstance(body, (EventMessage, AlertMessage)):
            if self._style == "text" and message.retain:
                self._print(describe(body), _DIM)
            return
        identity = (name, body.id, body.revision, body.boot_id, body.seq)
        if identity in self._seen:
            self.tally.duplicates += 1
            return
        if self._style == "document":
            self._put_down(body)
        elif self._style == "json":
            # In JSON an escape means the same, and takes over no terminal.
            self._print(replaced(body.model_dump_json(), lambda character: json.dumps(character)[1:-1]))
            self.tally.printed += 1
        else:
            self._print(describe(body), _colour_of(body))
            self.tally.printed += 1
        self._seen[identity] = None
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)

    def _put_down(self, body: EventMessage | AlertMessage) -> None:
        if self._pictures is not None and isinstance(body, EventMessage):
            self._pictures.event(body)
        if self._documents is None:
            return
        try:
            document = self._documents.document(body)
        except (ValueError, ArithmeticError) as error:
            # A time after the year 9999, a type that QuakeML does not know: anyone at the broker may say so.
            raise DataError(f"the document's standard has no words for it: {error}") from None
        if document is None:
            return
        self._print(document.text.decode() if self._folder is None else str(self._folder.write(document)))
        self.tally.printed += 1

    def _show_availability(self, station: str, payload: bytes) -> None:
        text = payload[:40].decode("utf-8", "replace")
        if text not in (ONLINE, OFFLINE, STOPPED):
            raise DataError(f"{text!r} is not an availability")
        before, self._availability[station] = self._availability.get(station), text
        if self._style == "text" and text != before:
            self._print(printable(f"{station} is {text}"), _DIM if text == ONLINE else _YELLOW)

    def _print(self, line: str, colour: str = "") -> None:
        if self._colour and colour:
            line = f"{colour}{line}{_PLAIN}"
        print(line, file=self._out, flush=True)


def _colour_of(body: AlertMessage | EventMessage) -> str:
    if isinstance(body, EventMessage):
        return ""
    return _YELLOW if body.late or body.action == "retract" else _RED
