"""The desk's pages in a real browser: pushed, answered by keys and by thumb, and deaf to what a station smuggles in."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import io
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from broker_support import stamp, wait_for
from browser_support import DESKTOP, PHONE, Desk, Visit, chromium, evidence, needs_chromium, serving, visit
from desk_support import START_NS, alert, event, verdict
from PIL import Image
from test_desk_record import record
from test_messages import extremes

from agent.health.report import Health, HealthInputs, Identity
from agent.messages.payloads import envelope_message
from agent.messages.schema import HealthMessage, MinMaxMessage, PositionPart, parse
from agent.types import NS, StationId
from desk.call.sender import CallSender, Note
from desk.call.targets import Target
from desk.store import answers, queries

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = needs_chromium
LIE = "<img src=//evil.example/x onerror=alert(1)><script>alert(2)</script>\"'>{{7*7}}"
SENSOR = StationId("XX", "SLP", "00", "HH")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with serving(tmp_path) as found:
        yield found


def is_clean(seen: Visit, desk: Desk) -> bool:
    """No script failed, nothing was executed that is not the desk's, and no other host was asked."""
    assert seen.errors == []
    assert seen.hosts <= {desk.address.removeprefix("http://")}
    return True


def review_of(desk: Desk, uid: str) -> str | None:
    with desk.store.engine.connect() as connection:
        found = queries.event(connection, uid)
    assert found is not None
    return found[0].review


def test_an_event_its_alert_and_its_end_appear_without_a_reload(desk: Desk, browser: Browser) -> None:
    with visit(browser, desk) as seen:
        seen.page.evaluate("window.stays = 1")
        seen.page.wait_for_selector("#link:text('live')")
        desk.tell(event(0), alert(0))
        row = seen.page.wait_for_selector(f"tr[data-id='{event().id}']")
        assert row is not None
        assert "going on" in row.inner_text()
        seen.page.wait_for_selector("article.alert button.ack")
        wait_for(lambda: seen.page.title() == "(1) Alert · Now · Talus desk")
        desk.tell(event(3, classification=verdict("blast", 0.8)))
        seen.page.wait_for_selector(f"tr[data-id='{event().id}'] .class.blast")
        assert "going on" not in seen.page.inner_text(f"tr[data-id='{event().id}']")
        assert seen.page.locator("#events tr").count() == 1
        assert seen.page.evaluate("window.stays") == 1, "the page was never loaded anew"
        assert is_clean(seen, desk)


def test_keys_answer_undo_and_answer_many_at_once(desk: Desk, browser: Browser) -> None:
    unsure = [
        event(3, onset_ns=START_NS + n * 60 * NS, classification=verdict(probability=0.5 + n / 10)) for n in range(4)
    ]
    desk.tell(*unsure)
    first, second, third, fourth = (one.id for one in unsure)
    with visit(browser, desk) as seen:
        seen.page.goto(f"{desk.address}/review")
        seen.page.wait_for_selector(f"tr.at[data-id='{first}']")
        seen.page.keyboard.press("2")
        seen.page.wait_for_selector(f"tr[data-id='{first}']", state="detached")
        wait_for(lambda: review_of(desk, first) == "blast")
        seen.page.keyboard.press("u")
        seen.page.wait_for_selector(f"tr.at[data-id='{first}']")
        assert review_of(desk, first) is None
        seen.page.keyboard.press("j")
        seen.page.wait_for_selector(f"tr.at[data-id='{second}']")
        seen.page.keyboard.press("k")
        seen.page.keyboard.press("x")
        for _ in range(2):
            seen.page.keyboard.press("j")
        seen.page.keyboard.press("x")
        seen.page.keyboard.press("5")
        seen.page.wait_for_selector(f"tr[data-id='{third}']", state="detached")
        wait_for(lambda: [review_of(desk, o) for o in (first, second, third, fourth)] == ["noise", None, "noise", None])
        # Faster than the desk answers: each key is for the event that is at hand then.
        seen.page.evaluate(
            "for (const key of '14') document.body.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true}))"
        )
        wait_for(lambda: [review_of(desk, fourth), review_of(desk, second)] == ["earthquake", "landslide"])
        seen.errors = [one for one in seen.errors if "404" not in one]  # these events have no record
        assert is_clean(seen, desk)


