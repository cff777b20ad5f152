"""The kinds of source: one section each, told apart by ``kind``."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field

from agent.config.broker import TlsConfig
from agent.config.section import Code, ConfigPath, ConfigPattern, Disagreement, Section, address, repeated
from agent.errors import DataError
from agent.types import StationId, parse_ns

PLAIN_PORT, TLS_PORT = 18_000, 18_500
"""Ports that the SeedLink 4 specification gives."""
_V3 = re.compile(r"!?(?:[A-Z0-9?*-]{2})?[A-Z0-9?*]{3}(?:\.[DECOTL])?")
_V4 = re.compile(r"!?[A-Z0-9?*-]{0,8}_[A-Z0-9?*]{0,8}_[A-Z0-9?*]{0,8}_[A-Z0-9?*]{0,8}(?:\.[A-Z0-9?*]{1,2})?")


def _host(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._:%-]{1,253}", text) or text.count(":") == 1:
        raise ValueError("must be a host name or an IP address alone; the port has a setting of its own")
    return text


def _station(text: str) -> str:
    if not re.fullmatch(r"[A-Z0-9?*-]{1,8}_[A-Z0-9?*-]{1,8}", text):
        raise ValueError("must be NETWORK_STATION in capitals, such as XX_SLOPE; '*' and '?' stand for any")
    return text


def _selector(text: str) -> str:
    if not (_V3.fullmatch(text) or _V4.fullmatch(text)):
        raise ValueError("must be a selector such as HH?, 00HH? or 00_H_H_?; a leading '!' excludes")
    return text


def _protocol(value: object) -> object:
    return str(value) if value in (3, 4) and isinstance(value, int) else value


class SeedLinkStationConfig(Section):
    """Which stations, and which of their channels."""

    station: Annotated[str, AfterValidator(_station)] = Field(
        examples=["XX_SLOPE"], description="NETWORK_STATION; '*' and '?' stand for any characters, if the server allows"
    )
    selectors: tuple[Annotated[str, AfterValidator(_selector)], ...] = Field(
        default=(),
        strict=False,
        max_length=32,
        description="channels, in quotes: 'HH?', '00HH?' or '00_H_H_?'; '!' before one excludes it; none: all channels",
    )

    @property
    def is_pattern(self) -> bool:
        """Whether it may stand for several stations."""
        return "*" in self.station or "?" in self.station


class SeedLinkServerConfig(Section):
    """One server and what is asked of it."""

    host: Annotated[str, AfterValidator(_host)] = Field(
        examples=["localhost"], description="name or address of the server"
    )
    port: int | None = Field(default=None, ge=1, le=65_535, description="TCP port (18500 with tls, else 18000)")
    tls: TlsConfig | None = Field(default=None, description="TLS; without this section the connection is in the clear")
    protocol: Annotated[Literal["auto", "3", "4"], BeforeValidator(_protocol)] = Field(
        default="auto", description="SeedLink version; auto: 4 where the server offers it, else 3"
    )
    stations: tuple[SeedLinkStationConfig, ...] = Field(
        strict=False,
        min_length=1,
        max_length=256,
        examples=[[{"station": "XX_SLOPE"}]],
        description="stations to receive",
    )

    def disagreements(self) -> Iterator[Disagreement]:
        yield from repeated("stations", [one.station for one in self.stations], "join their selectors")

    @property
    def server_port(self) -> int:
        """``port`` with its default put in."""
        return self.port or (TLS_PORT if self.tls is not None else PLAIN_PORT)

    @property
    def address(self) -> str:
        """``host:port``, as messages name the server."""
        return address(self.host, self.server_port)


class SeedLinkConfig(Section):
    """Live data from SeedLink servers (versions 3 and 4)."""

    kind: Literal["seedlink"] = Field(examples=["seedlink"], description="the kind of source")
    servers: tuple[SeedLinkServerConfig, ...] = Field(
        strict=False,
        min_length=1,
        max_length=16,
        examples=[[{"host": "localhost", "stations": [{"station": "XX_SLOPE"}]}]],
        description="servers, each with its own connection",
    )
    connect_timeout_s: float = Field(
        default=10.0, ge=0.5, le=120, description="longest wait for a connection and for each answer, seconds"
    )
    receive_timeout_s: float = Field(
        default=30.0,
        ge=1,
        le=600,
        description="a connection on which nothing comes for so long, not even an answer, is made anew, seconds",
    )
    stalled_s: float = Field(
        default=60.0,
        ge=2,
        le=3_600,
        description="a channel without samples for so long is asked for again, at growing intervals, seconds",
    )
    retry_s: float = Field(
        default=10.0, ge=0.1, le=3_600, description="longest wait between two attempts to connect, seconds"
    )

    def disagreements(self) -> Iterator[Disagreement]:
        yield from repeated("servers", [server.address for server in self.servers], "list its stations there")


def _network_of(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text))
    except ValueError:
        raise ValueError("must be an IP address or a network such as 192.168.1.0/24") from None


def _address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise ValueError("must be an IP address of this machine, or 0.0.0.0 or :: for all of them") from None


def _channel(text: str) -> str:
    if not (len(text) == 3 and text.isascii() and text.isalnum() and text.upper() == text and text[2] in "ENZ123"):
        raise ValueError("must be a SEED channel code of ground motion such as EHZ")
    return text


def _location(text: str) -> str:
    if not (len(text) <= 8 and text.isascii() and (text.isalnum() or not text) and text.upper() == text):
        raise ValueError("must be at most 8 upper-case letters or digits, such as 00")
    return text


def _time(text: str) -> str:
    try:
        parse_ns(text)
    except DataError as error:
        raise ValueError(f"must be a time; {error.hint}") from None
    return text


class ArchiveConfig(Section):
    """Recorded files: miniSEED, and with the extra `obspy` whatever ObsPy reads, in time order across channels."""

    kind: Literal["archive"] = Field(examples=["archive"], description="the kind of source")
    paths: tuple[ConfigPattern, ...] = Field(
        strict=False, min_length=1, examples=[["records"]], description="files, folders or wildcard patterns"
    )
    speed: float = Field(default=0.0, ge=0, le=10_000, description="times real time; 0: as fast as it goes")
    packet_s: float | None = Field(
        default=None, ge=0.01, le=60, description="length of the packets handed on, seconds; unset: records as they are"
    )

    def disagreements(self) -> Iterator[Disagreement]:
        yield from repeated("paths", self.paths, "name it once")


class FolderConfig(Section):
    """miniSEED files that a recorder writes now: new ones, and those that grow; plain folders or SDS archives."""

    kind: Literal["folder"] = Field(examples=["folder"], description="the kind of source")
    paths: tuple[ConfigPath, ...] = Field(
        strict=False, min_length=1, examples=[["/data"]], description="folders, watched with all below them"
    )
    backlog_s: float = Field(
        default=7200.0,
        ge=0,
        le=3_153_600_000,
        description="data older than this when they are found, at any time, are taken as read, seconds",
    )
    rescan_s: float = Field(
        default=30.0,
        ge=0.1,
        le=3_600,
        description="how often the folders are listed in case the system told nothing (network file systems), seconds",
    )
    timeout_s: float = Field(
        default=60.0, ge=1, le=86_400, description="silence of all files after which a problem is reported, seconds"
    )

    def disagreements(self) -> Iterator[Disagreement]:
        yield from repeated("paths", self.paths, "name it once")


class ShakeSenderConfig(Section):
    """One digitizer that may send."""

    address: Annotated[str, AfterValidator(_network_of)] = Field(
        examples=["192.168.1.20"], description="its IP address, or the network that it is in, such as 192.168.1.0/24"
    )
    network: Code | None = Field(default=None, description="FDSN network code (that of the section station)")
    station: Code | None = Field(default=None, description="FDSN station code (that of the section station)")
    location: Annotated[str, AfterValidator(_location)] = Field(default="", description="FDSN location code")


class ShakeUdpConfig(Section):
    """Raspberry Shake's UDP datagrams, from one digitizer or several."""

    kind: Literal["shake_udp"] = Field(examples=["shake_udp"], description="the kind of source")
    senders: tuple[ShakeSenderConfig, ...] = Field(
        strict=False,
        min_length=1,
        max_length=64,
        examples=[[{"address": "192.168.1.20"}]],
        description="who may send; datagrams of all others are dropped and counted",
    )
    host: Annotated[str, AfterValidator(_address)] = Field(
        default="0.0.0.0",  # noqa: S104 - the senders are listed
        description="address of this machine to listen at",
    )
    port: int = Field(default=8888, ge=1, le=65_535, description="UDP port to listen at")
    rate_hz: float = Field(default=100.0, ge=20, le=1_000, description="samples per second; datagrams do not tell")
    channels: tuple[Annotated[str, AfterValidator(_channel)], ...] = Field(
        default=(), strict=False, max_length=12, description="channels to use ([]: all that are ground motion)"
    )
    reorder_s: float = Field(default=1.0, ge=0, le=10, description="how long a missing datagram is waited for, seconds")
    timeout_s: float = Field(
        default=10.0, ge=1, le=3_600, description="silence of a sender after which a problem is reported, seconds"
    )

    def disagreements(self) -> Iterator[Disagreement]:
        networks = [ipaddress.ip_network(sender.address) for sender in self.senders]
        named: dict[tuple[str | None, str | None, str], int] = {}
        for index, (sender, network) in enumerate(zip(self.senders, networks, strict=True)):
            for other in range(index):
                earlier = networks[other]
                if network.version == earlier.version and network.overlaps(earlier):
                    yield Disagreement((f"senders.{index}.address",), f"is in senders[{other}] too")
            codes = (sender.network, sender.station, sender.location)
            if codes in named:
                reason = f"has the codes of senders[{named[codes]}]; two instruments would be mixed"
                yield Disagreement((f"senders.{index}",), reason)
            named.setdefault(codes, index)


