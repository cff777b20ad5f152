"""What people answer: acknowledgements, reviews, silences. Each is one transaction, with its line in the audit."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, insert, select, update

from agent.errors import DataError
from agent.types import LABELS, NS, SLOW
from desk.store import tables as t
from desk.store.store import Act, Change, Store, audit, note_changes

LONGEST_SILENCE_NS = 31 * 86_400 * NS
SILENCED = "silenced"
"""Why a notification was dropped that a silence held back; """
LATE = "late"
"""one about data that were old when they came."""


@dataclass(frozen=True, slots=True)
class Person:
    """Who answers, and from which address; ``how`` is ``page`` or ``link``."""

    name: str
    address: str = ""
    how: str = "page"


class OutdatedError(DataError):
    """The alert has changed since the person saw it."""


def acknowledge(
    store: Store, person: Person, alert_uid: str, when_ns: int, note: str = "", *, seen: int | None = None
) -> Change | None:
    """Record that a person has seen an alert. Every acknowledgement is kept; the first one stops the escalation.

    An escalation needs an answer of its own, also of who has acknowledged the smaller alert. ``seen`` is the revision
    that the person saw; None for whatever stands. Returns None where the same person has acknowledged it already as it
    stands.

    Raises:
        OutdatedError: there is a newer revision than the one that was seen; nothing is acknowledged.
        DataError: there is no such alert.
    """
    a = t.alert.c
    with store.writing() as connection:
        row = connection.execute(select(a.id, a.acked_ns, a.revision).where(a.uid == alert_uid)).first()
        if row is None:
            raise DataError(f"there is no alert {alert_uid}", "it may have been deleted since; reload the page")
        if seen is not None and row.revision > seen:
            raise OutdatedError("the alert has changed since you saw it", "look at it as it is now")
        mine = select(t.ack.c.id).where(t.ack.c.alert_id == row.id, t.ack.c.who == person.name)
        if row.acked_ns is not None and not note and connection.execute(mine).first() is not None:
            return None
        values = {"alert_id": row.id, "who": person.name, "when_ns": when_ns, "how": person.how, "note": note}
        connection.execute(insert(t.ack).values(values))
        if row.acked_ns is None:
            connection.execute(update(t.alert).where(t.alert.c.id == row.id).values(acked_ns=when_ns))
        n = t.notification.c
        waiting = (n.alert_id == row.id) & n.state.in_(["waiting", "sending"])
        connection.execute(update(t.notification).where(waiting).values(state="dropped", error="acknowledged"))
        audit(connection, Act(person.name, "acknowledge", alert_uid, note, person.address), when_ns)
        return note_changes(connection, [("ack", alert_uid)], when_ns)[0]


@dataclass(frozen=True, slots=True)
class Answer:
    """What someone says that an event was: a label, or None to take the earlier answer back or only leave a note."""

    label: str | None
    sure: bool = True
    note: str = ""


def answer(store: Store, person: Person, event_uids: list[str], said: Answer, when_ns: int) -> list[Change]:
    """Record a person's answer to one or many events; the newest answer with a label stands.

    Raises:
        DataError: an event or the label is not known; nothing is recorded then.
    """
    if said.label is not None and said.label not in LABELS:
        raise DataError(f"{said.label!r} is no label", f"one of {', '.join(LABELS)}")
    number = None if said.label is None else LABELS.index(said.label)
    with store.writing() as connection:
        changes = []
        for uid in event_uids:
            row = connection.execute(select(t.event.c.id).where(t.event.c.uid == uid)).first()
            if row is None:
                raise DataError(f"there is no event {uid}", "reload the page")
            values = {"event_id": row.id, "who": person.name, "when_ns": when_ns, "label": number, "sure": said.sure}
            connection.execute(insert(t.review).values({**values, "note": said.note}))
            if number is not None or not said.note:
                _settle_class(connection, row.id)
            detail = said.label or said.note or "taken back"
            audit(connection, Act(person.name, "review", uid, detail, person.address), when_ns)
            changes.append(("review", uid))
        return note_changes(connection, changes, when_ns)


def _settle_class(connection: Connection, key: int) -> None:
    """Let the newest standing answer, or else the network's, be the event's class."""
    rows = connection.execute(select(t.review).where(t.review.c.event_id == key).order_by(t.review.c.id)).all()
    by_person: dict[str, int | None] = {}
    for row in rows:
        if row.label is None and row.note:
            continue
        by_person.pop(row.who, None)
        by_person[row.who] = row.label
    standing = [label for label in by_person.values() if label is not None]
    review = standing[-1] if standing else None
    row = connection.execute(select(t.event.c.label, t.event.c.body).where(t.event.c.id == key)).one()
    verdict = row.body.get("classification")
    if verdict is None:
        network = t.SLOW if row.body.get("kind") == SLOW else t.UNCLASSIFIED
    else:
        network = t.UNDECIDED if verdict["abstained"] else row.label
    connection.execute(
        update(t.event).where(t.event.c.id == key).values(
            {"review": review, "class": network if review is None else review}
        )
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Silence:
    """Which notifications are held back, and until when: of a station and a label, each empty for all."""

    station: str
    label: str
    until_ns: int
    reason: str


def silence(store: Store, person: Person, wanted: Silence, when_ns: int) -> int:
    """Hold back notifications until a time; returns the silence's key.

    Raises:
        DataError: no reason, a class that no alert has, or no end within 31 days.
    """
    if wanted.label and wanted.label not in t.ALERTED:
        raise DataError(f"no alert is of the class {wanted.label!r}", f"one of {', '.join(t.ALERTED)}; empty for all")
    if not wanted.reason.strip():
        raise DataError("a silence needs a reason", "say in a few words why")
    if not when_ns < wanted.until_ns <= when_ns + LONGEST_SILENCE_NS:
        raise DataError("a silence ends in the future, within 31 days", "choose an hour")
    with store.writing() as connection:
        values = {"station": wanted.station, "label": wanted.label, "from_ns": when_ns, "until_ns": wanted.until_ns}
        done = connection.execute(insert(t.silence).values({**values, "who": person.name, "reason": wanted.reason}))
        key = int(done.inserted_primary_key[0]) if done.inserted_primary_key else 0
        subject = f"{wanted.station or '*'} {wanted.label or '*'}"
        audit(connection, Act(person.name, "silence", subject, wanted.reason, person.address), when_ns)
        note_changes(connection, [("silence", str(key))], when_ns)
        return key


def end_silence(store: Store, person: Person, key: int, when_ns: int) -> None:
    """End a silence before its time."""
    with store.writing() as connection:
        wanted = (t.silence.c.id == key) & t.silence.c.ended_ns.is_(None)
        if connection.execute(update(t.silence).where(wanted).values(ended_ns=when_ns)).rowcount:
            audit(connection, Act(person.name, "silence ended", str(key), "", person.address), when_ns)
            note_changes(connection, [("silence", str(key))], when_ns)


def is_silenced(connection: Connection, station: str, label: str, now_ns: int) -> bool:
    """Whether notifications of a station's class are held back at a time."""
    s = t.silence.c
    statement = select(s.id).where(
        s.station.in_(["", station]), s.label.in_(["", label]), s.from_ns <= now_ns, s.until_ns > now_ns,
        s.ended_ns.is_(None),
    )  # fmt: skip
    return connection.execute(statement.limit(1)).first() is not None
