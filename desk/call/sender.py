"""The desk's outbox: what is due is sent, what fails is tried again, and a kill sends nothing twice within a minute.

Apprise knows how to speak to each service, and forgets what fails. So a notification is leased before it is sent
(``sending``, for a minute), and becomes ``sent`` only when the service has taken it; a desk that dies in between sends
it again when the lease is over.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

from sqlalchemy import ColumnElement, Connection, select, update

from agent.errors import DeliveryError, TalusError
from agent.types import NS, place_of
from desk.call.calls import OVERTAKEN, revision_of
from desk.call.targets import Target
from desk.store import tables as t
from desk.store.answers import SILENCED, is_silenced
from desk.store.store import Store, note_changes
from desk.worker import Worker

LEASE_NS = 60 * NS
TICK_S = 1.0
FIRST_RETRY_NS, LONGEST_RETRY_NS = 15 * NS, 600 * NS
STUCK_S = 60.0
"""A service that has not answered for so long may be called by another thread, ..."""
MOST_STUCK = 3
"""... so many times; then it is left until one of them comes back."""
GIVEN_UP_NS = 24 * 3600 * NS
"""An alert that could not be sent for a day is of no use to anyone."""


@dataclass(frozen=True, slots=True)
class Note:
    """What is sent to one target. ``link`` acknowledges; ``picture`` is an image file."""

    title: str
    text: str
    link: str | None = None
    picture: Path | None = None


class Way(Protocol):
    """How a note reaches a target."""

    def send(self, target: Target, note: Note) -> None:
        """
        Raises:
            DeliveryError: the service did not take it.
        """


class AppriseWay:
    """By Apprise: ntfy, Telegram, mail, SMS gateways, webhooks and others."""

    def send(self, target: Target, note: Note) -> None:
        """See ``Way``."""
        import apprise

        url = target.url
        if note.link and url.startswith(("ntfy://", "ntfys://")):
            # The button in the notification itself: one tap, no page.
            url += f"{'&' if '?' in url else '?'}click={quote(note.link, safe='')}"
        sender = apprise.Apprise()
        if not sender.add(url):
            raise DeliveryError(f"the address of {target.name} is not understood", "see https://appriseit.com")
        body = f"{note.text}\n{note.link}" if note.link else note.text
        files = apprise.AppriseAttachment(str(note.picture)) if note.picture is not None else None
        heard, logger = _Heard(), logging.getLogger("apprise")
        logger.propagate = False  # its errors are ours to word
        logger.setLevel(logging.WARNING)
        _CALL.set(heard)
        logger.addHandler(heard)
        try:
            # Services that take HTML or Markdown get it with what a station says escaped.
            done = sender.notify(body=body, title=note.title, attach=files, body_format=apprise.NotifyFormat.TEXT)
        finally:
            logger.removeHandler(heard)
        if not done:
            raise DeliveryError(f"{target.name}: {heard.last[-200:] or 'the service did not take it'}")


_CALL: ContextVar[object] = ContextVar("call", default=None)


class _Heard(logging.Handler):
    """The last thing that Apprise complains of in this call, in whatever thread it sends; others send meanwhile."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.last = ""

    def emit(self, record: logging.LogRecord) -> None:
        if _CALL.get() is self:
            self.last = record.getMessage().strip()


@dataclass(slots=True)
class Sent:
    """Since the start."""

    sent: int = 0
    failed: int = 0
    errors: dict[str, str] = field(default_factory=dict)
    """By target: why the last call to it did not go out. One that went out takes it away."""

    @property
    def last_error(self) -> str | None:
        """Of the targets that still fail."""
        return "; ".join(self.errors.copy().values()) or None


@dataclass(slots=True)
class _Line:
    """The thread that calls one target, and when its call began on the monotonic clock."""

    thread: threading.Thread
    since: float
    stuck: int = 0
    """Threads before it that never came back."""


@dataclass(frozen=True, slots=True)
class _Due:
    id: int
    subject: str
    target: str
    alert: str | None
    event: str | None
    title: str
    text: str
    tries: int
    made_ns: int
    revision: int | None
    """Of the alert that the message tells of."""