class RatesConfig(Section):
    """How often events of each kind happen, on average."""

    slopequakes_per_hour: float = Field(default=6.0, ge=0, le=3_600, description="cracks in the slope, 5 to 50 Hz")
    rockfalls_per_hour: float = Field(default=3.0, ge=0, le=3_600, description="trains of impacts")
    slides_per_hour: float = Field(default=0.0, ge=0, le=3_600, description="long emergent slides")
    blasts_per_hour: float = Field(default=0.5, ge=0, le=3_600, description="blasts in a quarry")
    earthquakes_per_hour: float = Field(default=1.0, ge=0, le=3_600, description="earthquakes, local to regional")


class FaultsConfig(Section):
    """How often things go wrong, on average."""

    gaps_per_hour: float = Field(default=0.0, ge=0, le=3_600, description="packets of one channel lost for 1 to 20 s")
    clock_steps_per_hour: float = Field(
        default=0.0, ge=0, le=3_600, description="the clock of a station is off by 0.2 to 5 s for some minutes"
    )
    spikes_per_hour: float = Field(default=0.0, ge=0, le=3_600, description="one sample at the converter's limit")
    dead_channels_per_hour: float = Field(
        default=0.0, ge=0, le=3_600, description="a channel of constant samples for 1 to 10 minutes"
    )
    stalls_per_hour: float = Field(
        default=0.0, ge=0, le=3_600, description="a station's packets held up for 5 to 60 s, then delivered at once"
    )


