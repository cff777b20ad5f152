"""The sections of the configuration file, and the stations that they name.

Names carry their units; descriptions become ``docs/configuration.md``.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo

from agent.config.broker import MqttConfig
from agent.config.outputs import HealthConfig, OutputsConfig
from agent.config.policy import PolicyConfig, RulesConfig, SiteConfig, StationCode
from agent.config.remote import ControlConfig
from agent.config.section import Code, ConfigPath, Disagreement, Section, resolve_path
from agent.config.sources import SourceConfig, station_ids
from agent.config.yaml import Loc
from agent.types import POST_ONSET_S

BACKENDS = ("tensorrt", "onnxruntime", "constant")
MAX_STATIONS = 256
"""Most stations that a file declares; as many sensors are followed."""
HIGHEST_CORNER = 0.8
"""The band-pass ends at this share of the Nyquist frequency at the latest."""


class SlowTriggerConfig(Section):
    """Events that swell over minutes: the median power of the last minute over that of the last hours."""

    enabled: bool = Field(default=True, description="whether slow events are looked for")
    on: float = Field(
        default=4.0,
        ge=1.5,
        le=10_000,
        description="ratio of the last minute's power to the background's at which one begins",
    )
    off: float = Field(default=2.0, ge=1.1, le=10_000, description="ratio below which it ends")
    min_duration_s: float = Field(default=60.0, ge=30, le=3_600, description="shorter ones are not reported, seconds")
    min_rise_s: float = Field(
        default=20.0, ge=0, le=1_800,
        description="from its begin to its loudest ten seconds, at least: earthquakes and blasts are loudest at once, "
        "seconds",
    )  # fmt: skip
    max_duration_s: float = Field(
        default=3_600.0, ge=120, le=86_400,
        description="it is then ended, and none begins before the ratio has fallen below off: rain, a river, seconds",
    )  # fmt: skip
    background_s: float = Field(
        default=21_600.0, ge=1_800, le=86_400,
        description="the background is the median of so much before; of which half an hour must be known, seconds",
    )  # fmt: skip

    def disagreements(self) -> Iterator[Disagreement]:
        if self.off >= self.on:
            yield Disagreement(("off", "on"), f"must be below on ({self.on:g}), or an event would end as it begins")
        if self.min_duration_s >= self.max_duration_s:
            reason = f"must be shorter than max_duration_s ({self.max_duration_s:g})"
            yield Disagreement(("min_duration_s", "max_duration_s"), reason)


def _bundle(value: object, info: ValidationInfo) -> Path | None:
    return None if value == "default" else resolve_path(value, info)


def _backend(text: str) -> str:
    name, _, argument = text.partition(":")
    if name not in BACKENDS or (argument and (name != "constant" or argument not in RulesConfig.model_fields)):
        raise ValueError(f"must be one of {', '.join(BACKENDS)} (constant may name its label, such as constant:noise)")
    return text


def _distinct(values: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(values)) != len(values):
        raise ValueError("names the same entry twice")
    return values


def _served(value: tuple[str, ...]) -> tuple[str, ...]:
    if "tensorrt" in value and (value.index("tensorrt") != 0 or len(value) == 1):
        raise ValueError("must have tensorrt first, and behind it one that serves while its engine is built")
    return value


Backend = Annotated[str, AfterValidator(_backend)]


class Place(Section):
    """Where a station is; without coordinates, nowhere that is known."""

    name: str | None = Field(default=None, min_length=1, max_length=100, description="the place in words")
    latitude_deg: float | None = Field(default=None, ge=-90, le=90, description="latitude, degrees north (WGS 84)")
    longitude_deg: float | None = Field(default=None, ge=-180, le=180, description="longitude, degrees east (WGS 84)")
    elevation_m: float | None = Field(
        default=None, ge=-11_000, le=9_000, description="elevation, metres above sea level"
    )

    def disagreements(self) -> Iterator[Disagreement]:
        if (self.latitude_deg is None) != (self.longitude_deg is None):
            given, absent = "latitude_deg", "longitude_deg"
            if self.latitude_deg is None:
                given, absent = absent, given
            yield Disagreement((given, absent), f"is given without {absent}; give both or neither")


class StationConfig(Place):
    """Who this agent is: the topic under which it reports its own availability, state and health."""

    network: Code = Field(examples=["XX"], description="FDSN network code")
    station: Code = Field(examples=["SLOPE"], description="FDSN station code")


class DeclaredStationConfig(Place):
    """A station whose data the source brings."""

    station: StationCode = Field(examples=["XX.S01"], description="NETWORK.STATION")


class TriggerConfig(Section):
    """The band-pass and the recursive STA/LTA trigger."""

    low_hz: float = Field(default=1.0, ge=0.01, le=500, description="lower corner of the Butterworth band-pass, Hz")
    high_hz: float = Field(default=20.0, ge=0.02, le=500, description="upper corner, Hz")
    order: int = Field(
        default=4, ge=1, le=10, description="order of the prototype: the band-pass has twice as many poles"
    )
    sta_s: float = Field(default=1.0, ge=0.05, le=60, description="short-term average, seconds")
    lta_s: float = Field(default=30.0, ge=1, le=3_600, description="long-term average, seconds")
    on: float = Field(default=4.0, ge=1.1, le=1_000, description="STA/LTA ratio at which a trigger begins")
    off: float = Field(default=1.5, ge=0.1, le=1_000, description="ratio below which it ends")
    combine: Literal["vector", "coincidence"] = Field(
        default="vector", description="components as one vector sum, or each on its own with components_needed at once"
    )
    components_needed: int = Field(
        default=2, ge=1, le=3, description="components that must trigger at once (combine: coincidence)"
    )
    min_duration_s: float = Field(
        default=0.5, ge=0, le=60, description="shorter triggers are discarded, with the reason, seconds"
    )
    max_duration_s: float = Field(
        default=300.0, ge=1, le=3_600, description="longest trigger; it is then ended, seconds"
    )
    merge_s: float = Field(
        default=2.0,
        ge=0,
        le=60,
        description="a trigger that begins this soon after the last one is part of it, seconds",
    )
    long_gap_s: float | None = Field(
        default=None, ge=0.1, le=3_600, description="gaps longer than this start the averages anew, seconds (lta_s)"
    )
    max_component_lag_s: float = Field(
        default=5.0, ge=0, le=600, description="how long the others wait for a late component, seconds of data"
    )
    slow: SlowTriggerConfig = Field(
        default=SlowTriggerConfig(), description="the level trigger for slow slides and debris flows"
    )

    def disagreements(self) -> Iterator[Disagreement]:
        if self.low_hz >= self.high_hz:
            yield Disagreement(("low_hz", "high_hz"), f"must be below high_hz ({self.high_hz:g})")
        if self.sta_s >= self.lta_s:
            yield Disagreement(("sta_s", "lta_s"), f"must be shorter than lta_s ({self.lta_s:g})")
        if self.off >= self.on:
            yield Disagreement(("off", "on"), f"must be below on ({self.on:g}), or a trigger would end as it begins")
        if self.min_duration_s >= self.max_duration_s:
            reason = f"must be shorter than max_duration_s ({self.max_duration_s:g})"
            yield Disagreement(("min_duration_s", "max_duration_s"), reason)


class VerdictConfig(Section):
    """When the network is asked."""

    at_s: tuple[Annotated[float, Field(ge=1, lt=POST_ONSET_S)], ...] = Field(
        default=(3.0, 5.0, 7.0, 10.0, 13.0, 16.0, 20.0, 40.0, 80.0),
        strict=False,
        min_length=1,
        max_length=16,
        description="seconds after the onset at which a verdict is sought, ascending; one more at the event's end",
    )

    def disagreements(self) -> Iterator[Disagreement]:
        for index in range(1, len(self.at_s)):
            if self.at_s[index] <= self.at_s[index - 1]:
                yield Disagreement(
                    (f"at_s.{index}", "at_s"), f"must be later than the one before it ({self.at_s[index - 1]:g})"
                )


class ReportingConfig(Section):
    """How often the agent speaks."""

    health_interval_s: float = Field(
        default=60.0, ge=5, le=86_400, description="time between two health messages, seconds"
    )
    alert_expiry_s: int = Field(
        default=86_400,
        ge=60,
        le=2_592_000,
        description="MQTT 5 message expiry of alerts: how long the broker may keep one, seconds",
    )


class TunablesConfig(Section):
    """The only part that may later be changed remotely."""

    trigger: TriggerConfig = Field(default=TriggerConfig(), description="the band-pass and the STA/LTA trigger")
    verdict: VerdictConfig = Field(default=VerdictConfig(), description="when the network is asked")
    policy: PolicyConfig = Field(default=PolicyConfig(), description="which events become alerts")
    reporting: ReportingConfig = Field(default=ReportingConfig(), description="how often the agent speaks")

    def disagreements(self) -> Iterator[Disagreement]:
        verdicts = len(self.verdict.at_s) + 1
        for label in RulesConfig.model_fields:
            rule = self.policy.rules.of(label)
            if rule.severity != "none" and rule.confirm.k > verdicts:
                place = f"policy.rules.{label}.confirm.k"
                reason = (
                    f"asks for more verdicts than an event gets ({verdicts}: at each of verdict.at_s and at its end)"
                )
                yield Disagreement((place, "verdict.at_s"), reason)
            if rule.severity != "none":
                yield from self._too_long(f"policy.rules.{label}", rule.min_duration_s, "trigger")
        if self.policy.on_classifier_failure == "alert":
            yield from self._too_long("policy.unclassified", self.policy.unclassified.min_duration_s, "trigger")
        if self.policy.slow.severity != "none" and self.trigger.slow.enabled:
            yield from self._too_long("policy.slow", self.policy.slow.min_duration_s, "trigger.slow")

    def _too_long(self, rule: str, needed_s: float, trigger: str) -> Iterator[Disagreement]:
        """A rule that no event is long enough for."""
        longest = self.trigger.max_duration_s if trigger == "trigger" else self.trigger.slow.max_duration_s
        if needed_s > longest:
            reason = f"must not exceed {trigger}.max_duration_s ({longest:g}), or no event would raise an alert"
            yield Disagreement((f"{rule}.min_duration_s", f"{trigger}.max_duration_s"), reason)


class ClassifierConfig(Section):
    """The network."""

    bundle: Annotated[Path | None, BeforeValidator(_bundle)] = Field(
        default=None, description="folder or zip of a model bundle; default: the one that comes with the agent"
    )
    backends: Annotated[tuple[Backend, ...], AfterValidator(_distinct), AfterValidator(_served)] = Field(
        default=("tensorrt", "onnxruntime"),
        strict=False,
        min_length=1,
        description="runtimes (tensorrt, onnxruntime, constant) in the order of preference",
    )
    threads: int = Field(default=1, ge=1, le=16, description="threads of the runtime")


class OutboxConfig(Section):
    """What was decided and is not yet acknowledged by the broker, on disk."""

    path: ConfigPath | None = Field(default=None, description="the SQLite file (STATE_DIR/outbox.sqlite3)")
    max_mb: int = Field(
        default=200, ge=1, le=100_000, description="largest size, megabytes; beyond it, what matters least goes first"
    )


class EvidenceConfig(Section):
    """Records of events, kept at the station."""

    max_mb: float = Field(default=200, ge=0, le=100_000, description="megabytes; the oldest make room; 0: none")
    send: Literal["asked", "alerts"] = Field(
        default="asked",
        description="asked: a record is sent when someone asks for it; alerts: also those of events that alerted, "
        "by themselves (about 45 kB for three components at 100 Hz)",
    )

    def disagreements(self) -> Iterator[Disagreement]:
        if self.send == "alerts" and not self.max_mb:
            yield Disagreement(("send", "max_mb"), "sends records, and max_mb is 0: none is kept")


class EnvelopeConfig(Section):
    """The smallest and largest sample of each second, for drum plots at the desk over a thin link."""

    component: Literal["Z", "N", "E"] | None = Field(
        default=None,
        description="component that is sent, ten minutes a message, about 250 kB a day and sensor; without it, nothing",
    )


class LogConfig(Section):
    """The agent's own log."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="least severe line that is written"
    )


