"""A desk on a hostile network: stations that lie in every field, and people who try what they may not."""

from __future__ import annotations

import copy
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest
from broker_support import Mosquitto, needs_mosquitto, running, wait_for
from desk_process_support import PASSWORD, DeskProcess, csrf, payload
from desk_support import START_NS, alert, event
from fuzz_support import spoilt
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion
from test_formats import state

from agent.health.report import Health, HealthInputs, Identity
from agent.types import NS, StationId
from desk.call.link import Claim, Links
from desk.receive import LARGEST

pytestmark = needs_mosquitto

EACH = 1000
"""Hostile payloads of a kind."""
HERE, THERE = "talus/v1/XX/EVIL", "talus/v1/XX/GOOD"
MARK = "<script>alert(1)</script>"
TEXTS = (
    MARK, "<img src=x onerror=alert(2)>", "\"><svg/onload=alert(3)>", "javascript:alert(4)", "{{7*7}}", "${7*7}",
    "'; DROP TABLE event; --", "../../../../etc/passwd", "..\\..\\boot.ini", "/etc/passwd", "file:///etc/passwd",
    "\x00", "a\x00b", "\x1b[2J", "\r\nset-cookie: a=b", "\u202egnp.exe", "\u2028", "%s%n", "x" * 100_000, "", " ",
    "XX.GOOD.00.HH", "XX.GOOD.00.HH-20260301T000000.000Z", "https://evil.example/x", "\ufeff", "😀" * 40,
)  # fmt: skip
TIMES = (
    "9999-12-31T23:59:59.999999999Z", "0000-00-00T00:00:00.000000000Z", "1969-12-31T23:59:59.999999999Z",
    "2026-02-30T25:61:61.000000000Z", "2262-04-12T00:00:00.000000000Z", "2026-03-01T00:00:60.000000000Z", "now", "-1",
)  # fmt: skip
NUMBERS = ("NaN", "Infinity", "-Infinity", "1e999", "-1", "-0.0", "2e308", str(2**53), str(2**63), str(2**200), "0.1")
OTHERS: tuple[Any, ...] = (None, True, [], {}, [[]], {"a": {"b": []}}, [1] * 5000, "1", 1, 1.5)