def test_a_thumb_acknowledges_on_a_phone_and_every_other_page_sees_it(desk: Desk, browser: Browser) -> None:
    desk.tell(event(0), alert(0))
    with visit(browser, desk, PHONE) as phone, visit(browser, desk, DESKTOP) as other:
        button = phone.page.wait_for_selector("button.ack")
        assert button is not None
        box = button.bounding_box()
        assert box is not None
        assert box["height"] >= 44 and box["x"] + box["width"] <= PHONE[0]
        assert phone.page.evaluate("document.documentElement.scrollWidth") <= PHONE[0], "nothing is out of sight"
        other.page.wait_for_selector("#link:text('live')")
        button.tap()
        phone.page.wait_for_selector("#told:text('Acknowledged by omar')")
        other.page.wait_for_selector("#no-alerts:not([hidden])")
        assert [url.rpartition("/")[2] for url in phone.sent] == ["login", "ack"], "one tap is sent once"
        assert is_clean(phone, desk) and is_clean(other, desk)
    with desk.store.engine.connect() as connection:
        (row,) = queries.alerts(connection)
    assert row.acked_by == "omar"


def test_a_page_that_is_come_back_to_tells_the_truth_and_nothing_after_the_session_has_ended(
    desk: Desk, browser: Browser
) -> None:
    desk.tell(event(0), alert(0))
    with visit(browser, desk) as seen:
        seen.page.wait_for_selector("article.alert button.ack")
        seen.page.goto(f"{desk.address}/events")
        answers.acknowledge(desk.store, answers.Person("ben"), alert().id, START_NS + NS)
        seen.page.go_back()
        seen.page.wait_for_selector("#no-alerts:not([hidden])")
        seen.page.click("header form button")
        seen.page.wait_for_selector("form.login")
        seen.page.go_back()
        seen.page.wait_for_selector("form.login")


def test_a_page_goes_on_by_itself_after_its_proxy_has_answered_for_the_desk(desk: Desk, browser: Browser) -> None:
    with visit(browser, desk) as seen:
        seen.page.add_init_script(NO_WORKERS)  # whose requests Playwright does not see; the stream is the same
        seen.page.route("**/api/v1/stream*", lambda route: route.fulfill(status=502))
        seen.page.reload()
        seen.page.evaluate("window.stays = 1")
        seen.page.wait_for_selector("#link.bad")
        seen.page.unroute("**/api/v1/stream*")
        desk.tell(event(0), alert(0))
        seen.page.wait_for_selector("article.alert button.ack")
        seen.page.wait_for_selector("#link:text('live'):not(.bad)")
        assert seen.page.evaluate("window.stays") == 1


NO_WORKERS = "delete globalThis.SharedWorker"
ON_DEMAND = """
{
  const ask = MessagePort.prototype.postMessage;
  MessagePort.prototype.postMessage = function (said) { globalThis.enter = () => ask.call(this, said); };
}
"""
"""A page enters the stream that the tabs share when ``enter`` is called."""


