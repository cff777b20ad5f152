"""What is to be said to whom: written in the transaction that stores the alert, so that neither is without the other.

An alert is scheduled for every target at once, each later than the one before it; an acknowledgement drops what has not
been sent. A subject and a target stand together once in the table, so nobody is told the same thing twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, select, update
from sqlalchemy.dialects import postgresql, sqlite

from agent.messages.schema import AlertMessage
from agent.messages.text import printable
from agent.types import NS, format_ns, place_of
from desk.call.targets import Target, rank, schedule
from desk.store import tables as t
from desk.store.answers import LATE, SILENCED, Person, is_silenced
from desk.store.store import Act, Store, audit

OVERTAKEN = "overtaken"
"""Why a notification of an earlier revision was dropped."""


@dataclass(frozen=True, slots=True)
class Words:
    """One notification: ``subject`` names what it is about, ``title`` and ``text`` are what is read."""

    subject: str
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Calls:
    """The schedule of notifications. Without targets nothing is called."""

    targets: Sequence[Target]
    late: bool = False
    """Whether alerts on old data call, too."""

    def on_alert(self, connection: Connection, key: int, body: AlertMessage, received_ns: int) -> None:
        """Schedule an alert's revision; see ``Store``'s hook."""
        subject = _subject(body.id, body.revision)
        waiting = (t.notification.c.alert_id == key) & (t.notification.c.state == "waiting")
        connection.execute(update(t.notification).where(waiting).values(state="dropped", error=OVERTAKEN))
        if body.action == "retract":
            told = select(t.notification.c.target).where(
                t.notification.c.alert_id == key, t.notification.c.state.in_(["sent", "sending"])
            )
            names = {row.target for row in connection.execute(told)}
            due = [(target, 0.0) for target in self.targets if target.name in names]
        else:
            # A larger event needs an answer of its own.
            connection.execute(update(t.alert).where(t.alert.c.id == key).values(acked_ns=None))
            due = schedule(self.targets, body.severity, exercise=body.exercise)
        words = Words(subject, title_of(body), text_of(body))
        # Who was woken is told that it was nothing, whatever has been silenced since.
        why = None if body.action == "retract" else self._held_back(connection, body, received_ns)
        self.plan(connection, words, due, received_ns, alert_id=key, held_back=why)

    def on_record(self, connection: Connection, event_uid: str, now_ns: int) -> None:
        """Schedule the picture of an event for those who were called about it before its record was here."""
        a, n = t.alert.c, t.notification.c
        wanted = select(a.id, a.uid, a.label, t.sensor.c.code, a.onset_ns, a.exercise).join(t.sensor)
        for row in connection.execute(wanted.where(a.event_uid == event_uid, a.action != "retract")).all():
            told = select(n.target).where(n.alert_id == row.id, n.state.in_(["sent", "sending"]))
            names = set(connection.execute(told).scalars())
            due = [(target, 0.0) for target in self.targets if target.name in names]
            drill = "EXERCISE " if row.exercise else ""
            title = f"{drill}Picture: {row.label} at {place_of(row.code)}"
            text = f"{_when(row.onset_ns)}, {row.code}"
            self.plan(connection, Words(f"picture {row.uid}", title, text), due, now_ns, alert_id=row.id)

    def on_silences_over(self, connection: Connection, silences: Sequence[Row[Any]], now_ns: int) -> bool:
        """Call for the alerts that silences have held back and that are still open: once for all those of a silence;
        those that another silence still holds back wait for its end. ``silences``: rows of the table, those that ended
        last first. Returns whether anything was scheduled."""
        n, a = t.notification.c, t.alert.c
        first_ns = min(one.from_ns for one in silences)
        held = select(n.alert_id).where(n.error == SILENCED, n.alert_id == a.id, n.made_ns >= first_ns)
        wanted = (
            select(a.id, a.uid, a.onset_ns, a.severity, a.label, a.exercise, t.sensor.c.code)
            .join(t.sensor)
            .where(a.acked_ns.is_(None), a.action != "retract", held.exists())
            .order_by(a.raised_ns.desc())
        )
        left: list[Any] = [
            row
            for row in connection.execute(wanted).all()
            if not is_silenced(connection, place_of(row.code), row.label, now_ns)
        ]
        called = False
        for silence in silences:
            rows, left = _parted(left, silence)
            subject = f"silence {silence.id}"
            if not rows or connection.execute(select(n.id).where(n.subject == subject).limit(1)).first() is not None:
                continue
            worst = max(rows, key=lambda row: (not row.exercise, rank(row.severity)))
            drill = "EXERCISE " if worst.exercise else ""
            title = f"{drill}{worst.severity.upper()}: {worst.label} at {place_of(worst.code)}, open after a silence"
            lines = [f"{_when(row.onset_ns)}, {row.code}: {row.severity}, {row.label}" for row in rows[:5]]
            lines.append(f"{len(rows)} held back by the silence ({silence.reason[:80]}), not acknowledged")
            due = schedule(self.targets, worst.severity, exercise=worst.exercise)
            self.plan(connection, Words(subject, title, "\n".join(lines)), due, now_ns, alert_id=worst.id)
            called = called or bool(due)
        return called

    def _held_back(self, connection: Connection, body: AlertMessage, now_ns: int) -> str | None:
        if is_silenced(connection, place_of(body.station), body.label, now_ns):
            return SILENCED
        if getattr(body, "late", False) and not self.late:
            return LATE
        return None

    def plan(
        self,
        connection: Connection,
        words: Words,
        due: Sequence[tuple[Target, float]],
        now_ns: int,
        *,
        alert_id: int | None = None,
        held_back: str | None = None,
    ) -> None:
        """Write the notifications; ``held_back`` says why none of them is sent."""
        if not due:
            return
        rows = [
            {
                "subject": words.subject,
                "target": target.name,
                "alert_id": alert_id,
                "title": words.title,
                "text": words.text,
                "state": "waiting" if held_back is None else "dropped",
                "due_ns": now_ns + round(after_s * NS),
                "made_ns": now_ns,
                "error": held_back,
            }
            for target, after_s in due
        ]
        dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
        statement = dialect.insert(t.notification)
        connection.execute(statement.on_conflict_do_nothing(index_elements=["subject", "target"]), rows)


def try_call(store: Store, person: Person, target: Target, now_ns: int) -> None:
    """Call one target, to see whether the call arrives."""
    words = Words(f"test {now_ns}", "Test call of the desk", f"{person.name} asked for it. Nothing has happened.")
    with store.writing() as connection:
        Calls([target]).plan(connection, words, [(target, 0.0)], now_ns)
        audit(connection, Act(person.name, "test call", target.name, "", person.address), now_ns)


def _subject(alert: str, revision: int) -> str:
    return f"alert {alert} {revision}"


def revision_of(subject: str) -> int | None:
    """The revision of an alert that a notification tells of; None where it tells of the alert whatever its revision."""
    kind, _, rest = subject.partition(" ")
    return int(rest.rpartition(" ")[2]) if kind == "alert" else None


def _when(onset_ns: int) -> str:
    onset = format_ns(onset_ns)
    return f"{onset[:10]} {onset[11:19]} UTC"


def _parted(alerts: Sequence[Any], silence: Row[Any]) -> tuple[list[Any], list[Any]]:
    """The alerts that a silence holds back, and the others."""
    held: list[Any] = []
    left: list[Any] = []
    for alert in alerts:
        mine = silence.station in ("", place_of(alert.code)) and silence.label in ("", alert.label)
        (held if mine else left).append(alert)
    return held, left


def title_of(body: AlertMessage) -> str:
    """One line, the weight first."""
    place = place_of(body.station)
    drill = "EXERCISE " if body.exercise else ""
    late = "LATE " if getattr(body, "late", False) else ""
    if body.action == "retract":
        return f"{drill}Retracted: {body.label} at {place}"
    rate = "rate of " if body.rate is not None else ""
    return f"{drill}{late}{body.severity.upper()}: {rate}{body.label} at {place}"


def text_of(body: AlertMessage) -> str:
    """What the person who is called needs first."""
    lines = [f"{body.onset[:10]} {body.onset[11:19]} UTC, {body.station}", printable(body.reason)]
    if body.classification is not None:
        verdict = body.classification
        lines.append(f"{verdict.label} {100 * verdict.probability:.0f} % after {verdict.window_s:g} s")
    if body.coincidence is not None:
        lines.append(f"{len(body.coincidence.members)} of {body.coincidence.stations} stations")
    return "\n".join(line for line in lines if line)
