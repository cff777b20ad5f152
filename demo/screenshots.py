"""``python -m demo.screenshots --out DIR``: every page of the desk as a picture, for a screen and for a phone.

A simulated site of three stations gets some hours of history; Debian's Chromium, driven by Playwright, opens each page.
Nothing of the network is used but the loopback.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
from sqlalchemy import select, update

from agent.errors import ConfigError, TalusError
from agent.types import NS
from demo import history
from desk import accounts
from desk.call.calls import Calls
from desk.call.targets import Target
from desk.evidence import Records
from desk.service import listen
from desk.store import answers, queries, tables
from desk.store.store import Arrival, Store
from desk.web.application import application
from desk.web.live import Live
from desk.web.server import Server

if TYPE_CHECKING:
    from playwright.sync_api import Page

NAME, PASSWORD = "ann", "falling-rocks-demo"
DESKTOP, PHONE = (1280, 860), (390, 844)
ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--disable-quic", "--force-color-profile=srgb",
)  # fmt: skip
"""Of Chromium: it is to speak to the desk alone."""
QUALITY = 66
TARGETS = (Target("duty phone", "json://127.0.0.1:1", 300.0), Target("head of geology", "json://127.0.0.1:1", 600.0))
"""Nobody is called: the pictures show when they would have been."""


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m demo.screenshots", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the pictures go")
    parser.add_argument("--hours", type=float, default=1.5, help="of history (default 1.5)")
    parser.add_argument("--state", type=Path, metavar="DIR", help="keep the desk's database here, and use it again")
    parser.add_argument("--only", metavar="NAME", help="one page alone, such as event")
    args = parser.parse_args(argv)
    try:
        with contextlib.ExitStack() as stack:
            folder = args.state or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="talus-pictures-")))
            store, records = prepared(folder, args.hours)
            base = stack.enter_context(served(store, records))
            for path in taken(base, store, args.out, args.only):
                print(f"{path}  {path.stat().st_size / 1000:.0f} kB", flush=True)
    except TalusError as error:
        print(f"screenshots: {error}", file=sys.stderr)
        return error.exit_status
    return 0


def prepared(folder: Path, hours: float) -> tuple[Store, Records]:
    """A desk with history, and with what people have answered."""
    folder.mkdir(parents=True, exist_ok=True)
    is_new = not (folder / "desk.db").exists()
    store, records = Store(f"sqlite:///{folder}/desk.db", Calls(TARGETS).on_alert), Records(folder / "evidence", 10**10)
    now_ns = time.time_ns()
    if is_new:
        history.write(store, records, hours=hours, end_ns=now_ns)
        answered(store, now_ns)
    online = [Arrival(f"XX.{name}", "online", time.time_ns()) for name in history.PLACES]
    store.ingest(online)  # making the history takes a while, in which no station has fallen silent
    accounts.add_account(store, "setup", NAME, "admin", PASSWORD, now_ns=now_ns)
    return store, records


def answered(store: Store, now_ns: int) -> None:
    """What was due was sent; all alerts but the newest two acknowledged, a few events answered, one silence."""
    n = tables.notification
    with store.writing() as connection:
        due = update(n).where(n.c.due_ns <= now_ns, n.c.state == "waiting")
        connection.execute(due.values(state="sent", sent_ns=n.c.due_ns, tries=1))
    ann, ben = answers.Person("ann", how="link"), answers.Person("ben")
    with store.engine.connect() as connection:
        alerts = queries.alerts(connection, limit=1000)
        rows = queries.queue(connection, limit=6)
    for place, alert in enumerate(alerts[2:]):
        answers.acknowledge(
            store, (ann, ben)[place % 3 == 1], alert.uid, alert.raised_ns + (35 + 20 * (place % 5)) * NS
        )
    for row in rows[:4]:
        answers.answer(store, ben, [row.uid], answers.Answer("landslide"), now_ns)
    wanted = answers.Silence("XX.FLK", "blast", now_ns + 6 * 3600 * NS, "quarry works until noon")
    answers.silence(store, ann, wanted, now_ns)


@contextlib.contextmanager
def served(store: Store, records: Records) -> Iterator[str]:
    """The desk's pages on a free port of the loopback; gives their address."""
    live = Live(store)
    app = application(store, live, records=records, targets=TARGETS)
    listener = listen("127.0.0.1", 0)
    server = Server(live, uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


def pages(store: Store) -> dict[str, tuple[str, str]]:
    """Name of each page, its path, and what says that it is drawn (a selector)."""
    with store.engine.connect() as connection:
        alert = next(iter(queries.alerts(connection, limit=1)), None)
        newest = connection.execute(select(tables.event.c.uid).order_by(tables.event.c.onset_ns.desc())).scalar()
    shown = alert.event_uid if alert is not None else newest
    return {
        "now": ("/", "#events tr"),
        "event": (f"/event/{shown}", "#waveform[data-spectrogram]"),
        "events": ("/events", "table"),
        "day": ("/day", "#drum[data-drawn]"),
        "counts": ("/counts", "#counts[data-drawn]"),
        "review": ("/review", "#waveform[data-drawn]"),
        "alerts": ("/alerts", "table"),
        "settings": ("/settings", "table"),
    }


def taken(base: str, store: Store, out: Path, only: str | None = None) -> Iterator[Path]:
    """Open every page on both sizes; gives the files.

    Raises:
        ConfigError: Playwright or Chromium is missing.
    """
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise ConfigError(
            "pictures of pages need Playwright", "pip install playwright (no browser of its own)"
        ) from None
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        raise ConfigError("Chromium is not installed", "sudo apt-get install chromium")
    out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(ARGUMENTS))
        for size, (width, height) in (("desktop", DESKTOP), ("phone", PHONE)):
            context = browser.new_context(
                viewport={"width": width, "height": height}, device_scale_factor=2 if size == "phone" else 1,
                is_mobile=size == "phone", has_touch=size == "phone", color_scheme="light",
            )  # fmt: skip
            page = context.new_page()
            log_in(page, base)
            for name, (path, ready) in pages(store).items():
                if only is None or name == only:
                    page.goto(f"{base}{path}")
                    page.wait_for_selector(ready, state="attached")
                    page.wait_for_timeout(400)
                    yield save(page, out / f"{name}-{size}.webp")
            context.close()
        browser.close()


def log_in(page: Page, base: str) -> None:
    """As a person does."""
    page.goto(f"{base}/login")
    page.fill("input[name=name]", NAME)
    page.fill("input[name=password]", PASSWORD)
    page.click("form.login button")
    page.wait_for_url(f"{base}/")


def save(page: Page, path: Path) -> Path:
    """The page as far as a visitor scrolls in it, at most a screen and a half, as a small file."""
    import io

    from PIL import Image

    height: Any = page.evaluate("document.documentElement.scrollHeight")
    size = page.viewport_size or {"width": DESKTOP[0], "height": DESKTOP[1]}
    clip: Any = {"x": 0, "y": 0, "width": size["width"], "height": min(int(height), round(1.5 * size["height"]))}
    raw = page.screenshot(full_page=True, clip=clip)
    with Image.open(io.BytesIO(raw)) as image:
        image.convert("RGB").save(path, quality=QUALITY, method=5)
    return path


if __name__ == "__main__":
    sys.exit(main())
