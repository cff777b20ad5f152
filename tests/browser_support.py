"""Debian's Chromium for tests, driven by Playwright, over a desk of the test's own."""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn
from desk_support import START_NS

from agent.types import NS
from demo.screenshots import ARGUMENTS
from desk import accounts
from desk.call.calls import Calls
from desk.call.targets import Target
from desk.evidence import Records
from desk.service import listen
from desk.store import tables
from desk.store.store import Arrival, Store
from desk.web.application import application
from desk.web.live import Live
from desk.web.server import Server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None or find_spec("playwright") is None,
    reason="Chromium is not installed (sudo apt-get install chromium), or Playwright is not (pip install playwright)",
)
PASSWORD = "correct horse battery"  # noqa: S105
DESKTOP, PHONE = (1280, 860), (390, 844)


@dataclass(frozen=True, slots=True)
class Desk:
    """A desk over a folder, without a broker: ``tell`` stands in for it."""

    store: Store
    records: Records
    live: Live
    address: str

    def tell(self, *bodies: Any, station: str = "XX.SLP", at_ns: int = START_NS) -> None:
        """Messages arrive, are stored, and reach the open pages."""
        self.store.ingest([Arrival(station, body, at_ns) for body in bodies])
        self.live.wake()

    def keep(self, uid: str, raw: bytes) -> None:
        """The record of an event is here."""
        self.records.keep(uid, raw)
        with self.store.writing() as connection:
            connection.execute(tables.evidence.update().values(state="here"))


@contextlib.contextmanager
def serving(
    folder: Path, people: Sequence[tuple[str, str]] = (("omar", "operator"),), targets: Sequence[Target] = ()
) -> Iterator[Desk]:
    """A desk's pages on a free port."""
    store, records = Store(f"sqlite:///{folder}/desk.db", Calls(targets).on_alert), Records(folder / "evidence", 10**9)
    for name, role in people:
        accounts.add_account(store, "setup", name, role, PASSWORD, now_ns=1)  # type: ignore[arg-type]
    live = Live(store)
    listener = listen("127.0.0.1", 0)
    config = uvicorn.Config(
        application(store, live, records=records, targets=targets), log_level="error", timeout_graceful_shutdown=1
    )
    server = Server(live, config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield Desk(store, records, live, f"http://127.0.0.1:{listener.getsockname()[1]}")
    finally:
        server.should_exit = True
        thread.join(60)
        store.close()


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """One browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS), timeout=180_000)
        yield browser
        browser.close()


@dataclass(slots=True)
class Visit:
    """A page of someone who is logged in, and what it did: ``errors`` of its scripts, ``hosts`` that it asked, paths of
    what it ``sent``."""

    page: Page
    errors: list[str]
    hosts: set[str]
    sent: list[str]


@contextlib.contextmanager
def visit(browser: Browser, desk: Desk, size: tuple[int, int] = DESKTOP, name: str = "omar") -> Iterator[Visit]:
    """Log in, as a person does."""
    is_phone = size == PHONE
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]},
        is_mobile=is_phone,
        has_touch=is_phone,
        timezone_id="Asia/Kathmandu",
    )
    page = context.new_page()
    page.set_default_timeout(100_000)
    seen = Visit(page, [], set(), [])
    page.on("pageerror", lambda error: seen.errors.append(str(error)))
    page.on("console", lambda said: seen.errors.append(said.text) if said.type == "error" else None)
    page.on("dialog", lambda dialog: (seen.errors.append(f"dialog {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda request: seen.hosts.add(request.url.split("/")[2]) if "//" in request.url else None)
    page.on("request", lambda request: seen.sent.append(request.url) if request.method == "POST" else None)
    page.goto(f"{desk.address}/login")
    page.fill("input[name=name]", name)
    page.fill("input[name=password]", PASSWORD)
    page.click("form.login button")
    page.wait_for_url(f"{desk.address}/")
    try:
        yield seen
    finally:
        context.close()


def evidence(raw: bytes, onset_ns: int = START_NS) -> dict[str, Any]:
    """What an event says of its record."""
    import hashlib

    from agent.types import format_ns

    span = {"start": format_ns(onset_ns - 20 * NS), "end": format_ns(onset_ns + 40 * NS)}
    return {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw), **span}
