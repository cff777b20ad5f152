"""The desk's outbox: what is due is sent, what fails is tried again, and a kill sends nothing twice within a minute.

Apprise knows how to speak to each service, and forgets what fails. So a notification is leased before it is sent
(``sending``, for a minute), and becomes ``sent`` only when the service has taken it; a desk that dies in between sends
it again when the lease is over.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

from sqlalchemy import or_, select, update

from agent.errors import DeliveryError
from agent.types import NS
from desk.call.targets import Target
from desk.store import tables as t
from desk.store.store import Store
from desk.worker import Worker

LEASE_NS = 60 * NS
TICK_S = 1.0
FIRST_RETRY_NS, LONGEST_RETRY_NS = 15 * NS, 600 * NS
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
        with apprise.LogCapture(level=logging.WARNING) as said:  # type: ignore[no-untyped-call]
            done = sender.notify(body=body, title=note.title, attach=files)
        if not done:
            lines = said.getvalue().strip().splitlines()
            raise DeliveryError(f"{target.name}: {lines[-1][-200:] if lines else 'the service did not take it'}")


@dataclass(slots=True)
class Sent:
    """Since the start."""

    sent: int = 0
    failed: int = 0
    last_error: str | None = None
    """Of a target that still fails."""


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


class CallSender(Worker):
    """Sends what is due, once a second and whenever it is woken."""

    def __init__(
        self,
        store: Store,
        targets: Sequence[Target],
        way: Way,
        *,
        link: Callable[[str, str], str | None] = lambda _alert, _target: None,
        picture: Callable[[str], Path | None] = lambda _event: None,
    ) -> None:
        """``link`` makes the address that acknowledges an alert (its identifier, the target's name); ``picture`` gives
        the image of an event."""
        super().__init__("sender of calls")
        self.tally = Sent()
        self._store, self._way, self._link, self._picture = store, way, link, picture
        self._targets: Mapping[str, Target] = {target.name: target for target in targets}

    def step(self) -> float:
        """See ``Worker``."""
        return 0.0 if self.send_due(time.time_ns()) else TICK_S

    def send_due(self, now_ns: int) -> int:
        """Send the notifications that are due; returns how many were tried."""
        due = self._lease(now_ns)
        for one in due:
            self._send(one, now_ns)
            if self.stopping:
                break
        return len(due)

    def _lease(self, now_ns: int) -> list[_Due]:
        n, a = t.notification.c, t.alert.c
        ready = or_(n.state == "waiting", n.state == "sending") & (n.due_ns <= now_ns)
        with self._store.reading() as connection:
            if connection.execute(select(n.id).where(ready).limit(1)).first() is None:
                return []
        with self._store.writing() as connection:
            statement = (
                select(n.id, n.subject, n.target, n.title, n.text, n.tries, n.made_ns, a.uid, a.event_uid)
                .outerjoin(t.alert, n.alert_id == a.id)
                .where(ready)
                .order_by(n.due_ns)
                .limit(20)
            )
            found = []
            for row in connection.execute(statement).all():
                mine = update(t.notification).where(n.id == row.id, n.due_ns <= now_ns)
                if connection.execute(mine.values(state="sending", due_ns=now_ns + LEASE_NS)).rowcount:
                    found.append(
                        _Due(
                            row.id, row.subject, row.target, row.uid, row.event_uid, row.title, row.text, row.tries,
                            row.made_ns,
                        )
                    )  # fmt: skip
            return found

    def _send(self, due: _Due, now_ns: int) -> None:
        target = self._targets.get(due.target)
        if target is None:
            self._close(due, now_ns, "dropped", "the configuration no longer names this target")
            return
        link = self._link(due.alert, due.target) if due.alert else None
        picture = None
        if due.event:
            try:
                picture = self._picture(due.event)
            except (OSError, ValueError) as error:
                self.throttled.warn(f"no picture of {due.event}: {error}")
        try:
            self._way.send(target, Note(due.title, due.text, link, picture))
        except DeliveryError as error:
            self.tally.failed += 1
            self.tally.last_error = error.message
            self.throttled.warn(f"{due.subject}: {error}", key=due.target)
            self._again(due, error.message, now_ns)
            return
        self.tally.sent += 1
        self.tally.last_error = None
        self._close(due, now_ns, "sent")

    def _close(self, due: _Due, now_ns: int, state: str, error: str | None = None) -> None:
        sent_ns = now_ns if state == "sent" else None
        values = {"state": state, "error": error, "tries": due.tries + 1, "sent_ns": sent_ns}
        with self._store.writing() as connection:
            connection.execute(update(t.notification).where(t.notification.c.id == due.id).values(values))

    def _again(self, due: _Due, error: str, now_ns: int) -> None:
        if now_ns - due.made_ns > GIVEN_UP_NS:
            self._close(due, now_ns, "dropped", f"given up after a day: {error}")
            return
        wait_ns = min(LONGEST_RETRY_NS, FIRST_RETRY_NS << min(due.tries, 10))
        values = {"state": "waiting", "due_ns": now_ns + wait_ns, "tries": due.tries + 1, "error": error[:500]}
        with self._store.writing() as connection:
            mine = (t.notification.c.id == due.id) & (t.notification.c.state == "sending")
            connection.execute(update(t.notification).where(mine).values(values))