def sound(kind: str, folder: Path) -> dict[str, Any]:
    """A message as the lying station would send it if it did not lie."""
    if kind == "event":
        body: Any = event(3, sensor="XX.EVIL.00.HH")
    elif kind == "alert":
        body = alert(0, id=event(0, sensor="XX.EVIL.00.HH").id, station="XX.EVIL.00.HH")
    elif kind == "state":
        body = state().model_copy(update={"station": "XX.EVIL"})
    else:
        health = Health(Identity(StationId("XX", "EVIL", "", ""), "0123456789abcdef"), folder)
        body = health.message(1, HealthInputs())
    found: dict[str, Any] = json.loads(payload(body))
    return found


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to everything inside a JSON value."""
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in items:
        found += leaves(part, (*path, name))
    return found


def put(body: Any, path: tuple[Any, ...], value: Any) -> None:
    for name in path[:-1]:
        body = body[name]
    body[path[-1]] = value


def get(body: Any, path: tuple[Any, ...]) -> Any:
    for name in path:
        body = body[name]
    return body


def lie(chance: Random, body: dict[str, Any]) -> dict[str, str]:
    """Change one field of a message. Returns what stands for a number that JSON does not know: the mark, the number."""
    path = chance.choice(leaves(body))
    old, kind = get(body, path), chance.randrange(6)
    if isinstance(old, str) and kind < 4:
        put(body, path, chance.choice(TIMES) if old[4:5] == "-" and kind < 2 else chance.choice(TEXTS))
    elif isinstance(old, (int, float)) and kind < 4:
        put(body, path, "@number@")
        return {"@number@": chance.choice(NUMBERS)}
    elif kind == 4:
        deep: Any = MARK
        for _ in range(chance.choice((3, 60, 250))):
            deep = {"a": deep} if chance.randrange(2) else [deep]
        put(body, path, deep)
    else:
        put(body, path, copy.deepcopy(chance.choice(OTHERS)))
    return {}


def hostile(chance: Random, body: dict[str, Any], number: int) -> bytes:
    """One payload that lies: in one or several fields, or in the text itself."""
    body = json.loads(json.dumps(body))
    if "onset" in body:
        # An identifier of its own, so that what passes the schema is not overtaken by the next.
        body["id"] = f"{body['id'][:-4]}{number % 1000:03d}Z"
    numbers: dict[str, str] = {}
    for _ in range(chance.choice((1, 1, 1, 3))):
        numbers |= lie(chance, body)
    if not chance.randrange(6):
        body[chance.choice((MARK, "__proto__", "\x1b[2J", "", "id "))] = chance.choice(TEXTS[:8])
    text = json.dumps(body, ensure_ascii=bool(chance.randrange(2)))
    for mark, number_ in numbers.items():
        text = text.replace(f'"{mark}"', number_)
    way = chance.randrange(12)
    if way == 0:
        name = chance.choice(list(body))
        text = f"{{{json.dumps(name)}:{json.dumps(chance.choice(TEXTS[:8]))},{text[1:]}"
    elif way == 1:
        text = text.replace('"reason"', '"reason":"\\ud800","reason"', 1)
    elif way == 2:
        return spoilt(chance, text.encode())
    elif way == 3:
        return chance.choice((b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe" * 50, b"0", b'""', b"{}", b"\x00" * 1000))
    return text.encode()


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    with running(tmp_path_factory.mktemp("broker"), "max_queued_messages 0") as found:
        yield found


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, broker: Mosquitto) -> Iterator[DeskProcess]:
    web = {"fdsnws": True, "public_url": "https://desk.example.org"}
    with DeskProcess(tmp_path_factory.mktemp("desk"), broker, web=web) as found:
        found.start()
        for name, role in (("vera", "viewer"), ("omar", "operator"), ("ada", "admin")):
            found.account(name, role)
        yield found


def sender(broker: Mosquitto) -> Client:
    client = Client(CallbackAPIVersion.VERSION2)
    client.max_inflight_messages_set(100)
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    return client


def test_no_lie_of_a_station_breaks_a_page_or_another_station(
    tmp_path: Path, broker: Mosquitto, served: DeskProcess
) -> None:
    chance, client = Random(15), sender(broker)
    good = [event(3, onset_ns=START_NS + n * NS, sensor="XX.GOOD.00.HH") for n in range(20)]
    for kind in ("event", "alert", "state", "health"):
        body = sound(kind, tmp_path)
        for number in range(EACH):
            client.publish(f"{HERE}/{kind}", hostile(chance, body, number), 1)
    for number in range(EACH):
        text = chance.choice(TEXTS).encode()
        word = spoilt(chance, b"online") if number % 2 else text
        client.publish(f"{HERE}/availability", word, 1)
        level = "".join(c for c in chance.choice(TEXTS) if c.isprintable() and c not in "+#/")[:200]
        client.publish(
            f"talus/v1/{level or 'x'}/{chance.choice(('EVIL', '..', MARK.replace('/', '')))}/availability", b"online", 1
        )
    for number, message in enumerate(good):
        client.publish(
            f"{HERE}/event", payload(event(4 + number, onset_ns=START_NS + number * NS, sensor="XX.GOOD.00.HH")), 1
        )
        client.publish(f"{THERE}/event", payload(message), 1)
    for size in (LARGEST - 1000, LARGEST + 1000, 10_000_000):
        client.publish(f"{HERE}/event", b'{"schema":"' + b"x" * size + b'"}', 1).wait_for_publish(60)
    client.publish(f"{THERE}/availability", b"online", 1).wait_for_publish(60)
    page = served.client("ada")
    wait_for(
        lambda: any(s["code"] == "XX.GOOD" for s in page.get("/api/v1/stations").json()["stations"]),
        what="the last message",
    )
    assert served.is_up(), httpx.get(f"{served.address}/healthz", timeout=60).text
    rows = page.get("/api/v1/events?station=XX.GOOD&limit=1000").json()["events"]
    assert {(row["id"], row["revision"]) for row in rows} == {(message.id, 3) for message in good}
    codes = {row["code"] for row in page.get("/api/v1/stations").json()["stations"]}
    assert codes <= {"XX.GOOD", "XX.EVIL"} | {code for code in codes if re.fullmatch(r"[A-Z0-9-]{1,8}\.EVIL", code)}

    events = page.get("/api/v1/events?limit=1000").json()["events"]
    evil = [row["id"] for row in events if row["id"].startswith("XX.EVIL")]
    assert evil, "some lies are words that a station may say: they are shown as words"
    paths = ["/", "/events", "/alerts", "/review", "/settings", "/counts", "/day?station=XX.EVIL&date=2026-03-01"]
    for path in [*paths, *(f"/event/{uid}" for uid in chance.sample(evil, min(40, len(evil))))]:
        answer = page.get(path)
        assert answer.status_code == 200, path
        for text in TEXTS[:3]:
            assert text not in answer.text, path
        assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_a_path_in_the_name_of_an_event_leads_to_no_file(served: DeskProcess) -> None:
    page = served.client("vera")
    (served.folder / "state" / "secret.mseed").write_bytes(b"secret")
    for uid in (
        "..%2f..%2fsecret",
        "%2e%2e%2f%2e%2e%2fsecret",
        "%00",
        "XX.EVIL.00.HH-..%2f..%2f..%2fsecretZ",
        "x" * 5000,
    ):
        for name in ("record.mseed", "waveform", "spectrogram.png", ""):
            answer = page.get(f"/api/v1/events/{uid}/{name}".rstrip("/"))
            assert answer.status_code in {307, 400, 404}, (uid, name)
            assert b"secret\n" not in answer.content
        assert page.get(f"/event/{uid}").status_code in {307, 400, 404}, uid
    for path in ("/static/../application.py", "/static/%2e%2e/application.py", "/static/..%2f..%2fsettings.py"):
        assert httpx.get(f"{served.address}{path}", timeout=60).status_code == 404, path


def test_only_a_link_of_this_desk_acknowledges_and_only_in_its_time(broker: Mosquitto, served: DeskProcess) -> None:
    mine = alert(0, id=event(0, onset_ns=START_NS + 7 * NS, sensor="XX.GOOD.00.HH").id, station="XX.GOOD.00.HH")
    client, page = sender(broker), served.client("vera")
    client.publish(f"{THERE}/alert", payload(mine), 1).wait_for_publish(60)

    def row() -> dict[str, Any] | None:
        rows = page.get("/api/v1/alerts?limit=1000").json()["alerts"]
        return next((one for one in rows if one["id"] == mine.id), None)

    wait_for(row, what="the alert")
    links, now_ns = Links.of(served.folder / "state"), time.time_ns()
    token = links.token(Claim(mine.id, "ann", now_ns + 60 * NS))
    body, _, signature = token.partition(".")
    other = links.token(Claim(mine.id, "ann", now_ns + 3600 * NS)).partition(".")[0]
    bad = [
        f"{other}.{signature}", f"{body}.{signature[:-1]}", f"{body}.{'A' * len(signature)}", f"{body}.", body,
        "x", ".", f"{signature}.{body}", Links(b"guess" * 8).token(Claim(mine.id, "ann", now_ns + 60 * NS)),
        links.token(Claim(mine.id, "ann", now_ns - 1)), "%F0%9F%98%80.x", "a" * 20_000, f"{body}.é",
    ]  # fmt: skip
    for one in bad:
        for method in ("GET", "POST"):
            assert httpx.request(method, f"{served.address}/ack/{one}").status_code in {400, 403, 404, 414}, one[:60]
    assert httpx.get(f"{served.address}/ack/{token}", timeout=60).status_code == 200
    assert httpx.head(f"{served.address}/ack/{token}").status_code == 200
    found = row()
    assert found is not None
    assert found["acked_by"] is None, "a program that follows links in messages acknowledges nothing"
    assert httpx.post(f"{served.address}/ack/{token}", timeout=60).status_code == 200
    found = row()
    assert found is not None
    assert found["acked_by"] == "ann"


def test_a_viewer_or_another_site_changes_nothing_over_http(served: DeskProcess) -> None:
    viewer, admin = served.client("vera"), served.client("ada")
    posts: list[tuple[str, dict[str, Any]]] = [
        ("/api/v1/events/reviews", {"events": ["x"], "label": "blast"}),
        (f"/api/v1/alerts/{alert(0).id}/ack", {}),
        ("/api/v1/silences", {"until": "2030-01-01T00:00:00Z", "reason": "x"}),
        ("/settings/silences", {}),
        ("/settings/accounts", {"name": "eve", "role": "admin", "password": PASSWORD}),
        ("/settings/accounts/omar/close", {}),
    ]
    token = csrf(viewer)
    before = admin.get("/settings").text.count("<tr")
    for path, body in posts:
        assert viewer.post(path, json=body, headers=token).status_code == 403, path
        assert viewer.post(path, data=body, headers=token).status_code == 403, path
        assert admin.post(path, json=body).status_code == 403, f"{path}: without the token"
        assert admin.post(path, data={**body, "csrf": token["x-csrf-token"]}).status_code == 403, f"{path}: another's"
        assert httpx.post(f"{served.address}{path}", json=body, headers=token, timeout=60).status_code in {303, 401}, (
            path
        )
    assert admin.get("/settings").text.count("<tr") == before
    cookie = (
        httpx.post(f"{served.address}/login", data={"name": "ada", "password": PASSWORD, "next": "/"}, timeout=60)
        .headers["set-cookie"]
        .lower()
    )
    assert "httponly" in cookie
    assert "samesite=lax" in cookie


def test_passwords_cannot_be_guessed_fast_and_the_owner_is_told_how_long_to_wait(served: DeskProcess) -> None:
    served.account("gus", "operator")

    def log_in(password: str) -> httpx.Response:
        form = {"name": "gus", "password": password, "next": "/"}
        return httpx.post(f"{served.address}/login", data=form, timeout=60)

    answers = [log_in(f"guess {n}") for n in range(6)]
    assert all(answer.status_code in {200, 401, 403, 429} for answer in answers)
    assert "wait" in answers[-1].text
    assert "wait" in log_in(PASSWORD).text, "the right password neither, or guesses would go on"
    assert "set-cookie" not in log_in(PASSWORD).headers


def test_behind_a_proxy_each_address_has_its_own_count_and_no_client_chooses_one(
    tmp_path: Path, broker: Mosquitto
) -> None:
    with DeskProcess(tmp_path, broker, session="behind-a-proxy", web={"behind_proxy": True}) as found:
        found.start()
        found.account("gus", "operator")

        def log_in(password: str, *forwarded: str) -> str:
            form = {"name": "gus", "password": password, "next": "/"}
            headers = {"x-forwarded-for": ", ".join(forwarded), "x-forwarded-proto": "https"}
            answer = httpx.post(f"{found.address}/login", data=form, headers=headers, timeout=60)
            return "in" if answer.status_code == 303 else "wait" if "wait" in answer.text else "wrong"

        # What the client itself says stands before what the proxy has added.
        said = [log_in(f"guess {n}", f"192.0.2.{n}", "198.51.100.9") for n in range(6)]
        assert said == ["wrong"] * 5 + ["wait"]
        assert log_in(PASSWORD, "198.51.100.9") == "wait"
        assert log_in(PASSWORD, "203.0.113.5") == "in"