class Config(Section):
    """The whole file."""

    station: StationConfig = Field(description="who this agent is")
    source: SourceConfig = Field(
        discriminator="kind",
        examples=[{"kind": "archive", "paths": ["records"]}],
        description="where samples come from",
    )
    stations: tuple[DeclaredStationConfig, ...] = Field(
        default=(),
        strict=False,
        max_length=MAX_STATIONS,
        description="other stations whose data the source brings, with their positions (for CAP and QuakeML)",
    )
    tunables: TunablesConfig = Field(
        default=TunablesConfig(), description="detection, verdicts, alerts: what may change remotely"
    )
    site: SiteConfig = Field(default=SiteConfig(), description="several stations of one site")
    classifier: ClassifierConfig = Field(default=ClassifierConfig(), description="the network")
    mqtt: MqttConfig | None = Field(
        default=None, description="the broker; without this section, replay prints what it would send"
    )
    outbox: OutboxConfig = Field(default=OutboxConfig(), description="messages on disk until they are acknowledged")
    outputs: OutputsConfig = Field(default=OutputsConfig(), description="ways out beside the broker")
    evidence: EvidenceConfig = Field(default=EvidenceConfig(), description="records of events")
    envelope: EnvelopeConfig = Field(default=EnvelopeConfig(), description="minimum and maximum of each second")
    state_dir: ConfigPath = Field(default=Path("/var/lib/talus"), description="folder for what must survive a restart")
    health: HealthConfig = Field(default=HealthConfig(), description="health for others on this machine")
    control: ControlConfig = Field(
        default=ControlConfig(), description="who may change the tunables remotely, and on what conditions"
    )
    log: LogConfig = Field(default=LogConfig(), description="the agent's own log")

    def disagreements(self) -> Iterator[Disagreement]:
        own = f"{self.station.network}.{self.station.station}"
        declared = [one.station for one in self.stations]
        for index, name in enumerate(declared):
            if name == own:
                yield Disagreement((f"stations.{index}.station", "station"), "is the agent's own: see section station")
            elif name in declared[:index]:
                yield Disagreement((f"stations.{index}.station",), f"is stations[{declared.index(name)}] too")
        together = self.site.coincidence
        if together is not None and own in together.stations:
            reason = f"must not be one of the site's stations ({own}): events of the site go out under it"
            yield Disagreement(("station.station", "site.coincidence.stations"), reason)

    @property
    def outbox_path(self) -> Path:
        """``outbox.path`` with its default put in."""
        return self.outbox.path or self.state_dir / "outbox.sqlite3"

    @property
    def client_id(self) -> str:
        """``mqtt.client_id`` with its default put in."""
        given = self.mqtt.client_id if self.mqtt is not None else None
        return given or f"talus-{self.station.network}.{self.station.station}"