def test_ten_tabs_share_one_stream_and_each_tells_of_an_alert(desk: Desk, browser: Browser) -> None:
    """Over HTTP/1.1 a browser has six connections to a host: a stream in each tab would leave none for the seventh."""
    paths = ("/", "/alerts", "/events", "/review", "/settings", "/counts", "/day", "/", "/alerts", "/events")
    with visit(browser, desk) as seen:
        tabs = [seen.page, *(seen.page.context.new_page() for _ in paths[1:])]
        for tab, path in zip(tabs, paths, strict=True):
            tab.goto(f"{desk.address}{path}")
            tab.wait_for_selector("#link:text('live')")
        assert desk.live.pages == 1
        desk.tell(event(0), alert(0))
        for tab in tabs:
            tab.wait_for_selector("#waiting:text('1 open alert')")
            assert tab.title().startswith("(1) Alert")
        tabs[-1].goto(f"{desk.address}/")
        tabs[-1].wait_for_selector("article.alert button.ack")
        tabs[0].close()
        tabs[-1].click("button.ack")
        for tab in tabs[1:]:
            tab.wait_for_selector("#waiting", state="hidden")
            assert not tab.title().startswith("(")
        assert is_clean(seen, desk)
        for tab in tabs[1:]:
            tab.close()
        wait_for(lambda: desk.live.pages == 0, what="the stream ends with the last tab")


def test_a_tab_that_opens_late_gets_what_came_since_the_desk_drew_it(desk: Desk, browser: Browser) -> None:
    with visit(browser, desk) as seen:
        seen.page.wait_for_selector("#link:text('live')")
        late = seen.page.context.new_page()
        late.add_init_script(ON_DEMAND)
        late.goto(f"{desk.address}/")
        wait_for(lambda: late.evaluate("Boolean(globalThis.enter)"))
        desk.tell(event(0), alert(0))
        seen.page.wait_for_selector("article.alert")
        assert late.locator("article.alert").count() == 0
        late.evaluate("enter()")
        late.wait_for_selector("article.alert button.ack")
        late.wait_for_selector(f"tr[data-id='{event().id}']")


def test_the_gravest_alert_stands_first_and_no_drill_before_an_alert(desk: Desk, browser: Browser) -> None:
    def told(n: int, severity: str, **more: bool) -> None:
        onset_ns = START_NS + n * NS
        desk.tell(
            event(0, onset_ns=onset_ns, **more),
            alert(0, onset_ns=onset_ns, severity=severity, **more),
            at_ns=START_NS + n * NS,
        )

    told(0, "extreme", exercise=True)
    told(1, "severe")
    with visit(browser, desk) as seen:
        seen.page.wait_for_selector("#link:text('live')")
        for n, severity in ((2, "minor"), (3, "extreme"), (4, "severe")):
            told(n, severity)
            seen.page.wait_for_selector(f"[data-alert='{alert(onset_ns=START_NS + n * NS).id}']")
        wanted = ["3", "4", "1", "2", "0"]
        for _ in range(2):
            shown = seen.page.locator("article.alert .ago").evaluate_all("all => all.map((one) => one.dataset.ago)")
            assert [time[18] for time in shown] == wanted
            seen.page.reload()
        assert is_clean(seen, desk)


def test_a_click_meant_for_what_stood_there_before_acknowledges_nothing(desk: Desk, browser: Browser) -> None:
    desk.tell(event(0), alert(0, severity="minor"))
    graver = START_NS + NS
    with visit(browser, desk) as seen:
        seen.page.clock.install()
        seen.page.reload()
        seen.page.wait_for_selector("#link:text('live')")
        seen.page.focus("button.ack")
        button = seen.page.locator("article.alert button.ack").last

        def takes() -> str:
            return str(button.evaluate("(one) => getComputedStyle(one).pointerEvents"))

        assert takes() == "auto"
        desk.tell(event(0, onset_ns=graver), alert(0, onset_ns=graver))
        seen.page.wait_for_selector(f"[data-alert='{alert(onset_ns=graver).id}']")
        assert takes() == "none"
        seen.page.clock.run_for(1000)
        assert takes() == "auto"
        desk.tell(event(1), alert(1, severity="minor"))
        seen.page.wait_for_selector("button[data-revision='1']:focus")
        seen.page.get_by_role("button", name="Acknowledge alert: severe landslide, XX.SLP.00.HH").wait_for()
        assert is_clean(seen, desk)


