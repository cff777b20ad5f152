"""Stations that stop talking, or say that they are not well: each such time is one trouble, told once when it lasts.

A silence of the station looks like a quiet slope. So the desk looks at every station every few seconds, by its own
clock, and calls when one has been offline, silent or degraded for longer than a while; and again when it is well.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, func, insert, select, update

from agent.types import NS, counted, format_ns
from desk.call.calls import Calls, Words
from desk.call.targets import Target
from desk.store import queries
from desk.store import tables as t
from desk.store.answers import is_silenced
from desk.store.store import Store
from desk.worker import Worker

EVERY_S = 10.0
SEVERITY = "moderate"
"""Of a station that is not well: a slope that is not watched looks quiet."""
SILENCE_OVER_NS = 3600 * NS
"""For so long after its end a silence is looked at for alerts that it leaves open: also by a desk that starts anew."""
FAULTS = ("offline", "silent", "degraded")


@dataclass(frozen=True, slots=True)
class FaultDelays:
    """How long a fault lasts before somebody is called, seconds. A link that drops for a minute wakes nobody."""

    offline_s: float = 300.0
    degraded_s: float = 600.0

    def of(self, kind: str) -> float:
        """For one kind of fault."""
        return self.degraded_s if kind == "degraded" else self.offline_s


class StationWatch(Worker):
    """Looks at every station every ``EVERY_S``."""

    def __init__(
        self, store: Store, calls: Calls, delays: FaultDelays, called: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__("station watch")
        self._store, self._calls, self._delays, self._called = store, calls, delays, called

    def step(self) -> float:
        """See ``Worker``. The broker sends what stations said last before the first look."""
        self.pause(EVERY_S)
        if not self.stopping:
            self.look(time.time_ns())
        return 0.0

    def look(self, now_ns: int) -> None:
        """Open, tell and close troubles as of now, and call for what a silence that has ended leaves open."""
        self._look_at_silences(now_ns)
        with self._store.reading() as connection:
            rows = queries.stations(connection)
            troubles = {
                row.station: row for row in connection.execute(select(t.trouble).where(t.trouble.c.ended_ns.is_(None)))
            }
        for row in rows:
            status = row.status(now_ns)
            known = troubles.get(row.code)
            if status not in FAULTS:
                if known is not None:
                    self._end(row.code, known.id, told=known.told, now_ns=now_ns)
                continue
            if known is None or known.kind != status:
                self._begin(row, status, None if known is None else known.id, now_ns)
            elif not known.told and now_ns - known.since_ns >= self._delays.of(status) * NS:
                self._tell(row, known.id, status, known.since_ns, now_ns)

    def _look_at_silences(self, now_ns: int) -> None:
        s = t.silence.c
        end = func.coalesce(s.ended_ns, s.until_ns)
        with self._store.reading() as connection:
            lately = select(t.silence).where(end <= now_ns, end > now_ns - SILENCE_OVER_NS).order_by(end.desc())
            over = connection.execute(lately).all()
        if over:
            with self._store.writing() as connection:
                called = self._calls.on_silences_over(connection, over, now_ns)
            if called:
                self._called()

    # Another desk over the same database looks at the same stations: each change is made only where the trouble is
    # still as it was read.

    def _begin(self, row: queries.StationRow, status: str, before: int | None, now_ns: int) -> None:
        told = False
        with self._store.writing() as connection:
            still = select(t.trouble.c.id, t.trouble.c.told).where(*_open(row.code))
            found = connection.execute(still).first()
            if (None if found is None else found.id) != before:
                return
            if found is not None:
                # Another fault of the same station goes on from the one before it: who was told is not told again.
                told = found.told
                connection.execute(update(t.trouble).where(t.trouble.c.id == before).values(ended_ns=now_ns))
            values = {
                "station": row.code,
                "kind": status,
                "since_ns": now_ns,
                "text": _reasons(row, status),
                "told": told and status != "degraded",
            }
            connection.execute(insert(t.trouble).values(values))

    def _tell(self, row: queries.StationRow, key: int, status: str, since_ns: int, now_ns: int) -> None:
        minutes = round((now_ns - since_ns) / NS / 60)
        words = Words(
            f"station {row.code} {status} {since_ns}",
            f"{row.code} is {status}",
            f"for {counted(minutes, 'minute')}: {_reasons(row, status)}",
        )
        with self._store.writing() as connection:
            mine = (t.trouble.c.id == key, t.trouble.c.told.is_(False), t.trouble.c.ended_ns.is_(None))
            if not connection.execute(update(t.trouble).where(*mine).values(told=True)).rowcount:
                return
            self._plan(connection, row.code, words, now_ns)
        self._called()

    def _end(self, code: str, key: int, *, told: bool, now_ns: int) -> None:
        with self._store.writing() as connection:
            mine = (t.trouble.c.id == key, t.trouble.c.ended_ns.is_(None))
            if not connection.execute(update(t.trouble).where(*mine).values(ended_ns=now_ns)).rowcount:
                return
            if told:
                words = Words(
                    f"station {code} well {now_ns}", f"{code} is well again", f"at {format_ns(now_ns)[11:19]} UTC"
                )
                self._plan(connection, code, words, now_ns)
        if told:
            self._called()

    def _plan(self, connection: Connection, code: str, words: Words, now_ns: int) -> None:
        why = "silenced" if is_silenced(connection, code, "", now_ns) else None
        due = [(target, 0.0) for target in called_for(self._calls.targets)]
        self._calls.plan(connection, words, due, now_ns, held_back=why)


def called_for(targets: Sequence[Target]) -> Sequence[Target]:
    """Who is told of a station's trouble: those whom a moderate alert calls, or else the first of all."""
    return [one for one in targets if one.wants(SEVERITY, exercise=False)] or targets[:1]


def _open(code: str) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return t.trouble.c.station == code, t.trouble.c.ended_ns.is_(None)


def _reasons(row: queries.StationRow, status: str) -> str:
    if status == "silent":
        return "nothing has been heard of it, although it has not said goodbye"
    if status == "offline":
        return "the broker has lost its connection"
    reasons = (row.health or {}).get("reasons", [])
    return "; ".join(str(one["text"]) for one in reasons)[:500]
