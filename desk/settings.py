"""The desk's configuration file (YAML), section by section; every setting has a default but the broker."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field

from agent.config.broker import MqttConfig
from agent.config.section import ConfigPath, Disagreement, Section
from agent.errors import ConfigError
from desk.call.targets import Target


def _is_web(address: str) -> bool:
    """Whether it is the address of a host on the web."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname)


class WebConfig(Section):
    """Where the pages are."""

    host: str = Field(default="127.0.0.1", description="address to listen on; a proxy with TLS stands before it")
    port: int = Field(default=8088, ge=0, le=65_535, description="TCP port; 0 takes a free one")
    public_url: str | None = Field(
        default=None,
        examples=["https://desk.example.org"],
        description="how people reach the desk; links begin with it",
    )
    behind_proxy: bool = Field(
        default=False, description="take the client's address from the proxy on this machine (X-Forwarded-For)"
    )
    fdsnws: bool = Field(
        default=False, description="answer /fdsnws/event/1 (events as QuakeML or text) without a login"
    )
    metrics: bool = Field(default=False, description="answer /metrics (for Prometheus) without a login")
    exercises: bool = Field(
        default=False,
        description="the pages Counts and Review show exercises unless asked not to, as for a demonstration",
    )
    tiles: str | None = Field(
        default=None,
        examples=["https://tile.example.org/{z}/{x}/{y}.png"],
        description="a map's tiles; without it no page asks another host for anything",
    )

    def disagreements(self) -> Iterator[Disagreement]:
        for name in ("public_url", "tiles"):
            value = getattr(self, name)
            if value is not None and not _is_web(value):
                yield Disagreement((name,), "is not an address; write https://...")


class TargetConfig(Section):
    """Someone who is called, in this order."""

    name: str = Field(min_length=1, max_length=80, examples=["ann"], description="who this is, for the pages")
    url: str | None = Field(
        default=None,
        max_length=1000,
        examples=["ntfys://ntfy.example.org/slope"],
        description="an address of Apprise's",
    )
    url_env: str | None = Field(default=None, description="the environment variable that holds the address instead")
    url_file: ConfigPath | None = Field(default=None, description="the file whose first line is the address instead")
    wait_min: float = Field(
        default=5.0, gt=0, le=1440, description="minutes without an acknowledgement until the next one is called"
    )
    least_severity: Literal["info", "minor", "moderate", "severe", "extreme"] = Field(
        default="info", description="below this severity they are left in peace"
    )
    exercises: bool = Field(default=False, description="call them for exercises, too")

    def disagreements(self) -> Iterator[Disagreement]:
        if sum(value is not None for value in (self.url, self.url_env, self.url_file)) != 1:
            yield Disagreement(("url",), "give one of url, url_env and url_file")

    def target(self) -> Target:
        """Ready for use.

        Raises:
            ConfigError: the address is not where the file says.
        """
        url = self.url
        if self.url_env is not None:
            url = os.environ.get(self.url_env)
        elif self.url_file is not None:
            try:
                url = self.url_file.read_text("utf-8").split("\n", 1)[0].strip()
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(
                    f"targets: {self.name}: {self.url_file}: {error}", "its first line is the address"
                ) from None
        if not url:
            raise ConfigError(f"targets: {self.name} has no address", "see url, url_env and url_file")
        return Target(self.name, url, self.wait_min * 60, self.least_severity, self.exercises)


class EvidenceConfig(Section):
    """Records of events, asked for at the stations."""

    key: ConfigPath | None = Field(
        default=None,
        description="private key whose only scope at the stations is `evidence`; without it no record is asked for",
    )
    fetch: Literal["alerts", "all", "none"] = Field(
        default="alerts", description="of which events the desk asks for the record by itself"
    )
    max_gb: float = Field(default=20.0, gt=0, le=100_000, description="disk for records; the oldest go first")


class WatchConfig(Section):
    """When a station that is not well calls somebody."""

    offline_min: float = Field(default=5.0, gt=0, le=1440, description="minutes offline or silent")
    degraded_min: float = Field(default=10.0, gt=0, le=1440, description="minutes degraded")


class HeartbeatConfig(Section):
    """A sign of life to a service that calls when it stops."""

    url: str = Field(examples=["https://hc-ping.com/your-uuid"], description="address to ask")
    every_s: float = Field(default=60.0, ge=5, le=3600, description="seconds between two signs")

    def disagreements(self) -> Iterator[Disagreement]:
        if not _is_web(self.url):
            yield Disagreement(("url",), "is not an address; write https://...")


class DeskConfig(Section):
    """The desk."""

    mqtt: MqttConfig = Field(description="the broker of the stations")
    session: str = Field(
        default="talus-desk", pattern=r"^[A-Za-z0-9_.-]{1,64}$",
        description="MQTT client identifier: the broker keeps for it what comes while the desk is away; one a desk",
    )  # fmt: skip
    state_dir: ConfigPath = Field(default=Path("/var/lib/talus-desk"), description="database, records, secrets")
    database: str | None = Field(
        default=None,
        examples=["postgresql+psycopg://desk@/talus"],
        description="address of the database (SQLAlchemy); default: a SQLite file in state_dir",
    )
    web: WebConfig = Field(default=WebConfig(), description="the pages")
    targets: tuple[TargetConfig, ...] = Field(default=(), strict=False, max_length=64, description="who is called")
    late: bool = Field(default=False, description="let alerts on old data call, too")
    evidence: EvidenceConfig = Field(default=EvidenceConfig(), description="records of events")
    envelope_days: int = Field(
        default=400, ge=1, le=10_000, description="days for which minima and maxima for drum plots are kept"
    )
    health_days: int = Field(
        default=400, ge=2, le=10_000, description="days for which each hour's health is kept, then each day's"
    )
    watch: WatchConfig = Field(default=WatchConfig(), description="stations that are not well")
    heartbeat: HeartbeatConfig | None = Field(default=None, description="the desk's own sign of life")

    def disagreements(self) -> Iterator[Disagreement]:
        names = [target.name for target in self.targets]
        for place, name in enumerate(names):
            if name in names[:place]:
                yield Disagreement((f"targets.{place}.name",), "is the name of another target")

    @property
    def database_url(self) -> str:
        """``database`` with its default put in."""
        return self.database or f"sqlite:///{self.state_dir}/desk.db"


def default_state_dir() -> Path:
    """Where a desk without a configuration file keeps its state: the user's own folder."""
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "talus-desk"