def test_of_many_stations_those_with_a_problem_are_shown_first(desk: Desk, browser: Browser) -> None:
    for n in range(25):
        code = f"XX.S{n:02d}"
        desk.tell(health(code, "degraded" if n == 7 else "ok"), "online", station=code, at_ns=time.time_ns())
    with visit(browser, desk) as seen:
        page = seen.page
        page.wait_for_selector("#station-count:text('1 degraded, 24 ok')")
        assert page.locator("article.station:visible").count() == 1
        page.wait_for_selector("#link:text('live')")
        desk.tell(health("XX.S20", "degraded"), station="XX.S20", at_ns=time.time_ns())
        page.wait_for_selector("article[data-station='XX.S20']:visible")
        page.click("#station-filter")
        assert page.locator("article.station:visible").count() == 25
        first = page.locator("article.station").evaluate_all(
            "all => all.toSorted((a, b) => a.getBoundingClientRect().y - b.getBoundingClientRect().y)"
            ".slice(0, 3).map((one) => one.dataset.station)"
        )
        assert first == ["XX.S07", "XX.S20", "XX.S00"]
        assert is_clean(seen, desk)


def health(code: str, status: str) -> HealthMessage:
    """The report of a station."""
    found = Health(Identity(StationId("XX", code[3:], "", ""), "0123456789abcdef"), Path()).message(1, HealthInputs())
    return found.model_copy(update={"status": status, "reasons": []})


def test_a_clock_that_differs_from_the_desks_is_told(desk: Desk, browser: Browser) -> None:
    desk.tell(event(3))
    with visit(browser, desk) as seen:
        seen.page.add_init_script("const ours = Date.now; Date.now = () => ours() - 600_000;")
        seen.page.reload()
        seen.page.wait_for_selector("header :text('clock is 10 min behind the desk')")
        assert is_clean(seen, desk)


def test_an_answer_does_not_borrow_the_networks_certainty(desk: Desk, browser: Browser) -> None:
    """Protects from "landslide 90 %" where the network was sure of a blast."""
    unsure = event(3, onset_ns=START_NS + NS, classification=verdict("earthquake", 0.4, abstained=True))
    desk.tell(event(3, classification=verdict("blast", 0.9)), unsure)
    answers.answer(desk.store, answers.Person("ben"), [event().id], answers.Answer("landslide"), START_NS)
    with visit(browser, desk) as seen:
        for uid, head, words in (
            (event().id, "landslide answered", "the network said blast 90 %"),
            (unsure.id, "undecided earthquake 40 % at best", ""),
        ):
            seen.page.goto(f"{desk.address}/event/{uid}")
            assert " ".join(seen.page.inner_text(".event-head h2").split()) == head
            assert words in seen.page.inner_text(".event-head")


def test_what_an_alert_says_stays_in_its_card(desk: Desk, browser: Browser) -> None:
    """Protects who reads two alerts side by side: the words of one do not lie over the other."""
    ahead_ns = time.time_ns() + 7200 * NS
    desk.tell(event(0, onset_ns=ahead_ns), alert(0, onset_ns=ahead_ns))
    with visit(browser, desk) as seen:
        seen.page.wait_for_selector("article.alert .ago:text('ahead')")
        wide = seen.page.evaluate("(e => e.scrollWidth - e.clientWidth)(document.querySelector('article.alert'))")
        assert wide <= 0


