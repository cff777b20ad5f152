"""The desk's threads and its web server: started together, stopped together; it decides nothing."""

from __future__ import annotations

import contextlib
import logging
import secrets
import signal
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvicorn
from sqlalchemy import func, select

from agent.config.broker import MqttSettings
from agent.errors import ConfigError, TalusError
from desk.accounts import add_account
from desk.call.calls import Calls
from desk.call.heartbeat import Heartbeat
from desk.call.link import LASTS_NS, Claim, Links
from desk.call.sender import AppriseWay, CallSender, Way
from desk.call.watch import FaultDelays, StationWatch
from desk.evidence import Fetcher, Records
from desk.pictures.of_store import picture_of
from desk.pictures.style import figure
from desk.pieces import Pieces
from desk.push.signing import SigningKey
from desk.receive import Receiver
from desk.settings import DeskConfig
from desk.store import tables
from desk.store.listener import FeedListener
from desk.store.store import Change, Store
from desk.web.application import application
from desk.web.live import Live
from desk.web.server import Server
from desk.worker import Worker

GRACE_S = 60.0
"""After the start, and after a connection is lost, the desk does not call itself ill for so long."""

_log = logging.getLogger(__name__)


class Desk:
    """One desk. ``start``, then ``serve`` until a signal comes, then ``stop``."""

    def __init__(self, config: DeskConfig, settings: MqttSettings | None = None, way: Way | None = None) -> None:
        """``settings`` stand in for the configuration's broker, ``way`` for Apprise.

        Raises:
            ConfigError: a file, an address or the database cannot be used.
        """
        self.config = config
        settings = settings or config.mqtt.settings(config.session)
        try:
            config.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise ConfigError(
                f"state_dir: {config.state_dir}: {error.strerror}", "name a folder of the desk's own"
            ) from None
        targets = [target.target() for target in config.targets]
        self._calls = Calls(targets, late=config.late)
        self.store = Store(
            config.database_url,
            self._calls.on_alert,
            envelope_days=config.envelope_days,
            health_days=config.health_days,
        )
        self.live = Live(self.store)
        self._links = Links.of(config.state_dir)
        self.records = Records(config.state_dir / "evidence", round(config.evidence.max_gb * 1e9))
        pieces = Pieces(self.store, self.records, self._calls.on_record)
        self.receiver = Receiver(settings, self.store, config.session, self._changed, pieces)
        self._drawing = threading.Lock()
        self._sender = CallSender(self.store, targets, way or AppriseWay(), link=self._link, picture=self._picture)
        delays = FaultDelays(config.watch.offline_min * 60, config.watch.degraded_min * 60)
        self._watch = StationWatch(self.store, self._calls, delays, self._sender.wake)
        self._fetcher: Fetcher | None = None
        if config.evidence.key is not None and config.evidence.fetch != "none":
            key = SigningKey.load(config.evidence.key)
            only_alerts = config.evidence.fetch == "alerts"
            self._fetcher = Fetcher(
                settings, self.store, self.records, key, only_alerts=only_alerts, arrived=self._calls.on_record,
                changed=self._recorded,
            )  # fmt: skip
        beat = config.heartbeat
        self._heartbeat = None if beat is None else Heartbeat(beat.url, beat.every_s, self.problem)
        listener = FeedListener(self.store, self.live.wake) if self.store.is_postgresql else None
        several: tuple[Worker | None, ...] = (
            self.receiver, self._sender, self._watch, self._fetcher, self._heartbeat, listener,
        )  # fmt: skip
        self._workers = [one for one in several if one is not None]
        self._well_at = time.monotonic()

    def start(self) -> None:
        """Start every thread."""
        for worker in self._workers:
            worker.start()
        if self.config.targets:
            threading.Thread(target=self._warm_up, name="pictures", daemon=True).start()

    def _warm_up(self) -> None:
        """Load what draws, so that the first call does not wait for it."""
        with self._drawing, contextlib.suppress(ConfigError):
            figure(1.0, 1.0).subplots()

    def stop(self) -> None:
        """Stop every thread and close the database."""
        for worker in self._workers:
            worker.stop()
        self.store.close()

    def serve(self, listener: socket.socket) -> None:
        """Serve the pages on a socket until SIGTERM or SIGINT."""
        web = self.config.web
        app = application(
            self.store,
            self.live,
            describe=self.describe,
            targets=self._calls.targets,
            records=self.records,
            links=self._links,
            picture=self._picture,
            fdsnws=web.fdsnws,
            metrics=web.metrics,
            tiles=web.tiles,
            exercises=web.exercises,
        )
        server = Server(
            self.live,
            uvicorn.Config(
                app, log_level="warning", proxy_headers=web.behind_proxy, forwarded_allow_ips="127.0.0.1,::1",
                server_header=False, timeout_graceful_shutdown=3,
            ),
        )  # fmt: skip
        # The server hands a signal on when it has ended; the desk's own end follows.
        signal.signal(signal.SIGTERM, lambda *_: None)
        server.run(sockets=[listener])

    def describe(self) -> dict[str, Any]:
        """How the desk itself is, for every page."""
        tally = self.receiver.tally
        called = "" if self.config.targets else "Nobody is called: the configuration names no target."
        if self.config.targets and self.config.web.public_url is None:
            called = "Messages carry no link that acknowledges: web.public_url is not set."
        listening = f"The desk listens to {self.config.mqtt.host}." if tally.connected else ""
        sent = self._sender.tally
        figures = {
            "written": tally.written,
            "refused": tally.refused,
            "connects": tally.connects,
            "connected": int(tally.connected),
            "quiet_s": time.monotonic() - tally.heard,
            "sent": sent.sent,
            "failed": sent.failed,
            "pages": self.live.pages,
        }
        return {"problem": self.problem(), "called": called, "listening": listening, "figures": figures}

    def problem(self) -> str | None:
        """What keeps the desk from hearing, storing or calling; None while all is well."""
        tally = self.receiver.tally
        if tally.connected:
            self._well_at = time.monotonic()
        if self.store.refusal is not None:
            return self.store.refusal
        for worker in self._workers:
            if worker.failure is not None:
                return worker.failure
            if not worker.alive:
                return f"the {worker.name} has ended; restart the desk"
        if not tally.connected and time.monotonic() - self._well_at > GRACE_S:
            return f"no connection to the broker: {tally.error or 'it does not answer'}"
        if self._sender.tally.last_error:
            return f"a call does not go out: {self._sender.tally.last_error}"
        return None if self._heartbeat is None else self._heartbeat.error

    def first_account(self) -> tuple[str, str] | None:
        """Make the account of an admin where there is none; its name and password, which are shown once."""
        with self.store.engine.connect() as connection:
            if connection.execute(select(func.count()).select_from(tables.account)).scalar_one():
                return None
        name, password = "admin", secrets.token_urlsafe(12)
        add_account(self.store, "setup", name, "admin", password, now_ns=time.time_ns())
        return name, password

    def _recorded(self) -> None:
        self.live.wake()
        self._sender.wake()

    def _changed(self, changes: Sequence[Change]) -> None:
        self.live.wake()
        kinds = {change.kind for change in changes}
        if kinds & {"alert", "evidence"}:
            self._sender.wake()
        if self._fetcher is not None and kinds & {"event", "alert"}:
            self._fetcher.wake()

    def _picture(self, event: str) -> Path | None:
        try:
            with self._drawing:  # matplotlib draws in one thread at a time
                return picture_of(self.store, self.records, self.config.state_dir / "pictures", event)
        except (TalusError, ValueError) as error:
            _log.warning("no picture of %s: %s", event, error)
            return None

    def _link(self, alert: str, target: str, revision: int) -> str | None:
        base = self.config.web.public_url
        if base is None:
            return None
        claim = Claim(alert, target, time.time_ns() + LASTS_NS, revision)
        return f"{base.rstrip('/')}/ack/{self._links.token(claim)}"


def listen(host: str, port: int) -> socket.socket:
    """A socket for the pages.

    Raises:
        ConfigError: the address is in use, or not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.ExitStack() as on_error:
            on_error.callback(found.close)
            found.bind(address)
            found.listen(512)
            on_error.pop_all()
    except OSError as error:
        raise ConfigError(
            f"{host}:{port}: {error.strerror or error}", "choose another port (web.port, or --port)"
        ) from None
    return found
