"""The desk's pages and its interface for programs, through the application itself; whoever asks must be allowed to."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from browser_support import serving
from desk_support import START_NS, alert, event, slow_event, verdict
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import select
from starlette.testclient import TestClient
from test_formats import state

from agent.types import NS, format_ns
from desk import accounts
from desk.call.calls import Calls
from desk.call.targets import Target
from desk.pictures.style import COLOURS
from desk.store import answers, queries, tables
from desk.store.store import Arrival, Store
from desk.web import application as application_module
from desk.web import live as live_module
from desk.web import openapi
from desk.web.application import application, asset
from desk.web.guard import safe_target
from desk.web.live import Live
from desk.web.openapi import flat

PASSWORD = "correct horse battery"  # noqa: S105
STATIC = Path(application_module.__file__).parent / "static"
PAGES = (
    "/",
    "/events",
    "/day?station=XX.SLP&date=2026-03-01",
    "/counts?from=2026-03-01",
    "/review",
    "/alerts",
    "/settings",
)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, TestClient]]:
    folder: Path = tmp_path_factory.mktemp("desk")
    store = Store(f"sqlite:///{folder}/desk.db")
    for name, role in (("vera", "viewer"), ("omar", "operator"), ("ada", "admin")):
        accounts.add_account(store, "setup", name, role, PASSWORD, now_ns=1)  # type: ignore[arg-type]
    bodies: list[Any] = [event(n) for n in range(4)]
    bodies += [event(3, onset_ns=START_NS + 60 * NS, classification=verdict("blast", 0.5)), alert(0), "online"]
    store.ingest([Arrival("XX.SLP", body, START_NS) for body in bodies])
    live = Live(store)
    with TestClient(application(store, live), base_url="http://desk", follow_redirects=False) as client:
        yield store, client


def logged_in(client: TestClient, name: str) -> dict[str, str]:
    """Headers of a session: its cookie and its token."""
    client.cookies.clear()
    answer = client.post("/login", data={"name": name, "password": PASSWORD, "next": "/"})
    assert answer.status_code == 303, answer.text
    cookie = answer.cookies["talus_desk"]
    client.cookies.clear()
    page = client.get("/", headers={"cookie": f"talus_desk={cookie}"}).text
    token = re.search(r'name="csrf" content="([^"]+)"', page)
    assert token is not None
    return {"cookie": f"talus_desk={cookie}", "x-csrf-token": token[1]}


@pytest.mark.parametrize("path", [*PAGES, f"/event/{event().id}", "/api/v1/stations", "/api/v1/events"])
def test_every_page_asks_for_a_login_and_then_shows(desk: tuple[Store, TestClient], path: str) -> None:
    _, client = desk
    client.cookies.clear()
    assert client.get(path).status_code in {303, 401}
    answer = client.get(path, headers=logged_in(client, "vera"))
    assert answer.status_code == 200
    assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_no_page_holds_a_script_or_a_style_of_its_own_or_asks_another_host(desk: tuple[Store, TestClient]) -> None:
    _, client = desk
    headers = logged_in(client, "ada")
    for path in (*PAGES, f"/event/{event().id}", "/login"):
        text = client.get(path, headers=headers if path != "/login" else None).text
        assert not re.search(r"<script(?![^>]*\bsrc=\"/static/)|\son\w+=|<style|\sstyle=", text), path
        assert not re.search(r"(?:src|href|action)=\"(?:https?:)?//", text), path


def test_no_page_is_kept_by_a_browser_and_what_never_changes_is(desk: tuple[Store, TestClient]) -> None:
    _, client = desk
    headers = logged_in(client, "vera")
    for path in (*PAGES, "/api/v1/alerts", "/login"):
        assert client.get(path, headers=headers).headers["cache-control"] == "no-store", path
    assert "immutable" in client.get(asset("desk.js")).headers["cache-control"]
    assert client.get(asset("desk.js").replace("desk.js", "none.js")).headers["cache-control"] == "no-store"


def test_a_list_reads_on_with_the_cursor_that_it_gave(desk: tuple[Store, TestClient]) -> None:
    _, client = desk
    headers = logged_in(client, "vera")
    first = client.get("/api/v1/events?limit=1", headers=headers).json()
    second = client.get(f"/api/v1/events?limit=1&cursor={first['next']}", headers=headers).json()
    assert [first["events"][0]["class"], second["events"][0]["class"]] == ["blast", "landslide"]
    for query in ("limit=0", "limit=x", "class=whale", "cursor=1;2", "cursor=--5-3", "cursor=²-3", "from=yesterday"):
        assert client.get(f"/api/v1/events?{query}", headers=headers).status_code == 400, query
    for query, number in (("from=2026-03-01&to=2026-03-01", 2), ("to=2026-03-01T00:00:00Z", 0), ("to=2026-02-28", 0)):
        found = client.get(f"/api/v1/events?{query}", headers=headers).json()["events"]
        assert len([one for one in found if one["onset"] < "2026-03-01T00:30"]) == number, query
    beyond = "9" * 20
    for query in (f"cursor={beyond}-1", f"cursor=1-{beyond}", "from=9999-01-01", "to=0001-01-01", "to=9999-01-01"):
        assert client.get(f"/api/v1/events?{query}", headers=headers).status_code == 200, query
    for path, status in (("/day?date=9999-12-31", 400), ("/day?station=XX.NONE", 404), ("/nothing", 404)):
        answer = client.get(path, headers=headers)
        assert answer.status_code == status, path
        assert "Back to the desk" in answer.text


def test_an_operator_tries_whether_a_call_arrives_and_a_viewer_does_not(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path}/desk.db")
    for name, role in (("vera", "viewer"), ("omar", "operator")):
        accounts.add_account(store, "setup", name, role, PASSWORD, now_ns=1)  # type: ignore[arg-type]
    targets = [Target("ann", "json://secret@ann", 300.0), Target("ben", "json://ben")]
    with TestClient(application(store, Live(store), targets=targets), follow_redirects=False) as client:
        for name, status in (("vera", 403), ("omar", 303)):
            headers = logged_in(client, name)
            page = client.get("/settings", headers=headers).text
            assert "ann; after 5 min the next" in page
            assert "secret" not in page
            answer = client.post("/settings/targets/test", data={"name": "ann"}, headers=headers)
            assert answer.status_code == status
        assert client.post("/settings/targets/test", data={"name": "eve"}, headers=headers).status_code == 404
    with store.reading() as connection:
        (row,) = connection.execute(select(tables.notification)).all()
    assert (row.target, row.state, row.text) == ("ann", "waiting", "omar asked for it. Nothing has happened.")


def test_a_slow_event_is_called_so_and_a_drill_leaves_no_station_behind(desk: tuple[Store, TestClient]) -> None:
    store, client = desk
    headers = logged_in(client, "vera")
    slow = slow_event()
    store.ingest([Arrival("XX.SLP", slow, START_NS), Arrival("XX.SIMULATE", "stopped", START_NS)])
    (found,) = client.get("/api/v1/events?class=slow", headers=headers).json()["events"]
    assert (found["id"], found["class"]) == (slow.id, "slow")
    for path, words in (
        ("/events?class=slow", "<option selected>slow</option>"), ("/day?station=XX.SLP&date=2026-03-01", ", 1 slow"),
    ):  # fmt: skip
        assert words in client.get(path, headers=headers).text, path
    assert "<option>slow</option>" in client.get("/settings", headers=logged_in(client, "omar")).text
    page = client.get(f"/event/{slow.id}", headers=headers).text
    assert '<span class="class slow">slow</span>' in page
    assert "judges no slow events" in page
    archived = event(0, phase="end", sensor="XX.OLD.00.HH")
    store.ingest([Arrival("XX.OLD", archived, START_NS, imported=True)])
    now = client.get("/", headers=headers).text
    assert 'data-station="XX.SIMULATE"' not in now
    assert 'data-station="XX.OLD"' not in now
    assert ">2026-03-01 00:00:00</time>" in now[now.index("heard <time") :]
    assert [one["code"] for one in client.get("/api/v1/stations", headers=headers).json()["stations"]] == ["XX.SLP"]
    assert "known from an archive alone" in client.get(f"/event/{archived.id}", headers=headers).text
    assert client.get("/day?station=XX.OLD", headers=headers).status_code == 200
    assert "XX.SLP" in client.get("/day", headers=headers).text


def test_the_classes_and_their_colours_are_the_same_in_the_store_on_the_pages_and_in_pictures() -> None:
    script, sheet = ((STATIC / name).read_text() for name in ("desk.js", "desk.css"))
    (told,) = re.findall(r"export const CLASSES = (\[.*?\]);", script)
    assert tuple(json.loads(told)) == tables.CLASSES == tuple(COLOURS)
    for name, colour in COLOURS.items():
        assert f"--{name}: {colour};" in sheet
        assert re.search(rf"\.class\.{name} {{ background: {colour};", sheet), name


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/v1/events/reviews", {"events": [event().id], "label": "blast"}),
        (f"/api/v1/alerts/{alert().id}/ack", {}),
        ("/api/v1/silences", {"station": "", "label": "", "until": "2030-01-01T00:00:00Z", "reason": "x"}),
        ("/settings/silences", {}),
        ("/settings/accounts", {}),
        ("/settings/accounts/omar/close", {}),
    ],
)
def test_a_viewer_changes_nothing_and_nobody_does_without_the_token(
    desk: tuple[Store, TestClient], path: str, body: dict[str, Any]
) -> None:
    store, client = desk
    viewer, admin = logged_in(client, "vera"), logged_in(client, "ada")
    client.cookies.clear()
    stranger = client.post(path, json=body)
    assert stranger.status_code == 401 or stranger.headers.get("location", "").startswith("/login")
    assert client.post(path, json=body, headers=viewer).status_code == 403
    without = {name: value for name, value in admin.items() if name == "cookie"}
    assert client.post(path, json=body, headers=without).status_code == 403
    assert client.post(path, json=body, headers={**without, "x-csrf-token": viewer["x-csrf-token"]}).status_code == 403
    with store.engine.connect() as connection:
        found = queries.event(connection, event().id)
    assert found is not None
    assert found[0].review is None


def test_an_operator_acknowledges_and_answers_and_the_audit_says_so(desk: tuple[Store, TestClient]) -> None:
    store, client = desk
    headers = logged_in(client, "omar")
    uid = event(onset_ns=START_NS + 60 * NS).id
    answer = client.post("/api/v1/events/reviews", json={"events": [uid], "label": "noise"}, headers=headers)
    assert answer.json() == {"reviewed": 1}
    assert (
        client.post(f"/api/v1/alerts/{alert().id}/ack", json={"note": "on my way"}, headers=headers).status_code == 200
    )
    text = client.get("/settings", headers=headers).text
    assert "acknowledge" in text
    assert "on my way" in text
    assert "omar" in client.get("/alerts", headers=headers).text
    answers.answer(store, answers.Person("omar"), [uid], answers.Answer(None), START_NS)
    for body in ({"events": [], "label": "noise"}, {"events": [uid], "label": "whale"}, {"events": "x"}, [1]):
        assert client.post("/api/v1/events/reviews", json=body, headers=headers).status_code == 400


def test_a_lying_station_writes_no_markup_into_a_page(desk: tuple[Store, TestClient]) -> None:
    store, client = desk
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>'\"{{7*7}}"
    onset_ns = START_NS + 3600 * NS
    body = event(3, onset_ns=onset_ns, classification=None, reason=evil)
    model = {"name": evil, "sha256": "ab" * 32}
    other = event(3, onset_ns=onset_ns + NS, classification=verdict(model=model, backend=evil))
    warning = alert(3, onset_ns=onset_ns, reason=evil, severity="severe")
    store.ingest([Arrival("XX.SLP", one, START_NS) for one in (body, other, warning)])
    headers = logged_in(client, "ada")
    for path in ("/", "/alerts", f"/event/{body.id}", f"/event/{other.id}", "/events"):
        text = client.get(path, headers=headers).text
        assert "<script>alert" not in text, path
        assert "<img src=x" not in text, path
        assert "49" not in re.findall(r"'&#34;(\S+)", text), path


def test_guesses_of_a_password_wait_longer_and_longer(tmp_path: Path) -> None:
    store, attempts = Store(f"sqlite:///{tmp_path}/desk.db"), accounts.Attempts()
    accounts.add_account(store, "setup", "ada", "admin", PASSWORD, now_ns=1)
    limit = accounts.Limit("pair 192.0.2.1 ada")
    waits = []
    for _ in range(accounts.TRIES + 3):
        attempts.failed([limit], 0)
        waits.append(attempts.wait_ns([limit], 0) // NS)
    assert waits == [0, 0, 0, 0, 60, 120, 240, 480]
    assert attempts.wait_ns([limit], accounts.FORGET_NS + 1) == 0
    with pytest.raises(accounts.DataError, match="wait"):
        accounts.log_in(store, attempts, "ada", PASSWORD, "192.0.2.1", now_ns=NS)
    assert accounts.log_in(store, attempts, "ada", PASSWORD, "192.0.2.1", now_ns=481 * NS)


def test_a_stranger_who_guesses_locks_out_himself_and_not_the_operator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accounts, "_is_right", lambda _store, _name, password: password == PASSWORD)  # scrypt is slow
    store, attempts = Store(f"sqlite:///{tmp_path}/desk.db"), accounts.Attempts()
    for name in ("omar", "ada"):
        accounts.add_account(store, "setup", name, "operator", PASSWORD, now_ns=1)

    def log_in(address: str, password: str = PASSWORD, name: str = "omar") -> str:
        try:
            return accounts.log_in(store, attempts, name, password, address, now_ns=NS)
        except accounts.DataError as error:
            return error.message.partition(";")[0]

    wrong, wait = "the name or the password is wrong", "too many wrong passwords"
    assert len(log_in("192.0.2.1")) > 30
    assert [log_in("198.51.100.9", "guess") for _ in range(6)] == [wrong] * 5 + [wait]
    assert len(log_in("203.0.113.5")) > 30, "from an address that nobody has guessed from"
    assert log_in("198.51.100.9") == wait
    # The addresses of one network of IPv6 are one guesser's.
    assert [log_in(f"2001:db8::{n}", "guess") for n in range(6)] == [wrong] * 5 + [wait]
    # Many names from one address, also where the guesser logs in under a name of his own in between.
    said = [(log_in("198.51.100.8", name="ada"), log_in("198.51.100.8", "guess", name=f"n{n}"))[1] for n in range(21)]
    assert said == [wrong] * accounts.ADDRESS_TRIES + [wait]
    assert len(log_in("198.51.100.8", name="ada")) > 30
    # Many addresses: others wait, the operator at the usual address does not.
    assert {log_in(f"10.{n}.0.1", "guess") for n in range(accounts.NAME_TRIES - 10)} == {wrong}
    assert log_in("10.200.0.1") == wait
    assert len(log_in("192.0.2.1")) > 30


def test_guesses_that_come_all_at_once_are_no_more_than_those_that_come_one_by_one(tmp_path: Path) -> None:
    with serving(tmp_path) as found:

        def log_in(number: int) -> str:
            form = {"name": "omar", "password": f"guess {number}", "next": "/"}
            return httpx.post(f"{found.address}/login", data=form, timeout=100).text

        with ThreadPoolExecutor(20) as pool:
            texts = list(pool.map(log_in, range(20)))
    looked_at = [text for text in texts if "the name or the password is wrong" in text]
    assert len(looked_at) == accounts.TRIES
    assert all("wait" in text for text in texts if text not in looked_at)


def test_a_session_ends_with_its_time_its_account_and_its_password(tmp_path: Path) -> None:
    store, attempts = Store(f"sqlite:///{tmp_path}/desk.db"), accounts.Attempts()

    def alive(token: str, now_ns: int) -> bool:
        with store.engine.connect() as connection:
            return accounts.user_of(connection, token, now_ns) is not None

    accounts.add_account(store, "setup", "ada", "admin", PASSWORD, now_ns=1)
    accounts.add_account(store, "setup", "omar", "operator", PASSWORD, now_ns=1)
    token = accounts.log_in(store, attempts, "omar", PASSWORD, "", now_ns=1)
    assert alive(token, 2)
    assert not alive(token, accounts.SESSION_NS + 2)
    accounts.add_account(store, "ada", "omar", "operator", "another long password", now_ns=3)
    assert not alive(token, 4)
    token = accounts.log_in(store, attempts, "omar", "another long password", "", now_ns=5)
    accounts.disable_account(store, "ada", "omar", now_ns=6)
    assert not alive(token, 7)
    with pytest.raises(accounts.DataError, match="wrong"):
        accounts.log_in(store, attempts, "omar", "another long password", "", now_ns=8)
    with pytest.raises(accounts.DataError, match="last admin"):
        accounts.disable_account(store, "ada", "ada", now_ns=9)


def test_whoever_knows_the_old_password_changes_it_and_the_other_sessions_end(tmp_path: Path) -> None:
    store, new = Store(f"sqlite:///{tmp_path}/desk.db"), " blanks at both ends "
    accounts.add_account(store, "setup", "vera", "viewer", PASSWORD, now_ns=1)
    with TestClient(application(store, Live(store)), base_url="http://desk", follow_redirects=False) as client:
        mine, other = logged_in(client, "vera"), logged_in(client, "vera")

        def change(old: str, first: str, again: str) -> tuple[int, str]:
            answer = client.post("/settings/password", data={"old": old, "new": first, "again": again}, headers=mine)
            return answer.status_code, answer.text

        for words, given in (
            ("old password is wrong", ("guess", new, new)),
            ("differ", (PASSWORD, new, f"{new}.")),
            ("too short", (PASSWORD, "short", "short")),
            ("too long", (PASSWORD, "x" * 1001, "x" * 1001)),
        ):
            status, text = change(*given)
            assert (status, words in text) == (400, True), words
        without = {"cookie": mine["cookie"]}
        form = {"old": PASSWORD, "new": new, "again": new}
        assert client.post("/settings/password", data=form, headers=without).status_code == 403, "without the token"
        assert client.get("/", headers=other).status_code == 200, "nothing has changed so far"
        assert change(PASSWORD, new, new)[0] == 303
        assert "Changed. Other sessions" in client.get("/settings?password=changed", headers=mine).text
        assert client.get("/", headers=other).status_code == 303
        for password, status in ((PASSWORD, 403), (new, 303)):
            form = {"name": "vera", "password": password, "next": "/"}
            assert client.post("/login", data=form).status_code == status
        for _ in range(accounts.TRIES):
            change("guess", new, new)
        assert "too many wrong passwords" in change(new, PASSWORD, PASSWORD)[1], "a stolen session guesses no faster"


def test_the_last_admin_stays_one_and_a_password_is_what_was_typed(tmp_path: Path) -> None:
    store, typed = Store(f"sqlite:///{tmp_path}/desk.db"), "  two blanks before "
    accounts.add_account(store, "setup", "ada", "admin", PASSWORD, now_ns=1)
    with TestClient(application(store, Live(store)), base_url="http://desk", follow_redirects=False) as client:
        headers = logged_in(client, "ada")
        form = {"name": "ada", "role": "viewer", "password": PASSWORD}
        assert "last admin" in client.post("/settings/accounts", data=form, headers=headers).text
        form = {"name": "eve", "role": "viewer", "password": typed}
        assert client.post("/settings/accounts", data=form, headers=headers).status_code == 303
        assert client.post("/login", data={"name": "eve", "password": typed}).status_code == 303
        foreign = {"sec-fetch-site": "cross-site"}
        assert client.post("/login", data={"name": "eve", "password": typed}, headers=foreign).status_code == 403


@pytest.mark.parametrize(
    "text", ["//evil.example", "https://evil.example", "/\\evil.example", "javascript:1", "/a\n/b"]
)
def test_a_login_leads_nowhere_but_to_this_desk(text: str) -> None:
    assert safe_target(text) == "/"
    assert safe_target("/event/x?a=1") == "/event/x?a=1"


def test_large_requests_are_refused_before_they_are_read(desk: tuple[Store, TestClient]) -> None:
    _, client = desk
    assert client.post("/login", content=b"x" * 300_000).status_code == 413
    # In chunks, whose number nobody tells beforehand.
    kind = {"content-type": "application/x-www-form-urlencoded"}
    given = 0

    def chunks() -> Iterator[bytes]:
        nonlocal given
        for _ in range(1000):
            given += 10_000
            yield b"x" * 10_000

    answer = client.post("/login", content=chunks(), headers=kind)
    assert answer.status_code == 413
    assert client.post("/login", content=iter([b"name=a&password=b"]), headers=kind).status_code == 403


def test_health_of_the_desk_needs_no_login_and_names_the_problem(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path}/desk.db")
    problem: dict[str, Any] = {"problem": None}
    with TestClient(application(store, Live(store), describe=lambda: problem)) as client:
        assert client.get("/healthz").status_code == 200
        problem["problem"] = "no connection to the broker: mqtts://secret.example.org refused"
        answer = client.get("/healthz")
    assert (answer.status_code, answer.text) == (503, "no connection to the broker")


def test_time_to_acknowledge_is_that_of_the_desks_own_clock(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path}/desk.db")
    received = time.time_ns()
    store.ingest([Arrival("XX.SLP", alert(0), received)])
    answers.acknowledge(store, answers.Person("ann"), alert().id, received + 90 * NS)
    with store.engine.connect() as connection:
        (row,) = queries.alerts(connection)
    assert row.acked_ns is not None
    assert row.acked_ns - row.raised_ns == 90 * NS


def test_an_escalation_is_acknowledged_by_whoever_has_seen_it_and_its_time_is_its_own(tmp_path: Path) -> None:
    store, minute_ns = Store(f"sqlite:///{tmp_path}/desk.db", Calls([]).on_alert), 60 * NS
    accounts.add_account(store, "setup", "omar", "operator", PASSWORD, now_ns=1)
    now_ns = time.time_ns()
    store.ingest([Arrival("XX.SLP", alert(0), now_ns - 60 * minute_ns)])
    answers.acknowledge(store, answers.Person("ann"), alert().id, now_ns - 50 * minute_ns)
    store.ingest([Arrival("XX.SLP", alert(1, "escalate", severity="extreme"), now_ns - 3 * minute_ns)])
    with TestClient(application(store, Live(store)), base_url="http://desk", follow_redirects=False) as client:
        headers = logged_in(client, "omar")
        for page in ("/", "/alerts"):
            assert 'data-revision="1"' in client.get(page, headers=headers).text
        said = [
            client.post(f"/api/v1/alerts/{alert().id}/ack", json={"revision": seen}, headers=headers).status_code
            for seen in (0, "1", 1)
        ]
        assert said == [409, 400, 200]
        store.ingest([Arrival("XX.SLP", alert(2, "retract"), time.time_ns())])
        row = client.get("/api/v1/alerts", headers=headers).json()["alerts"][0]
    assert (row["acked_by"], 170 < row["waited_s"] < 1000) == ("omar", True)


def test_the_description_of_the_interface_has_every_route_and_what_each_takes(desk: tuple[Store, TestClient]) -> None:
    _, client = desk
    client.cookies.clear()
    told = client.get("/api/v1/openapi.json").json()
    app: Any = client.app
    served = {
        (re.sub(r":\w+}", "}", path), method.lower())
        for path, route in flat(app.routes)
        if path.startswith("/api/v1")
        for method in route.methods - {"HEAD"}
    }
    assert {(path, method) for path, operations in told["paths"].items() for method in operations} == served
    assert len(served) >= 13
    for path, operations in told["paths"].items():
        for method, operation in operations.items():
            assert operation["summary"], path
            in_path = {one["name"] for one in operation["parameters"] if one["in"] == "path"}
            assert in_path == set(re.findall(r"{(\w+)}", path)), path
            assert ("security" in operation) == (path != "/api/v1/openapi.json"), path
            assert ("requestBody" in operation) == (method == "post"), path
    source = "".join(path.read_text() for path in Path(openapi.__file__).parent.glob("*.py"))
    asked = set(re.findall(r'query_params\.get\("(\w+)"', source)) - {"station", "date", "next", "password"}
    described = {one["name"] for ops in told["paths"].values() for op in ops.values() for one in op["parameters"]}
    assert asked <= described, "a parameter that is read and not described"


def test_a_stream_ends_after_a_while_so_that_a_closed_account_sees_no_more(
    desk: tuple[Store, TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, client = desk
    accounts.add_account(store, "ada", "gone", "viewer", PASSWORD, now_ns=1)
    headers = logged_in(client, "gone")
    monkeypatch.setattr(live_module, "LASTS_S", 0.0)
    assert "event: hello" in client.get("/api/v1/stream", headers=headers).text
    accounts.disable_account(store, "ada", "gone", now_ns=2)
    assert client.get("/api/v1/stream", headers=headers).status_code == 401


def test_what_the_description_says_of_a_body_is_what_is_taken(desk: tuple[Store, TestClient]) -> None:
    _, client = desk
    headers = logged_in(client, "omar")
    told = client.get("/api/v1/openapi.json").json()["paths"]
    until = format_ns(time.time_ns() + 3600 * NS)
    examples: dict[str, dict[str, Any]] = {
        "/api/v1/alerts/{uid}/ack": {"note": "seen", "revision": 0},
        "/api/v1/events/reviews": {"events": [event().id], "label": "blast", "sure": False, "note": "x"},
        "/api/v1/silences": {"station": "XX.NONE", "label": "", "until": until, "reason": "test"},
    }
    assert {path for path, operations in told.items() if "post" in operations} == set(examples)
    for path, body in examples.items():
        schema = told[path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        jsonschema.validate(body, schema)
        assert set(body) == set(schema["properties"])
        address = path.replace("{uid}", alert().id)
        assert client.post(address, json=body, headers=headers).status_code == 200, path
        for name in schema["required"]:
            less = {key: value for key, value in body.items() if key != name}
            assert client.post(address, json=less, headers=headers).status_code == 400, (path, name)


def test_prometheus_reads_the_figures_where_they_are_offered_and_nowhere_else(
    tmp_path: Path, desk: tuple[Store, TestClient]
) -> None:
    _, closed = desk
    assert closed.get("/metrics").status_code == 404
    store = Store(f"sqlite:///{tmp_path}/desk.db")
    now_ns = time.time_ns()
    store.ingest([Arrival("XX.SLP", body, now_ns) for body in (event(3, onset_ns=now_ns), alert(0), "online")])
    with TestClient(application(store, Live(store), metrics=True)) as client:
        text = client.get("/metrics").text
    found = {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert found["talus_desk_events_day", ("landslide",)] == 1
    assert found["talus_desk_alerts_open", ()] == 1
    assert found["talus_desk_station_status", ("XX.SLP", "unknown")] == 1
    assert found["process_resident_memory_bytes", ()] > 1e6


@pytest.mark.parametrize("usual", [False, True])
def test_exercises_are_counted_and_reviewed_apart_where_they_are_asked_for_and_the_page_says_so(
    tmp_path: Path, usual: bool
) -> None:
    store = Store(f"sqlite:///{tmp_path}/desk.db")
    accounts.add_account(store, "setup", "vera", "viewer", PASSWORD, now_ns=1)
    drills = [event(3, onset_ns=START_NS + n * 1801 * NS, exercise=True) for n in range(3)]
    real = event(3, onset_ns=START_NS + 5 * NS)
    store.ingest([Arrival("XX.SLP", one, START_NS) for one in (real, *drills)])
    hour = START_NS // (3600 * NS)
    app = application(store, Live(store), exercises=usual)
    with TestClient(app, base_url="http://desk", follow_redirects=False) as client:
        headers = logged_in(client, "vera")
        for asked, included in (("", usual), ("&exercise=0", False), ("&exercise=1", True)):
            query = f"?from=2026-03-01&to=2026-03-02{asked}"
            found = client.get(f"/api/v1/counts{query}&hours=1&sensor=XX.SLP.00.HH", headers=headers).json()
            whole = client.get(f"/api/v1/counts{query}&hours=24", headers=headers).json()
            wanted = [[hour, "landslide", 3], [hour + 1, "landslide", 1]] if included else [[hour, "landslide", 1]]
            assert (found["counts"], found["exercises"]) == (wanted, included), asked
            assert whole["counts"] == [[hour, "landslide", 4 if included else 1]], asked
            page = client.get(f"/counts{query}", headers=headers).text
            assert ("EXERCISE: exercises are counted" in page, "not counted" in page) == (included, not included)
            queue = client.get(f"/review?{asked}", headers=headers).text
            assert ("EXERCISE" in queue, drills[0].id in queue, real.id in queue) == (included, included, not included)


@pytest.mark.parametrize("tiles", [None, "https://tile.example.org:8443/{z}/{x}/{y}.png?key=1"])
def test_only_the_host_of_configured_tiles_may_be_asked_for_pictures(tmp_path: Path, tiles: str | None) -> None:
    store = Store(f"sqlite:///{tmp_path}/desk.db")
    accounts.add_account(store, "setup", "vera", "viewer", PASSWORD, now_ns=1)
    told = state().model_copy(update={"station": "XX.SLP"})
    store.ingest([Arrival("XX.SLP", told, START_NS)])
    with TestClient(
        application(store, Live(store), tiles=tiles), base_url="http://desk", follow_redirects=False
    ) as client:
        answer = client.get("/", headers=logged_in(client, "vera"))
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert policy["img-src"] == ("'self' data:" if tiles is None else "'self' https://tile.example.org:8443 data:")
    assert ("data-tiles" in answer.text) == (tiles is not None)
    assert "XX.SLP" in answer.text.split('id="sketch"')[1]