def test_no_page_is_wider_than_a_small_phone(desk: Desk, browser: Browser) -> None:
    code, sensor = "ZZ.WWWWWWWW", "ZZ.WWWWWWWW.WWWW.HH"
    onset_ns = START_NS + 60 * NS
    drill = event(3, onset_ns=onset_ns, sensor=sensor, exercise=True)
    desk.tell(health("XX.SLP", "ok"), event(3), alert(3, exercise=True), "online", at_ns=time.time_ns())
    desk.tell(health(code, "degraded"), drill, "online", station=code, at_ns=time.time_ns())
    with visit(browser, desk, PHONE) as seen:
        seen.page.set_viewport_size({"width": 375, "height": 812})
        paths = ("/", "/events", f"/day?station={code}&date=2026-03-01", "/counts", "/review", "/review?exercise=1")
        for path in (*paths, "/alerts", "/settings", f"/event/{event().id}", f"/event/{drill.id}"):
            seen.page.goto(f"{desk.address}{path}")
            seen.page.wait_for_selector("#waiting:visible")
            assert seen.page.evaluate("document.documentElement.scrollWidth") <= 375, path
            head = seen.page.locator("header").first.bounding_box()
            assert head is not None
            assert head["height"] < 90, "two lines of the phone, no more"


def test_without_shared_workers_a_hidden_page_holds_no_connection_and_catches_up(desk: Desk, browser: Browser) -> None:
    hide = "(hidden) => { window.away = hidden; document.dispatchEvent(new Event('visibilitychange')); }"
    with visit(browser, desk) as seen:
        seen.page.add_init_script(
            f"{NO_WORKERS}; Object.defineProperty(document, 'hidden', {{ get: () => Boolean(window.away) }})"
        )
        seen.page.reload()
        seen.page.wait_for_selector("#link:text('live')")
        assert desk.live.pages == 1
        seen.page.evaluate(hide, True)
        wait_for(lambda: desk.live.pages == 0)
        desk.tell(event(0), alert(0))
        seen.page.evaluate(hide, False)
        seen.page.wait_for_selector("article.alert button.ack")
        seen.page.wait_for_selector("#waiting:text('1 open alert')")
        assert is_clean(seen, desk)


