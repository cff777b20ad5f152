"""Who is called, when, and until somebody has answered: nothing is lost, and nobody is told the same thing twice."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from broker_support import wait_for
from desk_support import START_NS, alert, event
from sqlalchemy import select
from starlette.testclient import TestClient

from agent.errors import DataError, DeliveryError
from agent.types import NS
from desk.call.calls import Calls, Words, text_of
from desk.call.heartbeat import Heartbeat
from desk.call.link import Claim, Links
from desk.call.sender import LEASE_NS, AppriseWay, CallSender, Note
from desk.call.targets import Target, schedule
from desk.call.watch import FaultDelays, StationWatch, called_for
from desk.store import answers, queries, tables
from desk.store.store import Arrival, Store
from desk.web.application import application
from desk.web.live import Live

MINUTE = 60 * NS
ANN, BEN = Target("ann", "json://ann", 300), Target("ben", "json://ben", 300, least="severe")
CHIEF = Target("chief", "json://chief", least="extreme")


@dataclass
class Given:
    """A way out that a test controls: what was given to it, and whether it takes anything."""

    broken: bool = False
    notes: list[tuple[str, str]] = field(default_factory=list)

    def send(self, target: Target, note: Note) -> None:
        if self.broken:
            raise DeliveryError(f"{target.name}: the service is away")
        self.notes.append((target.name, note.title))


def desk(database: str, *targets: Target, late: bool = False) -> tuple[Store, CallSender, Given]:
    store = Store(database, Calls(targets, late=late).on_alert)
    way = Given()
    return store, CallSender(store, targets, way), way


def told(store: Store, body: object, at_ns: int = START_NS) -> None:
    store.ingest([Arrival("XX.SLP", body, at_ns)])  # type: ignore[arg-type]


def test_the_next_target_is_called_when_nobody_answers_and_not_once_somebody_has(database: str) -> None:
    store, sender, way = desk(database, ANN, BEN, CHIEF)
    told(store, alert(0))
    sender.send_due(START_NS)
    sender.send_due(START_NS + 4 * MINUTE)
    assert way.notes == [("ann", "SEVERE: landslide at XX.SLP")]
    sender.send_due(START_NS + 5 * MINUTE)
    assert [name for name, _ in way.notes] == ["ann", "ben"]
    second = alert(0, onset_ns=START_NS + 3600 * NS)
    told(store, second, START_NS + 3600 * NS)
    sender.send_due(START_NS + 3600 * NS)
    answers.acknowledge(store, answers.Person("ann"), second.id, START_NS + 3601 * NS)
    sender.send_due(START_NS + 7200 * NS)
    assert [name for name, _ in way.notes] == ["ann", "ben", "ann"]


def test_an_escalation_calls_again_although_the_smaller_alert_was_answered(database: str) -> None:
    store, sender, way = desk(database, ANN)
    told(store, alert(0))
    sender.send_due(START_NS)
    answers.acknowledge(store, answers.Person("ann"), alert().id, START_NS + NS)
    told(store, alert(1, "escalate", severity="extreme"), START_NS + 2 * NS)
    sender.send_due(START_NS + 2 * NS)
    assert [title for _, title in way.notes] == ["SEVERE: landslide at XX.SLP", "EXTREME: landslide at XX.SLP"]


def test_a_retraction_tells_those_who_were_called_and_stops_the_rest(database: str) -> None:
    store, sender, way = desk(database, ANN, BEN)
    told(store, alert(0))
    sender.send_due(START_NS)
    told(store, alert(1, "retract"), START_NS + NS)
    sender.send_due(START_NS + 3600 * NS)
    assert way.notes == [("ann", "SEVERE: landslide at XX.SLP"), ("ann", "Retracted: landslide at XX.SLP")]


def test_exercises_and_silenced_stations_call_nobody_but_who_wants_them(database: str) -> None:
    eager = Target("eager", "json://eager", exercises=True)
    store, sender, way = desk(database, ANN, eager)
    told(store, alert(0, exercise=True))
    sender.send_due(START_NS + 3600 * NS)
    assert [name for name, _ in way.notes] == ["eager"]
    quiet = answers.Silence("XX.SLP", "", START_NS + 24 * 3600 * NS, "roadworks")
    answers.silence(store, answers.Person("ann"), quiet, START_NS)
    told(store, alert(0, onset_ns=START_NS + 60 * NS), START_NS + 60 * NS)
    sender.send_due(START_NS + 7200 * NS)
    assert len(way.notes) == 1
    with store.engine.connect() as connection:
        held = connection.execute(select(tables.notification.c.error).where(tables.notification.c.state == "dropped"))
        assert {row.error for row in held} == {"silenced"}


def test_what_a_service_refuses_is_tried_again_until_it_takes_it(database: str) -> None:
    store, sender, way = desk(database, ANN)
    told(store, alert(0))
    way.broken = True
    sender.send_due(START_NS)
    assert sender.tally.last_error == "ann: the service is away"
    way.broken = False
    sender.send_due(START_NS + 10 * NS)
    assert way.notes == []
    sender.send_due(START_NS + MINUTE)
    assert len(way.notes) == 1
    assert sender.tally.last_error is None


def test_a_desk_that_dies_while_sending_sends_again_after_the_lease_and_not_before(database: str) -> None:
    store, sender, way = desk(database, ANN)
    told(store, alert(0))
    assert sender._lease("ann", START_NS) is not None
    again = CallSender(store, [ANN], way)
    again.send_due(START_NS + LEASE_NS - 1)
    assert way.notes == []
    again.send_due(START_NS + LEASE_NS)
    assert len(way.notes) == 1


def test_a_call_that_fails_while_its_alert_grows_is_not_repeated_and_each_link_is_for_what_its_message_says(
    database: str,
) -> None:
    store, _, _ = desk(database, ANN)
    links: list[str | None] = []

    class Failing:
        def send(self, _target: Target, note: Note) -> None:
            links.append(note.link)
            if len(links) == 1:
                told(store, alert(1, "escalate", severity="extreme"), START_NS + NS)
                raise DeliveryError("away")

    sender = CallSender(store, [ANN], Failing(), link=lambda _alert, target, revision: f"{target} {revision}")
    told(store, alert(0))
    for minutes in range(10):
        sender.send_due(START_NS + minutes * MINUTE)
    assert links == ["ann 0", "ann 1"]


def test_what_a_station_says_takes_one_line_of_a_message_and_turns_no_letters_round() -> None:
    reason = "small\r\nhttps://evil.example \u202e txet \x1b[2J"
    lines = text_of(alert(0, reason=reason)).split("\n")
    assert lines[:2] == ["2026-03-01 00:00:00 UTC, XX.SLP.00.HH", "small??https://evil.example ? txet ?[2J"]


def test_an_unknown_severity_is_called_for_like_the_highest() -> None:
    assert [target.name for target, _ in schedule([ANN, CHIEF], "catastrophic", exercise=False)] == ["ann", "chief"]
    assert [target.name for target, _ in schedule([ANN, BEN, CHIEF], "minor", exercise=False)] == ["ann"]


def test_a_station_that_falls_silent_is_told_once_and_again_when_it_is_well(database: str) -> None:
    store, sender, way = desk(database, ANN)
    watch = StationWatch(store, Calls([ANN]), FaultDelays(offline_s=300))
    told(store, "online")
    for minute in range(12):
        watch.look(START_NS + minute * MINUTE)
        sender.send_due(START_NS + minute * MINUTE)
    assert way.notes == [("ann", "XX.SLP is silent")]
    told(store, "online", START_NS + 12 * MINUTE)
    watch.look(START_NS + 12 * MINUTE)
    told(store, "offline", START_NS + 13 * MINUTE)
    watch.look(START_NS + 13 * MINUTE)
    told(store, "online", START_NS + 14 * MINUTE)
    watch.look(START_NS + 14 * MINUTE)
    sender.send_due(START_NS + 15 * MINUTE)
    assert [title for _, title in way.notes] == ["XX.SLP is silent", "XX.SLP is well again"]
    with store.reading() as connection:
        assert all(connection.execute(select(tables.notification.c.text)).scalars()), (
            "services refuse a call without a text"
        )


@pytest.mark.parametrize("imported", [True, False], ids=["from an archive", "without an agent of its own"])
def test_who_has_never_said_how_it_is_cannot_fall_silent(database: str, imported: bool) -> None:
    store, sender, way = desk(database, ANN)
    watch = StationWatch(store, Calls([ANN]), FaultDelays())
    store.ingest([Arrival("XX.SLP", event(0, phase="end"), START_NS, imported=imported)])
    for minute in range(60):
        watch.look(START_NS + minute * MINUTE)
        sender.send_due(START_NS + minute * MINUTE)
    assert way.notes == []


def test_a_link_acknowledges_without_a_login_and_only_its_own_alert(database: str, tmp_path: Path) -> None:
    store, _, _ = desk(database, ANN)
    links = Links.of(tmp_path)
    told(store, alert(0))
    live = Live(store)
    claim = Claim(alert().id, "ann", 2**62)
    drawn = tmp_path / "event.webp"
    drawn.write_bytes(b"RIFF")
    picture = {alert().id: drawn}.get
    with TestClient(application(store, live, links=links, picture=picture)) as client:
        address = f"/ack/{links.token(claim)}"
        assert f'src="{address}/picture"' in client.get(address).text
        assert client.get(f"{address}/picture").content == b"RIFF"
        assert client.get(f"/ack/{links.token(Claim(alert().id, 'ann', 1))}/picture").status_code == 403
        assert client.get(f"/ack/{links.token(Claim('XX.SLP-none', 'ann', 2**62))}/picture").status_code == 404
        assert "it is mine" in client.get(address).text
        with store.engine.connect() as connection:
            assert connection.execute(select(tables.ack)).all() == []
        page = client.post(address).text
        assert "Acknowledged by ann" in page
        assert "days ago" in page
        assert "is next" not in page, "what is shown is how it stands now"
        larger = links.token(Claim(alert().id, "ben", 2**62))
        told(store, alert(1, "escalate", severity="extreme"))
        assert "escalated: extreme" in client.get(f"/ack/{larger}").text
        # The link of the smaller alert, and a page that was opened before: neither acknowledges what came since.
        assert "has changed since the message" in client.get(address).text
        for form in ({}, {"revision": "0"}, {"revision": "x"}):
            answer = client.post(address, data=form)
            assert (answer.status_code, "Not acknowledged" in answer.text) == (409, True), form
        with store.reading() as connection:
            assert queries.alerts(connection)[0].is_open
        shown = re.search(r'name="revision" value="(\d+)"', client.get(address).text)
        assert shown is not None
        assert "Acknowledged by ann" in client.post(address, data={"revision": shown[1]}).text
        told(store, alert(2, "retract"))
        assert "nobody need do anything" in client.get(f"/ack/{larger}").text
        for bad in (f"{links.token(claim)[:-2]}xx", "x.y", Links(b"x" * 32).token(claim), "%2e%2e"):
            assert client.post(f"/ack/{bad}").status_code in {403, 404}, bad
        expired = links.token(Claim(alert().id, "ann", 1))
        assert "too old" in client.post(f"/ack/{expired}").text
    with store.engine.connect() as connection:
        rows = connection.execute(select(tables.ack)).all()
    assert [(row.who, row.how) for row in rows] == [("ann", "link")] * 2


def test_the_secret_of_the_links_outlives_a_restart(tmp_path: Path) -> None:
    token = Links.of(tmp_path).token(Claim("a", "b", 10))
    assert Links.of(tmp_path).claim(token, 5) == Claim("a", "b", 10)
    assert (tmp_path / "link.secret").stat().st_mode & 0o077 == 0
    with pytest.raises(DataError, match="too old"):
        Links.of(tmp_path).claim(token, 11)


@pytest.fixture
def service() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """A web service on the loopback that keeps what it is sent."""
    got: list[tuple[str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append((self.path, self.rfile.read(int(self.headers.get("content-length", 0)))))
            self.send_response(200)
            self.end_headers()

        do_GET = do_POST  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}", got
    server.shutdown()


def test_apprise_reaches_a_real_service_and_a_service_that_is_away_is_an_error(
    service: tuple[str, list[tuple[str, bytes]]],
) -> None:
    address, got = service
    AppriseWay().send(Target("hook", f"json://{address}/talus"), Note("SEVERE", "text", "http://desk/ack/x"))
    body = json.loads(got[0][1])
    assert (body["title"], body["message"]) == ("SEVERE", "text\nhttp://desk/ack/x")
    with pytest.raises(DeliveryError, match=r"hook: .*[Cc]onnection"):
        AppriseWay().send(Target("hook", "json://127.0.0.1:1/talus"), Note("SEVERE", "text"))
    AppriseWay().send(Target("mail", f"json://{address}/talus?format=html"), Note("A", "<img src=x>\n2 < 3"))
    assert "&lt;img" in json.loads(got[1][1])["message"], "what a station says is no markup in a mail"
    with pytest.raises(DeliveryError, match="not understood"):
        AppriseWay().send(Target("hook", "nonsense"), Note("SEVERE", "text"))


def test_a_desk_that_is_not_well_gives_no_sign_of_life(service: tuple[str, list[tuple[str, bytes]]]) -> None:
    address, got = service
    problem: list[str | None] = [None]
    heartbeat = Heartbeat(f"http://{address}/ping", 60, lambda: problem[0])
    assert heartbeat.beat()
    problem[0] = "no connection to the broker"
    assert not heartbeat.beat()
    assert [path for path, _ in got] == ["/ping"]
    assert not Heartbeat("http://127.0.0.1:1/", 60, lambda: None).beat()


def test_an_alert_without_a_target_is_stored_all_the_same(database: str) -> None:
    store, sender, way = desk(database)
    told(store, alert(0))
    told(store, event(0))
    assert sender.send_due(START_NS) == 0
    assert way.notes == []


def test_who_acknowledged_the_smaller_alert_can_acknowledge_the_larger_one_which_stops_the_calls(database: str) -> None:
    store, sender, way = desk(database, ANN, BEN)
    told(store, alert(0))
    sender.send_due(START_NS)
    answers.acknowledge(store, answers.Person("ben"), alert().id, START_NS + NS)
    answers.acknowledge(store, answers.Person("ann"), alert().id, START_NS + NS)
    told(store, alert(1, "escalate", severity="extreme"), START_NS + 2 * NS)
    sender.send_due(START_NS + 2 * NS)
    assert answers.acknowledge(store, answers.Person("ann"), alert().id, START_NS + 3 * NS) is not None
    assert answers.acknowledge(store, answers.Person("ann"), alert().id, START_NS + 4 * NS) is None
    sender.send_due(START_NS + 3600 * NS)
    assert [name for name, _ in way.notes] == ["ann", "ann"]
    with store.reading() as connection:
        (row,) = queries.alerts(connection)
    assert (row.is_open, row.acked_by, row.acked_ns) == (False, "ann", START_NS + 3 * NS)


def test_an_older_revision_that_comes_late_calls_nobody(database: str) -> None:
    store, sender, way = desk(database, ANN)
    told(store, alert(0))
    sender.send_due(START_NS)
    told(store, alert(2, "retract"), START_NS + NS)
    told(store, alert(1, "escalate", severity="extreme"), START_NS + 2 * NS)
    sender.send_due(START_NS + 3600 * NS)
    assert [title for _, title in way.notes] == ["SEVERE: landslide at XX.SLP", "Retracted: landslide at XX.SLP"]


def silence(store: Store, at_ns: int, until_ns: int, label: str = "") -> int:
    return answers.silence(store, answers.Person("ann"), answers.Silence("XX.SLP", label, until_ns, "roadworks"), at_ns)


def test_a_silence_that_begins_while_an_alert_is_open_holds_back_the_next_call(database: str) -> None:
    store, sender, way = desk(database, ANN, BEN)
    told(store, alert(0))
    sender.send_due(START_NS)
    silence(store, START_NS + MINUTE, START_NS + 60 * MINUTE)
    sender.send_due(START_NS + 10 * MINUTE)
    assert [name for name, _ in way.notes] == ["ann"]
    told(store, alert(1, "retract"), START_NS + 11 * MINUTE)
    sender.send_due(START_NS + 11 * MINUTE)
    assert way.notes[1:] == [("ann", "Retracted: landslide at XX.SLP")]


def test_what_is_still_open_when_a_silence_ends_is_called_for_once(database: str) -> None:
    store, sender, way = desk(database, ANN, BEN)
    watch = StationWatch(store, Calls([ANN, BEN]), FaultDelays())
    silence(store, START_NS - NS, START_NS + 60 * MINUTE)
    longer = silence(store, START_NS - NS, START_NS + 80 * MINUTE)
    answered, larger = (alert(0, onset_ns=START_NS + n * MINUTE, severity="extreme") for n in (1, 2))
    for body in (alert(0, onset_ns=START_NS), answered, larger):
        told(store, body, START_NS + 3 * MINUTE)
    answers.acknowledge(store, answers.Person("ben"), answered.id, START_NS + 4 * MINUTE)
    for minute in range(0, 100, 5):
        if minute == 70:
            answers.end_silence(store, answers.Person("ann"), longer, START_NS + 70 * MINUTE)
        watch.look(START_NS + minute * MINUTE)
        sender.send_due(START_NS + minute * MINUTE)
        if minute < 70:
            assert way.notes == []
    called = [(name, title) for name, title in way.notes if "open after a silence" in title]
    assert called == [(name, "EXTREME: landslide at XX.SLP, open after a silence") for name in ("ann", "ben")]
    assert answers.acknowledge(store, answers.Person("ann"), larger.id, START_NS + 100 * MINUTE) is not None


def test_a_trouble_of_a_station_leaves_in_peace_who_wants_worse_alerts_alone(database: str) -> None:
    store, sender, way = desk(database, ANN, BEN, CHIEF)
    watch = StationWatch(store, Calls([ANN, BEN, CHIEF]), FaultDelays(offline_s=60))
    told(store, "offline")
    for minute in range(4):
        watch.look(START_NS + minute * MINUTE)
    sender.send_due(START_NS + 4 * MINUTE)
    assert way.notes == [("ann", "XX.SLP is offline")]
    assert [one.name for one in called_for([CHIEF, BEN])] == ["chief"], "somebody is called"


def test_a_service_that_hangs_or_answers_slowly_holds_up_no_other_and_its_call_stays_due(tmp_path: Path) -> None:
    """Real services: one never answers, one sends a byte now and then, one takes what it is given."""
    taken = threading.Event()
    got: list[bytes] = []
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(self.rfile.read(int(self.headers.get("content-length", 0))))
            self.send_response(200)
            self.end_headers()
            taken.set()

        def log_message(self, *_: object) -> None:
            pass

    def drip(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            while not over.wait(0.5):
                connection.sendall(b"H")

    with contextlib.ExitStack() as stack:
        good = stack.enter_context(HTTPServer(("127.0.0.1", 0), Handler))
        silent, slow = (stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2))
        threading.Thread(target=good.serve_forever, daemon=True).start()
        threading.Thread(target=drip, args=(slow,), daemon=True).start()
        stack.callback(good.shutdown)
        stack.callback(over.set)
        ports = [silent.getsockname()[1], slow.getsockname()[1], good.server_port]
        targets = [Target(f"t{n}", f"json://127.0.0.1:{port}/x", 0.001) for n, port in enumerate(ports)]
        store = Store(f"sqlite:///{tmp_path}/desk.db", Calls(targets).on_alert)
        sender = CallSender(store, targets, AppriseWay())
        told(store, alert(0), time.time_ns())
        sender.start()
        assert taken.wait(100)
        wait_for(lambda: sender.tally.sent == 1)
        wait_for(lambda: "t0" in sender.tally.errors, what="the silent one is a failure")
        over.set()
        wait_for(lambda: "t1" in sender.tally.errors)
        sender.stop()
    with store.reading() as connection:
        states = {row.target: (row.state, row.tries) for row in connection.execute(select(tables.notification))}
    assert len(got) == 1
    assert states["t2"] == ("sent", 1)
    assert {states[name][0] for name in ("t0", "t1")} <= {"waiting", "sending"}


def test_an_acknowledgement_stops_what_has_not_been_sent_although_a_service_is_slow(database: str) -> None:
    class Slow(Given):
        def send(self, target: Target, note: Note) -> None:
            super().send(target, note)
            answers.acknowledge(store, answers.Person("ann"), alert().id, START_NS + NS)

    store, _, _ = desk(database, ANN)
    way = Slow()
    sender = CallSender(store, [ANN], way)
    told(store, alert(0))
    with store.writing() as connection:
        key = connection.execute(select(tables.alert.c.id)).scalar_one()
        Calls([ANN]).plan(connection, Words("later", "a second call", ""), [(ANN, 1e-9)], START_NS, alert_id=key)
    sender.send_due(START_NS + NS)
    assert [title for _, title in way.notes] == ["SEVERE: landslide at XX.SLP"]


def test_a_target_that_fails_is_named_until_it_takes_a_call_whatever_others_take(database: str) -> None:
    class One(Given):
        def send(self, target: Target, note: Note) -> None:
            if target is ANN and self.broken:
                raise RuntimeError("a plug-in's own")
            self.notes.append((target.name, note.title))

    store, _, _ = desk(database, ANN, BEN)
    way = One(broken=True)
    sender = CallSender(store, [ANN, BEN], way)
    told(store, alert(0))
    sender.send_due(START_NS)
    sender.send_due(START_NS + 5 * MINUTE)
    assert way.notes == [("ben", "SEVERE: landslide at XX.SLP")]
    assert sender.tally.last_error == "ann: RuntimeError"
    way.broken = False
    sender.send_due(START_NS + 20 * MINUTE)
    assert sender.tally.last_error is None