@dataclass(frozen=True, slots=True)
class Stations:
    """``known``: NET.STA of every station under whose topics the agent will write, its own first. ``complete``: the
    source can bring no others."""

    known: tuple[str, ...]
    complete: bool


def stations_of(config: Config) -> Stations:
    """The stations of a configuration: its own, those that it declares, and those that its source names."""
    by_source = list(named(config).values())
    names = [_own(config), *_declared(config), *(name for name in by_source if not _is_pattern(name))]
    complete = config.source.kind not in ("archive", "folder") and not any(map(_is_pattern, by_source))
    return Stations(tuple(dict.fromkeys(names)), complete)


def others(config: Config) -> Mapping[str, DeclaredStationConfig | None]:
    """The known stations but for the agent's own, each with what the file declares of it."""
    declared = {one.station: one for one in config.stations}
    return {name: declared.get(name) for name in stations_of(config).known[1:]}


def undeclared(config: Config) -> Iterator[tuple[Loc, str]]:
    """Where the source names a station that is neither the agent's own nor declared, and which one."""
    if config.source.kind == "simulator":
        return
    expected = [_own(config), *_declared(config)]
    for loc, name in named(config).items():
        if not any(fnmatch.fnmatchcase(one, name) for one in expected):
            yield loc, name


def _own(config: Config) -> str:
    return f"{config.station.network}.{config.station.station}"


def _declared(config: Config) -> list[str]:
    together = config.site.coincidence
    return [*(one.station for one in config.stations), *(together.stations if together is not None else ())]


def named(config: Config) -> Mapping[Loc, str]:
    """What the source says of its stations, NET.STA or a pattern of it, by its place in the file."""
    source, own = config.source, config.station
    if source.kind == "seedlink":
        return {
            ("source", "servers", i, "stations", j, "station"): station.station.replace("_", ".", 1)
            for i, server in enumerate(source.servers)
            for j, station in enumerate(server.stations)
        }
    if source.kind == "shake_udp":
        return {
            ("source", "senders", i): f"{sender.network or own.network}.{sender.station or own.station}"
            for i, sender in enumerate(source.senders)
        }
    if source.kind == "simulator":
        found = station_ids(own.network, own.station, source.stations, source.rate_hz)
        return {("source", "stations", i): station.short for i, station in enumerate(found)}
    return {}


def _is_pattern(name: str) -> bool:
    return "*" in name or "?" in name