class Relay:
    """A way to a server that can stop to carry anything, without a word to either end."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._open = threading.Event()
        self._open.set()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self._open.clear()

    def mend(self) -> None:
        self._open.set()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._server.accept()
                far = socket.create_connection(("127.0.0.1", self._port))
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=pair, daemon=True).start()

    def _carry(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                self._open.wait()
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.mend()
        self._server.close()


def test_a_connection_that_stands_and_brings_nothing_is_told_of_and_made_anew(desk: Desk, browser: Browser) -> None:
    """Protects from "live" over a page that hears nothing: no end of a connection is sent when a router loses power."""
    relay = Relay(int(desk.address.rpartition(":")[2]))
    far = dataclasses.replace(desk, address=f"http://127.0.0.1:{relay.port}")
    with contextlib.closing(relay), visit(browser, far) as seen:
        seen.page.add_init_script(NO_WORKERS)  # in which no time can be skipped
        seen.page.clock.install()
        seen.page.reload()
        seen.page.wait_for_selector("#link:text('live')")
        relay.cut()
        desk.tell(event(0), alert(0))
        seen.page.clock.fast_forward(70_000)
        seen.page.wait_for_selector("#lost:has-text('No connection to the desk since')")
        assert seen.page.locator("article.alert").count() == 0
        relay.mend()
        seen.page.wait_for_selector("article.alert button.ack")
        seen.page.wait_for_selector("#lost", state="hidden")
        assert seen.page.inner_text("#link") == "live"


def test_the_page_of_alerts_follows_without_a_reload(desk: Desk, browser: Browser) -> None:
    with visit(browser, desk) as seen:
        seen.page.goto(f"{desk.address}/alerts")
        seen.page.evaluate("window.stays = 1")
        seen.page.wait_for_selector("#link:text('live')")
        desk.tell(event(0), alert(0))
        button = f"button[data-ack='{alert().id}']"
        seen.page.focus(f"{button}[data-revision='0']")
        desk.tell(event(1), alert(1, "escalate"))
        seen.page.wait_for_selector(f"{button}[data-revision='1']:focus")
        assert "escalated" in seen.page.inner_text("tbody tr")
        answers.acknowledge(desk.store, answers.Person("ben"), alert().id, START_NS + NS)
        desk.live.wake()
        seen.page.wait_for_selector("td:has-text('ben, after')")
        assert "1 acknowledged" in seen.page.inner_text("#alert-list")
        assert seen.page.evaluate("window.stays") == 1
        assert is_clean(seen, desk)


class Way:
    """A service that takes everything."""

    def send(self, target: Target, note: Note) -> None:
        pass


def test_one_glance_at_a_phone_says_what_where_how_large_what_the_neighbours_saw_and_who_is_called(
    tmp_path: Path, browser: Browser
) -> None:
    from test_formats import state

    targets = (Target("ann", "json://ann"), Target("ben", "json://ben"))
    with serving(tmp_path, targets=targets) as desk:
        for n, name in enumerate(("SLP", "TOE", "CRN", "FAR")):
            place = PositionPart(latitude=46.5 + n * 0.004 + (n == 3), longitude=8.0, elevation_m=1900.0)
            words = {"station": f"XX.{name}.00.HH", "position": place, "exercise": False}
            desk.tell(state().model_copy(update=words), station=f"XX.{name}")
        smaller = {"detection": {**event().detection.model_dump(), "peak_counts": 10.0}}
        desk.tell(*(event(3, onset_ns=START_NS - n * 60 * NS, **smaller) for n in range(1, 13)))
        beside = event(3, sensor="XX.TOE.00.HH", onset_ns=START_NS + NS, classification=verdict("blast"))
        desk.tell(beside, station="XX.TOE")
        desk.tell(event(3), alert(3))
        with visit(browser, desk, PHONE) as seen:
            seen.page.goto(f"{desk.address}/event/{event().id}")
            seen.page.wait_for_selector("time.ago:text('days ago')")
            words = " ".join(seen.page.inner_text(".event-head").split())
            for wanted in (
                "landslide 90 %", "XX.SLP.00.HH, 2026-03-01 00:00:00 UTC", "46.5000, 8.0000, 1900 m",
                "peak 900 counts, the largest of 13 here", "XX.TOE (445 m) blast +1.0 s",
                "XX.CRN (890 m) was not heard",
                "alert: severe", "ann is next, at 2026-03-01 00:00:00", "ben is next, at 2026-03-01 00:05:00",
            ):  # fmt: skip
                assert wanted in words
            assert "XX.FAR" not in words
            box = seen.page.locator(".event-head button.ack").bounding_box()
            assert box is not None
            assert box["y"] + box["height"] <= PHONE[1], "all of it without scrolling"
            assert seen.page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]
            seen.page.wait_for_selector("#link:text('live')")
            CallSender(desk.store, targets, Way()).send_due(START_NS + NS)
            desk.live.wake()
            seen.page.wait_for_selector(".calls:has-text('called ann 2026-03-01 00:00:01')")
            assert is_clean(seen, desk)


def test_a_station_that_lies_is_shown_as_text_on_every_page(desk: Desk, browser: Browser) -> None:
    from test_formats import state

    raw = record()
    model = {"name": LIE[:80], "sha256": "ab" * 32}
    told = state().model_copy(update={"station": "XX.SLP", "versions": {"talus": LIE[:80]}, "backend": LIE[:80]})
    told = told.model_copy(update={"position": PositionPart(latitude=46.0, longitude=8.0)})
    desk.tell(
        event(3, classification=verdict(model=model, backend=LIE[:80]), evidence=evidence(raw), decision=None),
        event(3, onset_ns=START_NS + 10 * NS, classification=None, reason=LIE, quakeml_type="<b>x</b>"),
        alert(3, reason=LIE), told, "online",
    )  # fmt: skip
    desk.keep(event().id, raw)
    with visit(browser, desk) as seen:
        days = ("/day?station=XX.SLP&date=2026-03-01", "/counts?from=2026-03-01")
        for path in (
            "/",
            f"/event/{event().id}",
            "/events",
            *days,
            "/review",
            "/alerts",
            "/settings",
        ):
            seen.page.goto(f"{desk.address}{path}")
            seen.page.wait_for_selector("#link:text('live')")
            assert seen.page.locator("img[src*=evil], main script").count() == 0, path
        seen.page.goto(f"{desk.address}/alerts")
        assert LIE in seen.page.inner_text("td.reason")
        seen.page.goto(f"{desk.address}/event/{event(onset_ns=START_NS + 10 * NS).id}")
        seen.page.click("summary")
        assert "alert(2)" in seen.page.inner_text("pre"), "the message is shown, its markup escaped"
        seen.errors = [one for one in seen.errors if "404" not in one]  # the queue asks for records that are not here
        assert is_clean(seen, desk)


def pixels(visit: Visit, selector: str) -> np.ndarray:
    """The canvas as [rows, columns, 4]."""
    code = visit.page.evaluate("(selector) => document.querySelector(selector).toDataURL('image/png')", selector)
    with Image.open(io.BytesIO(base64.b64decode(code.partition(",")[2]))) as image:
        return np.asarray(image.convert("RGBA"))


def test_a_day_is_drawn_its_events_in_their_colours_and_what_is_missing_white(desk: Desk, browser: Browser) -> None:
    for hour in (0, 1):
        body = envelope_message(SENSOR, "Z", START_NS + hour * 3600 * NS, extremes(), stamp()).payload
        desk.tell(parse(MinMaxMessage, body))
    desk.tell(event(3, onset_ns=START_NS + 3800 * NS, detection={**DETECTION, "duration_s": 120.0}))
    with visit(browser, desk) as seen:
        seen.page.goto(f"{desk.address}/day?station=XX.SLP&date=2026-03-01")
        seen.page.wait_for_selector("#drum[data-drawn][data-source=envelope]")
        shown = pixels(seen, "#drum canvas")
        assert is_clean(seen, desk)
        canvas = seen.page.query_selector("#drum canvas")
        assert canvas is not None
        seen.page.mouse.click(*place_of(canvas.bounding_box(), 1, 210))
        seen.page.wait_for_url(f"{desk.address}/event/*")
    inked = shown[:, 46:, 3] > 0
    rows = inked.any(axis=1)
    assert rows[16 : 16 + 52].any()
    assert not rows[16 + 3 * 26 :].any(), "hours without samples stay white"
    wide = shown.shape[1] - 46 - 6
    missing = slice(46 + round(wide * 305 / 3600), 46 + round(wide * 355 / 3600))
    assert not (shown[16:42, missing, 3] > 0).any(), "a gap stays white"
    landslide = (np.abs(shown[..., :3].astype(int) - [0xD5, 0x5E, 0x00]) < 8).all(axis=2) & (shown[..., 3] > 250)
    assert landslide[42:68].any() and not landslide[16:33].any()


DETECTION = {"ratio": 8.0, "duration_s": 12.0, "peak_counts": 900.0, "dominant_hz": 9.0}


def place_of(box: dict[str, float] | None, hour: int, second: int) -> tuple[float, float]:
    """Where on the drum a time is."""
    assert box is not None
    return box["x"] + 46 + (box["width"] - 52) * second / 3600, box["y"] + 16 + 26 * hour + 13


def test_an_event_shows_its_record_zooms_all_traces_and_says_what_is_new(desk: Desk, browser: Browser) -> None:
    raw = record()
    desk.tell(event(0), event(1, classification=verdict(window_s=10.0)), event(2, evidence=evidence(raw)))
    desk.keep(event().id, raw)
    with visit(browser, desk) as seen:
        page = seen.page
        page.goto(f"{desk.address}/event/{event().id}")
        page.wait_for_selector("#waveform[data-drawn][data-spectrogram]")
        assert page.locator("#waveform .trace-title").all_inner_texts()[:4] == [
            "Z, counts", "N, counts", "E, counts", "STA/LTA of Z, ratio",
        ]  # fmt: skip
        assert page.locator("#waveform .uplot").count() == 4
        before = pixels(seen, "#waveform .uplot:nth-of-type(1) canvas")
        page.click("text=onset")
        wait_for(lambda: not np.array_equal(pixels(seen, "#waveform .uplot:nth-of-type(1) canvas"), before))
        assert (pixels(seen, "#grown canvas")[..., 3] > 0).sum() > 500
        with page.expect_download() as download:
            page.click("text=miniSEED")
        assert Path(download.value.path()).read_bytes() == raw
        page.wait_for_selector("#link:text('live')")
        desk.tell(event(3, classification=verdict("blast", 0.9)))
        page.wait_for_selector("#fresh:not([hidden])")
        page.keyboard.press("2")
        page.wait_for_selector("button.chosen.blast")
        assert is_clean(seen, desk)
    assert review_of(desk, event().id) == "blast"


def test_an_exercise_is_marked_over_the_whole_page_and_wherever_it_is_listed(desk: Desk, browser: Browser) -> None:
    desk.tell(event(3, exercise=True), alert(3, exercise=True))
    with visit(browser, desk) as seen:
        assert "exercise" in seen.page.inner_text(f"tr[data-id='{event().id}']").lower()
        assert "EXERCISE" in seen.page.inner_text("article.alert")
        seen.page.goto(f"{desk.address}/event/{event().id}")
        assert "EXERCISE" in seen.page.inner_text(".banner.exercise")
        assert seen.page.evaluate("getComputedStyle(document.body).backgroundImage").startswith("repeating-linear")
        assert is_clean(seen, desk)


def test_a_sketch_shows_where_the_stations_are_and_which_of_them_alerts(desk: Desk, browser: Browser) -> None:
    from test_formats import state

    for code, latitude in (("XX.SLP", 46.503), ("XX.TOE", 46.497)):
        position = PositionPart(latitude=latitude, longitude=8.2, elevation_m=1800.0)
        desk.tell(state().model_copy(update={"station": code, "position": position}), station=code)
    with visit(browser, desk) as seen:
        seen.page.wait_for_selector("#sketch[data-drawn]")
        assert "XX.SLP" in str(seen.page.get_attribute("#sketch canvas", "aria-label"))
        quiet = pixels(seen, "#sketch canvas")
        seen.page.wait_for_selector("#link:text('live')")
        desk.tell(event(0), alert(0))
        seen.page.wait_for_selector("article.alert")

        def changed() -> np.ndarray:
            return np.flatnonzero((quiet != pixels(seen, "#sketch canvas")).any(axis=(1, 2)))

        wait_for(lambda: len(changed()) > 10, what="a ring is drawn")
        rows = changed()
        assert is_clean(seen, desk)
    assert rows.max() < quiet.shape[0] / 2, "about the northern station, not the other"


def test_times_are_utc_and_local_on_demand_from_then_on(desk: Desk, browser: Browser) -> None:
    """The browser stands in Nepal, 5 h 45 min ahead."""
    desk.tell(event(3))
    with visit(browser, desk) as seen:
        assert "2026-03-01 00:00:00" in seen.page.inner_text("#events tr")
        seen.page.wait_for_selector("#link:text('live')")
        seen.page.click("#clock")
        assert seen.page.inner_text("#clock").endswith("local")
        seen.page.goto(f"{desk.address}/events")
        seen.page.wait_for_selector("#link:text('live')")
        assert "2026-03-01 05:45:00" in seen.page.inner_text("tbody tr")
        assert "local" in seen.page.inner_text("thead")
        seen.page.click("#clock")
        assert "2026-03-01 00:00:00" in seen.page.inner_text("tbody tr")
        assert is_clean(seen, desk)
