"""The section of a SeedLink source."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from agent.config.section import Disagreement, Section, repeated
from agent.config.tls import TlsConfig

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
        return f"{self.host}:{self.server_port}"


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