class CallSender(Worker):
    """Looks once a second, and whenever it is woken, for what is due. Each target has a thread of its own while it has
    anything to be told: a service that does not answer holds up nobody else."""

    def __init__(
        self,
        store: Store,
        targets: Sequence[Target],
        way: Way,
        *,
        link: Callable[[str, str, int], str | None] = lambda _alert, _target, _revision: None,
        picture: Callable[[str], Path | None] = lambda _event: None,
    ) -> None:
        """``link`` makes the address that acknowledges an alert (its identifier, the target's name, the revision that
        the message tells of); ``picture`` gives the image of an event."""
        super().__init__("sender of calls")
        self.tally = Sent()
        self._store, self._way, self._link, self._picture = store, way, link, picture
        self._targets: Mapping[str, Target] = {target.name: target for target in targets}
        self._lines: dict[str, _Line] = {}

    def step(self) -> float:
        """See ``Worker``."""
        self._begin(time.time_ns())
        return TICK_S

    def stop(self, timeout_s: float = 5.0) -> None:
        """End after the calls at hand, as far as their services answer in time."""
        super().stop(timeout_s)
        until = time.monotonic() + timeout_s
        for line in self._lines.copy().values():
            line.thread.join(max(0.0, until - time.monotonic()))

    def send_due(self, now_ns: int) -> int:
        """Send all that is due, and wait for the services; returns for how many targets there was anything."""
        started = self._begin(now_ns)
        for line in started:
            line.thread.join()
        return len(started)

    def _begin(self, now_ns: int) -> list[_Line]:
        n = t.notification.c
        with self._store.reading() as connection:
            due = list(connection.execute(select(n.target).where(*_ready(now_ns)).distinct()).scalars())
        started = []
        for name in due:
            before = self._lines.get(name)
            stuck = 0 if before is None else before.stuck
            if before is not None and before.thread.is_alive():
                waited_s = time.monotonic() - before.since
                if waited_s < STUCK_S:
                    continue
                self.tally.errors[name] = f"{name}: the service has not answered for {waited_s:.0f} s"
                if stuck >= MOST_STUCK:
                    continue
                stuck += 1
            thread = threading.Thread(target=self._drain, args=(name, now_ns), name=f"call {name}", daemon=True)
            self._lines[name] = _Line(thread, time.monotonic(), stuck)
            thread.start()
            started.append(self._lines[name])
        return started

    def _drain(self, name: str, now_ns: int) -> None:
        """In a thread of its own: send what is due for one target, one after the other."""
        begun, line = time.monotonic(), self._lines[name]
        try:
            # Leased one by one: what somebody acknowledges meanwhile is not sent any more.
            while not self.stopping and self._lines[name] is line:
                line.since = time.monotonic()
                at_ns = now_ns + round((line.since - begun) * NS)
                due = self._lease(name, at_ns)
                if due is None:
                    return
                self._send(due, at_ns)
        except TalusError as error:
            self.throttled.warn(str(error), key=name)

    def _lease(self, target: str, now_ns: int) -> _Due | None:
        n, a = t.notification.c, t.alert.c
        statement = (
            select(
                n.id, n.subject, n.target, a.uid.label("alert"), a.event_uid.label("event"), n.title, n.text, n.tries,
                n.made_ns, a.revision, a.action, a.label, t.sensor.c.code,
            )
            .outerjoin(t.alert, n.alert_id == a.id)
            .outerjoin(t.sensor, a.sensor_id == t.sensor.c.id)
            .where(*_ready(now_ns), n.target == target)
            .order_by(n.due_ns)
            .limit(20)
        )  # fmt: skip
        with self._store.writing() as connection:
            for row in connection.execute(statement).all():
                mine = update(t.notification).where(n.id == row.id)
                place = None if row.code is None else place_of(row.code)
                # A silence that began after the alert holds back what has not been sent; a retraction is good news.
                if place and row.action != "retract" and is_silenced(connection, place, row.label, now_ns):
                    connection.execute(mine.values(state="dropped", error=SILENCED))
                    continue
                connection.execute(mine.values(state="sending", due_ns=now_ns + LEASE_NS))
                told = revision_of(row.subject)
                return _Due(*row[:9], row.revision if told is None else told)
        return None

    def _send(self, due: _Due, now_ns: int) -> None:
        target = self._targets.get(due.target)
        if target is None:
            self._close(due, now_ns, "dropped", "the configuration no longer names this target")
            return
        link = self._link(due.alert, due.target, due.revision or 0) if due.alert else None
        picture = None
        if due.event:
            try:
                picture = self._picture(due.event)
            except (OSError, ValueError) as error:
                self.throttled.warn(f"no picture of {due.event}: {error}")
        try:
            self._way.send(target, Note(due.title, due.text, link, picture))
        except Exception as error:  # noqa: BLE001 - whatever a service's plug-in raises, the call is tried again
            said = error.message if isinstance(error, DeliveryError) else f"{target.name}: {type(error).__name__}"
            self.tally.failed += 1
            self.tally.errors[due.target] = said
            self.throttled.warn(f"{due.subject}: {error}", key=due.target)
            self._again(due, said, now_ns)
            return
        self.tally.sent += 1
        self.tally.errors.pop(due.target, None)
        self._close(due, now_ns, "sent")

    def _close(self, due: _Due, now_ns: int, state: str, error: str | None = None) -> None:
        sent_ns = now_ns if state == "sent" else None
        values = {"state": state, "error": error, "tries": due.tries + 1, "sent_ns": sent_ns}
        with self._store.writing() as connection:
            connection.execute(update(t.notification).where(t.notification.c.id == due.id).values(values))
            self._told(connection, due, now_ns)

    def _told(self, connection: Connection, due: _Due, now_ns: int) -> None:
        """Open pages show who was called."""
        if due.alert is not None:
            note_changes(connection, [("call", due.alert)], now_ns)

    def _again(self, due: _Due, error: str, now_ns: int) -> None:
        if now_ns - due.made_ns > GIVEN_UP_NS:
            self._close(due, now_ns, "dropped", f"given up after a day: {error}")
            return
        wait_ns = min(LONGEST_RETRY_NS, FIRST_RETRY_NS << min(due.tries, 10))
        values: dict[str, object] = {
            "state": "waiting", "due_ns": now_ns + wait_ns, "tries": due.tries + 1, "error": error[:500],
        }  # fmt: skip
        with self._store.writing() as connection:
            newest = select(t.alert.c.revision).where(t.alert.c.uid == due.alert)
            if due.revision is not None and (connection.execute(newest).scalar() or 0) > due.revision:
                # A newer revision came while this one was being sent: that one is told instead.
                values = {"state": "dropped", "tries": due.tries + 1, "error": OVERTAKEN}
            mine = (t.notification.c.id == due.id) & (t.notification.c.state == "sending")
            connection.execute(update(t.notification).where(mine).values(values))
            self._told(connection, due, now_ns)


def _ready(now_ns: int) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return t.notification.c.state.in_(["waiting", "sending"]), t.notification.c.due_ns <= now_ns