class SimulatorConfig(Section):
    """A synthetic site, for drills and load; everything that comes of it is marked as an exercise."""

    kind: Literal["simulator"] = Field(examples=["simulator"], description="the kind of source")
    seed: int = Field(default=1, ge=0, le=2**32 - 1, description="the same seed and start give the same samples")
    start: Annotated[str, AfterValidator(_time)] | None = Field(
        default=None, description="time of the first sample, ISO 8601 (now)"
    )
    hours: float | None = Field(default=None, gt=0, le=87_600, description="how much to play (no end)")
    speed: float = Field(default=1.0, ge=0, le=10_000, description="times real time; 0: as fast as it goes")
    stations: int = Field(
        default=1, ge=1, le=64, description="how many; one has the code of the section station, more are numbered"
    )
    rate_hz: float = Field(default=100.0, ge=20, le=1_000, description="samples per second")
    packet_s: float = Field(default=1.0, ge=0.01, le=60, description="length of the packets handed on, seconds")
    noise_counts: float = Field(default=100.0, ge=1, le=1e6, description="RMS of the ground noise, counts")
    rates: RatesConfig = Field(default=RatesConfig(), description="events")
    faults: FaultsConfig = Field(default=FaultsConfig(), description="faults")


SourceConfig: TypeAlias = ArchiveConfig | SeedLinkConfig | FolderConfig | ShakeUdpConfig | SimulatorConfig
"""Where samples come from, told apart by ``kind``."""


def station_ids(network: str, station: str, count: int, rate_hz: float) -> tuple[StationId, ...]:
    """Codes for ``count`` stations: the given one, or as many numbered ones that begin like it."""
    band = "F" if rate_hz >= 1000 else "C" if rate_hz >= 250 else "H" if rate_hz >= 80 else "B"
    names = [station] if count == 1 else [f"{station[:5]}{number:02d}" for number in range(1, count + 1)]
    return tuple(StationId(network, name, "", band + "H") for name in names)
